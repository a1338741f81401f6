"""Korteweg-de Vries against solitons and a published file, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from opflow import Grid
from opflow.pde import GridDerivatives
from opflow.problems import KortewegDeVries

Solitons = tuple[tuple[float, float], ...]


def exact(problem: KortewegDeVries, grid: Grid, t: float, solitons: Solitons) -> Tensor:
    x = grid.coordinates(0)
    return problem.exact(torch.stack([torch.full_like(x, t), x], dim=-1), solitons)["height"][None]


@pytest.mark.parametrize(
    ("n", "extent", "final", "solitons"),
    [
        (384, (-20.0, 20.0), 1.0, ((2.0, -2.0),)),
        (512, (-30.0, 30.0), 4.0, ((1.6, -5.0), (0.9, 0.0))),  # the first runs through the second
    ],
    ids=["one", "two"],
)
def test_solitons(n: int, extent: tuple[float, float], final: float, solitons: Solitons) -> None:
    problem, grid = KortewegDeVries(), Grid(n, extent, "periodic")
    initial, expected = (exact(problem, grid, t, solitons) for t in (0.0, final))
    found = problem.solve({"initial": initial}, grid, times=[0.0, final], rtol=1e-8)["height"][:, -1]
    assert (found - expected).norm() < 1e-8 * expected.norm()
    assert (expected - initial).norm() > expected.norm(), "they have moved"


def test_the_published_trajectory(reference_data) -> None:
    """Two solitons on 512 points, 201 times. The file jumps by 1e-4 at the ends of its interval, and is good to some 2e-5."""
    file = loadmat(reference_data("pysindy/kdv.mat"))
    expected, grid = torch.from_numpy(file["usol"].real.T.copy()), Grid(512, (-30.0, 30.0), "periodic")
    found = KortewegDeVries().solve({"initial": expected[:1]}, grid, times=file["t"].ravel(), rtol=1e-5)["height"][0]
    assert (found - expected).norm() < 5e-5 * expected.norm()


def test_one_soliton_is_the_known_one() -> None:
    problem, grid = KortewegDeVries(convection=2.0, dispersion=0.5), Grid(400, (-20.0, 20.0), "periodic")
    x, (k, centre), t = grid.coordinates(0), (1.3, -1.0), 1.7
    eta = k * (x - centre) - 0.5 * k**3 * t
    expected = 3 * 0.5 * k**2 / 2.0 / torch.cosh(eta / 2).square()
    torch.testing.assert_close(exact(problem, grid, t, ((k, centre),))[0], expected, rtol=1e-13, atol=1e-16)


def test_solitons_far_apart_are_a_sum_and_leave_shifted() -> None:
    """After the encounter the fast one is ahead by log((k + l) / (k - l)) 2 / k, the slow one behind by the like   (Hirota 1971)."""
    problem, grid, (k, l) = KortewegDeVries(), Grid(2000, (-100.0, 100.0), "periodic"), (1.5, 1.0)
    for t in (-30.0, 30.0):
        together = exact(problem, grid, t, ((k, 0.0), (l, 0.0)))
        phase = 2 * np.log((k + l) / (k - l))
        shifted = ((k, 0.0 if t < 0 else phase / k), (l, phase / l if t < 0 else 0.0))
        apart = sum(exact(problem, grid, t, (one,)) for one in shifted)
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_three_solitons_solve_the_equation() -> None:
    """The formula holds for any number; the residual on a grid of space and time falls with the order of the differences."""
    problem, solitons, errors = KortewegDeVries(), ((1.5, -3.0), (1.1, 0.0), (0.8, 2.0)), []
    for nt in (101, 201):
        grid = Grid((nt, 512), ((0.0, 1.0), (-45.0, 45.0)), ("nodes", "periodic"), ("t", "x"))
        height = problem.exact(grid.points(), solitons)["height"]
        residual = problem.residual(GridDerivatives(grid)(height[None], names=problem.unknowns), {})["momentum"]
        errors.append(float(residual.abs().max()))
    assert 3.6 < errors[0] / errors[1] < 4.2


def test_what_the_equation_keeps() -> None:
    """Mass, momentum and energy: int u, int u^2, int c u^3 / 3 - e u_x^2   (Miura, Gardner and Kruskal 1968)."""
    problem, grid = KortewegDeVries(cutoff=6, sigma=10.0), Grid(192, (-20.0, 20.0), "periodic")
    u = problem.solve(problem.sample(2, grid), grid, times=[0.0, 0.5, 1.0], rtol=1e-9)["height"]
    slope = GridDerivatives(grid)(u).d("x")
    energy = problem.convection * u**3 / 3 - problem.dispersion * slope.square()
    for density, size in ((u, u.abs()), (u.square(), u.square()), (energy, energy.abs())):
        total = density.mean(-1)
        assert ((total - total[:, :1]).abs() < 1e-8 * size.mean(-1)).all()


@pytest.mark.parametrize("solitons", [(), ((0.0, 0.0),), ((-1.0, 0.0),), ((1.0, 0.0), (1.0, 3.0))])
def test_what_are_no_solitons_is_refused_in_a_sentence(solitons: Solitons) -> None:
    with pytest.raises(ValueError, match=r"solitons are .*; give pairs \(k, x\) with positive, different k"):
        KortewegDeVries().exact(torch.zeros(3, 2, dtype=torch.float64), solitons)
