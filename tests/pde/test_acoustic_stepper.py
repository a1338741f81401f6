"""Acoustic waves: the exact solution in a uniform medium, what the absorbing layer reflects, and the exact adjoint."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow.pde import AcousticStepper, Shots, ricker


def stepper(n: int, *, h: float = 10.0, dt: float = 1e-3, speed: float = 4500.0, cells: int = 12) -> AcousticStepper:
    return AcousticStepper((n, n), (h, h), dt, speed=speed, frequency=15.0, absorbing_cells=cells)


def uniform(n: int, c: float) -> Tensor:
    return torch.full((1, n, n), c, dtype=torch.float64)


def one_shot(waves: AcousticStepper, place: list[int], steps: int, receivers: list[list[int]], every: int = 1) -> Shots:
    sources = waves.point_sources(torch.tensor([place]))
    return Shots(sources, ricker(15.0, waves.time_step, steps), torch.tensor(receivers), every)


def hankel(r: float, c: float, dt: float, steps: int) -> np.ndarray:
    """u = (1 / 2 pi) int w(omega) (-i / 4) H0_2(omega r / c) exp(i omega t) domega, the outgoing wave of a line source."""
    special = pytest.importorskip("scipy.special")
    w = np.fft.rfft(np.pad(ricker(15.0, dt, steps).numpy(), (0, 2**15 - steps)))
    omega = 2 * np.pi * np.fft.rfftfreq(2**15, dt)
    green = np.zeros_like(w)
    green[1:] = -0.25j * special.hankel2(0, omega[1:] * r / c)
    return np.fft.irfft(w * green)[:steps]


def test_the_exact_wave_of_a_line_source_at_order_two() -> None:
    receivers, c, errors = [[24, 40], [12, 12], [0, 24]], 2500.0, []
    distances = [160.0, 10 * math.hypot(12, 12), 240.0]
    for dt in (1e-3, 5e-4):
        waves, steps = stepper(49, dt=dt), int(0.4 / dt) + 1
        found = waves.records(uniform(49, c), one_shot(waves, [24, 24], steps, receivers))[0, 0].numpy()
        exact = np.stack([hankel(r, c, dt, steps) for r in distances], axis=1)
        errors.append(np.linalg.norm(found - exact, axis=0) / np.linalg.norm(exact, axis=0))
    assert (errors[1] < 2e-3).all(), errors
    ratio = errors[0] / errors[1]
    assert (ratio > 3.8).all() and (ratio < 4.2).all(), ratio


def test_space_is_resolved_at_high_order() -> None:
    """One source and one time step on spacings of 20, 10 and 5 m: the error of space alone falls more than 2^7 times."""
    data = {}
    for ratio in (1, 2, 4):
        n = 14 * ratio + 1
        waves = stepper(n, h=20.0 / ratio, cells=6 * ratio)
        sources = waves.point_sources(torch.tensor([[7 * ratio, 7 * ratio]]), width=ratio)
        shots = Shots(sources, ricker(22.0, 1e-3, 180), ratio * torch.tensor([[7, 12], [3, 4]]))
        data[ratio] = waves.records(uniform(n, 2500.0), shots)
    coarse, fine = (float((data[r] - data[4]).norm() / data[4].norm()) for r in (1, 2))
    assert coarse < 0.1 and coarse / fine > 2**7, (coarse, fine)


def test_the_first_entry_of_a_record_is_t_0() -> None:
    """u^0 = 0, u^1 = (c dt)^2 w^0 / h^2 at the source and nowhere else; the wave of u^2 is heard next door."""
    waves = stepper(9)
    shots = Shots(
        waves.point_sources(torch.tensor([[4, 4]])), torch.tensor([3.0, 0.0, 0.0]), torch.tensor([[4, 4], [4, 5]])
    )
    found = waves.records(uniform(9, 2000.0), shots)[0, 0]
    courant = (2000 * 1e-3 / 10) ** 2
    expected = [[0, 0], [3 * courant, 0], [3 * courant * (2 - courant * 2 * 205 / 72), 3 * courant**2 * 8 / 5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    every = waves.records(uniform(9, 2000.0), Shots(shots.sources, shots.wavelet, shots.receivers, 2))[0, 0]
    assert torch.equal(every, found[::2])


def by_slices(c: Tensor, source: tuple[int, int], wavelet: list[float], dt: float, h: float) -> list[Tensor]:
    """The scheme written out point by point, before waves reach the boundary."""
    weights = [-205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560]
    point = torch.zeros_like(c)
    point[source] = 1.0
    u, before, fields = torch.zeros_like(c), torch.zeros_like(c), []
    for w in wavelet:
        fields.append(u)
        lap = 2 * weights[0] * u
        for k in range(1, 5):
            lap = lap + weights[k] * sum(torch.roll(u, s, axis) for s in (k, -k) for axis in (0, 1))
        u, before = 2 * u - before + (c * dt / h) ** 2 * (lap + w * point), u
    return fields


def test_the_scheme_and_its_derivatives_are_those_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    waves, n = stepper(41, cells=4), 41
    c = 2000 + 500 * torch.rand(n, n, generator=generator, dtype=torch.float64)
    steps = 9  # at four nodes a step nothing has come back from the layer
    wavelet = torch.randn(steps, generator=generator, dtype=torch.float64)
    receivers = torch.tensor([[20, 20], [20, 22], [18, 19]])
    shots = Shots(waves.point_sources(torch.tensor([[20, 20]])), wavelet, receivers)

    def written_out(c: Tensor) -> Tensor:
        fields = by_slices(c, (20, 20), wavelet.tolist(), 1e-3, 10.0)
        return torch.stack([field[receivers[:, 0], receivers[:, 1]] for field in fields])

    ours, theirs = c.clone().requires_grad_(), c.clone().requires_grad_()
    found, expected = waves.records(ours[None], shots)[0, 0], written_out(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert found[-1].abs().min() > 1e-4
    for records in (found, expected):
        records.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-18)


def random_shots(every: int = 1) -> tuple[AcousticStepper, Tensor, Shots]:
    generator = torch.Generator().manual_seed(0)
    waves = AcousticStepper((16, 20), (10.0, 12.0), 1e-3, speed=3000.0, frequency=25.0, absorbing_cells=5)
    c = 2000 + 300 * torch.randn(2, 16, 20, generator=generator, dtype=torch.float64)
    sources = waves.point_sources(torch.tensor([[3.0, 4.0], [8.3, 12.6]]))
    return waves, c, Shots(sources, ricker(25.0, 1e-3, 121), torch.tensor([[0, 3], [1, 7], [0, 19]]), every)


@pytest.mark.parametrize("every", [1, 3])
def test_the_gradient_is_that_of_the_discrete_records(every: int) -> None:
    """With the waves of 120 steps going through the layer and back: central differences, and the tangents of linearisation."""
    waves, c, shots = random_shots(every)
    generator = torch.Generator().manual_seed(1)
    variable = c.clone().requires_grad_()
    records = waves.records(variable, shots)
    assert records.shape == (2, 2, (121 - 1) // every + 1, 3)
    weights = torch.randn(records.shape, generator=generator, dtype=torch.float64)
    gradient = torch.autograd.grad((records * weights).sum(), variable)[0]
    directions = 100 * torch.randn(3, 16, 20, generator=generator, dtype=torch.float64)
    data, derivatives = waves.tangents(c[1], directions, shots)
    torch.testing.assert_close(data, records[1].detach(), rtol=1e-12, atol=1e-18)
    step = 1e-3
    for direction, derivative in zip(directions, derivatives, strict=True):
        ahead, behind = (waves.records((c[1] + sign * step * direction)[None], shots)[0] for sign in (1, -1))
        difference = (ahead - behind) / (2 * step)
        assert (derivative - difference).abs().max() < 1e-6 * difference.abs().max()
        torch.testing.assert_close((gradient[1] * direction).sum(), (derivative * weights[1]).sum(), rtol=1e-9, atol=0)


def test_gradients_do_not_depend_on_where_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waves, c, shots = random_shots()

    def gradient() -> Tensor:
        variable = c.clone().requires_grad_()
        return torch.autograd.grad(waves.records(variable, shots).square().sum(), variable)[0]

    expected = gradient()
    for length in (1, 7, 500):
        monkeypatch.setattr(math, "isqrt", lambda n, length=length: length)
        torch.testing.assert_close(gradient(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("c", [1500.0, 4500.0])
def test_what_the_layer_reflects(c: float) -> None:
    """Against a domain three times as wide with a layer twice as thick, for a shot in a corner, whose waves graze two sides."""
    n, steps, receivers = 24, 300, [[0, 5], [0, 23], [23, 0], [23, 23], [12, 12]]
    waves, wide = stepper(n), stepper(3 * n, cells=24)
    found = waves.records(uniform(n, c), one_shot(waves, [0, 1], steps, receivers))[0, 0]
    shots = one_shot(wide, [n, n + 1], steps, [[n + i, n + j] for i, j in receivers])
    expected = wide.records(uniform(3 * n, c).float(), shots)[0, 0].double()
    error = float((found - expected).norm() / expected.norm())
    assert error < 2e-3, error


def test_waves_leave() -> None:
    """In a random medium, 2 s after the shot, single precision: hardly anything is left and it falls."""
    c = 1500 + 3000 * torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    waves = stepper(20)
    found = waves.records(c, one_shot(waves, [10, 10], 3000, [[0, 0], [12, 15]]))[0, 0].abs()
    assert found[2000:].max() < 1e-4 * found.max() and found[-100:].max() < 0.5 * found[2000:].max()


def test_steps_that_are_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is sharp: stable below it, and above it not."""
    waves = stepper(16)
    limit = waves.largest_speed
    assert limit == pytest.approx(5546, rel=1e-3)
    shots = one_shot(waves, [8, 8], 700, [[4, 4]])
    assert waves.records(uniform(16, 0.999 * limit), shots).abs().max() < 1
    with pytest.raises(ValueError, match=r"stable up to 5546.* only; take shorter steps"):
        waves.records(uniform(16, 1.001 * limit), shots)
    monkeypatch.setattr(AcousticStepper, "check", lambda self, speed: None)
    assert not waves.records(uniform(16, 1.02 * limit), shots).abs().max() < 1e3


