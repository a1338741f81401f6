"""Losses that add, and the norms in which fields are compared."""

from opflow.losses.condition import ConditionResidual
from opflow.losses.conjugate_direction import DirectionLoss
from opflow.losses.conjugate_gradient import EnergyReduction
from opflow.losses.discrete_time import DiscreteTimeResidual
from opflow.losses.galerkin import FieldPrior, GalerkinResidual, PointObservations
from opflow.losses.lagrangian import LagrangianResidual
from opflow.losses.misfit import DataMisfit
from opflow.losses.norms import (
    mean_squared_error,
    relative_errors,
    relative_h1,
    relative_l1,
    relative_l1_errors,
    relative_l2,
)
from opflow.losses.objective import Objective, total
from opflow.losses.observation_misfit import ObservationMisfit
from opflow.losses.residual import PDEResidual
from opflow.losses.segmentation_score import challenge_score, dice
from opflow.losses.unknown import Unknown
from opflow.losses.well_posed import warn_if_ill_posed

__all__ = [
    "ConditionResidual",
    "DataMisfit",
    "DirectionLoss",
    "DiscreteTimeResidual",
    "EnergyReduction",
    "FieldPrior",
    "GalerkinResidual",
    "LagrangianResidual",
    "Objective",
    "ObservationMisfit",
    "PDEResidual",
    "PointObservations",
    "Unknown",
    "challenge_score",
    "dice",
    "mean_squared_error",
    "relative_errors",
    "relative_h1",
    "relative_l1",
    "relative_l1_errors",
    "relative_l2",
    "total",
    "warn_if_ill_posed",
]
