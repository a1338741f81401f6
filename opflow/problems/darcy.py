"""Darcy flow: the pressure in a porous medium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.grid import Grid
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.fast_poisson import FastPoisson
from opflow.typing import Derivatives

MEDIA = ("two-phase", "log-normal")


@dataclass(frozen=True)
class Darcy:
    """-div(a grad u) = f on the unit square, u = 0 on its boundary   (Li et al. 2021, "FNO", section 5.2).

    a is the permeability, u the pressure, both dimensionless. g ~ N(0, (-Laplacian + tau^2)^(-alpha)) gives

    - medium "two-phase":  a = high where g >= 0, low where g < 0
    - medium "log-normal": a = exp(log_scale g / std(g))

    Attributes:
        forcing: f, one number.
        cutoff: cosine modes per axis of g.
        mean_mode: keep the mean of g (see `CosineField`).

    >>> problem = Darcy()
    >>> a = problem.sample(2, Grid((33, 33)))
    >>> problem.solve(a, Grid((33, 33)))["pressure"].shape
    torch.Size([2, 33, 33])
    """

    medium: str = "two-phase"
    forcing: float = 1.0
    high: float = 12.0
    low: float = 3.0
    log_scale: float = 1.0
    alpha: float = 2.0
    tau: float = 3.0
    cutoff: int = DEFAULT_CUTOFF
    mean_mode: bool = False

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("permeability",)
    unknowns: ClassVar[tuple[str, ...]] = ("pressure",)

    def __post_init__(self) -> None:
        if self.medium not in MEDIA:
            raise ValueError(f"medium is {self.medium!r}; choose one of {', '.join(MEDIA)}.")
        if not (self.high > 0 and self.low > 0):
            raise ValueError(f"the permeabilities are high={self.high} and low={self.low}; both must be positive.")

    @property
    def jumps(self) -> bool:
        """Whether the permeability is discontinuous, so that only a conservative scheme may differentiate it."""
        return self.medium == "two-phase"

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random permeabilities {"permeability": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law = CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff, mean_mode=self.mean_mode)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        g = law.evaluate(law.coefficients(generators, grid.dim), grid)
        if self.medium == "two-phase":
            return {"permeability": torch.where(g >= 0, g.new_tensor(self.high), g.new_tensor(self.low))}
        return {"permeability": torch.exp(self.log_scale * g / law.standard_deviation(grid.dim))}

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """The pressure {"pressure": (n, *grid)}: five-point finite volumes on nodes, harmonic faces, conjugate gradients.

        Second order where the permeability is smooth or jumps midway between nodes, first order otherwise.

        Args:
            inputs: "permeability" (n, *grid), positive; optionally "forcing" (n or 1, *grid) in place of the constant.
            rtol: of the linear solve.

        Raises:
            ValueError: an input is missing or does not fit the grid, or a permeability is not positive and finite.
            RuntimeError: the linear solve did not converge.
        """
        self._check(grid)
        if "permeability" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but Darcy needs 'permeability' (n, *grid).")
        for name, field in inputs.items():
            grid.check(field, name)
        a = inputs["permeability"].to(torch.float64)
        f = inputs.get("forcing", torch.full((1, *grid.shape), self.forcing, dtype=torch.float64)).to(a)
        A = FaceStencil.from_coefficient(a, grid)
        b = f[..., 1:-1, 1:-1].expand(a.shape[0], -1, -1).contiguous()
        solver = ConjugateGradient(FastPoisson(scaled=not self.jumps), rtol=rtol, max_steps=2000, raise_on_failure=True)
        return {"pressure": F.pad(solver.solve(A, b).x, (1, 1, 1, 1))}

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"mass_balance": -div(a grad u) - f}"""
        f = a["forcing"].value if "forcing" in a else self.forcing
        return {"mass_balance": -u["pressure"].div_grad(a["permeability"], jumps=self.jumps) - f}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A manufactured solution at points (..., 2): {"permeability", "forcing", "pressure"}, each (...).

        Log-normal medium: a = exp(x + y / 2), u = sin(pi x) sin(pi y), f by the product rule. Two-phase medium: a = high for
        x < 1/2, low beyond, and u = sin(2 pi x) sin(pi y) / a, whose flux is continuous, so that f = 5 pi^2 a u.
        """
        x, y = points.unbind(-1)
        pi = torch.pi
        if self.jumps:
            a = torch.where(x < 0.5, x.new_tensor(self.high), x.new_tensor(self.low))
            wave = torch.sin(2 * pi * x) * torch.sin(pi * y)
            return {"permeability": a, "forcing": 5 * pi**2 * wave, "pressure": wave / a}
        a = torch.exp(x + y / 2)
        u = torch.sin(pi * x) * torch.sin(pi * y)
        ux, uy = pi * torch.cos(pi * x) * torch.sin(pi * y), pi * torch.sin(pi * x) * torch.cos(pi * y)
        return {"permeability": a, "forcing": a * (2 * pi**2 * u - ux - uy / 2), "pressure": u}

    def _check(self, grid: Grid) -> None:
        if grid.dim != 2 or grid.layout != ("nodes", "nodes") or grid.extent != ((0.0, 1.0), (0.0, 1.0)):
            raise ValueError(f"Darcy lives on the nodes of the unit square, but the grid is {grid}; use Grid((n, n)).")
