"""Line search along a descent direction: strong Wolfe conditions, with a value and a slope at every trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# The next trial keeps this share of the bracket away from both of its ends, so that the bracket always shrinks.
_MARGIN = 0.1
# After a trial that is not finite the step falls by this factor: the edge of the finite region is unknown.
_RETREAT = 0.1
_LARGEST_GROWTH = 10.0


@dataclass(frozen=True)
class Trial:
    """phi(step) = f(x + step p) with its slope phi'(step) = g . p, and the gradient g at that point."""

    step: float
    value: float
    slope: float
    gradient: Tensor

    @property
    def finite(self) -> bool:
        """Whether value and slope are numbers to compare with."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class LineSearch:
    """What a line search found.

    Attributes:
        trial: the point to move to; the start where nothing lower was found.
        evaluations: how many trials it took.
        wolfe: whether `trial` satisfies the strong Wolfe conditions (or the approximate ones, within rounding).
    """

    trial: Trial
    evaluations: int
    wolfe: bool

    @property
    def decreased(self) -> bool:
        """Whether there is a step to make."""
        return self.trial.step > 0


def strong_wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    first: float,
    *,
    c1: float = 1e-4,
    c2: float = 0.9,
    rounding: float = 0.0,
    max_evaluations: int = 25,
) -> LineSearch:
    """A step with phi(step) <= phi(0) + c1 step phi'(0) and |phi'(step)| <= c2 |phi'(0)|.

    Bracketing and sectioning (Nocedal and Wright 2006, algorithms 3.5 and 3.6) with cubic interpolation; every trial
    brings value and slope, so a first step that fits costs one evaluation. A trial that is not finite shortens the step.
    Where the values differ by less than ``rounding * |phi(0)|`` the decrease is read off the slopes instead
    (the approximate Wolfe conditions of Hager and Zhang 2005), since differences of values are noise there.

    Args:
        evaluate: step -> `Trial`.
        start: the trial at step 0; its slope must be negative.
        first: the first step tried.
        rounding: the relative accuracy of the values.
        max_evaluations: then the lowest point so far is returned.

    >>> import torch
    >>> phi = lambda t: Trial(t, (t - 3.0) ** 2, 2 * (t - 3.0), torch.tensor([2 * (t - 3.0)]))
    >>> found = strong_wolfe(phi, phi(0.0), 1.0)
    >>> found.trial.step, found.evaluations, found.wolfe
    (1.0, 1, True)
    """
    noise = rounding * abs(start.value)

    def low_enough(trial: Trial) -> bool:
        if trial.value <= start.value + c1 * trial.step * start.slope:
            return True
        return abs(trial.value - start.value) <= noise and trial.slope <= (2 * c1 - 1) * start.slope

    low, high = start, None  # `low` is the lowest point that is low enough; the other end of the bracket is `high`
    step = first
    for count in range(1, max_evaluations + 1):
        trial = evaluate(step)
        if not trial.finite or not low_enough(trial) or trial.value > low.value + noise:
            high = trial
        elif abs(trial.slope) <= -c2 * start.slope:
            return LineSearch(trial, count, wolfe=True)
        else:
            towards = 1.0 if high is None else high.step - low.step
            if trial.slope * towards >= 0:
                high = low
            low = trial
        step = _next_step(low, high, noise, first)
        if high is not None and abs(high.step - low.step) <= 1e-15 * max(abs(high.step), abs(low.step)):
            break
    return LineSearch(low, count, wolfe=False)


def _next_step(low: Trial, high: Trial | None, noise: float, first: float) -> float:
    if high is None:  # still going down: outwards
        return low.step * _LARGEST_GROWTH if low.step > 0 else first
    width = high.step - low.step
    if not high.finite:
        return low.step + _RETREAT * width
    step = _cubic_minimiser(low, high, noise)
    nearest, farthest = sorted((low.step + _MARGIN * width, high.step - _MARGIN * width))
    return min(max(step, nearest), farthest) if math.isfinite(step) else low.step + 0.5 * width


def _cubic_minimiser(a: Trial, b: Trial, noise: float) -> float:
    """The minimum of the cubic through two values and slopes (Nocedal and Wright 2006, eq. 3.59); NaN if it has none."""
    width = b.step - a.step
    if abs(b.value - a.value) <= noise:  # only the slopes still say something
        return a.step - a.slope * width / (b.slope - a.slope) if b.slope != a.slope else math.nan
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), width)
    denominator = b.slope - a.slope + 2 * d2
    return b.step - width * (b.slope + d2 - d1) / denominator if denominator else math.nan
