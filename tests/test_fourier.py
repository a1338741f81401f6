"""Wavenumbers, spectral derivatives and resampling, against SciPy and analysis."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opflow.fourier import angular_wavenumbers, periodic_interpolant, resample, shell_spectrum, spectral_derivative


@pytest.mark.parametrize("n", range(1, 18))
def test_resample_equals_scipy_for_every_size(n: int) -> None:
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for m in range(1, 18):
        expected = scipy.signal.resample(x.numpy(), m, axis=-1)
        np.testing.assert_allclose(resample(x, m).numpy(), expected, rtol=0, atol=1e-13, err_msg=f"{n} -> {m}")


@pytest.mark.parametrize(("shape", "target"), [((8, 6), (16, 4)), ((7, 8), (4, 9)), ((1, 5), (4, 1)), ((6, 6), (5, 7))])
def test_resample_in_two_dimensions_is_one_axis_after_the_other(shape, target) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy.signal.resample(scipy.signal.resample(x.numpy(), target[0], axis=1), target[1], axis=2)
    np.testing.assert_allclose(resample(x, target).numpy(), expected, rtol=0, atol=1e-13)


@settings(deadline=None)
@given(n=st.integers(1, 20), m=st.integers(1, 40), seed=st.integers(0, 1000))
def test_resampling_up_and_back_is_the_identity(n: int, m: int, seed: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    up = resample(x, max(n, m))
    assert (resample(up, n) - x).abs().max() < 1e-12
    assert abs(float(up.mean() - x.mean())) < 1e-13
    if max(n, m) % n == 0:
        assert (up[:: max(n, m) // n] - x).abs().max() < 1e-12, "an interpolant passes through its points"


def test_resample_keeps_dtype_and_layout_and_has_gradients() -> None:
    x = torch.randn(2, 3, 8)
    assert resample(x, 5).dtype == torch.float32 and resample(x, 8) is x
    wide = torch.randn(2, 3, 16, dtype=torch.float64)[..., ::2]
    torch.testing.assert_close(resample(wide, 5), resample(wide.contiguous(), 5), rtol=0, atol=1e-15)
    y = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    for m in (4, 5, 9, 12):
        assert torch.autograd.gradcheck(lambda y, m=m: resample(y, m), (y,))
    empty = torch.zeros(0, 8, 6, requires_grad=True)
    assert resample(empty, (4, 12)).shape == (0, 4, 12)


@pytest.mark.parametrize(
    ("x", "shape", "error", "sentence"),
    [
        (torch.zeros(4, dtype=torch.complex64), 8, TypeError, "x is torch.complex64; convert"),
        (torch.zeros(4, dtype=torch.int64), 8, TypeError, "x is torch.int64"),
        (torch.zeros(4, dtype=torch.bfloat16), 8, TypeError, r"bfloat16; convert it with .float\(\)"),
        (torch.zeros(4), 0, ValueError, r"cannot resample x of shape \(4,\) to \(0,\)"),
        (torch.zeros(4), (8, 8), ValueError, "give a positive size for each of its last axes"),
    ],
)
def test_resample_refuses_in_a_sentence(x, shape, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        resample(x, shape)


def test_wavenumbers_carry_the_physical_length() -> None:
    scale = 2 * np.pi / 3.0
    assert angular_wavenumbers(5, 3.0).tolist() == pytest.approx([0, scale, 2 * scale, -2 * scale, -scale])
    assert angular_wavenumbers(4, 3.0).tolist() == pytest.approx([0, scale, 0, -scale]), "the unpaired one is zero"
    assert angular_wavenumbers(5, 3.0, half=True).tolist() == pytest.approx([0, scale, 2 * scale])
    assert angular_wavenumbers(4, 3.0, half=True).tolist() == pytest.approx([0, scale, 0])
    assert angular_wavenumbers(1, 3.0).tolist() == [0.0] and angular_wavenumbers(2, 3.0).tolist() == [0.0, 0.0]
    assert angular_wavenumbers(4, 1.0).dtype == torch.float64
    assert angular_wavenumbers(4, 1.0, like=torch.zeros(1)).dtype == torch.float32


@pytest.mark.parametrize("n", [7, 8, 16, 17])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1.0, 2.5])
def test_spectral_derivatives_are_exact_below_the_nyquist_limit(n: int, order: int, length: float) -> None:
    x = torch.arange(n, dtype=torch.float64) * (length / n)
    for k in range((n - 1) // 2 + 1):
        w = 2 * np.pi * k / length
        u = torch.sin(w * x + 0.3)
        expected = w**order * torch.sin(w * x + 0.3 + order * np.pi / 2)
        found = spectral_derivative(u, 0, length, order)
        assert (found - expected).abs().max() <= 1e-13 * max(1.0, (np.pi * n / length) ** order)


def test_the_unpaired_frequency() -> None:
    """cos(pi j) has first derivative zero on its own grid, and a second one that is well defined."""
    n, length = 8, 2.0
    u = torch.cos(torch.pi * torch.arange(n, dtype=torch.float64))
    assert spectral_derivative(u, 0, length, 1).abs().max() < 1e-13
    assert spectral_derivative(u, 0, length, 3).abs().max() < 1e-10
    torch.testing.assert_close(
        spectral_derivative(u, 0, length, 2), -((np.pi * n / length) ** 2) * u, rtol=1e-13, atol=1e-11
    )


def test_spectral_derivatives_along_any_axis() -> None:
    u = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        spectral_derivative(u, 1, 2.0), spectral_derivative(u.mT.contiguous(), 2, 2.0).mT, rtol=0, atol=1e-13
    )
    assert spectral_derivative(u.float(), 1, 2.0).dtype == torch.float32
    for shape, dim in (((0, 8), 1), ((2, 1), 1)):
        assert not spectral_derivative(torch.ones(shape), dim, 1.0).any()
    v = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: spectral_derivative(v, 0, 1.5, 2), (v,))


def test_the_shells_hold_all_but_the_mean_and_the_corners() -> None:
    """Parseval: the sum over shells is half of the variance of a field without the frequencies beyond the last shell."""
    x = resample(torch.randn(3, 9, 9, dtype=torch.float64)[:, None], (32, 32))[:, 0]
    k, energy = shell_spectrum(x)
    variance = (x - x.mean((1, 2), keepdim=True)).square().mean()
    assert k.tolist() == list(range(1, 16)) and abs(energy.sum() - variance / 2) < 1e-13
    line = torch.arange(32, dtype=torch.float64) / 32
    wave = torch.cos(2 * torch.pi * (3 * line[:, None] + 4 * line)).expand(1, 32, 32)
    assert shell_spectrum(wave)[1].argmax() == 4 and abs(shell_spectrum(wave)[1][4] - 0.25) < 1e-14


@pytest.mark.parametrize("n", [1, 2, 9, 16])
def test_the_interpolant_agrees_with_resampling_and_with_the_series(n: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, n, dtype=torch.float64)
    fine = -1 + 3 * torch.arange(4 * n, dtype=torch.float64) / (4 * n)
    found = periodic_interpolant(values, fine, (-1.0, 2.0))
    torch.testing.assert_close(found, resample(values, 4 * n), rtol=0, atol=1e-13)
    torch.testing.assert_close(periodic_interpolant(values, fine + 3, (-1.0, 2.0)), found, rtol=0, atol=1e-12)
    x = torch.rand(5, dtype=torch.float64)
    wave = lambda y: torch.sin(2 * torch.pi * (y + 1) / 3) + 0.5  # noqa: E731
    if n > 2:
        nodes = -1 + 3 * torch.arange(n, dtype=torch.float64) / n
        torch.testing.assert_close(periodic_interpolant(wave(nodes), x, (-1.0, 2.0)), wave(x), rtol=0, atol=1e-14)
    assert periodic_interpolant(values.float(), x, (-1.0, 2.0)).dtype == torch.float32
