"""Measurements of one sample pooled by least squares: each is a linear observation of a latent description."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from opflow.layers.measurement_mixing import as_kept
from opflow.layers.mlp import MLP
from opflow.typing import check_placement, check_sizes


class LatentLeastSquares(nn.Module):
    """{(f_l, g_l)} -> z = argmin_z (1/L) sum_l |P f_l - G(g_l) z|^2 + lambda |z|^2

                       = (lambda I + (1/L) sum_l G_l^T G_l)^-1 (1/L) sum_l G_l^T P f_l,

    over the measurements that the mask keeps. A measurement sees the latent description z through a matrix G_l that depends on what was
    done to the domain, g_l, as a linearised inverse problem has a sensitivity for each excitation. So the pooled value is an estimate of
    the same z whichever measurements are there, where a mean of features drifts with the choice; what none of them sees stays zero.

    The same set with every measurement twice gives the same z. Related: the precision-weighted aggregation of neural processes (Volpp
    et al. 2021, "Bayesian context aggregation for neural processes"), whose G_l is diagonal and learned from the value, too.

    Args:
        features: of f_l.
        descriptors: d, of g_l.
        latent: size of z.
        rank: how many combinations of z one measurement sees.
        hidden: width of the perceptron that makes G.

    >>> LatentLeastSquares(8, 3, latent=4, rank=2)(torch.zeros(2, 5, 8), torch.rand(5, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, features: int, descriptors: int, *, latent: int = 64, rank: int = 16, hidden: int = 128) -> None:
        super().__init__()
        check_sizes(features=features, descriptors=descriptors, latent=latent, rank=rank, hidden=hidden)
        self.features, self.descriptors, self.latent, self.rank = features, descriptors, latent, rank
        self.project = nn.Linear(features, rank)
        self.sight = MLP((descriptors, hidden, rank * latent))
        self.damping = nn.Parameter(torch.tensor(-2.0))  # log lambda

    def forward(self, f: Tensor, descriptors: Tensor, mask: Tensor | None = None) -> Tensor:
        """f (batch, L, features), descriptors (L, d) or (batch or 1, L, d), mask (batch, L), True where measured -> (batch, latent)

        Raises:
            ValueError: shapes that do not fit, or a sample without any measurement.
        """
        if f.ndim != 3 or f.shape[2] != self.features or f.shape[1] < 1:
            raise ValueError(
                f"the measurements have shape {tuple(f.shape)} but LatentLeastSquares expects (batch, L, {self.features}), L >= 1."
            )
        if descriptors.ndim not in (2, 3) or descriptors.shape[-2:] != (f.shape[1], self.descriptors):
            raise ValueError(
                f"descriptors have shape {tuple(descriptors.shape)} for {f.shape[1]} measurements; expected (L, {self.descriptors}) or "
                f"(batch, L, {self.descriptors})."
            )
        check_placement(f, self.project.weight, "LatentLeastSquares", "f")
        kept = as_kept(mask, f)
        if kept is None:
            share = f.new_ones(f.shape[:2]) / f.shape[1]
        else:
            f = torch.where(kept, f, 0.0)  # not a product: what is masked may be NaN
            share = kept[..., 0].to(f.dtype) / kept.sum(1)
        # The perceptron says about 1/3 at first; so G has columns of about unit size.
        G = self.sight(descriptors).unflatten(-1, (self.rank, self.latent)) * (3 / math.sqrt(self.rank))
        normal, G = (G.mT @ G).flatten(-2), G if G.ndim == 4 else G[None]
        weighted = share @ normal if normal.ndim == 2 else (share[:, None] @ normal)[:, 0]
        A = weighted.unflatten(-1, (self.latent, self.latent))
        A = A + self.damping.exp() * torch.eye(self.latent, dtype=f.dtype, device=f.device)
        seen = (self.project(f)[:, :, None] @ G)[:, :, 0]  # G_l^T P f_l
        right = (share[..., None] * seen).sum(1)
        return torch.cholesky_solve(right[..., None].to(A.dtype), torch.linalg.cholesky(A))[..., 0]

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        return f"{self.features}, {self.descriptors}, latent={self.latent}, rank={self.rank}"
