"""An operator read from its face weights, on its own grid and on coarser ones: what networks look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.kernels.stencil.stencil import Stencil, Transfer

ALIGNED = 0.25  # an axis is coarsened if its mean coupling is at least this part of the strongest axis's


@dataclass(frozen=True)
class StencilLevel:
    """One grid of a hierarchy. Everything is (batch or 1, *shape), and zero at points outside the domain.

    Attributes:
        stencil: couplings between points of the domain, and the diagonal.
        sinks: one an axis, the weights of faces beyond which u = 0: outer faces, and faces towards points outside the domain.
        reaction: the zero-order term.
        active: 1 in the domain, 0 outside.
        inverse: 1 / diagonal, 0 where that is zero.
        transfer: to the next coarser grid; None on the coarsest.
    """

    stencil: Stencil
    sinks: tuple[Tensor, ...]
    reaction: Tensor
    active: Tensor
    inverse: Tensor
    transfer: Transfer | None

    @staticmethod
    def of(
        upper: Sequence[Tensor], sinks: Sequence[Tensor], reaction: Tensor, active: Tensor, periodic: tuple[bool, ...]
    ) -> StencilLevel:
        """The level with these couplings, and the axes along which it is coarsened: those with strong couplings."""
        diagonal = reaction + sum(sinks)
        for d, (w, ring) in enumerate(zip(upper, periodic, strict=True)):
            diagonal = diagonal + w + _shifted(w, d, 1, ring)
        inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
        shape = tuple(active.shape[1:])
        strengths = [float((w + s).mean()) if n > 1 else 0.0 for w, s, n in zip(upper, sinks, shape, strict=True)]
        transfer = Transfer(tuple(2 if n > 1 and s >= ALIGNED * max(strengths) else 1 for s, n in zip(strengths, shape, strict=True)))  # fmt: skip
        stencil = Stencil(tuple(w.contiguous() for w in upper), diagonal, periodic)
        return StencilLevel(stencil, tuple(sinks), reaction, active, inverse, transfer if max(shape) > 1 else None)

    def coarser(self) -> StencilLevel:
        """The next grid, of blocks of points: P^T A P with P piecewise constant, its couplings divided by the distance of the blocks' centres.

        That is 2 along coarsened axes, and makes up for the jumps of P, which cost twice the energy of a straight line; the reaction
        adds up as it is. A block is in the domain if any of its points is.
        """
        assert self.transfer is not None
        factors, periodic = self.transfer.factors, self.stencil.periodic
        coarse = self.transfer.coarse_shape(self.stencil.shape)
        upper, sinks = [], []
        for d, (w, s, factor) in enumerate(zip(self.stencil.upper, self.sinks, factors, strict=True)):
            axis, n = d + 1, w.shape[d + 1]
            if factor > 1:
                crossing = torch.arange(n, device=w.device)[1::2]
                last = crossing.new_tensor([n - 1] if n % 2 else [])
                size = torch.full((coarse[d],), 2.0, dtype=w.dtype, device=w.device)
                size[-1] -= n % 2
                along = [-1 if other == axis else 1 for other in range(w.ndim)]
                w = w.index_select(axis, torch.cat([crossing, last])) / ((size + size.roll(-1)) / 2).view(along)
                s = s / size.repeat_interleave(2)[:n].view(along)
            rest = tuple(1 if other == d else f for other, f in enumerate(factors))
            w = block_sum(w, rest)
            upper.append(torch.zeros_like(w) if coarse[d] == 1 else w)  # a ring of one point is its own neighbour
            sinks.append(block_sum(s, factors))
        active = (block_sum(self.active, factors) > 0).to(self.active.dtype)
        return StencilLevel.of(upper, sinks, block_sum(self.reaction, factors), active, periodic)

    def to(self, like: Tensor) -> StencilLevel:
        """The same level with the dtype and on the device of a tensor."""
        stencil = self.stencil
        return StencilLevel(
            Stencil(tuple(w.to(like) for w in stencil.upper), stencil.diagonal.to(like), stencil.periodic),
            tuple(sink.to(like) for sink in self.sinks),
            self.reaction.to(like),
            self.active.to(like),
            self.inverse.to(like),
            self.transfer,
        )

    def features(self) -> Tensor:
        """What a point knows of A, (batch or 1, 2 dim + 2, *shape): its couplings and its sinks over the diagonal, and whether it is in the domain.

        None of it changes if A is multiplied by a number.
        """
        parts = []
        for d, (w, ring) in enumerate(zip(self.stencil.upper, self.stencil.periodic, strict=True)):
            parts += [w * self.inverse, _shifted(w, d, 1, ring) * self.inverse]
        sink = self.reaction + sum(self.sinks)
        return torch.stack([*parts, sink * self.inverse, self.active.expand_as(sink)], dim=1)


@torch.no_grad()
def stencil_levels(A: Any, dtype: torch.dtype) -> list[StencilLevel]:
    """A on all its grids in another precision, from its own to a single point; each operator in the unit of its largest diagonal entry.

    Args:
        A: an operator with a `stencil`, `anchors` (per axis the weights of faces that lead outside), `mask` and `reaction`; FaceStencil is one.

    Raises:
        TypeError: A has no stencil. ValueError: it couples points across corners, or has another number of axes than 2 or 3.
    """
    stencil = getattr(A, "stencil", None)
    if not isinstance(stencil, Stencil):
        raise TypeError(
            f"the network reads the weights of a stencil, but A is a {type(A).__name__}, which has none; build a FaceStencil, "
            "by from_coefficient or from_sparse, or use a network that reads no operator."
        )
    if stencil.corners is not None:
        raise ValueError(
            "A couples points across corners, and this network reads couplings of nearest neighbours only; use Multigrid."
        )
    unit = stencil.diagonal.flatten(1).amax(1)
    scale = torch.where(unit > 0, unit, 1.0).view(-1, *[1] * len(stencil.shape))
    zero = torch.zeros_like(stencil.diagonal)

    def measured(part: Tensor | None) -> Tensor:
        return (zero if part is None else zero + part / scale).to(dtype)

    upper = [
        measured(w) if n > 1 else zero.to(dtype) for w, n in zip(stencil.upper, stencil.shape, strict=True)
    ]  # a ring of one point is its own neighbour
    sinks = [measured(anchor) for anchor in A.anchors]
    active = torch.ones_like(zero) if A.mask is None else zero + A.mask
    levels = [
        StencilLevel.of(upper, sinks, measured(A.reaction) * active.to(dtype), active.to(dtype), stencil.periodic)
    ]
    while levels[-1].transfer is not None:
        levels.append(levels[-1].coarser())
    return levels


def block_sum(u: Tensor, factors: Sequence[int]) -> Tensor:
    """The sum over blocks of two or three axes, (batch, *shape) -> (batch, *coarse); the last block of an odd axis is one point."""
    if max(factors) == 1:
        return u
    pool = F.avg_pool2d if len(factors) == 2 else F.avg_pool3d
    return pool(u[:, None], tuple(factors), ceil_mode=True, divisor_override=1)[:, 0]


def _shifted(w: Tensor, d: int, step: int, ring: bool) -> Tensor:
    """w at the previous (step 1) or the next point (-1) along axis d; round a ring, else zero beyond the end."""
    axis, n = d + 1, w.shape[d + 1]
    rolled = w.roll(step, axis)
    if ring:
        return rolled
    end = torch.zeros_like(w.narrow(axis, 0, 1))
    return torch.cat(
        [end, rolled.narrow(axis, 1, n - 1)] if step > 0 else [rolled.narrow(axis, 0, n - 1), end], dim=axis
    )
