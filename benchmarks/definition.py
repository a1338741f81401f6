"""The spectral convolution as it is defined, in float64: sums of exponentials, without an FFT and without opflow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def waves(n: int, lowest: int, highest: int, device: torch.device | None = None) -> Tensor:
    """exp(2 pi i k j / n), rows k = lowest .. highest, columns j = 0 .. n - 1, in complex128."""
    turn = torch.remainder(torch.arange(lowest, highest + 1)[:, None] * torch.arange(n), n).to(device)
    angle = turn.double() * (2 * math.pi / n)
    return torch.complex(angle.cos(), angle.sin())


def spectral_conv(x: Tensor, weight: Tensor, n_modes: Sequence[int]) -> Tensor:
    """y(s) = Re sum_k c_k R_k xhat_k exp(2 pi i k.s),    xhat_k = mean_j x_j exp(-2 pi i k.s_j),

    over k = -(m//2) .. (m-1)//2 on the leading axes and 0 .. m//2 on the last, c_k = 1 where k_last is 0 or n_last/2,
    else 2. x (batch, in, *grid) and weight (*modes, 2, in, out) are taken in float64, with no fewer points than modes.
    """
    x, weight = x.double(), weight.double()
    shape = tuple(x.shape[2:])
    if any(n < m for n, m in zip(shape, n_modes, strict=True)):
        raise ValueError(f"the grid {shape} has fewer points than modes {tuple(n_modes)}; take a finer one.")
    leading = [waves(n, -(m // 2), (m - 1) // 2, x.device) for n, m in zip(shape, n_modes, strict=True)][:-1]
    last = waves(shape[-1], 0, n_modes[-1] // 2, x.device)

    spectrum = torch.complex(x @ last.real.T, -(x @ last.imag.T)) / math.prod(shape)
    for axis, wave in enumerate(leading, start=2):
        spectrum = (spectrum.movedim(axis, -1) @ wave.mH).movedim(-1, axis)
    mixed = spectrum.movedim((0, 1), (-2, -1)) @ torch.complex(weight.select(-3, 0), weight.select(-3, 1))
    mixed = mixed.movedim((-2, -1), (0, 1))
    for axis, wave in enumerate(leading, start=2):
        mixed = (mixed.movedim(axis, -1) @ wave).movedim(-1, axis)
    k = torch.arange(len(last), device=x.device)
    mixed = mixed * torch.where((k == 0) | (2 * k == shape[-1]), 1.0, 2.0).double()
    return mixed.real @ last.real - mixed.imag @ last.imag


def fourier_block(x: Tensor, weight: Tensor, n_modes: Sequence[int], skip: Tensor, bias: Tensor) -> Tensor:
    """gelu(K x + W x + b) in float64."""
    linear = torch.einsum("oi,bi...->bo...", skip.double(), x.double())
    y = spectral_conv(x, weight, n_modes) + linear + bias.double().view(-1, *[1] * len(n_modes))
    return torch.nn.functional.gelu(y)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """|value - exact| / |exact| in the Euclidean norm, computed in float64."""
    return float((value.detach().double() - exact).norm() / exact.norm())
