"""Conditions vanish on exact solutions and nowhere else, and a loss counts them as mean squares."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses import ConditionResidual, total
from opflow.pde import (
    AutogradDerivatives,
    Ball,
    Box,
    Condition,
    Dirichlet,
    Disc,
    Initial,
    Interval,
    Neumann,
    Periodic,
    Robin,
    SpaceTime,
    boundary_batch,
    initial_batch,
)

TX = ("t", "x")
DOMAIN = SpaceTime((0, 1), Interval(-1, 1))
METHODS = ("reverse", "taylor")


class Wave(nn.Module):
    """u = cos(pi t) sin(pi x) + error * (t^2 + t + x^3): a wave of period 2 in x, and what spoils it."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        t, x = y[..., :1], y[..., 1:2]
        return (math.pi * t).cos() * (math.pi * x).sin() + self.error * (t * t + t + x * x * x)


CASES: dict[str, tuple[Condition, Batch]] = {
    "dirichlet": (Dirichlet(0.0), boundary_batch(DOMAIN, 32)),
    # The normals point outwards at both ends: du/dn = -pi cos(pi t) at x = 1 and pi cos(pi t) at x = -1.
    "neumann": (Neumann(lambda y: -math.pi * (math.pi * y[:, 0]).cos() * y[:, 1]), boundary_batch(DOMAIN, 32)),
    "robin": (
        Robin(lambda y: 2 + y[:, 0], 3.0, lambda y: -3 * math.pi * (math.pi * y[:, 0]).cos() * y[:, 1]),
        boundary_batch(DOMAIN, 32),
    ),
    "periodic": (
        Periodic("x", (0, 2), orders=(0, 1, 2)),
        boundary_batch(DOMAIN, 16, where=lambda points, normals: normals[:, 1] < 0),
    ),
    "initial": (Initial(lambda y: (math.pi * y[:, 1]).sin()), initial_batch(DOMAIN, 32)),
    "initial velocity": (Initial(0.0, order=1), initial_batch(DOMAIN, 32)),
}


