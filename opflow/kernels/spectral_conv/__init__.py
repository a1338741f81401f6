"""The spectral convolution: `BACKENDS` in order of preference, chosen by a `SpectralConvCall`."""

from opflow.kernels.spectral_conv.backends import BACKENDS
from opflow.kernels.spectral_conv.call import SpectralConvCall

__all__ = ["BACKENDS", "SpectralConvCall"]
