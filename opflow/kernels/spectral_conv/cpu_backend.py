"""The spectral convolution and the Fourier layer on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from opflow.kernels.spectral_conv import cpu_operators  # noqa: F401  (registers the operators)
from opflow.kernels.spectral_conv.call import SpectralConvCall


class Cpu:
    """Truncated transforms as matrix products, fused; float32 and float64, half precisions by way of float32."""

    name = "cpu"

    def refusal(self, call: SpectralConvCall) -> str | None:
        """Another device, or a caller that needs plain torch operations."""
        if call.device.type != "cpu":
            return f"x is on {call.device.type}"
        return call.only_reference

    def __call__(self, x: Tensor, weight: Tensor, call: SpectralConvCall) -> Tensor:
        """y (batch, out_channels, *out_shape) in the dtype of x."""
        return _layer(x, weight, call, None, None, False)

    def block(
        self, x: Tensor, weight: Tensor, call: SpectralConvCall, skip: Tensor, bias: Tensor, activation: str | None
    ) -> Tensor:
        """s(K x + W x + b) in the dtype of x."""
        return _layer(x, weight, call, skip, bias, activation == "gelu")

    def layer(
        self,
        x: Tensor,
        weight: Tensor,
        call: SpectralConvCall,
        skip: Tensor,
        bias: Tensor,
        activation: str | None,
        perceptron: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        """s(M(s(K x + W x + b)) + g x) in the dtype of x; `perceptron` is W1, b1, W2, b2 and g."""
        return _layer(x, weight, call, skip, bias, activation == "gelu", perceptron)


def _layer(
    x: Tensor,
    weight: Tensor,
    call: SpectralConvCall,
    skip: Tensor | None,
    bias: Tensor | None,
    gelu: bool,
    perceptron: tuple[Tensor | None, ...] = (None,) * 5,
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        precision = torch.promote_types(x.dtype, torch.float32)
        parts = [part if part is None else part.to(precision) for part in (x, weight, skip, bias, *perceptron)]
        keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
        shapes = (call.n_modes, call.in_shape, call.out_shape)
        return torch.ops.opflow.fourier_layer(*parts, *shapes, gelu, keep)[0].to(x.dtype)
