"""The checks of an equation's constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def check_positive(**values: float | Tensor) -> None:
    """Raise unless every named number is positive and finite."""
    for name, number in _numbers(values):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number}; a positive finite number is expected.")


def check_finite(**values: float | Tensor) -> None:
    """Raise unless every named number is finite."""
    for name, number in _numbers(values):
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; a finite number is expected.")


def _numbers(values: Mapping[str, float | Tensor]) -> list[tuple[str, float]]:
    return [(name, float(v.detach() if isinstance(v, Tensor) else v)) for name, v in values.items()]
