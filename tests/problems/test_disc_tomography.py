"""Impedance tomography on the disc: exact maps, symmetries, derivatives, thoraxes and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.problems import DiscTomography

N = torch.arange(1, 17, dtype=torch.float64).repeat_interleave(2)  # of cos n theta, sin n theta


def matrix(a: Tensor, problem: DiscTomography | None = None, sensors: int | None = None) -> Tensor:
    return (problem or DiscTomography()).observe({"conductivity": a}, sensors)["measurements"][:, :, 0]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def rotated(matrices: Tensor, angle: float) -> Tensor:
    """The matrix of a conductivity that is turned counter-clockwise: R F R^T with the rotation of (cos n theta, sin n theta)."""
    blocks = [
        torch.tensor(
            [[math.cos(n * angle), -math.sin(n * angle)], [math.sin(n * angle), math.cos(n * angle)]],
            dtype=torch.float64,
        )
        for n in range(1, matrices.shape[-1] // 2 + 1)
    ]
    rotation = torch.block_diag(*blocks)
    return rotation @ matrices @ rotation.T


def test_a_homogeneous_disc_has_the_map_n() -> None:
    """Lambda_c - Lambda_1 = (c - 1) n, to a share of (n h)^2 / 150; ordinary bilinear elements are worse by a hundred at n = 1."""
    for size, error in ((70, 1.5e-2), (140, 1.5e-3)):
        found = matrix(torch.full((1, size, size), 3.0))[0]
        assert ((found.diagonal() / (2 * N)) - 1).abs().max() < error
        assert (found.diagonal()[:2] / 2 - 1).abs().max() < 2e-7
        assert (found - torch.diag(found.diagonal())).abs().max() < 1e-10


@pytest.mark.parametrize(("radius", "value"), [(0.6, 3.0), (0.4, 0.2)])
def test_a_radial_inclusion(radius: float, value: float) -> None:
    """n (1 + m R^2n) / (1 - m R^2n) - n with m = (value - 1) / (value + 1): of second order."""
    m = (value - 1) / (value + 1)
    power = m * radius ** (2 * N)
    expected, errors = torch.diag(2 * N * power / (1 - power)), []
    for size in (40, 80, 160):
        grid = Grid.polar(size, size)
        a = torch.where(grid.points()[..., 1] < radius, value, 1.0)[None]
        errors.append(relative(matrix(a)[0], expected))
    assert errors[1] < 2e-4 and errors[0] / errors[1] > 3.7 and 3.7 < errors[1] / errors[2] < 6


def test_a_conductivity_of_angle_and_radius() -> None:
    """a = v^2 and u = w / v with harmonic v and w: the current v dw/dr - w dv/dr of the voltage w / v, of second order."""
    problem, errors = DiscTomography(), []
    theta = torch.arange(512, dtype=torch.float64) * (2 * math.pi / 512)
    basis = torch.stack([f(n * theta) for n in range(1, 17) for f in (torch.cos, torch.sin)]) / math.sqrt(math.pi)
    x, y = theta.cos(), theta.sin()
    v, dv = 2 + 0.5 * x - 0.3 * y, 0.5 * x - 0.3 * y
    w, dw = torch.cos(2 * theta) + 0.7 * torch.sin(theta), 2 * torch.cos(2 * theta) + 0.7 * torch.sin(theta)
    voltage, current = (basis @ f * (2 * math.pi / 512) for f in (w / v, v * dw - w * dv))
    for size in (36, 72, 144):
        grid = Grid.polar(size, size)
        x, y = grid.cartesian_points().unbind(-1)
        found = voltage @ matrix((2 + 0.5 * x - 0.3 * y)[None] ** 2, problem)[0]
        errors.append(relative(found, current - N * voltage))
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3.7 and errors[1] / errors[2] > 3.7


def test_symmetries() -> None:
    """Symmetric; turning the thorax turns the map; its mirror image has another one, with the signs of the sines."""
    problem, grid = DiscTomography(), Grid.polar(48, 20)
    a = problem.sample(2, grid, split="test")["conductivity"]
    f = matrix(a)
    torch.testing.assert_close(f, f.mT, rtol=0, atol=1e-11)
    for steps in (1, 17):
        expected = rotated(f, 2 * math.pi * steps / 48)
        torch.testing.assert_close(matrix(a.roll(steps, 1)), expected, rtol=0, atol=1e-10)
    mirrored = matrix(a[:, (-torch.arange(48)) % 48])
    sign = torch.tensor([1.0, -1.0]).double().repeat(16)
    torch.testing.assert_close(mirrored, sign[:, None] * f * sign, rtol=0, atol=1e-10)
    assert relative(mirrored, f) > 0.05, "the real basis tells left from right"


def test_more_conductivity_is_more_current() -> None:
    problem, grid = DiscTomography(), Grid.polar(40, 12)
    a = problem.sample(1, grid)["conductivity"]
    bump = torch.zeros_like(a)
    bump[0, 5, 9] = 1.0
    rise = matrix(a + bump) - matrix(a)
    assert torch.linalg.eigvalsh(rise).min() > -1e-12 and torch.linalg.eigvalsh(rise).max() > 1e-3


def test_derivatives_are_those_of_the_discrete_map() -> None:
    problem, grid = DiscTomography(n_harmonics=3), Grid.polar(15, 8)
    generator = torch.Generator().manual_seed(0)
    forward = problem.forward(grid, sensors=5)
    a = problem.sample([4, 5], grid)["conductivity"]
    directions = torch.randn(6, *grid.shape, dtype=torch.float64, generator=generator)
    data, jacobian = forward.linearise(a[0], directions)
    assert jacobian.shape == (6, 1, 5, 6)
    torch.testing.assert_close(data, forward(a)[0])
    step = 1e-5
    difference = (forward(a[0] + step * directions) - forward(a[0] - step * directions)) / (2 * step)
    assert relative(jacobian, difference.movedim(0, -1)) < 1e-8
    a.requires_grad_()
    cotangent = torch.randn(2, 6, 1, 5, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(forward(a), a, cotangent)
    expected = torch.einsum("lcsk,lcs->k", jacobian, cotangent[0])
    torch.testing.assert_close(torch.einsum("xy,kxy->k", gradient[0], directions), expected)
    assert torch.autograd.gradcheck(forward, (a,))


def test_thoraxes() -> None:
    """One function on every grid: a body of 1, lungs left and right, a heart above the middle, nothing at the rim."""
    problem, grid = DiscTomography(), Grid.polar(60, 30)
    a = problem.sample(200, grid)["conductivity"]
    assert torch.equal(a[[7, 3]], problem.sample([7, 3], grid)["conductivity"])
    fine = problem.sample(200, Grid.polar(120, 90))["conductivity"]
    assert torch.equal(fine[:, ::2, 1::3], a), "cells of a third have the same middles"
    assert not torch.equal(problem.sample([7], grid, split="test")["conductivity"], a[[7]])
    x, y = grid.cartesian_points().unbind(-1)
    w = grid.quadrature_weights()
    assert (a[:, (x**2 + y**2) > 0.98**2] == 1).all()
    lung, heart = a < 1, a > 1
    assert a[lung].min() >= 0.4 and a[lung].max() <= 0.7 and a[heart].min() >= 1.5 and a[heart].max() <= 2.5
    left, right = lung & (x < 0), lung & (x > 0)
    assert ((left * w).sum((1, 2)) > 0.1).all() and ((right * w).sum((1, 2)) > 0.1).all()
    centre = (heart * w * y).sum((1, 2)) / (heart * w).sum((1, 2))
    assert ((centre > 0.2) & (centre < 0.55)).all()
    for i in range(20):
        assert len(a[i].unique()) == 4
    # Lungs lean towards each other: their upper parts are nearer to the middle.
    upper, lower = right & (y > 0.1), right & (y < -0.1)
    x_upper, x_lower = (float((part * w * x).sum() / (part * w).sum()) for part in (upper, lower))
    assert x_upper < x_lower - 0.03


def test_layout_noise_and_descriptors() -> None:
    problem, grid = DiscTomography(), Grid.polar(40, 20)
    inputs = problem.sample(2, grid)
    clean, noisy, again = (problem.observe(inputs, noise=level, seed=3) for level in (0.0, 0.05, 0.05))
    assert clean["measurements"].shape == (2, 32, 1, 32) and clean["mask"].shape == (2, 32) and clean["mask"].all()
    assert torch.equal(noisy["measurements"], again["measurements"])
    error = (noisy["measurements"] - clean["measurements"]).flatten(1).square().mean(1).sqrt()
    size = clean["measurements"].flatten(1).square().mean(1).sqrt()
    assert (error / size / 0.05 - 1).abs().max() < 0.1
    assert problem.descriptors.shape == (32, 3) and torch.pdist(problem.descriptors).min() > 0.05
    assert problem.descriptors[5].tolist() == [3 / 16, 0.0, 1.0]  # sin 3 theta
    few, many = matrix(inputs["conductivity"], sensors=5), matrix(inputs["conductivity"], sensors=36)
    torch.testing.assert_close(few, matrix(inputs["conductivity"])[..., :5])
    torch.testing.assert_close(many[..., :32], matrix(inputs["conductivity"]))
    assert matrix(torch.ones(0, 40, 20)).shape == (0, 32, 32)


def test_bad_input_is_refused() -> None:
    problem, grid = DiscTomography(n_harmonics=3), Grid.polar(8, 6)
    for bad, sentence in ((-1.0, "of sample 1 falls to -1"), (math.nan, "NaN or infinity in sample 1")):
        a = torch.ones(2, 8, 6)
        a[1, 3, 3] = bad
        with pytest.raises(ValueError, match=sentence):
            problem.observe({"conductivity": a})
        with pytest.raises(ValueError, match="the coefficient"):
            problem.forward(grid).linearise(a[1], torch.ones(1, 8, 6))
    with pytest.raises(ValueError, match="needs 'conductivity'"):
        problem.observe({})
    with pytest.raises(ValueError, match=r"conductivity has shape \(8, 6\)"):
        problem.observe({"conductivity": torch.ones(8, 6)})
    with pytest.raises(ValueError, match=r"expected \(n, n_theta, n_r\) with the grid \(8, 6\)"):
        problem.observe({"conductivity": torch.ones(1, 9, 6)}, grid=grid)
    with pytest.raises(ValueError, match="6 angles, which cannot hold sin 3 theta; give at least 7"):
        problem.forward(Grid.polar(6, 6))
    with pytest.raises(ValueError, match="8 angles, which cannot hold sin 4 theta"):
        problem.forward(grid, sensors=7)
    for wrong in (Grid((8, 6)), Grid.polar(8, 6, 2.0)):
        with pytest.raises(ValueError, match="lives on the unit disc"):
            problem.sample(1, wrong)
    with pytest.raises(ValueError, match=r"lungs is \(0\.0, 1\.0\)"):
        DiscTomography(lungs=(0, 1))
    with pytest.raises(ValueError, match="n_harmonics is 0"):
        DiscTomography(n_harmonics=0)
