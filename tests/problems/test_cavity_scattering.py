"""Scattering in a cavity: exact waves and their orders, symmetry, resonances, and the derivative of the discrete map."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.problems import CavityScattering, Helmholtz
from opflow.problems.cavity_map import CavityMap


def small(**parts: Any) -> CavityScattering:
    return CavityScattering(**{"n_measurements": 4, "sensors_per_side": 6, **parts})


def normals(sensors: int) -> Tensor:
    sides = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    return sides.repeat_interleave(sensors, 0)


def around(sensors: int) -> Tensor:
    """Sensors counter-clockwise from (0, 0)."""
    t = torch.arange(1, sensors + 1, dtype=torch.float64) / (sensors + 1)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    sides = [(t, zero), (one, t), (t.flip(0), one), (zero, t.flip(0))]
    return torch.cat([torch.stack(side, 1) for side in sides])


@pytest.mark.parametrize("omega", [2 * math.pi, 10.0])
def test_plane_waves_where_the_index_is_one(omega: float) -> None:
    problem = small(omega=omega)
    fluxes = problem.observe({"index": torch.ones(1, 33, 33)})["measurements"][0, :, 0]
    direction = torch.stack([problem.angles.cos(), problem.angles.sin()], 1)
    exact = -omega * torch.sin(omega * (around(6) @ direction.T)).T * (normals(6) @ direction.T).T
    assert fluxes.shape == (4, 24)
    assert (fluxes - exact).abs().max() < 1e-6 * omega


def test_the_order_in_the_elements_and_in_the_grid() -> None:
    """u = exp(s(x)) cos(8 y) with s = sin(2 x) / 4 solves it for a^2 = (64 - s'' - s'^2) / omega^2."""
    omega, errors = 5.0, []

    def exact(points: Tensor) -> Tensor:
        return (torch.exp(torch.sin(2 * points[..., 0]) / 4) * torch.cos(8 * points[..., 1]))[None]

    points = around(5).requires_grad_()
    (slopes,) = torch.autograd.grad(exact(points).sum(), points)
    expected = (slopes * normals(5)).sum(1)
    for n in (7, 13, 33, 65):
        x = Grid((n, n)).points()[..., 0]
        s1, s2 = torch.cos(2 * x) / 2, -torch.sin(2 * x)
        a = ((64 - s2 - s1**2) / omega**2).sqrt()
        F = CavityMap(Grid((n, n)), omega, exact, 5)
        errors.append(float((F(a[None])[0, 0, 0] - expected).abs().max()))
    assert errors[1] < errors[0] / 20  # what the grid does not say about the index
    assert errors[2] < 1e-6 and errors[3] < errors[2] / 4  # six and eight elements a side


def test_it_is_the_helmholtz_equation_of_the_speed_one_over_the_index() -> None:
    problem, grid = small(n_measurements=1), Grid((65, 65))  # eight elements in both
    a = problem.sample([2], grid)["index"]
    wave = problem.forward(grid).boundary(grid.points())
    helmholtz = Helmholtz(omega=problem.omega, background=3.0, boundary="dirichlet", resonance_tolerance=0.0)
    u = helmholtz.solve({"wave_speed": 1 / a, "boundary": wave}, grid)["field"]
    torch.testing.assert_close(problem.forward(grid).fields(a)[:, 0], u, rtol=1e-6, atol=1e-6)


def test_a_finer_grid_measures_the_same_at_the_same_sensors() -> None:
    problem = small()
    fluxes = [problem.observe(problem.sample(2, Grid((n, n))), grid=Grid((n, n)))["measurements"] for n in (35, 69)]
    assert (fluxes[0] - fluxes[1]).norm() < 5e-3 * fluxes[1].norm()


def test_the_mirror_image_of_a_medium_has_that_of_its_measurements() -> None:
    """In the diagonal: cos(omega x) becomes cos(omega y), the wave of L / 2; sides change places and are read backwards."""
    problem = small()
    a = problem.sample([1], Grid((33, 33)))["index"]
    upright = problem.observe({"index": a})["measurements"][0, 0, 0]
    mirrored = problem.observe({"index": a.mT})["measurements"][0, 2, 0]
    sides = upright.view(4, 6)[[3, 2, 1, 0]].flip(1).flatten()
    torch.testing.assert_close(mirrored, sides, rtol=1e-8, atol=1e-7)


def test_linearise_and_autograd_are_the_derivative_of_the_discrete_map() -> None:
    problem, grid = small(), Grid((17, 17))
    a = problem.sample([0], grid)["index"]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 17, 17, generator=generator, dtype=torch.float64)
    F = problem.forward(grid)
    data, jacobian = F.linearise(a[0], directions)
    assert data.shape == (4, 1, 24) and jacobian.shape == (4, 1, 24, 3)
    torch.testing.assert_close(data, F(a)[0], rtol=1e-10, atol=1e-10)
    step = 1e-5
    for i, direction in enumerate(directions):
        difference = (F(a + step * direction) - F(a - step * direction))[0] / (2 * step)
        assert (jacobian[..., i] - difference).norm() < 1e-6 * difference.norm()
    weights = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad((F(a)[0] * weights).sum(), a)
    expected = (jacobian * weights[..., None]).sum((0, 1, 2))
    torch.testing.assert_close((gradient * directions).sum((1, 2)), expected, rtol=1e-8, atol=1e-8)


