"""Pairs of ``.npy`` files in the layout of OpenFWI (Deng et al. 2022): seismograms and the velocities under them.

``data1.npy`` (n, source, time, receiver) and ``model1.npy`` (n, 1, depth, x), ``data2.npy`` and ``model2.npy``, and so on,
500 samples a file. The files are mapped into memory and read sample by sample: they are larger than it.
They carry no checksums: damage to a value can go unseen. Written again with `write_dataset` it cannot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.schema import DataError, check_finite, check_name, check_names, damage_reported
from opflow.data.source import check_field, check_positions
from opflow.files import sha256
from opflow.grid import Grid

SPACING = 10.0  # metres, of the published velocities


class OpenFWISource:
    """Samples of pairs of files, ``measurements`` (n, source, 1, time, receiver) -> `output` (n, depth, x), one file after the other.

    Made by `read_openfwi`; errors are as there.
    """

    inputs = ("measurements",)
    measurements = ("measurements",)

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], grid: Grid | None, *, split: str, output: str, spacing: float
    ) -> None:
        self.pairs = tuple(pairs)
        self.split = check_name(split, "split")
        self.targets = check_names((output,), "output")
        self._arrays: dict[Path, NDArray[Any]] = {}
        self._identities = {path: _identity(path) for pair in self.pairs for path in pair}
        self._fingerprint: str | None = None
        counts = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        for data, model in self.pairs:
            records, speeds = self._array(data), self._array(model)
            for path, values, axes, expected in (
                (data, records, 4, "(samples, source, time, receiver)"),
                (model, speeds, 4, "(samples, 1, depth, x)"),
            ):
                if values.dtype.kind != "f" or values.ndim != axes or 0 in values.shape:
                    raise DataError(
                        f"{path} holds {values.dtype} of shape {values.shape}; real numbers {expected} are expected."
                    )
            if speeds.shape[1] != 1 or len(records) != len(speeds):
                raise DataError(
                    f"{model} has shape {speeds.shape} and {data} {records.shape}; ({len(records)}, 1, depth, x) is expected."
                )
            shapes = {"measurements": records.shape[1:], output: speeds.shape[2:]}
            if self._shapes and shapes != self._shapes:
                raise DataError(f"{data} and {model} hold {shapes} where the files before hold {self._shapes}.")
            self._shapes = shapes
            counts.append(len(records))
        self._edges = np.cumsum([0, *counts])
        depth, width = self._shapes[output]
        if grid is None:
            extent = ((0.0, (depth - 1) * spacing), (0.0, (width - 1) * spacing))
            grid = Grid((depth, width), extent, axes=("z", "x"))
        if grid.shape != (depth, width):
            raise DataError(
                f"{self.pairs[0][1]} has velocities of shape {(depth, width)} but the grid is {grid.shape}."
            )
        self.grid = grid

    @property
    def index(self) -> NDArray[np.int64]:
        """The samples' numbers (n,), counted through all files."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over those of the files, read whole on first use."""
        if self._fingerprint is None:
            digest = hashlib.sha256(str((self.split, self.targets, self.grid.to_json())).encode())
            for path in self._identities:
                self._check_identity(path)
                digest.update(sha256(path).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Seismograms (len(indices), source, 1, time, receiver), or velocities (len(indices), depth, x)."""
        check_field(self.inputs + self.targets, name, str(self.pairs[0][0]))
        positions = check_positions(indices, len(self), str(self.pairs[0][0]))
        owners = np.searchsorted(self._edges, positions, side="right") - 1
        kind = 0 if name == "measurements" else 1
        first = self._array(self.pairs[0][kind])
        values = np.empty((len(positions), *first.shape[1:]), dtype=first.dtype.newbyteorder("="))
        for number in np.unique(owners):
            path, mine = self.pairs[int(number)][kind], owners == number
            values[mine] = self._array(path)[positions[mine] - self._edges[number]]
            check_finite(values[mine], name, positions[mine], str(path))
        return values[:, :, None] if kind == 0 else values[:, 0]

    def _array(self, path: Path) -> NDArray[Any]:
        if path not in self._arrays:
            self._check_identity(path)
            with damage_reported(path, "the array"):
                self._arrays[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._arrays[path]

    def _check_identity(self, path: Path) -> None:
        if _identity(path) != self._identities[path]:
            raise DataError(f"{path} was replaced after it was opened; open it again to read the new content.")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}}  # a map would travel as a copy of the file


def read_openfwi(
    data: str | Path | Sequence[str | Path],
    model: str | Path | Sequence[str | Path],
    *,
    grid: Grid | None = None,
    split: str = "train",
    output: str = "wave_speed",
    spacing: float = SPACING,
) -> OpenFWISource:
    """Seismograms and velocities in the layout of OpenFWI.

    Args:
        data: a ``.npy`` file of seismograms, or several.
        model: the file of velocities that belongs to it, or several, in the same order.
        grid: where the velocities live, (depth, x). Default: nodes `spacing` apart, axes z (downwards) and x.
        split: the seed namespace to record; the files of a split are named by the caller.
        output: what the velocity is called.
        spacing: of the default grid, in metres.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: damaged, of another layout, or files that do not belong together.

    >>> read_openfwi("data1.npy", "model1.npy").read("measurements", [0]).shape  # doctest: +SKIP
    (1, 5, 1, 1000, 70)
    """
    files = [[Path(p) for p in ([given] if isinstance(given, str | Path) else given)] for given in (data, model)]
    if len(files[0]) != len(files[1]) or not files[0]:
        raise DataError(
            f"{len(files[0])} files of seismograms and {len(files[1])} of velocities were given; give as many, in the same order."
        )
    for path in files[0] + files[1]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist or is not a file; check the path.")
    return OpenFWISource(list(zip(*files, strict=True)), grid, split=split, output=output, spacing=spacing)


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
