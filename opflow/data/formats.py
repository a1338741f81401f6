"""Which reader opens which kind of path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opflow.data.folder import FolderSource
from opflow.data.hdf5_source import HDF5Source
from opflow.data.readers.neuralop import read_pt
from opflow.data.readers.npz import read_npz
from opflow.data.schema import DataError
from opflow.data.source import Source
from opflow.grid import Grid

_HDF5 = (".h5", ".hdf5")
_ARRAYS = {".npz": read_npz, ".pt": read_pt}


def open_dataset(
    path: str | Path,
    *,
    grid: Grid | None = None,
    layout: str | Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> Source:
    """Open a data folder of `generate`, an HDF5 file of `write_dataset`, a ``.npz`` or neuraloperator's ``.pt``.

    Args:
        path: the folder or file.
        grid: for ``.npz`` and ``.pt``, which do not say where their values live. Default: the unit cube with `layout`.
        layout: for ``.npz`` and ``.pt`` without `grid`: ``nodes`` (default), ``cells`` or ``periodic``.
        inputs: for ``.npz`` and ``.pt``: which arrays are inputs; default ``x``, or ``permeability``.
        targets: for ``.npz`` and ``.pt``: which arrays are targets; default ``y``, or ``pressure``.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        DataError: what is there is damaged, not complete, refused for safety, or of an unknown format.
        ValueError: a grid, layout or names were given for a format that states its own.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path, or make the data with opflow.data.generate.")
    suffix = path.suffix.lower()
    if path.is_file() and suffix in _ARRAYS:
        return _ARRAYS[suffix](path, grid=grid, layout=layout, inputs=inputs, targets=targets)
    if any(option is not None for option in (grid, layout, inputs, targets)):
        raise ValueError(
            f"{path} states its own grid and names; grid, layout, inputs and targets are for .npz and .pt files "
            "(FieldDataset takes inputs and targets for every format)."
        )
    if path.is_dir():
        return FolderSource(path)
    if suffix in _HDF5:
        return HDF5Source(path)
    raise DataError(f"{path} is of an unknown format; a data folder, {', '.join((*_HDF5, *_ARRAYS))} can be opened.")
