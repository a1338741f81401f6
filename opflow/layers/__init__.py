"""Layers: the parts that operator models are made of."""

from opflow.layers.embedding import DomainPadding, GridEmbedding
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.mlp import MLP, ChannelLinear, ChannelMLP
from opflow.layers.normalizer import Normalized, Normalizer
from opflow.layers.spectral_conv import SpectralConv

__all__ = [
    "MLP",
    "ChannelLinear",
    "ChannelMLP",
    "DomainPadding",
    "FourierLayer",
    "GridEmbedding",
    "Normalized",
    "Normalizer",
    "SoftGate",
    "SpectralConv",
]
