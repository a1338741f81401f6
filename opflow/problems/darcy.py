"""Darcy flow: the pressure in a porous medium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from opflow.grid import Grid
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.problems.sparse_factors import solve_by_factors
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.fast_poisson import FastPoisson
from opflow.typing import Derivatives

# The media, and the contrast beyond which sparse factors solve them: where conjugate gradients with a constant-coefficient preconditioner
# take more time than they, or, for 1e5, come near what rounding leaves of rtol.
CONTRAST_FOR_FACTORS = {"two-phase": 100.0, "log-normal": 1e5, "multiscale": 1.0}
SCALES = 6  # of the multiscale medium


@dataclass(frozen=True)
class Darcy:
    """-div(a grad u) = f on a square, u = 0 on its boundary   (Li et al. 2021, "FNO", section 5.2).

    a is the permeability, u the pressure, both dimensionless. g ~ N(0, (-Laplacian + tau^2)^(-alpha)) on the unit square gives

    - medium "two-phase":  a = high where g >= 0, low where g < 0. The defaults are the smooth set of He, Liu and Xu (2024,
      "MgNO"), tau = 5, high = 12 and low = 2 its rough one.
    - medium "log-normal": a = exp(log_scale g / std(g)). alpha = 3/2 makes it rough; log_scale = 1.3 then spans about four decades.

    and without g, on the square (-1, 1)^2, which this medium fixes since its waves are stated there,

    - medium "multiscale": a = prod_k (1 + cos(a_k pi (x + y)) / 2) (1 + sin(a_k pi (y - 3 x)) / 2), k = 1, ..., 6,
      a_k uniform in 2^(k-1) (1, 3/2)   (He, Liu and Xu 2024). Along x its shortest waves are 1/100 to 1/140 of the side, so that 64
      nodes do not resolve it: solve on 505 and keep every eighth.

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
        if self.medium not in CONTRAST_FOR_FACTORS:
            raise ValueError(f"medium is {self.medium!r}; choose one of {', '.join(CONTRAST_FOR_FACTORS)}.")
        if not (self.high > 0 and self.low > 0):
            raise ValueError(f"the permeabilities are high={self.high} and low={self.low}; both must be positive.")

    @property
    def jumps(self) -> bool:
        """Whether the permeability is discontinuous, so that only a conservative scheme may differentiate it."""
        return self.medium == "two-phase"

    @property
    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The square that the medium is stated on."""
        side = (-1.0, 1.0) if self.medium == "multiscale" else (0.0, 1.0)
        return side, side

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random permeabilities {"permeability": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        if self.medium == "multiscale":
            return {"permeability": _multiscale(np.array([g.uniform(1.0, 1.5, SCALES) for g in generators]), grid)}
        law = CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff, mean_mode=self.mean_mode)
        g = law.evaluate(law.coefficients(generators, grid.dim), grid)
        if self.medium == "two-phase":
            return {"permeability": torch.where(g >= 0, g.new_tensor(self.high), g.new_tensor(self.low))}
        return {"permeability": torch.exp(self.log_scale * g / law.standard_deviation(grid.dim))}

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """The pressure {"pressure": (n, *grid)}, float64: five-point finite volumes on nodes, harmonic faces.

        Second order where the permeability is smooth or jumps midway between nodes, first order otherwise.

        The linear systems are solved by conjugate gradients with `FastPoisson`, scaled by the diagonal where the permeability
        does not jump; by sparse factors on the CPU where some sample's largest permeability is more than 100 times its smallest in a
        two-phase medium, or 1e5 times in a log-normal one, and in every multiscale medium. Factors are accepted at rtol, or at
        rounding where float64 reaches no further (`problems.sparse_factors`).

        Args:
            inputs: "permeability" (n, *grid), positive; optionally "forcing" (n or 1, *grid) in place of the constant.
            rtol: of the linear solve.

        Raises:
            ValueError: an input is missing or does not fit the grid, or a permeability is not positive and finite.
            RuntimeError: the linear solve did not reach rtol.
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
        if self._needs_factors(a):
            u = solve_by_factors(A, b, rtol=rtol)
        else:
            poisson = FastPoisson(scaled=not self.jumps)
            u = ConjugateGradient(poisson, rtol=rtol, max_steps=2000, raise_on_failure=True).solve(A, b).x
        return {"pressure": F.pad(u, (1, 1, 1, 1))}

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"mass_balance": -div(a grad u) - f}"""
        f = a["forcing"].value if "forcing" in a else self.forcing
        return {"mass_balance": -u["pressure"].div_grad(a["permeability"], jumps=self.jumps) - f}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A manufactured solution at points (..., 2): {"permeability", "forcing", "pressure"}, each (...).

        Smooth media: a = exp(x + y / 2), u = sin(pi x) sin(pi y), f by the product rule. Two-phase medium: a = high for
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

    def _needs_factors(self, a: Tensor) -> bool:
        contrast = a.flatten(1).amax(1) / a.flatten(1).amin(1)
        return bool((contrast > CONTRAST_FOR_FACTORS[self.medium]).any())

    def _check(self, grid: Grid) -> None:
        if grid.dim != 2 or grid.layout != ("nodes", "nodes") or grid.extent != self.extent:
            where, use = (
                ("square (-1, 1)^2 in a multiscale medium", "Grid((n, n), (-1.0, 1.0))")
                if self.medium == "multiscale"
                else ("unit square", "Grid((n, n))")
            )
            raise ValueError(f"Darcy lives on the nodes of the {where}, but the grid is {grid}; use {use}.")


def _multiscale(octaves: NDArray[np.float64], grid: Grid) -> Tensor:
    """prod_k (1 + cos(a_k pi (x + y)) / 2) (1 + sin(a_k pi (y - 3 x)) / 2), a_k = 2^(k-1) octaves_k: (n, scales) -> (n, *grid)"""
    x, y = grid.points().unbind(-1)
    a = torch.ones(len(octaves), *grid.shape, dtype=torch.float64)
    for k in range(SCALES):
        wave = torch.from_numpy(np.pi * 2.0**k * octaves.reshape(-1, SCALES)[:, k]).view(-1, 1, 1)
        a = a * (1 + torch.cos(wave * (x + y)) / 2) * (1 + torch.sin(wave * (y - 3 * x)) / 2)
    return a
