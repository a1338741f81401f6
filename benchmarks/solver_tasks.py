"""The linear systems that `benchmarks.solvers` gives to every method: where each comes from, on which grids, from which seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.random_field import CosineField, sample_generators
from opflow.problems import Poisson
from opflow.solvers import FaceStencil


@dataclass
class System:
    """A x = b: the stencil and the right-hand side (1, *shape), and both as SciPy takes them."""

    A: FaceStencil
    b: Tensor

    @cached_property
    def matrix(self) -> Any:
        """CSR over the unknowns inside the domain."""
        return self.A.to_sparse()

    @cached_property
    def vector(self) -> np.ndarray:
        """b at those unknowns."""
        return self.A.gather(self.b)[0].numpy()

    def fresh(self) -> System:
        """The same system on a new operator, assembled as SciPy's CSR is and with nothing else worked out: each method starts from there."""
        A = self.A.with_tensors(self.A.tensors())
        _ = A.stencil
        return System(A, self.b)

    @property
    def unknowns(self) -> int:
        """How many."""
        return len(self.A.dofs)

    def true_residual(self, x: Any) -> float:
        """|b - A x| / |b| in double precision, of a field or of SciPy's vector."""
        field = self.A.scatter(torch.from_numpy(x)[None]) if isinstance(x, np.ndarray) else x
        return float((self.b - self.A.apply(field.double())).norm() / self.b.norm())


@dataclass(frozen=True)
class Case:
    """A family on one grid.

    Attributes:
        family: cases of one family are one curve against the number of unknowns.
        seeds: unseen geometries or media. few: how many of them the slow methods get.
        few_hierarchies: whether PyAMG too gets only those few.
        make: seed -> System.
        steps: most steps of conjugate gradients without a preconditioner.
    """

    title: str
    family: str
    shape: tuple[int, ...]
    make: Callable[[int], System]
    seeds: int = 20
    few: int = 3
    few_hierarchies: bool = False
    steps: int = 5000


def smoke(n: int, dim: int, *, style: str = "mixed", obstacles: int = 5) -> Callable[[int], System]:
    """The pressure of a flow among obstacles, closed walls, open top.

    Fluid that is cut off from the top is filled: matrices with closed parts are singular, and IC(0) and Ruge-Stueben break on them.
    """

    def make(seed: int) -> System:
        problem, grid = Poisson(dim=dim, style=style, obstacles=obstacles), Grid((n,) * dim, layout="cells")
        inputs = problem.sample([seed], grid, split="test")
        parts, _ = label(inputs["fluid"][0].numpy())
        reached = np.isin(parts, np.setdiff1d(parts[..., -1], [0]))
        inputs = {name: field * torch.from_numpy(reached) for name, field in inputs.items()}
        return System(problem.operator(inputs, grid), inputs["forcing"])

    return make


def medium(n: int, dim: int, contrast: float) -> Callable[[int], System]:
    """-div(a grad u) = f on cells, u = 0 on all sides, a = contrast^(+-1/2) by the sign of a random field of length 0.1; f = 1 and noise."""

    def make(seed: int) -> System:
        grid = Grid((n,) * dim, layout="cells")
        generators = sample_generators("solver benchmark", [seed], 0, "test")
        law = CosineField(alpha=2.0, tau=10.0, cutoff=32 if dim == 3 else 64)
        g = law.evaluate(law.coefficients(generators, dim), grid)
        a = torch.where(g > 0, contrast**0.5, contrast**-0.5).double()
        return System(FaceStencil.from_coefficient(a, grid), _noisy_ones(grid.shape, seed))

    return make


def anisotropic(n: int, epsilon: float) -> Callable[[int], System]:
    """-(epsilon u_xx + u_yy) = f on cells, u = 0 on all sides."""

    def make(seed: int) -> System:
        grid = Grid((n, n), layout="cells")
        one = torch.ones(1, n, n, dtype=torch.float64)
        return System(FaceStencil.from_coefficient([epsilon * one, one], grid), _noisy_ones((n, n), seed))

    return make


def rotated(n: int, epsilon: float, degrees: float) -> Callable[[int], System]:
    """-div(K grad u) = f on nodes, u = 0 on all sides; K has the eigenvalues 1 and epsilon, the first one's axis at this angle."""

    def make(seed: int) -> System:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        k = torch.tensor([c * c + epsilon * s * s, s * s + epsilon * c * c, (1 - epsilon) * c * s], dtype=torch.float64)
        grid = Grid((n + 2, n + 2))
        return System(
            FaceStencil.from_tensor(k.view(1, 3, 1, 1).expand(1, 3, *grid.shape), grid), _noisy_ones((n, n), seed)
        )

    return make


def _noisy_ones(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.ones(1, *shape, dtype=torch.float64) + 0.1 * torch.randn(
        1, *shape, generator=generator, dtype=torch.float64
    )


CASES: dict[str, Case] = {
    "smoke-2d-128": Case("smoke, 128^2", "smoke in 2D", (128, 128), smoke(128, 2)),
    "smoke-2d-256": Case("smoke, 256^2", "smoke in 2D", (256, 256), smoke(256, 2)),
    "smoke-2d-512": Case("smoke, 512^2", "smoke in 2D", (512, 512), smoke(512, 2), seeds=5, few=1),
    "smoke-3d-32": Case("smoke, 32^3", "smoke in 3D", (32,) * 3, smoke(32, 3)),
    "smoke-3d-64": Case("smoke, 64^3", "smoke in 3D", (64,) * 3, smoke(64, 3), few=2),
    "smoke-3d-128": Case("smoke, 128^3", "smoke in 3D", (128,) * 3, smoke(128, 3), seeds=5, few=1, few_hierarchies=True),
    "contrast-10-256": Case("two phases, contrast 10, 256^2", "contrast 10 in 2D", (256, 256), medium(256, 2, 10.0)),
    "contrast-1e4-128": Case("two phases, contrast 1e4, 128^2", "contrast 1e4 in 2D", (128, 128), medium(128, 2, 1e4)),
    "contrast-1e4-256": Case("two phases, contrast 1e4, 256^2", "contrast 1e4 in 2D", (256, 256), medium(256, 2, 1e4), few=1),
    "contrast-1e4-512": Case("two phases, contrast 1e4, 512^2", "contrast 1e4 in 2D", (512, 512), medium(512, 2, 1e4), seeds=10, few=1),
    "contrast-1e4-3d-32": Case("two phases, contrast 1e4, 32^3", "contrast 1e4 in 3D", (32,) * 3, medium(32, 3, 1e4)),
    "contrast-1e4-3d-64": Case("two phases, contrast 1e4, 64^3", "contrast 1e4 in 3D", (64,) * 3, medium(64, 3, 1e4), few=1),
    "anisotropy-256": Case("aligned anisotropy 0.01, 256^2", "anisotropy", (256, 256), anisotropic(256, 0.01)),
    "rotated-256": Case("anisotropy 0.01 at 45 degrees, 256^2", "rotated", (256, 256), rotated(256, 0.01, 45.0), few=1),
    "plates-192": Case(
        "smoke among 25 plates, one cell thick, 192^2", "plates", (192, 192), smoke(192, 2, style="plates", obstacles=25)
    ),
}  # fmt: skip
