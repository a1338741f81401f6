"""Coordinates as channels, and the padding of a domain that is not periodic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.grid import LAYOUTS
from opflow.typing import Field


def as_layout(layout: str | Sequence[str], dim: int) -> tuple[str, ...]:
    """One layout name per axis."""
    names = (layout,) * dim if isinstance(layout, str) else tuple(layout)
    if len(names) != dim or any(name not in LAYOUTS for name in names):
        raise ValueError(f"layout is {layout!r}; give one of {', '.join(LAYOUTS)} for all {dim} axes, or one per axis.")
    return names


def unit_coordinates(n: int, layout: str, like: Tensor) -> Tensor:
    """The coordinates (n,) of a grid line of the unit interval; the same point has the same coordinate at every n."""
    i = torch.arange(n, dtype=like.dtype, device=like.device)
    if layout == "nodes":
        return i / max(n - 1, 1)
    return (i + 0.5) / n if layout == "cells" else i / n


class GridEmbedding(nn.Module):
    """Append the unit coordinates of each axis to a field as channels.

    >>> GridEmbedding(2, "nodes")(torch.zeros(2, 1, 5, 3)).shape
    torch.Size([2, 3, 5, 3])
    """

    def __init__(self, dim: int, layout: str | Sequence[str] = "periodic") -> None:
        super().__init__()
        self.layout = as_layout(layout, dim)

    def forward(self, x: Field) -> Field:
        """(batch, channel, *grid) -> (batch, channel + dim, *grid)"""
        dim = len(self.layout)
        grid = x.shape[2:]
        if x.ndim != dim + 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)} with {x.ndim} axes, but GridEmbedding expects {dim + 2}: (batch, channel, *grid)."
            )
        if not x.is_floating_point():
            raise TypeError(
                f"x is {x.dtype}; coordinates can only stand beside real floating-point channels, so convert it."
            )
        channels = [x]
        for axis, layout in enumerate(self.layout):
            line = unit_coordinates(grid[axis], layout, x).view([-1 if a == axis else 1 for a in range(dim)])
            channels.append(line.expand(x.shape[0], 1, *grid))
        return torch.cat(channels, dim=1)

    def extra_repr(self) -> str:
        """Layouts for `print(model)`."""
        return f"layout={self.layout}"


class DomainPadding(nn.Module):
    """Lengthen a domain by a fraction of its length with zeros, so that a periodic layer does not join its two ends.

    The padded domain has the same physical length at every resolution: with n nodes the period is
    (n - 1)(1 + fraction) spacings, so choose a fraction that makes this whole on the grids of interest
    (1/9 for 64 and 127 nodes: 70 and 140).

    At both ends of a padded axis of nodes the field jumps to zero, and there the padded field takes the mean of the two
    sides, half its value. Its Fourier coefficients are then those of the trapezoidal rule, of second order in the spacing
    and not of first. (A nonlinear model keeps a rest of first order, a few times smaller than with the full value.)

    Args:
        fraction: of the domain's length, per axis or one for all; 0 leaves an axis as it is.
        layout: per axis or one for all.

    >>> DomainPadding(1 / 9, "nodes", dim=2).pad(torch.zeros(1, 1, 64, 127)).shape
    torch.Size([1, 1, 70, 140])
    """

    def __init__(self, fraction: float | Sequence[float], layout: str | Sequence[str] = "nodes", *, dim: int) -> None:
        super().__init__()
        fractions = (float(fraction),) * dim if isinstance(fraction, int | float) else tuple(map(float, fraction))
        if len(fractions) != dim or any(not 0 <= f <= 4 for f in fractions):
            raise ValueError(
                f"padding is {fraction}; give a fraction of the domain between 0 and 4, one for all {dim} axes or one per axis."
            )
        self.fraction, self.layout = fractions, as_layout(layout, dim)
        self._ratios = [Fraction(f).limit_denominator(1000) for f in fractions]

    def padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The grid after padding."""
        return tuple(n + amount for n, amount in zip(shape, self._amounts(shape), strict=True))

    def _amounts(self, shape: Sequence[int]) -> list[int]:
        amounts = []
        for n, ratio, layout in zip(shape, self._ratios, self.layout, strict=True):
            # period - n, with the period rounded in whole numbers: torch.export can follow these at a dynamic resolution.
            is_nodes = layout == "nodes"
            extra = (2 * (n - is_nodes) * ratio.numerator + ratio.denominator) // (2 * ratio.denominator) - is_nodes
            amounts.append(extra if ratio and extra > 0 else 0)
        return amounts

    def pad(self, x: Field) -> Field:
        """(batch, channel, *grid) -> (batch, channel, *padded_shape(grid)), zeros at the far end of each axis"""
        amounts = self._amounts(x.shape[2:])
        for axis, (amount, layout) in enumerate(zip(amounts, self.layout, strict=True), start=2):
            if amount > 0 and layout == "nodes":
                x = x * _trapezoid(x.shape[axis], x).view([-1 if a == axis else 1 for a in range(x.ndim)])
        return F.pad(x, [a for amount in reversed(amounts) for a in (0, amount)])

    def crop(self, x: Field, shape: Sequence[int]) -> Field:
        """Cut the field back to `shape`."""
        for axis, n in enumerate(shape, start=2):
            x = x.narrow(axis, 0, n)
        return x

    def extra_repr(self) -> str:
        """Fractions for `print(model)`."""
        return f"fraction={self.fraction}, layout={self.layout}"


def _trapezoid(n: int, like: Tensor) -> Tensor:
    """Ones (n,) with one half at both ends."""
    ends = torch.full((1,), 0.5, dtype=like.dtype, device=like.device)
    return torch.cat([ends, torch.ones(n - 2, dtype=like.dtype, device=like.device), ends])
