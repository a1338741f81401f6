"""Layers: the parts that operator models are made of."""

from opflow.layers.branch_trunk import BranchTrunk
from opflow.layers.coordinates import BoxCoordinates, FourierFeatures
from opflow.layers.embedding import DomainPadding, GridEmbedding
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.galerkin_attention import FourierAttention, GalerkinAttention, TransformerLayer
from opflow.layers.mlp import MLP, ChannelLinear, ChannelMLP
from opflow.layers.multigrid import MultigridConv
from opflow.layers.normalizer import Normalized, Normalizer
from opflow.layers.pod import PODTrunk
from opflow.layers.resampler import DownSampler, UpSampler
from opflow.layers.spectral_conv import SpectralConv
from opflow.layers.spectral_decoder import SpectralDecoder

__all__ = [
    "MLP",
    "BoxCoordinates",
    "BranchTrunk",
    "ChannelLinear",
    "ChannelMLP",
    "DomainPadding",
    "DownSampler",
    "FourierAttention",
    "FourierFeatures",
    "FourierLayer",
    "GalerkinAttention",
    "GridEmbedding",
    "MultigridConv",
    "Normalized",
    "Normalizer",
    "PODTrunk",
    "SoftGate",
    "SpectralConv",
    "SpectralDecoder",
    "TransformerLayer",
    "UpSampler",
]
