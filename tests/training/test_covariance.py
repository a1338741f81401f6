"""Standard errors: closed forms of linear regression, Monte Carlo of a penalised fit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opflow import Batch
from opflow.losses import DataMisfit, PDEResidual, Unknown, mean_squared_error
from opflow.models import PINN
from opflow.pde import AutogradDerivatives
from opflow.training import LevenbergMarquardt, fit, gauss_newton_covariance


class Polynomial(nn.Module):
    """u(x) = sum_k c_k x^k: a network that is linear in its weights."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.c = nn.Linear(degree + 1, 1, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([x**k for k in range(self.degree + 1)], -1))


def line(n: int = 40) -> Tensor:
    return torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]


def test_linear_regression_has_its_closed_form() -> None:
    """y = a x: variance s^2 / sum x^2, with s estimated from n - 1 degrees of freedom; a common weight changes nothing."""
    x = line()
    y = 2 * x + 0.1 * torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_((x * y).sum() / x.square().sum())
    misfit, batch = DataMisfit(mean_squared_error), Batch(coords=x, target=y)
    s = float((model(x) - y).detach().square().sum() / 39) ** 0.5
    for loss in (misfit, 7.0 * misfit):
        found = gauss_newton_covariance(model, loss, batch, [model.weight], data=[misfit])
        assert found.noise == pytest.approx(s) and found.effective_parameters == pytest.approx(1)
        assert float(found.standard_errors) == pytest.approx(s / float(x.square().sum()) ** 0.5)
        assert float(found.remaining.abs()) < 1e-12
    known = gauss_newton_covariance(model, misfit, batch, [model.weight], data=[misfit], noise=0.1)
    assert float(known.standard_errors) == pytest.approx(0.1 / float(x.square().sum()) ** 0.5)
    with torch.no_grad():
        model.weight += 0.5
    moved = gauss_newton_covariance(model, misfit, batch, [model.weight], data=[misfit])
    assert float(moved.remaining) == pytest.approx(-0.5), "a linear problem is solved by the remaining step"


def test_a_penalty_is_no_observation() -> None:
    """mean (a x - y)^2 + w a^2: variance (s^2 / n) m / (m + w)^2 with m = mean x^2, below the curvature's (s^2 / n) / (m + w)."""
    x, w = line(), 0.5
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    misfit, penalty = DataMisfit(mean_squared_error, on="data"), DataMisfit(mean_squared_error, name="size", on="ridge")
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = {"data": Batch(coords=x, target=x), "ridge": Batch(coords=one, target=0 * one)}
    found = gauss_newton_covariance(model, misfit + w * penalty, batch, [model.weight], data=[misfit], noise=0.1)
    m = float(x.square().mean())
    assert float(found.matrix) == pytest.approx(0.1**2 / 40 * m / (m + w) ** 2)
    assert found.effective_parameters == pytest.approx(m / (m + w))


def decay() -> tuple[nn.Module, PDEResidual, DataMisfit, dict[str, Unknown]]:
    """u' + k u = 0 for a polynomial of degree 5."""

    class Decay:
        coordinates, unknowns, rate = ("x",), ("u",), 1.0

        def residual(self, u, a):
            return {"decay": u.d("x") + self.rate * u["u"].value[..., None]}

    unknowns = {"rate": Unknown(1.0)}
    residual = PDEResidual(Decay(), AutogradDerivatives(method="taylor"), unknowns, on="interior")
    return Polynomial(5), residual, DataMisfit(mean_squared_error, on="data"), unknowns


