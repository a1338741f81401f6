"""The complete electrode model: theory, derivatives, calibration, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from opflow import Grid, Mesh
from opflow.problems import ElectrodeTomography, TankPhantoms, calibrate


def water(tank: ElectrodeTomography, value: float = 1.0) -> torch.Tensor:
    return torch.full((1, len(tank.mesh.cells)), value, dtype=torch.float64)


def series_voltages(
    tank: ElectrodeTomography, coverage: float, inner: float, ratio: float, modes: int = 1500
) -> np.ndarray:
    """Voltages (L, K) of the unit disc with a concentric disc of radius `inner`: the same model by Fourier series, no mesh.

    On the wall sigma du/dn = (U_e - u) / z on electrodes, and for u = e^(i n t) it is |n| (1 + m rho^2|n|) / (1 - m rho^2|n|) u.
    """
    count = len(tank.electrodes)
    z = float(tank.impedances[0])
    n = np.arange(-modes, modes + 1)
    m = (ratio - 1) / (ratio + 1)
    r = m * inner ** (2.0 * np.abs(n))
    neumann = np.abs(n) * (1 + r) / (1 - r)
    half, middles = coverage * np.pi / count, 2 * np.pi * np.arange(count) / count

    # int over electrode e of e^(i k t) dt
    def over(k: np.ndarray) -> np.ndarray:
        width = np.where(k == 0, 2 * half, 2 * np.sin(k * half) / np.where(k == 0, 1, k))
        return width * np.exp(1j * k * middles.reshape(-1, *[1] * k.ndim))

    differences = over(np.arange(2 * modes + 1)).sum(0)
    # Galerkin's matrix in e^(i n t): 2 pi N_n delta + 1/z int over electrodes of e^(i (n - m) t)
    from scipy.linalg import toeplitz

    contact = toeplitz(differences, differences.conj()) / z
    A = 2 * np.pi * np.diag(neumann) + contact.T
    B = over(-n) / z  # (count, n): from U_e
    C = 2 * half / z * np.eye(count) - (over(n) / z) @ np.linalg.solve(A, B.T)  # I = C U
    U = np.linalg.pinv(C.real, rcond=1e-10) @ tank.currents.numpy()
    return (tank.pattern.numpy().T @ U).T


def rounded(tank: ElectrodeTomography) -> ElectrodeTomography:
    """Refined, with the new points of the wall on the unit circle."""
    fine = tank.refined()
    points, wall = fine.mesh.points.clone(), fine.mesh.boundary_nodes
    points[wall] /= points[wall].norm(dim=1, keepdim=True)
    return replace(fine, mesh=Mesh(points, fine.mesh.cells))


@pytest.mark.parametrize("ratio", [1.0, 20.0, 0.05])
def test_converges_to_the_series_solution_of_concentric_discs(ratio: float) -> None:
    """Second order but for the kinks at electrodes' ends (h^2 log^2 h); the outline of an inclusion is a staircase, which costs an order."""
    tank = ElectrodeTomography.disc(8, sides=2, impedance=0.2)
    half, whole = (series_voltages(tank, 0.5, 0.5, ratio, modes) for modes in (150, 300))
    exact = (4 * whole - half) / 3  # the series converges at second order
    assert np.linalg.norm(whole - half) < 1e-3 * np.linalg.norm(exact)
    errors = []
    for _ in range(3):
        tank = rounded(tank)
        at = tank.mesh.points[tank.mesh.triangles].mean(1).norm(dim=1)
        found = tank.forward()(torch.where(at < 0.5, ratio, 1.0).double()[None])[0, :, 0].numpy()
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < (3e-3 if ratio == 1 else 6e-3), errors
    assert (orders > 1.55).all() if ratio == 1 else errors[2] < errors[0] / 3, (errors, orders)


def test_reciprocity_and_scaling() -> None:
    """Driving and measuring may change places; V(c sigma, z / c) = V / c."""
    tank = ElectrodeTomography.disc(8)
    sigma = tank.sample(1)["conductivity"]
    voltages = tank.observe({"conductivity": sigma})["measurements"][0, :, 0]
    torch.testing.assert_close(voltages, voltages.T, rtol=1e-10, atol=1e-12)
    thrice = replace(tank, impedances=tank.impedances / 3).forward()(3 * sigma)[0, :, 0]
    torch.testing.assert_close(thrice, voltages / 3, rtol=1e-9, atol=1e-12)