def test_samples() -> None:
    problem = small()
    fine, coarse = (problem.sample([0, 4], Grid((n, n)))["index"] for n in (33, 17))
    torch.testing.assert_close(fine[:, ::2, ::2], coarse, rtol=0, atol=1e-15)
    assert torch.equal(problem.sample([4], Grid((17, 17)))["index"][0], coarse[1])
    assert not torch.equal(problem.sample([4], Grid((17, 17)), split="test")["index"][0], coarse[1])
    many = problem.sample(30, Grid((25, 25)))["index"]
    assert float(many.min()) >= 1 and 1.5 < float(many.max()) <= 5
    assert problem.sample([], Grid((9, 9)))["index"].shape == (0, 9, 9)


def test_boundary_functions_are_distinct() -> None:
    problem = CavityScattering()
    g = problem._waves(around(20))
    apart = (g[:, None] - g).abs().amax(-1) + 10 * torch.eye(20)
    assert float(apart.min()) > 0.1
    assert problem.descriptors.shape == (20, 3) and len(problem.descriptors.round(decimals=9).unique(dim=0)) == 20


def test_resonances_are_refused_and_drawn_again() -> None:
    """The empty cavity resonates at omega^2 = pi^2 (j^2 + k^2)."""
    omega = math.pi * math.sqrt(5) * (1 + 1e-4)
    a = torch.ones(1, 17, 17, dtype=torch.float64)
    near = small(omega=omega)
    assert float(near.forward(Grid((17, 17))).nearest_resonance(a)) == pytest.approx(1 - 2e-4, abs=1e-5)
    with pytest.raises(ValueError, match=r"index of sample 0 resonates at omega = 7.02.*resonance_tolerance=0.01"):
        near.observe({"index": a})
    assert bool(small(omega=omega, resonance_tolerance=0.0).observe({"index": a})["measurements"].isfinite().all())
    wide = small(resonance_tolerance=0.04)
    grid = Grid((49, 49))
    distance = (wide.forward(grid).nearest_resonance(wide.sample(6, grid)["index"]) - 1).abs()
    assert float(distance.min()) >= 0.08
    assert bool(((small().sample(6, grid)["index"] - wide.sample(6, grid)["index"]).abs().amax((1, 2)) > 0).any())
    with pytest.raises(RuntimeError, match="all but excludes"):
        small(resonance_tolerance=0.45).sample(3, grid)


def test_observe_adds_noise_and_takes_other_sensors() -> None:
    problem = small()
    a = problem.sample(1, Grid((17, 17)))
    clean = problem.observe(a)
    assert clean["measurements"].dtype == torch.float64 and clean["mask"].tolist() == [[True] * 4]
    noisy = problem.observe(a, noise=0.1, seed=3)["measurements"]
    rms = clean["measurements"].square().mean().sqrt()
    assert 0.07 < float((noisy - clean["measurements"]).square().mean().sqrt() / rms) < 0.13
    assert torch.equal(noisy, problem.observe(a, noise=0.1, seed=3)["measurements"])
    assert problem.observe(a, 3)["measurements"].shape == (1, 4, 1, 12)


def test_bad_input_is_refused() -> None:
    problem, a = small(), torch.ones(2, 9, 9, dtype=torch.float64)
    a[1, 3, 3] = 0
    with pytest.raises(ValueError, match="index of sample 1 falls to 0; it must be positive"):
        problem.observe({"index": a})
    a[1, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in sample 1"):
        problem.observe({"index": a})
    with pytest.raises(ValueError, match="needs 'index'"):
        problem.observe({"speed": a})
    with pytest.raises(ValueError, match="one field a sample"):
        problem.observe({"index": a[0]})
    with pytest.raises(ValueError, match=r"nodes of the unit square.*use Grid\(\(n, n\)\)"):
        problem.sample(1, Grid((9, 9), layout="cells"))
    with pytest.raises(ValueError, match="sensors"):
        problem.observe({"index": a[:1]}, 0)
    with pytest.raises(ValueError, match="waves along a side"):
        problem.observe({"index": torch.full((1, 9, 9), 100.0)})
    for parts, sentence in (
        ({"omega": -1.0}, "omega"),
        ({"n_measurements": 0}, "n_measurements"),
        ({"margin": 0.7}, "margin is 0.7"),
    ):
        with pytest.raises(ValueError, match=sentence):
            CavityScattering(**parts)
