"""What the evolution equations on periodic boxes share: their space, their initial fields, and products without aliases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.random_field import DEFAULT_CUTOFF, PeriodicField, sample_generators
from opflow.problems.constants import check_positive
from opflow.problems.evolution import SemilinearEvolution


class PeriodicEvolution(SemilinearEvolution):
    """u_t = L u + N(u) on a periodic box, with L diagonal in Fourier space."""

    real: ClassVar[bool] = True

    def space(self, grid: Grid, device: torch.device | str | None = None) -> FourierSpace:
        """Fourier coefficients of real fields, or of complex ones."""
        return FourierSpace(grid, real=self.real, device=device)

    def _check(self, grid: Grid) -> None:
        wanted = tuple(name for name in self.coordinates if name != "t")
        if grid.axes != wanted or set(grid.layout) != {"periodic"}:
            raise ValueError(
                f"{type(self).__name__} lives on a periodic grid with axes {', '.join(wanted)}, but the grid is {grid}; "
                f"use Grid({(64,) * len(wanted)}, layout='periodic')."
            )


@dataclass(frozen=True, kw_only=True)
class IntervalEvolution(PeriodicEvolution):
    """An evolution on a periodic interval that starts from Gaussian random fields.

    They are drawn from N(0, sigma^2 (-Laplacian + tau^2)^(-alpha)) on the interval scaled to (0, 1); the defaults are the law of the
    Burgers data of Li et al. 2021, section 5.1, N(0, 625 (-Laplacian + 25)^(-2)), with a standard deviation of 0.59, or 1.16 with
    its mean. Several inputs are independent fields.

    Attributes:
        final_time: where `solve` stops when it is given no times.
        cutoff: wave numbers of the initial fields, |k| <= cutoff; the series is cut there on every grid.
        mean_mode: keep the mean of the initial fields. The paper's formula has it; its generator sets it to zero.
    """

    final_time: float = 1.0
    sigma: float = 25.0
    tau: float = 5.0
    alpha: float = 2.0
    cutoff: int = DEFAULT_CUTOFF
    mean_mode: bool = False

    def __post_init__(self) -> None:
        check_positive(final_time=self.final_time)
        self.initial_law()

    def initial_law(self) -> PeriodicField:
        """The law of each initial field."""
        return PeriodicField(
            alpha=self.alpha, tau=self.tau, sigma=self.sigma, cutoff=self.cutoff, mean_mode=self.mean_mode
        )

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random initial fields {name: (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law, fields = self.initial_law(), {}
        generators = sample_generators(type(self).__name__, indices, seed, split)
        for name in self.inputs:
            fields[name] = law.evaluate(law.coefficients(generators, 1), grid)
            # A stream of its own for the next field, so that it does not depend on how many numbers this one took.
            generators = [generator.spawn(1)[0] for generator in generators]
        return fields


def quadratic_flux(space: FourierSpace, speed: float | Tensor) -> Nonlinearity:
    """N(u) = -speed (u^2 / 2)_x, conservative, and free of aliasing by the two-thirds rule."""
    kept = space.dealiased
    flux = (-0.5 * speed) * space.gradient[0] * kept
    return lambda c, t: flux * space.coefficients(space.field(kept * c).square())
