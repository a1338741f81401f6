"""A coefficient that training has to find."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Unknown(nn.Module):
    """A scalar coefficient of an equation as a parameter, c = raw or c = exp(raw).

    Args:
        initial: where the search begins.
        positive: c = exp(raw), which keeps the sign and makes a step a factor: the scale of c does not matter.

    >>> Unknown(0.02, positive=True)().item()
    0.02
    """

    def __init__(self, initial: float, *, positive: bool = False) -> None:
        super().__init__()
        if not math.isfinite(initial) or (positive and initial <= 0):
            raise ValueError(
                f"initial is {initial}; give a {'positive ' if positive else ''}finite number to begin with."
            )
        self.positive = positive
        self.raw = nn.Parameter(torch.tensor(math.log(initial) if positive else float(initial), dtype=torch.float64))

    def forward(self) -> Tensor:
        """c, a scalar in float64"""
        return self.raw.exp() if self.positive else self.raw

    @property
    def value(self) -> float:
        """c as a number."""
        return float(self().detach())

    def slope(self) -> float:
        """dc / draw, which turns a standard error of raw into one of c."""
        return self.value if self.positive else 1.0

    def extra_repr(self) -> str:
        """The present value, for print(loss)."""
        return f"{self.value:.6g}" + (", positive=True" if self.positive else "")
