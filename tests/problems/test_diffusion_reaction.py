"""Diffusion-reaction and FitzHugh-Nagumo: orders, closed forms in special cases, independent solvers, and the sine and cosine spaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from opflow import Grid
from opflow.data import generate
from opflow.pde import GridDerivatives, IntegrationFailed, SpectralStepper, TrigonometricSpace
from opflow.problems import DiffusionReaction, FitzHughNagumo


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())


def square(n: int, m: int | None = None) -> Grid:
    return Grid((n, m or n), (-1.0, 1.0), "cells")


def orders(errors: list[float]) -> np.ndarray:
    return -np.diff(np.log2(errors))


# The spaces


@pytest.mark.parametrize("shape", [(9,), (6, 7), (4, 5, 6)])
@pytest.mark.parametrize("layout", ["nodes", "cells", "mixed"])
def test_transforms_are_orthonormal_and_invert_each_other(shape: tuple[int, ...], layout: str) -> None:
    kinds = [("nodes", "cells")[i % 2] for i in range(len(shape))] if layout == "mixed" else layout
    grid = Grid(shape, (-1.0, 2.0), kinds)
    space = TrigonometricSpace(grid)
    c = torch.randn(3, *space.modes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = space.field(c)
    assert field.shape == (3, *grid.shape)
    torch.testing.assert_close(space.coefficients(field), c, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(field.square().sum(), (c.square() * space.multiplicity).sum(), rtol=1e-13, atol=0)
    for axis, kind in enumerate(grid.layout):
        ends = field.select(axis + 1, 0), field.select(axis + 1, -1)
        assert all(bool(end.any()) == (kind == "cells") for end in ends)


def test_both_laplacians_are_what_they_say() -> None:
    """Of sin(pi x) on nodes and cos(pi y / 2) on cells of (0, 2): -pi^2 - pi^2/4, and the three-point differences by hand."""
    grid = Grid((9, 12), ((0.0, 1.0), (0.0, 2.0)), ("nodes", "cells"))
    x, y = grid.points().unbind(-1)
    u = torch.sin(torch.pi * x) * torch.cos(torch.pi * y / 2)
    space = TrigonometricSpace(grid)
    exact = space.field(space.laplacian * space.coefficients(u))
    torch.testing.assert_close(exact, -1.25 * math.pi**2 * u, rtol=1e-12, atol=1e-12)
    differences = space.field(space.second_difference * space.coefficients(u))
    h, g = grid.spacing
    reflected = torch.cat([u[:, :1], u, u[:, -1:]], dim=1)  # no flux: the neighbour outside is the cell itself
    by_hand = torch.zeros_like(u)
    by_hand[1:-1] = (u[2:] - 2 * u[1:-1] + u[:-2]) / h**2
    by_hand[1:-1] += ((reflected[:, 2:] - 2 * u + reflected[:, :-2]) / g**2)[1:-1]
    torch.testing.assert_close(differences, by_hand, rtol=1e-12, atol=1e-12)


def test_the_stepper_takes_either_space() -> None:
    """Heat on cells without flux, and on nodes held at zero; a linear equation has no error in time."""
    for grid, wave in ((Grid(8, layout="cells"), torch.cos), (Grid(9), torch.sin)):
        space = TrigonometricSpace(grid)
        u = wave(torch.pi * grid.coordinates(0))[None]
        found = SpectralStepper(space, 0.1 * space.laplacian).solve(u, [0.0, 2.0])[:, -1]
        torch.testing.assert_close(found, math.exp(-0.2 * math.pi**2) * u, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("grid", [Grid(8, layout="periodic"), Grid(2), Grid((8, 8), layout=("cells", "periodic"))])
def test_axes_without_sines_or_cosines_are_refused_in_a_sentence(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"at least three nodes, and cosines cells; use a FourierSpace"):
        TrigonometricSpace(grid)


# Diffusion-reaction


def test_a_sine_source_without_reaction_has_a_closed_form() -> None:
    """s = sin(pi x) (1 - exp(-D pi^2 t)) / (D pi^2), with second order in space and to rounding in time."""
    problem, errors = DiffusionReaction(reaction=0.0, diffusivity=0.3), []
    times = [0.0, 0.1, 1.0]
    for n in (17, 33, 65):
        grid = Grid(n)
        wave = torch.sin(torch.pi * grid.coordinates(0))
        rate = 0.3 * math.pi**2
        growth = (1 - torch.exp(-rate * torch.tensor(times, dtype=torch.float64))) / rate
        found = problem.solve({"source": wave[None]}, grid, times=times)["concentration"]
        errors.append(float((found - growth[:, None] * wave).abs().max()))
        discrete = 0.3 * (2 - 2 * math.cos(math.pi / (n - 1))) * (n - 1) ** 2
        expected = (1 - math.exp(-discrete)) / discrete * wave
        torch.testing.assert_close(found[0, -1], expected, rtol=1e-12, atol=1e-14)
    assert np.abs(orders(errors) - 2).max() < 0.02, errors


def test_random_sources_converge_with_second_order() -> None:
    """Against a grid eight times finer, in the largest value: the source does not vanish at the ends, and costs no order."""
    problem, fine = DiffusionReaction(reaction=1.0), Grid(401)
    reference = problem.solve(problem.sample(3, fine), fine)["concentration"]
    errors = []
    for stride in (16, 8, 4):
        grid = fine.subsampled(stride)
        found = problem.solve(problem.sample(3, grid), grid)["concentration"]
        errors.append(float((found - fine.subsample(reference, stride)).abs().max()))
    assert np.abs(orders(errors) - 2).max() < 0.15, errors


def test_fourth_order_in_time() -> None:
    problem, grid = DiffusionReaction(0.05, 1.0), Grid(41)
    inputs = problem.sample(3, grid)
    stepper, start = problem.stepper(inputs, grid), torch.zeros_like(inputs["source"])
    fine = stepper.solve(start, [0.0, 1.0], steps=256)[:, -1]
    errors = [relative(stepper.solve(start, [0.0, 1.0], steps=steps)[:, -1], fine) for steps in (8, 16, 32)]
    assert np.abs(orders(errors) - 4).max() < 0.25 and errors[-1] > 1e-12, errors


def test_an_independent_solver_agrees() -> None:
    """SciPy's implicit Radau method on the differences written out."""
    problem, grid = DiffusionReaction(diffusivity=0.02, reaction=0.7), Grid(33)
    source = problem.sample(1, grid, seed=2)["source"]
    u = source[0].numpy()

    def right_side(t: float, s: np.ndarray) -> np.ndarray:
        rate = np.zeros_like(s)
        rate[1:-1] = 0.02 * (s[2:] - 2 * s[1:-1] + s[:-2]) * 32**2 + 0.7 * s[1:-1] ** 2 + u[1:-1]
        return rate

    times = [0.0, 0.25, 1.0]
    expected = solve_ivp(right_side, (0, 1), np.zeros(33), "Radau", times, rtol=1e-10, atol=1e-12).y.T
    found = problem.solve({"source": source}, grid, times=times)["concentration"][0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_solutions_zero_the_residual_with_the_order_of_the_differences_in_time() -> None:
    problem, grid, errors = DiffusionReaction(reaction=1.0), Grid(33), []
    source = problem.sample(1, grid)["source"]
    for frames in (21, 41, 81):
        solution = problem.solve({"source": source}, grid, times=torch.linspace(0, 1, frames))["concentration"]
        derivatives = GridDerivatives(Grid((frames, 33), axes=("t", "x")))
        u = derivatives(solution[:, None], names=("concentration",))
        a = {"source": derivatives(source[:, None].expand(-1, frames, -1))}
        # At t = 0 the source meets the ends, where it starts layers that differences do not resolve.
        errors.append(float(problem.residual(u, a)["balance"][:, frames // 2 :, 2:-2].abs().max()))
    assert np.abs(orders(errors) - 2).max() < 0.25, errors
    zero = {"source": derivatives(torch.zeros_like(solution))}
    assert problem.residual(u, zero)["balance"].abs().max() > 0.1


def test_the_source_is_a_gaussian_process_of_unit_variance() -> None:
    source = DiffusionReaction().sample(400, Grid(21))["source"]
    assert source.square().mean((0, 1)).item() == pytest.approx(1.0, abs=0.15)
    correlation = (source[:, 8] * source[:, 12]).mean() / source.square().mean()
    assert correlation.item() == pytest.approx(math.exp(-0.5), abs=0.12)


def test_a_reaction_that_is_too_strong_is_named_with_time_and_sample() -> None:
    """s' = k s^2 + u without diffusion would be infinite at t = pi / (2 sqrt(k u))."""
    problem, grid = DiffusionReaction(reaction=50.0, diffusivity=1e-3), Grid(33)
    source = torch.stack([torch.full((33,), 0.01), torch.ones(33)])
    with pytest.raises(IntegrationFailed, match=r"sample 1 .* blows up") as failure:
        problem.solve({"source": source}, grid, rtol=1e-6)
    assert failure.value.sample == 1 and failure.value.time == pytest.approx(math.pi / 2 / 50**0.5, rel=0.02)


def test_an_initial_field_with_values_at_the_ends_is_refused_in_a_sentence() -> None:
    problem, grid = DiffusionReaction(), Grid(9)
    source = problem.sample(2, grid)["source"]
    with pytest.raises(ValueError, match="initial is not zero at the ends of the interval"):
        problem.solve({"source": source, "initial": torch.ones(1, 9)}, grid)
    bump = torch.sin(torch.pi * grid.coordinates(0))[None]
    frames = problem.solve({"source": source, "initial": bump}, grid, times=[0.0, 0.5])["concentration"]
    torch.testing.assert_close(frames[:, 0], bump.expand(2, -1))
    assert not torch.equal(frames[0], frames[1])


def test_gradients_with_respect_to_source_and_constants_equal_differences() -> None:
    grid = Grid(7)

    def total(source: Tensor, diffusivity: Tensor, reaction: Tensor) -> Tensor:
        problem = DiffusionReaction(diffusivity, reaction)
        stepper = problem.stepper({"source": source}, grid)
        return stepper.solve(torch.zeros_like(source), [0.0, 1.0], steps=3)[:, -1].square().sum()

    source = DiffusionReaction().sample(1, grid)["source"].requires_grad_()
    constants = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.05, 0.5)]
    assert torch.autograd.gradcheck(total, (source, *constants))


# FitzHugh-Nagumo


def smooth_waves(grid: Grid) -> dict[str, Tensor]:
    """Two fields without flux through the boundary."""
    x, y = ((grid.points() + 1) / 2).unbind(-1)
    u = torch.cos(torch.pi * x) * torch.cos(2 * torch.pi * y) + 0.3
    v = 0.5 * torch.cos(2 * torch.pi * x) - 0.2 * torch.cos(torch.pi * y)
    return {"initial_activator": u[None], "initial_inhibitor": v[None]}


def test_uniform_fields_follow_the_ordinary_equations() -> None:
    problem, grid = FitzHughNagumo(), square(4, 5)
    start = {"initial_activator": 0.8, "initial_inhibitor": -0.4}
    inputs = {name: torch.full((1, 4, 5), value) for name, value in start.items()}
    found = problem.solve(inputs, grid, times=[0.0, 2.5, 5.0])

    def right_side(t: float, state: np.ndarray) -> np.ndarray:
        u, v = state
        return np.array([u - u**3 - 5e-3 - v, u - v])

    values = [float(inputs[name][0, 0, 0]) for name in problem.inputs]
    expected = solve_ivp(right_side, (0, 5), values, "DOP853", [0, 2.5, 5], rtol=1e-12, atol=1e-12).y
    for name, line in zip(problem.unknowns, expected, strict=True):
        wanted = torch.from_numpy(line)[None, :, None, None].expand(1, 3, 4, 5)
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-9)


def test_an_independent_solver_agrees_on_two_axes() -> None:
    """SciPy on the cosine series of each axis through matrices of cosines, with unequal sides."""
    problem, grid, final_time = FitzHughNagumo(2e-2, 5e-2, 0.1), square(10, 12), 0.5
    inputs = smooth_waves(grid)

    def second_derivative(n: int) -> np.ndarray:
        k = np.arange(n)
        cosines = np.cos(np.pi * (k[:, None] + 0.5) * k / n)
        return cosines @ np.diag(-((np.pi * k / 2) ** 2)) @ np.linalg.inv(cosines)

    along_x, along_y = second_derivative(10), second_derivative(12)

    def right_side(t: float, state: np.ndarray) -> np.ndarray:
        u, v = state.reshape(2, 10, 12)
        lap_u, lap_v = (along_x @ w + w @ along_y.T for w in (u, v))
        return np.stack([2e-2 * lap_u + u - u**3 - 0.1 - v, 5e-2 * lap_v + u - v]).ravel()

    start = np.concatenate([inputs[name].numpy().ravel() for name in problem.inputs])
    expected = (
        solve_ivp(right_side, (0, final_time), start, "DOP853", rtol=1e-11, atol=1e-11).y[:, -1].reshape(2, 10, 12)
    )
    found = problem.solve(inputs, grid, times=[0.0, final_time])
    for name, field in zip(problem.unknowns, expected, strict=True):
        torch.testing.assert_close(found[name][0, -1], torch.from_numpy(field), rtol=1e-9, atol=1e-9)


def test_fourth_order_in_time_of_both_components() -> None:
    problem, grid = FitzHughNagumo(), square(16)
    inputs = smooth_waves(grid)
    stepper, start = problem.stepper(inputs, grid), problem.pack(inputs)
    fine = stepper.solve(start, [0.0, 2.0], steps=160)[:, -1]
    errors = [relative(stepper.solve(start, [0.0, 2.0], steps=steps)[:, -1], fine) for steps in (5, 10, 20)]
    assert np.abs(orders(errors) - 4).max() < 0.25 and errors[-1] > 1e-12, errors


def test_space_converges_faster_than_any_order_without_flux() -> None:
    problem, fine = FitzHughNagumo(2e-2, 5e-2, final_time=0.5), square(135)
    reference = problem.solve(smooth_waves(fine), fine, rtol=1e-8)
    errors = []
    for stride in (15, 9, 5):
        grid = fine.subsampled(stride)
        found = problem.solve(smooth_waves(grid), grid, rtol=1e-8)
        centres = reference["activator"][:, stride // 2 :: stride, stride // 2 :: stride]
        errors.append(relative(found["activator"], centres))
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 40, errors


def test_the_mean_changes_by_the_reaction_alone() -> None:
    """No flux: d/dt mean(v) = mean(u - v), whatever the diffusivities; integrated by Simpson's rule."""
    problem, grid = FitzHughNagumo(), square(12)
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    found = problem.solve(smooth_waves(grid), grid, times=times)
    mean_u, mean_v = (found[name].mean((0, 2, 3)) for name in problem.unknowns)
    rate = mean_u - mean_v
    integral = (rate[:-2:2] + 4 * rate[1:-1:2] + rate[2::2]).sum() / 40 / 3
    assert float(mean_v[-1] - mean_v[0]) == pytest.approx(float(integral), rel=1e-7)


def test_solutions_zero_the_residual_of_the_two_equations() -> None:
    problem, errors = FitzHughNagumo(final_time=1.0), []
    for n, frames in ((24, 11), (48, 21), (96, 41)):
        grid = square(n)
        found = problem.solve(smooth_waves(grid), grid, times=torch.linspace(0, 1, frames), rtol=1e-8)
        derivatives = GridDerivatives(
            Grid((frames, n, n), ((0, 1), (-1, 1), (-1, 1)), ("nodes", "cells", "cells"), ("t", "x", "y"))
        )
        u = derivatives(torch.stack([found[name] for name in problem.unknowns], 1), names=problem.unknowns)
        residual = problem.residual(u, {})
        assert residual.keys() == {"activator", "inhibitor"}
        errors.append(max(float(r.square().mean().sqrt()) for r in residual.values()))
    assert (orders(errors) > 1.8).all(), errors
    assert problem.residual(derivatives(-u.value, names=problem.unknowns), {})["activator"].abs().max() < 0.1
    swapped = derivatives(u.value.flip(1), names=problem.unknowns)
    assert problem.residual(swapped, {})["inhibitor"].abs().max() > 0.3


def test_initial_fields_are_independent_and_of_unit_variance() -> None:
    fields = FitzHughNagumo(cutoff=32).sample(60, square(24))
    for values in fields.values():
        assert float(values.square().mean()) == pytest.approx(1.0, abs=0.1)
    u, v = (values.flatten(1) for values in fields.values())
    correlation = torch.nn.functional.cosine_similarity(u, v)
    assert correlation.mean().abs() < 5 * correlation.std() / 60**0.5 and correlation.abs().max() < 0.9


def test_trajectories_of_both_unknowns_are_generated(tmp_path) -> None:
    problem, grid = FitzHughNagumo(cutoff=8), square(8)
    source = generate(
        problem, grid, tmp_path / "a", 2, times=range(3), rtol=1e-4, block=2, samples_per_file=2, progress=False
    )
    assert source is not None and source.grid.shape == (3, 8, 8)
