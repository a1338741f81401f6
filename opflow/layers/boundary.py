"""Boundary conditions of layers on a grid: the values just outside of it, and the condition that an output keeps exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from opflow.typing import Field

BOUNDARIES = ("dirichlet", "neumann", "periodic")


def as_boundary(boundary: str | Sequence[str], dim: int) -> tuple[str, ...]:
    """One boundary condition per axis."""
    names = (boundary,) * dim if isinstance(boundary, str) else tuple(boundary)
    if len(names) != dim or any(name not in BOUNDARIES for name in names):
        raise ValueError(
            f"boundary is {boundary!r}; give one of {', '.join(BOUNDARIES)} for all {dim} axes, or one per axis."
        )
    return names


def extend(v: Field, boundary: Sequence[str]) -> Field:
    """One more point at both ends of every axis, (batch, channel, *grid) -> (batch, channel, *(grid + 2)).

    By axis: zero ("dirichlet"), the mirror image about the end node ("neumann"), the other end ("periodic").
    """
    zeros = [name == "dirichlet" for name in boundary]
    for axis, name in enumerate(boundary, start=2):
        n = v.shape[axis]
        if name == "neumann":
            v = torch.cat([v.narrow(axis, 1, 1), v, v.narrow(axis, n - 2, 1)], dim=axis)
        elif name == "periodic":
            v = torch.cat([v.narrow(axis, n - 1, 1), v, v.narrow(axis, 0, 1)], dim=axis)
    return F.pad(v, [int(zero) for zero in reversed(zeros) for _ in range(2)]) if any(zeros) else v


def impose(v: Field, boundary: Sequence[str]) -> Field:
    """The field on nodes with new values at its boundary nodes, so that the condition holds there exactly.

    - "dirichlet": u_0 = 0
    - "neumann":   u_0 = (4 u_1 - u_2) / 3, so that (-3 u_0 + 4 u_1 - u_2) / (2 h) = 0: the normal derivative of second order
    - "periodic":  nothing is to do

    Both are linear projections along one axis, so that the conditions of several axes hold at once, at corners too.
    """
    for axis, name in enumerate(boundary, start=2):
        n = v.shape[axis]
        if name == "periodic":
            continue
        inner = v.narrow(axis, 1, n - 2)
        if name == "dirichlet":
            low = high = torch.zeros_like(v.narrow(axis, 0, 1))
        else:
            low = (4 * v.narrow(axis, 1, 1) - v.narrow(axis, 2, 1)) / 3
            high = (4 * v.narrow(axis, n - 2, 1) - v.narrow(axis, n - 3, 1)) / 3
        v = torch.cat([low, inner, high], dim=axis)
    return v
