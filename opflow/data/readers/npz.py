"""NumPy's ``.npz``: a zip archive of arrays. Nothing in it is unpickled."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.readers.bare_arrays import MAX_ARRAY_BYTES, as_source
from opflow.data.schema import MAX_NAMES, DataError, damage_reported
from opflow.data.source import ArraySource
from opflow.grid import Grid


def read_npz(
    path: str | Path,
    *,
    grid: Grid | None = None,
    layout: str | Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> ArraySource:
    """The arrays of a ``.npz``, (samples, *grid) each; names and grid as `bare_arrays` says, unless they are given.

    Raises:
        DataError: damaged, holding objects instead of numbers, or larger than memory should take.
    """
    path = Path(path)
    with damage_reported(path, "the archive"):
        arrays = _read(path, None if inputs is None and targets is None else {*(inputs or ()), *(targets or ())})
    return as_source(arrays, path, grid=grid, layout=layout, inputs=inputs, targets=targets)


def _read(path: Path, wanted: set[str] | None) -> dict[str, NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_NAMES:
            raise DataError(f"{path} holds {len(members)} arrays; {MAX_NAMES} is the limit.")
        total = sum(member.file_size for member in members)
        if total > MAX_ARRAY_BYTES:
            raise DataError(
                f"{path} expands to {total} bytes; {MAX_ARRAY_BYTES} is the limit: convert it with write_dataset."
            )
        for member in members:
            name = member.filename.removesuffix(".npy")
            if wanted is None or name in wanted:
                arrays[name] = _read_array(archive, member, name, path)
    return arrays


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, path: Path) -> NDArray[Any]:
    content = archive.read(member)  # the whole member, so that its checksum is compared
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise DataError(f"{path}: array {name[:80]!r} has .npy version {version}; 1.0 and 2.0 are read.")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(
            f"{path}: array {name[:80]!r} holds pickled objects, which can run code; only numbers are read."
        )
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise DataError(
            f"{path}: array {name[:80]!r} declares shape {shape} but has {len(content) - file.tell()} bytes."
        )
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
