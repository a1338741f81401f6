"""Preconditioned Crank-Nicolson: the right distribution, told by chains that know what they are worth."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.signal import lfilter
from small_maps import Integral, Resistance, gaussian_posterior, smooth_prior

from opflow.inversion import gauss_newton, gaussian_log_likelihood, preconditioned_crank_nicolson
from opflow.inversion.sampling import effective_size, split_r_hat


def noise(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("with_reference", [False, True])
def test_linear_gaussian_posterior_within_monte_carlo_error(with_reference: bool) -> None:
    forward, prior, deviation = Integral(), smooth_prior(), 0.3
    data = forward(prior.field(noise((1, 6), 1)))[0] + deviation * noise((2, 1, 5), 2)
    mean, covariance = gaussian_posterior(forward, data, prior, deviation)
    # A reference that is off on purpose: it may change the speed, never the answer.
    reference = gauss_newton(forward, data + 0.1, prior, deviation=0.35, discrepancy=None) if with_reference else None
    samples = preconditioned_crank_nicolson(
        gaussian_log_likelihood(forward, data, deviation=deviation), prior, 300, chains=100, reference=reference, generator=generator()
    )  # fmt: skip
    error = covariance.diagonal().sqrt() / samples.effective_size.sqrt()
    draws = samples.coefficients.flatten(0, 1)
    assert bool(((draws.mean(0) - mean).abs() < 4 * error).all())
    assert (torch.cov(draws.T) - covariance).norm() < 0.1 * covariance.norm()
    lower, upper = samples.interval(0.8)
    exact = prior.interval(mean, covariance, 0.8)
    assert (lower - exact[0]).abs().max() < 0.1 and (upper - exact[1]).abs().max() < 0.1
    assert (samples.mean() - prior.field(mean)).abs().max() < 0.1
    assert samples.deviation().shape == (33,) and samples.fields(7).shape == (7, 33)
    if with_reference:
        assert samples.converged and "the chains agree" in samples.message
        assert samples.step > 0.7  # nearly independent proposals


def test_nonlinear_posterior_of_one_number_equals_quadrature() -> None:
    prior = smooth_prior("exp", 1)

    def forward(a: torch.Tensor) -> torch.Tensor:
        return 1 / a[:, None, None, :1]

    data, deviation = torch.tensor([[[0.4]]], dtype=torch.float64), 0.2
    log_likelihood = gaussian_log_likelihood(forward, data, deviation=deviation)
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    weight = (log_likelihood(prior.field(z)) + prior.log_density(z)).exp()
    weight = weight / weight.sum()
    mean = (weight * z[:, 0]).sum()
    variance = (weight * (z[:, 0] - mean).square()).sum()
    reference = gauss_newton(forward, data, prior, deviation=deviation, discrepancy=None)
    for given in (None, reference):
        samples = preconditioned_crank_nicolson(
            log_likelihood, prior, 300, chains=100, reference=given, generator=generator(3)
        )
        error = float((variance / samples.effective_size[0]).sqrt())
        assert abs(float(samples.coefficients.mean() - mean)) < 4 * error
        assert float(samples.coefficients.var()) == pytest.approx(float(variance), rel=0.1)
        expected = log_likelihood(samples.fields()).reshape(100, 300)
        torch.testing.assert_close(samples.log_likelihood, expected)


def test_without_data_every_proposal_is_accepted_at_every_step() -> None:
    prior = smooth_prior()
    samples = preconditioned_crank_nicolson(
        lambda a: torch.zeros(len(a)), prior, 200, chains=40, burn_in=0, step=0.5, generator=generator()
    )
    assert bool((samples.acceptance == 1).all()) and samples.step == 0.5
    # The autocorrelation of z is sqrt(1 - beta^2)^t: n (1 - rho) / (1 + rho) draws are worth as much.
    rho = math.sqrt(0.75)
    assert float(samples.effective_size.mean()) == pytest.approx(8000 * (1 - rho) / (1 + rho), rel=0.25)


def test_the_step_is_adapted_in_the_burn_in_only() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data = forward(prior.field(noise((1, 6), 1)))[0]
    log_likelihood = gaussian_log_likelihood(forward, data, deviation=0.05)
    adapted = preconditioned_crank_nicolson(
        log_likelihood, prior, 100, chains=30, burn_in=150, step=1.0, generator=generator()
    )
    assert 0.15 < float(adapted.acceptance.mean()) < 0.5 and adapted.step < 0.5
    fixed = preconditioned_crank_nicolson(log_likelihood, prior, 20, burn_in=0, step=0.07, generator=generator())
    assert fixed.step == 0.07


def test_a_seed_fixes_the_chains_and_thinning_keeps_some() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data = forward(prior.field(noise((1, 6), 1)))[0]
    log_likelihood = gaussian_log_likelihood(forward, data, deviation=0.1)
    start = noise((3, 6), 5)
    options = {"chains": 3, "burn_in": 10, "start": start}
    first = preconditioned_crank_nicolson(log_likelihood, prior, 40, **options, generator=generator(1))
    again = preconditioned_crank_nicolson(log_likelihood, prior, 40, **options, generator=generator(1))
    thinned = preconditioned_crank_nicolson(log_likelihood, prior, 40, **options, thin=5, generator=generator(1))
    assert torch.equal(first.coefficients, again.coefficients)
    assert torch.equal(thinned.coefficients, first.coefficients[:, 4::5])


def test_chains_that_disagree_say_so() -> None:
    n = 1000
    apart = noise((4, n, 2))
    apart[2, :, 1] += 3  # one chain elsewhere in one coordinate
    r_hat = split_r_hat(apart)
    assert float(r_hat[0]) < 1.01 and float(r_hat[1]) > 1.5
    drifting = noise((4, n, 1)) + torch.linspace(0, 3, n, dtype=torch.float64)[:, None]  # all alike, none at rest
    assert float(split_r_hat(drifting)) > 1.2
    size = effective_size(apart)
    assert float(size[0]) == pytest.approx(4 * n, rel=0.15) and float(size[1]) < 50
    forward, prior = Resistance(), smooth_prior("exp")
    data = forward(prior.field(noise((1, 6), 1)))[0]
    short = preconditioned_crank_nicolson(
        gaussian_log_likelihood(forward, data, deviation=1e-3), prior, 20, burn_in=0, step=0.001, generator=generator()
    )
    assert not short.converged and "the chains disagree" in short.message


def test_effective_size_of_an_autoregression() -> None:
    for rho in (0.5, 0.9, -0.5):
        innovations = math.sqrt(1 - rho**2) * noise((32, 4100, 1), 9).numpy()
        x = torch.from_numpy(lfilter([1.0], [1.0, -rho], innovations, axis=1)[:, 100:].copy())
        expected = 32 * 4000 * (1 - rho) / (1 + rho)
        assert float(effective_size(x)) == pytest.approx(expected, rel=0.2)


def test_bad_input_is_refused_in_a_sentence() -> None:
    forward, prior = Integral(), smooth_prior()
    data = torch.ones(2, 1, 5, dtype=torch.float64)
    log_likelihood = gaussian_log_likelihood(forward, data, deviation=0.1, mask=torch.tensor([True, False]))
    assert float(log_likelihood(prior.mean[None])) == pytest.approx(
        -float(((forward(prior.mean[None])[0, 0] - 1) / 0.1).square().sum()) / 2
    )
    for options, sentence in (
        ({"step": 0.0}, "give a step in"),
        ({"n_steps": 3}, "four draws or more"),
        ({"start": torch.zeros(2, 6)}, "one z a chain"),
        ({"chains": 0}, "chains is 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            preconditioned_crank_nicolson(log_likelihood, prior, **({"n_steps": 10} | options))
    with pytest.raises(ValueError, match="NaN or infinite"):
        gaussian_log_likelihood(forward, data * torch.nan, deviation=0.1)

    def undefined(a: torch.Tensor) -> torch.Tensor:
        return torch.where(a.amax(1) > 0.5, torch.nan, 0.0)

    samples = preconditioned_crank_nicolson(
        undefined, prior, 50, start=torch.full((8, 6), -0.5), step=0.2, generator=generator()
    )
    assert bool((samples.fields().amax(1) <= 0.5).all())
