"""The forced differential equations beyond their contracts: orders, an independent integrator, laws and failures."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from opflow import Grid
from opflow.data import generate
from opflow.pde import SquaredExponentialField
from opflow.pde.gauss_method import gauss_steps
from opflow.pde.random_field import sample_generator
from opflow.pde.stepper import IntegrationFailed
from opflow.problems import Antiderivative, NonlinearODE, Pendulum
from opflow.problems.forced_ode import ForcedODE, spline

PROBLEMS = [Antiderivative, NonlinearODE, Pendulum]
problems = pytest.mark.parametrize("Problem", PROBLEMS)


def time_grid(n: int, final_time: float = 1.0) -> Grid:
    return Grid(n, (0.0, final_time), axes=("t",))


def manufactured(problem: ForcedODE, grid: Grid) -> dict[str, Tensor]:
    return {name: values[None] for name, values in problem.exact(grid.points()).items()}


def orders(errors: list[float], factor: float = 2.0) -> list[float]:
    return [math.log(a / b, factor) for a, b in itertools.pairwise(errors)]


# The equation


@problems
def test_exact_starts_at_rest_and_holds_for_other_intervals(Problem) -> None:
    problem = Problem(final_time=3.0)
    start = problem.exact(torch.zeros(1, 1, dtype=torch.float64))
    assert all(start[name].abs().max() < 1e-16 for name in problem.unknowns)
    fields = manufactured(problem, time_grid(300, 3.0))
    for name, values in problem.solve(fields, time_grid(300, 3.0)).items():
        torch.testing.assert_close(values, fields[name], rtol=0, atol=1e-12)


def test_the_parameters_of_the_pendulum_enter() -> None:
    """Small oscillations about 0 have frequency sqrt(k): with u = eps, angle = (1 - cos(sqrt(k) t)) eps / k."""
    grid, eps = time_grid(100), 1e-5
    for k in (1.0, 9.0):
        found = Pendulum(k=k).solve({"forcing": torch.full((1, 100), eps)}, grid)
        expected = eps / k * (1 - torch.cos(math.sqrt(k) * grid.coordinates(0)))
        torch.testing.assert_close(found["angle"][0], expected, rtol=1e-8, atol=1e-8 * eps)


# The solver


@problems
def test_solve_converges_to_exact_with_order_eight(Problem) -> None:
    """The spline of degree 7 through the forcing is the only error; final_time = 3 makes it visible above rounding."""
    problem, errors = Problem(final_time=3.0), []
    for n in (33, 65, 129):
        fields = manufactured(problem, time_grid(n, 3.0))
        found = problem.solve(fields, time_grid(n, 3.0))
        assert set(found) == set(problem.unknowns) and all(v.dtype == torch.float64 for v in found.values())
        errors.append(max(float((found[name] - fields[name]).abs().max()) for name in problem.unknowns))
    assert all(7.5 < order < 11 for order in orders(errors)), errors  # not-a-knot ends: 9 for an integral
    fields = manufactured(Problem(), time_grid(100))
    found = Problem().solve(fields, time_grid(100))
    assert all((found[name] - fields[name]).abs().max() < 1e-14 for name in Problem.unknowns)


def test_the_gauss_method_has_order_eight() -> None:
    """Fixed steps against exact values: s' = -s^2 + 1 gives tanh t, s'' = -s + 1 gives 1 - cos t."""
    nodes = np.linspace(0.0, 2.0, 9)
    one = spline(nodes, np.ones((1, 9)))
    end = np.array([2.0])
    riccati = [abs(gauss_steps(lambda s, u: u - s**2, one, end, 1, steps=m)[0, 0, 0] - math.tanh(2)) for m in (2, 4, 8)]

    def oscillator(s, u):
        return np.stack([s[1], u - s[0]])

    linear = [abs(gauss_steps(oscillator, one, end, 2, steps=m)[0, 0, 0] - 1 + math.cos(2)) for m in (1, 2, 4)]
    for errors in (riccati, linear):
        assert all(7.5 < order < 9.2 for order in orders(errors)), errors


