"""Frequencies on a grid, and the resampling of a trigonometric polynomial from one grid to another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def angular_wavenumbers(n: int, length: float, *, half: bool = False, like: Tensor | None = None) -> Tensor:
    """2 pi k / length in FFT order, for first derivatives: the unpaired frequency of an even n is set to zero.

    On an even grid cos(pi j) has no representable derivative (its sine vanishes at every point), and keeping
    i k there would leave an imaginary remainder.

    Args:
        half: only k = 0..n//2, the layout of `torch.fft.rfft`.
        like: dtype and device of the result; float64 on the CPU by default.
    """
    frequencies = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(n, d=1.0 / n, dtype=torch.float64)
    if n % 2 == 0:
        frequencies[n // 2] = 0.0
    k = frequencies * (2 * math.pi / length)
    return k if like is None else k.to(dtype=like.dtype, device=like.device)


def spectral_derivative(x: Tensor, dim: int, length: float, order: int = 1) -> Tensor:
    """d^order x / ds^order along one periodic axis of the given length.

    Exact for trigonometric polynomials below the Nyquist limit. Even orders keep the unpaired frequency,
    whose second derivative is well defined.
    """
    if x.numel() == 0:
        return x
    n = x.shape[dim]
    k = angular_wavenumbers(n, length, half=True, like=x)
    if order % 2 == 0 and n % 2 == 0:
        k[n // 2] = math.pi * n / length
    factor = (1j * k) ** order
    shape = [1] * x.ndim
    shape[dim] = -1
    return torch.fft.irfft(torch.fft.rfft(x, dim=dim) * factor.view(shape), n=n, dim=dim)


def resample(x: Tensor, shape: int | Sequence[int]) -> Tensor:
    """Evaluate the trigonometric interpolant of a periodic field on another periodic grid.

    The interpolant keeps |k| <= n/2; the unpaired frequency of an even grid is a cosine, shared equally by +n/2 and
    -n/2. Frequencies beyond the new grid's Nyquist limit are dropped, never folded back. Real input, real output.

    Args:
        x: (..., *grid), the last ``len(shape)`` axes are resampled; real, float32 or float64.
        shape: the new sizes; an int resamples the last axis.

    >>> j = torch.arange(8.)
    >>> torch.allclose(resample(torch.cos(torch.pi * j / 4), 4), torch.cos(torch.pi * j[:4] / 2), atol=1e-6)
    True
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"resample expects real fields in float32 or float64, but x is {x.dtype}; convert it with .float() first."
        )
    if len(shape) > x.ndim or any(m < 1 for m in shape):
        raise ValueError(
            f"cannot resample x of shape {tuple(x.shape)} to {shape}; give a positive size for each of its last axes."
        )
    for dim, m in enumerate(shape, start=x.ndim - len(shape)):
        x = _resample_axis(x, dim, m)
    return x


def periodic_interpolant(values: Tensor, points: Tensor, extent: tuple[float, float]) -> Tensor:
    """The trigonometric polynomial through values (..., n) on the periodic grid of an interval, at points (points,) -> (..., points).

    It keeps |k| <= n/2; the unpaired frequency of an even grid is a cosine, as in `resample`. Any points will do: of the interval,
    or of its periodic continuation. The cost is n times their number.

    Args:
        extent: (low, high); the first value lives at low.

    >>> j = torch.arange(8.)
    >>> x = torch.tensor([0.3, 1.7])
    >>> torch.allclose(periodic_interpolant(torch.cos(torch.pi * j / 4), x, (0.0, 2.0)), torch.cos(torch.pi * x), atol=1e-6)
    True
    """
    n = values.shape[-1]
    low, high = extent
    c = torch.fft.rfft(values, norm="forward")
    k = torch.arange(n // 2 + 1, dtype=values.dtype, device=values.device)
    weight = torch.where((k == 0) | (2 * k == n), 1.0, 2.0).to(values)
    angle = (2 * math.pi / (high - low)) * k[:, None] * (points.to(values) - low)
    return (weight * c.real) @ angle.cos() - (weight * c.imag) @ angle.sin()


def shell_spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """E(k) = mean over fields of sum |x_q|^2 / 2 over k - 1/2 <= |q| < k + 1/2, for 1 <= k < n / 2, of periodic fields on a square.

    Of the components of a velocity it is the energy spectrum, summed over them; of a vorticity that of the enstrophy.

    Args:
        x: (fields, n, n).

    Returns:
        k (shells,) and E (shells,), float64.

    >>> line = torch.arange(16) / 16
    >>> shell_spectrum(torch.cos(2 * torch.pi * 3 * line).expand(1, 16, 16))[1][2].round(decimals=6)
    tensor(0.2500, dtype=torch.float64)
    """
    n = x.shape[-1]
    power = torch.fft.fft2(x.double(), norm="forward").abs().square().mean(0) / 2
    q = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=x.device)
    shell = (torch.hypot(q[:, None], q) + 0.5).floor().long()
    total = torch.zeros(n, dtype=torch.float64, device=x.device).index_add(0, shell.flatten(), power.flatten())
    return torch.arange(1, n // 2), total[1 : n // 2].cpu()


def _resample_axis(x: Tensor, dim: int, m: int) -> Tensor:
    n = x.shape[dim]
    if n == m:
        return x
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:dim], m, *x.shape[dim + 1 :]))
    spectrum = torch.fft.rfft(x, dim=dim, norm="forward").narrow(dim, 0, min(n, m) // 2 + 1)
    smaller = min(n, m)
    if smaller % 2 == 0:
        # irfft counts the last column once on its own even grid and twice inside a finer one.
        head, last = spectrum.split([smaller // 2, 1], dim=dim)
        spectrum = torch.cat([head, last * (2.0 if m < n else 0.5)], dim=dim)
    return torch.fft.irfft(spectrum, n=m, dim=dim, norm="forward")
