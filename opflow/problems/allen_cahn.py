"""The Allen-Cahn equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.problems.constants import check_positive
from opflow.problems.periodic_evolution import IntervalEvolution
from opflow.typing import Derivatives


@dataclass(frozen=True)
class AllenCahn(IntervalEvolution):
    """u_t = d u_xx + r (u - u^3) on a periodic interval   (Allen and Cahn 1979; constants of Raissi et al. 2019, section 3.2).

    u is an order parameter: the phases -1 and 1 are stable, with walls of width sqrt(2 d / r) between them.

    Attributes:
        diffusivity: d > 0, in length^2 / time.
        reaction: r > 0, in 1 / time.

    >>> from opflow import Grid
    >>> problem, grid = AllenCahn(), Grid((256,), (-1.0, 1.0), "periodic")
    >>> problem.solve(problem.sample(2, grid), grid, rtol=1e-6)["phase"].shape
    torch.Size([2, 256])
    """

    diffusivity: float | Tensor = 1e-4
    reaction: float | Tensor = 5.0

    unknowns: ClassVar[tuple[str, ...]] = ("phase",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(diffusivity=self.diffusivity, reaction=self.reaction)

    def linear(self, space: FourierSpace) -> Tensor:
        """r - d k^2"""
        return self.reaction + self.diffusivity * space.laplacian

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """-r u^3, point by point.

        All modes are kept. To free a cubic of aliasing, half of them would have to go; but no derivative amplifies the alias, it is no
        larger than what the grid leaves out anyway, and the reaction keeps its sign at every point.
        """
        return lambda c, t: -self.reaction * space.coefficients(space.field(c) ** 3)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"balance": u_t - d u_xx - r (u - u^3)}"""
        u = u["phase"]
        return {"balance": u.d("t") - self.diffusivity * u.d("xx") - self.reaction * (u.value - u.value**3)}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """The phase 1 invading u = 0 from x = 0 to both sides, at points (..., 2) of (t, x): {"initial", "phase"}, each (...).

        u = s(x) s(-x), s(x) = 1 / (1 + exp((x - 1/4 - c t) / w)), w = sqrt(2 d / r), c = 3 sqrt(d r / 2): two fronts of Huxley's
        equation (McKean 1970), exact up to exp(-1 / (2 w)) and periodic up to exp(-(b - 1/4) / w) on the interval (-b, b).
        """
        t, x = points.unbind(-1)
        width = (2 * self.diffusivity / self.reaction) ** 0.5
        speed = 3 * (self.diffusivity * self.reaction / 2) ** 0.5

        def phase(t: Tensor) -> Tensor:
            reach = 0.25 + speed * t
            return torch.sigmoid((reach - x) / width) * torch.sigmoid((reach + x) / width)

        return {"initial": phase(torch.zeros_like(t)), "phase": phase(t)}
