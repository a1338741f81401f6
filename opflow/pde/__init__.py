"""Ingredients of partial differential equations: derivatives, random fields and the spectral time stepper."""

from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.pde.derivatives.grid import GridDerivatives
from opflow.pde.dual_norm import DualNorm
from opflow.pde.finite_element import FiniteElementSpace
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.kernel_field import SquaredExponentialField
from opflow.pde.random_field import CosineField, PeriodicField
from opflow.pde.stepper import IntegrationFailed, SpectralStepper
from opflow.pde.trigonometric_space import TrigonometricSpace
from opflow.pde.weak_form import NewtonFailed, WeakForm

__all__ = [
    "AutogradDerivatives",
    "CosineField",
    "DualNorm",
    "FiniteElementSpace",
    "FourierSpace",
    "GridDerivatives",
    "IntegrationFailed",
    "NewtonFailed",
    "PeriodicField",
    "SpectralStepper",
    "SquaredExponentialField",
    "TrigonometricSpace",
    "WeakForm",
]
