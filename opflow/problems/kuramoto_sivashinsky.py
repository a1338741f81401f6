"""The Kuramoto-Sivashinsky equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.problems.constants import check_finite, check_positive
from opflow.problems.periodic_evolution import IntervalEvolution, quadratic_flux
from opflow.typing import Derivatives


@dataclass(frozen=True)
class KuramotoSivashinsky(IntervalEvolution):
    """u_t + c u u_x + b u_xx + d u_xxxx = 0 on a periodic interval   (Kuramoto 1978, Sivashinsky 1977).

    The slope of a flame front. Waves longer than 2 pi sqrt(d / b) grow, shorter ones decay; from intervals of about 22 on (constants 1)
    the solution is chaotic, with errors that grow like exp(0.05 t) to exp(0.1 t): `rtol` bounds what the steps add, not what the equation
    makes of it.

    Attributes:
        convection: c.
        antidiffusion: b, in length^2 / time.
        hyperviscosity: d > 0, in length^4 / time.

    >>> from opflow import Grid
    >>> problem, grid = KuramotoSivashinsky(), Grid((64,), (0.0, 22.0), "periodic")
    >>> problem.solve(problem.sample(2, grid), grid, rtol=1e-6)["slope"].shape
    torch.Size([2, 64])
    """

    convection: float | Tensor = 1.0
    antidiffusion: float | Tensor = 1.0
    hyperviscosity: float | Tensor = 1.0

    unknowns: ClassVar[tuple[str, ...]] = ("slope",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(convection=self.convection, antidiffusion=self.antidiffusion)
        check_positive(hyperviscosity=self.hyperviscosity)

    def linear(self, space: FourierSpace) -> Tensor:
        """b k^2 - d k^4"""
        return -space.laplacian * (self.antidiffusion + self.hyperviscosity * space.laplacian)

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """-c (u^2 / 2)_x"""
        return quadratic_flux(space, self.convection)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum": u_t + c u u_x + b u_xx + d u_xxxx}"""
        u = u["slope"]
        flux = self.convection * u.value * u.d("x")
        return {"momentum": u.d("t") + flux + self.antidiffusion * u.d("xx") + self.hyperviscosity * u.d("xxxx")}
