"""One implicit Runge-Kutta step as a loss: its order, both snapshots, systems, coefficients and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses import PDEResidual, Unknown, total, warn_if_ill_posed
from opflow.losses.discrete_time import DiscreteTimeResidual
from opflow.pde import AutogradDerivatives, gauss_legendre
from opflow.pde.runge_kutta import ButcherTableau
from opflow.problems import Burgers, FitzHughNagumo, KortewegDeVries, Schroedinger
from opflow.training import LeastSquares, LevenbergMarquardt, gauss_newton_covariance

DOUBLE = torch.float64


class Stages(nn.Module):
    """Stage values that do not depend on the point: an ordinary differential equation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(channels, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return self.values + 0 * x


class Functions(nn.Module):
    """Given functions of x as channels."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.unused = function, nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + self.unused


def travelling(c, start: float, step: float):
    """sin(x - t) at the stages and at the end of a step."""
    times = torch.tensor([*(start + step * c), start + step], dtype=DOUBLE)
    return Functions(lambda x: torch.sin(x - times))


def points(n: int = 9) -> Tensor:
    return torch.linspace(-1, 1, n, dtype=DOUBLE)[:, None]


def stepped(rate, u: float, steps: int, q: int) -> float:
    """u' = -rate(u) from 0 to 1 by making the loss zero."""
    for _ in range(steps):
        loss = DiscreteTimeResidual(lambda u, a: u.d("t") + rate(u.value), AutogradDerivatives(("x",)), q, 1 / steps)
        model = Stages(q + 1)
        batch = Batch(coords=torch.zeros(1, 1, dtype=DOUBLE), target=torch.tensor([u], dtype=DOUBLE))
        for _ in range(8):
            r = loss.residuals(model, batch)
            (J,) = torch.autograd.grad(r, model.values, torch.eye(q + 1, dtype=DOUBLE), is_grads_batched=True)
            with torch.no_grad():
                model.values -= torch.linalg.solve(J, r)
        u = float(model.values[-1].detach())
    return u


@pytest.mark.parametrize("q", [1, 2, 3])
def test_a_step_has_order_2q(q: int) -> None:
    """u' = -u^3 / 2, u = (1 + t)^(-1/2): the end of fixed steps."""
    errors = [abs(stepped(lambda u: u**3 / 2, 1.0, m, q) - 2**-0.5) for m in (2, 4, 8)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(orders[-1] - 2 * q) < 0.35, (errors, orders)


@pytest.mark.parametrize("method", ["taylor", "reverse"])
@pytest.mark.parametrize("snapshot", ["start", "end"])
def test_the_exact_stages_leave_an_error_of_the_quadrature_only(method: str, snapshot: str) -> None:
    """Advection of sin(x - t): all relations of both snapshots vanish like h^(q + 1), at many stages to rounding."""
    sizes = []
    for q in (2, 4, 12):
        loss = DiscreteTimeResidual(
            lambda u, a: u.d("t") + u.d("x"), AutogradDerivatives(("t", "x"), method=method), q, 0.7, snapshot=snapshot
        )
        model, x = travelling(gauss_legendre(q).nodes, 0.2, 0.7), points()
        time = 0.2 if snapshot == "start" else 0.9
        batch = Batch(coords=x, target=torch.sin(x - time))
        found = loss.equations(model, batch)
        assert list(found) == [snapshot] == list(loss.names) and found[snapshot].shape == (9, q + 1)
        sizes.append(float(found[snapshot].detach().abs().max()))
    assert 1e-3 < sizes[0] < 0.1 and sizes[1] < 1e-4 and sizes[2] < 1e-14


def test_both_methods_and_both_spellings_agree() -> None:
    """The relations of Burgers' equation, written out with the tableau and derivatives by hand; the sum of squares is the term."""
    torch.manual_seed(0)
    q, h, nu = 5, 0.3, 0.02
    model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, q + 1)).double()
    x = points()
    batch = Batch(coords=x, target=torch.sin(x))
    tableau = gauss_legendre(q)
    y = x.clone().requires_grad_()
    u = model(y)
    slope = torch.stack([torch.autograd.grad(c.sum(), y, create_graph=True)[0][:, 0] for c in u.unbind(1)], 1)
    curvature = torch.stack([torch.autograd.grad(c.sum(), y, retain_graph=True)[0][:, 0] for c in slope.unbind(1)], 1)
    rate = (u * slope - nu * curvature)[:, :q]
    a = torch.tensor(np.vstack([tableau.matrix, tableau.weights]))
    expected = u + h * rate @ a.T - torch.sin(x)
    for method in ("taylor", "reverse", None):
        loss = DiscreteTimeResidual(Burgers(nu), AutogradDerivatives(method=method), tableau, h)
        torch.testing.assert_close(loss.equations(model, batch)["start"], expected, rtol=1e-12, atol=1e-13)
        terms, r = loss(model, batch), loss.residuals(model, batch)
        torch.testing.assert_close(r.square().sum(), total(terms), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            loss.point_sizes(model, batch), expected.square().sum(1).sqrt(), rtol=1e-10, atol=1e-12
        )
    weight = torch.linspace(0, 2, 9, dtype=DOUBLE)
    weighted = loss(model, Batch(coords=x, target=torch.sin(x), weight=weight))["start"]
    torch.testing.assert_close(weighted, (weight[:, None] * expected.square()).mean(), rtol=1e-11, atol=0)


