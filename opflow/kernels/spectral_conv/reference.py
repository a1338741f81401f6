"""The truth: the spectral convolution by fast Fourier transforms, for any real dtype, size and device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu

from opflow.kernels.spectral_conv.call import SpectralConvCall


class Reference:
    """Transform, keep, mix, place, transform back; written to be read, differentiable by autograd to any order."""

    name = "reference"

    def refusal(self, call: SpectralConvCall) -> str | None:
        """It refuses nothing."""
        return None

    def __call__(self, x: Tensor, weight: Tensor, call: SpectralConvCall) -> Tensor:
        """y (batch, out_channels, *out_shape) in the dtype of x; half precisions are transformed in float32."""
        if x.shape[0] == 0 or x.shape[1] == 0:
            # The FFT library refuses empty batches; the sums keep the graph, so that gradients are zero and not missing.
            return x.new_zeros(x.shape[0], weight.shape[-1], *call.out_shape) + 0 * (x.sum() + weight.sum())
        precision = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = _analyse(x.to(precision), call)  # (batch, in, *kept)
            kept = call.kept_weight(weight.to(precision))
            mixed = _mix(spectrum, torch.complex(kept.select(-3, 0), kept.select(-3, 1)))
            return _synthesise(mixed, call).to(x.dtype)

    def block(
        self, x: Tensor, weight: Tensor, call: SpectralConvCall, skip: Tensor, bias: Tensor, activation: str | None
    ) -> Tensor:
        """s(K x + W x + b): the spectral convolution, a 1 x 1 convolution beside it, and the activation."""
        linear = torch.baddbmm(bias[:, None], skip.expand(x.shape[0], -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
        y = self(x, weight, call) + linear
        return y if activation is None else gelu(y)


def _analyse(x: Tensor, call: SpectralConvCall) -> Tensor:
    # One axis at a time, cutting at once: the later transforms then run on the kept columns only.
    last = x.ndim - 1
    spectrum = torch.fft.rfft(x, dim=last, norm="forward").narrow(last, 0, call.kept(last - 2)[1] + 1)
    for dim in range(last - 1, 1, -1):
        lowest, highest = call.kept(dim - 2)
        spectrum = torch.fft.fft(spectrum, dim=dim, norm="forward")
        positive = spectrum.narrow(dim, 0, highest + 1)
        negative = spectrum.narrow(dim, spectrum.shape[dim] + lowest, -lowest)
        spectrum = torch.cat([negative, positive], dim=dim)
    return spectrum


def _mix(spectrum: Tensor, weight: Tensor) -> Tensor:
    # Mode-major, so that each mode is one matrix product: (*kept, batch, in) @ (*kept, in, out).
    mixed = spectrum.movedim((0, 1), (-2, -1)) @ weight
    return mixed.movedim((-2, -1), (0, 1))


def _synthesise(spectrum: Tensor, call: SpectralConvCall) -> Tensor:
    last = spectrum.ndim - 1
    for dim in range(2, last):
        lowest, highest = call.kept(dim - 2)
        n = call.out_shape[dim - 2]
        negative, positive = spectrum.split([-lowest, highest + 1], dim=dim)
        gap = spectrum.new_zeros((*spectrum.shape[:dim], n - (highest - lowest + 1), *spectrum.shape[dim + 1 :]))
        spectrum = torch.fft.ifft(torch.cat([positive, gap, negative], dim=dim), dim=dim, norm="forward")
    spectrum = _hermitian(spectrum, call)
    return torch.fft.irfft(spectrum, n=call.out_shape[-1], dim=last, norm="forward")


def _hermitian(spectrum: Tensor, call: SpectralConvCall) -> Tensor:
    """The last axis as the inverse real transform needs it: the highest column scaled, unpaired columns real.

    The transform ignores the imaginary part of unpaired columns on a CPU; cuFFT does not always.
    """
    highest = spectrum.shape[-1] - 1
    if highest == 0:
        return _real(spectrum)
    first, inner, last = spectrum.split([1, highest - 1, 1], dim=-1)
    last = call.last_column_factor() * last
    return torch.cat([_real(first), inner, _real(last) if 2 * highest == call.out_shape[-1] else last], dim=-1)


def _real(column: Tensor) -> Tensor:
    return torch.complex(column.real, torch.zeros_like(column.real))
