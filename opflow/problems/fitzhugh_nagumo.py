"""The FitzHugh-Nagumo equations: an activator and an inhibitor that diffuse and react."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.pde.trigonometric_space import TrigonometricSpace
from opflow.problems.constants import check_finite, check_positive
from opflow.problems.evolution import SemilinearEvolution
from opflow.typing import Derivatives


@dataclass(frozen=True)
class FitzHughNagumo(SemilinearEvolution):
    """u_t = D_u lap u + u - u^3 - k - v,   v_t = D_v lap v + u - v   on (-1, 1)^2, without flux through its boundary.

    u is the activator, v the inhibitor; constants and box are those of PDEBench, "2D diffusion-reaction" (Takamoto et al. 2022,
    appendix D.3). PDEBench starts from independent normal numbers, one a cell: no function, which no finer grid could share. Here
    the initial fields are two Gaussian fields of the same unit variance, N(0, sigma^2 (-Laplacian + tau^2)^(-alpha)) on the box scaled
    to (0, 1)^2, whose patterns are about 1 / tau wide.

    Attributes:
        activator_diffusivity, inhibitor_diffusivity: D_u, D_v > 0, in length^2 / time.
        threshold: k.
        final_time: where `solve` stops when it is given no times.
        cutoff: cosine modes per axis of the initial fields.

    >>> problem, grid = FitzHughNagumo(), Grid((32, 32), (-1.0, 1.0), "cells")
    >>> solution = problem.solve(problem.sample(2, grid), grid, times=[0.0, 1.0, 2.0], rtol=1e-6)
    >>> solution["activator"].shape
    torch.Size([2, 3, 32, 32])
    """

    activator_diffusivity: float | Tensor = 1e-3
    inhibitor_diffusivity: float | Tensor = 5e-3
    threshold: float | Tensor = 5e-3
    final_time: float = 5.0
    tau: float = 20.0
    alpha: float = 3.0
    cutoff: int = DEFAULT_CUTOFF

    coordinates: ClassVar[tuple[str, ...]] = ("t", "x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("initial_activator", "initial_inhibitor")
    unknowns: ClassVar[tuple[str, ...]] = ("activator", "inhibitor")

    def __post_init__(self) -> None:
        check_positive(
            activator_diffusivity=self.activator_diffusivity,
            inhibitor_diffusivity=self.inhibitor_diffusivity,
            final_time=self.final_time,
        )
        check_finite(threshold=self.threshold)
        self._law()

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random initial fields {name: (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law, fields = self._law(), {}
        generators = sample_generators(type(self).__name__, indices, seed, split)
        for name in self.inputs:
            fields[name] = law.evaluate(law.coefficients(generators, 2), grid) / law.standard_deviation(2)
            generators = [generator.spawn(1)[0] for generator in generators]  # the second field has streams of its own
        return fields

    def space(self, grid: Grid, device: torch.device | str | None = None) -> TrigonometricSpace:
        """Cosine coefficients: without flux the even continuation is as smooth as the field, and the series converges as fast as Fourier's."""
        return TrigonometricSpace(grid, device=device)

    def linear(self, space: TrigonometricSpace) -> Tensor:
        """-D_u |k|^2 and -D_v |k|^2, (2, *modes)"""
        diffusivities = (self.activator_diffusivity, self.inhibitor_diffusivity)
        return torch.stack([diffusivity * space.laplacian for diffusivity in diffusivities])

    def nonlinear(self, space: TrigonometricSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """(u - u^3 - k - v, u - v) at the cells"""

        def reaction(c: Tensor, t: float) -> Tensor:
            u, v = space.field(c).unbind(1)
            return space.coefficients(torch.stack((u - u**3 - self.threshold - v, u - v), dim=1))

        return reaction

    def pack(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(n, 2, *grid)"""
        return torch.stack(torch.broadcast_tensors(*(inputs[name] for name in self.inputs)), dim=1)

    def unpack(self, state: Tensor) -> dict[str, Tensor]:
        """Both unknowns from (n, time, 2, *grid)"""
        return dict(zip(self.unknowns, state.unbind(2), strict=True))

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"activator": u_t - D_u lap u - u + u^3 + k + v, "inhibitor": v_t - D_v lap v - u + v}"""
        u, v = u["activator"], u["inhibitor"]
        rate = u.value - u.value**3 - self.threshold - v.value
        return {
            "activator": u.d("t") - self.activator_diffusivity * u.laplacian() - rate,
            "inhibitor": v.d("t") - self.inhibitor_diffusivity * v.laplacian() - u.value + v.value,
        }

    def _law(self) -> CosineField:
        return CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff)

    def _check(self, grid: Grid) -> None:
        if grid.axes != ("x", "y") or grid.layout != ("cells", "cells") or grid.extent != ((-1.0, 1.0), (-1.0, 1.0)):
            raise ValueError(
                f"FitzHughNagumo lives on the cells of the square (-1, 1)^2, but the grid is {grid}; use Grid((n, n), (-1.0, 1.0), 'cells')."
            )
