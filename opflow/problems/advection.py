"""The linear advection equation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.random_field import sample_generators
from opflow.problems.constants import check_finite, check_positive
from opflow.problems.periodic_evolution import PeriodicEvolution
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Advection(PeriodicEvolution):
    """u_t + beta u_x = 0 on a periodic interval: u(t, x) = u(0, x - beta t)   (Takamoto et al. 2022, "PDEBench").

    Initial fields are the paper's sums of sines, sum_i A_i sin(2 pi n_i s + phi_i) for s in (0, 1) along the interval, with n_i from
    1..highest, A_i from (0, 1) and phi_i from (0, 2 pi), all uniform; its absolute values and windows, whose kinks no series
    resolves, are left out. `solve` turns phases, and is exact to rounding at any time and on any grid with n > 2 highest.

    Attributes:
        speed: beta; the input "speed" a(x) may replace it, for u_t + a(x) u_x = 0.
        final_time: where `solve` stops when it is given no times.
        waves: the number of sines.
        highest: their highest wave number.

    >>> problem, grid = Advection(speed=0.25), Grid((64,), layout="periodic")
    >>> u = problem.sample(2, grid)["initial"]
    >>> torch.allclose(problem.solve({"initial": u}, grid)["density"], u.roll(16, -1))
    True
    """

    speed: float | Tensor = 1.0
    final_time: float = 1.0
    waves: int = 2
    highest: int = 8

    unknowns: ClassVar[tuple[str, ...]] = ("density",)

    def __post_init__(self) -> None:
        check_finite(speed=self.speed)
        check_positive(final_time=self.final_time, waves=self.waves, highest=self.highest)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random initial fields {"initial": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        draws = np.array([g.random((self.waves, 3)) for g in generators]).reshape(-1, self.waves, 3)
        number, amplitude, phase = torch.from_numpy(draws)[..., None].unbind(2)
        number = 1 + torch.floor(self.highest * number)
        s = (grid.coordinates(0) - grid.extent[0][0]) / grid.lengths[0]
        return {"initial": (amplitude * torch.sin(2 * torch.pi * (number * s + phase))).sum(1)}

    def linear(self, space: FourierSpace) -> Tensor:
        """-i beta k"""
        return -self.speed * space.gradient[0]

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity | None:
        """-(a(x) - beta) u_x where the speed varies, free of aliasing by the two-thirds rule; None where it does not."""
        if "speed" not in inputs:
            return None
        kept, slope = space.dealiased, space.gradient[0] * space.dealiased
        excess = space.field(kept * space.coefficients(inputs["speed"] - self.speed))
        return lambda c, t: -kept * space.coefficients(excess * space.field(slope * c))

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"transport": u_t + a u_x}, a the input "speed" where it is given, else beta"""
        u = u["density"]
        speed = a["speed"].value if "speed" in a else self.speed
        return {"transport": u.d("t") + speed * u.d("x")}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """u = exp(sin(2 pi (x - beta t))), of period 1, at points (..., 2) of (t, x): {"initial", "density"}, each (...)."""
        t, x = points.unbind(-1)
        return {
            "initial": torch.exp(torch.sin(2 * torch.pi * x)),
            "density": torch.exp(torch.sin(2 * torch.pi * (x - self.speed * t))),
        }
