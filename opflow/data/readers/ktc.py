"""Files of the Kuopio Tomography Challenge 2023: measured voltages of a water tank with 32 electrodes.

The challenge's ``.mat`` files, and ``.npz`` files with arrays of the same names:

    Inj (electrodes, currents) or Injref, Mpat (electrodes, differences), Uel (currents * differences) or Uelref: all differences of the first
    current come first; truth (256, 256): 0 water, 1 resistive, 2 conductive, rows from the top; and in ``.npz`` nodes (n, 2) in m,
    triangles (m, 3) and electrode_edges (electrodes, sides, 2), numbered from 0.

Data: Rasanen et al. (2023), "Kuopio Tomography Challenge 2023 open electrical impedance tomographic dataset", Zenodo.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.data.schema import DataError, damage_reported
from opflow.mesh import Mesh

MAX_BYTES = 256 << 20
NAMES = {"currents": ("Inj", "Injref"), "voltages": ("Uel", "Uelref")}
BALANCE = 1e-6  # what measured currents may leave of their largest


@dataclass(frozen=True, eq=False)
class TankMeasurement:
    """One measurement of a tank; `problems.ElectrodeTomography` takes its parts.

    Attributes:
        currents: (electrodes, L), columns sum to zero.
        pattern: (electrodes, K): differences of voltages.
        voltages: (L, K), float64; NaN where not measured.
        mask: (L, K) bool, True where measured.
        truth: (x, y) uint8, the order of the library's fields: 0 water, 1 resistive, 2 conductive; None if not known.
        mesh, electrodes: of the tank, the sides (sides, 2) of every electrode; None where the file has none.
    """

    currents: Tensor
    pattern: Tensor
    voltages: Tensor
    mask: Tensor
    truth: Tensor | None = None
    mesh: Mesh | None = None
    electrodes: tuple[Tensor, ...] | None = None


def read_ktc(path: str | Path, *, truth: str | Path | None = None) -> TankMeasurement:
    """Read a measurement, ``.mat`` of version 5 or ``.npz``; nothing in it is unpickled.

    A ``.npz`` carries checksums, and so does a compressed ``.mat``; of an uncompressed one only the plausibility is checked.

    Args:
        truth: a file of the true image, where the measurement's own has none, as in the challenge.

    Raises:
        DataError: damaged, arrays missing or of shapes that do not fit, infinite voltages, currents that do not sum to zero, nothing
            measured, or labels other than 0, 1 and 2.
    """
    path = Path(path)
    arrays = _arrays(path)
    with damage_reported(path, "the measurement"):
        currents, pattern = _matrix(arrays, NAMES["currents"]), _matrix(arrays, ("Mpat",))
        voltages = _matrix(arrays, NAMES["voltages"], finite=False).ravel()
        if len(currents) != len(pattern) or currents.shape[1] * pattern.shape[1] != len(voltages):
            raise DataError(
                f"currents {currents.shape}, differences {pattern.shape} and {len(voltages)} voltages do not fit; expected (electrodes, L), "
                "(electrodes, K) and L * K."
            )
        if np.isinf(voltages).any():
            raise DataError("some voltage is infinite; a missing one is NaN.")
        for name, columns in (("currents", currents), ("differences", pattern)):
            largest = np.abs(columns).max(0)
            if (np.abs(columns.sum(0)) > BALANCE * largest).any() or (largest == 0).any():
                raise DataError(f"some column of the {name} is zero or does not sum to zero.")
        if np.isnan(voltages).all():
            raise DataError("no voltage was measured: all are NaN.")
        table = torch.from_numpy(voltages.reshape(currents.shape[1], -1))
        image = _truth(arrays if truth is None else _arrays(Path(truth)))
        if truth is not None and image is None:
            raise DataError(f"{truth} has no array 'truth'.")
        mesh, electrodes = _mesh(arrays, len(currents))
    return TankMeasurement(
        torch.from_numpy(currents), torch.from_numpy(pattern), table, ~table.isnan(), image, mesh, electrodes
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes; a measurement of a tank has less than {MAX_BYTES}.")
    with damage_reported(path, "the archive of arrays"):
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                    raise DataError(f"{path} expands to more than {MAX_BYTES} bytes.")
                damaged = archive.testzip()
                if damaged is not None:
                    raise DataError(f"{path}: the checksum of {damaged} is wrong; restore the file.")
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        elif path.suffix.lower() == ".mat":
            from scipy.io import loadmat

            arrays = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        else:
            raise DataError(f"{path} is neither .mat nor .npz.")
    return arrays


def _matrix(arrays: dict[str, NDArray[Any]], names: tuple[str, ...], *, finite: bool = True) -> NDArray[np.float64]:
    """The array of one of these names, float64 and of two axes."""
    found = [name for name in names if name in arrays]
    if not found:
        raise DataError(f"there is no array {' or '.join(names)}, but {', '.join(arrays) or 'nothing'}.")
    values = arrays[found[0]]
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2) or not values.size:
        raise DataError(f"array {found[0]} is {values.dtype} {values.shape}; expected a matrix of real numbers.")
    matrix = np.ascontiguousarray(values, dtype=np.float64).reshape(len(values), -1)
    if finite and not np.isfinite(matrix).all():
        raise DataError(f"array {found[0]} holds NaN or infinity.")
    return matrix


def _truth(arrays: dict[str, NDArray[Any]]) -> Tensor | None:
    if "truth" not in arrays:
        return None
    image = _matrix(arrays, ("truth",))
    if image.shape[0] != image.shape[1] or not np.isin(image, (0, 1, 2)).all():
        raise DataError(
            f"the truth is {image.shape} with labels {np.unique(image)[:5]}; expected a square of 0, 1 and 2."
        )
    return torch.from_numpy(image[::-1].T.astype(np.uint8))  # rows run down, columns to the right


def _mesh(arrays: dict[str, NDArray[Any]], count: int) -> tuple[Mesh | None, tuple[Tensor, ...] | None]:
    if "nodes" not in arrays:
        return None, None
    sides = np.asarray(arrays.get("electrode_edges", np.zeros(0)))
    triangles = _matrix(arrays, ("triangles",)).astype(np.int64)
    if sides.ndim != 3 or sides.shape[0] != count or sides.shape[2] != 2 or sides.dtype.kind not in "iu":
        raise DataError(f"electrode_edges are {sides.dtype} {sides.shape}; expected whole numbers ({count}, sides, 2).")
    mesh = Mesh(torch.from_numpy(_matrix(arrays, ("nodes",))), torch.from_numpy(triangles))
    if sides.min() < 0 or sides.max() >= len(mesh.points):
        raise DataError(f"electrode_edges name points {sides.min()} to {sides.max()} of {len(mesh.points)}.")
    return mesh, tuple(torch.from_numpy(one.astype(np.int64)) for one in sides)