def test_one_dimensional_conduction_is_exact() -> None:
    """A strip between two full electrodes: resistance length / (sigma width) + z_1 / width + z_2 / width."""
    points = torch.tensor([[0.0, 0], [2, 0], [2, 1], [0, 1], [1, 0.4]], dtype=torch.float64)
    mesh = Mesh(points, torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]))
    column = torch.tensor([[1.0], [-1.0]])
    strip = ElectrodeTomography(
        mesh,
        [torch.tensor([[3, 0]]), torch.tensor([[1, 2]])],
        torch.tensor([0.1, 0.3], dtype=torch.float64),
        column,
        column,
    )
    assert float(strip.forward()(water(strip, 4.0))) == pytest.approx(2 / 4 + 0.4, rel=1e-12)


def test_jacobians_equal_finite_differences() -> None:
    tank = ElectrodeTomography.disc(8, impedance=0.05)
    F = tank.forward()
    generator = torch.Generator().manual_seed(0)
    sigma = tank.sample(1)["conductivity"][0].clamp(0.05, 20)
    directions = torch.randn(3, len(sigma), generator=generator, dtype=torch.float64) * sigma
    voltages, jacobian = F.linearise(sigma, directions)
    torch.testing.assert_close(voltages, F(sigma[None])[0], rtol=1e-12, atol=1e-14)
    h = 1e-4
    for k, direction in enumerate(directions):
        one, two = (
            (F((sigma + s * h * direction)[None]) - F((sigma - s * h * direction)[None]))[0] / (2 * s * h)
            for s in (1, 2)
        )
        difference = (4 * one - two) / 3  # fourth order
        assert float((jacobian[..., k] - difference).norm() / difference.norm()) < 1e-6
    contacts = F.impedance_jacobian(sigma)
    for e in (0, 7):
        step = torch.zeros(8, dtype=torch.float64)
        step[e] = h * 0.05
        one, two = (
            (replace(tank, impedances=tank.impedances + s * step).forward()(sigma[None]) - replace(tank, impedances=tank.impedances - s * step).forward()(sigma[None]))[0] / (2 * s * h * 0.05)
            for s in (1, 2)
        )  # fmt: skip
        difference = (4 * one - two) / 3
        assert float((contacts[..., e] - difference).norm() / difference.norm()) < 1e-6


