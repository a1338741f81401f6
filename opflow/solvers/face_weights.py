"""Finite volumes: a coefficient on a grid as weights on the faces and vertices between unknowns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.grid import Grid, harmonic_mean

Sides = tuple[tuple[str, str], ...]
Boundary = str | Sequence[str | tuple[str, str]]
BOUNDARIES = ("dirichlet", "neumann", "periodic")
OBSTACLES = ("neumann", "dirichlet")


def as_sides(boundary: Boundary, dim: int) -> Sides:
    """One (lower, upper) pair per axis, from one word, or per axis a word or a pair.

    >>> as_sides(["periodic", ("neumann", "dirichlet")], 2)
    (('periodic', 'periodic'), ('neumann', 'dirichlet'))
    """
    entries = (boundary,) * dim if isinstance(boundary, str) else tuple(boundary)
    pairs = tuple((entry, entry) if isinstance(entry, str) else tuple(entry) for entry in entries)
    if len(pairs) != dim or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"boundary is {boundary!r} on {dim} axes; give one word for all, or per axis a word or a (lower, upper) pair."
        )
    for pair in pairs:
        for side in pair:
            if side not in BOUNDARIES:
                raise ValueError(f"boundary is {side!r}; choose one of {', '.join(BOUNDARIES)}.")
        if pair.count("periodic") == 1:
            raise ValueError(f"an axis has the sides {pair}; if one end is periodic the other is too.")
    return pairs  # type: ignore[return-value]


def face_weights(
    a: Tensor | Sequence[Tensor],
    grid: Grid,
    sides: Sides,
    *,
    mask: Tensor | None = None,
    obstacles: str = "neumann",
    reaction: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """The weights a_face / h^2 of `FaceStencil`, and the mask and the reaction at its unknowns.

    Raises:
        ValueError: shapes, layout or boundary do not go together, or the coefficient is not positive.
    """
    coefficients = (a,) * grid.dim if isinstance(a, Tensor) else tuple(a)
    if len(coefficients) != grid.dim:
        raise ValueError(f"{len(coefficients)} coefficients came for {grid.dim} axes; give one, or one per axis.")
    for one in coefficients:
        grid.check(one, "the coefficient")
        if one.ndim != grid.dim + 1:
            raise ValueError(
                f"the coefficient has shape {tuple(one.shape)}; expected (batch, *grid) with grid {grid.shape}."
            )
    for pair, kind, axis in zip(sides, grid.layout, grid.axes, strict=True):
        if ("periodic" in pair) != (kind == "periodic") or (kind == "nodes" and "neumann" in pair):
            raise ValueError(
                f"axis {axis} has layout {kind!r} with a {' and '.join(dict.fromkeys(pair))} boundary, which is not discretised here; "
                "use nodes with dirichlet, cells with dirichlet or neumann, or periodic with periodic."
            )
    if any(kind == "nodes" and n < 3 for kind, n in zip(grid.layout, grid.shape, strict=True)):
        raise ValueError(f"the grid {grid.shape} has no interior node; use at least 3 nodes per axis.")
    if obstacles not in OBSTACLES:
        raise ValueError(f"obstacles is {obstacles!r}; choose one of {', '.join(OBSTACLES)}.")
    for one in coefficients if not isinstance(a, Tensor) else coefficients[:1]:
        if not bool(((one > 0) & (one < torch.inf)).all()):
            raise ValueError(
                "the coefficient must be positive and finite everywhere and not NaN; -div(a grad u) is not elliptic otherwise."
            )
    if reaction is not None:
        grid.check(reaction, "the reaction")
        if not bool(((reaction >= 0) & (reaction < torch.inf)).all()):
            raise ValueError("the reaction must be finite and not negative anywhere; A could be indefinite otherwise.")
        reaction = _unknowns(reaction, grid)
    if mask is not None:
        grid.check(mask, "the mask")
        if mask.dtype != torch.bool or mask.ndim != grid.dim + 1:
            raise ValueError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape (batch or 1, *{grid.shape})."
            )
    weights = []
    for d, (one, h) in enumerate(zip(coefficients, grid.spacing, strict=True)):
        faces = _faces(one, grid, d, sides[d])
        if mask is not None and obstacles == "neumann":
            faces = faces * _faces_between(mask, grid, d)
        weights.append(faces / h**2)
    return weights, None if mask is None else _unknowns(mask, grid), reaction


def corner_weights(k: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """+-K_xy / (2 h_x h_y) at the vertices between nodes, K_xy the mean of the four around: k (batch, 3, *grid)

    Raises:
        ValueError: the shape is another, the grid is no plane of nodes, or K is not positive definite.
    """
    if grid.dim != 2 or set(grid.layout) != {"nodes"} or min(grid.shape) < 3:
        raise ValueError(
            f"a diffusion tensor is discretised on the nodes of a plane, three or more an axis, but the grid is {grid}."
        )
    if k.ndim != 4 or k.shape[1] != 3 or tuple(k.shape[2:]) != grid.shape:
        raise ValueError(
            f"the diffusion tensor has shape {tuple(k.shape)}; expected (batch, 3, *{grid.shape}) for K_xx, K_yy, K_xy."
        )
    if not bool(((k[:, 0] > 0) & (k[:, 0] * k[:, 1] > k[:, 2].square()) & k.isfinite().all(1)).all()):
        raise ValueError(
            "the diffusion tensor is not positive definite everywhere; K_xx > 0 and K_xx K_yy > K_xy^2 are needed."
        )
    mixed = F.avg_pool2d(k[:, 2:], 2, stride=1)[:, 0]
    h = grid.spacing
    rising = mixed / (2 * h[0] * h[1])
    return rising, -rising


def _unknowns(field: Tensor, grid: Grid) -> Tensor:
    """The field at the unknowns: interior nodes, all cells."""
    for d, kind in enumerate(grid.layout):
        if kind == "nodes":
            field = field.narrow(d + 1, 1, grid.shape[d] - 2)
    return field


def _across_axis(field: Tensor, grid: Grid, d: int) -> Tensor:
    """The field at the unknowns of all axes but d."""
    for other, kind in enumerate(grid.layout):
        if kind == "nodes" and other != d:
            field = field.narrow(other + 1, 1, grid.shape[other] - 2)
    return field


def _faces(a: Tensor, grid: Grid, d: int, pair: tuple[str, str]) -> Tensor:
    """The coefficient on the faces along axis d, outer faces included: harmonic means, twice the cell's own half a spacing from a wall."""
    line, axis, n = _across_axis(a, grid, d), d + 1, grid.shape[d]
    inner = harmonic_mean(line.narrow(axis, 0, n - 1), line.narrow(axis, 1, n - 1))
    if grid.layout[d] == "nodes":
        return inner
    first, last = line.narrow(axis, 0, 1), line.narrow(axis, n - 1, 1)
    if grid.layout[d] == "periodic":
        ends = (harmonic_mean(first, last),) * 2
    else:
        ends = tuple(  # type: ignore[assignment]
            end * (2.0 if side == "dirichlet" else 0.0) for end, side in zip((first, last), pair, strict=True)
        )
    return torch.cat([ends[0], inner, ends[1]], dim=axis)


def _faces_between(mask: Tensor, grid: Grid, d: int) -> Tensor:
    """False on the faces of which one side lies in an obstacle and the other does not, and within obstacles."""
    line, axis, n = _across_axis(mask, grid, d), d + 1, grid.shape[d]
    inner = line.narrow(axis, 0, n - 1) & line.narrow(axis, 1, n - 1)
    if grid.layout[d] == "nodes":
        return inner
    first, last = line.narrow(axis, 0, 1), line.narrow(axis, n - 1, 1)
    ends = (first & last,) * 2 if grid.layout[d] == "periodic" else (first, last)
    return torch.cat([ends[0], inner, ends[1]], dim=axis)