def test_the_antiderivative_of_samples_is_exact_to_1e_10() -> None:
    """Against Gauss-Legendre quadrature of the series itself, at 100 nodes; and of the polynomial t^7 to rounding."""
    problem, grid, n = Antiderivative(), time_grid(100), 200
    found = problem.solve(problem.sample(n, grid), grid)["integral"]
    law = SquaredExponentialField(0.2)
    coefficients = law.coefficients([sample_generator("Antiderivative", "train", i) for i in range(n)], grid)
    x, w = np.polynomial.legendre.leggauss(60)
    expected = torch.zeros(n, 100, dtype=torch.float64)
    for j, t in enumerate(grid.coordinates(0).tolist()):
        s = (torch.from_numpy((x + 1) / 2 * t) - 0.5) / 0.2
        psi = torch.stack(
            [torch.exp(-s.square() / 2) * s**k / math.sqrt(math.factorial(k)) for k in range(coefficients.shape[1])]
        )
        expected[:, j] = coefficients @ (psi @ torch.from_numpy(w)) * t / 2
    assert (found - expected).abs().max() < 1e-10
    t = grid.coordinates(0)
    torch.testing.assert_close(
        problem.solve({"forcing": 8 * t[None] ** 7}, grid)["integral"][0], t**8, rtol=0, atol=1e-14
    )
    torch.testing.assert_close(
        problem.solve({"forcing": 8 * t[None] ** 7}, grid, times=[0.123])["integral"],
        torch.tensor([[0.123**8]]).double(),
        rtol=1e-5,
        atol=1e-16,
    )


@pytest.mark.parametrize("problem", [NonlinearODE(), Pendulum(), Pendulum(k=4.0, final_time=3.0)], ids=repr)
def test_samples_agree_with_an_independent_integrator(problem: ForcedODE) -> None:
    """DOP853 of SciPy on the series of the forcing, not on its values: interpolation and time stepping together, 1e-9."""
    n, grid = 12, time_grid(round(100 * problem.final_time), problem.final_time)
    found = problem.solve(problem.sample(n, grid), grid, rtol=1e-11)
    law, middle = SquaredExponentialField(problem.length), problem.final_time / 2
    generators = [sample_generator(type(problem).__name__, "train", i) for i in range(n)]
    coefficients = law.coefficients(generators, grid).numpy()
    k = np.arange(coefficients.shape[1])
    scale = np.exp(-0.5 * np.array([math.lgamma(i + 1) for i in k]))

    def right_side(t: float, s: np.ndarray) -> np.ndarray:
        x = (t - middle) / problem.length
        u = coefficients @ (np.exp(-x * x / 2) * x**k * scale)
        return problem.rate(s.reshape(-1, n), u).ravel()

    start = np.zeros(n * len(problem.unknowns))
    run = solve_ivp(
        right_side, (0, problem.final_time), start, "DOP853", grid.coordinates(0).numpy(), rtol=1e-12, atol=1e-13
    )
    expected = run.y.reshape(len(problem.unknowns), n, -1)
    for name, values in zip(problem.unknowns, expected, strict=True):
        assert np.abs(found[name].numpy() - values).max() < 1e-9, name


@problems
def test_a_solution_does_not_depend_on_its_batch_nor_on_the_times_asked_for(Problem) -> None:
    problem, grid = Problem(), time_grid(50)
    u = problem.sample(6, grid)["forcing"]
    u[2] *= 1e-6  # a small sample among large ones is as accurate
    together = problem.solve({"forcing": u}, grid)
    for name, values in problem.solve({"forcing": u[2:4]}, grid).items():
        torch.testing.assert_close(values, together[name][2:4], rtol=1e-9, atol=1e-14)
    times = [0.0, 0.2, 0.2, float(grid.coordinates(0)[17]), 1.0]
    for name, values in problem.solve({"forcing": u}, grid, times=times).items():
        assert values.shape == (6, 5) and torch.equal(values[:, 1], values[:, 2]) and not values[:, 0].any()
        torch.testing.assert_close(values[:, 3:], together[name][:, [17, 49]], rtol=1e-9, atol=1e-14)
    assert problem.solve({"forcing": u[:0]}, grid)[name].shape == (0, 50)
    assert not any(values.any() for values in problem.solve({"forcing": 0 * u}, grid).values())


@problems
def test_ten_thousand_samples_take_seconds(Problem) -> None:
    """Measured: under 1.5 s of one core each; the bound is for a busy machine."""
    problem, grid = Problem(), time_grid(100)
    start = time.process_time()
    solution = problem.solve(problem.sample(10_000, grid), grid)
    assert time.process_time() - start < 20
    assert all(values.shape == (10_000, 100) and values.isfinite().all() for values in solution.values())


