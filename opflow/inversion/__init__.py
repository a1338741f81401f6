"""Inversion: from measurements to coefficient fields, with a bound, an interval or a reason beside every answer."""

from opflow.inversion.estimate import Estimate, Outcome
from opflow.inversion.gauss_newton import gauss_newton
from opflow.inversion.prior import GaussianPrior

__all__ = ["Estimate", "GaussianPrior", "Outcome", "gauss_newton"]
