"""Ingredients of partial differential equations: derivatives and random fields."""

from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.pde.derivatives.grid import GridDerivatives
from opflow.pde.random_field import CosineField

__all__ = ["AutogradDerivatives", "CosineField", "GridDerivatives"]
