"""The backends of the spectral convolution, in order of preference."""

from opflow.kernels.spectral_conv.reference import Reference

BACKENDS = (Reference(),)
