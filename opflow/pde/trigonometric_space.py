"""Sine and cosine coefficients of fields with zero values or no flux at the boundary."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from opflow.grid import Grid


class TrigonometricSpace:
    """Fields u (..., *grid) on a box and their real coefficients in an orthonormal basis, a product over the axes of

    - ``nodes``: sin(pi j (x - a) / (b - a)), j = 1..n-2: u = 0 at both ends,
    - ``cells``: cos(pi j (x - a) / (b - a)), j = 0..n-1: u' = 0 at both ends.

    It takes the place of a `FourierSpace` where the box is not periodic. The transforms are matrix products, O(n) per
    point and axis, which at n <= 128 cost about as much as fast ones.

    Raises:
        ValueError: an axis of the grid is periodic, or has fewer than three nodes.

    >>> space = TrigonometricSpace(Grid(9))
    >>> u = torch.sin(torch.pi * space.grid.coordinates(0))
    >>> torch.allclose(space.field(space.laplacian * space.coefficients(u)), -torch.pi**2 * u)
    True
    """

    real = True

    def __init__(self, grid: Grid, *, device: torch.device | str | None = None) -> None:
        for n, kind, axis in zip(grid.shape, grid.layout, grid.axes, strict=True):
            if kind == "periodic" or (kind == "nodes" and n < 3):
                raise ValueError(
                    f"axis {axis} has {n} points and is made of {kind}, but sines need at least three nodes, and cosines cells; "
                    "use a FourierSpace where every axis is periodic."
                )
        self.grid, self.device = grid, torch.device("cpu" if device is None else device)

    @property
    def modes(self) -> tuple[int, ...]:
        """The number of coefficients along each axis."""
        return tuple(n - 2 if kind == "nodes" else n for n, kind in zip(self.grid.shape, self.grid.layout, strict=True))

    def coefficients(self, field: Tensor) -> Tensor:
        """(..., *grid) -> (..., *modes); values at end nodes count as zero"""
        for axis, (kind, vectors) in enumerate(zip(self.grid.layout, self._vectors, strict=True)):
            dim = field.ndim - self.grid.dim + axis
            inside = field.narrow(dim, 1, field.shape[dim] - 2) if kind == "nodes" else field
            field = _along(inside, vectors, dim)
        return field

    def field(self, coefficients: Tensor) -> Tensor:
        """(..., *modes) -> (..., *grid)"""
        field, padding = coefficients, list[int]()
        for axis, (kind, vectors) in enumerate(zip(self.grid.layout, self._vectors, strict=True)):
            field = _along(field, vectors.mT, field.ndim - self.grid.dim + axis)
            padding = [1, 1, *padding] if kind == "nodes" else [0, 0, *padding]
        return torch.nn.functional.pad(field, padding) if any(padding) else field

    @cached_property
    def laplacian(self) -> Tensor:
        """-|k|^2, (*modes): the Laplacian of the functions themselves."""
        return -self._sum([angle.square() for angle in self._angles])

    @cached_property
    def second_difference(self) -> Tensor:
        """-sum (2 - 2 cos(k h)) / h^2, (*modes): the three-point differences, second order whatever the boundary does to the series."""
        return -self._sum([2 - 2 * torch.cos(angle) for angle in self._angles])

    @cached_property
    def multiplicity(self) -> Tensor:
        """How often each coefficient counts in Parseval's sum: once."""
        return torch.ones(self.modes, dtype=torch.float64, device=self.device)

    def _sum(self, lines: list[Tensor]) -> Tensor:
        """The sum over the axes of lines / h^2, (*modes)"""
        total = torch.zeros(self.modes, dtype=torch.float64, device=self.device)
        for axis, (line, h) in enumerate(zip(lines, self.grid.spacing, strict=True)):
            total = total + (line / h**2).view([-1 if a == axis else 1 for a in range(self.grid.dim)])
        return total

    @cached_property
    def _angles(self) -> list[Tensor]:
        """k h of the modes, axis by axis."""
        angles = []
        for n, kind in zip(self.grid.shape, self.grid.layout, strict=True):
            j = torch.arange(n, dtype=torch.float64, device=self.device)
            angles.append(math.pi * j[1:-1] / (n - 1) if kind == "nodes" else math.pi * j / n)
        return angles

    @cached_property
    def _vectors(self) -> list[Tensor]:
        """The orthonormal basis (modes, points) of each axis."""
        bases = []
        for angle, n, kind in zip(self._angles, self.grid.shape, self.grid.layout, strict=True):
            i = torch.arange(n, dtype=torch.float64, device=self.device)
            waves = torch.sin(angle[:, None] * i[1:-1]) if kind == "nodes" else torch.cos(angle[:, None] * (i + 0.5))
            bases.append(waves / waves.norm(dim=1, keepdim=True))
        return bases


def _along(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """The matrix times one axis; the last two take their product in place, an earlier one is brought there."""
    if dim == x.ndim - 1:
        return x @ matrix.mT
    if dim == x.ndim - 2:
        return matrix @ x
    return (x.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