def test_a_penalised_fit_scatters_as_it_says() -> None:
    """The rate of a decay from 40 noisy values: 40 draws scatter by the standard error."""
    x, k, noise = line(), 0.7, 0.01
    generator, found, errors = torch.Generator().manual_seed(1), [], []
    for _ in range(40):
        model, residual, misfit, unknowns = decay()
        loss = misfit + 1e-4 * residual
        y = torch.exp(-k * x) + noise * torch.randn(40, 1, dtype=torch.float64, generator=generator)
        batch = {"data": Batch(coords=x, target=y), "interior": Batch(coords=line(30))}
        optimizer = LevenbergMarquardt([*model.parameters(), *loss.parameters()])
        for _ in fit(model, loss, [batch], optimizer, epochs=6):
            pass
        covariance = gauss_newton_covariance(model, loss, batch, [unknowns["rate"].raw], data=[misfit])
        assert float(covariance.remaining.abs()) < 0.05 * float(covariance.standard_errors)
        found.append(unknowns["rate"].value)
        errors.append(float(covariance.standard_errors))
    scatter = torch.tensor(found, dtype=torch.float64)
    assert float(scatter.std()) == pytest.approx(sum(errors) / 40, rel=0.33)  # known to 11 % from 40 draws
    inside = ((scatter - k).abs() < 2 * torch.tensor(errors)).double().mean()
    assert inside >= 0.88, "about 95 % lie within two standard errors"


def test_weights_of_a_network_are_marginalised() -> None:
    """The error of an offset beside a network that can imitate it is infinite for a free network, finite for a penalised one."""
    torch.manual_seed(0)
    model = PINN.build(((-1.0, 1.0),), hidden=(4,)).double()
    unknown = Unknown(0.1)

    class Slope:
        coordinates, unknowns, slope = ("x",), ("u",), 1.0

        def residual(self, u, a):
            return {"slope": u.d("x")[..., 0] - self.slope}

    penalty = PDEResidual(Slope(), AutogradDerivatives(method="taylor"), {"slope": unknown}, on="interior")
    misfit = DataMisfit(mean_squared_error, on="data")
    batch = {"data": Batch(coords=line(), target=line()), "interior": Batch(coords=line(30))}
    strong, weak = (
        gauss_newton_covariance(model, misfit + w * penalty, batch, [unknown.raw], data=[misfit], noise=1.0)
        for w in (1e2, 1e-4)
    )
    straight = 1 / float((line() - line().mean()).square().sum()) ** 0.5
    assert straight < float(strong.standard_errors) < float(weak.standard_errors)
    assert 1.5 < strong.effective_parameters < weak.effective_parameters < 13


def test_what_cannot_be_told_is_refused_in_a_sentence() -> None:
    model, misfit = Polynomial(5), DataMisfit(mean_squared_error)
    few, batch = Batch(coords=line(6), target=line(6)), Batch(coords=line(), target=line())
    with pytest.raises(ValueError, match=r"wanted parameter has shape .* give single numbers"):
        gauss_newton_covariance(model, misfit, batch, [model.c.weight], data=[misfit])
    coefficient = nn.Parameter(torch.zeros((), dtype=torch.float64))
    with pytest.raises(ValueError, match="is none of those"):
        gauss_newton_covariance(model, misfit, batch, [coefficient], data=[misfit])
    one = Polynomial(0)
    with pytest.raises(ValueError, match="no parameter is wanted"):
        gauss_newton_covariance(one, misfit, batch, [], data=[misfit])
    for data in ([], [DataMisfit(mean_squared_error)]):
        with pytest.raises(ValueError, match="no part of the loss"):
            gauss_newton_covariance(one, misfit, batch, [one.c.weight], data=data)
    plain = DataMisfit(lambda prediction, target, weight: (prediction - target).square().mean())
    with pytest.raises(ValueError, match="only for means of squares"):
        gauss_newton_covariance(one, plain, batch, [one.c.weight], data=[plain])
    free, residual, misfit, unknowns = decay()
    batch = {"data": few, "interior": Batch(coords=line(30))}
    with pytest.raises(ValueError, match=r"6\.0 of 6 degrees of freedom .* give noise="):
        gauss_newton_covariance(
            free, misfit + 1e-12 * residual, batch, [unknowns["rate"].raw], data=[misfit], rcond=1e-13
        )