def value_of(condition: Condition, derivatives: AutogradDerivatives, model, batch: Batch) -> float:
    return float(total(ConditionResidual(condition, derivatives)(model, batch)).detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_residuals_vanish_on_the_exact_solution_only(name: str, method: str) -> None:
    condition, batch = CASES[name]
    loss = ConditionResidual(condition, AutogradDerivatives(TX, method=method))
    assert loss.residuals(Wave(), batch).abs().max() < 1e-13
    spoilt = Wave(0.1)
    ((term, value),) = loss(spoilt, batch).items()
    assert term == condition.kind and float(value.detach()) > 1e-4
    residuals = loss.residuals(spoilt, batch)
    assert residuals.ndim == 1 and float(residuals.detach().square().sum()) == pytest.approx(
        float(value.detach()), rel=1e-12
    )
    value.backward()
    assert float(spoilt.error.grad) > 0


@pytest.mark.parametrize("method", METHODS)
def test_fluxes_through_curved_boundaries(method: str) -> None:
    ball = Ball((0, 0, 0), 2.0)
    batch = boundary_batch(ball, 100)
    derivatives = AutogradDerivatives(method=method)
    # u = |y|^2: du/dn = 2 R on a sphere.
    model = lambda y: (y * y)[..., :1] + (y * y)[..., 1:2] + (y * y)[..., 2:]  # noqa: E731
    assert value_of(Neumann(4.0), derivatives, model, batch) < 1e-25
    assert value_of(Robin(1.0, -1.0, 0.0), derivatives, model, batch) < 1e-25
    assert value_of(Robin(1.0, 1.0, 0.0), derivatives, model, batch) == pytest.approx(64)


def test_one_unknown_of_several() -> None:
    derivatives = AutogradDerivatives(TX, names=("velocity", "pressure"))
    model = lambda y: torch.cat([y[..., :1] * y[..., 1:], 5 + 0 * y[..., :1]], -1)  # noqa: E731
    batch = boundary_batch(DOMAIN, 8)
    assert value_of(Dirichlet(5.0, unknown="pressure"), derivatives, model, batch) < 1e-25
    assert value_of(Neumann(0.0, unknown="pressure"), derivatives, model, batch) < 1e-25
    flux = Neumann(lambda y: y[:, 0] * y[:, 1], unknown="velocity")
    assert value_of(flux, derivatives, model, batch) < 1e-25
    both = Dirichlet(lambda y: torch.stack([y[:, 0] * y[:, 1], torch.full_like(y[:, 0], 7.0)], 1))
    assert value_of(both, derivatives, model, batch) == pytest.approx(2.0)
    same = Periodic("x", (0, 2), unknown="pressure")
    assert value_of(same, derivatives, model, batch) < 1e-25
    with pytest.raises(KeyError, match="no component is called 'density'"):
        ConditionResidual(Dirichlet(unknown="density"), derivatives)(model, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_numbers_tensors_functions_or_targets(dtype: torch.dtype) -> None:
    coords = torch.linspace(0, 1, 5, dtype=dtype)[:, None]
    model, derivatives = (lambda y: 2 * y), AutogradDerivatives()
    for value in (coords[:, 0] * 2, coords * 2, lambda y: 2 * y, lambda y: 2 * y[:, 0], coords.double() * 2):
        term = ConditionResidual(Dirichlet(value), derivatives)(model, Batch(coords=coords.clone()))["dirichlet"]
        assert term.dtype == dtype and term < 1e-12
    batch = Batch(coords=coords.clone(), target=2 * coords + 3)
    assert value_of(Dirichlet(None), derivatives, model, batch) == pytest.approx(9)
    with pytest.raises(ValueError, match=r"batch.target"):
        ConditionResidual(Dirichlet(None), derivatives)(model, Batch(coords=coords.clone()))
    with pytest.raises(ValueError, match=r"has shape .*different points"):
        ConditionResidual(Dirichlet(torch.zeros(4)), derivatives)(model, Batch(coords=coords.clone()))
    with pytest.raises(ValueError, match=r"has shape .*different points"):
        ConditionResidual(Dirichlet(torch.zeros(1, 5)), derivatives)(model, Batch(coords=coords.clone()))


def test_an_unknown_boundary_value_is_learned() -> None:
    level = nn.Parameter(torch.tensor(1.0))
    loss = ConditionResidual(Dirichlet(lambda y: level * torch.ones_like(y[:, 0])), AutogradDerivatives())
    loss(lambda y: 3 + 0 * y, Batch(coords=torch.rand(4, 1)))["dirichlet"].backward()
    assert float(level.grad) == pytest.approx(-4)


def test_weights_count_point_by_point() -> None:
    coords = torch.arange(4.0)[:, None]
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0])
    # As many orders and channels as points: a weight must not slip onto the wrong axis.
    for condition in (Dirichlet(0.0), Periodic("x", (1.0,), orders=(0, 1, 2, 3))):
        loss = ConditionResidual(condition, AutogradDerivatives())
        model = lambda y: y**3  # noqa: E731
        batch = Batch(coords=coords, weight=weight)
        parts = [loss(model, Batch(coords=coords[i : i + 1].detach().clone())) for i in range(4)]
        expected = sum(float(w) * float(total(part).detach()) for w, part in zip(weight, parts, strict=True)) / 4
        assert float(total(loss(model, batch)).detach()) == pytest.approx(expected)
        assert float(loss.residuals(model, batch).detach().square().sum()) == pytest.approx(expected)
        with pytest.raises(ValueError, match="one weight a point"):
            loss(model, Batch(coords=coords, weight=torch.ones(3)))


@pytest.mark.parametrize("method", METHODS)
def test_operators_have_conditions_sample_by_sample(method: str) -> None:
    """u_a(x) = a x for a batch of slopes a: DeepONet's way of calling."""
    slopes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    coords = points if method == "taylor" else points.expand(3, 2, 1).clone()
    normal = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    batch = Batch(input=slopes, coords=coords, parameters={"normal": normal})
    model = lambda a, y: a[:, None, None] * y  # noqa: E731
    derivatives = AutogradDerivatives(method=method)
    assert value_of(Neumann(0.0), derivatives, model, batch) == pytest.approx(14 / 3)
    target = slopes[:, None, None] * points
    known = Batch(input=slopes, coords=coords, target=target)
    assert value_of(Dirichlet(None), derivatives, model, known) < 1e-25
    end = Batch(input=slopes, coords=coords.detach()[..., 1:, :].clone())
    assert value_of(Periodic("x", (1.0,), orders=(0,)), derivatives, model, end) == pytest.approx(14 / 3)


