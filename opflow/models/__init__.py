"""Operator models, each from parts or from `build`."""

from opflow.models.deeponet import DeepONet
from opflow.models.fno import FNO
from opflow.models.galerkin_transformer import GalerkinTransformer
from opflow.models.local_fno import LocalFNO
from opflow.models.mgno import MgNO
from opflow.models.rollout import Rollout
from opflow.models.unet import UNet

__all__ = ["FNO", "DeepONet", "GalerkinTransformer", "LocalFNO", "MgNO", "Rollout", "UNet"]
