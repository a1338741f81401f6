"""Burgers against the Cole-Hopf solution, a published file, and what the equation keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from opflow import Grid
from opflow.problems import Burgers


def cole_hopf(t: float, x: np.ndarray, viscosity: float) -> np.ndarray:
    """u(t, x) from u(0, x) = -sin(pi x), by Gauss-Hermite quadrature of the heat kernel (Basdevant et al. 1986).

    u = -int sin(pi y) F(y) G(x - y) dy / int F(y) G(x - y) dy,  F = exp(-cos(pi y) / (2 pi nu)),  y = x - sqrt(4 nu t) z.
    """
    z, weights = np.polynomial.hermite.hermgauss(200)
    y = x[:, None] - np.sqrt(4 * viscosity * t) * z
    exponent = -np.cos(np.pi * y) / (2 * np.pi * viscosity)
    kernel = weights * np.exp(exponent - exponent.max(1, keepdims=True))
    return -(kernel * np.sin(np.pi * y)).sum(1) / kernel.sum(1)


def test_a_shock_against_cole_hopf() -> None:
    """nu = 0.01 / pi: the wave has steepened to a slope of 150 at t = 1/2 (Basdevant et al. 1986)."""
    nu, grid, times = 0.01 / np.pi, Grid(2048, (-1.0, 1.0), "periodic"), [0.0, 0.25, 0.5, 1.0]
    x = grid.coordinates(0)
    initial = -torch.sin(torch.pi * x)[None]
    found = Burgers(nu).solve({"initial": initial}, grid, times=times, rtol=1e-8)["velocity"][0].numpy()
    for frame, t in zip(found[1:], times[1:], strict=True):
        assert np.abs(frame - cole_hopf(t, x.numpy(), nu)).max() < 1e-8


def test_the_published_trajectory(reference_data) -> None:
    """A Gaussian, nu = 0.1, 256 points, 101 times; the file itself has errors of 7e-9."""
    file = loadmat(reference_data("pysindy/burgers.mat"))
    expected = torch.from_numpy(file["usol"].real.T.copy())
    assert np.abs(file["usol"].imag).max() < 1e-8, "the file's own rounding"
    grid = Grid(256, (-8.0, 8.0), "periodic")
    np.testing.assert_allclose(file["x"].ravel(), grid.coordinates(0), atol=1e-12)
    found = Burgers(0.1).solve({"initial": expected[:1]}, grid, times=file["t"].ravel(), rtol=1e-9)["velocity"][0]
    assert (found - expected).norm() < 1e-8 * expected.norm()


def solved(initial: Tensor, grid: Grid, viscosity: float = 0.02) -> Tensor:
    return Burgers(viscosity).solve({"initial": initial}, grid, times=[0.0, 0.1, 0.3], rtol=1e-9)["velocity"]


def test_what_the_equation_keeps() -> None:
    """The mean stays, the energy falls, and reflections, translations and moving frames go through the solution."""
    grid = Grid(128, layout="periodic")
    u0 = Burgers(cutoff=8).sample(3, grid)["initial"] + 0.3
    u = solved(u0, grid)
    close = {"rtol": 0, "atol": 1e-7 * float(u0.abs().max())}
    means, energies = u.mean(-1), u.square().mean(-1)
    torch.testing.assert_close(means, means[:, :1].expand_as(means), rtol=1e-12, atol=0)
    assert (energies.diff(dim=1) < 0).all()
    mirrored = -u0.flip(-1).roll(1, -1)
    torch.testing.assert_close(solved(mirrored, grid), -u.flip(-1).roll(1, -1), **close)
    torch.testing.assert_close(solved(u0.roll(17, -1), grid), u.roll(17, -1), **close)
    # A frame of speed 1.25 moves by 0.125 in the time 0.1: 16 points of 128.
    torch.testing.assert_close(solved(u0 + 1.25, grid)[:, 1], u[:, 1].roll(16, -1) + 1.25, **close)


def test_lengths_and_times_have_units() -> None:
    """x -> 4 x, t -> 8 t, nu -> 2 nu, u -> u / 2 is the same solution."""
    small, large = Grid(96, (0.0, 1.0), "periodic"), Grid(96, (-3.0, 1.0), "periodic")
    u0 = Burgers(cutoff=8).sample(2, small)["initial"]
    here = Burgers(0.05, final_time=0.25).solve({"initial": u0}, small)["velocity"]
    there = Burgers(0.1, final_time=2.0).solve({"initial": u0 / 2}, large)["velocity"]
    torch.testing.assert_close(there, here / 2, rtol=0, atol=1e-10)


def test_convection_is_a_unit_of_the_velocity() -> None:
    """c u solves the equation with c = 1; without convection a wave decays as heat does."""
    grid, c = Grid(96, layout="periodic"), -1.7
    u0 = Burgers(cutoff=8).sample(2, grid)["initial"]
    found = Burgers(0.05, convection=c, final_time=0.3).solve({"initial": u0}, grid)["velocity"]
    expected = Burgers(0.05, final_time=0.3).solve({"initial": c * u0}, grid)["velocity"] / c
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = Burgers(0.05, convection=c).exact(points)["velocity"]
    torch.testing.assert_close(exact, Burgers(0.05).exact(points)["velocity"] / c)
    still = Burgers(0.05, convection=0.0, final_time=0.3)
    wave = torch.sin(2 * torch.pi * grid.coordinates(0))[None]
    decay = np.exp(-0.05 * 4 * np.pi**2 * 0.3)
    torch.testing.assert_close(still.solve({"initial": wave}, grid)["velocity"], decay * wave, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="convection is 0"):
        still.exact(points)


def test_the_law_is_the_published_one() -> None:
    """N(0, 625 (-Laplacian + 25)^(-2)), without its mean: a deviation of 1.162 and coefficients 25 / (4 pi^2 k^2 + 25)."""
    law = Burgers().initial_law()
    k = np.arange(1, 129)
    assert law.standard_deviation(1) == pytest.approx(
        np.sqrt(2 * ((25 / (4 * np.pi**2 * k**2 + 25)) ** 2).sum()), rel=1e-13
    )
    grid = Grid(64, layout="periodic")
    samples = Burgers().sample(400, grid)["initial"]
    assert samples.mean(-1).abs().max() < 1e-3, (
        "what is left is the alias of wave numbers that 64 points do not resolve"
    )
    assert float(samples.square().mean().sqrt()) == pytest.approx(law.standard_deviation(1), rel=0.1)
    with_mean = Burgers(mean_mode=True).initial_law()
    assert with_mean.standard_deviation(1) == pytest.approx(np.hypot(law.standard_deviation(1), 1.0), rel=1e-13)


def test_the_law_is_refused_in_a_sentence_before_any_work() -> None:
    for options in ({"sigma": 0.0}, {"tau": -1.0}, {"alpha": float("nan")}, {"cutoff": 0}):
        with pytest.raises(ValueError, match="alpha, sigma and cutoff must be positive, tau not negative"):
            Burgers(**options)
    with pytest.raises(ValueError, match="infinite variance for tau = 0"):
        Burgers(tau=0.0, mean_mode=True)
