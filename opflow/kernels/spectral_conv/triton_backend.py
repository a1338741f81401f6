"""The spectral convolution on NVIDIA devices by Triton kernels: truncated transforms as matrix products, layers fused."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from opflow.kernels.backend import constant_when_compiled
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.triton_queue import INTERPRETED
from opflow.kernels.spectral_conv.triton_tables import tables

INSTALLED = find_spec("triton") is not None
# Half the rows of the widest table that the kernels hold on the chip.
FREQUENCIES = 64
# Above this share of kept frequencies, on every axis, fast Fourier transforms are preferred. Counted for an H100 and a table
# of 64 at n = 128: 0.25 us of products a plane against 0.4 us of memory traffic by FFTs, so that as yet none is refused.
FFT_ABOVE = 1.0


@constant_when_compiled
def device_refusal(index: int) -> str:
    """Why a CUDA device cannot run the kernels, in words; "" if it can."""
    return _device_refusal(index)


@cache
def _device_refusal(index: int) -> str:
    if torch.version.hip is not None:
        return "the kernels are made for NVIDIA devices"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"the device has compute capability {major}.{minor} and the kernels need 8.0 (tensor cores for tf32)"
    return ""


class Triton:
    """Analyse, mix, synthesise; float32, bfloat16 and float16 fields, sums in float32.

    Under TRITON_INTERPRET=1 it serves tensors of any device and float64 too, which is how it is tested without a GPU.
    """

    name = "triton"

    def refusal(self, call: SpectralConvCall) -> str | None:
        """No such device, dtype or size; or a caller that needs plain torch operations."""
        if call.only_reference is not None:
            return call.only_reference
        if not INTERPRETED:
            if call.device.type != "cuda":
                return f"x is on {call.device.type}"
            if not INSTALLED:
                return "triton is not installed (pip install 'opflow[triton]', or a CUDA build of torch)"
            if call.dtype == torch.float64:
                return "x is torch.float64 and the kernels multiply in single precision"
            reason = device_refusal(call.device.index)
            if reason:
                return reason
        kept = [call.kept(axis) for axis in range(len(call.n_modes))]
        widest = max(max(-lowest, highest) + 1 for lowest, highest in kept)
        if widest > FREQUENCIES:
            return f"it keeps {widest} frequencies on one axis, and the kernels hold {FREQUENCIES} at most"
        if max(math.prod(call.in_shape), math.prod(call.out_shape)) >= 2**31:
            return "the grid has 2^31 points or more, and the kernels count them in 32 bits"
        share = min(min(m, n) / n for m, n in zip(call.n_modes, call.in_shape, strict=True))
        if share > FFT_ABOVE and not INTERPRETED:
            return f"it keeps more than {FFT_ABOVE} of the frequencies, where fast Fourier transforms need fewer operations"
        return None

    def __call__(self, x: Tensor, weight: Tensor, call: SpectralConvCall) -> Tensor:
        """y (batch, out_channels, *out_shape) in the dtype of x."""
        from opflow.kernels.spectral_conv.triton_operators import analyse, multiply, synthesise

        number = torch.promote_types(x.dtype, torch.float32)
        before, after = call.analysis(), call.synthesis()
        kept = [bound for axis in before.kept for bound in axis]
        X = analyse(x, kept, tables(before, number, x.device))
        Y = multiply(X, _by_mode(call.kept_weight(weight), number), "")
        return synthesise(Y, call.out_shape, kept, tables(after, number, x.device), x.dtype)

    def block(
        self, x: Tensor, weight: Tensor, call: SpectralConvCall, skip: Tensor, bias: Tensor, activation: str | None
    ) -> Tensor:
        """s(K x + W x + b) in the dtype of x, the field read and written once."""
        from opflow.kernels.spectral_conv.triton_operators import block

        number = torch.promote_types(x.dtype, torch.float32)
        before, after = call.analysis(), call.synthesis()
        kept = [bound for axis in before.kept for bound in axis]
        R = _by_mode(call.kept_weight(weight), number)
        analysis, synthesis = tables(before, number, x.device), tables(after, number, x.device)
        return block(x, R, skip.to(number), bias.to(number), kept, analysis, synthesis, activation == "gelu")[0]


def _by_mode(weight: Tensor, number: torch.dtype) -> Tensor:
    """(*kept, 2, in, out) -> (modes, 2, in, out)"""
    return weight.flatten(0, weight.ndim - 4).to(number)
