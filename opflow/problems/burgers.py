"""The viscous Burgers equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.problems.constants import check_finite, check_positive
from opflow.problems.periodic_evolution import IntervalEvolution, quadratic_flux
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Burgers(IntervalEvolution):
    """u_t + c u u_x = nu u_xx on a periodic interval   (Li et al. 2021, "FNO", section 5.1, where c = 1).

    Attributes:
        viscosity: nu > 0, in length^2 / time.
        convection: c, without units where u is a velocity.

    >>> from opflow import Grid
    >>> problem, grid = Burgers(), Grid((256,), layout="periodic")
    >>> problem.solve(problem.sample(2, grid), grid, times=[0.0, 0.5, 1.0])["velocity"].shape
    torch.Size([2, 3, 256])
    """

    viscosity: float | Tensor = 0.1
    convection: float | Tensor = 1.0

    unknowns: ClassVar[tuple[str, ...]] = ("velocity",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(viscosity=self.viscosity)
        check_finite(convection=self.convection)

    def linear(self, space: FourierSpace) -> Tensor:
        """-nu k^2"""
        return self.viscosity * space.laplacian

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """-c (u^2 / 2)_x"""
        return quadratic_flux(space, self.convection)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum": u_t + c u u_x - nu u_xx}"""
        u = u["velocity"]
        return {"momentum": u.d("t") + self.convection * u.value * u.d("x") - self.viscosity * u.d("xx")}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A solution of period 1 at points (..., 2) of (t, x): {"initial", "velocity"}, each (...).

        u = -(2 nu / c) phi_x / phi for phi = 2 + exp(-nu k^2 t) cos(k x), k = 2 pi, which solves the heat equation
        (Cole 1951, Hopf 1950).

        Raises:
            ValueError: c is zero.
        """
        if float(torch.as_tensor(self.convection).detach()) == 0:
            raise ValueError(
                "convection is 0, where the Cole-Hopf solution is infinite; give another, or solve the heat equation."
            )
        t, x = points.unbind(-1)
        k = 2 * torch.pi

        def velocity(t: Tensor) -> Tensor:
            decay = torch.exp(-self.viscosity * k**2 * t)
            return 2 * self.viscosity * k / self.convection * decay * torch.sin(k * x) / (2 + decay * torch.cos(k * x))

        return {"initial": velocity(torch.zeros_like(t)), "velocity": velocity(t)}
