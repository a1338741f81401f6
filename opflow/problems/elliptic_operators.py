"""Random elliptic operators on a box: what preconditioners are trained and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.random_field import PeriodicField, sample_generators
from opflow.solvers.face_stencil import FaceStencil

KINDS = ("obstacles", "two-phase", "log-normal", "anisotropic")
Interval = tuple[float, float]


@dataclass(frozen=True)
class EllipticOperators:
    """-div(a grad u) on the cells of a box, sample by sample the same domain and coefficient on every grid.

    - "obstacles":   a = 1 outside of balls and boxes with closed walls; u = 0 on the last side of the last axis, all others closed:
      the pressure of a flow in a chamber with an open top.
    - "two-phase":   a = c^(1/2) where g > 0 and c^(-1/2) elsewhere
    - "log-normal":  a = c^(g / 4)
    - "anisotropic": the same with c <= 10, times e along one axis, the same axis and e for all that are drawn together

    with u = 0 on all sides, g a `PeriodicField` of unit variance (alpha = 3) and log c uniform in its interval.

    Args:
        kind: one of these.
        contrast: the interval of c.
        anisotropy: the interval of e, for "anisotropic".
        obstacles: how many, at least and at most.
        tau: of g; its inverse is about the length of what is seen in a medium.
        cutoff: modes of g per axis.
        layout: of the grids that `grid` makes.

    >>> A = EllipticOperators("two-phase", contrast=(10, 10)).sample(2, Grid((16, 16), layout="cells"))
    >>> A.shape, A.batch
    ((16, 16), 2)
    """

    kind: str
    contrast: Interval = (2.0, 1e5)
    anisotropy: Interval = (0.01, 1.0)
    obstacles: tuple[int, int] = (0, 8)
    tau: float = 12.5
    cutoff: int = 32
    layout: str = "cells"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; choose one of {', '.join(KINDS)}.")

    def grid(self, unknowns: int, dim: int) -> Grid:
        """The grid of the unit box with so many unknowns per axis, which are cells or interior nodes."""
        return Grid((unknowns + 2 * (self.layout == "nodes"),) * dim, layout=self.layout)

    def sample(self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train") -> FaceStencil:
        """A batch of operators in float64; obstacles are on cells."""
        generators = sample_generators(f"elliptic {self.kind}", indices, seed, split)
        if self.kind == "obstacles":
            mask = torch.stack([_free(g, self.obstacles, grid) for g in generators])
            sides = [("neumann", "neumann")] * (grid.dim - 1) + [("neumann", "dirichlet")]
            return FaceStencil.from_coefficient(
                mask.new_ones(mask.shape, dtype=torch.float64), grid, boundary=sides, mask=mask
            )
        logs = torch.tensor([_log_uniform(g, self.contrast) for g in generators], dtype=torch.float64).log()
        axis = int(generators[0].integers(grid.dim))
        ratio = _log_uniform(generators[0], self.anisotropy)
        law = PeriodicField(alpha=3.0, tau=self.tau, cutoff=self.cutoff)
        g = law.evaluate(law.coefficients(generators, grid.dim), grid) / law.standard_deviation(grid.dim)
        g = (g > 0).double() - 0.5 if self.kind == "two-phase" else g / 4
        a = (logs.view(-1, *[1] * grid.dim) * g).exp()
        if self.kind != "anisotropic":
            return FaceStencil.from_coefficient(a, grid)
        return FaceStencil.from_coefficient([a * ratio if d == axis else a for d in range(grid.dim)], grid)


# What the multigrid cycles that opflow ships are trained and compared on.
FAMILIES = {
    "obstacles": EllipticOperators("obstacles"),
    "two-phase": EllipticOperators("two-phase"),
    "high contrast": EllipticOperators("two-phase", contrast=(1e3, 1e5)),
    "log-normal": EllipticOperators("log-normal"),
    "anisotropic": EllipticOperators("anisotropic", contrast=(2.0, 10.0)),
    "darcy": EllipticOperators("two-phase", contrast=(4.0, 12.0), layout="nodes"),
}


def _log_uniform(generator: np.random.Generator, interval: Interval) -> float:
    low, high = np.log(interval)
    return float(np.exp(generator.uniform(low, high)))


def _free(generator: np.random.Generator, numbers: tuple[int, int], grid: Grid) -> Tensor:
    """True outside of the obstacles, (*grid), in units of the box's sides."""
    box = [(grid.coordinates(d) - grid.extent[d][0]) / grid.lengths[d] for d in range(grid.dim)]
    points = torch.stack(torch.meshgrid(*box, indexing="ij"))
    free = torch.ones(grid.shape, dtype=torch.bool)
    for number in range(generator.integers(numbers[0], numbers[1] + 1)):
        centre, half = (torch.from_numpy(generator.uniform(a, b, grid.dim)) for a, b in ((0.15, 0.85), (0.02, 0.2)))
        radius = generator.uniform(0.06, 0.16)
        away = points - centre.view(-1, *[1] * grid.dim)
        if number % 2:
            free &= (away.abs() >= half.view(-1, *[1] * grid.dim)).any(0)
        else:
            free &= away.square().sum(0) >= radius**2
    return free
