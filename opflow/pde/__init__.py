"""Ingredients of partial differential equations: derivatives, geometries, collocation, conditions, random fields, steppers."""

from opflow.pde.acoustic_stepper import AcousticStepper, Shots, ricker
from opflow.pde.boundary import Condition, Dirichlet, Initial, Neumann, Periodic, Robin
from opflow.pde.collocation import Collocation, boundary_batch, initial_batch
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.pde.derivatives.grid import GridDerivatives
from opflow.pde.dual_norm import DualNorm
from opflow.pde.finite_element import FiniteElementSpace
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.geometry.combination import Difference, Intersection, Union
from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.mesh_domain import MeshDomain
from opflow.pde.geometry.polygon import LShape, Polygon
from opflow.pde.geometry.primitives import Ball, Box, Disc, Interval
from opflow.pde.geometry.space_time import SpaceTime
from opflow.pde.kernel_field import SquaredExponentialField
from opflow.pde.matern_field import MaternField
from opflow.pde.measurement_noise import add_noise
from opflow.pde.observation import observations, scatter_observations
from opflow.pde.random_field import CosineField, PeriodicField
from opflow.pde.runge_kutta import ButcherTableau, gauss_legendre
from opflow.pde.sparse_map import SparseFactors, SparseMatrix
from opflow.pde.stepper import IntegrationFailed, SpectralStepper
from opflow.pde.trigonometric_space import TrigonometricSpace
from opflow.pde.weak_form import NewtonFailed, WeakForm

__all__ = [
    "AcousticStepper",
    "AutogradDerivatives",
    "Ball",
    "Box",
    "ButcherTableau",
    "Collocation",
    "Condition",
    "CosineField",
    "Difference",
    "Dirichlet",
    "Disc",
    "DualNorm",
    "FiniteElementSpace",
    "FourierSpace",
    "Geometry",
    "GridDerivatives",
    "Initial",
    "IntegrationFailed",
    "Intersection",
    "Interval",
    "LShape",
    "MaternField",
    "MeshDomain",
    "Neumann",
    "NewtonFailed",
    "Periodic",
    "PeriodicField",
    "Polygon",
    "Robin",
    "Shots",
    "SpaceTime",
    "SparseFactors",
    "SparseMatrix",
    "SpectralStepper",
    "SquaredExponentialField",
    "TrigonometricSpace",
    "Union",
    "WeakForm",
    "add_noise",
    "boundary_batch",
    "gauss_legendre",
    "initial_batch",
    "observations",
    "ricker",
    "scatter_observations",
]
