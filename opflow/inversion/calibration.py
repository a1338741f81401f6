"""Calibration: how often credible intervals hold the truth, over simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coverage:
    """The share of true values inside their intervals.

    Attributes:
        share: over all simulations and quantities.
        level: what the intervals promise.
        error: the standard error of `share`, from the spread of the simulations' own shares: quantities of one simulation are
            dependent, simulations are not.
        binomial_error: sqrt(level (1 - level) / n), that of one quantity a simulation at the stated level: the largest it can be there.
        n: simulations.
    """

    share: float
    level: float
    error: float
    binomial_error: float
    n: int

    @property
    def calibrated(self) -> bool:
        """Whether `share` lies within two standard errors, the larger of the two, of `level`."""
        return abs(self.share - self.level) <= 2 * max(self.error, self.binomial_error)

    def __str__(self) -> str:
        return f"{100 * self.level:.0f} % intervals hold {100 * self.share:.1f} +- {100 * self.error:.1f} % of the true values ({self.n} simulations)"


def interval_coverage(lower: Tensor, upper: Tensor, truth: Tensor, level: float) -> Coverage:
    """The coverage of intervals (n, ...), one simulation a row.

    >>> print(interval_coverage(torch.zeros(4, 2), torch.ones(4, 2), torch.tensor([[0.5, 0.5]] * 3 + [[2.0, 0.5]]), 0.9))
    90 % intervals hold 87.5 +- 12.5 % of the true values (4 simulations)
    """
    if not lower.shape == upper.shape == truth.shape or truth.ndim < 1 or len(truth) < 2:
        raise ValueError(
            f"lower, upper and truth have shapes {tuple(lower.shape)}, {tuple(upper.shape)} and {tuple(truth.shape)}; give (n, ...) "
            "in all three, two simulations or more."
        )
    if not all(bool(t.isfinite().all()) for t in (lower, upper, truth)):
        raise ValueError(
            "lower, upper or truth hold NaN or infinity; a failed inversion has no coverage, so count it apart."
        )
    return _coverage((lower <= truth) & (truth <= upper), level)


def coverage(transform: Tensor, level: float) -> Coverage:
    """The coverage of central intervals, from probability integral transforms (n, ...) in [0, 1]; see `probability_transform`."""
    if transform.ndim < 1 or len(transform) < 2 or not bool(((transform >= 0) & (transform <= 1)).all()):
        raise ValueError(
            f"transform has shape {tuple(transform.shape)}; give numbers in [0, 1], (n, ...), two simulations or more."
        )
    return _coverage((transform - 0.5).abs() <= level / 2, level)


def coverage_curve(transform: Tensor, levels: Sequence[float]) -> list[Coverage]:
    """The coverage at several levels, for a picture: the diagonal is perfect, below it the intervals are too narrow."""
    return [coverage(transform, level) for level in levels]


def probability_transform(samples: Tensor, truth: Tensor) -> Tensor:
    """The rank of the truth among posterior draws, (n, draws, ...) and (n, ...) -> (n, ...) in (0, 1).

    Uniform if the posterior is right (Talts et al. 2018, "Simulation-based calibration"), in steps of 1 / (draws + 1).
    """
    if samples.ndim != truth.ndim + 1 or (samples.shape[0], *samples.shape[2:]) != tuple(truth.shape):
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} and truth {tuple(truth.shape)}; give (n, draws, ...) and (n, ...)."
        )
    below = (samples < truth[:, None]).double().sum(1) + (samples == truth[:, None]).double().sum(1) / 2
    return (below + 0.5) / (samples.shape[1] + 1)


def gaussian_transform(mean: Tensor, deviation: Tensor, truth: Tensor) -> Tensor:
    """The same where the posterior is N(mean, deviation^2): Phi((truth - mean) / deviation)"""
    return torch.special.ndtr((truth - mean) / deviation)


def _coverage(inside: Tensor, level: float) -> Coverage:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a probability between 0 and 1, such as 0.9.")
    shares = inside.reshape(len(inside), -1).double().mean(1)
    n = len(shares)
    error = float(shares.std()) / math.sqrt(n)
    return Coverage(float(shares.mean()), level, error, math.sqrt(level * (1 - level) / n), n)
