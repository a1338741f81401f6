"""Losses that add, and the norms in which fields are compared."""

from opflow.losses.misfit import DataMisfit
from opflow.losses.norms import relative_errors, relative_h1, relative_l2
from opflow.losses.objective import Objective, total

__all__ = ["DataMisfit", "Objective", "relative_errors", "relative_h1", "relative_l2", "total"]
