"""The Jacobian of residuals: equal to the one row by row for every kind of loss, and the way that was taken."""

import pytest
import torch
from small_run import square
from torch import nn

from opflow.batch import Batch
from opflow.layers.hard_constraint import HardConstraint
from opflow.losses.condition import ConditionResidual
from opflow.losses.misfit import DataMisfit
from opflow.losses.objective import Objective
from opflow.losses.residual import PDEResidual
from opflow.losses.unknown import Unknown
from opflow.pde.boundary import Dirichlet
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.problems.burgers import Burgers
from opflow.training import jacobian as module
from opflow.training.jacobian import LeastSquares, jacobian


def network(channels: int = 1, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, channels)).to(dtype)


def points(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))


def row_by_row(loss, model, batch, parameters) -> torch.Tensor:
    residuals = loss.residuals(model, batch)
    rows = []
    for r in residuals:
        gradients = torch.autograd.grad(r, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                    for p, g in zip(parameters, gradients, strict=True)
                ]
            )
        )
    return torch.stack(rows)


@pytest.fixture
def ways(monkeypatch) -> list[str]:
    """Which ways of forming J were tried, in order."""
    taken: list[str] = []
    for name in ("_from_recorded_maps", "_from_weights_at_points", "_by_rows"):
        real = getattr(module, name)

        def spy(*arguments, name=name, real=real):
            taken.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, spy)
    return taken


def two_equations(u, a):
    return {
        "mass": (u.d("t") + u.d("x")).sum(-1) + u["a"].value.reshape(-1),
        "energy": u["b"].d("xx").reshape(-1) - u["b"].value.reshape(-1) ** 2,
    }


@pytest.mark.parametrize("method", ["reverse", "taylor"])
@pytest.mark.parametrize("equation", ["one", "two"])
def test_residuals_at_points(method, equation, ways) -> None:
    if equation == "one":
        model = HardConstraint(network(), lambda y: y[..., 1:].sin(), lambda y: y[..., :1], conditions=("initial",))
        loss = PDEResidual(Burgers(0.01), AutogradDerivatives(("t", "x"), ("velocity",), method))
    else:
        model, loss = network(2), PDEResidual(two_equations, AutogradDerivatives(("t", "x"), ("a", "b"), method))
    batch, parameters = Batch(coords=points(11)), list(model.parameters())
    r, j = jacobian(loss, model, batch, parameters)
    expected = row_by_row(loss, model, batch, parameters)
    assert torch.allclose(j, expected, atol=1e-12 * float(expected.abs().max()))
    assert torch.equal(r, loss.residuals(model, batch).detach())
    assert "_by_rows" not in ways
    assert not j.requires_grad
    if method == "taylor":
        assert ways == ["_from_recorded_maps"]


def test_an_unknown_coefficient_a_condition_and_data_together(ways) -> None:
    derivatives = AutogradDerivatives(("t", "x"), ("velocity",))
    equation = PDEResidual(Burgers(0.01), derivatives, {"viscosity": Unknown(0.05, positive=True)}, on="interior")
    boundary = ConditionResidual(Dirichlet(0.5), derivatives, on="boundary")
    loss = (0.3 * equation + 4.0 * boundary + 2.0 * DataMisfit(square, on="data")).double()
    model = network()
    batch = {
        "interior": Batch(coords=points(9)),
        "boundary": Batch(coords=points(5)),
        "data": Batch(coords=points(6), target=torch.ones(6, 1, dtype=torch.float64)),
    }
    parameters = [*loss.parameters(), *model.parameters()]
    r, j = jacobian(loss, model, batch, parameters)
    expected = row_by_row(loss, model, batch, parameters)
    assert torch.allclose(r, loss.residuals(model, batch).detach(), atol=1e-14)
    assert torch.allclose(j, expected, atol=1e-12 * float(expected.abs().max()))
    assert "_by_rows" not in ways


def test_several_channels_sorted_by_point(ways) -> None:
    model, batch = network(3), Batch(coords=points(8), target=torch.zeros(8, 3, dtype=torch.float64))
    loss, parameters = DataMisfit(square), list(model.parameters())
    _, j = jacobian(loss, model, batch, parameters)
    assert torch.allclose(j, row_by_row(loss, model, batch, parameters), atol=1e-13)
    assert "_by_rows" not in ways


class Coupled(Objective):
    """Differences of neighbours: as many residuals as points, but each hangs on two of them."""

    def residuals(self, model, batch):
        u = model(batch.coords)[:, 0]
        return u - u.roll(1).square()


class Normalised(nn.Module):
    """A network that looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, y):
        u = self.network(y)
        return u - u.mean(0)


@pytest.mark.parametrize(
    ("model", "loss"), [(network(), Coupled()), (Normalised(), DataMisfit(square))], ids=["residual", "model"]
)
def test_residuals_that_hang_on_several_points_are_taken_row_by_row(model, loss, ways) -> None:
    batch, parameters = Batch(coords=points(7), target=torch.zeros(7, 1, dtype=torch.float64)), list(model.parameters())
    _, j = jacobian(loss, model, batch, parameters)
    assert torch.allclose(j, row_by_row(loss, model, batch, parameters), atol=1e-13)
    assert ways[-1] == "_by_rows"


def test_fields_instead_of_points_and_more_rows_than_one_chunk(ways) -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64)
    batch = Batch(input=torch.randn(5, 1, 20, dtype=torch.float64), target=torch.zeros(5, 1, 20, dtype=torch.float64))
    loss, parameters = DataMisfit(square), list(model.parameters())
    _, j = jacobian(loss, model, batch, parameters)
    assert torch.allclose(j, row_by_row(loss, model, batch, parameters), atol=1e-13)
    assert ways == ["_by_rows"]


def test_a_parameter_that_nothing_depends_on_and_only_some_of_the_model() -> None:
    model, idle = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    batch = Batch(coords=points(6), target=torch.zeros(6, 1, dtype=torch.float64))
    parameters = [model[2].weight, idle, model[4].bias]
    _, j = jacobian(DataMisfit(square), model, batch, parameters)
    assert torch.allclose(j, row_by_row(DataMisfit(square), model, batch, parameters), atol=1e-13)
    assert j[:, 42:44].abs().max() == 0


def test_float32_is_recognised_too(ways) -> None:
    model, batch = network(dtype=torch.float32), Batch(coords=points(30, torch.float32))
    loss = PDEResidual(Burgers(0.01), AutogradDerivatives(("t", "x"), ("velocity",)))
    parameters = list(model.parameters())
    _, j = jacobian(loss, model, batch, parameters)
    assert torch.allclose(j, row_by_row(loss, model, batch, parameters), rtol=1e-3, atol=1e-4)
    assert "_by_rows" not in ways


def test_a_loss_without_residuals_is_refused() -> None:
    with pytest.raises(TypeError, match="has no residuals"):
        LeastSquares(network(), lambda model, batch: {}, Batch())
