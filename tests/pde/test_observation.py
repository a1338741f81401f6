"""Observations: what was measured where, nothing interpolated, and nothing broken let in."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from opflow.grid import Grid
from opflow.losses import DataMisfit, mean_squared_error
from opflow.pde import Disc, Interval, LShape, SpaceTime, observations, scatter_observations

TIMES = torch.linspace(0.0, 2.0, 9, dtype=torch.float64)
GRID = Grid((32, 16), ((0.0, 1.0), (-1.0, 1.0)), ("periodic", "nodes"))


def fields(times: torch.Tensor = TIMES, grid: Grid = GRID) -> dict[str, torch.Tensor]:
    t, (x, y) = times[:, None, None], grid.points().unbind(-1)
    return {"velocity": t + 10 * x + 100 * y, "pressure": t * x * y}


def test_observations_are_what_was_given() -> None:
    points, values = torch.rand(20, 2), torch.rand(20, 3)
    batch = observations(points, values, weight=torch.arange(20))
    assert torch.equal(batch.coords, points.double()) and torch.equal(batch.target, values.double())
    assert batch.weight.dtype == torch.float64
    assert observations(points, values[:, 0], dtype=torch.float32).target.shape == (20, 1)
    assert observations(points, values[:, 0], dtype=torch.float32).coords.dtype == torch.float32


def test_noise_has_the_stated_size_in_every_channel() -> None:
    t = torch.linspace(0, 1, 4000, dtype=torch.float64)
    values = torch.stack([t, 1000 * t * t], 1)
    noisy = observations(t[:, None], values, noise=0.1, seed=1).target - values
    assert (noisy.std(0) / values.std(0)).tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    assert float(torch.corrcoef(noisy.T)[0, 1].abs()) < 0.06
    assert torch.equal(noisy, observations(t[:, None], values, noise=0.1, seed=1).target - values)
    assert not torch.equal(noisy, observations(t[:, None], values, noise=0.1, seed=2).target - values)


def test_scattered_observations_are_values_of_the_solution() -> None:
    batch = scatter_observations(fields(), GRID, 200, times=TIMES, seed=5)
    t, x, y = batch.coords.unbind(1)
    assert torch.allclose(batch.target, torch.stack([t + 10 * x + 100 * y, t * x * y], 1), rtol=0, atol=1e-12)
    assert len(batch.coords.unique(dim=0)) == 200
    assert t.unique().tolist() == TIMES.tolist()  # all of the solution is drawn from
    every = scatter_observations(fields(), GRID, 9 * 32 * 16, times=TIMES)
    assert every.target[:, 0].sort().values.tolist() == fields()["velocity"].flatten().sort().values.tolist()


def test_sensors_do_not_depend_on_the_noise_whose_size_is_that_of_the_whole_field() -> None:
    clean = scatter_observations(fields(), GRID, 2000, times=TIMES)
    noisy = scatter_observations(fields(), GRID, 2000, times=TIMES, noise=0.05)
    assert torch.equal(clean.coords, noisy.coords)
    spread = torch.stack([field.std() for field in fields().values()])
    assert ((noisy.target - clean.target).std(0) / spread).tolist() == pytest.approx([0.05, 0.05], rel=0.06)
    assert not torch.equal(clean.coords, scatter_observations(fields(), GRID, 2000, times=TIMES, seed=1).coords)


def test_a_solution_without_time_and_a_part_of_the_grid() -> None:
    grid = Grid((41, 41), (-1.0, 1.0))
    x, y = grid.points().unbind(-1)
    batch = scatter_observations({"u": x * y}, grid, 300, geometry=LShape(), dtype=torch.float32)
    assert batch.coords.shape == (300, 2) and batch.target.dtype == torch.float32
    assert bool(LShape().contains(batch.coords.double(), 1e-6).all())
    inside = int(((x <= 1e-12) | (y >= -1e-12)).sum())
    assert len(scatter_observations({"u": x}, grid, inside, geometry=LShape()).coords) == inside
    with pytest.raises(ValueError, match=f"of {inside} points"):
        scatter_observations({"u": x}, grid, inside + 1, geometry=LShape())


def test_a_misfit_reads_them() -> None:
    batch = scatter_observations(fields(), GRID, 50, times=TIMES)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        term = DataMisfit(mean_squared_error)(model, batch)["misfit"]
        assert float(term) == pytest.approx(float((model(batch.coords) - batch.target).square().mean()))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(broken: float) -> None:
    points, values = torch.rand(6, 2), torch.rand(6, 2)
    values[3, 1] = values[5, 0] = broken
    with pytest.raises(ValueError, match=r"value of observation 3 at \[.* 2 of 6 are not finite"):
        observations(points, values)
    points[2, 0] = broken
    with pytest.raises(ValueError, match="sensor of observation 2"):
        observations(points, torch.rand(6))
    solution = fields()
    solution["pressure"][...] = broken
    with pytest.raises(ValueError, match="value of observation 0"):
        scatter_observations(solution, GRID, 10, times=TIMES)


def test_sensors_outside_the_domain_are_refused() -> None:
    domain = SpaceTime((0, 1), Interval(-1, 1))
    points = torch.tensor([[0.5, 0.0], [1.0, 1.0], [0.5, -1.5]])
    with pytest.raises(ValueError, match=r"observation 2 at \(0.5, -1.5\) lies outside"):
        observations(points, torch.zeros(3), geometry=domain)
    assert len(observations(points[:2], torch.zeros(2), geometry=domain).coords) == 2
    with pytest.raises(ValueError, match="dimension 2"):
        observations(torch.zeros(3, 3), torch.zeros(3), geometry=Disc())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: observations(torch.rand(5, 2), torch.rand(4)), "one row an observation"),
        (lambda: observations(torch.rand(5), torch.rand(5)), "one row an observation"),
        (lambda: observations(torch.zeros(0, 2), torch.zeros(0)), "one row an observation"),
        (lambda: observations(torch.rand(5, 2), torch.rand(5), noise=-0.1), "noise is -0.1"),
        (lambda: observations(torch.rand(5, 2), torch.rand(5), noise=0.1, seed=-1), "seed is -1"),
        (lambda: observations(torch.rand(5, 2), torch.rand(5), weight=torch.ones(4)), "one finite number"),
        (lambda: observations(torch.rand(5, 2), torch.rand(5), weight=-torch.ones(5)), "one finite number"),
        (lambda: scatter_observations({}, GRID, 5), "no fields"),
        (lambda: scatter_observations(fields(), GRID, 5), "the grid make"),
        (lambda: scatter_observations(fields(), GRID, 5, times=TIMES[:3]), "times and grid make"),
        (lambda: scatter_observations(fields(), GRID, 0, times=TIMES), "n is 0"),
        (lambda: scatter_observations(fields(), GRID, 10**6, times=TIMES), "of 4608 points"),
    ],
)
def test_refusals(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
