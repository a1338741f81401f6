"""Kuramoto-Sivashinsky against an independent solver, its linear theory and its balance of energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from opflow import Grid
from opflow.pde import FourierSpace, GridDerivatives
from opflow.problems import KuramotoSivashinsky

GRID = Grid(64, (0.0, 22.0), "periodic")


def test_an_independent_solver_agrees() -> None:
    """SciPy's Runge-Kutta 8 on the real and imaginary parts of the coefficients, with the product as a sum over pairs of modes."""
    problem, m = KuramotoSivashinsky(convection=1.5, antidiffusion=0.9, hyperviscosity=0.5), 16
    initial = problem.sample(1, GRID)["initial"]
    space = FourierSpace(GRID)
    c = space.coefficients(initial)
    c[:, m + 1 :] = 0
    initial = space.field(c)
    k = 2 * np.pi / 22.0 * np.arange(-21, 22)  # the modes that the two-thirds rule keeps of 64

    def rate(t: float, y: np.ndarray) -> np.ndarray:
        half = y[:22] + 1j * y[22:]
        whole = np.concatenate([half[:0:-1].conj(), half])
        square = np.convolve(whole, whole)[21:64]
        change = (0.9 * k**2 - 0.5 * k**4) * whole - 0.5 * 1.5 * 1j * k * square
        return np.concatenate([change[21:].real, change[21:].imag])

    start = c[0, :22].numpy()
    result = solve_ivp(rate, (0, 1.0), np.concatenate([start.real, start.imag]), "DOP853", rtol=1e-11, atol=1e-13)
    found = space.coefficients(problem.solve({"initial": initial}, GRID, times=[0.0, 1.0])["slope"][:, -1])[0, :22]
    expected = result.y[:22, -1] + 1j * result.y[22:, -1]
    assert np.abs(found.numpy() - expected).max() < 1e-8 * np.abs(expected).max()


def test_small_waves_grow_and_decay_at_their_rates() -> None:
    """exp((b k^2 - d k^4) t)."""
    problem, x = KuramotoSivashinsky(antidiffusion=1.2, hyperviscosity=0.7), GRID.coordinates(0)
    for number in (1, 3, 5):
        k = 2 * np.pi * number / 22.0
        wave = 1e-7 * torch.sin(k * x)[None]
        end = problem.solve({"initial": wave}, GRID, rtol=1e-10)["slope"]
        torch.testing.assert_close(end, np.exp(1.2 * k**2 - 0.7 * k**4) * wave, rtol=0, atol=1e-12)


def test_the_balance_of_energy() -> None:
    """d/dt mean u^2 / 2 = mean(b u_x^2 - d u_xx^2): the convection moves energy but makes none; the mean stays."""
    problem = KuramotoSivashinsky(cutoff=6)
    times = torch.linspace(0.0, 0.2, 81, dtype=torch.float64)
    u = problem.solve(problem.sample(2, GRID), GRID, times=times, rtol=1e-9)["slope"]
    d = GridDerivatives(GRID)(u)
    energy, gain = 0.5 * u.square().mean(-1), (d.d("x").square() - d.d("xx").square()).mean(-1)
    step = float(times[1])
    simpson = step / 3 * (gain[:, 0] + gain[:, -1] + 4 * gain[:, 1:-1:2].sum(1) + 2 * gain[:, 2:-1:2].sum(1))
    torch.testing.assert_close(energy[:, -1] - energy[:, 0], simpson, rtol=1e-5, atol=0)
    assert u.mean(-1).abs().max() < 1e-12


def test_trajectories_zero_the_residual_with_the_order_of_the_differences() -> None:
    problem, errors = KuramotoSivashinsky(cutoff=6), []
    initial = problem.sample(1, GRID)
    for nt in (41, 81, 161):
        times = torch.linspace(1.0, 2.0, nt, dtype=torch.float64)
        u = problem.solve(initial, GRID, times=torch.cat([torch.zeros(1).double(), times]))["slope"][:, 1:]
        grid = Grid((nt, 64), ((1.0, 2.0), (0.0, 22.0)), ("nodes", "periodic"), ("t", "x"))
        residual = problem.residual(GridDerivatives(grid)(u[:, None], names=("slope",)), {})["momentum"]
        errors.append(float(residual.abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_long_trajectories_stay_bounded_and_do_not_die() -> None:
    """On 22 units the attractor has |u| < 4."""
    problem = KuramotoSivashinsky(final_time=150.0, cutoff=4)
    initial = problem.sample(2, GRID)["initial"]
    end = problem.solve({"initial": initial}, GRID, rtol=1e-3)["slope"]
    assert end.abs().amax(-1).min() > 0.5 and end.abs().max() < 4.5
