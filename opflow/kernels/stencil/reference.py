"""Stencils in plain torch operations, whole slices at a time: the truth for every other backend, and what gradients go through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer


class Reference:
    """Any dtype, any device, one to three dimensions, differentiable in every number."""

    name = "reference"

    def refusal(self, call: StencilCall) -> str | None:
        """None: it serves every call."""
        return None

    def apply(self, stencil: Stencil, u: Tensor) -> Tensor:
        """A u, (batch, *shape) -> (batch, *shape)"""
        y = stencil.diagonal * u
        for d, (w, ring) in enumerate(zip(stencil.upper, stencil.periodic, strict=True)):
            axis, n = d + 1, u.shape[d + 1]
            if n > 1:
                inner = w.narrow(axis, 0, n - 1)
                y.narrow(axis, 1, n - 1).addcmul_(inner, u.narrow(axis, 0, n - 1), value=-1)
                y.narrow(axis, 0, n - 1).addcmul_(inner, u.narrow(axis, 1, n - 1), value=-1)
            if ring:
                last = w.narrow(axis, n - 1, 1)
                y.narrow(axis, 0, 1).addcmul_(last, u.narrow(axis, n - 1, 1), value=-1)
                y.narrow(axis, n - 1, 1).addcmul_(last, u.narrow(axis, 0, 1), value=-1)
        if stencil.corners is not None:
            rising, falling = (w[:, :-1, :-1] for w in stencil.corners)
            y[:, 1:, 1:].addcmul_(rising, u[:, :-1, :-1], value=-1)
            y[:, :-1, :-1].addcmul_(rising, u[:, 1:, 1:], value=-1)
            y[:, :-1, 1:].addcmul_(falling, u[:, 1:, :-1], value=-1)
            y[:, 1:, :-1].addcmul_(falling, u[:, :-1, 1:], value=-1)
        return y

    def relax(self, stencil: Stencil, sweeps: Sequence[Relaxation], f: Tensor, u: Tensor | None) -> Tensor:
        """The sweeps in turn, from u (which may be overwritten) or from zero."""
        for sweep in sweeps:
            weight = of_colour(sweep)
            u = weight * f if u is None else u + weight * (f - self.apply(stencil, u))
        if u is None:
            raise ValueError("no sweep was given and no field to start from; give at least one of them.")
        return u

    def restrict(
        self, stencil: Stencil, transfer: Transfer, f: Tensor, u: Tensor, *, vanishing: int | None = None
    ) -> Tensor:
        """P^T (f - A u), (batch, *shape) -> (batch, *coarse); `vanishing` is a colour known to have no residual."""
        r = f - self.apply(stencil, u)
        if not transfer.weights:
            return _block_sum(r, transfer.factors)
        own, *across = transfer.weights
        t = own * r
        for d, b in enumerate(across):
            if transfer.factors[d] > 1:
                t = t + _across(b * r, d, stencil.periodic[d])
        return _block_sum(t, transfer.factors)

    def correct(
        self,
        stencil: Stencil,
        transfer: Transfer,
        sweeps: Sequence[Relaxation],
        f: Tensor,
        u: Tensor,
        e: Tensor,
    ) -> Tensor:
        """u + P e and then the sweeps; u may be overwritten."""
        fine = e
        for d, factor in enumerate(transfer.factors):
            if factor > 1:
                fine = fine.repeat_interleave(2, dim=d + 1).narrow(d + 1, 0, stencil.shape[d])
        if not transfer.weights:
            return self.relax(stencil, sweeps, f, u + fine)
        own, *across = transfer.weights
        u = u + own * fine
        for d, b in enumerate(across):
            if transfer.factors[d] > 1:
                u = u + b * _across(fine, d, stencil.periodic[d])
        return self.relax(stencil, sweeps, f, u)


def of_colour(sweep: Relaxation) -> Tensor:
    """The weight of a sweep where it relaxes, zero elsewhere."""
    if sweep.colour is None:
        return sweep.weight
    total = torch.zeros((), dtype=torch.int64, device=sweep.weight.device)
    for n in sweep.weight.shape[1:]:
        total = total[..., None] + torch.arange(n, device=total.device)
    return torch.where(total % 2 == sweep.colour, sweep.weight, 0.0)


def _block_sum(u: Tensor, factors: tuple[int, ...]) -> Tensor:
    """The sum over blocks; the last block of an odd axis is one point."""
    for d, factor in enumerate(factors):
        if factor > 1:
            axis, n = d + 1, u.shape[d + 1]
            if n % 2:
                u = F.pad(u, [0, 0] * (u.ndim - 1 - axis) + [0, 1])
            u = u.unflatten(axis, (-1, 2)).sum(axis + 1)
    return u


def _across(u: Tensor, d: int, ring: bool) -> Tensor:
    """At each point the value of its neighbour across the nearest block face along axis d: pairs (1, 2), (3, 4), ...; 0 where there is none.

    The map is its own transpose. Round a ring of even length the pair (n - 1, 0) closes it.
    """
    axis, n = d + 1, u.shape[d + 1]
    pairs = (n - 1) // 2
    swapped = u.narrow(axis, 1, 2 * pairs).unflatten(axis, (pairs, 2)).flip(axis + 1).flatten(axis, axis + 1)
    first, last = u.narrow(axis, 0, 1), u.narrow(axis, n - 1, 1)
    if n % 2:  # the last point is a block of its own and belongs to the last pair
        return torch.cat([torch.zeros_like(first), swapped], dim=axis)
    ends = (last, first) if ring else (torch.zeros_like(first), torch.zeros_like(last))
    return torch.cat([ends[0], swapped, ends[1]], dim=axis)
