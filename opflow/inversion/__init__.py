"""Inversion: from measurements to coefficient fields, with a bound, an interval or a reason beside every answer."""

from opflow.inversion.certificate import Certificate, lipschitz_bound, sampled_lower_bound
from opflow.inversion.estimate import Estimate, Outcome
from opflow.inversion.gauss_newton import gauss_newton
from opflow.inversion.linearised import LinearisedReconstruction, smoothness_penalty
from opflow.inversion.prior import GaussianPrior
from opflow.inversion.segmentation import otsu_thresholds, segment_conductivity

__all__ = [
    "Certificate",
    "Estimate",
    "GaussianPrior",
    "LinearisedReconstruction",
    "Outcome",
    "gauss_newton",
    "lipschitz_bound",
    "otsu_thresholds",
    "sampled_lower_bound",
    "segment_conductivity",
    "smoothness_penalty",
]
