"""Scattering in the plane: against the Mie series, reciprocity and the optical theorem; the derivative of the discrete map."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import h1vp, hankel1, jv, jvp
from torch import Tensor

from opflow import Grid
from opflow.problems import OpenScattering
from opflow.problems.scattering_targets import Ellipse, draw_rods, paint
from opflow.solvers.lippmann_schwinger import LippmannSchwinger, VolumePotential, _truncated_symbol, free_space_green

ORDERS = np.arange(-40, 41)


def mie(k: float, index: float, radius: float, points: Tensor) -> Tensor:
    """The wave that a disc at the origin scatters from exp(i k x), by separation of variables."""
    inside, outside = index * k * radius, k * radius
    numerator = index * jvp(ORDERS, inside) * jv(ORDERS, outside) - jv(ORDERS, inside) * jvp(ORDERS, outside)
    denominator = jv(ORDERS, inside) * h1vp(ORDERS, outside) - index * jvp(ORDERS, inside) * hankel1(ORDERS, outside)
    r, angle = np.hypot(*points.numpy().T), np.arctan2(*points.numpy().T[::-1])
    waves = hankel1(ORDERS, k * r[:, None]) * np.exp(1j * ORDERS * angle[:, None])
    return torch.from_numpy(waves @ (1j**ORDERS * numerator / denominator))


def as_complex(measurements: Tensor) -> Tensor:
    return torch.complex(measurements[..., 0, :], measurements[..., 1, :])


def problem_with(**parts: Any) -> OpenScattering:
    return OpenScattering(**{"wavenumbers": (6.0,), "incidences": 4, "receivers": 12, **parts})


def disc(grid: Grid, radius: float = 0.4, contrast: float = 1.3**2 - 1) -> Tensor:
    return paint([Ellipse(0.0, 0.0, (radius, radius), 0.0, contrast)], grid)


# The potential and the equation


def test_the_potential_inverts_the_helmholtz_operator_spectrally() -> None:
    """f = -(lap + k^2) u of a Gaussian u that vanishes at the edge."""
    k, s2, errors = 10.0, 0.02, []
    for shape in ((20, 26), (28, 36)):
        grid = Grid(shape, ((-1.0, 1.0), (-1.2, 1.2)), "cells")
        x, y = grid.points().unbind(-1)
        r2 = (x - 0.1) ** 2 + y**2
        u = torch.exp(-r2 / (2 * s2))
        f = -((r2 / s2**2 - 2 / s2) * u + k**2 * u)
        errors.append(float((VolumePotential(grid, k)(f.to(torch.complex128)) - u).abs().max()))
    assert errors[1] < 1e-5 and errors[1] < errors[0] / 30


def test_the_potential_of_a_disc_at_its_centre() -> None:
    """int g(0, y) dy over a disc of radius a = i pi a H_1(k a) / (2 k) - 1 / k^2."""
    grid, k = Grid((61, 61), (-0.5, 0.5), "cells"), 5.0
    centre = VolumePotential(grid, k)(disc(grid, 0.4, 1.0).to(torch.complex128))[30, 30]
    exact = 0.5j * math.pi * 0.4 * hankel1(1, 0.4 * k) / k - 1 / k**2
    assert abs(complex(centre) - exact) < 1e-3 * abs(exact)


def test_the_symbol_has_a_value_where_a_frequency_meets_the_wavenumber() -> None:
    near = _truncated_symbol(np.array([1 - 1e-4, 1.0, 1 + 1e-4]) * 7.0, 7.0, 1.5)
    assert abs(near[1] - (near[0] + near[2]) / 2) < 1e-6 * abs(near[1])


def test_the_scattered_wave_is_that_of_the_mie_series() -> None:
    problem, errors = OpenScattering(incidences=1, receivers=64), []  # k = 10, a disc of index 1.3
    for n in (32, 64, 128):
        grid = problem.grid(n)
        F = problem.forward(grid, rtol=1e-9)
        exact = mie(10.0, 1.3, 0.4, F.receivers)
        found = as_complex(F(disc(grid)[None]))[0, 0]
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 1e-3 and errors[2] < 2.5e-4
    assert all(3.2 < coarse / fine < 6.0 for coarse, fine in itertools.pairwise(errors))  # second order


def test_reciprocity() -> None:
    """A source at y seen at x is a source at x seen at y."""
    problem = problem_with(incident="line", incidences=12, receivers=12)
    grid = problem.grid(24)
    s = as_complex(problem.forward(grid)(problem.sample([3], grid)["contrast"]))[0]
    assert (s - s.T).abs().max() < 1e-9 * s.abs().max() and s.abs().min() > 0


def test_a_lossless_target_keeps_the_energy() -> None:
    """Optical theorem: with u = sum (a_n J_n + c_n H_n) e^(i n t) on the circle, sum |c_n|^2 + Re(conj(a_n) c_n) = 0."""
    problem, losses = problem_with(incidences=1, receivers=64), []
    for n in (24, 48):
        grid = problem.grid(n)
        s = as_complex(problem.forward(grid)(problem.sample([0], grid)["contrast"]))[0, 0].numpy()
        order = np.fft.fftfreq(64, 1 / 64)
        c = np.fft.fft(s) / 64 / hankel1(order, 6.0 * problem.receiver_radius)
        keep = np.abs(order) < 20
        a, c = 1j ** order[keep], c[keep]
        losses.append(abs(float((np.abs(c) ** 2 + (a.conj() * c).real).sum())) / float((np.abs(c) ** 2).sum()))
    assert losses[1] < 1e-4 and losses[1] < losses[0] / 3


def test_a_weak_target_scatters_its_born_field() -> None:
    problem = problem_with()
    grid = problem.grid(24)
    q = 1e-6 * problem.sample([1], grid)["contrast"]
    F = problem.forward(grid)
    points = grid.points()
    angle = problem.angles[2]
    u = torch.exp(6j * (points @ torch.stack([angle.cos(), angle.sin()]))).flatten()
    born = 36 * grid.spacing[0] ** 2 * free_space_green(F.receivers, points.reshape(-1, 2), 6.0) @ (q.flatten() * u)
    assert (as_complex(F(q))[0, 2] - born).norm() < 1e-5 * born.norm()


def test_plane_waves_are_line_sources_far_away() -> None:
    near, grid = problem_with(), problem_with().grid(16)
    q = near.sample([0], grid)["contrast"]
    far = problem_with(incident="line", source_radius=1e5)
    scale = complex(free_space_green(torch.tensor([[1e5, 0.0]]), torch.zeros(1, 2), 6.0).item())
    # A source at angle t sends a wave that travels towards -t: two of four incidences on.
    plane = as_complex(near.forward(grid)(q))[0].roll(2, 0)
    assert (as_complex(far.forward(grid)(q))[0] / scale - plane).norm() < 1e-3 * plane.norm()


def test_fields_solve_the_equation() -> None:
    problem = problem_with(wavenumbers=(4.0, 6.0))
    grid = problem.grid(20)
    q = problem.sample(2, grid)["contrast"]
    F = problem.forward(grid)
    u = F.fields(q)
    assert u.shape == (2, 8, 20, 20)
    A = LippmannSchwinger(q[1:], VolumePotential(grid, 6.0))
    travelled = A.apply(u[1:, 4])[0]
    torch.testing.assert_close(travelled, torch.exp(6j * grid.points()[..., 0]), rtol=0, atol=1e-8)


# The derivative


def test_linearise_is_the_derivative_of_the_discrete_map() -> None:
    problem = problem_with(wavenumbers=(3.0, 6.0))
    grid = problem.grid(16)
    q = problem.sample([2], grid)["contrast"][0]
    directions = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    F = problem.forward(grid, rtol=1e-13)
    data, jacobian = F.linearise(q, directions)
    assert data.shape == (8, 2, 12) and jacobian.shape == (8, 2, 12, 3)
    torch.testing.assert_close(data, F(q[None])[0], rtol=0, atol=1e-12)
    step = 1e-5
    for i, direction in enumerate(directions):
        difference = (F(q[None] + step * direction) - F(q[None] - step * direction))[0] / (2 * step)
        assert (jacobian[..., i] - difference).norm() < 1e-7 * difference.norm()


def test_autograd_is_the_transpose_of_linearise() -> None:
    problem = problem_with(wavenumbers=(3.0, 6.0))
    grid = problem.grid(16)
    q = problem.sample(2, grid)["contrast"].requires_grad_()
    F = problem.forward(grid)
    weights = torch.randn(2, 8, 2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((F(q) * weights).sum(), q)
    direction = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sample in range(2):
        _, jacobian = F.linearise(q[sample].detach(), direction[None])
        expected = (jacobian[..., 0] * weights[sample]).sum()
        torch.testing.assert_close((gradient[sample] * direction).sum(), expected, rtol=1e-8, atol=1e-12)


def test_single_precision_contrasts_get_single_precision_gradients() -> None:
    problem = problem_with(incidences=1)
    q = torch.full((1, 8, 8), 0.3, requires_grad=True)
    F = problem.forward(problem.grid(8))
    F(q).square().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32 and bool(q.grad.isfinite().all())


# Samples and measurements


@pytest.mark.parametrize("law", ["discs", "ellipses", "rods"])
def test_a_sample_is_one_target_on_every_grid(law: str) -> None:
    problem = problem_with(law=law)
    fine = problem.sample([0, 3], problem.grid(48))["contrast"]
    coarse = problem.sample([0, 3], problem.grid(24))["contrast"]
    averaged = problem.grid(48).subsample(fine, 2)
    assert (averaged - coarse).abs().mean() < 0.02 * coarse.abs().mean()
    assert torch.equal(problem.sample([3], problem.grid(24))["contrast"][0], coarse[1])
    assert not torch.equal(problem.sample([3], problem.grid(24), seed=1)["contrast"][0], coarse[1])
    assert problem.sample([], problem.grid(24))["contrast"].shape == (0, 24, 24)
    edge = torch.cat([fine[:, [0, -1]].flatten(), fine[:, :, [0, -1]].flatten()])
    assert not edge.any() and bool((fine >= 0).all())


def test_rods_keep_apart_and_inside_the_square() -> None:
    for seed in range(40):
        foam, *rods = draw_rods(np.random.default_rng(seed), 0.085)
        assert len(rods) <= 4 and 0.25 <= foam.contrast <= 0.7
        for i, rod in enumerate(rods):
            r = rod.half_axes[0]
            distance = math.hypot(rod.x - foam.x, rod.y - foam.y)
            inside = distance <= foam.half_axes[0] - r + 1e-12
            assert inside or distance >= foam.half_axes[0] + r - 1e-12
            assert math.hypot(rod.x, rod.y) + r < 0.085
            for other in rods[:i]:
                assert math.hypot(rod.x - other.x, rod.y - other.y) >= r + other.half_axes[0] - 1e-12


def test_paint_averages_over_cells() -> None:
    problem = problem_with()
    q = paint([Ellipse(0.1, 0.0, (0.3, 0.15), 0.5, 2.0), Ellipse(0.1, 0.0, (0.1, 0.1), 0.0, 0.5)], problem.grid(32))
    area = math.pi * (0.3 * 0.15 * 2.0 - 0.01 * 1.5)
    assert float(q.sum()) / 32**2 == pytest.approx(area, rel=5e-3)
    assert float(q.max()) == 2.0 and q[19, 16] == 0.5


def test_observe_and_the_descriptors() -> None:
    problem = problem_with(wavenumbers=(3.0, 6.0))
    q = problem.sample(2, problem.grid(16))
    clean = problem.observe(q)
    assert clean["measurements"].shape == (2, 8, 2, 12) and clean["measurements"].dtype == torch.float64
    assert clean["mask"].shape == (2, 8) and bool(clean["mask"].all())
    single = problem_with(wavenumbers=(6.0,)).observe(q)["measurements"]
    torch.testing.assert_close(clean["measurements"][:, 4:], single)
    noisy = problem.observe(q, noise=0.05, seed=1)["measurements"]
    error = noisy - clean["measurements"]
    rms = clean["measurements"].square().mean((1, 2, 3)).sqrt()
    assert (error.square().mean((1, 2, 3)).sqrt() / rms - 0.05).abs().max() < 0.01
    assert torch.equal(noisy, problem.observe(q, noise=0.05, seed=1)["measurements"])
    assert problem.observe(q, 5)["measurements"].shape == (2, 8, 2, 5)
    points = torch.tensor([[1.0, 0.3], [0.0, -2.0]])
    at = problem.observe(q, points)["measurements"]
    whole = problem.observe(q, 4)["measurements"]
    torch.testing.assert_close(at[..., 1], whole[..., 3], rtol=1e-6, atol=1e-9)
    assert problem.descriptors.shape == (8, 3) and len(problem.descriptors.round(decimals=9).unique(dim=0)) == 8


def test_no_target_scatters_nothing() -> None:
    problem = problem_with()
    assert not problem.observe({"contrast": torch.zeros(1, 8, 8, dtype=torch.float64)})["measurements"].any()


REFUSED = {
    "equal wavenumbers": ({"wavenumbers": (3.0, 3.0)}, "no two equal"),
    "wavenumber": ({"wavenumbers": (-3.0,)}, "positive"),
    "law": ({"law": "stars"}, "law is 'stars'; choose one of discs"),
    "incident": ({"incident": "beam"}, "incident is 'beam'"),
    "receivers": ({"receivers": 0}, "receivers 0"),
    "radius": ({"receiver_radius": 0.7}, "receiver_radius is 0.7; it must be more than 0.7071"),
    "contrast": ({"contrast": (-1.5, 0.0)}, "above -1"),
}


@pytest.mark.parametrize(("parts", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_problems_are_refused(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OpenScattering(**parts)


def test_bad_inputs_are_refused() -> None:
    problem = problem_with()
    q = torch.zeros(1, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs 'contrast'"):
        problem.observe({"permittivity": q})
    with pytest.raises(ValueError, match="NaN or infinity"):
        problem.observe({"contrast": q * torch.nan})
    with pytest.raises(ValueError, match=r"falls to -1.5; 1 \+ contrast"):
        problem.observe({"contrast": q - 1.5})
    with pytest.raises(ValueError, match="inside the rectangle"):
        problem.observe({"contrast": q}, torch.tensor([[2.0, 0.0], [0.1, 0.2]]))
    with pytest.raises(ValueError, match="sensors"):
        problem.observe({"contrast": q}, 0)
    with pytest.raises(ValueError, match=r"use problem.grid\(n\)"):
        problem.sample(1, Grid((8, 8)))
    with pytest.raises(ValueError, match="its last 2 axes must be the grid"):
        problem.observe({"contrast": q}, grid=problem.grid(9))
    with pytest.raises(ValueError, match="one sample"):
        problem.forward(problem.grid(8)).linearise(q, q)


def test_elimination_among_few_cells_is_the_same_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_with(wavenumbers=(9.0,))
    grid = problem.grid(20)
    q = problem.sample(2, grid)["contrast"]
    directly = problem.forward(grid, rtol=1e-12)(q)
    monkeypatch.setattr("opflow.problems.scattering_map.MOST_ELIMINATED", 0)
    torch.testing.assert_close(problem.forward(grid, rtol=1e-12)(q), directly, rtol=1e-9, atol=1e-11)
