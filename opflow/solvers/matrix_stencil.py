"""The matrix of another program read as face weights on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.solvers.face_weights import Sides

Array = NDArray[Any]

FIRST, LAST = slice(0, 1), slice(-1, None)
TOLERANCE = 1e-10  # of the largest entry: what assembly may leave by rounding


@dataclass(frozen=True)
class MatrixStencil:
    """The arguments of a `FaceStencil`, read from a matrix."""

    weights: list[Tensor]
    mask: Tensor | None
    reaction: Tensor | None
    sides: Sides
    free_dofs: Tensor | None


def read_matrix(matrix: Any, grid: Grid, free_dofs: Any = None) -> MatrixStencil:
    """The face weights of a sparse matrix whose rows are points of a grid.

    Raises:
        TypeError: no SciPy sparse matrix. ValueError: sizes, symmetry, signs or couplings are not those of a 3-, 5- or 7-point stencil.
    """
    if not hasattr(matrix, "tocoo"):
        raise TypeError(f"the matrix is a {type(matrix).__name__}; expected a SciPy sparse matrix.")
    coo = matrix.tocsr().tocoo()
    if coo.shape[0] != coo.shape[1] or coo.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"the matrix is {coo.dtype} of shape {coo.shape}; expected a square one in float32 or float64."
        )
    if not np.isfinite(coo.data).all():
        raise ValueError("the matrix holds NaN or infinity; check its assembly.")
    shape, place = _places(coo.shape[0], grid, free_dofs)
    kept = coo.data != 0
    i, j, value = place[coo.row[kept]], place[coo.col[kept]], coo.data[kept]
    own = i == j
    rest = np.zeros(int(np.prod(shape)), coo.dtype)
    rest[i[own]] = value[own]
    tolerance = TOLERANCE * float(np.abs(value).max(initial=0.0))
    ring = [kind == "periodic" and n > 2 for kind, n in zip(grid.layout, shape, strict=True)]
    weights = _inner_faces(i[~own], j[~own], value[~own], shape, ring, tolerance)
    for d, faces in enumerate(weights):
        rest -= (_end(faces, d, slice(None, -1)) + _end(faces, d, slice(1, None))).ravel()
    inside = np.zeros(rest.size, dtype=bool)
    inside[place] = True
    rounding = tolerance * (2 * len(shape) + 1)
    if (rest[inside] < -rounding).any():
        raise ValueError(
            f"{int((rest[inside] < -rounding).sum())} rows sum to less than zero, so the matrix is no sum of non-negative faces and may be "
            "indefinite; use AlgebraicMultigrid or a solver for indefinite systems."
        )
    rest[np.abs(rest) <= rounding] = 0
    inside = inside.reshape(shape)
    reaction, sides = _place_the_rest(weights, rest.reshape(shape), inside, grid)
    return MatrixStencil(
        [torch.from_numpy(w)[None] for w in weights],
        None if inside.all() else torch.from_numpy(inside)[None],
        None if reaction is None else torch.from_numpy(reaction)[None],
        sides,
        None if free_dofs is None else torch.from_numpy(place),
    )


def _end(faces: Array, d: int, which: slice) -> Array:
    """A part of an array along axis d, as a view."""
    return faces[(*(slice(None),) * d, which)]


def _inner_faces(
    i: Array, j: Array, value: Array, shape: tuple[int, ...], ring: list[bool], tolerance: float
) -> list[Array]:
    """The weights -A_ij on the faces between i and j, one array an axis with one more entry along it; the outer faces are zero."""
    at_i, at_j = np.stack(np.unravel_index(i, shape)), np.stack(np.unravel_index(j, shape))
    step = at_j - at_i
    for d, n in enumerate(shape):
        if ring[d]:
            step[d] = np.where(np.abs(step[d]) == n - 1, -np.sign(step[d]), step[d])
    far = np.abs(step).sum(0) != 1
    if far.any():
        first = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"{int(far.sum())} of {len(value)} couplings join points that are no neighbours on the grid {shape}, the first "
            f"{tuple(at_i[:, first].tolist())} and {tuple(at_j[:, first].tolist())}; this is no {2 * len(shape) + 1}-point matrix in the "
            "order of the grid. Give free_dofs if the rows are numbered otherwise, or use AlgebraicMultigrid."
        )
    if (value > tolerance).any():
        raise ValueError(
            f"{int((value > tolerance).sum())} couplings are positive, but a face weight is the negative of one and must not be "
            "negative; use AlgebraicMultigrid."
        )
    weights = []
    for d in range(len(shape)):
        seen = []
        for direction in (1, -1):  # the same faces from either side
            faces = np.zeros([m + (axis == d) for axis, m in enumerate(shape)], value.dtype)
            chosen = step[d] == direction
            index = [*at_i[:, chosen]]
            index[d] = index[d] + (direction == 1)
            faces[tuple(index)] = -value[chosen]
            if ring[d]:  # the two ends are one face
                ends = (LAST, FIRST) if direction == 1 else (FIRST, LAST)
                _end(faces, d, ends[1])[...] = _end(faces, d, ends[0])
            seen.append(faces)
        if np.abs(seen[0] - seen[1]).max(initial=0.0) > tolerance:
            raise ValueError(
                "the matrix is not symmetric; a face has one weight for its two sides. Use GMRES or BiCGSTAB."
            )
        weights.append(np.maximum((seen[0] + seen[1]) / 2, 0))
    return weights


def _places(n: int, grid: Grid, free_dofs: Any) -> tuple[tuple[int, ...], Array]:
    """The shape of the stencil, and the flat place in it of every row."""
    size = int(np.prod(grid.shape))
    if free_dofs is not None:
        place = np.asarray(free_dofs)
        if place.dtype == bool:
            place = np.flatnonzero(place)
        if place.ndim != 1 or len(place) != n or not np.issubdtype(place.dtype, np.integer):
            raise ValueError(
                f"free_dofs has shape {place.shape} but the matrix {n} rows; give one flat grid index a row."
            )
        if len(np.unique(place)) < n or place.min(initial=0) < 0 or place.max(initial=0) >= size:
            raise ValueError(
                f"free_dofs must be distinct and between 0 and {size - 1}, the points of the grid {grid.shape}."
            )
        return grid.shape, place.astype(np.int64)
    interior = tuple(m - 2 * (kind == "nodes") for m, kind in zip(grid.shape, grid.layout, strict=True))
    for shape in (grid.shape, interior):
        if n == int(np.prod(shape)):
            return shape, np.arange(n)
    raise ValueError(
        f"the matrix has {n} rows but the grid {grid.shape} has {size} points; give free_dofs, the flat grid index of every row."
    )


def _place_the_rest(weights: list[Array], rest: Array, inside: Array, grid: Grid) -> tuple[Array | None, Sides]:
    """What the rows sum to: on the faces that lead outside if only points with such faces have it, else as a reaction. Adds to `weights`."""
    outer = []
    for d in range(rest.ndim):
        above = inside & np.roll(inside, -1, d)
        if grid.layout[d] != "periodic":
            _end(above, d, LAST)[...] = False
        below = np.roll(above, 1, d)
        outer.append((inside & ~below, inside & ~above))
    number = sum(low.astype(int) + up.astype(int) for low, up in outer)
    held = [[_holds(rest, number, d, at) for at in (0, -1)] for d in range(rest.ndim)]
    reaction = None
    if (rest[number == 0] != 0).any():
        reaction = np.maximum(rest, 0)
    else:
        # Where a point has several such faces, those on a side of the box that holds no other point get nothing.
        taking = [_taking(low, up, held[d], d) for d, (low, up) in enumerate(outer)]
        takers = sum(low.astype(int) + up.astype(int) for low, up in taking)
        share = rest / np.maximum(np.where(takers > 0, takers, number), 1)
        for d, (faces, some) in enumerate(zip(outer, taking, strict=True)):
            for end, side, some_of_it in ((slice(None, -1), faces[0], some[0]), (slice(1, None), faces[1], some[1])):
                view = _end(weights[d], d, end)
                view += np.where(np.where(takers > 0, some_of_it, side), share, 0)
    sides: list[tuple[str, str]] = []
    for d, kind in enumerate(grid.layout):
        if kind == "periodic":
            sides.append(("periodic", "periodic"))
            continue
        sides.append(tuple("dirichlet" if kind == "nodes" or one else "neumann" for one in held[d]))  # type: ignore[arg-type]
    return reaction, tuple(sides)


def _holds(rest: Array, number: Array, d: int, at: int) -> bool:
    """Whether a side of the box holds its points: those with no other face that leads outside say it, if there are any."""
    side, faces = rest.take(at, axis=d), number.take(at, axis=d)
    only = faces == faces.min()
    return bool((side[only] != 0).any())


def _taking(low: Array, up: Array, held: list[bool], d: int) -> tuple[Array, Array]:
    """The outer faces without those on a side of the box that does not hold."""
    low, up = low.copy(), up.copy()
    if not held[0]:
        _end(low, d, FIRST)[...] = False
    if not held[1]:
        _end(up, d, LAST)[...] = False
    return low, up
