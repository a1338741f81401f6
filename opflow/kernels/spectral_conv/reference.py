"""The truth: the spectral convolution by fast Fourier transforms, for any real dtype, size and device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu

from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.fft import fft_analyse, fft_synthesise


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
            spectrum = fft_analyse(x.to(precision), call.analysis())  # (batch, in, *kept)
            kept = call.kept_weight(weight.to(precision))
            mixed = _mix(spectrum, torch.complex(kept.select(-3, 0), kept.select(-3, 1)))
            return fft_synthesise(mixed, call.synthesis()).to(x.dtype)

    def block(
        self, x: Tensor, weight: Tensor, call: SpectralConvCall, skip: Tensor, bias: Tensor, activation: str | None
    ) -> Tensor:
        """s(K x + W x + b): the spectral convolution, a 1 x 1 convolution beside it, and the activation."""
        linear = torch.baddbmm(bias[:, None], skip.expand(x.shape[0], -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
        y = self(x, weight, call) + linear
        return y if activation is None else gelu(y)


def _mix(spectrum: Tensor, weight: Tensor) -> Tensor:
    # Mode-major, so that each mode is one matrix product: (*kept, batch, in) @ (*kept, in, out).
    mixed = spectrum.movedim((0, 1), (-2, -1)) @ weight
    return mixed.movedim((-2, -1), (0, 1))
