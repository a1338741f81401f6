"""The matrix of another program read as face weights on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.solvers.face_weights import Sides

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
    n = coo.shape[0]
    if coo.shape != (n, n) or coo.dtype not in (np.float32, np.float64):
        raise ValueError(f"the matrix is {coo.dtype} of shape {coo.shape}; expected a square one in float32 or float64.")
    shape, place = _places(n, grid, free_dofs)
    size = int(np.prod(shape))
    i, j, value = place[coo.row], place[coo.col], coo.data
    kept = value != 0
    i, j, value = i[kept], j[kept], value[kept]
    if not np.isfinite(value).all():
        raise ValueError("the matrix holds NaN or infinity; check its assembly.")
    largest = float(np.abs(value).max(initial=0.0))
    diagonal = np.zeros(size, coo.dtype)
    own = i == j
    diagonal[i[own]] = value[own]
    i, j, value = i[~own], j[~own], value[~own]
    at_i, at_j = np.stack(np.unravel_index(i, shape)), np.stack(np.unravel_index(j, shape))
    step = at_j - at_i
    ring = [kind == "periodic" and n_d > 2 for kind, n_d in zip(grid.layout, shape, strict=True)]
    for d, n_d in enumerate(shape):
        if ring[d]:
            step[d] = np.where(np.abs(step[d]) == n_d - 1, -np.sign(step[d]), step[d])
    far = np.abs(step).sum(0) != 1
    if far.any():
        worst = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"{int(far.sum())} of {len(value)} couplings join points that are no neighbours on the grid {shape}, the first {tuple(at_i[:, worst].tolist())} "
            f"and {tuple(at_j[:, worst].tolist())}; this is no {2 * len(shape) + 1}-point matrix in the order of the grid. Give free_dofs if the rows "
            "are numbered otherwise, or use AlgebraicMultigrid."
        )
    if (value > TOLERANCE * largest).any():
        raise ValueError(
            f"{int((value > TOLERANCE * largest).sum())} couplings are positive, but a face weight is the negative of one and must not be "
            "negative; use AlgebraicMultigrid."
        )
    weights, rest = [], diagonal.copy()
    for d, n_d in enumerate(shape):
        faces = np.zeros([m + (axis == d) for axis, m in enumerate(shape)], coo.dtype)
        back = np.zeros_like(faces)
        for target, direction in ((faces, 1), (back, -1)):
            chosen = step[d] == direction
            index = [*at_i[:, chosen]]
            index[d] = index[d] + (direction == 1)
            target[tuple(index)] = -value[chosen]
        if ring[d]:  # the two ends are one face, seen from either side
            first, last = (slice(None),) * d + (0,), (slice(None),) * d + (-1,)
            faces[first], back[last] = faces[last], back[first]
        if np.abs(faces - back).max(initial=0.0) > TOLERANCE * largest:
            raise ValueError("the matrix is not symmetric; a face has one weight for its two sides. Use GMRES or BiCGSTAB.")
        faces = np.maximum((faces + back) / 2, 0)
        ends = (slice(None),) * d
        rest -= (faces[(*ends, slice(None, -1))] + faces[(*ends, slice(1, None))]).ravel()
        weights.append(faces)
    inside = np.zeros(size, dtype=bool)
    inside[place] = True
    scale = TOLERANCE * largest * (2 * len(shape) + 1)
    if (rest[inside] < -scale).any():
        raise ValueError(
            f"{int((rest[inside] < -scale).sum())} rows sum to less than zero, so the matrix is no sum of non-negative faces and may be "
            "indefinite; use AlgebraicMultigrid or a solver for indefinite systems."
        )
    rest[np.abs(rest) <= scale] = 0
    mask = None if inside.all() else inside.reshape(shape)
    weights, reaction, sides = _place_the_rest(weights, rest.reshape(shape), inside.reshape(shape), ring, grid)
    return MatrixStencil(
        [torch.from_numpy(w)[None] for w in weights],
        None if mask is None else torch.from_numpy(mask)[None],
        None if reaction is None else torch.from_numpy(reaction)[None],
        sides,
        None if free_dofs is None else torch.from_numpy(place),
    )


def _places(n: int, grid: Grid, free_dofs: Any) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape of the stencil, and the flat place in it of every row."""
    size = int(np.prod(grid.shape))
    if free_dofs is not None:
        place = np.asarray(free_dofs)
        if place.dtype == bool:
            place = np.flatnonzero(place)
        if place.ndim != 1 or len(place) != n or not np.issubdtype(place.dtype, np.integer):
            raise ValueError(f"free_dofs has shape {place.shape} but the matrix {n} rows; give one flat grid index a row.")
        if len(np.unique(place)) < n or place.min(initial=0) < 0 or place.max(initial=0) >= size:
            raise ValueError(f"free_dofs must be distinct and between 0 and {size - 1}, the points of the grid {grid.shape}.")
        return grid.shape, place.astype(np.int64)
    interior = tuple(m - 2 * (kind == "nodes") for m, kind in zip(grid.shape, grid.layout, strict=True))
    for shape in (grid.shape, interior):
        if n == int(np.prod(shape)):
            return shape, np.arange(n)
    raise ValueError(
        f"the matrix has {n} rows but the grid {grid.shape} has {size} points; give free_dofs, the flat grid index of every row."
    )


def _place_the_rest(
    weights: list[np.ndarray], rest: np.ndarray, inside: np.ndarray, ring: list[bool], grid: Grid
) -> tuple[list[np.ndarray], np.ndarray | None, Sides]:
    """What the rows sum to: on the faces that lead outside if only points with such faces have it, else as a reaction."""
    outer = []
    for d in range(rest.ndim):
        above = inside & np.roll(inside, -1, d)
        if not ring[d]:
            above[(slice(None),) * d + (-1,)] = False
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
            before = (slice(None),) * d
            for end, side, some_of_it in ((slice(None, -1), faces[0], some[0]), (slice(1, None), faces[1], some[1])):
                weights[d][(*before, end)] += np.where(np.where(takers > 0, some_of_it, side), share, 0)
    sides: list[tuple[str, str]] = []
    for d, kind in enumerate(grid.layout):
        if kind == "periodic":
            sides.append(("periodic", "periodic"))
            continue
        sides.append(tuple("dirichlet" if kind == "nodes" or one else "neumann" for one in held[d]))  # type: ignore[arg-type]
    return weights, reaction, tuple(sides)


def _holds(rest: np.ndarray, number: np.ndarray, d: int, at: int) -> bool:
    """Whether a side of the box holds its points: those with no other face that leads outside say it, if there are any."""
    side, faces = rest.take(at, axis=d), number.take(at, axis=d)
    only = faces == faces.min()
    return bool((side[only] != 0).any())


def _taking(low: np.ndarray, up: np.ndarray, held: list[bool], d: int) -> tuple[np.ndarray, np.ndarray]:
    """The outer faces without those on a side of the box that does not hold."""
    low, up = low.copy(), up.copy()
    before = (slice(None),) * d
    if not held[0]:
        low[(*before, 0)] = False
    if not held[1]:
        up[(*before, -1)] = False
    return low, up
