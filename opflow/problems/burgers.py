"""The viscous Burgers equation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.random_field import DEFAULT_CUTOFF, PeriodicField
from opflow.problems.periodic_evolution import PeriodicEvolution, check_positive, sample_generators
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Burgers(PeriodicEvolution):
    """u_t + u u_x = nu u_xx on a periodic interval   (Li et al. 2021, "FNO", section 5.1).

    Initial velocities are drawn from N(0, sigma^2 (-Laplacian + tau^2)^(-alpha)) of the interval scaled to (0, 1); the defaults are the
    paper's N(0, 625 (-Laplacian + 25)^(-2)).

    Attributes:
        viscosity: nu > 0, in length^2 / time.
        final_time: where `solve` stops when it is given no times.
        cutoff: wave numbers of the initial velocity, |k| <= cutoff; the series is cut there on every grid.
        mean_mode: keep the mean of the initial velocity. The paper's formula has it; its generator sets it to zero.

    >>> problem, grid = Burgers(), Grid((256,), layout="periodic")
    >>> problem.solve(problem.sample(2, grid), grid, times=[0.0, 0.5, 1.0])["velocity"].shape
    torch.Size([2, 3, 256])
    """

    viscosity: float | Tensor = 0.1
    final_time: float = 1.0
    sigma: float = 25.0
    tau: float = 5.0
    alpha: float = 2.0
    cutoff: int = DEFAULT_CUTOFF
    mean_mode: bool = False

    unknowns: ClassVar[tuple[str, ...]] = ("velocity",)

    def __post_init__(self) -> None:
        check_positive(viscosity=self.viscosity, final_time=self.final_time)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random initial velocities {"initial": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law = PeriodicField(
            alpha=self.alpha, tau=self.tau, sigma=self.sigma, cutoff=self.cutoff, mean_mode=self.mean_mode
        )
        return {"initial": law.evaluate(law.coefficients(sample_generators(self, indices, seed, split), 1), grid)}

    def linear(self, space: FourierSpace) -> Tensor:
        """-nu k^2"""
        return float(self.viscosity) * space.laplacian

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """-(u^2 / 2)_x, conservative, free of aliasing by the two-thirds rule"""
        flux, kept = -0.5 * space.gradient[0] * space.dealiased, space.dealiased
        return lambda c, t: flux * space.coefficients(space.field(kept * c).square())

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum": u_t + u u_x - nu u_xx}"""
        u = u["velocity"]
        return {"momentum": u.d("t") + u.value * u.d("x") - self.viscosity * u.d("xx")}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A solution of period 1 at points (..., 2) of (t, x): {"initial", "velocity"}, each (...).

        u = -2 nu phi_x / phi for phi = 2 + exp(-nu k^2 t) cos(k x), k = 2 pi, which solves the heat equation   (Cole 1951, Hopf 1950).
        """
        t, x = points.unbind(-1)
        k = 2 * torch.pi

        def velocity(t: Tensor) -> Tensor:
            decay = torch.exp(-self.viscosity * k**2 * t)
            return 2 * self.viscosity * k * decay * torch.sin(k * x) / (2 + decay * torch.cos(k * x))

        return {"initial": velocity(torch.zeros_like(t)), "velocity": velocity(t)}
