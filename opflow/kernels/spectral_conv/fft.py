"""The truncated Fourier transform by fast Fourier transforms, one axis at a time, cut at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from opflow.kernels.spectral_conv.dft import TruncatedDFT


def fft_analyse(x: Tensor, dft: TruncatedDFT) -> Tensor:
    """X_k = s_k sum_j x_j exp(-2 pi i k.j/n): real (..., *grid) to complex (..., *modes)."""
    norm = "forward" if dft.mean else "backward"
    # The later transforms run on the kept columns only.
    spectrum = _scaled(torch.fft.rfft(x, dim=-1, norm=norm).narrow(-1, 0, dft.modes[-1]), dft.weights)
    for dim in range(-2, -len(dft.shape) - 1, -1):
        lowest, highest = dft.kept[dim]
        spectrum = torch.fft.fft(spectrum, dim=dim, norm=norm)
        positive = spectrum.narrow(dim, 0, highest + 1)
        negative = spectrum.narrow(dim, spectrum.shape[dim] + lowest, -lowest)
        spectrum = torch.cat([negative, positive], dim=dim)
    return spectrum


def fft_synthesise(spectrum: Tensor, dft: TruncatedDFT) -> Tensor:
    """x_j = Re sum_k s_k X_k exp(2 pi i k.j/n): complex (..., *modes) to real (..., *grid)."""
    norm = "backward" if dft.mean else "forward"
    for dim in range(-len(dft.shape), -1):
        lowest, highest = dft.kept[dim]
        negative, positive = spectrum.split([-lowest, highest + 1], dim=dim)
        shape = list(spectrum.shape)
        shape[dim] = dft.shape[dim] - dft.modes[dim]
        gap = spectrum.new_zeros(shape)
        spectrum = torch.fft.ifft(torch.cat([positive, gap, negative], dim=dim), dim=dim, norm=norm)
    return torch.fft.irfft(_hermitian(spectrum, dft), n=dft.shape[-1], dim=-1, norm=norm)


def _hermitian(spectrum: Tensor, dft: TruncatedDFT) -> Tensor:
    """The last axis as the inverse real transform needs it: paired columns halved, unpaired columns real.

    That transform counts +k and -k, and ignores the imaginary part of unpaired columns on a CPU; cuFFT does not always.
    """
    paired = [k != 0 and 2 * k != dft.shape[-1] for k in range(dft.modes[-1])]
    spectrum = _scaled(spectrum, [s / 2 if p else s for s, p in zip(dft.weights, paired, strict=True)])
    return torch.complex(spectrum.real, _scaled(spectrum.imag, [1.0 if p else 0.0 for p in paired]))


def _scaled(columns: Tensor, scale: Sequence[float]) -> Tensor:
    # Equal neighbours together, by numbers and not by a tensor: nothing is copied to a device while a graph is captured.
    runs = [(factor, len(list(group))) for factor, group in itertools.groupby(scale)]
    parts = columns.split([length for _, length in runs], dim=-1)
    scaled = [part if factor == 1.0 else part * factor for part, (factor, _) in zip(parts, runs, strict=True)]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled, dim=-1)
