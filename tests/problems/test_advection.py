"""Advection: shifts to rounding, speeds that vary, and the law of the sines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.batch import Batch
from opflow.pde import AutogradDerivatives, FourierSpace, GridDerivatives
from opflow.problems import Advection

TAU = 2 * math.pi


@pytest.mark.parametrize("n", [17, 18, 64])
@pytest.mark.parametrize("speed", [0.4, -2.5])
def test_solutions_are_shifts_at_any_time(n: int, speed: float) -> None:
    """Of whole points by rolling, of any length by the series; on every grid that resolves the sines."""
    problem, grid = Advection(speed=speed), Grid(n, (1.0, 3.0), "periodic")
    initial = problem.sample(3, grid)["initial"]
    shift = 5 * grid.spacing[0] / abs(speed)
    times = [0.0, shift, 2.123, 1000.0]
    found = problem.solve({"initial": initial}, grid, times=times)["density"]
    torch.testing.assert_close(found[:, 1], initial.roll(5 if speed > 0 else -5, -1), rtol=0, atol=1e-13)
    space = FourierSpace(grid)
    k = torch.arange(space.modes[0], dtype=torch.float64) * TAU / 2.0
    for i, t in enumerate(times):
        turned = space.coefficients(initial) * torch.exp(-1j * k * speed * t)
        tolerance = 1e-14 * (1 + 25 * abs(speed) * t)  # k beta t carries its own rounding
        torch.testing.assert_close(found[:, i], space.field(turned), rtol=0, atol=tolerance)


def warped(points: Tensor, beta: float = 0.7) -> dict[str, Tensor]:
    """u = exp(sin(2 pi (phi(x) - beta t))), phi = x + sin(2 pi x) / 20, is carried by a = beta / phi'."""
    t, x = points.unbind(-1)

    def density(t: Tensor) -> Tensor:
        return torch.exp(torch.sin(TAU * (x + torch.sin(TAU * x) / 20 - beta * t)))

    speed = beta / (1 + TAU / 20 * torch.cos(TAU * x))
    return {"initial": density(torch.zeros_like(t)), "speed": speed, "density": density(t)}


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_speed_that_varies(constant: float) -> None:
    """The input "speed" replaces the constant, whatever that is; one speed for all samples or one for each."""
    problem, grid = Advection(speed=constant), Grid(128, layout="periodic")
    x = grid.coordinates(0)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    fields = warped(torch.stack(torch.meshgrid(times, x, indexing="ij"), dim=-1))
    initial, speed = fields["initial"][:1], fields["speed"][:1]
    found = problem.solve({"initial": initial, "speed": speed}, grid, times=times)["density"]
    assert (found[0] - fields["density"]).abs().max() < 1e-9
    both = problem.solve({"initial": torch.cat([initial, 2 * initial]), "speed": speed}, grid, times=times)["density"]
    torch.testing.assert_close(both, torch.cat([found, 2 * found]), rtol=0, atol=1e-9)


def test_the_residual_takes_the_speed_where_it_is_given() -> None:
    points = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(coords=points)
    u = AutogradDerivatives(("t", "x"), names=("density",))(lambda p: warped(p)["density"][..., None], batch)
    speed = u.of(warped(batch.coords)["speed"])
    problem = Advection(speed=3.0)
    assert problem.residual(u, {"speed": speed})["transport"].abs().max() < 1e-12
    assert problem.residual(u, {})["transport"].abs().max() > 1


def test_constant_speed_as_an_input_is_the_constant() -> None:
    problem, grid = Advection(speed=1.0), Grid(32, layout="periodic")
    initial = problem.sample(2, grid)["initial"]
    speed = torch.full((1, 32), -0.5)
    found = problem.solve({"initial": initial, "speed": speed}, grid, rtol=1e-7)["density"]
    space = FourierSpace(grid)
    resolved = space.field(space.coefficients(initial) * space.dealiased)
    torch.testing.assert_close(found, resolved.roll(-16, -1), rtol=0, atol=1e-7)


def test_the_law_of_the_sines() -> None:
    """Wave numbers 1..highest alike often, amplitudes uniform on (0, 1): a mean square of waves / 6; no mean."""
    problem, grid, n = Advection(waves=1, highest=4), Grid(16, (-1.0, 1.0), "periodic"), 2000
    c = FourierSpace(grid).coefficients(problem.sample(n, grid)["initial"]).abs() * 2
    amplitude, number = c.max(-1)
    assert (c.sum(-1) - amplitude).abs().max() < 1e-14, "one wave each"
    counts = torch.bincount(number, minlength=9)
    assert counts[0] == 0 and not counts[5:].any()
    assert (counts[1:5] - n / 4).abs().max() < 5 * (n * 3 / 16) ** 0.5
    assert float(amplitude.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / n) ** 0.5)
    assert amplitude.min() > 0 and amplitude.max() < 1
    many = Advection(waves=3).sample(n, Grid(20, layout="periodic"))["initial"]
    assert float(many.square().mean()) == pytest.approx(3 / 6, rel=0.1) and many.mean(-1).abs().max() < 1e-15 * 20


def test_more_waves_continue_the_same_sum() -> None:
    grid = Grid(32, layout="periodic")
    two, three = (Advection(waves=waves).sample(1, grid)["initial"] for waves in (2, 3))
    c = FourierSpace(grid).coefficients(three - two).abs()[0]
    assert int((c > 1e-14).sum()) == 1, "the third sine"


def test_residual_on_a_grid_of_space_and_time() -> None:
    """The solution of a sample, to the order of the differences in time."""
    problem, errors = Advection(speed=0.3), []
    for nt in (101, 201):
        grid = Grid((nt, 32), ((0.0, 1.0), (0.0, 1.0)), ("nodes", "periodic"), ("t", "x"))
        line = Grid(32, layout="periodic")
        u = problem.solve(problem.sample(2, line), line, times=grid.coordinates(0))["density"]
        residual = problem.residual(GridDerivatives(grid)(u[:, None], names=("density",)), {})["transport"]
        errors.append(float(residual.abs().max()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
