"""The residual of an equation: zero on exact solutions, the same by every method, with coefficients that are found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.layers import HardConstraint
from opflow.losses import DataMisfit, PDEResidual, Unknown, mean_squared_error, total
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, GridDerivatives
from opflow.problems import Advection, Burgers, KortewegDeVries, Schroedinger
from opflow.training import fit, load_checkpoint, save_checkpoint

METHODS = ("reverse", "taylor")


class Exact(nn.Module):
    """A problem's exact solution, scaled by a parameter that should be one."""

    def __init__(self, problem, scale: float = 1.0) -> None:
        super().__init__()
        self.problem, self.scale = problem, nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, coords: Tensor) -> Tensor:
        values = self.problem.exact(coords)
        return self.scale * torch.stack([values[name] for name in self.problem.unknowns], -1)


def space_time(n: int = 60, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(out_channels: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return PINN.build(((0, 1), (0, 1)), out_channels, (8, 8)).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", [Burgers(0.05), Schroedinger()])
def test_exact_solutions_have_no_residual_and_others_do(problem, method: str) -> None:
    loss, batch = PDEResidual(problem, AutogradDerivatives(method=method)), Batch(coords=space_time())
    assert max(float(v.detach()) for v in loss(Exact(problem), batch).values()) < 1e-20
    assert max(float(v.detach()) for v in loss(Exact(problem, 1.1), batch).values()) > 1e-6


@pytest.mark.parametrize("problem", [Burgers(0.05), Schroedinger(), KortewegDeVries()])
def test_methods_and_chunks_agree(problem) -> None:
    model, y = network(len(problem.unknowns)), space_time()
    weight = torch.linspace(0.5, 2.0, len(y), dtype=torch.float64)
    values, gradients = [], []
    for method in METHODS:
        for chunk in (None, 17):
            loss = PDEResidual(problem, AutogradDerivatives(method=method), chunk=chunk)
            terms = loss(model, Batch(coords=y.clone(), weight=weight))
            value = total({name: (1 + i) * term for i, (name, term) in enumerate(terms.items())})
            values.append(value.detach())
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-10, atol=1e-13)


def test_residuals_are_the_loss() -> None:
    model, weight = network(2), torch.rand(60, dtype=torch.float64)
    loss = 3.0 * PDEResidual(Schroedinger(), AutogradDerivatives(method="taylor"))
    for batch in (Batch(coords=space_time()), Batch(coords=space_time(), weight=weight)):
        r = loss.residuals(model, batch)
        torch.testing.assert_close(r.square().sum(), total(loss(model, batch)), rtol=1e-13, atol=0)
    data = DataMisfit(mean_squared_error)
    batch = Batch(coords=space_time(), target=torch.zeros(60, 2, dtype=torch.float64))
    torch.testing.assert_close(data.residuals(model, batch).square().sum(), total(data(model, batch)))


def test_point_sizes_are_those_of_the_equations() -> None:
    model, batch = network(2), Batch(coords=space_time())
    for chunk in (None, 7):
        loss = PDEResidual(Schroedinger(), AutogradDerivatives(method="taylor"), chunk=chunk)
        expected = sum(r.square() for r in loss.equations(model, batch).values()).sqrt()
        torch.testing.assert_close(loss.point_sizes(model, batch), expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_points_are_one_batch_of_several(chunk: int | None) -> None:
    model, batch = network(), Batch(coords=space_time())
    step = {"interior": batch, "observations": Batch(coords=space_time(5), target=torch.zeros(5, 1))}
    alone, named = (
        PDEResidual(Burgers(), AutogradDerivatives(method="taylor"), chunk=chunk, on=on) for on in (None, "interior")
    )
    assert torch.equal(total(alone(model, batch)), total(named(model, step)))
    for ask in ("residuals", "point_sizes"):
        assert torch.equal(getattr(alone, ask)(model, batch), getattr(named, ask)(model, step))
    assert torch.equal(alone.equations(model, batch)["momentum"], named.equations(model, step)["momentum"])


def test_the_orders_choose_the_method() -> None:
    model, batch = network(), Batch(coords=space_time())
    assert PDEResidual(KortewegDeVries(), AutogradDerivatives()).derivatives_asked == {"t", "x", "xxx"}
    third, second = (PDEResidual(p, AutogradDerivatives()) for p in (KortewegDeVries(), Burgers()))
    for loss, method in ((third, "taylor"), (second, "reverse")):
        loss(model, batch)
        assert loss._method(model, batch).method == method

    class Rounded(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return torch.floor(y[..., :1]) + y[..., 1:] ** 4

    loss = PDEResidual(KortewegDeVries(), AutogradDerivatives())
    loss(Rounded(), batch)  # no rule for floor: reverse mode serves
    assert loss._method(Rounded(), batch).method == "reverse"


def test_the_derivatives_of_an_equation_are_known_before_its_first_call() -> None:
    def asked(equation) -> frozenset[str]:
        return PDEResidual(equation, AutogradDerivatives(("t", "x", "y"))).derivatives_asked

    assert asked(lambda u, a: u.d("t") - u.laplacian()) == {"t", "xx", "yy"}
    assert asked(lambda u, a: u.div_grad(a["k"]) + sum(u.gradient())) == {"x", "y", "xx", "yy"}
    assert asked(lambda u, a: u["p"].d("yx") * a["k"].d("x")) == {"xy"}
    assert asked(lambda u, a: u.value[:, 0]) == frozenset()  # it looks at shapes


def test_an_equation_in_one_line() -> None:
    heat = PDEResidual(lambda u, a: u.d("t") - u.d("xx"), AutogradDerivatives(("t", "x")), name="heat")
    exact = lambda y: torch.exp(-y[..., :1]) * torch.sin(y[..., 1:])  # noqa: E731
    assert float(heat(as_module(exact), Batch(coords=space_time()))["heat"].detach()) < 1e-28
    assert heat.derivatives_asked == {"t", "xx"}


def as_module(function) -> nn.Module:
    class Function(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return function(y)

    return Function()


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_come_as_functions_values_or_networks(method: str) -> None:
    y = space_time()
    source = lambda y: -2.0 * y[..., :1] ** 0 + 0.0 * y[..., 1:]  # noqa: E731
    equation = lambda u, a: u.d("xx") + a["source"].value  # noqa: E731
    model = as_module(lambda y: y[..., 1:] ** 2)
    derivatives = AutogradDerivatives(("t", "x"), method=method)
    given = PDEResidual(equation, derivatives, inputs={"source": source})
    assert float(given(model, Batch(coords=y))["residual"].detach()) < 1e-28
    values = Batch(coords=y, parameters={"source": -2.0 * torch.ones(60, 1, dtype=torch.float64)})
    for chunk in (None, 11):
        loss = PDEResidual(equation, derivatives, chunk=chunk)
        assert float(loss(model, values)["residual"].detach()) < 1e-28
    field = nn.Linear(2, 1).double()
    unknown = PDEResidual(equation, derivatives, inputs={"source": field}, chunk=13)
    total(unknown(model, Batch(coords=y))).backward()
    assert field.weight.grad is not None and set(unknown.parameters()) == set(field.parameters())
    with pytest.raises(ValueError, match="asks for the coefficient 'source', but there are none"):
        PDEResidual(equation, derivatives)(model, Batch(coords=y))
    slope = PDEResidual(lambda u, a: u.d("xx") + a["source"].d("x"), derivatives)
    with pytest.raises(ValueError, match="known by its values at the points only"):
        slope(model, values)


def test_an_input_that_may_be_left_out_is_left_out() -> None:
    batch = Batch(coords=space_time())
    loss = PDEResidual(Advection(speed=0.5), AutogradDerivatives(method="taylor"))
    assert float(total(loss(Exact(Advection(speed=0.5)), batch)).detach()) < 1e-20
    faster = Batch(coords=space_time(), parameters={"speed": torch.full((60,), 0.7, dtype=torch.float64)})
    assert float(total(loss(Exact(Advection(speed=0.7)), faster)).detach()) < 1e-20
    grid = Grid((65, 64), layout=("nodes", "periodic"), axes=("t", "x"))
    field = Exact(Advection(speed=0.5))(grid.points())[None, None, ..., 0]
    on_grid = PDEResidual(Advection(speed=0.5), GridDerivatives(grid))
    terms = on_grid(as_module(lambda x: field), Batch(input=torch.zeros(1)))
    assert float(total(terms).detach()) < 0.01


def test_unknowns_are_found_saved_and_refused_where_nobody_holds_them(tmp_path) -> None:
    y = space_time(200)
    batch, exact = Batch(coords=y), Exact(Burgers(0.05)).requires_grad_(False)
    loss = PDEResidual(Burgers(0.1), AutogradDerivatives(method="taylor"), {"viscosity": Unknown(0.1, positive=True)})
    optimizer = torch.optim.LBFGS(
        loss.parameters(), line_search_fn="strong_wolfe", max_iter=50, tolerance_grad=1e-14, tolerance_change=1e-14
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = total(loss(exact, batch))
        value.backward()
        return value

    optimizer.step(closure)
    assert math.isclose(loss.unknowns["viscosity"].value, 0.05, rel_tol=1e-7)

    model = network()
    with pytest.raises(ValueError, match=r"unknowns.viscosity.raw; build the optimizer from"):
        next(fit(model, loss, [batch], torch.optim.Adam(model.parameters()), epochs=1))
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()])
    with pytest.warns(UserWarning, match="1 unknown coefficient cannot be found from no observations"):
        record = next(fit(model, loss, [batch], optimizer, epochs=1, progress=False))
    save_checkpoint(tmp_path, model, loss=loss, record=record)
    other = PDEResidual(Burgers(0.1), AutogradDerivatives(), {"viscosity": Unknown(0.3, positive=True)})
    load_checkpoint(tmp_path, network(seed=1), loss=other)
    assert other.unknowns["viscosity"].value == loss.unknowns["viscosity"].value


def test_unknowns_keep_their_sign_and_know_their_slope() -> None:
    for positive in (True, False):
        unknown = Unknown(0.4, positive=positive)
        (slope,) = torch.autograd.grad(unknown(), unknown.raw)
        assert math.isclose(unknown.value, 0.4) and math.isclose(unknown.slope(), float(slope))
    with pytest.raises(ValueError, match="positive finite number"):
        Unknown(-1.0, positive=True)
    with pytest.raises(ValueError, match=r"no coefficient of Burgers, which has .*viscosity"):
        PDEResidual(Burgers(), AutogradDerivatives(), {"speed": Unknown(1.0)})
    with pytest.raises(TypeError, match=r"give an Unknown\(initial\)"):
        PDEResidual(Burgers(), AutogradDerivatives(), {"viscosity": 0.1})  # type: ignore[dict-item]


def test_the_same_residual_on_a_grid_falls_with_the_order_of_the_differences() -> None:
    errors = []
    for n in (33, 65):
        grid = Grid((n, 64), layout=("nodes", "periodic"), axes=("t", "x"))
        loss = PDEResidual(Burgers(0.05), GridDerivatives(grid))
        field = Exact(Burgers(0.05))(grid.points())[None, None, ..., 0]
        r = loss.residuals(as_module(lambda x, field=field: field), Batch(input=torch.zeros(1)))
        errors.append(float(r.detach().norm()))
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.5


class Reaction:
    """lap u = source - decay u"""

    coordinates, inputs, unknowns = ("x", "y"), ("source", "decay"), ("u",)

    def residual(self, u, a):
        u = u["u"]
        return {"balance": u.laplacian() - a["source"].value + a["decay"].value * u.value}


def test_inputs_on_a_grid_are_channels_parameters_or_functions() -> None:
    grid = Grid((33, 32), layout=("nodes", "periodic"), extent=((0.0, 1.0), (0.0, 2 * math.pi)))
    x, y = grid.points().unbind(-1)
    field, source, decay = x**2 * torch.sin(y), (2 + x) * torch.sin(y), torch.ones_like(x)
    model = as_module(lambda *_: field[None, None])
    source = (2 * torch.sin(y) - field + 3 * field)[None]
    inputs = torch.stack([source[0], 3 * decay])[None]
    derivatives = GridDerivatives(grid)
    ways = [
        (PDEResidual(Reaction(), derivatives), Batch(input=inputs)),
        (PDEResidual(Reaction(), derivatives), Batch(input=inputs[:, :1], parameters={"decay": inputs[:, 1]})),
        (
            PDEResidual(Reaction(), derivatives, inputs={"decay": lambda p: 3 + 0 * p[..., 0]}),
            Batch(input=inputs[:, :1]),
        ),
    ]
    for loss, batch in ways:
        assert float(total(loss(model, batch))) < 1e-20
        wrong = Batch(input=1.5 * batch.input, parameters=batch.parameters)
        assert float(total(loss(model, wrong))) > 0.01


def test_products_stay_in_reverse_mode() -> None:
    loss = PDEResidual(lambda u, a: u.d("xxx") - u.of(u.value**2).d("x"), AutogradDerivatives(("t", "x")))
    model, batch = network(), Batch(coords=space_time())
    loss(model, batch)
    assert loss._method(model, batch).method == "reverse"


def test_what_is_refused() -> None:
    model, batch = network(), Batch(coords=space_time())
    with pytest.raises(TypeError, match=r"give one with residual\(u, a\)"):
        PDEResidual(3.0, AutogradDerivatives())
    with pytest.raises(ValueError, match="derivatives on a grid need the whole"):
        PDEResidual(Burgers(), GridDerivatives(Grid((8, 8))), chunk=10)
    with pytest.raises(ValueError, match="give a number of points"):
        PDEResidual(Burgers(), AutogradDerivatives(), chunk=0)
    with pytest.raises(ValueError, match=r"d\('z'\) asks for coordinates that are not there; there are t, x"):
        PDEResidual(lambda u, a: u.d("z"), AutogradDerivatives(("t", "x")))(model, batch)
    with pytest.raises(TypeError, match="the residual returned list"):
        PDEResidual(lambda u, a: [1.0], AutogradDerivatives(("t", "x")))(model, batch)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="has no coords"):
        PDEResidual(Burgers(), AutogradDerivatives(), chunk=5)(model, Batch(input=torch.zeros(1)))
    with pytest.raises(ValueError, match="coords has 2 columns but the coordinates are named"):
        PDEResidual(lambda u, a: u.value, AutogradDerivatives(("t", "x", "y")))(model, batch)
    constrained = HardConstraint(model, lambda y: 0 * y[..., :1], lambda y: y[..., :1], conditions=("initial",))
    with pytest.raises(ValueError, match="conditions names 'wall'"):
        HardConstraint(model, constrained.lift, constrained.distance, conditions=("wall",))
    with pytest.raises(TypeError, match="'conditions'"):
        HardConstraint(model, constrained.lift, constrained.distance)  # type: ignore[call-arg]
