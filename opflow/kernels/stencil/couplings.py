"""A stencil by its parts, and from it the one on blocks of its points: what a geometric multigrid cycle solves on its coarser grids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.kernels.stencil.stencil import Stencil, Transfer

# An axis is coarsened if its mean coupling is above this share of the strongest one's.
STRONG = 0.25


@dataclass(frozen=True)
class Couplings:
    """A stencil by its parts: D_i = what couples i to its neighbours + what holds it to zero + the reaction.

    Attributes:
        upper: per axis the coupling to the next point, (batch or 1, *shape).
        held: per axis the weights of faces that lead outside the domain, or None where there are none.
        reaction: the zero-order term, or None.
        corners: the weights at the vertices, (batch or 1, n_0 + 1, n_1 + 1), or None.
        mask: True inside the domain, or None for everywhere.
        wall: per axis the distance of the outermost points to what holds them, in spacings: 1 on nodes, 1/2 on cells.
    """

    upper: tuple[Tensor, ...]
    held: tuple[Tensor | None, ...]
    reaction: Tensor | None
    corners: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    periodic: tuple[bool, ...]
    wall: tuple[float, ...]

    @staticmethod
    def of(A: Any, scale: Tensor | float = 1.0) -> Couplings:
        """The parts of `scale` A, a `FaceStencil` or what has its stencil, anchors, reaction, corners, mask, periodic and layout."""
        pairs = [_without_itself(w, axis) for axis, w in enumerate(A.stencil.upper, start=1)]
        scaled = [None if t is None else t * scale for t in (*pairs, *A.anchors, A.reaction)]
        dim = len(A.shape)
        corners = None if A.corners is None else (A.corners[0] * scale, A.corners[1] * scale)
        wall = tuple(1.0 if kind == "nodes" else 0.5 for kind in A.layout)
        return Couplings(tuple(scaled[:dim]), tuple(scaled[dim:-1]), scaled[-1], corners, A.mask, A.periodic, wall)  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Couplings:
        """The same parts in another precision or on another device."""

        def moved(t: Tensor) -> Tensor:
            return t.to(dtype=dtype, device=device)

        return replace(
            self,
            upper=tuple(moved(w) for w in self.upper),
            held=tuple(None if hold is None else moved(hold) for hold in self.held),
            reaction=None if self.reaction is None else moved(self.reaction),
            corners=None if self.corners is None else (moved(self.corners[0]), moved(self.corners[1])),
            mask=None if self.mask is None else self.mask.to(device=device),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grid."""
        return tuple(self.upper[0].shape[1:])

    def rest(self) -> Tensor:
        """What a row sums to, (batch or 1, *shape): the faces that lead outside and the reaction."""
        total = torch.zeros_like(self.upper[0])
        for part in (*self.held, self.reaction):
            if part is not None:
                total = total + part
        return total

    def stencil(self) -> Stencil:
        """As kernels take it."""
        diagonal = self.rest()
        for d, w in enumerate(self.upper):
            diagonal = diagonal + w + w.roll(1, d + 1)
        corners = None
        if self.corners is not None:
            rising, falling = self.corners
            n, m = self.shape
            diagonal = diagonal + rising[:, 1:, 1:] + rising[:, :n, :m] + falling[:, 1:, :m] + falling[:, :n, 1:]
            inner = [F.pad(c[:, 1:-1, 1:-1], (0, 1, 0, 1)) for c in self.corners]
            corners = (inner[0].contiguous(), inner[1].contiguous())
        upper = [w.expand(diagonal.shape).contiguous() for w in self.upper]
        return Stencil(tuple(upper), diagonal.contiguous(), self.periodic, corners)

    def coarsened_axes(self, *, semi: bool) -> tuple[int, ...]:
        """The factor 1 or 2 of every axis: 2 on those with strong coupling and more than one point; on all if not `semi`."""
        strength = [_mean_coupling(w) if n > 1 else 0.0 for w, n in zip(self.upper, self.shape, strict=True)]
        strongest = max(strength)
        return tuple(
            2 if n > 1 and (not semi or s > STRONG * strongest or strongest == 0) else 1
            for s, n in zip(strength, self.shape, strict=True)
        )

    def coarse(self, factors: tuple[int, ...]) -> Couplings:
        """The finite volumes of blocks: areas add up, distances are those between the centres of blocks.

        Along a coarsened axis a face between full blocks has half the sum of the fine weights: piecewise-constant aggregation with
        the classical over-correction (Braess 1995), and again a stencil of nearest neighbours. A reaction adds up.
        """
        sizes = [_block_sizes(n, factor, self.upper[0]) for n, factor in zip(self.shape, factors, strict=True)]
        upper, held = [], []
        for d, (w, hold) in enumerate(zip(self.upper, self.held, strict=True)):
            axis, size = d + 1, sizes[d]
            if factors[d] > 1:
                n = self.shape[d]
                ends = torch.arange(len(size), device=w.device).mul(2).add(1).clamp(max=n - 1)
                w = w.index_select(axis, ends)
                w = w * (2 / (size + size.roll(-1))).view([-1 if a == axis else 1 for a in range(w.ndim)])
                if hold is not None:
                    hold = _sum_along(hold, axis, 2)
                    nearer = self.wall[d] / (self.wall[d] + (size - 1) / 2)
                    hold = hold * nearer.view([-1 if a == axis else 1 for a in range(hold.ndim)])
            for other, factor in enumerate(factors):
                if other != d and factor > 1:
                    w = _sum_along(w, other + 1, 2)
                    hold = None if hold is None else _sum_along(hold, other + 1, 2)
            upper.append(_without_itself(w, axis))
            held.append(hold)
        reaction, mask = self.reaction, self.mask
        for d, factor in enumerate(factors):
            if factor > 1:
                reaction = None if reaction is None else _sum_along(reaction, d + 1, 2)
                mask = None if mask is None else _any_along(mask, d + 1)
        corners = None if self.corners is None else tuple(_coarse_vertices(c, factors) for c in self.corners)
        wall = tuple((one + 0.5) / 2 if factor > 1 else one for one, factor in zip(self.wall, factors, strict=True))
        return Couplings(tuple(upper), tuple(held), reaction, corners, mask, self.periodic, wall)  # type: ignore[arg-type]

    def across(self, factors: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Per axis the coupling of each point across the nearest block face, (batch or 1, *shape); 0 on axes that stay."""
        found = []
        for d, w in enumerate(self.upper):
            axis, n = d + 1, self.shape[d]
            if factors[d] == 1:
                found.append(torch.zeros_like(w))
                continue
            odd = (torch.arange(n, device=w.device) % 2 == 1).view([-1 if a == axis else 1 for a in range(w.ndim)])
            coupling = torch.where(odd, w, w.roll(1, axis))
            if n % 2 and self.periodic[d]:  # the first point of an odd ring has no partner of its own
                coupling = torch.cat(
                    [torch.zeros_like(coupling.narrow(axis, 0, 1)), coupling.narrow(axis, 1, n - 1)], axis
                )
            found.append(coupling)
        return tuple(found)

    def scaled(self, faces: tuple[Tensor, ...], rest: Tensor) -> Couplings:
        """Each coupling to the next point times `faces`, what a row sums to times `rest`."""
        upper = tuple(w * factor for w, factor in zip(self.upper, faces, strict=True))
        held = tuple(None if hold is None else hold * rest for hold in self.held)
        reaction = None if self.reaction is None else self.reaction * rest
        return replace(self, upper=upper, held=held, reaction=reaction)


@dataclass(frozen=True)
class LevelCoefficients:
    """What a network emits for one level. Whatever the numbers, a V-cycle is symmetric, and positive definite within these bounds.

    Attributes:
        relaxation: one a (half) sweep before the coarse correction, (batch or 1, *shape), on 1 / D, between 0 and 2 ("jacobi": and 1);
            the sweeps after it mirror them. Levels without two colours, where "red-black" is asked for, keep the classical one.
        across: one an axis, (batch or 1, *shape): the weight of the neighbour block across the nearest block face in the
            interpolation; the own block has 1 minus their sum. 0 is piecewise constant.
        coarse_faces: one an axis, (batch or 1, *coarse), positive, on the coupling of each block to the next one.
        coarse_rest: (batch or 1, *coarse), positive, on what the rows of the next level sum to.
    """

    relaxation: tuple[Tensor, ...]
    across: tuple[Tensor, ...]
    coarse_faces: tuple[Tensor, ...]
    coarse_rest: Tensor


def transfer(factors: tuple[int, ...], mask: Tensor | None, across: tuple[Tensor, ...] | None = None) -> Transfer:
    """Piecewise-constant interpolation, or with the weights `across` the nearest block faces and 1 minus their sum of the own block."""
    if across is None:
        return Transfer(factors)
    own = 1 - sum(across[1:], start=across[0])
    if mask is not None:
        own = own * mask
    return Transfer(factors, own.contiguous(), tuple(b.contiguous() for b in across))


def _without_itself(w: Tensor, axis: int) -> Tensor:
    """Round a ring of one point the point is its own neighbour, to no effect."""
    return torch.zeros_like(w) if w.shape[axis] == 1 else w


def _mean_coupling(w: Tensor) -> float:
    positive = (w > 0).sum()
    return float(w.detach().sum() / positive.clamp(min=1))


def _block_sizes(n: int, factor: int, like: Tensor) -> Tensor:
    blocks = -(-n // factor)
    size = torch.full((blocks,), float(factor), dtype=like.dtype, device=like.device)
    size[-1] = n - factor * (blocks - 1)
    return size


def _sum_along(u: Tensor, axis: int, factor: int) -> Tensor:
    n = u.shape[axis]
    if n == 1:
        return u
    if n % 2:
        u = F.pad(u, [0, 0] * (u.ndim - 1 - axis) + [0, 1])
    even, odd = u.unflatten(axis, (-1, factor)).unbind(axis + 1)
    return even + odd


def _any_along(mask: Tensor, axis: int) -> Tensor:
    return _sum_along(mask.to(torch.uint8), axis, 2) > 0


def _coarse_vertices(c: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Vertex weights averaged (1 2 1) / 4 along coarsened axes and kept at the vertices of blocks."""
    for d, factor in enumerate(factors):
        if factor == 1:
            continue
        axis, n = d + 1, c.shape[d + 1] - 1
        before = torch.cat([c.narrow(axis, 1, 1), c.narrow(axis, 0, n)], axis)
        after = torch.cat([c.narrow(axis, 1, n), c.narrow(axis, n - 1, 1)], axis)
        mean = (before + 2 * c + after) / 4
        ends = torch.arange(-(-n // 2) + 1, device=c.device).mul(2).clamp(max=n)
        c = mean.index_select(axis, ends)
    return c
