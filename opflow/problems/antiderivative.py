"""The antiderivative: the first operator that a DeepONet learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.problems.forced_ode import Array, ForcedODE
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Antiderivative(ForcedODE):
    """s' = u on [0, final_time], s(0) = 0: s(t) = int_0^t u   (Lu et al. 2021, "DeepONet").

    `solve` integrates the spline through the forcing's values, without a further error and whatever `rtol` is.

    >>> from opflow import Grid
    >>> problem, grid = Antiderivative(), Grid(100, axes=("t",))
    >>> u = problem.sample(5, grid)
    >>> problem.solve(u, grid)["integral"].shape
    torch.Size([5, 100])
    """

    unknowns: ClassVar[tuple[str, ...]] = ("integral",)

    def _integrate(self, forcing: Any, times: Array, rtol: float) -> tuple[Array, Array]:
        return forcing.antiderivative()(times).T[None], np.full(forcing.c.shape[1], np.inf)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"rate": s' - u}"""
        return {"rate": u["integral"].d("t") - a["forcing"].value}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """u = cos(3 t) exp(-t / 2) at points (..., 1), with its integral: {"forcing", "integral"}, each (...)."""
        t = points[..., 0]
        decay = torch.exp(-t / 2)
        return {
            "forcing": torch.cos(3 * t) * decay,
            "integral": (2 + decay * (12 * torch.sin(3 * t) - 2 * torch.cos(3 * t))) / 37,
        }