def test_the_gradient_of_autograd_is_that_of_the_jacobian() -> None:
    tank = ElectrodeTomography.disc(8)
    F = tank.forward()
    sigma = tank.sample(2)["conductivity"].requires_grad_()
    weight = torch.randn(2, 8, 1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (F(sigma) * weight).sum().backward()
    for i in range(2):
        expected = torch.einsum("lckt,lck->t", F.jacobian(sigma[i].detach())[1], weight[i])
        torch.testing.assert_close(sigma.grad[i], expected, rtol=1e-9, atol=1e-12)


def test_pixels_are_directions() -> None:
    """The change of all pixels together is that of the whole conductivity."""
    tank = ElectrodeTomography.disc(8)
    inside, shares = tank.indicators(Grid((20, 20), (-1.0, 1.0), layout="cells"))
    assert shares.shape == (int(inside.sum()), len(tank.mesh.cells))
    torch.testing.assert_close(shares.sum(0), torch.ones(shares.shape[1], dtype=torch.float64))
    with pytest.raises(ValueError, match="beyond the grid"):
        tank.indicators(Grid((20, 20), (-0.5, 1.0), layout="cells"))


def test_a_refined_tank_has_the_same_phantoms_and_nearly_the_same_voltages() -> None:
    tank = ElectrodeTomography.disc(8, sides=4)
    fine = tank.refined()
    assert fine.mesh.area == pytest.approx(tank.mesh.area, rel=1e-12)
    assert len(fine.mesh.cells) == 4 * len(tank.mesh.cells)
    coarse_sigma, fine_sigma = (t.sample([3, 5])["conductivity"] for t in (tank, fine))
    averaged = fine_sigma.log().view(2, -1, 4).mean(-1).exp()
    torch.testing.assert_close(
        averaged, coarse_sigma, rtol=0.9, atol=0
    )  # the same inclusions, up to triangles that they cut
    assert float((averaged.log() - coarse_sigma.log()).abs().mean()) < 0.05
    a, b = (t.observe({"conductivity": s})["measurements"] for t, s in ((tank, coarse_sigma), (fine, fine_sigma)))
    assert float((a - b).norm() / b.norm()) < 0.08


def test_samples_are_one_phantom_everywhere() -> None:
    tank = ElectrodeTomography.disc(8, background=0.7)
    many = tank.sample(40)["conductivity"]
    torch.testing.assert_close(tank.sample([7])["conductivity"], many[[7]])
    assert float(many.min()) >= 0.7 * 1e-3 and float(many.max()) <= 0.7 * 500
    assert not torch.equal(tank.sample(2, split="test")["conductivity"], many[:2])
    picture = tank.sample([7], Grid((32, 32), (-1.0, 1.0), layout="cells"))["conductivity"][0]
    for value in (many[7].max(), many[7].min()):
        assert float(value) == pytest.approx(0.7) or bool(torch.isclose(picture, value).any())
    kinds = [((one < 0.6).any(), (one > 0.8).any()) for one in many]
    assert any(a and b for a, b in kinds) and any(a and not b for a, b in kinds)
    with pytest.raises(ValueError, match="resistive"):
        TankPhantoms(resistive=(0.1, 2.0))


def test_calibration_recovers_contacts_and_offsets() -> None:
    impedances = 0.02 * torch.exp(
        0.5 * torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    truth = replace(ElectrodeTomography.disc(16, background=0.6), impedances=impedances)
    offsets = 0.05 * torch.randn(16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    voltages = truth.forward()(water(truth, 0.6))[0, :, 0] + offsets
    voltages[3, 5] = torch.nan  # one that was not measured
    found = calibrate(ElectrodeTomography.disc(16), voltages)
    assert found.converged and found.misfit < 1e-3
    assert found.problem.background == pytest.approx(0.6, rel=1e-2)
    torch.testing.assert_close(found.problem.impedances, impedances, rtol=0.1, atol=0)
    torch.testing.assert_close(found.offsets, offsets, rtol=0.05, atol=2e-3)
    with pytest.raises(ValueError, match="wrong sign"):
        calibrate(ElectrodeTomography.disc(16), -voltages)
    with pytest.raises(ValueError, match="fewer than"):
        calibrate(ElectrodeTomography.disc(16), torch.full_like(voltages, torch.nan))


def test_noise_is_relative_and_repeatable() -> None:
    tank = ElectrodeTomography.disc(8)
    sigma = tank.sample(1)
    clean, noisy, again = (tank.observe(sigma, noise=level, seed=5)["measurements"] for level in (0.0, 0.01, 0.01))
    assert torch.equal(noisy, again)
    assert 0.005 < float((noisy - clean).square().mean().sqrt() / clean.square().mean().sqrt()) < 0.02
    assert tank.observe(sigma)["mask"].all() and tank.descriptors.shape == (8, 8)


def test_what_does_not_fit_is_refused() -> None:
    tank = ElectrodeTomography.disc(8)
    with pytest.raises(ValueError, match="not on the boundary"):
        inner = tank.mesh.triangles[(tank.mesh.points[tank.mesh.triangles].norm(dim=-1) < 0.6).all(1)][0, :2]
        replace(tank, electrodes=[inner[None], *tank.electrodes[1:]])
    with pytest.raises(ValueError, match="belongs to the electrodes 0 and 1"):
        replace(tank, electrodes=[tank.electrodes[0], tank.electrodes[0], *tank.electrodes[2:]])
    with pytest.raises(ValueError, match="sums to 1"):
        replace(tank, currents=torch.eye(8))
    with pytest.raises(ValueError, match="pattern sums"):
        replace(tank, pattern=torch.eye(8))
    with pytest.raises(ValueError, match="is zero"):
        replace(tank, currents=torch.zeros(8, 1))
    with pytest.raises(ValueError, match="NaN"):
        replace(tank, currents=torch.full((8, 1), torch.nan))
    with pytest.raises(ValueError, match="expected one positive number"):
        replace(tank, impedances=torch.tensor([0.1] * 7 + [0.0]))
    with pytest.raises(ValueError, match="background"):
        replace(tank, background=-1.0)
    sigma = tank.sample(1)["conductivity"]
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            tank.forward()(torch.full_like(sigma, bad))
    with pytest.raises(ValueError, match="one number a triangle"):
        tank.forward()(sigma[:, :-1])
    with pytest.raises(ValueError, match="own mesh"):
        tank.observe({"conductivity": sigma}, grid=tank.refined().mesh)
    with pytest.raises(ValueError, match="'conductivity'"):
        tank.observe({"permeability": sigma})
    with pytest.raises(ValueError, match="electrodes are built in"):
        tank.observe({"conductivity": sigma}, 16)
    with pytest.raises(ValueError, match="noise level"):
        tank.observe({"conductivity": sigma}, noise=-0.1)
