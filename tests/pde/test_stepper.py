"""The spectral stepper: its order, its promise of accuracy, its gradients, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.pde import FourierSpace, IntegrationFailed, SpectralStepper
from opflow.pde.exponential import FORMULAS
from opflow.problems import Burgers, KortewegDeVries, Schroedinger

formulas = pytest.mark.parametrize("formula", FORMULAS)
TAU = 2 * math.pi


def circle(n: int, **options) -> FourierSpace:
    return FourierSpace(Grid(n, (0.0, TAU), "periodic"), **options)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest relative L2 error of the batch."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


def at_time(problem, grid: Grid, t: float) -> Tensor:
    """The exact state (1, *grid) of a problem on an interval."""
    x = grid.coordinates(0)
    fields = problem.exact(torch.stack([torch.full_like(x, t), x], dim=-1))
    return problem.pack(
        {name: fields[unknown][None] for name, unknown in zip(problem.inputs, problem.unknowns, strict=True)}
    )


def stepper_of(problem, grid: Grid, formula: str) -> SpectralStepper:
    like = problem.stepper({problem.inputs[0]: torch.zeros(1, *grid.shape, dtype=torch.float64)}, grid)
    return SpectralStepper(like.space, like.linear, like.nonlinear, formula=formula)


# Order and accuracy


def forced_by_time(formula: str) -> tuple[SpectralStepper, Callable[[float], Tensor]]:
    """u_t = u_xx - u u_x + f(t, x) with u = sin(x - 3 t) + cos(2 t): N depends on time."""
    space = circle(16)
    x, d, kept = space.grid.coordinates(0), space.gradient[0], space.dealiased

    def exact(t: float) -> Tensor:
        return (torch.sin(x - 3 * t) + math.cos(2 * t))[None]

    def forcing(t: float) -> Tensor:
        u, u_x = exact(t), torch.cos(x - 3 * t)
        return -3 * u_x - 2 * math.sin(2 * t) + torch.sin(x - 3 * t) + u * u_x

    def nonlinear(c: Tensor, t: float) -> Tensor:
        return space.coefficients(forcing(t)) - 0.5 * d * kept * space.coefficients(space.field(kept * c).square())

    return SpectralStepper(space, space.laplacian, nonlinear, formula=formula), exact


CASES = {
    "Burgers": (Burgers(0.02), Grid(96, layout="periodic"), 0.5, (16, 32, 64, 128)),
    "Korteweg-de Vries": (KortewegDeVries(), Grid(384, (-30.0, 30.0), "periodic"), 0.5, (100, 200, 400)),
    "Schroedinger": (Schroedinger(), Grid(256, (-12.0, 12.0), "periodic"), 0.4, (20, 40, 80)),
}


@formulas
@pytest.mark.parametrize("case", [*CASES, "forced by time"])
def test_both_formulas_are_of_fourth_order(case: str, formula: str) -> None:
    if case == "forced by time":
        (stepper, exact), final, counts = forced_by_time(formula), 1.0, (20, 40, 80)
        initial, expected = exact(0.0), exact(final)
    else:
        problem, grid, final, counts = CASES[case]
        stepper = stepper_of(problem, grid, formula)
        initial, expected = at_time(problem, grid, 0.0), at_time(problem, grid, final)
    errors = [relative(stepper.solve(initial, [0.0, final], steps=n)[:, -1], expected) for n in counts]
    orders = -np.diff(np.log2(errors))
    assert abs(orders[-1] - 4) < 0.1, (errors, orders)


@formulas
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_rtol_is_kept(formula: str, rtol: float) -> None:
    stepper, exact = forced_by_time(formula)
    found = stepper.solve(exact(0.0), [0.0, 0.3, 1.0], rtol=rtol)
    for i, t in enumerate((0.0, 0.3, 1.0)):
        assert relative(found[:, i], exact(t)) <= rtol
    assert relative(found[:, -1], exact(1.0)) > 1e-5 * rtol, "no more steps than asked for, by far"


@pytest.mark.parametrize("rtol", [1e-6, 1e-8, 1e-10])
def test_rtol_is_kept_by_burgers(rtol: float) -> None:
    problem, grid = Burgers(0.05), Grid(64, layout="periodic")
    found = stepper_of(problem, grid, "etdrk4").solve(at_time(problem, grid, 0.0), [0.0, 1.0], rtol=rtol)[:, -1]
    assert relative(found, at_time(problem, grid, 1.0)) <= rtol


def test_a_smaller_rtol_takes_more_steps_and_a_larger_fewer() -> None:
    calls = []
    for rtol in (1e-3, 1e-6, 1e-9):
        stepper, exact = forced_by_time("etdrk4")
        nonlinear, count = stepper.nonlinear, [0]

        def counted(c: Tensor, t: float, f=nonlinear, n=count) -> Tensor:
            n[0] += 1
            return f(c, t)

        SpectralStepper(stepper.space, stepper.linear, counted).solve(exact(0.0), [0.0, 1.0], rtol=rtol)
        calls.append(count[0])
    # A thousandth of the error takes 1000^(1/4) = 5.6 times the steps, which are powers of two.
    assert 3 < calls[1] / calls[0] < 9 and 3 < calls[2] / calls[1] < 9, calls


# Exact parts


@pytest.mark.parametrize("real", [True, False])
def test_linear_equations_are_exact_at_any_time(real: bool) -> None:
    """u_t = 0.1 u_xx - 2 u_x - u_xxx: every wave by its own exponential."""
    space = circle(24, real=real)
    d = space.gradient[0]
    x = space.grid.coordinates(0)
    times = [0.0, 1e-3, 1.7, 40.0]

    def wave(t: float) -> Tensor:
        modes = [
            a * math.exp(-0.1 * k * k * t) * torch.exp(1j * (k * (x - 2 * t) + k**3 * t))
            for k, a in ((0, 0.5), (1, 1.0), (3, -2.0), (-2, 0.7j))
        ]
        total = torch.stack(modes).sum(0)[None]
        return total.real if real else total

    found = SpectralStepper(space, 0.1 * space.laplacian - 2 * d - d**3).solve(wave(0.0), times)
    for i, t in enumerate(times):
        assert (found[:, i] - wave(t)).abs().max() < 1e-13 * (1 + 27 * t)  # the phase k^3 t carries its own rounding


@formulas
def test_components_and_dimensions(formula: str) -> None:
    """Two coupled fields in two dimensions: u_t = 0.1 lap u + v, v_t = 0.3 lap v - u, mode by mode a 2 x 2 exponential."""
    grid = Grid((12, 10), ((0.0, TAU), (0.0, TAU)), "periodic")
    space = FourierSpace(grid)
    x, y = grid.points().unbind(-1)
    wave = torch.sin(2 * x - y)

    def coupled(c: Tensor, t: float) -> Tensor:
        return torch.stack((c[:, 1], -c[:, 0]), dim=1)

    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    stepper = SpectralStepper(space, rates[:, None, None] * space.laplacian, coupled, formula=formula)
    found = stepper.solve(torch.stack((wave, 0.5 * wave))[None], [0.0, 1.0])
    assert found.shape == (1, 2, 2, 12, 10)
    matrix = torch.tensor([[-0.5, 1.0], [-1.0, -1.5]], dtype=torch.float64)
    end = torch.linalg.matrix_exp(matrix) @ torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(found[0, 1], end[:, None, None] * wave, rtol=0, atol=1e-10)


def test_three_dimensions() -> None:
    grid = Grid((6, 5, 4), ((0.0, TAU),) * 3, "periodic")
    space = FourierSpace(grid)
    wave = torch.cos(grid.points().sum(-1))[None]
    found = SpectralStepper(space, space.laplacian).solve(wave, [0.0, 0.5])
    torch.testing.assert_close(found[:, -1], math.exp(-1.5) * wave, rtol=0, atol=1e-15)


@formulas
def test_the_times_asked_for_do_not_change_the_solution(formula: str) -> None:
    stepper, exact = forced_by_time(formula)
    ticks: list[float] = []
    times = [0.0, 0.1, 0.2, 0.30000000000000004, 0.77, 1.0]
    together = stepper.solve(exact(0.0), torch.tensor(times, dtype=torch.float64), rtol=1e-9, progress=ticks.append)
    assert together.shape == (1, 6, 16) and torch.equal(together[:, 0], exact(0.0))
    assert ticks == pytest.approx(times[1:], rel=1e-15)
    for i, t in enumerate(times[1:], start=1):
        alone = stepper.solve(exact(0.0), [0.0, t], rtol=1e-9)[:, -1]
        assert relative(together[:, i], alone) < 2e-9


def test_a_sample_does_not_depend_on_its_batch_but_within_rtol() -> None:
    problem, grid = Burgers(0.05), Grid(64, layout="periodic")
    stepper = stepper_of(problem, grid, "etdrk4")
    easy = at_time(problem, grid, 0.0)
    batch = torch.cat([easy, 10 * easy, 0.01 * easy])
    together = stepper.solve(batch, [0.0, 0.5], rtol=1e-8)[:, -1]
    for i in range(3):
        assert relative(together[i : i + 1], stepper.solve(batch[i : i + 1], [0.0, 0.5], rtol=1e-8)[:, -1]) < 2e-8
    assert torch.equal(together, stepper.solve(batch, [0.0, 0.5], rtol=1e-8)[:, -1])


def test_zero_stays_zero_and_an_empty_batch_empty() -> None:
    stepper, _ = forced_by_time("etdrk4")
    burgers = stepper_of(Burgers(), Grid(16, layout="periodic"), "etdrk4")
    assert not burgers.solve(torch.zeros(2, 16, dtype=torch.float64), [0.0, 1.0]).any()
    for options in ({}, {"steps": 3}):
        assert stepper.solve(torch.zeros(0, 16, dtype=torch.float64), [0.0, 0.5, 1.0], **options).shape == (0, 3, 16)


def test_the_grid_of_a_solution_that_is_resolved_does_not_matter() -> None:
    problem = Burgers(0.05)
    ends = []
    for n in (96, 97, 192):
        grid = Grid(n, layout="periodic")
        end = stepper_of(problem, grid, "etdrk4").solve(at_time(problem, grid, 0.0), [0.0, 0.3], rtol=1e-11)[:, -1]
        ends.append(FourierSpace(grid).coefficients(end)[:, :30])
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-11)


# Gradients


def gradient_case(formula: str, real: bool) -> SpectralStepper:
    space = circle(6, real=real)
    d = space.gradient[0]
    linear = 0.1 * space.laplacian + (0 if real else 0.3j * space.laplacian)
    return SpectralStepper(
        space, linear, lambda c, t: d * space.coefficients(space.field(c) ** 2) * (1 + t), formula=formula
    )


@formulas
@pytest.mark.parametrize("real", [True, False], ids=["real", "complex"])
def test_gradient_with_respect_to_the_initial_field(formula: str, real: bool) -> None:
    stepper = gradient_case(formula, real)
    dtype = torch.float64 if real else torch.complex128
    u = 0.3 * torch.randn(2, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda v: stepper.solve(v, [0.0, 0.1, 0.2], steps=2), u.requires_grad_())


def test_gradient_through_chosen_steps_is_that_of_the_solution() -> None:
    """The adaptive solve against central differences of finer ones."""
    stepper = gradient_case("etdrk4", True)
    u, v = 0.3 * torch.randn(2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight = torch.arange(6, dtype=torch.float64)

    def value(w: Tensor) -> Tensor:
        return (weight * stepper.solve(w, [0.0, 0.5], rtol=1e-11)[:, -1]).sum()

    (slope,) = torch.autograd.grad(value(u.requires_grad_()), u)
    with torch.no_grad():
        difference = float(value(u + 1e-4 * v) - value(u - 1e-4 * v)) / 2e-4
    assert float((slope * v).sum()) == pytest.approx(difference, rel=1e-6)


@formulas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_with_respect_to_a_constant_of_the_equation(formula: str, dtype: torch.dtype) -> None:
    """d u / d nu, through the exponential weights."""
    grid = Grid(32, layout="periodic")
    initial = at_time(Burgers(0.0625), grid, 0.0)
    weight = torch.linspace(0, 1, 32, dtype=torch.float64)

    def value(viscosity: float | Tensor) -> Tensor:
        stepper = stepper_of(Burgers(viscosity), grid, formula)
        return (weight * stepper.solve(initial, [0.0, 0.2], steps=8)[:, -1]).sum()

    nu = torch.tensor(0.0625, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(value(nu), nu)
    assert slope.dtype == dtype
    expected = float(value(0.0625 + 1e-5) - value(0.0625 - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(expected, rel=1e-6)


@formulas
def test_a_stepper_serves_any_number_of_backward_passes(formula: str) -> None:
    like = gradient_case(formula, True)
    linear = like.linear.clone().requires_grad_()
    stepper = SpectralStepper(like.space, linear, like.nonlinear, formula=formula)
    u = torch.linspace(0, 1, 6, dtype=torch.float64)[None]
    slopes = [torch.autograd.grad(stepper.solve(u, [0.0, 0.1], steps=2).square().sum(), linear)[0] for _ in range(2)]
    assert torch.equal(*slopes) and slopes[0].any()


# Failures


def test_steps_too_long_name_the_time_and_the_sample() -> None:
    problem, grid = Burgers(1e-3), Grid(128, layout="periodic")
    stepper = stepper_of(problem, grid, "etdrk4")
    slow = 1e-3 * torch.sin(TAU * grid.coordinates(0))
    batch = torch.stack([slow, slow, 1e5 * slow])
    with pytest.raises(IntegrationFailed, match=r"sample 2 is not finite at t = .*CFL.*take more steps") as caught:
        stepper.solve(batch, [0.0, 0.5, 1.0], steps=20)
    assert caught.value.sample == 2 and 0 <= caught.value.time < 0.5
    assert stepper.solve(batch[:2], [0.0, 0.5, 1.0], steps=20).isfinite().all()


def test_a_blow_up_names_its_time_and_sample() -> None:
    """u_t = u_xx + u^2 from the constant 4 blows up at t = 1/4; the sample beside it, 0.5, would at t = 2."""
    space = circle(16)
    stepper = SpectralStepper(space, space.laplacian, lambda c, t: space.coefficients(space.field(c).square()))
    initial = torch.tensor([0.5, 4.0], dtype=torch.float64)[:, None].expand(2, 16)
    with pytest.raises(
        IntegrationFailed, match=r"sample 1 cannot be continued beyond t = 0.25.*it blows up there"
    ) as caught:
        stepper.solve(initial, [0.0, 1.0], rtol=1e-6)
    assert caught.value.sample == 1 and caught.value.time == pytest.approx(0.25, rel=1e-6)
    fine = stepper.solve(initial[:1], [0.0, 1.0], rtol=1e-8)[:, -1]
    torch.testing.assert_close(fine, torch.full_like(fine, 1 / (1 / 0.5 - 1)), rtol=1e-8, atol=0)


def test_a_growing_linear_equation_names_its_time() -> None:
    space = circle(16)
    backward_heat = SpectralStepper(space, -space.laplacian)
    x = space.grid.coordinates(0)
    initial = torch.cos(8 * x)[None]
    with pytest.raises(
        IntegrationFailed, match=r"sample 0 is not finite at t = 20: a mode of the linear equation grows"
    ) as caught:
        backward_heat.solve(initial, [0.0, 1.0, 20.0])
    assert caught.value.sample == 0 and caught.value.time == 1.0


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"times": [0.0]}, ValueError, "at least two times are expected"),
        ({"times": [0.5, 1.0]}, ValueError, "the first must be 0"),
        ({"times": [0.0, 1.0, 0.5]}, ValueError, "times go from 1.0 to 0.5; give finite times in increasing order"),
        ({"times": [0.0, math.inf]}, ValueError, "give finite times"),
        ({"rtol": 0.0}, ValueError, "rtol is 0.0; a number between 0 and 1"),
        ({"rtol": 1.0}, ValueError, "rtol is 1.0; a number between 0 and 1"),
        ({"steps": 0}, ValueError, "steps is 0; at least one step"),
        (
            {"initial": torch.zeros(2, 8, dtype=torch.float64)},
            ValueError,
            r"the initial field has shape \(2, 8\) but the grid is",
        ),
        ({"initial": torch.zeros(16, dtype=torch.float64)}, ValueError, r"expected \(batch, \*components, \*grid\)"),
        (
            {"initial": torch.zeros(2, 16)},
            TypeError,
            "the initial field is torch.float32, but this solver works in torch.float64",
        ),
        ({"initial": torch.zeros(2, 16, dtype=torch.complex128)}, TypeError, "the initial field is torch.complex128"),
        (
            {"initial": torch.tensor([[0.0] * 16, [math.nan] * 16], dtype=torch.float64)},
            ValueError,
            "the initial field holds NaN or infinity in sample 1",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change, error, sentence) -> None:
    stepper = stepper_of(Burgers(), Grid(16, layout="periodic"), "etdrk4")
    arguments = {"initial": torch.zeros(2, 16, dtype=torch.float64), "times": [0.0, 1.0], **change}
    with pytest.raises(error, match=sentence):
        stepper.solve(**arguments)


def test_bad_equations_are_refused_in_a_sentence() -> None:
    space = circle(8)
    with pytest.raises(ValueError, match="formula is 'rk4'; choose one of etdrk4, integrating-factor-rk4"):
        SpectralStepper(space, space.laplacian, formula="rk4")
    with pytest.raises(ValueError, match="the linear symbol holds NaN or infinity"):
        SpectralStepper(space, torch.nan * space.laplacian)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_solution() -> None:
    for problem, extent in (
        (Burgers(0.05), (0.0, 1.0)),
        (KortewegDeVries(), (-20.0, 20.0)),
        (Schroedinger(), (-5.0, 5.0)),
    ):
        grid = Grid(128, extent, "periodic")
        inputs = problem.sample(3, grid)
        here = problem.solve(inputs, grid, times=[0.0, 0.05, 0.1], rtol=1e-8)
        there = problem.solve({n: v.cuda() for n, v in inputs.items()}, grid, times=[0.0, 0.05, 0.1], rtol=1e-8)
        for name, values in here.items():
            assert there[name].is_cuda
            torch.testing.assert_close(there[name].cpu(), values, rtol=0, atol=1e-7 * float(values.abs().max()))
