"""MAP estimates of many samples: each equals Gauss-Newton's, and a surrogate's success is confirmed or refuted."""

from __future__ import annotations

import pytest
import torch
from small_maps import Integral, Resistance, gaussian_posterior, smooth_prior

from opflow.inversion import Outcome, gauss_newton, map_estimate


def noise(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_gaussian_means_are_exact() -> None:
    forward, prior = Integral(), smooth_prior()
    data = forward(prior.field(noise((2, 6), 1))) + 0.3 * noise((2, 2, 1, 5), 2)
    for row, estimate in zip(data, map_estimate(forward, data, prior, deviation=0.3, tolerance=1e-9), strict=True):
        mean, _ = gaussian_posterior(forward, row, prior, 0.3)
        assert estimate.reason is Outcome.MINIMUM and estimate.covariance is None
        torch.testing.assert_close(estimate.coefficients, mean, rtol=1e-8, atol=1e-8)


def test_nonlinear_minima_equal_gauss_newton_s() -> None:
    forward, prior, deviation = Resistance(), smooth_prior("exp"), 0.01
    data = forward(prior.field(noise((2, 6), 1))) + deviation * noise((2, 2, 1, 5), 2)
    mask = torch.ones(2, 2, dtype=torch.bool)
    mask[1, 1] = False
    data[1, 1] = torch.nan
    estimates = map_estimate(forward, data, prior, deviation=deviation, mask=mask, max_steps=300, tolerance=1e-5)
    for row, keep, estimate in zip(data, mask, estimates, strict=True):
        exact = gauss_newton(forward, row, prior, deviation=deviation, mask=keep, discrepancy=None)
        assert estimate.succeeded
        torch.testing.assert_close(estimate.coefficients, exact.coefficients, rtol=1e-5, atol=1e-5)
        assert estimate.misfit == pytest.approx(exact.misfit, rel=1e-6)
        assert len(estimate.history) == estimate.steps + 1 and float(estimate.history[-1]) == pytest.approx(
            estimate.misfit
        )


def test_samples_do_not_depend_on_their_neighbours() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data = forward(prior.field(noise((3, 6), 1))) + 0.01 * noise((3, 2, 1, 5), 2)
    together = map_estimate(forward, data, prior, deviation=0.01, max_steps=12)
    for row, estimate in zip(data, together, strict=True):
        (alone,) = map_estimate(forward, row[None], prior, deviation=0.01, max_steps=12)
        torch.testing.assert_close(alone.coefficients, estimate.coefficients, rtol=1e-6, atol=1e-7)
        assert alone.steps == estimate.steps


def test_the_discrepancy_stops_each_sample_at_its_own_time() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    z = noise((3, 6), 1) * torch.tensor([[0.1], [1.0], [1.5]])
    data = forward(prior.field(z)) + 0.01 * noise((3, 2, 1, 5), 2)
    estimates = map_estimate(forward, data, prior, deviation=0.01, discrepancy=1.5)
    assert all(
        e.reason is Outcome.DISCREPANCY and e.misfit <= 1.5 and bool((e.history[:-1] > 1.5).all()) for e in estimates
    )
    assert estimates[0].steps < estimates[2].steps


def test_what_exploits_the_surrogate_is_refuted_for_that_sample_only() -> None:
    forward, prior = Resistance(), smooth_prior("exp", 1)
    calls = []

    def surrogate(a: torch.Tensor) -> torch.Tensor:
        return (
            forward(a) * (1 + 0.3 * torch.relu(a.amax(-1) - 3))[:, None, None, None]
        )  # wrong beyond its training range

    def true(a: torch.Tensor) -> torch.Tensor:
        calls.append(len(a))
        return forward(a)

    z = torch.tensor([[0.4], [1.8]], dtype=torch.float64)
    assert float(prior.field(z[1]).max()) > 3.5 and float(prior.field(z[0]).max()) < 2.5
    data = surrogate(prior.field(z))
    inside, outside = map_estimate(surrogate, data, prior, deviation=0.01, discrepancy=1.0, check=true)
    assert inside.reason is Outcome.DISCREPANCY and inside.checked_misfit == pytest.approx(inside.misfit)
    assert outside.reason is Outcome.REFUTED and outside.checked_misfit > 2 * outside.misfit
    assert calls == [2]


def test_outcomes_and_bad_input_are_told() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data = forward(prior.field(noise((2, 6), 1)))
    assert [e.reason for e in map_estimate(forward, data, prior, deviation=1e-3, max_steps=2)] == [
        Outcome.MAX_STEPS
    ] * 2
    (broken,) = map_estimate(lambda a: forward(a) * torch.nan, data[:1], prior, deviation=1e-3)
    assert broken.reason is Outcome.NAN_OR_INF and broken.steps == 0
    with pytest.raises(ValueError, match=r"give finite coordinates \(2, 6\)"):
        map_estimate(forward, data, prior, deviation=1e-3, start=torch.zeros(6))
    with pytest.raises(ValueError, match="NaN or infinite"):
        map_estimate(forward, data * torch.inf, prior, deviation=1e-3)
    z = torch.stack([gauss_newton(forward, row, prior, deviation=1e-3, discrepancy=None).coefficients for row in data])
    again = map_estimate(forward, data, prior, deviation=1e-3, start=z)
    assert all(e.reason is Outcome.MINIMUM and e.steps <= 2 for e in again)