def test_weights_belong_to_points_even_where_there_are_as_many_stages() -> None:
    q = 8
    model, x = travelling(gauss_legendre(q).nodes, 0.0, 0.5), points(9)
    loss = DiscreteTimeResidual(lambda u, a: u.d("t"), AutogradDerivatives(("x",)), q, 0.5)
    batch = Batch(coords=x, target=torch.zeros(9, dtype=DOUBLE))
    r = loss.equations(model, batch)["start"]
    assert r.shape == (9, 9)
    batch.weight = torch.arange(9, dtype=DOUBLE)
    torch.testing.assert_close(loss(model, batch)["start"], (batch.weight[:, None] * r.square()).mean())


def test_a_system_with_a_sign_picks_each_unknowns_equation() -> None:
    """Schroedinger: "real" holds -q_t and "imaginary" p_t. The plane wave A exp(i (k x - w t)) solves it."""
    q, h, A, k = 10, 0.5, 0.8, 2.0
    w = k * k / 2 - A * A
    times = torch.tensor([*(h * gauss_legendre(q).nodes), h], dtype=DOUBLE)

    def wave(x: Tensor) -> Tensor:
        phase = k * x - w * times
        return torch.cat([A * torch.cos(phase), A * torch.sin(phase)], -1)

    loss = DiscreteTimeResidual(Schroedinger(), AutogradDerivatives(), q, h)
    x = points()
    batch = Batch(coords=x, target=torch.cat([A * torch.cos(k * x), A * torch.sin(k * x)], -1))
    found = loss.equations(Functions(wave), batch)
    assert list(found) == list(loss.names) == ["start/real", "start/imaginary"]
    assert all(r.shape == (9, q + 1) and float(r.detach().abs().max()) < 1e-11 for r in found.values())


def test_two_space_dimensions_with_a_laplacian() -> None:
    """FitzHugh-Nagumo: the relations of a state at rest in space are those of the ordinary equations."""
    problem, q = FitzHughNagumo(), 3
    model = Functions(lambda y: 0 * y[..., :1] + torch.linspace(0.1, 0.6, 2 * q, dtype=DOUBLE))
    batch = Batch(coords=torch.rand(7, 2, dtype=DOUBLE), target=torch.zeros(7, 2, dtype=DOUBLE))
    found = DiscreteTimeResidual(problem, AutogradDerivatives(method="reverse"), q, 0.1).equations(model, batch)
    assert [r.shape for r in found.values()] == [(7, q)] * 2
    assert all(bool(((r - r[:1]).abs() < 1e-14).all()) for r in found.values())


def test_a_coefficient_is_a_function_of_space() -> None:
    """u_t = f(x) moves every stage by c_i h f; and a f given by its values at the points does the same."""
    q, h, x = 4, 0.25, points()

    def equation(u, a):
        return u.d("t") - a["forcing"].value

    model = Functions(lambda x: 1 + h * torch.tensor([*gauss_legendre(q).nodes, 1.0], dtype=DOUBLE) * torch.cos(x))
    target = torch.ones(9, dtype=DOUBLE)
    given = DiscreteTimeResidual(equation, AutogradDerivatives(("x",)), q, h, inputs={"forcing": torch.cos})
    assert float(given(model, Batch(coords=x, target=target))["start"].detach()) < 1e-28
    plain = DiscreteTimeResidual(equation, AutogradDerivatives(("x",)), q, h)
    batch = Batch(coords=x, target=target, parameters={"forcing": torch.cos(x[:, 0])})
    assert float(plain(model, batch)["start"].detach()) < 1e-28


