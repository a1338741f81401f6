"""A pendulum driven by a random torque."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.problems.forced_ode import Array, ForcedODE
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Pendulum(ForcedODE):
    """s1' = s2,  s2' = -k sin(s1) + u  on [0, final_time], at rest at 0   (Lu et al. 2021, "DeepONet").

    s1 is the angle in radians, s2 the angular velocity, u the torque.

    Attributes:
        k: gravity over length, the square of the frequency of small oscillations.

    >>> from opflow import Grid
    >>> problem, grid = Pendulum(), Grid(100, axes=("t",))
    >>> sorted(problem.solve(problem.sample(5, grid), grid))
    ['angle', 'angular_velocity']
    """

    k: float = 1.0

    unknowns: ClassVar[tuple[str, ...]] = ("angle", "angular_velocity")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.k):
            raise ValueError(f"k is {self.k}; give a finite number, gravity over length.")

    def rate(self, s: Array, u: Array) -> Array:
        """(s2, -k sin(s1) + u)"""
        return np.stack([s[1], u - self.k * np.sin(s[0])])

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"velocity": s1' - s2, "momentum": s2' + k sin(s1) - u}"""
        angle, velocity = u["angle"], u["angular_velocity"]
        return {
            "velocity": angle.d("t") - velocity.value,
            "momentum": velocity.d("t") + self.k * torch.sin(angle.value) - a["forcing"].value,
        }

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """s1 = 1 - cos(2 t) at points (..., 1), with its torque: {"forcing", "angle", "angular_velocity"}, each (...)."""
        t = points[..., 0]
        angle = 1 - torch.cos(2 * t)
        return {
            "forcing": 4 * torch.cos(2 * t) + self.k * torch.sin(angle),
            "angle": angle,
            "angular_velocity": 2 * torch.sin(2 * t),
        }
