"""Arrays that come without coordinates, and perhaps without names: what they are taken to be.

- ``x`` and ``y``, neuraloperator's keys. A boolean ``x`` on a plane is Darcy's two-phase medium and becomes
  ``permeability`` -> ``pressure``; with a viscosity ``visc`` beside it, it is Burgers' equation, ``initial`` ->
  ``velocity``, periodic; anything else becomes ``input`` -> ``target``.
- ``permeability`` and ``pressure``: as they are called.
- Other names have to be given.

The grid is assumed, not known: the unit cube, ``nodes`` unless said otherwise. Booleans become 0 and 1. Where the
target has a time axis (samples, time, *space) and the input has none, the input is repeated in time, as
neuraloperator's own loader does, and the grid gains an axis ``t`` of nodes on [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.data.schema import DataError
from opflow.data.source import ArraySource
from opflow.grid import Grid

# Beyond this an archive is no longer read into memory whole; convert it with write_dataset.
MAX_ARRAY_BYTES = 4 << 30


def as_source(
    arrays: Mapping[str, NDArray[Any]],
    path: Path,
    *,
    grid: Grid | None,
    layout: str | Sequence[str] | None,
    inputs: Sequence[str] | None,
    targets: Sequence[str] | None,
) -> ArraySource:
    """Name the arrays and put them on a grid.

    Raises:
        DataError: names that are not there, or shapes that do not fit together.
        ValueError: both `grid` and `layout` were given.
    """
    if grid is not None and layout is not None:
        raise ValueError("grid and layout were both given; a grid has its own layout: give one of them.")
    renamed: dict[str, str] = {}
    if inputs is None and targets is None:
        inputs, targets, renamed = _usual_names(arrays, path)
    inputs, targets = tuple(inputs or ()), tuple(targets or ())
    missing = [name for name in inputs + targets if name not in arrays]
    if missing:
        raise DataError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(arrays)}: name others with inputs= and targets=."
        )
    if not inputs + targets:
        raise DataError(f"{path}: neither inputs nor targets were named; name at least one array.")
    chosen = {name: _plain(arrays[name], name, path) for name in inputs + targets}
    dims = {name: chosen[name].ndim for name in chosen}
    most = max(dims.values())
    time = (
        bool(targets) and most == max(dims[name] for name in targets) and any(dims[name] == most - 1 for name in inputs)
    )
    if time:
        steps = next(chosen[name].shape[1] for name in targets if dims[name] == most)
        chosen = {name: _repeated(v, steps) if dims[name] == most - 1 else v for name, v in chosen.items()}
    if grid is None:
        shape = chosen[(inputs + targets)[0]].shape[1:]
        if not shape:
            raise DataError(f"{path}: the arrays have one axis; (samples, *grid) is expected.")
        if layout is None:
            layout = "periodic" if "visc" in arrays and renamed else "nodes"
        if time and len(shape) <= 4:
            space = (layout,) * (len(shape) - 1) if isinstance(layout, str) else tuple(layout)
            grid = Grid(shape, layout=("nodes", *space), axes=("t", *"xyz"[: len(shape) - 1]))
        elif len(shape) <= 3:
            grid = Grid(shape, layout=layout)
        else:
            raise DataError(
                f"{path}: arrays of shape (samples, {shape}) have too many axes; give their grid with grid=."
            )
    return ArraySource(
        {renamed.get(name, name): values for name, values in chosen.items()},
        grid,
        inputs=tuple(renamed.get(name, name) for name in inputs),
        targets=tuple(renamed.get(name, name) for name in targets),
        where=path,
    )


def _usual_names(
    arrays: Mapping[str, NDArray[Any]], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
    if {"x", "y"} <= set(arrays):
        if "visc" in arrays:
            names = {"x": "initial", "y": "velocity"}
        elif arrays["x"].dtype == bool and arrays["x"].ndim == 3:
            names = {"x": "permeability", "y": "pressure"}
        else:
            names = {"x": "input", "y": "target"}
        return ("x",), ("y",), names
    if {"permeability", "pressure"} <= set(arrays):
        return ("permeability",), ("pressure",), {}
    raise DataError(
        f"{path} has the arrays {', '.join(arrays) or '(none)'}, not x and y; say which are what with inputs= and targets=."
    )


def _plain(values: NDArray[Any], name: str, path: Path) -> NDArray[Any]:
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: array {name!r} has dtype {values.dtype}; real numbers or booleans are expected.")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.astype(np.float32) if values.dtype == bool or values.dtype == np.float16 else values


def _repeated(values: NDArray[Any], steps: int) -> NDArray[Any]:
    return np.repeat(values[:, None], steps, axis=1)
