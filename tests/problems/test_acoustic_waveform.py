"""Acoustic full-waveform inversion: laws of the media, layout of the records, real velocity models, and inversion itself."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.problems import AcousticWaveform

SMALL = AcousticWaveform(spacing=20.0, time_step=2e-3, n_times=200, n_shots=2, frequency=8.0, absorbing_cells=8)


def records(problem: AcousticWaveform, c: Tensor, grid: Grid | None = None) -> Tensor:
    return problem.observe({"wave_speed": c}, grid=grid)["measurements"]


def test_records_are_laid_out_as_stated() -> None:
    """(n, shot, 1, time, receiver); the first arrival at each receiver is that of the straight way in a uniform medium."""
    problem = replace(SMALL, n_shots=3, n_receivers=6, n_times=250, precision="double")
    grid, c = problem.usual_grid((21, 26)), 2000.0
    assert grid.extent == ((0.0, 400.0), (0.0, 500.0)) and problem.descriptors.tolist() == [[0.0], [0.5], [1.0]]
    seen = problem.observe({"wave_speed": torch.full((2, 21, 26), c, dtype=torch.float64)})
    data = seen["measurements"]
    assert data.shape == (2, 3, 1, 250, 6) and data.dtype == torch.float64
    assert seen["mask"].shape == (2, 3) and seen["mask"].all() and torch.equal(data[0], data[1])
    peak = 2e-3 * data[0, :, 0].argmax(1) - 1.5 / 8
    for shot, x_s in enumerate((0.0, 260.0, 500.0)):  # 250 m is no multiple of 20 m
        distance = (torch.arange(6) * 100.0 - x_s).abs()
        far = distance > 100
        # A cylindrical wave is delayed by an eighth of a period against the wavelet, here of 8 Hz.
        assert (peak[shot] - distance / c)[far].abs().max() < 0.03
    torch.testing.assert_close(data[0, 0, 0].flip(1), data[0, 2, 0], rtol=1e-9, atol=1e-12)
    assert records(replace(problem, record_every=4), torch.full((1, 21, 26), c)).shape == (1, 3, 1, 63, 6)
    every = records(replace(problem, record_every=4), torch.full((1, 21, 26), c))
    torch.testing.assert_close(every[0], data[0][:, :, ::4], rtol=1e-9, atol=1e-12)
    assert problem.observe({"wave_speed": torch.full((1, 21, 26), c)}, 26)["measurements"].shape[-1] == 26


def test_shot_and_receiver_may_be_exchanged() -> None:
    """Reciprocity in a random medium, to rounding: the discrete operator is symmetric in the measure dx / c^2 and sources are c^2 s."""
    problem = replace(SMALL, n_receivers=2, precision="double")
    c = problem.sample(1, problem.usual_grid((21, 26)))["wave_speed"]
    data = records(problem, c)[0, :, 0]  # both shots are at the two receivers
    torch.testing.assert_close(data[0, :, 1], data[1, :, 0], rtol=1e-9, atol=1e-12)
    assert (data[0, :, 0] - data[1, :, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("medium", ["curved-layers", "style"])
def test_records_are_the_same_on_a_finer_grid(medium: str) -> None:
    """To what the coarse grid's time step and its steps in the medium allow; near the shot to how a grid sees a point."""
    problem = replace(SMALL, medium=medium)
    coarse = problem.usual_grid((18, 18))
    fine = coarse.with_shape((35, 35))
    data, better = (records(problem, problem.sample(2, grid)["wave_speed"], grid) for grid in (coarse, fine))
    assert data.shape == better.shape
    error = (data - better).flatten(1).norm(dim=1) / better.flatten(1).norm(dim=1)
    assert 1e-4 < error.max() < 0.08, error


def test_samples_are_one_function_on_every_grid() -> None:
    for medium in ("curved-layers", "style"):
        problem, grid = replace(SMALL, medium=medium), SMALL.usual_grid((18, 21))
        fine = problem.sample([2, 5], grid.with_shape((35, 41)), split="test", seed=3)["wave_speed"]
        torch.testing.assert_close(
            problem.sample([2, 5], grid, split="test", seed=3)["wave_speed"], fine[:, ::2, ::2], rtol=1e-12, atol=0
        )
        alone = problem.sample([5], grid.with_shape((35, 41)), split="test", seed=3)["wave_speed"][0]
        torch.testing.assert_close(alone, fine[1], rtol=1e-12, atol=0)
        assert problem.sample(0, grid)["wave_speed"].shape == (0, 18, 21)


