"""Gauss-Newton: exact where the posterior is Gaussian, honest where it is not."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from small_maps import Integral, Resistance, gaussian_posterior, smooth_prior

from opflow.inversion import GaussianPrior, Outcome, gauss_newton


def noise(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observed(forward, link: str, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    prior = smooth_prior(link)
    z = noise(6, 1)
    return forward(prior.field(z)[None])[0] + deviation * noise((2, 1, 5), 2), z


def test_linear_gaussian_posterior_is_exact() -> None:
    forward, prior = Integral(), smooth_prior()
    data, _ = observed(forward, "identity", 0.02)
    mean, covariance = gaussian_posterior(forward, data, prior, 0.02)
    estimate = gauss_newton(forward, data, prior, deviation=0.02, discrepancy=None)
    assert estimate.reason is Outcome.MINIMUM and estimate.steps == 1 and estimate.succeeded
    torch.testing.assert_close(estimate.coefficients, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(estimate.covariance, covariance, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(estimate.field, prior.field(mean), rtol=1e-8, atol=1e-8)
    variance = torch.einsum("jx,jk,kx->x", prior.modes, covariance, prior.modes)
    torch.testing.assert_close(estimate.deviation, variance.sqrt(), rtol=1e-8, atol=1e-8)
    residual = (forward(prior.field(mean)[None])[0] - data) / 0.02
    assert estimate.misfit == pytest.approx(float(residual.square().mean().sqrt()), rel=1e-8)


def test_deviations_weigh_each_number_and_masks_leave_some_out() -> None:
    forward, prior = Integral(), smooth_prior()
    data, _ = observed(forward, "identity", 0.02)
    deviation = 0.01 + 0.1 * noise((2, 1, 5), 5).abs()
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    mask[0, 0, 2] = mask[1, 0, 4] = False
    broken = torch.where(mask, data, torch.nan)
    estimate = gauss_newton(forward, broken, prior, deviation=deviation, mask=mask, discrepancy=None)
    G = torch.einsum("lcsx,kx->lcsk", forward.matrix, prior.modes)[mask] / deviation[mask][:, None]
    d = ((data - forward(prior.mean[None])[0]) / deviation)[mask]
    covariance = torch.linalg.inv(G.T @ G + torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(estimate.coefficients, covariance @ G.T @ d, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(estimate.covariance, covariance, rtol=1e-8, atol=1e-8)
    # A mask of measurements equals the same mask number by number.
    first = torch.tensor([True, False])
    by_measurement = gauss_newton(forward, data, prior, deviation=0.02, mask=first, discrepancy=None)
    by_number = gauss_newton(
        forward, data, prior, deviation=0.02, mask=first[:, None, None].expand(2, 1, 5), discrepancy=None
    )
    assert torch.equal(by_measurement.coefficients, by_number.coefficients)


class WithoutDerivative:
    """The same map, which automatic differentiation has to derive."""

    def __init__(self, forward: Resistance) -> None:
        self.forward = forward

    def __call__(self, a: torch.Tensor) -> torch.Tensor:
        return self.forward(a)


def test_nonlinear_minimum_equals_a_general_optimiser_s() -> None:
    forward, prior, deviation = Resistance(), smooth_prior("exp"), 0.01
    data, _ = observed(forward, "exp", deviation)

    def objective(z) -> tuple[float, object]:
        z = torch.tensor(z, requires_grad=True)
        value = ((forward(prior.field(z)[None])[0] - data) / deviation).square().sum() / 2 + z.square().sum() / 2
        value.backward()
        return value.item(), z.grad.numpy()

    best = minimize(objective, torch.zeros(6).double().numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
    estimate = gauss_newton(forward, data, prior, deviation=deviation, discrepancy=None)
    assert estimate.reason is Outcome.MINIMUM and forward.linearisations == estimate.steps + 1
    torch.testing.assert_close(estimate.coefficients, torch.from_numpy(best.x), rtol=1e-5, atol=1e-6)
    # Automatic differentiation of the same map, here in three batches of rows, gives the same answer.
    other = gauss_newton(WithoutDerivative(forward), data, prior, deviation=deviation, discrepancy=None)
    torch.testing.assert_close(other.coefficients, estimate.coefficients, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(other.covariance, estimate.covariance, rtol=1e-6, atol=1e-9)
    assert bool((estimate.history.diff()[1:] < 1e-3).all())


def test_rows_are_differentiated_in_batches_of_any_length() -> None:
    prior = smooth_prior("exp")
    matrix = noise((2, 1, 41, 33), 7)

    def forward(a: torch.Tensor) -> torch.Tensor:
        return torch.einsum("lcsx,nx->nlcs", matrix, a.square())

    data = forward(prior.field(noise(6, 1))[None])[0]
    estimate = gauss_newton(forward, data, prior, deviation=0.1, discrepancy=None, max_steps=50)
    J = torch.func.jacfwd(lambda z: forward(prior.field(z)[None])[0].flatten())(estimate.coefficients) / 0.1
    torch.testing.assert_close(
        estimate.covariance, torch.linalg.inv(J.T @ J + torch.eye(6, dtype=torch.float64)), rtol=1e-8, atol=1e-12
    )


def test_damping_saves_a_start_from_which_full_steps_diverge() -> None:
    prior = smooth_prior("identity", 1)  # one number z, a = 0.3 + z

    def forward(a: torch.Tensor) -> torch.Tensor:
        return torch.atan(4 * a[:, None, None, :1])

    data = torch.atan(torch.tensor([[[1.2]]], dtype=torch.float64))
    start = torch.tensor([3.0], dtype=torch.float64)
    estimate = gauss_newton(forward, data, prior, deviation=1e-3, discrepancy=None, start=start, max_steps=60)
    assert estimate.reason is Outcome.MINIMUM
    assert float(estimate.field[0]) == pytest.approx(0.3, abs=1e-3)
    objective = estimate.history
    assert bool((objective.diff() <= 1e-9).all())


def test_a_step_whose_field_overflows_is_shortened() -> None:
    """From a flat start the full step is exp(1500); a forward map that refuses what is not finite never sees it."""

    def forward(a: torch.Tensor) -> torch.Tensor:
        if not bool(a.isfinite().all()):
            raise ValueError("not finite")
        return (a / (1 + a))[:, None, None]

    prior = GaussianPrior(torch.zeros(1), torch.ones(1, 1), "exp")
    estimate = gauss_newton(
        forward,
        torch.full((1, 1, 1), 0.5),
        prior,
        deviation=1e-6,
        discrepancy=None,
        start=torch.tensor([-8.0]),
        max_steps=60,
    )
    assert estimate.succeeded and float(estimate.field) == pytest.approx(1, abs=1e-4)


def test_the_discrepancy_principle_stops_at_the_noise() -> None:
    forward, prior, deviation = Resistance(), smooth_prior("exp"), 0.01
    data, _ = observed(forward, "exp", deviation)
    estimate = gauss_newton(forward, data, prior, deviation=deviation, discrepancy=1.2)
    assert estimate.reason is Outcome.DISCREPANCY and estimate.misfit <= 1.2
    assert bool((estimate.history[:-1] > 1.2).all())
    further = gauss_newton(forward, data, prior, deviation=deviation, discrepancy=None)
    assert further.steps > estimate.steps


def test_steps_run_out_in_a_sentence() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data, _ = observed(forward, "exp", 0.001)
    estimate = gauss_newton(forward, data, prior, deviation=0.001, discrepancy=None, max_steps=1)
    assert estimate.reason is Outcome.MAX_STEPS and not estimate.succeeded
    assert estimate.steps == 1 and "raise max_steps" in estimate.message


def test_a_wrong_derivative_is_noticed() -> None:
    class Wrong(Resistance):
        def linearise(self, a: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            data, jacobian = super().linearise(a, directions)
            return data, -jacobian

    forward, prior = Wrong(), smooth_prior("exp")
    data, _ = observed(forward, "exp", 0.01)
    estimate = gauss_newton(forward, data, prior, deviation=0.01, discrepancy=None)
    assert estimate.reason is Outcome.STAGNATED and not estimate.succeeded


def test_a_surrogate_s_success_is_checked_by_the_true_map() -> None:
    forward, prior = Resistance(), smooth_prior("exp")
    data, _ = observed(forward, "exp", 0.01)

    class Surrogate(Resistance):
        def __call__(self, a: torch.Tensor) -> torch.Tensor:
            return super().__call__(a) + 0.1

    estimate = gauss_newton(Surrogate(), data + 0.1, prior, deviation=0.01, check=forward)
    assert estimate.misfit <= 1 and estimate.checked_misfit > 5
    assert estimate.reason is Outcome.REFUTED and "by the checking map" in estimate.message
    honest = gauss_newton(forward, data, prior, deviation=0.01, check=WithoutDerivative(forward))
    assert honest.reason is Outcome.DISCREPANCY and honest.checked_misfit == honest.misfit


def test_bad_input_is_refused_in_a_sentence() -> None:
    forward, prior = Integral(), smooth_prior()
    data = torch.ones(2, 1, 5, dtype=torch.float64)
    hole = data.clone()
    hole[1, 0, 3] = torch.nan
    for arguments, sentence in (
        ({"data": hole}, "1 of the measured numbers are NaN"),
        ({"deviation": 0.0}, "deviation is not positive"),
        ({"deviation": torch.ones(7)}, "does not broadcast"),
        ({"mask": torch.tensor([True, True, False])}, "give a bool for each measurement"),
        ({"mask": torch.tensor([False, False])}, "nothing measured"),
        ({"start": torch.zeros(5)}, "give 6 finite coordinates"),
        ({"data": torch.ones(3, 1, 5)}, r"returned \(1, 2, 1, 5\) but the data are \(1, 3, 1, 5\)"),
    ):
        given = {"data": data, "deviation": 0.1} | arguments
        with pytest.raises(ValueError, match=sentence):
            gauss_newton(forward, given.pop("data"), prior, **given)
    with pytest.raises(ValueError, match="has no covariance"):
        broken = gauss_newton(lambda a: forward(a) * torch.nan, data, prior, deviation=0.1)
        assert broken.reason is Outcome.NAN_OR_INF
        broken.interval()
