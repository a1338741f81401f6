"""Layers: the parts that operator models are made of."""

from opflow.layers.band_limit import BandLimitedResampler
from opflow.layers.branch_trunk import BranchTrunk
from opflow.layers.coordinates import BoxCoordinates, FourierFeatures
from opflow.layers.corner import CornerFeatures
from opflow.layers.derivative_conv import DerivativeConv
from opflow.layers.embedding import DomainPadding, GridEmbedding
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.function_norm import FunctionNorm
from opflow.layers.galerkin_attention import FourierAttention, GalerkinAttention, TransformerLayer
from opflow.layers.graph_conv import ChebyshevConv, scaled_laplacian
from opflow.layers.hard_constraint import HardConstraint, RememberedFunction
from opflow.layers.hard_initial import HardInitial
from opflow.layers.heat_series import HeatSeries
from opflow.layers.latent_least_squares import LatentLeastSquares
from opflow.layers.lipschitz import (
    AOLLinear,
    CayleyLinear,
    LipschitzFourierLayer,
    LipschitzMLP,
    SandwichLayer,
    SLLBlock,
)
from opflow.layers.local_conv import LocalConv
from opflow.layers.measurement_mixing import MeasurementMixing
from opflow.layers.mlp import MLP, ChannelLinear, ChannelMLP
from opflow.layers.multigrid import MultigridConv
from opflow.layers.normalizer import Normalized, Normalizer
from opflow.layers.periodic import PeriodicFeatures
from opflow.layers.pod import PODTrunk
from opflow.layers.resampler import DownSampler, UpSampler
from opflow.layers.residual_gate import ResidualGateBlock, ResidualGateMLP
from opflow.layers.sensor_encoder import FlatEncoder, ImageEncoder, SensorEncoder, SideEncoder
from opflow.layers.spectral_conv import SpectralConv
from opflow.layers.spectral_decoder import SpectralDecoder

__all__ = [
    "MLP",
    "AOLLinear",
    "BandLimitedResampler",
    "BoxCoordinates",
    "BranchTrunk",
    "CayleyLinear",
    "ChannelLinear",
    "ChannelMLP",
    "ChebyshevConv",
    "CornerFeatures",
    "DerivativeConv",
    "DomainPadding",
    "DownSampler",
    "FlatEncoder",
    "FourierAttention",
    "FourierFeatures",
    "FourierLayer",
    "FunctionNorm",
    "GalerkinAttention",
    "GridEmbedding",
    "HardConstraint",
    "HardInitial",
    "HeatSeries",
    "ImageEncoder",
    "LatentLeastSquares",
    "LipschitzFourierLayer",
    "LipschitzMLP",
    "LocalConv",
    "MeasurementMixing",
    "MultigridConv",
    "Normalized",
    "Normalizer",
    "PODTrunk",
    "PeriodicFeatures",
    "RememberedFunction",
    "ResidualGateBlock",
    "ResidualGateMLP",
    "SLLBlock",
    "SandwichLayer",
    "SensorEncoder",
    "SideEncoder",
    "SoftGate",
    "SpectralConv",
    "SpectralDecoder",
    "TransformerLayer",
    "UpSampler",
    "scaled_laplacian",
]
