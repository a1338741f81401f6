"""The Dirichlet-to-Neumann map of a disc as a function of the conductivity inside, with its derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.problems.boundary_fluxes import check_positive_field

SQUARE = 2 / 3  # of the quadrature points' distance to the middle, in halves of a side
# By this rule the integral over a side of the square of a linear function with the ends p, q is EDGE (p^2 + q^2) + 2 ACROSS p q.
EDGE, ACROSS = 1 / 4 + SQUARE / 4, 1 / 4 - SQUARE / 4
MEMORY = 2**26  # bytes of factors that are held at once where no gradient is asked for
PRODUCTS = 2**21  # numbers that are held at once when products of fields are formed


class DiscMap:
    """F: a -> the matrix of Lambda_a - Lambda_1, where Lambda_a g = a du/dr on the circle, -div(a grad u) = 0 inside, u = g on it.

        F_lk = int (Lambda_a - Lambda_1) g_l g_k ds,    g = cos theta, sin theta, cos 2 theta, sin 2 theta, ... / sqrt(pi).

    Bilinear finite elements in theta and r, one a cell of the polar grid, a constant in each of them, in float64. The form is
    int a (u_r v_r + u_theta v_theta / r^2) r dr dtheta; two quadrature points a side at +- sqrt(2/3) of half of it, instead of Gauss's
    sqrt(1/3), cancel the leading error of a wave (Ainsworth and Wajid 2010), so that n = 16 needs no more than 70 angles. F is variational:
    F_lk = int a grad u_l . grad u_k, symmetric, of twice the order of the gradients, with the derivative int da grad u_l . grad u_k, which
    is exact for the discrete map too. Rings are eliminated from the centre outwards; what is left on the circle is Lambda_a.

    Calling it takes a (n, n_theta, n_r), positive, to (n, L, 1, K) and is differentiable once.

    Args:
        grid: `Grid.polar` of the disc.
        n_given: L, the first of the functions that are given as voltages.
        n_read: K, the first of the functions that currents are read with.
    """

    def __init__(self, grid: Grid, n_given: int, n_read: int) -> None:
        self.grid, self.n_given, self.n_read = grid, n_given, n_read
        n_r, (d_theta, h) = grid.shape[1], grid.spacing
        rings, share = np.arange(n_r)[:, None], (1 + math.sqrt(SQUARE) * np.array([-1.0, 1.0])) / 2
        r = (rings + share) * h  # the quadrature points of each ring
        low, high = (1 - share) * np.ones_like(r), share * np.ones_like(r)
        self._radial = torch.from_numpy((rings[:, 0] + 0.5) * d_theta)  # of (difference along r)^2, by ring
        across = h / (2 * r * d_theta)
        self._high, self._low, self._mixed = (
            torch.from_numpy((across * part).sum(1)) for part in (high**2, low**2, low * high)
        )
        # An element's energy is a times the sum over four features of weight times square: the mean and the difference of the two slopes
        # along r, and the difference along theta at two radii.
        radial = self._radial[:, None] * torch.tensor([1.0, SQUARE / 4]).double()
        self._weights = torch.cat([radial, torch.from_numpy(across)], 1)  # (n_r, 4)
        self._share = torch.from_numpy(share)
        self._functions = self._trigonometric(max(n_given, n_read))
        self._homogeneous = self._matrices(torch.ones(1, *grid.shape, dtype=torch.float64))[0][0]

    def __call__(self, a: Tensor) -> Tensor:
        """The measurements (n, L, 1, K), float64."""
        self._check(a, 3, "(n, n_theta, n_r)")
        n_theta, n_r = self.grid.shape
        held = len(a) if a.requires_grad else max(1, MEMORY // (16 * n_r * n_theta**2))
        parts = [_Difference.apply(part, self) for part in a.double().split(max(held, 1))]
        return self._read(torch.cat(parts))

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """F(a) (L, 1, K) and its derivatives (L, 1, K, k) along `directions` (k, n_theta, n_r), for one a (n_theta, n_r)."""
        self._check(a, 2, "(n_theta, n_r)")
        self.grid.check(directions, "directions")
        matrices, rings = self._matrices(a.detach().double()[None], keep=True)
        features = self._features(rings)[0]  # (n_r, n_theta, 4, m)
        given, read = features[..., : self.n_given], features[..., : self.n_read]
        derivative = features.new_zeros(self.n_given * self.n_read, len(directions))
        at_once = max(1, PRODUCTS // (self.grid.shape[0] * len(derivative)))
        for some in torch.arange(self.grid.shape[1], device=a.device).split(at_once):
            products = given[some].mT @ (self._weights.to(a.device)[some, None, :, None] * read[some])
            derivative += products.flatten(2).flatten(0, 1).T @ directions.detach().double()[..., some].mT.flatten(1).T
        data = self._read(matrices[0] - self._homogeneous.to(a.device))
        return data, derivative.view(self.n_given, 1, self.n_read, -1)

    def _matrices(self, a: Tensor, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Lambda_a (n, m, m), and if asked the fields on the rings of nodes, from the centre outwards, (n, n_theta, m)."""
        rings = a.movedim(-1, 0)  # (n_r, n, n_theta)
        radial, high, low, mixed = (
            rings * w.to(a.device)[:, None, None] for w in (self._radial, self._high, self._low, self._mixed)
        )
        # The element i lies between the nodes i and i + 1 of the rings below and above it.
        above, below = EDGE * radial + high, EDGE * radial + low
        diagonal, beside = above + above.roll(1, -1), ACROSS * radial - high
        diagonal[:-1] += (below + below.roll(1, -1))[1:]
        beside[:-1] += (ACROSS * radial - low)[1:]
        coupling, slant = mixed - EDGE * radial, -ACROSS * radial - mixed
        upwards = _cyclic(coupling + coupling.roll(1, -1), slant)
        on_ring = _cyclic(diagonal, beside)
        # At the centre a ring is one node.
        centre, to_centre = radial[0].sum(-1), upwards[0].sum(-2, keepdim=True)  # (n,), (n, 1, n_theta)
        reduced, kept = on_ring[0] - to_centre.mT @ to_centre / centre[:, None, None], []
        for between, next_ring in zip(upwards[1:], on_ring[1:], strict=True):
            factor = torch.linalg.cholesky(reduced)
            scaled = torch.linalg.solve_triangular(factor, between, upper=False)
            reduced = next_ring - scaled.mT @ scaled
            if keep:
                kept.append((factor, scaled))
        functions = self._functions.to(a.device)
        fields = [functions.expand(len(a), *functions.shape)]
        for factor, scaled in reversed(kept):
            fields.append(-torch.linalg.solve_triangular(factor.mT, scaled @ fields[-1], upper=True))
        if keep:
            fields.append((-(to_centre @ fields[-1]) / centre[:, None, None]).expand_as(fields[-1]))
        return functions.T @ reduced @ functions, fields[::-1]

    def _features(self, rings: list[Tensor]) -> Tensor:
        """What the energies are squares of, (n, n_r, n_theta, 4, m): see the weights."""
        u = torch.stack(rings, 1)  # (n, n_r + 1, n_theta, m)
        slope, turn = u.diff(dim=1), u.roll(-1, 2) - u
        at = [turn[:, :-1] * (1 - share) + turn[:, 1:] * share for share in self._share.tolist()]
        beside = slope.roll(-1, 2)
        return torch.stack([(slope + beside) / 2, beside - slope, *at], -2)

    def _trigonometric(self, m: int) -> Tensor:
        """The first m functions at the nodes (n_theta, m), orthonormal in the product of the elements on the circle."""
        (n_theta, _), (d_theta, _) = self.grid.shape, self.grid.spacing
        angle = (np.arange(n_theta)[:, None] - 0.5) * d_theta * (np.arange(m) // 2 + 1)
        values = np.where(np.arange(m) % 2 == 0, np.cos(angle), np.sin(angle))
        of_elements = 2 * EDGE + 2 * ACROSS * np.cos(d_theta * (np.arange(m) // 2 + 1))
        return torch.from_numpy(values / np.sqrt(math.pi * of_elements))

    def _read(self, matrices: Tensor) -> Tensor:
        return matrices[..., : self.n_given, None, : self.n_read]

    def _check(self, a: Tensor, rank: int, expected: str) -> None:
        if a.ndim != rank or tuple(a.shape[-2:]) != self.grid.shape:
            raise ValueError(
                f"the coefficient has shape {tuple(a.shape)}; expected {expected} with the grid {self.grid.shape}."
            )
        check_positive_field(a if rank == 3 else a[None], "the coefficient")


class _Difference(torch.autograd.Function):
    """Lambda_a - Lambda_1 (n, m, m); the derivative by a cell's value is the sum of products of features."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, owner: DiscMap) -> Tensor:
        matrices, ctx.rings = owner._matrices(a, keep=ctx.needs_input_grad[0])
        ctx.owner = owner
        return matrices - owner._homogeneous.to(a.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        features = ctx.owner._features(ctx.rings)
        weights = ctx.owner._weights.to(cotangent.device)[:, None]
        products = (features @ cotangent[:, None, None] * features).sum(-1)  # (n, n_r, n_theta, 4)
        return (weights * products).sum(-1).mT, None


def _cyclic(diagonal: Tensor, beside: Tensor) -> Tensor:
    """The symmetric matrices (..., n, n) with these diagonals (..., n), and beside_i between i and i + 1, cyclically."""
    i = torch.arange(diagonal.shape[-1], device=diagonal.device)
    j = i.roll(-1)
    matrix = torch.diag_embed(diagonal)
    matrix[..., i, j] = matrix[..., j, i] = beside
    return matrix
