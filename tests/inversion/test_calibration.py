"""Coverage: right posteriors are calibrated, wrong ones are told."""

from __future__ import annotations

import pytest
import torch
from small_maps import Integral, Resistance, smooth_prior

from opflow.inversion import (
    coverage,
    coverage_curve,
    gauss_newton,
    gaussian_transform,
    interval_coverage,
    preconditioned_crank_nicolson,
    probability_transform,
)


def noise(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_exact_posteriors_are_calibrated_and_wrong_noise_levels_are_not() -> None:
    """Simulation-based calibration of Gauss-Newton on a linear problem: 60 truths of the prior."""
    forward, prior, deviation = Integral(), smooth_prior(), 0.2
    z = noise((60, 6), 1)
    data = forward(prior.field(z)) + deviation * noise((60, 2, 1, 5), 2)
    found = {}
    for assumed in (deviation, deviation / 4):
        estimates = [gauss_newton(forward, row, prior, deviation=assumed, discrepancy=None) for row in data]
        lower, upper = (torch.stack(ends) for ends in zip(*(e.interval(0.9) for e in estimates), strict=True))
        found[assumed] = interval_coverage(lower, upper, prior.field(z), 0.9)
        mean = torch.stack([e.coefficients for e in estimates])
        spread = torch.stack([e.covariance.diagonal().sqrt() for e in estimates])
        transform = gaussian_transform(mean, spread, z)
        if assumed == deviation:
            assert all(c.calibrated for c in coverage_curve(transform, [0.5, 0.8, 0.9, 0.95]))
    assert found[deviation].calibrated and abs(found[deviation].share - 0.9) < 0.08
    assert not found[deviation / 4].calibrated and found[deviation / 4].share < 0.75


def test_sampled_posteriors_of_a_nonlinear_problem_are_calibrated() -> None:
    """Fifty truths of the prior, four chains each, in one run: every chain has data of its own."""
    forward, prior, deviation, n = Resistance(), smooth_prior("exp", 3), 0.15, 50
    z = noise((n, 3), 3)
    data = (forward(prior.field(z)) + deviation * noise((n, 2, 1, 5), 4)).repeat(4, 1, 1, 1)

    def log_likelihood(a: torch.Tensor) -> torch.Tensor:
        return -((forward(a) - data) / deviation).square().flatten(1).sum(1) / 2

    samples = preconditioned_crank_nicolson(
        log_likelihood, prior, 300, burn_in=200, chains=4 * n, generator=torch.Generator().manual_seed(0)
    )
    draws = samples.coefficients.unflatten(0, (4, n)).movedim(0, 1).flatten(1, 2)
    transform = probability_transform(draws, z)
    assert coverage(transform, 0.9).calibrated and coverage(transform, 0.5).calibrated
    too_narrow = probability_transform(draws.mean(1, keepdim=True) + (draws - draws.mean(1, keepdim=True)) / 3, z)
    assert not coverage(too_narrow, 0.9).calibrated


def test_ranks_are_uniform_where_truth_and_draws_are_alike() -> None:
    draws = noise((2000, 9, 2))
    transform = probability_transform(draws[:, 1:], draws[:, 0])
    histogram = torch.histc(transform, 9, 0, 1) / transform.numel()
    assert (histogram - 1 / 9).abs().max() < 0.02
    assert abs(float(transform.mean()) - 0.5) < 0.02


def test_errors_count_simulations_and_not_their_dependent_quantities() -> None:
    inside = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.9).double()
    lower, upper = torch.zeros(400, 50), torch.ones(400, 50)
    truth = (2 - 1.5 * inside)[:, None].expand(400, 50).float()  # all of a simulation, or nothing
    found = interval_coverage(lower, upper, truth, 0.9)
    assert found.share == pytest.approx(float(inside.mean()))
    assert found.error == pytest.approx(found.binomial_error, rel=0.2) and found.n == 400
    assert "90 % intervals hold" in str(found)


def test_bad_input_is_refused_in_a_sentence() -> None:
    ones = torch.ones(3, 2)
    with pytest.raises(ValueError, match="in all three"):
        interval_coverage(ones, ones, torch.ones(3), 0.9)
    with pytest.raises(ValueError, match="a failed inversion has no coverage"):
        interval_coverage(ones, ones * torch.nan, ones, 0.9)
    with pytest.raises(ValueError, match="level is 90"):
        interval_coverage(ones, ones, ones, 90)
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        coverage(2 * ones, 0.9)
    with pytest.raises(ValueError, match=r"give \(n, draws, \.\.\.\)"):
        probability_transform(ones, ones)
