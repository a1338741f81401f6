"""The numbers of a stencil, of its relaxation and of the transfer to a coarser grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stencil:
    """(A u)_i = D_i u_i - sum over axes d of w_(d,i) u_(i+e_d) + w_(d,i-e_d) u_(i-e_d), the indices taken around the grid.

    Attributes:
        upper: w_d (batch or 1, *shape), one an axis: what couples a point to the next one. Zero on the last layer unless the axis is periodic.
        diagonal: D (batch or 1, *shape); zero at points outside the domain, whose couplings are zero too.
        periodic: one an axis.
        corners: the couplings (batch or 1, *shape) of (i, j) to (i+1, j+1) and of (i+1, j) to (i, j+1) on a plane that is not periodic,
            where A has them; zero where the square leaves the grid.
    """

    upper: tuple[Tensor, ...]
    diagonal: Tensor
    periodic: tuple[bool, ...]
    corners: tuple[Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grid."""
        return tuple(self.diagonal.shape[1:])

    @property
    def two_coloured(self) -> bool:
        """Whether neighbours always differ in the parity of their indices' sum, so that red and black points can be relaxed in turn."""
        odd_ring = any(ring and n % 2 for ring, n in zip(self.periodic, self.shape, strict=True))
        return self.corners is None and not odd_ring

    def to(self, dtype: torch.dtype) -> Stencil:
        """The same stencil in another precision."""
        return self._each(lambda values: values.to(dtype))

    def one(self, index: int) -> Stencil:
        """One of a batch of operators."""
        return self._each(lambda values: values[index : index + 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Stencil:
        corners = None if self.corners is None else (change(self.corners[0]), change(self.corners[1]))
        return Stencil(tuple(change(w) for w in self.upper), change(self.diagonal), self.periodic, corners)


@dataclass(frozen=True)
class Relaxation:
    """One (half) sweep u <- u + s (f - A u) at the points of one colour, or at all of them at once.

    Attributes:
        weight: s (batch or 1, *shape), about 1 / D; zero outside the domain.
        colour: 0 or 1, the parity of the sum of the indices; None for all points (Jacobi).
        exact: whether s = 1 / D, so that the sweep is Gauss-Seidel and leaves no residual at its colour. Outside the domain it keeps
            u or makes it zero.
    """

    weight: Tensor
    colour: int | None = None
    exact: bool = False


@dataclass(frozen=True)
class Transfer:
    """P from the coarse grid of blocks of `factors` points: (P e)_i = a_i e_(block of i) + sum_d b_(d,i) e_(next block of i along d).

    The next block is the one across the block face that i touches. Without weights a = 1, b = 0: piecewise constant.

    Attributes:
        factors: 1 or 2 an axis; the last block of an odd axis is one point.
        own, across: a and b_d (batch or 1, *shape), or None.
    """

    factors: tuple[int, ...]
    own: Tensor | None = None
    across: tuple[Tensor, ...] | None = None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """a and then b_d, or nothing."""
        return () if self.own is None or self.across is None else (self.own, *self.across)

    def coarse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the grid of blocks."""
        return tuple(-(-n // factor) for n, factor in zip(shape, self.factors, strict=True))
