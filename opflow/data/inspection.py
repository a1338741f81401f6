"""What an HDF5 object may be before a byte of it is read.

HDF5 can point to other files (external links, external storage, virtual datasets), declare terabytes in a kilobyte, and
keep text on a heap whose damage crashes the library. A file of schema ``opflow/1`` uses none of this: hard links,
fixed-length text, and chunked arrays with a checksum and no compression, so that what is declared is what is stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from opflow.data.schema import MAX_ATTRIBUTE_BYTES, MAX_NAMES, MIN_MEASUREMENT_AXES, DataError, check_stored_dtype

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = 3  # what libver "v110" writes: every piece of metadata carries a checksum


def check_superblock(path: Path) -> None:
    """Raise unless the file starts like one of ours; older HDF5 metadata has no checksums, so damage to it goes unseen."""
    with path.open("rb") as file:
        head = file.read(len(_SIGNATURE) + 1)
    if head[: len(_SIGNATURE)] != _SIGNATURE:
        raise DataError(
            f"{path} is not an HDF5 file, or it is truncated or damaged at its start; restore it or make it again."
        )
    if head[len(_SIGNATURE) :] != bytes([_SUPERBLOCK]):
        raise DataError(
            f"{path} is an HDF5 file but not one of opflow's (superblock version {head[len(_SIGNATURE) :].hex() or 'missing'}, "
            f"{_SUPERBLOCK:02x} is expected); write its fields again with opflow.data.write_dataset."
        )


def link_names(group: Any, path: Path) -> list[str]:
    """The names in a group, all of them hard links: nothing leads out of the file."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise DataError(f"{path}: a group is expected where there is {type(group).__name__}; it is not an opflow file.")
    if len(group) > MAX_NAMES:
        raise DataError(f"{path}: {group.name} holds {len(group)} objects; {MAX_NAMES} is the limit.")
    names = list(group)
    for name in names:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{path}: {name[:80]!r} is a {type(link).__name__}, which can lead to other files; links are refused, "
                "copy the data into the file."
            )
    return names


def read_text(obj: Any, name: str, path: Path) -> str:
    """A fixed-length text attribute."""
    import h5py
    import numpy as np

    if name.encode() not in _attribute_names(obj, path):
        raise DataError(f"{path}: {obj.name} has no attribute {name!r}; it is not a whole file of schema opflow/1.")
    attribute = h5py.h5a.open(obj.id, name.encode())
    kind = attribute.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str() or attribute.shape != ():
        raise DataError(
            f"{path}: attribute {name!r} is not fixed-length text; other kinds are refused, they can crash HDF5."
        )
    if kind.get_size() > MAX_ATTRIBUTE_BYTES:
        raise DataError(
            f"{path}: attribute {name!r} takes {kind.get_size()} bytes; {MAX_ATTRIBUTE_BYTES} is the limit."
        )
    content = np.empty((), dtype=f"S{kind.get_size()}")
    attribute.read(content)
    return bytes(content[()]).decode()


def _attribute_names(obj: Any, path: Path) -> list[bytes]:
    import h5py

    count = h5py.h5a.get_num_attrs(obj.id)
    if count > MAX_NAMES:
        raise DataError(f"{path}: {obj.name} has {count} attributes; {MAX_NAMES} is the limit.")
    return [h5py.h5a.open(obj.id, index=i).name for i in range(count)]


def read_json(obj: Any, name: str, path: Path) -> Any:
    """An attribute that holds JSON."""
    text = read_text(obj, name, path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: attribute {name!r} is not valid JSON ({error}); the file is damaged.") from error


def read_attributes(obj: Any, path: Path, besides: frozenset[str]) -> dict[str, Any]:
    """Every JSON attribute except `besides`."""
    names = [name.decode() for name in _attribute_names(obj, path)]
    return {name: read_json(obj, name, path) for name in sorted(names) if name not in besides}


def checked_array(
    group: Any, name: str, path: Path, *, file_bytes: int, shape: tuple[Any, ...] | None, chunk: Any
) -> Any:
    """The dataset `name`, after making sure that reading it reads this file only, and no more than is in it.

    `shape` is what it must have (None: any one axis; ``(n, ...)``: n measurements of samples, with their own axes);
    `chunk` its chunk (None: the whole array is one chunk; Ellipsis: a sample is).
    """
    import h5py

    if name not in group:
        raise DataError(f"{path}: {group.name} has no {name!r}; it is not a whole file of schema opflow/1.")
    dataset = group[name]
    where = f"{path}: {dataset.name}"
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is a {type(dataset).__name__}; an array is expected.")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise DataError(f"{where} is a virtual dataset, which reads other files; copy the data into the file.")
    if plan.get_external_count() > 0:
        raise DataError(f"{where} has external storage, which reads other files; copy the data into the file.")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if plan.get_layout() != h5py.h5d.CHUNKED or filters != [h5py.h5z.FILTER_FLETCHER32]:
        raise DataError(
            f"{where} is not stored as chunks with a fletcher32 checksum and no compression (filters {filters}); "
            "damage would go unseen or a small file could fill the memory. Write it with opflow.data.write_dataset."
        )
    if dataset.id.get_type().get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise DataError(f"{where} does not hold numbers; real numbers are expected.")
    check_stored_dtype(dataset.dtype, name, str(path))
    actual = tuple(int(n) for n in dataset.shape or ())
    declared = math.prod(actual) * dataset.dtype.itemsize
    if declared > file_bytes:
        raise DataError(
            f"{where} declares {declared} bytes ({actual}) but the file has {file_bytes}; it is damaged or hostile."
        )
    if shape is not None and shape[-1] is Ellipsis:
        fits = len(actual) >= MIN_MEASUREMENT_AXES and actual[0] == shape[0] and 0 not in actual
        expected = f"({shape[0]}, measurement, channel, *sensors)"
    else:
        fits = len(actual) == 1 if shape is None else actual == shape
        expected = "one axis" if shape is None else str(shape)
    if not fits:
        raise DataError(f"{where} has shape {actual}; {expected} is expected.")
    chunk = actual if chunk is None else (1, *actual[1:]) if chunk is Ellipsis else chunk
    if tuple(dataset.chunks) != chunk:
        raise DataError(f"{where} has chunks {dataset.chunks}; {chunk} is expected.")
    chunks = math.prod(n // c for n, c in zip(actual, chunk, strict=True))
    stored = declared + 4 * chunks  # fletcher32 adds four bytes to a chunk
    if dataset.id.get_storage_size() != stored:
        raise DataError(
            f"{where} stores {dataset.id.get_storage_size()} bytes; {stored} are expected: some samples were never written."
        )
    return dataset