def test_batches_and_precisions_agree() -> None:
    waves, c, shots = random_shots()
    together = waves.records(c, shots)
    for number in range(2):
        torch.testing.assert_close(
            waves.records(c[number : number + 1], shots)[0], together[number], rtol=1e-11, atol=1e-16
        )
    single = waves.records(c.float(), shots)
    assert single.dtype == torch.float32
    assert float((single - together).norm() / together.norm()) < 2e-5
    assert waves.records(c[:0], shots).shape == (0, 2, 121, 3)


def test_point_sources() -> None:
    """At a node a source is one node's; between nodes it is a unit still, and its centre is where it was put."""
    waves = AcousticStepper((11, 14), (5.0, 10.0), 1e-3, speed=2000.0, frequency=10.0, absorbing_cells=10)
    at_node, between, wide = waves.point_sources(torch.tensor([[3.0, 4.0], [3.3, 4.75], [3.0, 4.0]]))
    expected = torch.zeros(31, 34, dtype=torch.float64)
    expected[13, 14] = 1 / 50
    torch.testing.assert_close(at_node, expected, rtol=1e-12, atol=1e-14)
    wide = waves.point_sources(torch.tensor([[3.0, 4.0]]), width=2)[0]
    i, j = torch.meshgrid(torch.arange(31.0) - 10, torch.arange(34.0) - 10, indexing="ij")
    for source, place in ((between, (3.3, 4.75)), (wide, (3.0, 4.0))):
        assert float(source.sum()) * 50 == pytest.approx(1, abs=2e-2)
        assert float((source * i).sum()) * 50 == pytest.approx(place[0], abs=6e-2)
        assert float((source * j).sum()) * 50 == pytest.approx(place[1], abs=6e-2)


def test_bad_input_is_refused_in_a_sentence() -> None:
    waves, c, shots = random_shots()
    for bad in (0.0, -5.0, math.nan, math.inf):
        poisoned = c.clone()
        poisoned[1, 3, 3] = bad
        with pytest.raises(ValueError, match="speed of sample 1 is not positive and finite"):
            waves.records(poisoned, shots)
    with pytest.raises(ValueError, match=r"speed has shape \(2, 16, 19\)"):
        waves.records(c[:, :, 1:], shots)
    with pytest.raises(ValueError, match="floating-point"):
        waves.records(c.long(), shots)
    with pytest.raises(ValueError, match=r"sources have shape \(2, 26, 29\)"):
        waves.records(c, Shots(shots.sources[..., 1:], shots.wavelet, shots.receivers))
    with pytest.raises(ValueError, match="nodes of the"):
        waves.records(c, Shots(shots.sources, shots.wavelet, torch.tensor([[0, 20]])))
    with pytest.raises(ValueError, match="two receivers are at one node"):
        waves.records(c, Shots(shots.sources, shots.wavelet, torch.tensor([[0, 2], [0, 2]])))
    with pytest.raises(ValueError, match="absorbing_cells is 0"):
        stepper(9, cells=0)
