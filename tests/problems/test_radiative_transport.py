"""Radiative transport: what is known of slabs, and the derivative of the discrete map."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.problems import RadiativeTransport


def cells(n: int) -> Grid:
    return Grid((n,), layout="cells")


def measured(problem: RadiativeTransport, a: Tensor) -> Tensor:
    """(L, sensors) of one medium."""
    return problem.observe({"scattering": a[None]})["measurements"][0, :, 0]


def cosines(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights of (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def smooth_medium(n: int) -> Tensor:
    x = cells(n).coordinates(0)
    return 1.3 + 0.6 * torch.sin(5 * x) + 0.2 * x


def test_an_absorber_is_exponential_at_order_two() -> None:
    """Without scattering u(1, v) = exp(-sharpness (v - v_l)^2 - absorption / v), and nothing comes back."""
    problem = RadiativeTransport(absorption=0.7)
    v, _ = cosines(16)
    v_l = problem.descriptors[16:, 0]
    assert torch.equal(v, v_l)
    exact = torch.exp(-200 * (v - v_l[:, None]) ** 2 - 0.7 / v)
    errors = []
    for n in (35, 70, 140):
        found = measured(problem, torch.full((n,), 1e-14, dtype=torch.float64))
        assert found[16:, :16].abs().max() < 1e-12
        errors.append(float((found[16:, 16:] - exact)[:, 4:].abs().max()))  # below v = 0.12 35 cells are thick
    assert errors[2] < 1e-5
    assert all(3.8 < coarse / fine < 4.4 for coarse, fine in itertools.pairwise(errors)), errors


def test_light_that_is_only_scattered_is_conserved() -> None:
    """sum_s w_s v_s u_s over both ends is that of what enters, to rounding, on any grid."""
    problem = RadiativeTransport(absorption=0.0, n_angles=16)
    v, w = cosines(16)
    current = torch.cat([(w * v).flip(0), w * v])
    for n in (5, 40):
        found = measured(problem, smooth_medium(n))
        entered = (torch.exp(-200 * (v - v[:, None]) ** 2) * w * v).sum(1)
        torch.testing.assert_close(found @ current, torch.cat([entered.flip(0), entered]), rtol=1e-13, atol=0)


def test_reciprocity() -> None:
    """v_s u(s) per unit of light in direction l is v_l u(-l) per unit in direction -s. So narrow a beam is one node."""
    problem = RadiativeTransport(sharpness=1e7, n_angles=16)
    v, w = cosines(16)
    response = measured(problem, smooth_medium(30)) * torch.cat([v.flip(0), v]) / torch.cat([w.flip(0), w])[:, None]
    response.diagonal().zero_()  # what went straight through is of one direction
    torch.testing.assert_close(response, response.flip((0, 1)).T, rtol=1e-11, atol=1e-14)
    assert (response - response.T).abs().max() > 1e-2 * response.max()


def test_mirror_images() -> None:
    """a(1 - x) is measured as a(x) with both ends exchanged; a medium that is its own image cannot be told from itself."""
    problem, a = RadiativeTransport(), smooth_medium(30)
    torch.testing.assert_close(measured(problem, a.flip(0)), measured(problem, a).flip((0, 1)), rtol=1e-12, atol=1e-15)


def test_a_thick_slab_reflects_as_chandrasekhar_says() -> None:
    """u(0, -mu) = w/2 H(mu) int H(mu') mu' / (mu + mu') u(0, mu') dmu',   H(mu) = 1 + w/2 mu H(mu) int H(mu') / (mu + mu') dmu'."""
    share = 0.8  # of scattering in extinction
    problem = RadiativeTransport(absorption=10.0, knudsen=1 / 40)
    found = measured(problem, torch.ones(600, dtype=torch.float64))
    mu, weights = cosines(200)
    H = torch.ones_like(mu)
    for _ in range(200):
        H = 1 / (1 - share / 2 * mu * ((weights * H) / (mu[:, None] + mu)).sum(1))
    v, _ = cosines(16)
    H_v = 1 / (1 - share / 2 * v * ((weights * H) / (v[:, None] + mu)).sum(1))
    inflow = torch.exp(-200 * (mu - v[:, None]) ** 2)  # (l, mu')
    exact = share / 2 * H_v * torch.einsum("m,sm,lm->ls", weights * H * mu, 1 / (v[:, None] + mu), inflow)
    found = found[16:, :16].flip(1)[:, 4:]  # directions that leave at x = 0, not the grazing ones
    assert float((found - exact[:, 4:]).abs().max() / exact.max()) < 1e-3


def test_diffusion_through_many_free_paths() -> None:
    """Isotropic light, nothing absorbed: 4/3 / (tau + 2 * 0.7104) of it comes through, on cells of five free paths."""
    problem = RadiativeTransport(absorption=0.0, knudsen=1 / 200, sharpness=1e-12, n_inflow=1, n_sensors=32)
    v, w = cosines(32)
    found = measured(problem, torch.ones(40, dtype=torch.float64))
    share = float((found[1, 32:] * w * v).sum() / (w * v).sum())
    assert share == pytest.approx(4 / 3 / (200 + 2 * 0.7104), rel=5e-3)


def test_without_absorption_only_the_thickness_is_seen() -> None:
    """Two media of one integral are measured alike, to the order of the scheme; absorption tells them apart."""
    differences = {}
    for absorption in (0.0, 1.0):
        for n in (70, 140):
            problem = RadiativeTransport(absorption=absorption)
            x = cells(n).coordinates(0)
            a, b = (1 + 0.5 / k * torch.cos(2 * torch.pi * k * x) for k in (1, 2))
            data = measured(problem, a)
            differences[absorption, n] = float((measured(problem, b) - data).norm() / data.norm())
    assert differences[0.0, 70] < 1e-3 and differences[0.0, 140] < differences[0.0, 70] / 3
    assert differences[1.0, 70] > 0.01 and differences[1.0, 140] == pytest.approx(differences[1.0, 70], rel=0.05)


@pytest.mark.parametrize("medium", ["box", "smooth"])
def test_measurements_converge(medium: str) -> None:
    """Every sensor is where it was on every grid, and errors fall at order two where the medium is smooth."""
    problem = RadiativeTransport(medium)
    data = {n: problem.observe(problem.sample(3, cells(n)))["measurements"] for n in (35, 70, 140, 560)}
    errors = [float((data[n] - data[560]).norm() / data[560].norm()) for n in (35, 70, 140)]
    assert errors[1] < 3e-3 and errors[0] > errors[1] > errors[2]
    if medium == "smooth":
        assert errors[0] / errors[2] > 12


def test_angles_of_the_mean_are_resolved() -> None:
    data = {n: measured(RadiativeTransport(n_angles=n), smooth_medium(70)) for n in (16, 32, 64)}
    error = {n: float((data[n] - data[64]).norm() / data[64].norm()) for n in (16, 32)}
    assert error[32] < 1e-4 < error[16] < 1e-2, error


def test_the_derivative_is_that_of_the_discrete_map() -> None:
    """Adjoint, autograd and central differences; exactly linear in its directions."""
    problem = RadiativeTransport(absorption=0.4, knudsen=0.8, n_angles=12)
    forward, generator = problem.forward(cells(20), 5), torch.Generator().manual_seed(0)
    a = problem.sample(1, cells(20))["scattering"]
    directions = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    data, jacobian = forward.linearise(a[0], directions)
    assert data.shape == (32, 1, 10) and jacobian.shape == (32, 1, 10, 4)
    assert torch.equal(data, forward(a)[0])
    step = 1e-4
    for k, direction in enumerate(directions):
        difference = (forward(a + step * direction) - forward(a - step * direction))[0] / (2 * step)
        assert (jacobian[..., k] - difference).abs().max() < 1e-6 * difference.abs().max()
    weights = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    variable = a.clone().requires_grad_()
    gradient = torch.autograd.grad((forward(variable)[0] * weights).sum(), variable)[0][0]
    torch.testing.assert_close(
        directions @ gradient, torch.einsum("lcs,lcsk->k", weights, jacobian), rtol=1e-10, atol=1e-12
    )
    assert forward.linearise(a[0], directions[:0])[1].shape == (32, 1, 10, 0)


def test_samples_are_one_function_on_every_grid() -> None:
    problem, fine = RadiativeTransport(), cells(140)
    a = problem.sample([3, 7], fine, split="test", seed=2)["scattering"]
    torch.testing.assert_close(
        fine.subsample(a, 2), problem.sample([3, 7], cells(70), split="test", seed=2)["scattering"]
    )
    assert torch.equal(problem.sample([7], fine, split="test", seed=2)["scattering"][0], a[1])
    many = problem.sample(400, cells(70))["scattering"]
    assert many.min() == 1 and 1.5 <= many.amax(1).min() < 1.6 and 1.9 < many.max() <= 2
    share = (many > 1.25).double().mean(1)
    assert 0.04 < share.min() < 0.12 and 0.6 < share.max() <= 0.82
    smooth = RadiativeTransport("smooth").sample(400, cells(70))["scattering"].log()
    assert float(smooth.square().mean().sqrt()) == pytest.approx(0.3, rel=0.1)


def test_measurements_are_laid_out_as_stated() -> None:
    problem, grid = RadiativeTransport(n_inflow=3, n_sensors=4), cells(30)
    inputs = problem.sample(2, grid)
    seen = problem.observe(inputs)
    assert seen["measurements"].shape == (2, 6, 1, 8) and seen["measurements"].dtype == torch.float64
    assert seen["mask"].shape == (2, 6) and seen["mask"].all()
    v, _ = cosines(3)
    torch.testing.assert_close(problem.descriptors[:, 0], torch.cat([-v.flip(0), v]))
    assert problem.descriptors[:, 1].tolist() == [1, 1, 1, 0, 0, 0]
    # What goes straight through leaves in the direction that it entered with: light of v > 0 to the right.
    clear = measured(RadiativeTransport(n_inflow=4, n_sensors=4, absorption=0.0), torch.full((30,), 1e-14).double())
    assert clear.argmax(1).tolist() == list(range(8))
    assert problem.observe(inputs, 7)["measurements"].shape == (2, 6, 1, 14)
    noisy = problem.observe(inputs, noise=0.05, seed=1)["measurements"]
    assert torch.equal(noisy, problem.observe(inputs, noise=0.05, seed=1)["measurements"])
    error = (noisy - seen["measurements"]).flatten(1).norm(dim=1) / seen["measurements"].flatten(1).norm(dim=1)
    assert torch.allclose(error, torch.full((2,), 0.05).double(), rtol=0.4)
    assert not torch.equal(noisy, problem.observe(inputs, noise=0.05, seed=2)["measurements"])


def test_blocks_do_not_change_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    from opflow.problems import radiative_transport

    problem, grid = RadiativeTransport(n_angles=8), cells(20)
    inputs = problem.sample(5, grid)
    whole = problem.observe(inputs)["measurements"]
    monkeypatch.setattr(radiative_transport, "NUMBERS_AT_ONCE", 24 * 20**2 * 2)
    torch.testing.assert_close(problem.observe(inputs)["measurements"], whole, rtol=1e-13, atol=1e-15)
    assert problem.observe({"scattering": torch.ones(0, 20)})["measurements"].shape == (0, 32, 1, 32)


def test_bad_input_is_refused_in_a_sentence() -> None:
    problem, grid = RadiativeTransport(), cells(9)
    for bad in (0.0, -1.0, math.nan, math.inf):
        a = torch.ones(2, 9)
        a[1, 4] = bad
        with pytest.raises(ValueError, match="scattering of sample 1 is not positive and finite"):
            problem.observe({"scattering": a})
    with pytest.raises(ValueError, match=r"scattering has shape \(2, 9\) but the grid is \(8,\)"):
        problem.observe({"scattering": torch.ones(2, 9)}, grid=cells(8))
    with pytest.raises(ValueError, match="needs 'scattering'"):
        problem.observe({"absorption": torch.ones(2, 9)})
    with pytest.raises(ValueError, match="lives on cells of the slab"):
        problem.sample(1, Grid((9,)))
    with pytest.raises(ValueError, match="sensors is 0"):
        problem.forward(grid, 0)
    with pytest.raises(ValueError, match="float64 is expected"):
        problem.forward(grid)(torch.ones(1, 9))
    for values in (
        {"medium": "cloud"}, {"absorption": -1.0}, {"knudsen": 0.0}, {"contrast": (1.0, 0.5)}, {"n_angles": 0}, {"width": (-1.0, 1.0)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(values))):
            RadiativeTransport(**values)
