"""Operator models, each from parts or from `build`."""

from opflow.models.deeponet import DeepONet
from opflow.models.fno import FNO

__all__ = ["FNO", "DeepONet"]
