"""Positions and values along characteristics: conditions, inversion, and what is said when characteristics cross."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from opflow.layers import MLP
from opflow.models import CharacteristicsCross, LagrangianPINN
from opflow.models.pinn import PINN

PERIOD = 2 * math.pi


class Formula(nn.Module):
    """A branch given by a formula, with a parameter that scales it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * self.function(y)


def inviscid(period: float = PERIOD, start: float = 0.0) -> LagrangianPINN:
    """The exact characteristics of Burgers' equation without viscosity: x = xi + t sin xi, w = sin xi."""
    k = 2 * math.pi / period
    position = Formula(lambda y: torch.sin(k * y[..., 1:]))
    return LagrangianPINN(
        position, Formula(lambda y: 0 * y[..., :1]), lambda x: torch.sin(k * x), period=period, start=start
    )


def random_points(n: int, end: float, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [end, PERIOD]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_values_and_the_period_hold_whatever_the_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = LagrangianPINN.build(
        ((0.5, 2.0), (-1.0, 1.0)), lambda x: torch.cos(math.pi * x), (8, 8), (8,), harmonics=2
    ).to(dtype)
    y = torch.rand(20, 2, dtype=dtype) + torch.tensor([0.5, 0.0], dtype=dtype)
    turned = y + torch.tensor([0.0, 2.0], dtype=dtype)
    for parameter in model.position.network.parameters():
        parameter.data *= 0.1  # an untrained network's characteristics may cross
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (model(turned) - model(y) - torch.tensor([2.0, 0.0], dtype=dtype)).abs().max() < tolerance
    at_start = torch.cat([torch.full_like(y[:, :1], 0.5), y[:, 1:]], 1)
    expected = torch.stack([y[:, 1], torch.cos(math.pi * y[:, 1])], 1)
    assert (model(at_start) - expected).abs().max() < tolerance
    assert model(y).dtype == dtype and model.at(y).shape == (20, 1)


def test_values_at_points_solve_the_implicit_equation() -> None:
    model, y = inviscid(), random_points(500, 0.95)
    y[::3, 1] += 5 * PERIOD
    y[1::3, 1] -= 7 * PERIOD
    w = model.at(y).detach()[:, 0]
    # Burgers without viscosity: w = sin(x - t w).
    assert (w - torch.sin(y[:, 1] - y[:, 0] * w)).abs().max() < 1e-12
    shaped = model.at(y.view(5, 100, 2))
    assert shaped.shape == (5, 100, 1) and torch.allclose(shaped.flatten(), w, rtol=0, atol=1e-14)
    assert model.at(y[:0]).shape == (0, 1)


def test_inversion_in_single_precision_and_close_to_the_shock() -> None:
    y = torch.tensor([[0.9999, math.pi + 1e-3], [0.9999, math.pi], [0.9999, 0.0]], dtype=torch.float64)
    labels = inviscid().labels_at(y)
    assert (labels + y[:, 0] * torch.sin(labels) - y[:, 1]).abs().max() < 1e-13
    single = inviscid().float()
    y32 = random_points(200, 0.9).float()
    assert (single.at(y32).double() - inviscid().at(y32.double())).abs().max() < 1e-4


def test_gradients_of_values_at_points_are_those_of_the_implicit_function() -> None:
    model, y = inviscid(), random_points(7, 0.8)
    scale = model.position.network.scale
    (found,) = torch.autograd.grad(model.at(y).sum(), scale)
    step, sums = 1e-6, []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        moved.position.network.scale.data += sign * step
        sums.append(float(moved.at(y).detach().sum()))
    assert float(found) == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-6)
    points = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.at(points).sum(), points)
    w = model.at(y).detach()[:, 0]
    # w_x = cos(x - t w) / (1 + t cos(x - t w)), w_t = -w w_x
    cosine = torch.cos(y[:, 1] - y[:, 0] * w)
    w_x = cosine / (1 + y[:, 0] * cosine)
    assert torch.allclose(slope[:, 1], w_x, rtol=1e-9) and torch.allclose(slope[:, 0], -w * w_x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_crossing_is_found_where_the_shock_forms(shift: float) -> None:
    model = inviscid(start=shift)
    assert model.first_crossing(shift + torch.linspace(0.1, 0.99, 10)) is None
    crossing = model.first_crossing(shift + torch.linspace(0.1, 1.5, 15))
    assert crossing is not None and crossing.time == pytest.approx(shift + 1.0, abs=1e-4)
    assert crossing.label == pytest.approx(math.pi, abs=0.02) and crossing.position == pytest.approx(math.pi, abs=0.02)
    assert crossing.stretch <= 0 and "cross at t = " in crossing.message and "shock" in crossing.message


def test_values_after_a_crossing_are_refused_with_its_time_and_place() -> None:
    model = inviscid()
    after = torch.tensor([[0.5, 1.0], [1.4, 1.0]], dtype=torch.float64)
    with pytest.raises(CharacteristicsCross, match=r"cross at t = 1, x = 3\.14") as caught:
        model.at(after)
    assert caught.value.crossing.position == pytest.approx(math.pi, abs=0.05)
    assert model.at(after[:1]).isfinite().all()
    crowd = random_points(1000, 1.4)
    with pytest.raises(CharacteristicsCross, match=r"cross at t = "):
        model.at(crowd)


def test_branches_without_the_period_are_refused() -> None:
    periodic = PINN.build(((0.0, 1.0), (0.0, PERIOD)), periodic=(0, 1))
    with pytest.raises(ValueError, match="position has not the period"):
        LagrangianPINN(MLP((2, 8, 1)), periodic, torch.sin, period=PERIOD)
    with pytest.raises(ValueError, match="value has not the period"):
        LagrangianPINN(periodic, MLP((2, 8, 1)), torch.sin, period=PERIOD)
    with pytest.raises(ValueError, match="initial has not the period"):
        LagrangianPINN(periodic, periodic, torch.exp, period=PERIOD)
    with pytest.raises(ValueError, match="one number a point"):
        two = PINN.build(((0.0, 1.0), (0.0, PERIOD)), 2, periodic=(0, 1))
        LagrangianPINN(periodic, two, torch.sin, period=PERIOD)
    with pytest.raises(ValueError, match="period is -1"):
        LagrangianPINN(periodic, periodic, torch.sin, period=-1)
