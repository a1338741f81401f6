"""The file schema ``opflow/1``: its names, its limits, and the one error that every reader of data raises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = "opflow/1"
STORED_DTYPES = ("float32", "float64", "uint8", "int32", "int64")
# A fixed-length HDF5 attribute lives in one object-header message, which cannot exceed 64 KiB.
MAX_ATTRIBUTE_BYTES = 60_000
MAX_NAMES = 256
MIN_MEASUREMENT_AXES = 4  # (n, measurement, channel, *sensors)
RESERVED_ATTRIBUTES = frozenset({"schema", "split", "inputs", "targets"})

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class DataError(ValueError):
    """Data that cannot be used: damaged, hostile, of a foreign schema, not finite, or not what was asked for."""


@contextmanager
def damage_reported(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into a `DataError` that names the file and the part."""
    try:
        yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise DataError(
            f"{path}: {what} cannot be read ({reason}); the file is damaged or not what its name says: "
            "restore it or make it again."
        ) from error


def check_name(name: object, what: str) -> str:
    """Return `name` if it may stand in a file and in a path: a letter, then letters, digits and underscores, 64 at most."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(
            f"{what} {str(name)[:80]!r} is not allowed; use a letter, then letters, digits or underscores, 64 at most."
        )
    return name


def check_names(names: Iterable[object], what: str) -> tuple[str, ...]:
    """Check every name, and that none comes twice."""
    if isinstance(names, str):
        raise DataError(f"{what}s is the text {names!r}; give a sequence of names, for example ({names!r},).")
    checked = tuple(check_name(name, what) for name in names)
    if len(set(checked)) != len(checked):
        raise DataError(f"{what}s {checked} name something twice; name each once.")
    if len(checked) > MAX_NAMES:
        raise DataError(f"{len(checked)} {what}s were given; {MAX_NAMES} is the limit.")
    return checked


def check_finite(values: NDArray[Any], name: str, index: Sequence[int] | NDArray[np.int64], where: str) -> None:
    """Raise unless every value of `values` (n, ...) is finite, naming the field, the first bad sample and the count."""
    if values.dtype.kind != "f" or bool(np.isfinite(values).all()):
        return
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise DataError(
        f"{where}: field {name!r} is not finite (NaN or infinite) in {int(bad.sum())} of {len(values)} samples, "
        f"first in sample {int(index[int(bad.argmax())])}; correct or leave out these samples."
    )


def encode_attribute(name: str, value: Any) -> bytes:
    """One attribute as JSON text: plain values only, so that reading it back can run no code."""
    try:
        content = json.dumps(value, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"attribute {name!r} cannot be written as JSON ({error}); use text, finite numbers, lists and mappings."
        ) from error
    if len(content) > MAX_ATTRIBUTE_BYTES:
        raise DataError(f"attribute {name!r} takes {len(content)} bytes; {MAX_ATTRIBUTE_BYTES} is the limit.")
    return content


def check_schema(schema: object, path: str | Path) -> None:
    """Raise unless `schema` is the one this version reads."""
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {str(schema)[:80]!r} but this version of opflow reads {SCHEMA!r}; "
            "use the version that wrote it, or write it again with opflow.data.write_dataset."
        )


def check_stored_dtype(dtype: np.dtype[Any], name: str, where: str) -> None:
    """Raise unless `dtype` may stand in a file."""
    if dtype.name not in STORED_DTYPES or not dtype.isnative:
        raise DataError(
            f"{where}: field {name!r} has dtype {dtype}; one of {', '.join(STORED_DTYPES)} is expected "
            "(store a complex field as two real ones)."
        )


def first_difference(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key (dotted, in sorted order) in which two JSON mappings differ, with both values."""
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            deeper = first_difference(a, b, f"{prefix}{key}.")
            if deeper is not None:
                return deeper
        elif a != b:
            return f"{prefix}{key}", a, b
    return None
