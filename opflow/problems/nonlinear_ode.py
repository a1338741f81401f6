"""A scalar nonlinear differential equation with a forcing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.problems.forced_ode import ForcedODE
from opflow.typing import Derivatives


@dataclass(frozen=True)
class NonlinearODE(ForcedODE):
    """s' = -s^2 + u on [0, final_time], s(0) = 0   (Lu et al. 2021, "DeepONet", section 4.1).

    s = v' / v with v'' = u v, so that s falls to minus infinity where v has a zero: for u = -A at pi / (2 sqrt(A)). For
    final_time = 1 and forcings of unit variance this is very rare, for longer times it is not; `solve` says which sample.

    >>> from opflow import Grid
    >>> problem, grid = NonlinearODE(), Grid(100, axes=("t",))
    >>> problem.solve(problem.sample(5, grid), grid)["state"].shape
    torch.Size([5, 100])
    """

    unknowns: ClassVar[tuple[str, ...]] = ("state",)

    def rate(self, s: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
        """-s^2 + u"""
        return u - s**2

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"rate": s' + s^2 - u}"""
        s = u["state"]
        return {"rate": s.d("t") + s.value**2 - a["forcing"].value}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """s = sin(2 t), u = 2 cos(2 t) + sin(2 t)^2 at points (..., 1): {"forcing", "state"}, each (...)."""
        t = points[..., 0]
        s = torch.sin(2 * t)
        return {"forcing": 2 * torch.cos(2 * t) + s**2, "state": s}
