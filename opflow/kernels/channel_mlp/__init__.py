"""A perceptron along the channels of a field, with the skip connection and the activation around it."""

from opflow.kernels.channel_mlp.backends import BACKENDS
from opflow.kernels.channel_mlp.call import ChannelMLPCall

__all__ = ["BACKENDS", "ChannelMLPCall"]
