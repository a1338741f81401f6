"""A data folder as one source: the parts in order, each verified and opened on first use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.hdf5_source import HDF5Source
from opflow.data.manifest import MANIFEST, read_manifest
from opflow.data.schema import DataError
from opflow.data.source import check_field, check_positions
from opflow.files import sha256
from opflow.grid import Grid

_MAX_OPEN = 16  # file handles are scarce on clusters, and workers multiply them


class FolderSource:
    """The samples of a folder that `generate` wrote.

    The SHA-256 of a part is compared with the manifest's before its first sample is read.

    Raises:
        DataError: the folder is not complete, or a part is not the one that the manifest describes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder)
        self.fingerprint = sha256(self.folder / MANIFEST)
        self._edges = np.array([part.start for part in self._manifest.parts] + [self._manifest.parts[-1].stop])
        self._verified: set[int] = set()
        self._open: OrderedDict[int, HDF5Source] = OrderedDict()

    @property
    def grid(self) -> Grid:
        """The grid of every field."""
        return self._manifest.grid

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input fields, in channel order."""
        return self._manifest.inputs

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target fields, in channel order."""
        return self._manifest.targets

    @property
    def measurements(self) -> tuple[str, ...]:
        """The names that are measurements, not fields."""
        return self._manifest.measurements

    @property
    def index(self) -> NDArray[np.int64]:
        """The global sample numbers (n,)."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def split(self) -> str:
        """The seed namespace."""
        return self._manifest.split

    @property
    def attributes(self) -> dict[str, Any]:
        """The recipe that made the folder."""
        return self._manifest.recipe

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Field `name` at these positions: (len(indices), *grid), or measurements with their own axes."""
        check_field(self.inputs + self.targets, name, str(self.folder))
        positions = check_positions(indices, len(self), str(self.folder))
        owners = np.searchsorted(self._edges, positions, side="right") - 1
        values: NDArray[Any] | None = None
        for number in np.unique(owners) if len(owners) else [0]:
            mine = owners == number
            block = self._part(int(number)).read(name, positions[mine] - self._edges[number])
            if values is None:
                values = np.empty((len(positions), *block.shape[1:]), dtype=block.dtype)
            if block.shape[1:] != values.shape[1:]:
                raise DataError(
                    f"{self.folder}: {name!r} has the shape {block.shape[1:]} in one part and {values.shape[1:]} in another; "
                    "generate the folder again."
                )
            values[mine] = block
        assert values is not None
        return values

    def _part(self, number: int) -> HDF5Source:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        part = self._manifest.parts[number]
        path = self.folder / part.file
        if number not in self._verified:
            if sha256(path) != part.sha256:
                raise DataError(
                    f"{path} does not have the SHA-256 that {MANIFEST} records, so it was damaged or changed; "
                    "run opflow.data.generate(..., resume=True) to make it again."
                )
            self._verified.add(number)
        source = HDF5Source(path)
        claims = (source.grid, source.inputs, source.targets, source.measurements, source.split)
        if claims != (self.grid, self.inputs, self.targets, self.measurements, self.split) or not np.array_equal(
            source.index, np.arange(part.start, part.stop)
        ):
            raise DataError(
                f"{path} does not hold the samples, names or grid that {MANIFEST} records; generate the folder again."
            )
        self._open[number] = source
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return source

    def close(self) -> None:
        """Close every file; the next read opens what it needs."""
        for source in self._open.values():
            source.close()
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
