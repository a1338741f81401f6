"""Too few conditions are said, and enough of them are not."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.grid import Grid
from opflow.layers import HardConstraint, HardInitial
from opflow.losses import (
    ConditionResidual,
    DataMisfit,
    Objective,
    PDEResidual,
    Unknown,
    mean_squared_error,
    warn_if_ill_posed,
)
from opflow.pde import AutogradDerivatives, Dirichlet, GridDerivatives, Initial, Neumann, Periodic
from opflow.problems import Burgers

D = AutogradDerivatives(("t", "x"))
EMPTY = Batch()
DATA = {"observations": Batch(coords=torch.rand(4, 2), target=torch.rand(4, 1))}
INITIAL = ConditionResidual(Initial(), D)
VELOCITY = ConditionResidual(Initial(order=1), D, name="velocity")
WALL = ConditionResidual(Dirichlet(), D)
MISFIT = DataMisfit(mean_squared_error, on="observations")


class Equation(Objective):
    """An equation that asks for these derivatives, with so many unknown coefficients."""

    def __init__(self, *asked: str, coefficients: int = 0, function: nn.Module | None = None) -> None:
        super().__init__()
        self.derivatives_asked = frozenset(asked)
        self.unknowns = nn.ModuleList(Unknown(1.0) for _ in range(coefficients))
        self.function = function


class Conditioned(nn.Module):
    """A model that keeps these conditions exactly."""

    def __init__(self, *conditions: str) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.conditions = conditions


def reasons(loss: nn.Module, model: nn.Module | None = None, batch=EMPTY) -> list[str]:
    """Why the problem is ill-posed, after the check that a warning says the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = warn_if_ill_posed(nn.Linear(2, 1) if model is None else model, loss, batch)
    assert len(caught) == bool(found)
    assert all(issubclass(w.category, UserWarning) and reason in str(w.message) for w in caught for reason in found)
    return found


WELL_POSED = {
    "soft": (Equation("t", "x", "xx") + INITIAL + WALL, None, EMPTY),
    "scaled": (0.1 * Equation("t", "xx") + 10.0 * (INITIAL + WALL), None, EMPTY),
    "hard": (Equation("t", "xx"), Conditioned("initial", "dirichlet"), EMPTY),
    "hard within": (Equation("t", "xx"), nn.Sequential(Conditioned("initial", "periodic")), EMPTY),
    "mixed": (Equation("t", "xx") + WALL, Conditioned("initial"), EMPTY),
    "periodic": (Equation("t", "xx") + INITIAL + ConditionResidual(Periodic("x", (0, 2)), D), None, EMPTY),
    "data": (Equation("t", "xx") + MISFIT, None, DATA),
    "advection": (Equation("t", "x") + INITIAL, None, EMPTY),
    "wave": (Equation("tt", "xx") + INITIAL + VELOCITY + WALL, None, EMPTY),
    "steady": (Equation("xx", "yy") + ConditionResidual(Neumann(), D), None, EMPTY),
    "algebraic": (Equation(), None, EMPTY),
    "discovery": (Equation("t", "xx", coefficients=2) + MISFIT, None, DATA),
    "unknown function": (Equation("t", "xx", function=nn.Linear(2, 50)) + MISFIT, None, DATA),
}


@pytest.mark.parametrize("name", WELL_POSED)
def test_enough_conditions_are_silent(name: str) -> None:
    assert reasons(*WELL_POSED[name]) == []


@pytest.mark.parametrize(
    ("loss", "model", "batch", "messages"),
    [
        (Equation("t", "x"), None, EMPTY, ["needs 1 initial condition, of which none is given"]),
        (Equation("t", "xx") + WALL, None, EMPTY, ["initial condition"]),
        (Equation("t", "xx") + INITIAL, None, EMPTY, ["space derivative 'xx'"]),
        (Equation("t", "xxx"), None, EMPTY, ["initial condition", "space derivative 'xxx'"]),
        (Equation("txx") + INITIAL, None, EMPTY, ["'txx'"]),
        (Equation("tt", "xx") + INITIAL + WALL, None, EMPTY, ["needs 2 initial conditions, of which only order 0"]),
        (Equation("xx") + WALL + MISFIT, None, EMPTY, []),
        (Equation("xx") + MISFIT, None, EMPTY, ["no boundary condition"]),
        (Equation("t", "xx"), Conditioned("initial"), EMPTY, ["no boundary condition"]),
        (Equation("t", "xx"), Conditioned("dirichlet"), EMPTY, ["initial condition"]),
        (Equation("t", coefficients=1) + INITIAL, None, EMPTY, ["1 unknown coefficient cannot be found from no obs"]),
        (Equation("t", coefficients=5) + MISFIT, None, DATA, ["5 unknown coefficients cannot be found from 4 obs"]),
        (Equation(function=nn.Linear(2, 1)), None, EMPTY, ["an unknown coefficient function"]),
    ],
)
def test_too_few_conditions_are_said(loss: nn.Module, model: nn.Module | None, batch, messages: list[str]) -> None:
    found = reasons(loss, model, batch)
    assert len(found) == len(messages)
    assert all(message in reason for message, reason in zip(messages, found, strict=True))


def test_a_coefficient_that_is_held_fixed_is_known() -> None:
    loss = Equation("t", coefficients=1) + INITIAL
    loss.requires_grad_(False)
    assert reasons(loss) == []


def test_a_module_whose_conditions_are_something_else_is_no_obstacle() -> None:
    model = nn.Linear(2, 1)
    for conditions in (3, "initial", None, [1, 2]):
        model.conditions = conditions
        assert len(reasons(Equation("t"), model)) == 1


def test_the_parts_of_the_library_are_understood() -> None:
    residual = PDEResidual(Burgers(), D, {"viscosity": Unknown(0.02, positive=True)})

    def start(y: Tensor) -> Tensor:
        return -(math.pi * y[..., 1:]).sin()

    network = nn.Linear(2, 1)
    both = HardConstraint(
        network, start, lambda y: y[..., :1] * (1 - y[..., 1:] ** 2), conditions=("initial", "dirichlet")
    )
    only_start = HardConstraint(network, start, lambda y: y[..., :1], conditions=("initial",))
    assert len(reasons(residual, network)) == 3
    assert ["unknown coefficient" in reason for reason in reasons(residual, both)] == [True]
    assert reasons(residual + MISFIT, both, DATA) == []
    forward = PDEResidual(Burgers(viscosity=0.1), D)
    assert reasons(forward, both) == []
    assert ["boundary condition" in reason for reason in reasons(forward, only_start)] == [True]


def test_a_periodic_axis_of_a_grid_is_a_boundary_condition() -> None:
    def on(layout: str) -> PDEResidual:
        return PDEResidual(
            Burgers(), GridDerivatives(Grid((5, 8), layout=("nodes", layout), axes=("t", "x"))), name="grid"
        )

    held = HardInitial(nn.Conv2d(1, 1, 1), 5)
    assert reasons(on("periodic"), held) == []
    assert ["boundary condition" in reason for reason in reasons(on("nodes"), held)] == [True]
    assert ["initial condition" in reason for reason in reasons(on("periodic"), held.network)] == [True]
