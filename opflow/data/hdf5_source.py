"""Reading HDF5 files of schema ``opflow/1``: lazily, in any process, and with suspicion."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.inspection import (
    check_superblock,
    checked_array,
    link_names,
    read_attributes,
    read_json,
    read_text,
)
from opflow.data.schema import (
    RESERVED_ATTRIBUTES,
    SCHEMA,
    DataError,
    check_finite,
    check_name,
    check_names,
    check_schema,
    damage_reported,
)
from opflow.data.source import check_field, check_index, check_positions
from opflow.grid import Grid


@dataclass(frozen=True)
class _Header:
    grid: Grid
    names: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    measurements: tuple[str, ...]
    index: NDArray[np.int64]
    split: str
    attributes: dict[str, Any]


def _read_header(file: Any, path: Path, file_bytes: int) -> _Header:
    check_schema(read_text(file, "schema", path), path)
    split = check_name(read_json(file, "split", path), "split")
    inputs = check_names(read_json(file, "inputs", path), "input")
    targets = check_names(read_json(file, "targets", path), "target")
    groups = link_names(file, path)
    missing = {"grid", "fields", "samples"} - set(groups)
    if missing:
        raise DataError(f"{path}: group {sorted(missing)[0]!r} is missing; it is not a whole file of schema {SCHEMA}.")
    axes = link_names(file["grid"], path)
    description = {name: read_json(file["grid"], name, path) for name in ("kind", "shape", "extent", "layout", "axes")}
    grid = Grid.from_json(description)
    if description["kind"] != grid.kind:
        raise DataError(
            f"{path}: the grid is said to be of kind {description['kind']!r}, but its axes {list(grid.axes)} make it {grid.kind}."
        )
    fields = check_names(link_names(file["fields"], path), "field name")
    measured: tuple[str, ...] = ()
    if "measurements" in groups:
        measured = check_names(link_names(file["measurements"], path), "measurement name")
    names = tuple(sorted(check_names((*fields, *measured), "field name")))
    for name in inputs + targets:
        check_field(names, name, str(path))
    link_names(file["samples"], path)
    index = checked_array(file["samples"], "index", path, file_bytes=file_bytes, shape=None, chunk=None)
    n = len(index)
    ok = checked_array(file["samples"], "ok", path, file_bytes=file_bytes, shape=(n,), chunk=None)[()]
    if not (ok == 1).all():
        raise DataError(
            f"{path}: {int((ok != 1).sum())} of {n} samples are marked as failed; make the file again without them."
        )
    for name in measured:
        checked_array(file["measurements"], name, path, file_bytes=file_bytes, shape=(n, ...), chunk=...)
    for name in fields:
        checked_array(file["fields"], name, path, file_bytes=file_bytes, shape=(n, *grid.shape), chunk=(1, *grid.shape))
    if set(axes) != set(grid.axes):
        raise DataError(
            f"{path}: coordinates {axes} are stored for a grid with axes {list(grid.axes)}; they must agree."
        )
    for axis, name in enumerate(grid.axes):
        shape = (grid.shape[axis],)
        stored = checked_array(file["grid"], name, path, file_bytes=file_bytes, shape=shape, chunk=None)[()]
        if not np.allclose(stored, grid.coordinates(axis).numpy(), rtol=1e-12, atol=1e-12 * grid.lengths[axis]):
            raise DataError(
                f"{path}: the stored coordinates of axis {name!r} are not those of {grid}; they must agree."
            )
    numbers = check_index(index[()], n, str(path))
    attributes = read_attributes(file, path, RESERVED_ATTRIBUTES)
    return _Header(grid, names, inputs, targets, measured, numbers, split, attributes)


def _open(path: Path) -> Any:
    """The file, open for reading; no lock is taken, since nothing ever writes to a file under its final name."""
    import h5py

    return h5py.File(path, "r", locking=False)


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class HDF5Source:
    """One HDF5 file of schema ``opflow/1``, checked when it is opened and read sample by sample afterwards.

    It may be handed to worker processes, forked or spawned: each opens the file for itself. A process that has it open
    keeps reading the old content when the file is replaced; one that opens it later refuses the new content.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is truncated, altered, of another schema or version, or leads to other files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._fields: dict[str, Any] = {}
        self._pid = -1
        self._identity: tuple[int, int, int, int] | None = None
        self._fingerprint: str | None = None
        file = self._file()
        try:
            with damage_reported(self.path, "its content"):
                self._header: _Header = _read_header(file, self.path, self.path.stat().st_size)
        except DataError:
            self.close()
            raise

    @property
    def grid(self) -> Grid:
        """The grid of every field."""
        return self._header.grid

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields and measurements, sorted."""
        return self._header.names

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input fields, in channel order."""
        return self._header.inputs

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target fields, in channel order."""
        return self._header.targets

    @property
    def measurements(self) -> tuple[str, ...]:
        """The names that are measurements, not fields."""
        return self._header.measurements

    @property
    def index(self) -> NDArray[np.int64]:
        """The global sample numbers (n,)."""
        return self._header.index

    @property
    def split(self) -> str:
        """The seed namespace."""
        return self._header.split

    @property
    def attributes(self) -> dict[str, Any]:
        """What else the writer recorded."""
        return self._header.attributes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        if self._fingerprint is None:
            with self.path.open("rb") as file:
                self._check_identity(_identity(file.fileno()))
                self._fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.index)

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Field `name` at these positions, in the stored dtype: (len(indices), *grid), or measurements with their own axes.

        Raises:
            DataError: a checksum does not match, or a value is not finite; the message names the sample.
        """
        check_field(self.names, name, str(self.path))
        positions = check_positions(indices, len(self), str(self.path))
        file = self._file()
        if name not in self._fields:
            with damage_reported(self.path, f"field {name!r}"):
                self._fields[name] = file["measurements" if name in self.measurements else "fields"][name]
        dataset = self._fields[name]
        values = np.empty((len(positions), *dataset.shape[1:]), dtype=dataset.dtype)
        # Whole chunks, neighbours in one call; a stride inside HDF5 would be ten times slower than in NumPy.
        edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        for start, stop in pairwise(edges):
            if start < stop:
                self._read_run(dataset, name, int(positions[start]), values[start:stop])
        check_finite(values, name, self.index[positions], str(self.path))
        return values

    def _read_run(self, dataset: Any, name: str, first: int, values: NDArray[Any]) -> None:
        n = len(values)
        try:
            dataset.read_direct(values, np.s_[first : first + n], np.s_[0:n])
        except (OSError, RuntimeError) as error:
            if n > 1:  # find the sample that is damaged
                for k in range(n):
                    self._read_run(dataset, name, first + k, values[k : k + 1])
            reason = str(error).split("\n")[0][:200]
            raise DataError(
                f"{self.path}: field {name!r} of sample {int(self.index[first])} cannot be read ({reason}); "
                "the file is damaged: restore it or make it again."
            ) from error

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None:
            self._handle.close()
        self._handle, self._fields = None, {}

    def _file(self) -> Any:
        if self._handle is not None and self._pid == os.getpid():
            return self._handle
        self.close()  # inherited through fork: this closes the child's copy only
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist or is not a file; check the path.")
        check_superblock(self.path)
        with damage_reported(self.path, "its HDF5 structure"):
            handle = _open(self.path)
            identity = _identity(handle.id.get_vfd_handle())
        try:
            self._check_identity(identity)
        except DataError:
            handle.close()
            raise
        self._handle, self._pid, self._identity = handle, os.getpid(), identity
        return handle

    def _check_identity(self, identity: tuple[int, int, int, int]) -> None:
        if self._identity is not None and identity != self._identity:
            raise DataError(f"{self.path} was replaced after it was opened; open it again to read the new content.")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_fields": {}, "_pid": -1}
