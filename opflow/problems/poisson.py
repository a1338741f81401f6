"""Poisson's equation among obstacles: the pressure of an incompressible flow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.random_field import sample_generators
from opflow.problems.obstacles import STYLES, random_obstacles
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.face_weights import Boundary, Sides, as_sides
from opflow.solvers.multigrid import Multigrid
from opflow.typing import Derivatives

OPEN_TOP = "open-top"
WAVES, HIGHEST_WAVE, STRENGTH = 3, 5, 0.3  # of the random part of the flow, beside an upward flow of 1
# What a forcing stored in single precision may sum to on a closed part of the fluid, of its own norm: rounding, no source.
ROUNDING = 1e-6
# Per pair of sides: wave / pi, sine or cosine from which end, and two places between them where the wave has no slope.
EXACT = {
    ("neumann", "neumann"): (4.0, "cosine", (0.25, 0.75)),
    ("periodic", "periodic"): (4.0, "cosine", (0.25, 0.75)),
    ("dirichlet", "dirichlet"): (2.0, "sine", (0.25, 0.75)),
    ("neumann", "dirichlet"): (2.5, "cosine", (0.4, 0.8)),
    ("dirichlet", "neumann"): (2.5, "sine", (0.2, 0.6)),
}


@dataclass(frozen=True)
class Poisson:
    """-lap p = f in the fluid part of a box, dp/dn = 0 on its solids and closed sides, p = 0 on its open sides.

    The equation that makes a flow incompressible: with f = -div v, the velocity v - grad p has no divergence and does not enter
    the solids. fluid is 1 in the fluid and 0 in the solids, p the pressure, 0 in the solids; all are dimensionless. The box is the extent
    of the grid, on whose cells everything lives. The fields of `sample`, after Kaneda et al. (2023, "DCDM"):

    - solids: random spheres, boxes, thin plates or nearly closed pockets, see `problems.obstacles`, the same ones on every grid. Parts of
      the fluid that they cut off from the open sides stay fluid; there, and where no side is open, p has mean zero.
    - forcing: -div v, v an upward flow of 1 with random waves that the solids and the closed sides stop dead; as means over cells, so
      that it sums to zero over every part that is cut off.

    Attributes:
        dim: 2 or 3.
        obstacles: how many; the first of many are those of fewer.
        style: "spheres", "boxes", "mixed" (these two in turn), "plates" or "pockets".
        boundary: "open-top", closed but for the upper end of the last axis; or "neumann" (closed), "dirichlet" (open) or "periodic" for
            all sides; or per axis one of these three or a (lower, upper) pair. Periodic axes need a periodic layout.

    >>> problem, grid = Poisson(), Grid((64, 64), layout="cells")
    >>> problem.solve(problem.sample(2, grid), grid)["pressure"].shape
    torch.Size([2, 64, 64])
    """

    dim: int = 2
    obstacles: int = 5
    style: str = "mixed"
    boundary: Boundary = OPEN_TOP

    inputs: ClassVar[tuple[str, ...]] = ("fluid", "forcing")
    unknowns: ClassVar[tuple[str, ...]] = ("pressure",)

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise ValueError(f"dim is {self.dim}; boxes of 2 and 3 axes are solved.")
        if not isinstance(self.obstacles, int) or self.obstacles < 0:
            raise ValueError(f"obstacles is {self.obstacles}; a whole number that is not negative is expected.")
        if self.style not in STYLES:
            raise ValueError(f"style is {self.style!r}; choose one of {', '.join(STYLES)}.")
        _ = self.sides

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The names of the axes."""
        return ("x", "y", "z")[: self.dim]

    @property
    def sides(self) -> Sides:
        """One (lower, upper) pair per axis."""
        if isinstance(self.boundary, str) and self.boundary == OPEN_TOP:
            return (("neumann", "neumann"),) * (self.dim - 1) + (("neumann", "dirichlet"),)
        return as_sides(self.boundary, self.dim)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random solids and flows {"fluid": (n, *grid), "forcing": (n, *grid)}, float64 on the CPU.

        Sample i is one geometry and one flow on every grid. The fluid is decided at the centres of cells; the forcing holds means over
        cells, so that finer grids average to coarser ones wherever both have the same solids.
        """
        self._check(grid)
        fluid, flows = [], []
        for generator in sample_generators(type(self).__name__, indices, seed, split):
            flows.append(_Flow(generator, self.dim))  # before the solids, whose number must not change it
            solid = np.zeros(grid.shape, dtype=bool)
            for obstacle in random_obstacles(generator, self.obstacles, self.style, self.dim):
                solid |= obstacle.solid(grid)
            fluid.append(~solid)
        inputs = {"fluid": torch.from_numpy(np.array(fluid, dtype=np.float64).reshape(-1, *grid.shape))}
        if not flows:
            return {**inputs, "forcing": inputs["fluid"].clone()}
        open_faces = self.operator(inputs, grid).weights
        forcing = torch.zeros_like(inputs["fluid"])
        for axis, (weights, h) in enumerate(zip(open_faces, grid.spacing, strict=True)):
            flux = torch.from_numpy(np.stack([flow.through_faces(axis, grid) for flow in flows]))
            forcing -= (flux * (weights > 0)).diff(dim=axis + 1) / h
        return {**inputs, "forcing": forcing}

    def operator(self, inputs: Mapping[str, Tensor], grid: Grid) -> FaceStencil:
        """-lap on the cells of the fluid of each sample, second order; `solve` inverts it.

        Args:
            inputs: "fluid" (n, *grid), ones and zeros; the others are not read.
        """
        self._check(grid)
        fluid = self._field(inputs, "fluid", grid)
        if not bool(((fluid == 0) | (fluid == 1)).all()):
            raise ValueError("fluid holds other numbers than 1, in the fluid, and 0, in the solids; round it.")
        ones = torch.ones(1, *grid.shape, dtype=torch.float64, device=fluid.device)
        return FaceStencil.from_coefficient(ones, grid, boundary=self.sides, mask=fluid == 1)

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """The pressure {"pressure": (n, *grid)}, float64: finite volumes on cells, conjugate gradients with `Multigrid`.

        Second order where the surfaces of the solids run between cells; first order where the grid turns them into stairs.

        Args:
            inputs: "fluid" (n, *grid), ones and zeros; "forcing" (n, *grid), of no consequence in the solids.
            rtol: of the linear solve.

        Raises:
            ValueError: an input is missing or does not fit the grid, or the forcing has a sum on a part of the fluid that no open side holds,
                where then no pressure solves the equation.
            RuntimeError: the linear solve did not reach rtol.
        """
        A = self.operator(inputs, grid)
        forcing = self._field(inputs, "forcing", grid)
        if len(forcing) != len(inputs["fluid"]):
            raise ValueError(
                f"fluid has {len(inputs['fluid'])} samples and forcing {len(forcing)}; give one forcing a sample."
            )
        if not len(forcing):
            return {"pressure": forcing}
        f = _without_sums(A, forcing * inputs["fluid"].to(forcing))
        solver = ConjugateGradient(Multigrid(), rtol=rtol, raise_on_failure=True)
        return {"pressure": solver.solve(A, f).x}

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"mass_balance": -lap p - f}, zero in the solids, through whose surfaces nothing flows."""
        fluid, f = a["fluid"].value, a["forcing"].value
        if bool((fluid == 1).all()):
            return {"mass_balance": -u["pressure"].laplacian() - f}
        # A harmonic mean of zeros is none, and one of the smallest number carries no flux.
        permeable = a["fluid"].of(fluid.clamp(min=torch.finfo(fluid.dtype).tiny))
        return {"mass_balance": fluid * (-u["pressure"].div_grad(permeable, jumps=True) - f)}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A manufactured solution at points (..., dim) of the unit box: {"fluid", "forcing", "pressure"}, each (...).

        p is a product of waves, one an axis, that meet the conditions of its sides: cos 4 pi x between closed or periodic ones, sin 2 pi x
        between open ones, cos 5 pi x / 2 from a closed to an open one and sin 5 pi x / 2 from an open to a closed one. With `obstacles` there
        is one solid, a box whose surfaces lie where the waves have no slope: at 1/4 and 3/4, at 2/5 and 4/5, or at 1/5 and 3/5.
        """
        pressure, squares = torch.ones_like(points[..., 0]), 0.0
        solid = torch.full(points.shape[:-1], self.obstacles > 0, device=points.device)
        for axis, pair in enumerate(self.sides):
            number, function, (low, high) = EXACT[pair]
            x = points[..., axis]
            wave = torch.cos if function == "cosine" else torch.sin
            pressure = pressure * wave(number * math.pi * x)
            squares += (number * math.pi) ** 2
            solid = solid & (x > low) & (x < high)
        fluid = (~solid).to(points.dtype)
        return {"fluid": fluid, "forcing": squares * pressure * fluid, "pressure": pressure * fluid}

    def _field(self, inputs: Mapping[str, Tensor], name: str, grid: Grid) -> Tensor:
        if name not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but Poisson needs '{name}' (n, *grid).")
        grid.check(inputs[name], name)
        field = inputs[name].to(torch.float64)
        if field.ndim != self.dim + 1:
            raise ValueError(f"{name} has shape {tuple(field.shape)}; expected (n, *grid), one field a sample.")
        finite = field.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise ValueError(f"{name} holds NaN or infinity in sample {bad}; correct or leave out this sample.")
        return field

    def _check(self, grid: Grid) -> None:
        layout = tuple("periodic" if "periodic" in pair else "cells" for pair in self.sides)
        if grid.layout != layout:
            shape = ", ".join(["n"] * self.dim)
            kind = repr(layout[0] if len(set(layout)) == 1 else layout)
            raise ValueError(
                f"Poisson lives on the cells of a box of {self.dim} axes, layout {kind}, but the grid is {grid}; use "
                f"Grid(({shape}), layout={kind})."
            )


class _Flow:
    """v = e_last + 0.3 (sum of three waves) per component, each wave a product of cosines with random wave numbers up to 5."""

    def __init__(self, generator: np.random.Generator, dim: int) -> None:
        self._amplitudes = STRENGTH * generator.standard_normal((dim, WAVES))
        self._numbers = generator.integers(0, HIGHEST_WAVE + 1, (dim, WAVES, dim))

    def through_faces(self, axis: int, grid: Grid) -> NDArray[np.float64]:
        """The mean of component `axis` over every face across this axis, outer ones included."""
        total = np.full([n + (d == axis) for d, n in enumerate(grid.shape)], float(axis == grid.dim - 1))
        for amplitude, numbers in zip(self._amplitudes[axis], self._numbers[axis], strict=True):
            lines = []
            for d, number in enumerate(numbers):
                n, periodic = grid.shape[d], grid.layout[d] == "periodic"
                k = int(number) * (2 if periodic else 1)
                # Periodic axes have a cell around their first point.
                faces = np.arange(n + 1) - (0.5 if periodic else 0.0)
                if d == axis:
                    line = np.cos(np.pi * k * faces / n)
                    line[-1] = line[0] if periodic else line[-1]  # one face
                else:
                    line = np.cos(np.pi * k * (faces[:-1] + 0.5) / n) * np.sinc(k / (2 * n))
                lines.append(line)
            total += amplitude * math.prod(np.meshgrid(*lines, indexing="ij", sparse=True))
        return total


def _without_sums(A: FaceStencil, f: Tensor) -> Tensor:
    """f without the rounding of its sums over the parts of the fluid that no open side holds.

    Raises:
        ValueError: such a sum is more than rounding.
    """
    null = A.null_part(f)
    if null is None:
        return f
    size = null.flatten(1).norm(dim=1) / f.flatten(1).norm(dim=1).clamp(min=torch.finfo(f.dtype).tiny)
    if bool((size > ROUNDING).any()):
        bad = int(size.argmax())
        raise ValueError(
            f"forcing of sample {bad} has a sum on a part of the fluid that no open side holds: its mean there makes {float(size[bad]):.1e} of its "
            "norm, and no pressure has that Laplacian. Subtract the mean there, or open a side."
        )
    return f - null
