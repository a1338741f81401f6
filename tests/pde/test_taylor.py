"""Taylor mode against nested reverse mode: the same derivatives to rounding, through everything a model may be made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow import Batch
from opflow.layers import (
    MLP,
    BoxCoordinates,
    FourierFeatures,
    HardConstraint,
    PeriodicFeatures,
    RememberedFunction,
    ResidualGateMLP,
)
from opflow.models import PINN, DeepONet
from opflow.pde import AutogradDerivatives
from opflow.pde.derivatives.jet import Jet
from opflow.pde.derivatives.jet_rules import RULES
from opflow.pde.derivatives.multi_index import MultiIndices, as_index, multi_indices

NAMES = ("t", "x", "y")
ASKED = ("t", "x", "y", "xx", "xy", "tx", "xxx", "txy", "xxyy", "tttt")


def points(n: int = 20, seed: int = 0) -> Tensor:
    return 0.1 + 0.8 * torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def largest_difference(model, coords: Tensor, asked=ASKED) -> float:
    """Of all derivatives, relative to the largest value of each."""
    reverse = AutogradDerivatives(NAMES, method="reverse")(model, Batch(coords=coords.clone()))
    taylor = AutogradDerivatives(NAMES, method="taylor")(model, Batch(coords=coords.clone()), asked=asked)
    errors = [(reverse.value - taylor.value).abs().max() / reverse.value.abs().max()]
    for axes in asked:
        a, b = reverse.d(axes).detach(), taylor.d(axes).detach()
        errors.append((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
    return float(torch.stack(errors).detach().max())


FUNCTIONS = {
    "arithmetic": lambda y: (1 - y[..., :1]) * y[..., 1:2] / (2 + y[..., 2:]) - 3 / (1 + y[..., :1] * y[..., 1:2]),
    "powers": lambda y: y[..., :1] ** 3 + y[..., 1:2] ** -2 + y[..., 2:] ** 1.5 + (y[..., :1] * y[..., 1:2]).square(),
    "trigonometric": lambda y: torch.sin(3 * y[..., :1]) * torch.cos(y[..., 1:2] * y[..., 2:]) + torch.tan(y[..., 1:2]),
    "exponential": lambda y: torch.exp(-y[..., :1] * y[..., 1:2]) + torch.log(1 + y[..., 2:]) * y.sqrt()[..., :1],
    "hyperbolic": lambda y: 1 / torch.cosh(y[..., 1:2] - y[..., :1]) + torch.sinh(y[..., 2:]) * y[..., :1].sigmoid(),
    "angles": lambda y: torch.atan2(y[..., 1:2] + y[..., :1], y[..., 2:] + 0.3) + torch.atan(y[..., :1] * y[..., 2:]),
    "inverse roots": lambda y: torch.rsqrt(1 + y[..., :1] * y[..., 1:2]) + torch.erf(y[..., 2:] * y[..., :1]),
    "soft": lambda y: F.softplus(2 * y[..., :1] * y[..., 1:2]) + F.gelu(y[..., 2:] * y[..., :1], approximate="tanh"),
    "branches": lambda y: torch.where(y[..., :1] > 0.5, y[..., :1] ** 2 * y[..., 1:2], torch.relu(y[..., 2:] * y[..., :1])),
    "absolute": lambda y: (y[..., :1] * y[..., 1:2] - 0.3).abs() * y[..., 2:],
    "joined": lambda y: torch.cat([y * y.roll(1, -1), torch.stack(y.unbind(-1), -1).sin()], -1).sum(-1, keepdim=True) ** 2,
    "reshaped": lambda y: (y.unsqueeze(-1).transpose(-1, -2).flatten(-2) ** 3).mean(-1, keepdim=True),
    "matrix": lambda y: (torch.sin(y @ torch.full((3, 2), 0.7, dtype=y.dtype)) ** 2).sum(-1, keepdim=True),
    "contraction": lambda y: torch.einsum("pi,ij->pj", torch.exp(y), torch.eye(3, 1, dtype=y.dtype)) * y[..., 1:2] * y[..., 2:],
    "reversed": lambda y: torch.tensor(2.0, dtype=torch.float64) * y[..., :1] * y[..., 1:2] - (1.0 - y[..., 2:] / 2.0) ** 2,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert largest_difference(FUNCTIONS[name], points()) < 1e-11


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Softplus()])
def test_perceptrons(activation: nn.Module) -> None:
    torch.manual_seed(0)
    assert largest_difference(MLP((3, 12, 12, 2), activation=activation).double(), points()) < 1e-11


@pytest.mark.parametrize(
    "model",
    [
        lambda: PINN.build(((0, 1), (0, 1), (0, 2)), 2, (8, 8), periodic=(0, 2, 1)),
        lambda: PINN.build(((0, 1),) * 3, 1, (8, 8), fourier_features=6),
        lambda: PINN.build(((0, 1),) * 3, 1, (8, 8), residual_gates=True, activation="silu"),
        lambda: nn.Sequential(BoxCoordinates(((0, 1),) * 3), FourierFeatures(3, 8), ResidualGateMLP(8, 2, 8, 2)),
        lambda: HardConstraint(MLP((3, 8, 1)), lambda y: y[..., 1:2].sin(), lambda y: y[..., :1] * (1 - y[..., 1:2] ** 2), conditions=("initial", "dirichlet")),
    ],
)  # fmt: skip
def test_models(model) -> None:
    torch.manual_seed(0)
    model = model().double()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):  # closed at the start, and then there is nothing to differentiate behind it
            nn.init.constant_(parameter, 0.4)
    assert largest_difference(model, points()) < 1e-11


def test_samples_share_their_points() -> None:
    torch.manual_seed(0)
    model = DeepONet.build(5, 3, 1, 1, basis=6, branch=(8,), trunk=(8, 8), activation="tanh").double()
    u, y = torch.rand(4, 1, 5, dtype=torch.float64), points(7)
    shared = AutogradDerivatives(NAMES, method="taylor")(model, Batch(input=u, coords=y))
    own = AutogradDerivatives(NAMES, method="reverse")(model, Batch(input=u, coords=y.expand(4, -1, -1).clone()))
    for axes in ("t", "xx", "xyt"):
        torch.testing.assert_close(shared.d(axes), own.d(axes), rtol=1e-11, atol=1e-12)


def test_an_operator_with_a_domain_and_hard_conditions_has_series_too() -> None:
    torch.manual_seed(0)
    box = ((0.0, 1.0),) * 3
    operator = DeepONet.build(5, 3, 1, 1, basis=6, branch=(8,), trunk=(8, 8), activation="tanh", domain=box).double()
    model = HardConstraint(
        operator, lambda y: y[..., 1:2].sin(), lambda y: y[..., :1] * y[..., 2:], conditions=("initial",)
    )
    u, y = torch.rand(4, 1, 5, dtype=torch.float64), points(7)
    assert model(u, y).shape == (4, 7, 1)
    held = y * torch.tensor([0.0, 1.0, 1.0])
    assert torch.equal(model(u, held), held[:, 1:2].sin().expand(4, 7, 1))
    shared = AutogradDerivatives(NAMES, method="taylor")(model, Batch(input=u, coords=y))
    own = AutogradDerivatives(NAMES, method="reverse")(model, Batch(input=u, coords=y.expand(4, -1, -1).clone()))
    for axes in ("t", "xx", "xyt"):
        torch.testing.assert_close(shared.d(axes), own.d(axes), rtol=1e-11, atol=1e-12)
    outside = AutogradDerivatives(NAMES, method="taylor")(model, Batch(input=u, coords=y + 1))
    with pytest.raises(ValueError, match="7 of 7 points lie outside the domain"):
        outside.d("t")


@pytest.mark.parametrize("asked", [("t", "xx"), ("xxx", "t"), ("xy", "xxyy")])
def test_the_gradient_by_hand_is_that_of_autograd(asked: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, y = MLP((3, 10, 10, 1), activation=nn.Tanh()).double(), points()
    parameters = list(model.parameters())

    def loss(method: str) -> Tensor:
        u = AutogradDerivatives(NAMES, method=method)(model, Batch(coords=y.clone()))
        return (u.value * u.d(asked[0]) - sum(u.d(axes) for axes in asked)).square().mean()

    taylor = torch.autograd.grad(loss("taylor"), parameters)
    reverse = torch.autograd.grad(loss("reverse"), parameters)
    for a, b in zip(taylor, reverse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    model, y = MLP((3, 5, 5, 1), activation=nn.Tanh()).double(), points(4)
    parameters = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def residual(*values: Tensor) -> Tensor:
        state = dict(zip(dict(model.named_parameters()), values, strict=True))
        call = lambda coords: torch.func.functional_call(model, state, (coords,))  # noqa: E731
        u = AutogradDerivatives(NAMES, method="taylor")(call, Batch(coords=y))
        return u.d("t") + u.value * u.d("xx")

    assert torch.autograd.gradcheck(residual, parameters, fast_mode=True)
    assert torch.autograd.gradgradcheck(residual, parameters, fast_mode=True)


def test_torch_func_passes_through() -> None:
    torch.manual_seed(0)
    model, y = MLP((3, 5, 1), activation=nn.Tanh()).double(), points(6)

    def at(point: Tensor) -> Tensor:
        return AutogradDerivatives(NAMES, method="taylor")(model, Batch(coords=point[None])).d("xx")[0, 0]

    whole = AutogradDerivatives(NAMES, method="taylor")(model, Batch(coords=y)).d("xx")[:, 0]
    torch.testing.assert_close(torch.func.vmap(at)(y), whole, rtol=1e-12, atol=1e-14)


def test_single_precision_stays() -> None:
    u = AutogradDerivatives(NAMES, method="taylor")(
        MLP((3, 8, 1), activation=nn.Tanh()), Batch(coords=points().float())
    )
    assert u.d("xx").dtype == torch.float32


def test_components_and_calculus() -> None:
    def field(y: Tensor) -> Tensor:
        return torch.cat([y[..., :1] * y[..., 1:2] ** 2, torch.sin(y[..., 2:]) + y[..., :1]], -1)

    make = {m: AutogradDerivatives(NAMES, ("u", "v"), m) for m in ("reverse", "taylor")}
    u, w = (make[m](field, Batch(coords=points())) for m in ("reverse", "taylor"))
    for name in ("u", "v"):
        torch.testing.assert_close(u[name].laplacian(), w[name].laplacian())
        torch.testing.assert_close(torch.stack(u[name].gradient()), torch.stack(w[name].gradient()))
        torch.testing.assert_close(u[name].div_grad(u["u"]), w[name].div_grad(w["u"]))
    assert w["u"].d("x").shape == (20,)
    with pytest.raises(KeyError, match="no component is called 'p'"):
        w["p"]


def test_what_taylor_mode_refuses() -> None:
    taylor = AutogradDerivatives(NAMES, method="taylor")
    u = taylor(lambda y: y[..., :1] ** 2, Batch(coords=points()))
    with pytest.raises(ValueError, match="write the product rule out"):
        u.of(u.value)
    with pytest.raises(ValueError, match="there are t, x, y"):
        u.d("z")
    with pytest.raises(ValueError, match="one letter a differentiation"):
        u.d("")
    with pytest.raises(NotImplementedError, match="no rule for 'floor'"):
        _ = taylor(torch.floor, Batch(coords=points())).value
    with pytest.raises(ValueError, match="does not depend on the coordinates"):
        _ = taylor(lambda y: torch.zeros(20, 1), Batch(coords=points())).value
    with pytest.raises(AttributeError, match="no 'cholesky'"):
        _ = taylor(lambda y: y.cholesky(), Batch(coords=points())).value
    with pytest.raises(NotImplementedError, match="varying exponent"):
        _ = taylor(lambda y: y ** y, Batch(coords=points())).value  # fmt: skip
    with pytest.raises(ValueError, match="give 'reverse', 'taylor' or None"):
        AutogradDerivatives(NAMES, method="forward")


def test_multi_indices_are_closed_and_their_products_complete() -> None:
    indices = MultiIndices([(2, 1), (0, 3)])
    assert indices.all[0] == (0, 0) and len(indices) == len(set(indices.all)) == 8
    for alpha in indices.all:
        for axis, a in enumerate(alpha):
            if a:
                assert tuple(b - (i == axis) for i, b in enumerate(alpha)) in indices.position
    for alpha, pairs in zip(indices.all, indices.products, strict=True):
        expected = set(itertools.product(*(range(a + 1) for a in alpha)))
        assert {indices.all[i] for i, _ in pairs} == expected
    assert as_index("xxt", ("t", "x")) == (1, 2)
    assert multi_indices(frozenset([(1, 0)]), 2) is multi_indices(frozenset([(1, 0)]), 2)


def test_remembered_functions_are_computed_once_for_the_same_points() -> None:
    calls = []

    def lift(y: Tensor) -> Tensor:
        calls.append(1)
        return y[..., :1].sin()

    model = HardConstraint(nn.Linear(3, 1).double(), lift, lambda y: y[..., :1], conditions=("initial",))
    taylor, y = AutogradDerivatives(NAMES, method="taylor"), points()
    first = taylor(model, Batch(coords=y), asked=("x",)).d("t")
    again = taylor(model, Batch(coords=y), asked=("x",)).d("t")
    assert len(calls) == 1 and torch.equal(first, again)
    taylor(model, Batch(coords=y.clone()), asked=("t", "x")).d("t")
    assert len(calls) == 2
    y.mul_(0.5)
    changed = taylor(model, Batch(coords=y), asked=("t", "x")).d("t")
    fresh = taylor(model, Batch(coords=y.clone()), asked=("t", "x")).d("t")
    assert torch.equal(changed, fresh) and not torch.equal(changed, first)
    assert len(RememberedFunction(lift).__getstate__()["_known"]) == 0
    with pytest.raises(ValueError, match="has parameters"):
        RememberedFunction(nn.Linear(3, 1))


def test_every_rule_names_something_of_torch() -> None:
    names = {n.strip("_") for holder in (torch, torch.Tensor, F) for n in dir(holder)}
    assert set(RULES) <= names
    assert Jet.coordinates(points(), multi_indices(frozenset([(1, 0, 0)]), 3)).is_floating_point()


def test_periodic_features_are_periodic_with_their_slopes() -> None:
    torch.manual_seed(0)
    model = PINN.build(((0, 1), (-1.0, 1.0), (0, 1)), 1, (8,), periodic=(0, 3, 0)).double()
    left, right = points(), points()
    left[:, 1], right[:, 1] = -1.0, 1.0
    taylor = AutogradDerivatives(NAMES, method="taylor")
    a, b = (taylor(model, Batch(coords=y)) for y in (left, right))
    for axes in ("x", "xx", "xxx", "tx"):
        torch.testing.assert_close(a.d(axes), b.d(axes), rtol=1e-9, atol=1e-9)
    assert PeriodicFeatures(((0, 1),), (2,)).conditions == ("periodic",)
    with pytest.raises(ValueError, match="a whole number >= 0"):
        PeriodicFeatures(((0, 1), (0, 1)), (1,))
    with pytest.raises(ValueError, match="expects 1 along the last axis"):
        PeriodicFeatures(((0, 1),), (1,))(points())