def test_curved_layers_are_faster_the_deeper() -> None:
    grid = SMALL.usual_grid((70, 70))
    media = SMALL.sample(100, grid)["wave_speed"]
    assert media.min() >= 1500 and media.max() <= 4500 and media.min() < 1600 and media.max() > 4400
    assert (media.diff(dim=1) >= 0).all()
    layers = torch.tensor([len(c.unique()) for c in media])
    assert set(layers.tolist()) == {2, 3, 4, 5}
    curved = (media.diff(dim=2) != 0).flatten(1).any(1)
    assert curved.double().mean() > 0.95


def test_style_is_smooth_and_takes_every_speed_alike() -> None:
    grid = SMALL.usual_grid((70, 70))
    media = replace(SMALL, medium="style").sample(200, grid)["wave_speed"]
    assert media.min() > 1500 and media.max() < 4500
    shares = [float(((media >= 1500 + 600 * k) & (media < 2100 + 600 * k)).double().mean()) for k in range(5)]
    assert all(0.12 < share < 0.28 for share in shares), shares
    assert media.diff(dim=2).abs().max() < 600 and media.flatten(1).std(1).min() > 200


def test_the_derivative_is_that_of_the_discrete_map() -> None:
    problem = replace(SMALL, n_times=150, n_receivers=5)
    grid = problem.usual_grid((14, 16))
    forward, generator = problem.forward(grid), torch.Generator().manual_seed(0)
    c = problem.sample(1, grid)["wave_speed"]
    directions = 50 * torch.randn(3, 14, 16, generator=generator, dtype=torch.float64)
    data, jacobian = forward.linearise(c[0], directions)
    assert data.shape == (2, 1, 150, 5) and jacobian.shape == (2, 1, 150, 5, 3)
    torch.testing.assert_close(data, forward(c)[0], rtol=1e-12, atol=1e-15)
    step = 1e-3
    for k, direction in enumerate(directions):
        difference = (forward(c + step * direction) - forward(c - step * direction))[0] / (2 * step)
        assert (jacobian[..., k] - difference).abs().max() < 1e-6 * difference.abs().max()
    weights = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    variable = c.clone().requires_grad_()
    gradient = torch.autograd.grad((forward(variable)[0] * weights).sum(), variable)[0][0]
    expected = torch.einsum("lcts,lctsk->k", weights, jacobian)
    torch.testing.assert_close((gradient * directions).sum((1, 2)), expected, rtol=1e-9, atol=0)


def test_single_precision_is_enough() -> None:
    """Of what is observed, a hundredth of the error of the time step."""
    problem = replace(SMALL, n_times=400)
    c = problem.sample(2, problem.usual_grid((18, 18)))["wave_speed"]
    single, double = records(problem, c), records(replace(problem, precision="double"), c)
    assert single.dtype == torch.float64
    assert 0 < float((single - double).norm() / double.norm()) < 5e-5


