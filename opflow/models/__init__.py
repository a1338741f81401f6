"""Operator models, each from parts or from `build`."""

from opflow.models.deeponet import DeepONet
from opflow.models.direction_network import DirectionNetwork
from opflow.models.encoder_decoder import EncoderDecoder
from opflow.models.fno import FNO
from opflow.models.galerkin_solution import GalerkinSolution
from opflow.models.galerkin_transformer import GalerkinTransformer
from opflow.models.graph_network import GraphNetwork
from opflow.models.kernel_ridge import KernelRidge
from opflow.models.lagrangian_pinn import CharacteristicsCross, Crossing, LagrangianPINN
from opflow.models.local_fno import LocalFNO
from opflow.models.mgno import MgNO
from opflow.models.multigrid_network import MultigridNetwork, TunedCycle
from opflow.models.nio import NIO
from opflow.models.pinn import PINN
from opflow.models.rollout import Rollout
from opflow.models.stacked_deeponet import StackedDeepONet
from opflow.models.unet import UNet

__all__ = [
    "FNO",
    "NIO",
    "PINN",
    "CharacteristicsCross",
    "Crossing",
    "DeepONet",
    "DirectionNetwork",
    "EncoderDecoder",
    "GalerkinSolution",
    "GalerkinTransformer",
    "GraphNetwork",
    "KernelRidge",
    "LagrangianPINN",
    "LocalFNO",
    "MgNO",
    "MultigridNetwork",
    "Rollout",
    "StackedDeepONet",
    "TunedCycle",
    "UNet",
]
