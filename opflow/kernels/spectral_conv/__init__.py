"""The spectral convolution: `BACKENDS` in order of preference."""

from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.reference import Reference

BACKENDS = (Reference(),)

__all__ = ["BACKENDS", "SpectralConvCall"]
