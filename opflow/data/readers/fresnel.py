"""Files of the Institut Fresnel's database of 2005: measured waves that inhomogeneous cylinders scatter.

The ASCII files ``.exp``: comments behind ``#``, then rows

    view, receiver, frequency in GHz, Re and Im of the total field, Re and Im of the incident field;

and ``.npz`` files with the arrays total and incident (frequencies, views, receivers), complex and NaN where not measured, freq_GHz, view,
receiver_index and, where views are left out, n_views. Sources and receivers move on a circle of 1.67 m: view v of n stands at 360 (v - 1) / n degrees, receiver i at i - 1 degrees.
The receivers of the database of 2001 are numbered otherwise; those files are not read.

Data: Geffrin, Sabouroux and Eyraud 2005, "Free space experimental scattering database continuation: experimental set-up and measurement
precision", Inverse Problems 21, S117.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.data.schema import DataError, damage_reported

MAX_BYTES = 256 << 20
RADIUS = 1.67  # m, of the sources and of the receivers
POSITIONS = 360  # of the receivers, one a degree
LIGHT = 299_792_458.0  # m/s
COLUMNS = 7
ARRAYS = ("total", "incident", "freq_GHz", "view", "receiver_index")


@dataclass(frozen=True, eq=False)
class ScatteringMeasurement:
    """What was measured around one target. The fields are those of the file, of the time factor exp(+j omega t).

    Attributes:
        frequencies: (f,) in Hz, increasing.
        source_angles: (view,) in radians. receiver_angles: (receiver,) in radians, one a degree.
        total, incident: (f, view, receiver), complex128, with and without the target; zero where not measured.
        mask: (f, view, receiver) bool, True where measured.
        name: of the target, as the file says, else the file's own.
        n_views: of the whole measurement; source v stands at 2 pi (v - 1) / n_views.
        radius: of the circle of sources and receivers, in m.
    """

    frequencies: Tensor
    source_angles: Tensor
    receiver_angles: Tensor
    total: Tensor
    incident: Tensor
    mask: Tensor
    name: str
    n_views: int
    radius: float = RADIUS

    @property
    def wavenumbers(self) -> Tensor:
        """2 pi f / c in 1/m (f,)."""
        return 2 * math.pi * self.frequencies / LIGHT

    @property
    def scattered(self) -> Tensor:
        """total - incident, conjugated: for the time factor exp(-i omega t) of the library's waves."""
        return (self.total - self.incident).conj().resolve_conj()


