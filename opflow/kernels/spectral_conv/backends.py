"""The backends of the spectral convolution, in order of preference."""

from opflow.kernels.spectral_conv.cpu_backend import Cpu
from opflow.kernels.spectral_conv.reference import Reference
from opflow.kernels.spectral_conv.triton_backend import Triton

BACKENDS = (Triton(), Cpu(), Reference())
