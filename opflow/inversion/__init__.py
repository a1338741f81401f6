"""Inversion: from measurements to coefficient fields, with a bound, an interval or a reason beside every answer."""

from opflow.inversion.calibration import (
    Coverage,
    coverage,
    coverage_curve,
    gaussian_transform,
    interval_coverage,
    probability_transform,
)
from opflow.inversion.certificate import Certificate, lipschitz_bound, sampled_lower_bound
from opflow.inversion.estimate import Estimate, Outcome
from opflow.inversion.levenberg_marquardt import gauss_newton
from opflow.inversion.linearised import LinearisedReconstruction, smoothness_penalty
from opflow.inversion.most_probable import map_estimate
from opflow.inversion.prior import GaussianPrior
from opflow.inversion.sampling import (
    Samples,
    effective_size,
    gaussian_log_likelihood,
    preconditioned_crank_nicolson,
    split_r_hat,
)
from opflow.inversion.segmentation import otsu_thresholds, segment_conductivity

__all__ = [
    "Certificate",
    "Coverage",
    "Estimate",
    "GaussianPrior",
    "LinearisedReconstruction",
    "Outcome",
    "Samples",
    "coverage",
    "coverage_curve",
    "effective_size",
    "gauss_newton",
    "gaussian_log_likelihood",
    "gaussian_transform",
    "interval_coverage",
    "lipschitz_bound",
    "map_estimate",
    "otsu_thresholds",
    "preconditioned_crank_nicolson",
    "probability_transform",
    "sampled_lower_bound",
    "segment_conductivity",
    "smoothness_penalty",
    "split_r_hat",
]