def test_noise_is_relative_to_each_sample() -> None:
    problem = replace(SMALL, n_times=100)
    c = problem.sample(2, problem.usual_grid((12, 12)))["wave_speed"]
    clean = records(problem, c)
    noisy = problem.observe({"wave_speed": c}, noise=0.05, seed=3)["measurements"]
    error = (noisy - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    assert torch.allclose(error, torch.full((2,), 0.05).double(), rtol=0.1)
    assert torch.equal(noisy, problem.observe({"wave_speed": c}, noise=0.05, seed=3)["measurements"])


def test_bad_input_is_refused_in_a_sentence() -> None:
    grid = SMALL.usual_grid((12, 12))
    c = torch.full((2, 12, 12), 2000.0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        poisoned = c.clone()
        poisoned[1, 4, 4] = bad
        with pytest.raises(ValueError, match="speed of sample 1 is not positive and finite"):
            records(SMALL, poisoned)
    with pytest.raises(ValueError, match=r"fastest speed is 6000 m/s, .* stable up to 55"):
        records(SMALL, 3 * c)
    with pytest.raises(ValueError, match=r"wave_speed has shape \(2, 12, 12\) but the grid is \(13, 12\)"):
        records(SMALL, c, SMALL.usual_grid((13, 12)))
    with pytest.raises(ValueError, match="needs 'wave_speed'"):
        SMALL.observe({"speed": c})
    with pytest.raises(ValueError, match=r"spacing=20.0 m or a whole part of it is expected"):
        records(SMALL, c, Grid((12, 12), (0.0, 300.0)))
    with pytest.raises(ValueError, match="depth first"):
        SMALL.sample(1, Grid((12, 12), layout="cells"))
    with pytest.raises(ValueError, match="1 to 12 fit a width of 220 m"):
        SMALL.forward(grid, 13)
    with pytest.raises(ValueError, match="two would be fired at one place"):
        replace(SMALL, n_shots=13).forward(grid)
    with pytest.raises(ValueError, match="the ground ends at 220 m"):
        replace(SMALL, depth=240.0).forward(grid)
    for values in (
        {"medium": "salt"}, {"spacing": 0.0}, {"n_shots": 0}, {"precision": "half"}, {"speeds": (3.0, 2.0)}, {"n_layers": (3, 20)},
        {"depth": 5.0}, {"n_receivers": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(values))):
            AcousticWaveform(**values)


# Velocity models that people have: BP 2004 and a slice of SEG/EAGE Overthrust, read as they are.


def bp2004(path: Path) -> tuple[Tensor, float]:
    """(depth, width) in m/s, and the spacing in metres."""
    with np.load(path) as file:
        return torch.from_numpy(file["vp"]).T.contiguous(), float(file["dx"])


def test_waves_in_the_bp_model(reference_data: Callable[[str], Path]) -> None:
    """A coarse shot is stable, hears the sea bottom, and its waves leave."""
    c, h = bp2004(reference_data("seismic/bp2004_coarse_true.npz"))
    assert c.shape == (66, 183) and 1400 < c.min() < 1600 and 4000 < c.max() < 5000
    step = 0.9 * 0.5546 * h / float(c.max())
    problem = AcousticWaveform(
        spacing=h, time_step=step, n_times=1100, n_shots=1, frequency=1.5, speeds=(1400.0, float(c.max()))
    )
    data = records(problem, c[None])[0, 0, 0]
    assert data.shape == (1100, 183) and data.isfinite().all()
    energy = data.square().sum(1)
    assert energy[-100:].mean() < 1e-3 * energy.max()
    direct = records(problem, torch.full_like(c, float(c[0, 91]))[None])[0, 0, 0]
    assert (data - direct)[:, 91].norm() > 0.05 * direct[:, 91].norm()
    with pytest.raises(ValueError, match="stable up to"):
        records(replace(problem, time_step=1.2 * step), c[None])


def test_waves_in_the_overthrust_slice(reference_data: Callable[[str], Path]) -> None:
    """Every second node of a part of it: squared slowness in s^2/km^2, depth first."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(reference_data("seismic/overthrust_2d.h5")) as file:
        c = 1e3 / torch.from_numpy(file["m"][:]).double().sqrt()
    assert c.shape == (121, 401) and c.min() > 1400 and c.max() < 6500
    part = c[::2, :200:2]
    problem = AcousticWaveform(
        spacing=50.0, time_step=4e-3, n_times=500, n_shots=1, frequency=4.0, speeds=(1500.0, 6100.0)
    )
    data = records(problem, part[None])[0, 0, 0]
    assert data.shape == (500, 100) and data.isfinite().all()
    # The first arrival moves out from the shot in the middle, no faster than the fastest rock.
    threshold = 1e-3 * data.abs().max()
    first = 4e-3 * (data.abs() > threshold).int().argmax(0)
    distance = (torch.arange(100) - 50).abs() * 50.0
    assert (first + 1e-9 >= distance / 6100).all() and (first[80:].diff() > -0.02).all()


@pytest.mark.slow
def test_waveform_inversion_of_the_bp_model(reference_data: Callable[[str], Path]) -> None:
    """Classical inversion by L-BFGS from the smooth start, on data of a finer grid, brings the model nearer to the truth."""
    (truth, h), (start, _) = (
        bp2004(reference_data(f"seismic/bp2004_coarse_{name}.npz")) for name in ("true", "smooth")
    )
    truth, start = truth[:48, 30:110].contiguous(), start[:48, 30:110].contiguous()
    problem = AcousticWaveform(
        spacing=h, time_step=0.014, n_times=500, n_shots=6, frequency=1.0, speeds=(1400.0, 4800.0), record_every=2
    )
    grid = problem.usual_grid(truth.shape)
    fine = grid.with_shape((95, 159))
    truth_fine = torch.nn.functional.interpolate(
        truth[None, None], size=fine.shape, mode="bilinear", align_corners=True
    )[0]
    data = records(problem, truth_fine, fine).float()
    forward = problem.forward(grid)
    water = truth < 1500
    update = torch.zeros(truth.shape, requires_grad=True)

    def medium() -> Tensor:
        return torch.where(water, start, (start * torch.exp(update)).clamp(1400, 4800)).float()[None]

    optimizer = torch.optim.LBFGS([update], lr=1.0, max_iter=25, history_size=10, line_search_fn="strong_wolfe")
    history: list[float] = []

    def misfit() -> Tensor:
        optimizer.zero_grad()
        loss = (forward(medium()) - data).square().sum() / data.square().sum()
        loss.backward()
        history.append(float(loss.detach()))
        return loss

    optimizer.step(misfit)
    before, after = (float((c - truth).norm() / truth.norm()) for c in (start, medium()[0].detach()))
    print(f"misfit {history[0]:.3f} -> {min(history):.4f}, model error {before:.3f} -> {after:.3f}")
    assert min(history) < 0.2 * history[0] and after < 0.9 * before
