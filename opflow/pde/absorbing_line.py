"""Second differences along a line that ends in perfectly matched layers: one linear recursion, applied block by block."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

# Central differences of order eight: of the first derivative at +1, ..., +4 (odd), of the second at 0, ..., 4 (even).
FIRST = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
SECOND = (-205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560)
LARGEST = -SECOND[0] + 2 * sum(
    abs(c) for c in SECOND[1:]
)  # of -h^2 times the second difference, where neighbours alternate
REACH = len(FIRST)
REFLECTION = 1e-6  # of the continuous layer at normal incidence, which fixes its damping
TILE = 64  # of the part between the layers: larger ones multiply more zeros, smaller ones are more calls

Block = tuple[slice, slice, Tensor]


class AbsorbingLine:
    """D u = d^2 u + d psi + zeta on n nodes, the outer `cells` on each side a layer, u = 0 beyond.

    With d and d^2 the eighth-order first and second difference, at the nodes of the layer (Komatitsch and Martin 2007; in second-order form
    Pasalic and McGarry 2010),

        psi <- b psi + a d u,    zeta <- b zeta + a (d^2 u + d psi),
        b = exp(-(sigma + alpha) dt),    a = sigma / (sigma + alpha) (b - 1),

    sigma cubic in the depth into the layer, alpha falling from pi frequency to 0. All is linear and no medium enters: `matrix` maps
    [psi zeta | u | psi zeta], the left layer's memory, the line and the right layer's, to [psi zeta | D u | psi zeta]. Its blocks that
    are not zero are few and small: on these lines matrix products are faster than slices, and the transpose is the adjoint.

    Attributes:
        nodes: where u is in that order.
        size: of the matrix, n + 4 cells.
        matrix: (size, size), float64.
    """

    def __init__(self, n: int, h: float, dt: float, *, cells: int, speed: float, frequency: float) -> None:
        self.nodes, self.size = slice(2 * cells, 2 * cells + n), n + 4 * cells

        def shifted(k: int) -> Tensor:
            return torch.diag(torch.ones(n - abs(k), dtype=torch.float64), k)

        d, d2 = torch.zeros(n, n, dtype=torch.float64), SECOND[0] * shifted(0)
        for k in range(1, REACH + 1):
            d += FIRST[k - 1] * (shifted(k) - shifted(-k))
            d2 += SECOND[k] * (shifted(k) + shifted(-k))
        d, d2 = d / h, d2 / h**2
        i = torch.arange(n)
        layer = torch.cat([i[:cells], i[n - cells :]])
        depth = torch.cat([cells - i[:cells], i[:cells] + 1]).double() / cells  # 1 at the outermost node
        sigma = -(3 + 1) * speed * math.log(REFLECTION) / (2 * cells * h) * depth**3
        alpha = math.pi * frequency * (1 - depth)
        b = torch.exp(-(sigma + alpha) * dt)
        a = sigma / (sigma + alpha) * (b - 1)
        p = len(layer)
        psi = torch.cat([a[:, None] * d[layer], torch.diag(b), torch.zeros(p, p)], dim=1)  # of [u | psi | zeta]
        zeta = a[:, None] * (torch.cat([d2[layer], torch.zeros(p, 2 * p)], dim=1) + d[layer][:, layer] @ psi)
        zeta[:, n + p :] += torch.diag(b)
        u = torch.cat([d2, torch.zeros(n, 2 * p)], dim=1) + d[:, layer] @ psi
        u[layer] += zeta
        left, right = torch.arange(cells), torch.arange(cells, p)
        order = torch.cat([n + left, n + p + left, i, n + right, n + p + right])
        self.matrix = torch.cat([u, psi, zeta])[order][:, order]
        side = 3 * cells + 2 * REACH
        between = max(self.size - 2 * side, 0)
        tiles = -(-between // TILE)
        ends = [0, *(side + between * k // tiles for k in range(tiles + 1)), self.size] if tiles else [0, self.size]
        self._ends = list(itertools.pairwise(ends))

    def blocks(self, like: Tensor, *, transposed: bool = False) -> list[Block]:
        """(rows, columns, matrix[rows, columns]) that together are the matrix, or its transpose, in the type of `like`."""
        matrix, found = self.matrix.T if transposed else self.matrix, []
        for start, end in self._ends:
            columns = matrix[start:end].any(0).nonzero()[:, 0]
            used = slice(int(columns[0]), int(columns[-1]) + 1)
            found.append((slice(start, end), used, matrix[start:end, used].to(like).contiguous()))
        return found


def apply_first(blocks: list[Block], x: Tensor, out: Tensor) -> None:
    """out = matrix x along the first axis of x (size, ...), contiguous."""
    x, out = x.flatten(1), out.flatten(1)
    for rows, columns, block in blocks:
        torch.mm(block, x[columns], out=out[rows])


def apply_last(blocks: list[Block], x: Tensor, out: Tensor) -> None:
    """out = matrix x along the last axis of x (..., size), contiguous."""
    x, out = x.flatten(0, -2), out.flatten(0, -2)
    for rows, columns, block in blocks:
        torch.mm(x[:, columns], block.T, out=out[:, rows])
