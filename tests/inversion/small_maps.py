"""Forward maps that are cheap and known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.inversion import GaussianPrior

GRID = Grid(33)


def smooth_prior(link: str = "identity", n_modes: int = 6) -> GaussianPrior:
    return GaussianPrior.cosine(GRID, n_modes, 1.0, 1.0, mean=0.3, link=link)


class Integral:
    """F(a)_(l, s) = int_0^(x_s) c_l(x) a(x) dx on five sensors: linear. (n, 33) -> (n, 2, 1, 5)"""

    def __init__(self) -> None:
        x = GRID.coordinates(0)
        cumulative = torch.tril(torch.ones(33, 33, dtype=torch.float64))[6::6] * GRID.spacing[0]
        self.matrix = torch.stack([cumulative, cumulative * torch.cos(torch.pi * x)])[:, None]  # (2, 1, 5, 33)

    def __call__(self, a: Tensor) -> Tensor:
        return torch.einsum("lcsx,nx->nlcs", self.matrix, a)


class Resistance(Integral):
    """F(a) = the integrals of 1 / a: nonlinear, with its derivative by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.linearisations = 0

    def __call__(self, a: Tensor) -> Tensor:
        return super().__call__(1 / a)

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self.linearisations += 1
        jacobian = torch.einsum("lcsx,kx->lcsk", self.matrix, -directions / a.square())
        return self(a[None])[0], jacobian


def gaussian_posterior(
    forward: Integral, data: Tensor, prior: GaussianPrior, deviation: float
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z given linear data (2, 1, 5), by the formula."""
    G = torch.einsum("lcsx,kx->lcsk", forward.matrix, prior.modes).reshape(-1, prior.n_modes) / deviation
    d = (data - forward(prior.mean[None])[0]).flatten() / deviation
    covariance = torch.linalg.inv(G.T @ G + torch.eye(prior.n_modes, dtype=torch.float64))
    return covariance @ (G.T @ d), covariance