def test_images_are_the_same_tensor_for_the_same_points() -> None:
    condition = Periodic("x", (0, 2))
    first, second = boundary_batch(DOMAIN, 4), boundary_batch(DOMAIN, 4)
    pair = condition.points_for(first).coords
    assert condition.points_for(first).coords is pair and pair.shape == (8, 2)
    assert torch.equal(pair[4:] - pair[:4], torch.tensor([0.0, 2.0], dtype=torch.float64).expand(4, 2))
    assert condition.points_for(second).coords is not pair


def test_conditions_outside_the_domain_are_refused() -> None:
    derivatives = AutogradDerivatives()
    loss = ConditionResidual(Dirichlet(0.0), derivatives, geometry=Disc(), name="wall")
    loss(lambda y: y[..., :1], boundary_batch(Disc(), 10))
    outside = Batch(coords=torch.tensor([[0.0, 1.0], [0.8, 0.8]]))
    with pytest.raises(ValueError, match=r"point of 'wall' 1 at \(0.8, 0.8\) lies outside the domain Disc"):
        loss(lambda y: y[..., :1], outside)
    first = ConditionResidual(Initial(0.0), AutogradDerivatives(TX), geometry=DOMAIN)
    first(Wave(), initial_batch(DOMAIN, 10))
    with pytest.raises(ValueError, match=r"point 1 of the initial condition 'initial' is at \[0.5, 0.25\]"):
        first(Wave(), Batch(coords=torch.tensor([[0.0, 0.0], [0.5, 0.25]])))
    with pytest.raises(TypeError, match="without time"):
        ConditionResidual(Initial(0.0), derivatives, geometry=Box([(0, 1)]))


def test_points_moved_in_place_are_looked_at_again() -> None:
    loss = ConditionResidual(Dirichlet(0.0), AutogradDerivatives(), geometry=Interval(0, 1))
    batch = Batch(coords=torch.tensor([[0.0], [1.0]]))
    loss(lambda y: y, batch)
    with torch.no_grad():
        batch.coords.add_(1)
    with pytest.raises(ValueError, match="point of 'dirichlet' 1"):
        loss(lambda y: y, batch)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ConditionResidual(0.0, AutogradDerivatives()), TypeError, "condition is float"),
        (lambda: ConditionResidual(Dirichlet(), None), TypeError, "derivatives is NoneType"),
        (lambda: Robin(None, 1.0), ValueError, "alpha is None"),
        (lambda: Periodic("t", (1, 0)), ValueError, "one coordinate of space"),
        (lambda: Periodic("x", (0, 0)), ValueError, "give the period"),
        (lambda: Periodic("x", (0, 2), orders=()), ValueError, "orders are"),
        (lambda: Periodic("x", (0, 2), orders=(-1,)), ValueError, "orders are"),
        (lambda: Initial(order=-1), ValueError, "order is -1"),
        (lambda: Periodic("x", (2,)).points_for(boundary_batch(DOMAIN, 2)), ValueError, "shift has 1 numbers"),
        (lambda: _evaluate(Neumann(), Batch(coords=torch.rand(3, 1))), ValueError, "needs normals"),
        (
            lambda: _evaluate(Neumann(), Batch(coords=torch.rand(3, 1), parameters={"normal": torch.ones(3, 2)})),
            ValueError,
            "normals have 2 columns",
        ),
        (lambda: _evaluate(Dirichlet(), Batch()), ValueError, "has no coords"),
        (lambda: _evaluate(Dirichlet(), Batch(coords=torch.zeros(0, 1))), ValueError, "has no points"),
        (lambda: _evaluate(Initial(order=1), Batch(coords=torch.rand(3, 1))), ValueError, "'t'"),
    ],
)
def test_refusals(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def _evaluate(condition: Condition, batch: Batch) -> None:
    ConditionResidual(condition, AutogradDerivatives())(lambda y: y, batch)
