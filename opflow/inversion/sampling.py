"""Posterior sampling by preconditioned Crank-Nicolson, and what its chains are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.inversion.estimate import Estimate, Measured
from opflow.inversion.prior import GaussianPrior
from opflow.typing import check_sizes

TARGET_ACCEPTANCE = 0.3
SMALLEST_STEP, LARGEST_STEP = (
    1e-4,
    0.95,
)  # of the adapted beta; with some memory a chain leaves a tail sooner than without
INFLATION = 1.5  # of the reference's covariance: proposals with lighter tails than the posterior's would leave chains stuck there


@dataclass(frozen=True)
class Samples:
    """Chains of a posterior.

    Attributes:
        coefficients: z (chains, kept, k).
        log_likelihood: (chains, kept).
        acceptance: the share of proposals that each chain accepted after burn-in (chains,).
        step: beta, fixed after burn-in.
        effective_size: of each coordinate (k,), over all chains.
        r_hat: split R-hat of each coordinate (k,): 1 where the chains agree, and not to be trusted above 1.05.
        prior: what the coordinates mean.
    """

    coefficients: Tensor
    log_likelihood: Tensor
    acceptance: Tensor
    step: float
    effective_size: Tensor
    r_hat: Tensor
    prior: GaussianPrior

    @property
    def converged(self) -> bool:
        """Whether every split R-hat is at most 1.05."""
        return bool((self.r_hat <= 1.05).all())

    @property
    def message(self) -> str:
        """One sentence."""
        chains, kept, _ = self.coefficients.shape
        verdict = "the chains agree" if self.converged else "the chains disagree: take more steps, or a reference"
        return (
            f"{chains} chains of {kept} draws, acceptance {float(self.acceptance.mean()):.2f} at step {self.step:.3g}, effective size "
            f"{float(self.effective_size.min()):.0f} at least, split R-hat {float(self.r_hat.max()):.3f} at most: {verdict}."
        )

    def fields(self, n: int | None = None) -> Tensor:
        """Draws of the field (n, *grid), evenly spread over the chains; all by default."""
        z = self.coefficients.flatten(0, 1)
        if n is not None:
            z = z[torch.linspace(0, len(z) - 1, min(n, len(z)), dtype=torch.float64).round().long()]
        return self.prior.field(z)

    def mean(self) -> Tensor:
        """The posterior mean of the field (*grid)."""
        return self.fields().mean(0)

    def deviation(self) -> Tensor:
        """The posterior deviation of the field (*grid)."""
        return self.fields().std(0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Pointwise central credible intervals (lower, upper) of the field, each (*grid)."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; give a probability between 0 and 1, such as 0.9.")
        fields = self.fields().sort(0).values
        ends = [round(q * (len(fields) - 1)) for q in ((1 - level) / 2, (1 + level) / 2)]
        return fields[ends[0]], fields[ends[1]]


def gaussian_log_likelihood(
    forward: Callable[[Tensor], Tensor], data: Tensor, *, deviation: float | Tensor, mask: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """a (n, *grid) -> -|(F(a) - data) / deviation|^2 / 2 (n,), of one sample's data (L, channel, *sensors).

    >>> observed = gaussian_log_likelihood(lambda a: a[:, None, None], torch.zeros(1, 1, 4), deviation=1.0)
    >>> observed(torch.ones(2, 4))
    tensor([-2., -2.], dtype=torch.float64)
    """
    measured = Measured.of(data[None], deviation, None if mask is None else mask[None])

    def log_likelihood(a: Tensor) -> Tensor:
        rows = torch.zeros(len(a), dtype=torch.long, device=measured.data.device)
        return -measured.residual(forward(a), rows).flatten(1).square().sum(1) / 2

    return log_likelihood


@torch.no_grad()
def preconditioned_crank_nicolson(
    log_likelihood: Callable[[Tensor], Tensor],
    prior: GaussianPrior,
    n_steps: int,
    *,
    chains: int = 8,
    burn_in: int | None = None,
    thin: int = 1,
    step: float = 0.3,
    start: Tensor | None = None,
    reference: Estimate | None = None,
    generator: torch.Generator | None = None,
) -> Samples:
    """Samples of the posterior exp(log_likelihood(a(z))) N(z; 0, I)   (Cotter, Roberts, Stuart and White 2013, section 4).

    z' = sqrt(1 - beta^2) z + beta xi,   xi ~ N(0, I),   accepted with probability min(1, exp(l(z') - l(z)))

    leaves the prior invariant at every beta, so that the acceptance does not fall as modes are added. With a `reference` estimate
    the same proposal is made about N(m, 1.5 C), its Laplace approximation with room for heavier tails, and accepted by the ratio of the posterior to that (Rudolf and
    Sprungk 2018): the same posterior, in far fewer steps where the data say much. One call of the likelihood serves all chains.

    beta is adapted towards an acceptance of 0.3 in the burn-in and fixed afterwards, so that the kept draws are of one kernel.

    Args:
        log_likelihood: a (n, *grid) -> (n,); see `gaussian_log_likelihood`. NaN counts as zero probability.
        n_steps: steps of each chain after burn-in.
        chains: run side by side.
        burn_in: steps left out before; n_steps / 2 by default.
        thin: keep every so many steps.
        step: the first beta, in (0, 1].
        start: z (chains, k); by default draws of the prior, or of the reference.

    >>> from opflow import Grid
    >>> prior = GaussianPrior.cosine(Grid(9), 2, link="identity")
    >>> flat = lambda a: torch.zeros(len(a), dtype=torch.float64)  # no data: the posterior is the prior
    >>> samples = preconditioned_crank_nicolson(flat, prior, 200, generator=torch.Generator().manual_seed(0))
    >>> samples.coefficients.shape, float(samples.acceptance.min())
    (torch.Size([8, 200, 2]), 1.0)
    """
    check_sizes(n_steps=n_steps, chains=chains, thin=thin)
    burn_in = n_steps // 2 if burn_in is None else burn_in
    if not 0 < step <= 1 or burn_in < 0 or n_steps // thin < 4:
        raise ValueError(
            f"step is {step}, burn_in {burn_in} and {n_steps // thin} draws would be kept; give a step in (0, 1], no negative burn-in "
            "and four draws or more."
        )
    k, device = prior.n_modes, prior.modes.device

    def draws(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    centre, root = torch.zeros(k, dtype=torch.float64, device=device), torch.eye(k, dtype=torch.float64, device=device)
    if reference is not None:
        if reference.covariance is None or reference.coefficients.shape != (k,):
            raise ValueError(
                f"the reference needs a covariance and {k} coefficients; give an estimate of gauss_newton."
            )
        centre, root = reference.coefficients, torch.linalg.cholesky(INFLATION * reference.covariance)
    if start is not None and start.shape != (chains, k):
        raise ValueError(f"start has shape {tuple(start.shape)}; give one z a chain, ({chains}, {k}).")

    def target(w: Tensor) -> Tensor:
        """The posterior's log density over that of the reference, at z = m + R w."""
        z = centre + w @ root.T
        value = log_likelihood(prior.field(z)).to(torch.float64)
        if reference is not None:
            value = value + prior.log_density(z) + w.square().sum(1) / 2
        return torch.where(value.isnan(), -torch.inf, value)

    w = draws(chains, k)
    if start is not None:
        w = torch.linalg.solve_triangular(root, (start.to(root) - centre).T, upper=False).T
    value = target(w)
    logit = math.log(step / (1 - step)) if step < 1 else 8.0
    kept_w, kept_values, accepted = [], [], torch.zeros(chains, dtype=torch.float64, device=device)
    beta = step
    for t in range(burn_in + n_steps):
        proposal = math.sqrt(1 - beta**2) * w + beta * draws(chains, k)
        found = target(proposal)
        ratio = torch.where(found == -torch.inf, -torch.inf, found - value)
        chance = ratio.clamp(max=0.0).exp()
        moves = torch.rand(chains, generator=generator, dtype=torch.float64).to(device) < chance
        w, value = torch.where(moves[:, None], proposal, w), torch.where(moves, found, value)
        if t < burn_in:  # Robbins and Monro
            logit += (float(chance.mean()) - TARGET_ACCEPTANCE) * 4 / (1 + t) ** 0.6
            beta = min(max(1 / (1 + math.exp(-min(max(logit, -30.0), 30.0))), SMALLEST_STEP), LARGEST_STEP)
            continue
        accepted += moves
        if (t - burn_in) % thin == thin - 1:
            kept_w.append(w)
            kept_values.append(value)
    w = torch.stack(kept_w, 1)
    z = centre + w @ root.T
    values = torch.stack(kept_values, 1)
    if reference is not None:
        values = values - prior.log_density(z) - w.square().sum(-1) / 2
    return Samples(z, values, accepted / n_steps, beta, effective_size(z), split_r_hat(z), prior)