def test_a_blow_up_names_sample_and_time() -> None:
    """u = -A sends s to minus infinity at pi / (2 sqrt(A)); sooner than asked for, it is an error and not a number."""
    problem, grid = NonlinearODE(), time_grid(100)
    forcing = torch.ones(5000, 100, dtype=torch.float64)
    forcing[4500] = -4.0  # at pi / 4
    with pytest.raises(
        IntegrationFailed, match=r"sample 4500 blows up, .* after time 0\.7[78]\d* \(as do 0 others"
    ) as caught:
        problem.solve({"forcing": forcing}, grid)
    assert caught.value.sample == 4500 and 0.77 < caught.value.time < math.pi / 4
    before = problem.solve({"forcing": forcing[4500:4501]}, grid, times=[0.0, 0.5, 0.75])["state"]
    torch.testing.assert_close(
        before[0], -2 * torch.tan(2 * torch.tensor([0.0, 0.5, 0.75]).double()), rtol=1e-9, atol=0
    )


# The law of the forcings


def test_problems_have_streams_of_their_own() -> None:
    first = [Problem().sample(1, time_grid(20))["forcing"] for Problem in PROBLEMS]
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(first, 2))


def test_the_nonlinear_equation_draws_again_what_falls_too_low() -> None:
    """Only those samples differ from the free law, on every grid; their solutions keep the bound."""
    n, grid = 2000, time_grid(100)
    bounded, free = NonlinearODE(lowest=-3.0), NonlinearODE(lowest=None)
    u, unbounded = bounded.sample(n, grid)["forcing"], free.sample(n, grid)["forcing"]
    redrawn = (u != unbounded).any(1)
    assert 1 <= int(redrawn.sum()) <= 80
    assert float(bounded.solve({"forcing": u}, grid)["state"].min()) >= -3.0 - 1e-6
    nodes = grid.coordinates(0).numpy()
    rejected = gauss_steps(free.rate, spline(nodes, unbounded[redrawn].numpy()), nodes, 1, steps=4)
    assert not (rejected >= -3.0 + 1e-6).all(-1).any(), "a blow-up is NaN"
    coarse = bounded.sample(n, time_grid(34))["forcing"]
    torch.testing.assert_close(coarse, u[:, ::3], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"lowest is 1\.0; give a negative bound"):
        NonlinearODE(lowest=1.0)


def test_a_condition_that_all_but_nothing_meets_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opflow.problems.forced_ode.MOST_REDRAWS", 1)
    with pytest.raises(RuntimeError, match=r"forcings were drawn 1 times .*all but excludes the law"):
        NonlinearODE(lowest=-1e-9).sample(50, time_grid(20))


@problems
def test_data_are_generated_and_read_back(Problem, tmp_path: Path) -> None:
    problem, grid = Problem(), time_grid(16)
    source = generate(problem, grid, tmp_path, 5, block=5, samples_per_file=5, dtype=torch.float64, progress=False)
    inputs = problem.sample(5, grid)
    expected = inputs | problem.solve(inputs, grid)
    for name, values in expected.items():
        np.testing.assert_array_equal(source.read(name, range(5)), values)


# Bad input


@problems
def test_bad_input_is_refused_in_a_sentence(Problem) -> None:
    problem, grid, u = Problem(), time_grid(20), torch.zeros(2, 20)
    name = Problem.__name__
    wrong = [
        (Grid(20, (0.5, 1.0)), rf"the time grid starts at 0\.5, but {name} starts from rest at 0; use Grid\(n"),
        (Grid(20, (0.0, 2.0)), r"the time grid ends at 2\.0, but final_time is 1\.0"),
    ]
    for bad, sentence in wrong:
        for call in (lambda g=bad: problem.sample(1, g), lambda g=bad: problem.solve({"forcing": u}, g)):
            with pytest.raises(ValueError, match=sentence):
                call()
    with pytest.raises(ValueError, match=r"the grid has 7 nodes, but the spline of degree 7 .* needs at least 8"):
        problem.solve({"forcing": torch.zeros(1, 7)}, time_grid(7))
    for times in ([0.0, 1.1], [-0.1], [0.5, 0.2], [[0.1]], [math.nan]):
        with pytest.raises(ValueError, match=r"times is .*give numbers that do not decrease, within \[0, 1\.0\]"):
            problem.solve({"forcing": u}, grid, times=times)
    for rtol in (0.0, 1e-16, 2.0, math.nan):
        with pytest.raises(ValueError, match="rtol is"):
            problem.solve({"forcing": u}, grid, rtol=rtol)


def test_a_pendulum_needs_a_finite_k() -> None:
    with pytest.raises(ValueError, match="k is nan; give a finite number"):
        Pendulum(k=math.nan)
