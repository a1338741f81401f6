"""Gaussian priors of coefficient fields in a few coordinates: what is known before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.grid import Grid

LINKS = ("exp", "identity")


@dataclass(frozen=True)
class GaussianPrior:
    """a = link(mean + sum_k z_k modes_k),   z ~ N(0, I): a Gaussian field of finite rank, log-normal with link "exp".

    The modes carry their own deviations, so that the prior's energy is |z|^2 / 2 whatever the field is. Link "exp" keeps a
    coefficient positive. All is float64, which Gauss-Newton steps need; a network in float32 may sit behind it.

    Args:
        mean: (*grid), the logarithm of the median field with link "exp".
        modes: (k, *grid), linearly independent.
        link: "exp" or "identity".
        weight: quadrature weights (*grid) of the norm that `coefficients` projects in; equal ones by default.
        explained: the share of the training fields' variance that the modes hold, where they were learned.

    >>> grid = Grid((17, 17))
    >>> prior = GaussianPrior.cosine(grid, 4, scale=0.5, decay=2.0)
    >>> a = prior.sample(3, generator=torch.Generator().manual_seed(0))
    >>> a.shape, bool(torch.allclose(prior.field(prior.coefficients(a)), a))
    (torch.Size([3, 17, 17]), True)
    """

    mean: Tensor
    modes: Tensor
    link: str = "exp"
    weight: Tensor | None = None
    explained: float | None = None

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise ValueError(f"link is {self.link!r}; give one of {', '.join(LINKS)}.")
        if self.modes.ndim != self.mean.ndim + 1 or self.modes.shape[1:] != self.mean.shape or not len(self.modes):
            raise ValueError(
                f"modes have shape {tuple(self.modes.shape)} and the mean {tuple(self.mean.shape)}; give modes (k, *grid) on "
                "the grid of the mean, one or more."
            )
        if self.weight is not None and (self.weight.shape != self.mean.shape or not bool((self.weight > 0).all())):
            raise ValueError(
                f"weight has shape {tuple(self.weight.shape)}; give positive quadrature weights {tuple(self.mean.shape)}."
            )
        for name in ("mean", "modes", "weight"):
            value = getattr(self, name)
            if value is None:
                continue
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinity; a prior is stated in finite numbers.")
            object.__setattr__(self, name, value.detach().to(torch.float64))

    @property
    def n_modes(self) -> int:
        """k, the number of coordinates."""
        return len(self.modes)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The shape of a field."""
        return tuple(self.mean.shape)

    def field(self, z: Tensor) -> Tensor:
        """a = link(mean + sum_k z_k modes_k): (..., k) -> (..., *grid)"""
        g = self.latent(z)
        return g.exp() if self.link == "exp" else g

    def latent(self, z: Tensor) -> Tensor:
        """g = mean + sum_k z_k modes_k, the field before the link: (..., k) -> (..., *grid)"""
        if z.shape[-1] != self.n_modes:
            raise ValueError(f"z has shape {tuple(z.shape)} but the prior has {self.n_modes} modes: (..., k).")
        return self.mean + torch.tensordot(z.to(self.modes), self.modes, dims=1)

    def directions(self, z: Tensor) -> Tensor:
        """da/dz_k at one z (k,): (k, *grid)"""
        if z.shape != (self.n_modes,):
            raise ValueError(f"z has shape {tuple(z.shape)}; directions are taken at one point ({self.n_modes},).")
        return self.modes * self.field(z) if self.link == "exp" else self.modes

    def coefficients(self, a: Tensor) -> Tensor:
        """The z whose latent field is nearest to that of a in the weighted norm: (..., *grid) -> (..., k)"""
        if tuple(a.shape[a.ndim - self.mean.ndim :]) != self.grid_shape:
            raise ValueError(f"a has shape {tuple(a.shape)} but the prior lives on {self.grid_shape}: (..., *grid).")
        deviation = self._unlinked(a.to(self.mean)) - self.mean
        root = torch.ones_like(self.mean) if self.weight is None else self.weight.sqrt()
        A = (root * self.modes).flatten(1).T
        b = (root * deviation).flatten(a.ndim - self.mean.ndim)
        return torch.linalg.lstsq(A, b.reshape(-1, len(A)).T, driver="gelsd").solution.T.reshape(*b.shape[:-1], -1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n fields of the prior (n, *grid)."""
        return self.field(torch.randn(n, self.n_modes, generator=generator, dtype=torch.float64).to(self.mean.device))

    def log_density(self, z: Tensor) -> Tensor:
        """-|z|^2 / 2, up to its constant: (..., k) -> (...)"""
        return -z.square().sum(-1) / 2

    def interval(self, z: Tensor, covariance: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Pointwise central intervals (lower, upper), each (*grid), of a where z ~ N(z, covariance).

        The latent field is Gaussian with deviation s = sqrt(diag(modes^T covariance modes)) and the link monotone, so that the
        ends link(g -+ q s) are exact quantiles.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; give a probability between 0 and 1, such as 0.9.")
        q = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
        g, s = self.latent(z), self.latent_deviation(covariance)
        lower, upper = g - q * s, g + q * s
        return (lower.exp(), upper.exp()) if self.link == "exp" else (lower, upper)

    def latent_deviation(self, covariance: Tensor) -> Tensor:
        """The pointwise deviation (*grid) of the latent field where z has this covariance (k, k)."""
        variance = torch.einsum("jg,jk,kg->g", self.modes.flatten(1), covariance, self.modes.flatten(1))
        return variance.clamp(min=0).sqrt().reshape(self.mean.shape)

    def _unlinked(self, a: Tensor) -> Tensor:
        if not bool(a.isfinite().all()):
            raise ValueError("the fields hold NaN or infinity; give finite ones.")
        if self.link == "identity":
            return a
        if not bool((a > 0).all()):
            raise ValueError(
                f"the fields fall to {float(a.min()):.3g}, but link 'exp' expects positive ones; use link='identity'."
            )
        return a.log()

    @classmethod
    def from_samples(
        cls, fields: Tensor, n_modes: int, *, link: str = "exp", weight: Tensor | None = None
    ) -> GaussianPrior:
        """The learned prior: mean and leading principal components of fields (n, *grid) before the link.

        With quadrature weights w, sqrt(w) (g_i - mean) = U S V^T and modes_k = S_k V_k / (sqrt(n - 1) sqrt(w)): the best of all
        priors of this rank in mean square over the domain, orthogonal in its L2 product.

        Args:
            n_modes: at most n - 1 and the number of grid points.
            weight: quadrature weights (*grid), such as `Grid.quadrature_weights()`; needed on a grid that is not uniform.
        """
        if fields.ndim < 2 or not 1 <= n_modes <= min(len(fields) - 1, fields[0].numel()):
            raise ValueError(
                f"fields have shape {tuple(fields.shape)} and n_modes is {n_modes}; give fields (n, *grid), more of them than "
                "modes, and no more modes than grid points."
            )
        shape = fields.shape[1:]
        probe = cls(torch.zeros(shape), torch.ones(1, *shape), link, weight)
        g = probe._unlinked(fields.detach().to(torch.float64).cpu())
        root = torch.ones(shape, dtype=torch.float64) if probe.weight is None else probe.weight.sqrt().cpu()
        mean = g.mean(0)
        _, S, Vt = torch.linalg.svd((root * (g - mean)).flatten(1), full_matrices=False)
        if not float(S[n_modes - 1]) > 1e-12 * float(S[0]):
            raise ValueError(
                f"the {len(fields)} fields span fewer than {n_modes} directions; ask for fewer modes or give more fields."
            )
        modes = (S[:n_modes, None] * Vt[:n_modes]).reshape(n_modes, *shape) / (root * math.sqrt(len(fields) - 1))
        explained = float(S[:n_modes].square().sum() / S.square().sum())
        return cls(mean, modes, link, probe.weight, explained)

    @classmethod
    def cosine(
        cls,
        grid: Grid,
        n_modes: int | Sequence[int],
        scale: float = 1.0,
        decay: float = 2.0,
        *,
        mean: float = 0.0,
        link: str = "exp",
    ) -> GaussianPrior:
        """A generic smoothness prior: modes_k = s (1 + |k|^2)^(-decay/2) prod_d phi_(k_d)(x_d), phi_0 = 1, phi_k = sqrt(2) cos(pi k x).

        x is scaled to the unit box. s makes the latent field's deviation, averaged over the box, equal to `scale`. The order is by
        |k|, so that a smaller prior is nearly a prefix of a larger one.

        Args:
            n_modes: cosines per axis, k_d = 0 .. n - 1, one number or one per axis.
            decay: how fast the deviations fall; above dim / 2 the limit of many modes is a function.
            mean: of the latent field.
        """
        counts = (n_modes,) * grid.dim if isinstance(n_modes, int) else tuple(n_modes)
        if len(counts) != grid.dim or min(counts) < 1 or not scale > 0:
            raise ValueError(
                f"n_modes is {n_modes} and scale {scale}; give positive numbers, one count for all {grid.dim} axes or one per axis."
            )
        k = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in counts]).reshape(-1, grid.dim)
        k = k[k.square().sum(1).argsort(stable=True)]
        start = torch.tensor([a for a, _ in grid.extent], dtype=torch.float64)
        x = (grid.points() - start) / torch.tensor(grid.lengths, dtype=torch.float64)
        waves = torch.cos(torch.pi * x.unsqueeze(0) * k.view(-1, *[1] * grid.dim, grid.dim))
        waves = waves * (2.0 ** (k > 0).double()).sqrt().view(-1, *[1] * grid.dim, grid.dim)
        deviations = (1 + k.square().sum(1)) ** (-decay / 2)
        deviations = scale * deviations / deviations.square().sum().sqrt()
        modes = deviations.view(-1, *[1] * grid.dim) * waves.prod(-1)
        return cls(torch.full(grid.shape, mean, dtype=torch.float64), modes, link, grid.quadrature_weights())
