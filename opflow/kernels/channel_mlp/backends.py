"""The backends of the perceptron along the channels, in order of preference."""

from opflow.kernels.channel_mlp.cpu_backend import Cpu
from opflow.kernels.channel_mlp.reference import Reference

BACKENDS = (Cpu(), Reference())
