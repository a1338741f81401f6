"""The HDF5 files that were published with neural inverse operators (Molinaro, Yang, Engquist and Mishra 2023).

==============================  ==================================================================================
object                          content
==============================  ==================================================================================
``training/sample_0/input``     (sensors, measurements), for example 272 x 20: four sides of 68 points
``training/sample_0/output``    the coefficient on the grid, for example 70 x 70
``validation``, ``testing``     likewise; sample numbers go on from split to split, they do not start at 0 again
``grid``                        (*grid, dim), coordinates
``mean_inp_fun``, ...           statistics over all splits, which are not read
==============================  ==================================================================================

These files carry no checksums: damage to a value can go unseen. Written again with `write_dataset` it cannot.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.readers.bare_arrays import MAX_ARRAY_BYTES
from opflow.data.schema import DataError, damage_reported
from opflow.data.source import ArraySource
from opflow.grid import Grid

SPLITS = {"training": "train", "validation": "validation", "testing": "test"}
MAX_SAMPLES = 100_000

_SAMPLE = re.compile(r"sample_([0-9]{1,9})")


def read_nio(
    path: str | Path,
    split: str = "train",
    *,
    grid: Grid | None = None,
    transposed: bool = False,
    output: str = "coefficient",
) -> ArraySource:
    """One split of a file, as ``measurements`` (n, measurement, 1, sensor) -> `output` (n, *grid), in the file's own units.

    Args:
        path: the file.
        split: ``train``, ``validation`` or ``test``.
        grid: where the outputs live. Default: nodes over the range of the file's coordinates, which must be those of such a
            grid; without coordinates the unit cube.
        transposed: the input matrix is (measurements, sensors).
        output: what the coefficient is called.

    Raises:
        DataError: damaged, of another layout, leading to other files, holding values that are not finite, or more than
            memory should take.

    >>> read_nio("calderon.h5", "test").read("measurements", [0]).shape  # doctest: +SKIP
    (1, 20, 1, 272)
    """
    path = Path(path)
    group_name = {own: theirs for theirs, own in SPLITS.items()}.get(split)
    if group_name is None:
        raise DataError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS.values())}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; check the path.")
    with damage_reported(path, "its samples"):
        index, inputs, outputs, points = _read(path, group_name)
    grid = _grid_of(points, outputs.shape[1:], path) if grid is None else grid
    measurements = inputs if transposed else inputs.swapaxes(1, 2)
    return ArraySource(
        {output: outputs},
        grid,
        inputs=("measurements",),
        targets=(output,),
        measurements={"measurements": np.ascontiguousarray(measurements[:, :, None])},
        index=index,
        split=split,
        where=path,
    )


def _read(path: Path, group_name: str) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    import h5py

    # No lock: the file is only read, perhaps from a medium that knows no locks.
    with h5py.File(path, "r", locking=False) as file:
        group = _child(file, group_name, h5py.Group, path)
        if not 0 < len(group) <= MAX_SAMPLES:
            raise DataError(
                f"{path}: {group_name} holds {len(group)} objects; 1 to {MAX_SAMPLES} samples are expected."
            )
        names = {}
        for name in group:
            matched = _SAMPLE.fullmatch(name)
            if not matched:
                raise DataError(f"{path}: {group_name} holds {name[:80]!r}; sample_0, sample_1 and so on are expected.")
            names[int(matched[1])] = name
        index = np.array(sorted(names), dtype=np.int64)
        parts: dict[str, NDArray[Any]] = {}
        for i, number in enumerate(index):
            sample = _child(group, names[int(number)], h5py.Group, path)
            for kind, axes in (("input", 2), ("output", None)):
                dataset = _numbers(sample, kind, path, path.stat().st_size)
                if axes is not None and dataset.ndim != axes:
                    raise DataError(
                        f"{path}: {dataset.name} has shape {dataset.shape}; (sensors, measurements) is expected."
                    )
                if i == 0:
                    whole = (len(index), *dataset.shape)
                    if math.prod(whole) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
                        raise DataError(
                            f"{path}: {group_name} takes more than {MAX_ARRAY_BYTES} bytes; read it in pieces of your own "
                            "and write these with write_dataset."
                        )
                    parts[kind] = np.empty(whole, dtype=dataset.dtype.newbyteorder("="))
                if dataset.shape != parts[kind].shape[1:]:
                    raise DataError(
                        f"{path}: {dataset.name} has shape {dataset.shape} where the samples before it have "
                        f"{parts[kind].shape[1:]}."
                    )
                parts[kind][i] = dataset[()]
        points = _numbers(file, "grid", path, path.stat().st_size)[()] if "grid" in file else None
    return index, parts["input"], parts["output"], points


def _child(group: Any, name: str, kind: Any, path: Path) -> Any:
    """The object `name`, in this file."""
    import h5py

    if name not in group:
        raise DataError(f"{path}: {group.name} has no {name!r}; it is not a file of this layout.")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{path}: {group.name}/{name} is a link, which can lead to other files; links are refused.")
    child = group[name]
    if not isinstance(child, kind):
        raise DataError(f"{path}: {group.name}/{name} is a {type(child).__name__}; a {kind.__name__} is expected.")
    return child


def _numbers(group: Any, name: str, path: Path, file_bytes: int) -> Any:
    """The array `name`: real numbers, stored in this file, no more than the file can hold."""
    import h5py

    dataset = _child(group, name, h5py.Dataset, path)
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count() > 0:
        raise DataError(f"{path}: {dataset.name} reads other files; copy the data into the file.")
    if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8 or not dataset.shape:
        raise DataError(
            f"{path}: {dataset.name} has dtype {dataset.dtype}, shape {dataset.shape}; numbers are expected."
        )
    if plan.get_nfilters() == 0 and math.prod(dataset.shape) * dataset.dtype.itemsize > file_bytes:
        raise DataError(f"{path}: {dataset.name} declares {dataset.shape}, more than the file's {file_bytes} bytes.")
    if plan.get_nfilters() and math.prod(dataset.shape) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise DataError(f"{path}: {dataset.name} expands to more than {MAX_ARRAY_BYTES} bytes.")
    return dataset


def _grid_of(points: NDArray[Any] | None, shape: tuple[int, ...], path: Path) -> Grid:
    """The grid of nodes whose coordinates these are."""
    if len(shape) > 3:
        raise DataError(f"{path}: outputs of shape {shape} have too many axes; say where they live with grid=.")
    if points is None:
        return Grid(shape)
    if points.shape != (*shape, len(shape)) or not np.isfinite(points).all():
        raise DataError(
            f"{path}: 'grid' has shape {points.shape} where the outputs are {shape}; (*grid, dim), finite, is expected: "
            "say where the outputs live with grid=."
        )
    # x may run along the first axis or along the last; the grid's axes are named so that it is known.
    for axes in (list(range(len(shape))), list(reversed(range(len(shape))))):
        spans = [(float(points[..., k].min()), float(points[..., k].max())) for k in axes]
        if all(a < b for a, b in spans):
            grid = Grid(shape, spans, axes=["xyz"[k] for k in axes])
            if np.allclose(grid.points().numpy(), points[..., axes], rtol=0, atol=1e-6 * max(grid.lengths)):
                return grid
    raise DataError(
        f"{path}: the coordinates are not those of a grid of evenly spaced nodes; say where the outputs live with grid=."
    )