def read_fresnel(path: str | Path) -> ScatteringMeasurement:
    """Read a target, ``.exp`` or ``.npz``; nothing in it is unpickled.

    A ``.npz`` carries checksums, which are compared. An ``.exp`` has none: each view that is there must be whole, so that a file that was cut
    is refused unless it was cut between two views.

    Raises:
        DataError: damaged or cut, rows that are no numbers or come twice, infinite fields, views or receivers that do not exist, or
            nothing measured.

    >>> read_fresnel("FoamDielIntTM.exp").total.shape  # doctest: +SKIP
    torch.Size([9, 8, 360])
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes; a target of the database has less than {MAX_BYTES}.")
    readers = {".exp": _read_exp, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is neither .exp nor .npz.")
    with damage_reported(path, "the measurement"):
        return readers[path.suffix.lower()](path)


def _read_exp(path: Path) -> ScatteringMeasurement:
    text = path.read_bytes().decode("latin-1")
    header = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    rows = np.loadtxt(io.StringIO(text), comments="#", ndmin=2)
    if len(rows) == 0 or rows.shape[1] != COLUMNS:
        raise DataError(f"{len(rows)} rows of {rows.shape[1]} numbers; rows of {COLUMNS} are expected.")
    if not np.isfinite(rows).all():
        raise DataError(
            f"row {int((~np.isfinite(rows)).any(1).argmax())} holds NaN or infinity; leave out what was not measured."
        )
    view, receiver = rows[:, 0].astype(int), rows[:, 1].astype(int)
    if (view != rows[:, 0]).any() or (receiver != rows[:, 1]).any():
        raise DataError("some number of a view or a receiver is not whole.")
    frequencies, f = np.unique(rows[:, 2], return_inverse=True)
    views, v = np.unique(view, return_inverse=True)
    _check_numbers(views, receiver)
    shape = (len(frequencies), len(views), POSITIONS)
    total, incident = np.full(shape, np.nan, dtype=complex), np.full(shape, np.nan, dtype=complex)
    place = np.ravel_multi_index((f, v, receiver - 1), shape)
    if len(np.unique(place)) != len(place):
        raise DataError("some view, receiver and frequency come twice.")
    total.ravel()[place], incident.ravel()[place] = rows[:, 3] + 1j * rows[:, 4], rows[:, 5] + 1j * rows[:, 6]
    n_frequencies = _stated(header, "frequencies", len(frequencies))
    n_receivers = _stated(header, "receivers", None)
    measured = ~np.isnan(total)
    counts = measured.sum(axis=2)
    whole = n_receivers if n_receivers is not None else counts.max()
    if len(frequencies) != n_frequencies or (counts != whole).any():
        raise DataError(
            f"{len(frequencies)} frequencies of {n_frequencies}, and views with {int(counts.min())} to {int(counts.max())} of {int(whole)} "
            "receivers; some rows are missing, so the file was cut or edited."
        )
    named = re.search(r"Object\s*:.*\(([^()]+)\)", header)
    n_views = _stated(header, "views", int(views.max())) or 0
    return _measurement(total, incident, frequencies, views, n_views, named.group(1) if named else path.stem)


def _stated(header: str, what: str, otherwise: int | None) -> int | None:
    found = re.search(rf"Number of {what}\s*:\s*(\d+)", header)
    return int(found.group(1)) if found else otherwise


def _read_npz(path: Path) -> ScatteringMeasurement:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise DataError(f"it expands to more than {MAX_BYTES} bytes.")
        damaged = archive.testzip()
        if damaged is not None:
            raise DataError(f"the checksum of {damaged} is wrong; restore the file.")
    with np.load(path, allow_pickle=False) as content:
        missing = [name for name in ARRAYS if name not in content.files]
        if missing:
            raise DataError(f"there is no array {missing[0]!r}; {', '.join(ARRAYS)} are expected.")
        total, incident, frequencies, views, receivers = (content[name] for name in ARRAYS)
        stated = int(content["n_views"]) if "n_views" in content.files else None
    shape = (len(frequencies), len(views), len(receivers))
    for name, field in (("total", total), ("incident", incident)):
        if field.shape != shape or field.dtype.kind != "c":
            raise DataError(
                f"{name} is {field.dtype} of shape {field.shape}; complex numbers of shape {shape} are expected."
            )
    for name, numbers in (("view", views), ("receiver_index", receivers)):
        if numbers.dtype.kind not in "iu" or len(np.unique(numbers)) != len(numbers):
            raise DataError(f"{name} are {numbers.dtype}; whole numbers, no two equal, are expected.")
    _check_numbers(views, receivers)
    everywhere = np.full((2, *shape[:2], POSITIONS), np.nan, dtype=complex)
    everywhere[..., receivers - 1] = np.stack([total, incident])
    return _measurement(
        everywhere[0], everywhere[1], frequencies, views, int(views.max()) if stated is None else stated, path.stem
    )


def _check_numbers(views: NDArray[Any], receivers: NDArray[Any]) -> None:
    if (
        len(views) == 0
        or views.min() < 1
        or views.max() > POSITIONS
        or receivers.min() < 1
        or receivers.max() > POSITIONS
    ):
        raise DataError(f"views and receivers are numbered from 1 to at most {POSITIONS}; others are here.")


def _measurement(
    total: NDArray[Any], incident: NDArray[Any], gigahertz: NDArray[Any], views: NDArray[Any], n_views: int, name: str
) -> ScatteringMeasurement:
    if np.isinf(total).any() or np.isinf(incident).any():
        raise DataError("some field is infinite; a missing one is NaN.")
    mask = ~(np.isnan(total) | np.isnan(incident))
    if not mask.any() or not np.abs(incident[mask]).max() > 0:
        raise DataError("nothing was measured: all fields are NaN, or the incident ones zero.")
    if not (np.isfinite(gigahertz).all() and (np.diff(gigahertz) > 0).all() and gigahertz[0] > 0):
        raise DataError(f"the frequencies are {gigahertz} GHz; positive and increasing ones are expected.")
    if n_views < views.max():
        raise DataError(f"view {int(views.max())} is here, of {n_views} that the header tells of.")
    return ScatteringMeasurement(
        torch.from_numpy(gigahertz.astype(np.float64) * 1e9),
        torch.from_numpy(2 * np.pi * (views.astype(np.float64) - 1) / n_views),
        torch.arange(POSITIONS, dtype=torch.float64) * (2 * math.pi / POSITIONS),
        torch.from_numpy(np.where(mask, total, 0).astype(np.complex128)),
        torch.from_numpy(np.where(mask, incident, 0).astype(np.complex128)),
        torch.from_numpy(mask),
        name.strip(),
        n_views,
    )
