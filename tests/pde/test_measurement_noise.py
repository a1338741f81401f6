"""Noise on measurements: its size, its seed and its independence of scale and device."""

import pytest
import torch

from opflow.pde import add_noise

DATA = torch.randn(4, 20, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DATA *= torch.tensor([1e-3, 1.0, 50.0, 0.0]).reshape(4, 1, 1, 1)  # samples of very different size


def draw(kind="additive", level=0.05, seed=0, data=DATA):
    return add_noise(data, level, torch.Generator().manual_seed(seed), kind=kind)


def test_additive_noise_is_relative_to_each_sample():
    noise = draw() - DATA
    rms = DATA.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(noise.square().mean((1, 2, 3)).sqrt(), 0.05 * rms, rtol=0.05)
    assert noise.mean((1, 2, 3)).abs().lt(0.01 * rms + 1e-15).all() and not noise[3].any()


def test_multiplicative_noise_is_relative_to_each_number():
    data = DATA[:3]
    ratio = draw("multiplicative", data=data) / data - 1
    assert abs(ratio.std().item() / 0.05 - 1) < 0.05 and abs(ratio.mean().item()) < 0.003


def test_a_seed_fixes_it_whatever_the_dtype():
    for kind in ("additive", "multiplicative"):
        assert torch.equal(draw(kind), draw(kind)) and not torch.equal(draw(kind), draw(kind, seed=1))
        assert torch.allclose(draw(kind, data=DATA.float()).double(), draw(kind), rtol=1e-5, atol=1e-5)
        assert draw(kind, data=DATA.float()).dtype == torch.float32
        assert torch.equal(draw(kind, level=0.0), DATA)


def test_bad_arguments_are_refused():
    for level in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="noise level"):
            draw(level=level)
    with pytest.raises(ValueError, match="choose one of additive, multiplicative"):
        draw("white")
    with pytest.raises(ValueError, match="two channels"):
        draw(data=DATA + 0j)
