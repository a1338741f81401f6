"""Where samples come from: the protocol of every source of data, and the one that holds arrays in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opflow.data.schema import MIN_MEASUREMENT_AXES, DataError, check_finite, check_name, check_names
from opflow.grid import Grid


@runtime_checkable
class Source(Protocol):
    """Scalar fields on one grid, and perhaps measurements beside them, sample by sample, in physical units.

    ``inputs`` and ``targets`` name the fields in channel order; ``measurements`` says which names are arrays
    (measurement, channel, *sensors) a sample instead; ``index`` (n,) holds each sample's number in its seed namespace
    ``split``; ``fingerprint`` changes when any value does.
    """

    @property
    def grid(self) -> Grid:
        """The grid of every field."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input fields, in channel order."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target fields, in channel order."""
        ...

    @property
    def measurements(self) -> tuple[str, ...]:
        """The names that are measurements, not fields."""
        return ()

    @property
    def index(self) -> NDArray[np.int64]:
        """The global sample numbers (n,)."""
        ...

    @property
    def split(self) -> str:
        """The seed namespace the samples were drawn from."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the content."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Field `name` at the positions `indices` (each in 0..n-1), a new array (len(indices), *grid).

        Measurements come as (len(indices), measurement, channel, *sensors).
        """
        ...


def measurement_names(source: Source) -> tuple[str, ...]:
    """The names that are measurements; none for a source that knows only fields."""
    return getattr(source, "measurements", ())


def check_positions(indices: Sequence[int] | NDArray[np.int64], n: int, where: str) -> NDArray[np.int64]:
    """The positions as int64, each in 0..n-1."""
    positions = np.asarray(indices, dtype=np.int64).reshape(-1)
    outside = (positions < 0) | (positions >= n)
    if outside.any():
        raise IndexError(f"{where} has samples 0..{n - 1}; position {int(positions[outside.argmax()])} is outside.")
    return positions


def check_field(known: Sequence[str], name: str, where: str) -> None:
    """Raise unless the source has a field of this name."""
    if name not in known:
        raise DataError(f"{where} has no field {str(name)[:80]!r}; it has {', '.join(known)}.")


def as_array(values: Any) -> NDArray[Any]:
    """A tensor or array-like as a NumPy array; tensors on the CPU are not copied."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


class ArraySource:
    """A source whose fields are arrays in memory.

    Args:
        fields: name -> (n, *grid), real numbers or booleans.
        grid: the grid of all of them.
        inputs: names of the input fields, in channel order.
        targets: names of the target fields, in channel order.
        measurements: name -> (n, measurement, channel, *sensors), real numbers; may be inputs or targets too.
        index: global sample numbers (n,), by default 0..n-1.
        split: the seed namespace.
        where: what errors call this source, for example the file's path.

    Raises:
        DataError: a wrong shape, name or dtype, or a value that is not finite.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        grid: Grid,
        *,
        inputs: Sequence[str],
        targets: Sequence[str],
        measurements: Mapping[str, Any] | None = None,
        index: Sequence[int] | NDArray[np.int64] | None = None,
        split: str = "train",
        where: str | Path = "the arrays",
    ) -> None:
        self.where = str(where)
        self.grid = grid
        self.split = check_name(split, "split")
        names, self.measurements = check_both_names(fields, measurements or {})
        self.inputs, self.targets = check_names(inputs, "input"), check_names(targets, "target")
        for name in self.inputs + self.targets:
            check_field(names, name, self.where)
        self.fields = {name: as_array(values) for name, values in fields.items()}
        n = check_fields(self.fields, grid, self.where) if fields or not measurements else None
        measured = {name: as_array(values) for name, values in (measurements or {}).items()}
        n = check_measurements(measured, n, self.where)
        self.fields |= measured
        self.index = check_index(index, n, self.where)
        for name, values in self.fields.items():
            check_finite(values, name, self.index, self.where)
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over grid, names and values."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, values in (*self.fields.items(), ("index", self.index)):
                head = {"name": name, "dtype": values.dtype.str, "shape": values.shape}
                digest.update(json.dumps(head, sort_keys=True).encode())
                digest.update(np.ascontiguousarray(values).data)
            digest.update(json.dumps({"grid": self.grid.to_json(), "split": self.split}, sort_keys=True).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.index)

    def read(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Field `name` at these positions: (len(indices), *grid); measurements: (len(indices), measurement, channel, *sensors)."""
        check_field(tuple(self.fields), name, self.where)
        return self.fields[name][check_positions(indices, len(self), self.where)]


def check_both_names(
    fields: Mapping[str, Any], measurements: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All names, and those of the measurements; none may name a field and measurements at once."""
    twice = sorted(set(fields) & set(measurements))
    if twice:
        raise DataError(f"{twice[0]!r} names a field and measurements at once; give each a name of its own.")
    return check_names((*fields, *measurements), "field name"), check_names(measurements, "measurement name")


def check_fields(fields: Mapping[str, NDArray[Any]], grid: Grid, where: str) -> int:
    """Raise unless every field is (n, *grid) with one n > 0 and real; return n."""
    if not fields:
        raise DataError(f"{where}: no field was given; give at least one, (n, *grid).")
    n = None
    for name, values in fields.items():
        _check_real(values, f"field {name!r}", "give a complex field as two real ones", where)
        if values.ndim != grid.dim + 1 or values.shape[1:] != grid.shape:
            raise DataError(
                f"{where}: field {name!r} has shape {values.shape} but the grid is {grid.shape}; "
                f"(samples, *{grid.shape}) is expected."
            )
        if n is not None and len(values) != n:
            raise DataError(f"{where}: field {name!r} has {len(values)} samples but the fields before it have {n}.")
        n = len(values)
    if not n:
        raise DataError(f"{where}: there are no samples; give at least one.")
    return n


def check_measurements(measurements: Mapping[str, NDArray[Any]], n: int | None, where: str) -> int:
    """Raise unless all measurements are (n, measurement, channel, *sensors), of the fields' n if there are any; return n."""
    for name, values in measurements.items():
        _check_real(
            values, f"measurements {name!r}", "give complex data as two channels, real and imaginary part", where
        )
        if values.ndim < MIN_MEASUREMENT_AXES or 0 in values.shape:
            raise DataError(
                f"{where}: measurements {name!r} have shape {values.shape}; (samples, measurement, channel, *sensors) "
                "is expected, nothing empty: give a lone channel or sensor an axis of length 1."
            )
        if n is not None and len(values) != n:
            raise DataError(f"{where}: measurements {name!r} have {len(values)} samples but what comes before has {n}.")
        n = len(values)
    if n is None:
        raise DataError(f"{where}: neither fields nor measurements were given; give at least one.")
    return n


def _check_real(values: NDArray[Any], what: str, advice: str, where: str) -> None:
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8 or not values.dtype.isnative:
        raise DataError(
            f"{where}: {what} has dtype {values.dtype}; native real numbers or booleans are expected ({advice})."
        )


def check_index(index: Sequence[int] | NDArray[np.int64] | None, n: int, where: str) -> NDArray[np.int64]:
    """Global sample numbers (n,): given, distinct and not negative; or 0..n-1."""
    if index is None:
        return np.arange(n, dtype=np.int64)
    numbers = np.asarray(index)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{where}: index has shape {numbers.shape} and dtype {numbers.dtype}; {n} whole numbers are expected."
        )
    numbers = numbers.astype(np.int64)
    if numbers.min() < 0 or len(np.unique(numbers)) != n:
        raise DataError(f"{where}: index holds negative or repeated sample numbers; each sample needs its own.")
    return numbers