def test_two_snapshots_find_the_speed() -> None:
    """u_t + c u_x = 0 from sin(x) and sin(x - c h): the speed to rounding, through two losses that share it."""
    torch.manual_seed(0)
    q, h, speed = 6, 0.6, 0.7

    class Advection:
        coordinates, unknowns, c = ("t", "x"), ("density",), 0.0

        def residual(self, u, a):
            return {"balance": u["density"].d("t") + self.c * u["density"].d("x")}

    unknowns = {"c": Unknown(0.2)}
    parts = [
        DiscreteTimeResidual(Advection(), AutogradDerivatives(), q, h, snapshot=s, unknowns=unknowns, on=s)
        for s in ("start", "end")
    ]
    loss = parts[0] + parts[1]
    assert len(list(loss.parameters())) == 1

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, q).double()

        def forward(self, x):
            return self.linear(torch.cat([torch.sin(x), torch.cos(x)], -1))

    model = Waves()
    x, y = 6 * torch.rand(2, 10, 1, dtype=DOUBLE)
    batch = {
        "start": Batch(coords=x, target=torch.sin(x)),
        "end": Batch(coords=y, target=torch.sin(y - speed * h)),
    }
    optimizer = LevenbergMarquardt([*model.parameters(), *loss.parameters()])
    for _ in range(12):
        optimizer.step(LeastSquares(model, loss, batch))
    assert abs(unknowns["c"].value - speed) < 1e-9


def test_the_snapshot_may_be_a_function_of_points_that_are_drawn_anew() -> None:
    q = 3
    loss = DiscreteTimeResidual(lambda u, a: u.d("t"), AutogradDerivatives(("x",)), q, 0.1, values=torch.sin)
    model = Functions(lambda x: torch.sin(x).expand(*x.shape[:-1], q + 1))
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert float(loss(model, Batch(coords=torch.rand(5, 1, dtype=DOUBLE)))["start"].detach()) < 1e-30


def test_single_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 5))
    x = points()
    single = DiscreteTimeResidual(Burgers(0.01), AutogradDerivatives(), 4, 0.1)
    r = single.residuals(model, Batch(coords=x.float(), target=torch.sin(x).float()))
    assert r.dtype == torch.float32
    exact = single.residuals(model.double(), Batch(coords=x, target=torch.sin(x)))
    torch.testing.assert_close(r.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "equation",
    [
        lambda u, a: 2 * u.d("t") + u.d("x"),
        lambda u, a: u.value * u.d("t") + u.d("x"),
        lambda u, a: u.d("t") ** 2 + u.d("x"),
        lambda u, a: u.d("x"),
        lambda u, a: {"one": u.d("t") + u.d("x"), "two": u.d("x")},
    ],
)
def test_an_equation_that_is_not_solved_for_the_time_derivative_is_refused(equation) -> None:
    loss = DiscreteTimeResidual(equation, AutogradDerivatives(("x",)), 2, 0.1)
    with pytest.raises(ValueError, match="linearly with the coefficient 1 or -1"):
        loss(nn.Linear(1, 2).double(), Batch(coords=points(), target=torch.zeros(9, dtype=DOUBLE)))


def test_other_time_derivatives_are_refused() -> None:
    loss = DiscreteTimeResidual(lambda u, a: u.d("tt") - u.d("xx"), AutogradDerivatives(("x",)), 2, 0.1)
    with pytest.raises(ValueError, match="the first time derivative only"):
        loss(nn.Linear(1, 2).double(), Batch(coords=points(), target=torch.zeros(9, dtype=DOUBLE)))


