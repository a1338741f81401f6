"""Fields in an HDF5 file of schema ``opflow/1``, written whole or not at all.

==================  ==========================================================================================
object              content
==================  ==========================================================================================
root attributes     ``schema``; as JSON text: ``split``, ``inputs``, ``targets`` and whatever the writer adds
``grid/``           JSON attributes ``shape``, ``extent``, ``layout``, ``axes``, ``kind``; one array of
                    coordinates (float64) an axis
``fields/<name>``   (n, *grid), one chunk a sample, fletcher32; JSON attributes ``role`` (input, target or
                    auxiliary) and ``dims``
``measurements/``   only where there are any: ``<name>`` (n, measurement, channel, *sensors), stored like a field
``samples/``        ``index`` (int64, global numbers), ``ok`` (uint8), and perhaps ``residual`` (float64)
==================  ==========================================================================================
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.hdf5_source import HDF5Source
from opflow.data.schema import (
    RESERVED_ATTRIBUTES,
    SCHEMA,
    DataError,
    check_finite,
    check_name,
    check_names,
    check_stored_dtype,
    encode_attribute,
)
from opflow.data.source import as_array, check_both_names, check_field, check_fields, check_index, check_measurements
from opflow.files import atomic_file
from opflow.grid import Grid


def write_dataset(
    path: str | Path,
    fields: Mapping[str, Any],
    grid: Grid,
    *,
    inputs: Sequence[str],
    targets: Sequence[str],
    measurements: Mapping[str, Any] | None = None,
    index: Sequence[int] | NDArray[np.int64] | None = None,
    split: str = "train",
    attributes: Mapping[str, Any] | None = None,
    residual: Any = None,
) -> None:
    """Write scalar fields, and measurements beside them, to one HDF5 file, atomically; equal values give equal bytes.

    The file is put together in memory, so the peak is about twice the size of the fields: split what is larger
    into several files (`generate` does).

    Args:
        path: the file, ``.h5``; one that exists is replaced, in one step and only by a whole one.
        fields: name -> (n, *grid), tensors or arrays in physical units; booleans are stored as uint8.
        grid: where the values live.
        inputs: names of the input fields, in channel order.
        targets: names of the target fields, in channel order.
        measurements: name -> (n, measurement, channel, *sensors), real; inputs or targets like fields.
        index: the samples' global numbers (n,), by default 0..n-1.
        split: the seed namespace, for example ``train``.
        attributes: more to record (equation, parameters, seed ...), values that JSON can hold.
        residual: the solver's relative residual of each sample (n,), if there is one.

    Raises:
        DataError: a name, shape or dtype that the schema does not allow, or a value that is not finite.
        OSError: the file could not be written; what was there before is unchanged.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "u.h5"
    >>> write_dataset(path, {"u": torch.zeros(3, 4)}, Grid(4), inputs=("u",), targets=())
    >>> len(HDF5Source(path))
    3
    """
    path = Path(path)
    inputs, targets = check_names(inputs, "input"), check_names(targets, "target")
    names, measured = check_both_names(fields, measurements or {})
    arrays = {}
    for name in sorted(names):
        values = as_array((measurements or {})[name] if name in measured else fields[name])
        arrays[name] = values.astype(np.uint8) if values.dtype == bool else values
    scalar = {name: values for name, values in arrays.items() if name not in measured}
    n = check_fields(scalar, grid, str(path)) if scalar or not measured else None
    n = check_measurements({name: arrays[name] for name in sorted(measured)}, n, str(path))
    numbers = check_index(index, n, str(path))
    for name in inputs + targets:
        check_field(tuple(arrays), name, str(path))
    if set(inputs) & set(targets):
        raise DataError(
            f"{sorted(set(inputs) & set(targets))} is input and target at once; a field is stored as one of them."
        )
    for name, values in arrays.items():
        check_stored_dtype(values.dtype, name, str(path))
        check_finite(values, name, numbers, str(path))
    texts = {"split": encode_attribute("split", check_name(split, "split"))}
    texts |= {"inputs": encode_attribute("inputs", inputs), "targets": encode_attribute("targets", targets)}
    for name in check_names(attributes or (), "attribute"):
        if name in RESERVED_ATTRIBUTES:
            raise DataError(f"attribute {name!r} is the schema's own; choose another name.")
        texts[name] = encode_attribute(name, (attributes or {})[name])
    samples: dict[str, NDArray[Any]] = {"index": numbers, "ok": np.ones(n, dtype=np.uint8)}
    if residual is not None:
        samples["residual"] = as_array(residual).astype(np.float64)
        if samples["residual"].shape != (n,):
            raise DataError(
                f"residual has shape {samples['residual'].shape}; one number a sample, ({n},), is expected."
            )
        check_finite(samples["residual"], "residual", numbers, str(path))
    roles = {name: "input" if name in inputs else "target" if name in targets else "auxiliary" for name in arrays}

    content = _file_image({"schema": SCHEMA.encode(), **texts}, grid, arrays, roles, samples, measured)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        with closing(HDF5Source(temporary)) as written:
            for name, values in arrays.items():
                for i in range(0, n, 64):
                    block = range(i, min(i + 64, n))
                    if not np.array_equal(written.read(name, block), values[i : i + 64]):
                        raise OSError(None, f"field {name!r} did not read back as it was written")


def _file_image(
    texts: Mapping[str, bytes],
    grid: Grid,
    fields: Mapping[str, NDArray[Any]],
    roles: Mapping[str, str],
    samples: Mapping[str, NDArray[Any]],
    measured: Sequence[str],
) -> io.BytesIO:
    """The bytes of the file. HDF5 writes to memory only: on a full disk it would leave handles that crash at exit."""
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    buffer = io.BytesIO()
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, buffer)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    timeless = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    timeless.set_obj_track_times(False)

    def annotate(obj: Any, values: Mapping[str, bytes]) -> None:
        for name in sorted(values):
            obj.attrs[name] = np.bytes_(values[name])

    def store(group: Any, name: str, values: NDArray[Any], chunk: tuple[int, ...]) -> Any:
        return group.create_dataset(name, data=values, chunks=chunk, fletcher32=True, track_times=False)

    with h5py.File(h5py.h5f.create(repr(buffer).encode(), h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access)) as file:
        annotate(file, texts)
        groups = {
            name: h5py.Group(h5py.h5g.create(file.id, name.encode(), gcpl=timeless))
            for name in ("grid", "fields", "samples", *(("measurements",) if measured else ()))
        }
        description = {"kind": grid.kind, **grid.to_json()}
        annotate(groups["grid"], {name: encode_attribute(name, value) for name, value in description.items()})
        for axis, name in enumerate(grid.axes):
            store(groups["grid"], check_name(name, "axis"), grid.coordinates(axis).numpy(), (grid.shape[axis],))
        dims = encode_attribute("dims", ["sample", *grid.axes])
        sensors = encode_attribute("dims", ["sample", "measurement", "channel", "sensor"])
        for name, values in fields.items():
            dataset = store(
                groups["measurements" if name in measured else "fields"], name, values, (1, *values.shape[1:])
            )
            role = encode_attribute("role", roles[name])
            annotate(dataset, {"role": role, "dims": sensors if name in measured else dims})
        for name, values in samples.items():
            store(groups["samples"], name, values, values.shape)
    return buffer
