"""A scalar nonlinear differential equation with a forcing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.gauss_method import gauss_steps
from opflow.pde.kernel_field import SquaredExponentialField
from opflow.problems.forced_ode import BLOCK, Array, ForcedODE, spline
from opflow.typing import Derivatives


@dataclass(frozen=True)
class NonlinearODE(ForcedODE):
    """s' = -s^2 + u on [0, final_time], s(0) = 0   (Lu et al. 2021, "DeepONet").

    s = v' / v with v'' = u v, so that s falls to minus infinity where v has a zero: for u = -A at t = pi / (2 sqrt(A)). Of
    the forcings of the law about 7 in 10,000 do so before final_time = 1, and far more before a later one. The published data
    hold what an integrator makes of them, and the published errors leave out the worst 0.1 %. Here `sample` draws such
    a forcing again from its own stream: the law is conditioned on s >= lowest.

    Attributes:
        lowest: the bound on s; None takes every forcing, and `solve` then says which sample blows up, and when.

    >>> from opflow import Grid
    >>> problem, grid = NonlinearODE(), Grid(100, axes=("t",))
    >>> problem.solve(problem.sample(5, grid), grid)["state"].shape
    torch.Size([5, 100])
    """

    lowest: float | None = -10.0

    unknowns: ClassVar[tuple[str, ...]] = ("state",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest is not None and not self.lowest < 0:
            raise ValueError(
                f"lowest is {self.lowest}; give a negative bound on s, which starts at 0, or None for none."
            )

    def rate(self, s: Array, u: Array) -> Array:
        """-s^2 + u"""
        return u - s**2

    def _rejected(self, law: SquaredExponentialField, coefficients: Tensor) -> NDArray[np.intp]:
        if self.lowest is None:
            return super()._rejected(law, coefficients)
        # A grid of its own, so that a forcing is admitted on every grid or on none.
        grid = Grid(1 + max(128, math.ceil(25 * self.final_time / self.length)), (0.0, self.final_time))
        nodes, rejected = grid.coordinates(0).numpy(), []
        for first in range(0, len(coefficients), BLOCK):
            forcing = spline(nodes, law.evaluate(coefficients[first : first + BLOCK], grid).numpy())
            above = (gauss_steps(self.rate, forcing, nodes, 1)[0] >= self.lowest).all(-1)  # a blow-up is NaN: not above
            rejected.append(first + np.flatnonzero(~above))
        return np.concatenate(rejected) if rejected else np.empty(0, dtype=np.intp)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"rate": s' + s^2 - u}"""
        s = u["state"]
        return {"rate": s.d("t") + s.value**2 - a["forcing"].value}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """s = sin(2 t), u = 2 cos(2 t) + sin(2 t)^2 at points (..., 1): {"forcing", "state"}, each (...)."""
        t = points[..., 0]
        s = torch.sin(2 * t)
        return {"forcing": 2 * torch.cos(2 * t) + s**2, "state": s}