def test_what_does_not_fit_is_refused() -> None:
    equation, derivatives = (lambda u, a: u.d("t") + u.d("x")), AutogradDerivatives(("x",))
    with pytest.raises(ValueError, match="positive whole number"):
        DiscreteTimeResidual(equation, derivatives, 0, 0.1)
    for step in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive number"):
            DiscreteTimeResidual(equation, derivatives, 2, step)
    with pytest.raises(ValueError, match="'start' or 'end'"):
        DiscreteTimeResidual(equation, derivatives, 2, 0.1, snapshot="middle")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="AutogradDerivatives"):
        DiscreteTimeResidual(equation, None, 2, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no coefficient of KortewegDeVries"):
        DiscreteTimeResidual(KortewegDeVries(), AutogradDerivatives(), 2, 0.1, unknowns={"viscosity": Unknown(1.0)})
    loss = DiscreteTimeResidual(equation, derivatives, 2, 0.1)
    x, zero = points(), torch.zeros(9, dtype=DOUBLE)
    with pytest.raises(ValueError, match="4 channels, but 2 stages of 1 unknown are 2 channels, or 3"):
        loss(nn.Linear(1, 4).double(), Batch(coords=x, target=zero))
    model = nn.Linear(1, 3).double()
    with pytest.raises(ValueError, match="no target"):
        loss(model, Batch(coords=x))
    with pytest.raises(ValueError, match="no coords"):
        loss(model, Batch(target=zero))
    with pytest.raises(ValueError, match="snapshot has shape"):
        loss(model, Batch(coords=x, target=zero[:4]))
    bad = zero.clone()
    bad[3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite at point 3"):
        loss(model, Batch(coords=x, target=bad))


def test_implicit_euler_is_a_tableau_too() -> None:
    """u' = -u by one stage at the end: u_1 = 1 / (1 + h)."""
    one = np.ones(1)
    euler = ButcherTableau(one, np.ones((1, 1)), one, order=1)
    loss = DiscreteTimeResidual(lambda u, a: u.d("t") + u.value, AutogradDerivatives(("x",)), euler, 0.25)
    model = Functions(lambda x: 0 * x + torch.tensor([0.8, 0.8], dtype=DOUBLE))
    batch = Batch(coords=points(), target=torch.ones(9, dtype=DOUBLE))
    assert float(loss(model, batch)["start"].detach()) < 1e-30


def test_it_is_a_residual_like_the_continuous_one() -> None:
    loss = DiscreteTimeResidual(Burgers(), AutogradDerivatives(), 2, 0.1)
    assert isinstance(loss, PDEResidual) and loss.derivatives_asked == {"x", "xx"}
    assert "2 stages, step=0.1, snapshot='start'" in repr(loss)


@pytest.mark.filterwarnings("ignore:the problem is not well posed")
def test_the_snapshot_at_the_end_is_what_determines_coefficients() -> None:
    unknowns = {"viscosity": Unknown(0.1, positive=True)}
    x = points()
    batch = {name: Batch(coords=x, target=torch.zeros(9, dtype=DOUBLE)) for name in ("start", "end")}
    start, end = (
        DiscreteTimeResidual(Burgers(), AutogradDerivatives(), 2, 0.1, snapshot=name, unknowns=unknowns, on=name)
        for name in ("start", "end")
    )
    model = nn.Linear(1, 2).double()
    assert warn_if_ill_posed(model, start + end, batch) == []
    assert any("1 unknown coefficient cannot be found" in reason for reason in warn_if_ill_posed(model, start, batch))
    known = DiscreteTimeResidual(Burgers(), AutogradDerivatives(), 2, 0.1)
    (reason,) = warn_if_ill_posed(model, known, batch["start"])
    assert "no boundary condition" in reason


def test_stages_share_the_noise_of_their_snapshot() -> None:
    """The sandwich by hand, and Monte Carlo of the linear fit: standard errors are those of points, not of rows."""
    q, h, n = 4, 0.5, 30
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(n, 1, dtype=DOUBLE, generator=generator)

    class Level(nn.Module):  # u = level at all stages: the mean of the snapshot
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, q).double()

        def forward(self, x):
            return self.linear(torch.ones_like(x))

    class Rate:
        coordinates, unknowns, rate = ("t", "x"), ("density",), 0.0

        def residual(self, u, a):
            return {"balance": u["density"].d("t") - self.rate + 0 * u["density"].value}

    unknowns = {"rate": Unknown(0.0)}
    parts = [
        DiscreteTimeResidual(Rate(), AutogradDerivatives(method="reverse"), q, h, snapshot=s, unknowns=unknowns, on=s)
        for s in ("start", "end")
    ]
    loss, model = parts[0] + parts[1], Level()

    def fitted(noise: float):
        target = {s: noise * torch.randn(n, dtype=DOUBLE, generator=generator) for s in ("start", "end")}
        batch = {s: Batch(coords=x, target=target[s]) for s in target}
        with torch.no_grad():  # the difference of the means is h times the rate, and the stages lie on the line between
            means = [target[s].mean() for s in ("start", "end")]
            unknowns["rate"].raw.copy_((means[1] - means[0]) / h)
            model.linear.weight.zero_()
            model.linear.bias.copy_(means[0] + torch.from_numpy(gauss_legendre(q).nodes.copy()) * (means[1] - means[0]))
        return batch

    batch = fitted(0.1)
    found = gauss_newton_covariance(model, loss, batch, [unknowns["rate"].raw], data=parts)
    exact = 0.1 * math.sqrt(2 / n) / h
    known = gauss_newton_covariance(model, loss, batch, [unknowns["rate"].raw], data=parts, noise=0.1)
    assert abs(float(known.standard_errors) / exact - 1) < 1e-9
    assert abs(known.effective_parameters - 2) < 1e-9  # of 2 n data, the two means
    assert abs(found.noise / 0.1 - 1) < 0.3 and float(found.remaining.abs().max()) < 1e-12
    errors = []
    for _ in range(200):
        fitted(0.1)
        errors.append(unknowns["rate"].value)
    assert abs(float(np.std(errors)) / exact - 1) < 0.2