def split_r_hat(chains: Tensor) -> Tensor:
    """Split R-hat of draws (chains, draws, k): (k,)   (Gelman et al. 2013, "Bayesian Data Analysis", eq. 11.4).

    Each chain is cut in two; sqrt(((n - 1) / n W + B / n) / W) with W the variance within and B / n that of the means.
    """
    halves = _halves(chains)
    n = halves.shape[1]
    within = halves.var(1).mean(0)
    between = halves.mean(1).var(0)
    ratio = ((n - 1) / n * within + between) / within
    return torch.where(within > 0, ratio, torch.where(between > 0, torch.inf, 1.0)).sqrt()


def effective_size(chains: Tensor) -> Tensor:
    """The number of independent draws with the same error of the mean, (chains, draws, k) -> (k,)   (Vehtari et al. 2021, eq. 10-13).

    The autocorrelations of the split chains are summed in pairs up to the first pair that is not positive (Geyer 1992).
    """
    halves = _halves(chains)
    m, n, _ = halves.shape
    centred = halves - halves.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, 2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), 2 * n, dim=1)[:, :n] / n
    within = covariance[:, 0].mean(0) * n / (n - 1)
    total = (n - 1) / n * within + (halves.mean(1).var(0) if m > 1 else 0.0)
    correlation = 1 - (within - covariance.mean(0)) / total  # (n, k)
    correlation[0] = 1.0
    even = correlation[: n - n % 2].unflatten(0, (-1, 2)).sum(1)
    positive = (even > 0).cumprod(0)
    monotone = torch.cummin(torch.where(positive.bool(), even, 0.0), 0).values
    time = (2 * monotone.sum(0) - 1).clamp(min=1 / math.log10(max(m * n, 11)))  # antithetic chains: no more than that
    return torch.where(total > 0, m * n / time, float(m * n))


def _halves(chains: Tensor) -> Tensor:
    if chains.ndim != 3 or chains.shape[1] < 4:
        raise ValueError(
            f"chains have shape {tuple(chains.shape)}; give (chains, draws, k) with four draws or more, so that each can be halved."
        )
    n = chains.shape[1] // 2
    return torch.cat([chains[:, :n], chains[:, -n:]])
