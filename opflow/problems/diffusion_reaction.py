"""Diffusion with a quadratic reaction and a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.kernel_field import SquaredExponentialField
from opflow.pde.random_field import sample_generators
from opflow.pde.trigonometric_space import TrigonometricSpace
from opflow.problems.constants import check_finite, check_positive
from opflow.problems.evolution import SemilinearEvolution
from opflow.typing import Derivatives

END_TOLERANCE = 1e-6  # of the largest value: what single precision leaves of sin(pi)


@dataclass(frozen=True)
class DiffusionReaction(SemilinearEvolution):
    """s_t = D s_xx + k s^2 + u(x) on the unit interval, s = 0 at its ends and at t = 0   (Lu et al. 2021, "DeepONet", section 4.3).

    The operator to learn maps the source u to the concentration s(t, x). u is a Gaussian process with covariance
    exp(-(x - x')^2 / (2 length^2)), see `SquaredExponentialField`. Everything is dimensionless.

    Attributes:
        diffusivity: D > 0.
        reaction: k. For k > 0 a source that is large enough makes the solution blow up.
        final_time: where `solve` stops when it is given no times.
        length: the correlation length of the source.

    >>> problem, grid = DiffusionReaction(), Grid(100)
    >>> problem.solve(problem.sample(2, grid), grid, times=torch.linspace(0, 1, 5))["concentration"].shape
    torch.Size([2, 5, 100])
    """

    diffusivity: float | Tensor = 0.01
    reaction: float | Tensor = 0.01
    final_time: float = 1.0
    length: float = 0.2

    inputs: ClassVar[tuple[str, ...]] = ("source",)
    unknowns: ClassVar[tuple[str, ...]] = ("concentration",)

    def __post_init__(self) -> None:
        check_positive(diffusivity=self.diffusivity, final_time=self.final_time, length=self.length)
        check_finite(reaction=self.reaction)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random sources {"source": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law = SquaredExponentialField(self.length)
        return {
            "source": law.evaluate(
                law.coefficients(sample_generators(type(self).__name__, indices, seed, split), grid), grid
            )
        }

    def space(self, grid: Grid, device: torch.device | str | None = None) -> TrigonometricSpace:
        """Sine coefficients."""
        return TrigonometricSpace(grid, device=device)

    def linear(self, space: TrigonometricSpace) -> Tensor:
        """D times the three-point difference, second order: the source does not vanish at the ends, and its sine series converges slowly."""
        return self.diffusivity * space.second_difference

    def nonlinear(self, space: TrigonometricSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """k s^2 + u at the nodes"""
        source = space.coefficients(inputs["source"])
        return lambda c, t: torch.addcmul(source, self._rate(c), space.coefficients(space.field(c).square()))

    def pack(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Zero, or the input "initial" (n or 1, *grid), which is optional."""
        zero = torch.zeros_like(inputs["source"])
        if "initial" not in inputs:
            return zero
        initial = inputs["initial"]
        if bool((initial[:, [0, -1]].abs().amax(1) > END_TOLERANCE * initial.abs().amax(1)).any()):
            raise ValueError(
                "initial is not zero at the ends of the interval, where the concentration is; set it to zero there."
            )
        return torch.nn.functional.pad(initial[:, 1:-1], (1, 1)).expand_as(zero)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"balance": s_t - D s_xx - k s^2 - u}"""
        s = u["concentration"]
        return {"balance": s.d("t") - self.diffusivity * s.d("xx") - self.reaction * s.value**2 - a["source"].value}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """The steady state sin(pi x) with its source, D pi^2 sin(pi x) - k sin(pi x)^2, at points (..., 2) of (t, x): {"source", "initial",
        "concentration"}, each (...). From zero, as samples start, no solution is known in closed form.
        """
        s = torch.sin(torch.pi * points[..., 1])
        source = self.diffusivity * torch.pi**2 * s - self.reaction * s**2
        return {"source": source, "initial": s, "concentration": s}

    def _rate(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.reaction, dtype=like.dtype, device=like.device)

    def _check(self, grid: Grid) -> None:
        if grid.axes != ("x",) or grid.layout != ("nodes",) or grid.extent != ((0.0, 1.0),) or grid.shape[0] < 3:
            raise ValueError(
                f"DiffusionReaction lives on at least three nodes of the unit interval, but the grid is {grid}; use Grid(n)."
            )
