"""Allen-Cahn against a published file, closed forms, and the principles of a gradient flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from opflow import Grid
from opflow.pde import GridDerivatives
from opflow.problems import AllenCahn


def test_the_published_trajectory(reference_data) -> None:
    """x^2 cos(pi x), whose slope jumps at x = 1, on the file's own 512 points; the file is not converged in space."""
    file = loadmat(reference_data("pinns/AC.mat"))
    expected, grid = torch.from_numpy(file["uu"].T.copy()), Grid(512, (-1.0, 1.0), "periodic")
    x = grid.coordinates(0)
    np.testing.assert_allclose(file["x"].ravel(), x, atol=1e-12)
    initial = (x.square() * torch.cos(torch.pi * x))[None]
    torch.testing.assert_close(initial[0], expected[0], rtol=0, atol=1e-15)
    found = AllenCahn().solve({"initial": initial}, grid, times=file["tt"].ravel())["phase"][0]
    assert (found - expected).norm() < 1e-10 * expected.norm()
    assert (found - expected).abs().max() < 1e-9


@pytest.mark.parametrize("reaction", [0.5, 5.0])
def test_a_constant_is_a_logistic_curve(reaction: float) -> None:
    """u = a / sqrt(a^2 + (1 - a^2) exp(-2 r t))."""
    grid, times = Grid(8, layout="periodic"), torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    a = torch.tensor([-1.0, -0.3, 0.0, 1e-3, 0.7, 1.5], dtype=torch.float64)[:, None]
    found = AllenCahn(reaction=reaction).solve({"initial": a.expand(-1, 8)}, grid, times=times, rtol=1e-11)["phase"]
    expected = a / torch.sqrt(a.square() + (1 - a.square()) * torch.exp(-2 * reaction * times))
    torch.testing.assert_close(found, expected[..., None].expand_as(found), rtol=1e-10, atol=1e-14)


def energy(u: Tensor, grid: Grid, problem: AllenCahn) -> Tensor:
    """int d / 2 u_x^2 + r / 4 (1 - u^2)^2, which the equation descends."""
    slope = GridDerivatives(grid)(u).d("x")
    return (problem.diffusivity / 2 * slope.square() + problem.reaction / 4 * (1 - u.square()).square()).mean(-1)


def test_a_gradient_flow_keeps_its_bounds_and_loses_energy() -> None:
    problem, grid = AllenCahn(diffusivity=1e-3), Grid(256, (-1.0, 1.0), "periodic")
    u0 = problem.sample(4, grid)["initial"]
    u0 = u0 / u0.abs().amax(-1, keepdim=True)
    u = problem.solve({"initial": u0}, grid, times=torch.linspace(0, 2, 9), rtol=1e-8)["phase"]
    assert u.abs().max() <= 1 + 1e-6
    assert (energy(u, grid, problem).diff(dim=1) < 1e-9).all()
    flipped = problem.solve({"initial": -u0}, grid, times=torch.linspace(0, 2, 9), rtol=1e-8)["phase"]
    torch.testing.assert_close(flipped, -u, rtol=0, atol=1e-12)


def test_a_phase_invades_zero_with_its_speed() -> None:
    """c = 3 sqrt(d r / 2): where u = 1/2 has come to, by the sum of u over the interval."""
    problem, grid = AllenCahn(diffusivity=4e-4), Grid(1024, (-2.0, 2.0), "periodic")
    x = grid.coordinates(0)
    initial = problem.exact(torch.stack([torch.zeros_like(x), x], -1))["initial"][None]
    u = problem.solve({"initial": initial}, grid, times=[0.0, 2.0], rtol=1e-8)["phase"][0]
    speed = float(u.sum(-1).diff()) * grid.spacing[0] / 2 / 2.0
    assert speed == pytest.approx(3 * (problem.diffusivity * problem.reaction / 2) ** 0.5, rel=1e-6)
