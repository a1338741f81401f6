"""The backends of the spectral convolution, in order of preference."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from opflow.kernels.backend import Backend
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.cpu_backend import Cpu
from opflow.kernels.spectral_conv.reference import Reference
from opflow.kernels.spectral_conv.triton_backend import Triton


class SpectralConvBackend(Backend[SpectralConvCall], Protocol):
    """One implementation of the spectral convolution and of the Fourier layer around it."""

    def __call__(self, x: Tensor, weight: Tensor, call: SpectralConvCall) -> Tensor:
        """K x in the dtype of x."""
        ...

    def block(
        self, x: Tensor, weight: Tensor, call: SpectralConvCall, skip: Tensor, bias: Tensor, activation: str | None
    ) -> Tensor:
        """s(K x + W x + b) in the dtype of x."""
        ...


BACKENDS: tuple[SpectralConvBackend, ...] = (Triton(), Cpu(), Reference())
