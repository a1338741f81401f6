"""Impedance tomography on the disc: a thorax from its Dirichlet-to-Neumann map."""

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
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import sample_generators
from opflow.problems.boundary_fluxes import check_positive_field
from opflow.problems.disc_map import DiscMap
from opflow.typing import check_sizes


@dataclass(frozen=True)
class DiscTomography:
    """-div(a grad u) = 0 in the unit disc, u = g on the circle; Lambda_a: g -> a du/dr is measured, a is asked for.

    a is the conductivity, u the potential, both dimensionless. The measurement l is the row of g_l in the matrix of Lambda_a - Lambda_1 in
    the real basis cos n theta, sin n theta, n = 1, 2, ..., of unit norm on the circle. Of complex exponentials the real part alone is the
    same for a and its mirror image; of these functions it is not.

    The law is a thorax after the phantom of heart and lungs of Mueller and Siltanen (2012), with random places, shapes and values (Molinaro,
    Yang, Engquist and Mishra 2023, section 4): a body of conductivity 1; two ellipses, the lungs, left and right, that lean towards each
    other, each with a value of its own; in front of them an ellipse, the heart, above the middle. All are inside of radius 0.98.

    Attributes:
        n_harmonics: N, the highest n; there are 2 N measurements of 2 N numbers.
        lungs: the range of their conductivities, which are uniform in it.
        heart: the range of its conductivity.

    >>> problem, grid = DiscTomography(), Grid.polar(70, 70)
    >>> problem.observe(problem.sample(2, grid))["measurements"].shape
    torch.Size([2, 32, 1, 32])
    """

    n_harmonics: int = 16
    lungs: tuple[float, float] = (0.4, 0.7)
    heart: tuple[float, float] = (1.5, 2.5)

    coordinates: ClassVar[tuple[str, ...]] = ("theta", "r")
    inputs: ClassVar[tuple[str, ...]] = ("conductivity",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        check_sizes(n_harmonics=self.n_harmonics)
        for name in ("lungs", "heart"):
            low, high = (float(value) for value in getattr(self, name))
            if not 0 < low <= high < math.inf:
                raise ValueError(
                    f"{name} is {(low, high)}; two positive conductivities in increasing order are expected."
                )
            object.__setattr__(self, name, (low, high))

    @property
    def descriptors(self) -> Tensor:
        """What says which boundary function it is, (2 N, 3) float64: n / N, and 1, 0 for a cosine, 0, 1 for a sine."""
        l = torch.arange(2 * self.n_harmonics)
        return torch.stack([(l // 2 + 1) / self.n_harmonics, 1 - l % 2, l % 2], -1).double()

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random thoraxes {"conductivity": (n, n_theta, n_r)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        points = grid.cartesian_points().numpy()
        generators = sample_generators(type(self).__name__, indices, seed, split)
        a = np.ones((len(generators), *grid.shape))
        for field, generator in zip(a, generators, strict=True):
            for side in (-1.0, 1.0):
                centre = side * generator.uniform(0.38, 0.5), generator.uniform(-0.12, 0.08)
                axes, angle = (generator.uniform(0.2, 0.28), generator.uniform(0.36, 0.46)), generator.uniform(0.0, 0.3)
                field[_ellipse(points, centre, axes, side * angle)] = generator.uniform(*self.lungs)
            centre = generator.uniform(-0.12, 0.12), generator.uniform(0.3, 0.45)
            axes, angle = (generator.uniform(0.14, 0.2), generator.uniform(0.18, 0.26)), generator.uniform(0.0, math.pi)
            field[_ellipse(points, centre, axes, angle)] = generator.uniform(*self.heart)
        return {"conductivity": torch.from_numpy(a)}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """{"measurements": (n, 2 N, 1, sensors), "mask": (n, 2 N) of True}: see `DiscMap` for the solver.

        Args:
            inputs: "conductivity" (n, n_theta, n_r), positive.
            sensors: the number of basis functions that currents are read with; None takes 2 N.
            grid: where the conductivity is given; None means `Grid.polar` of its shape.
            noise: deviation of additive Gaussian noise, relative to the root mean square of a sample's measurements.
            seed: of the noise.

        Raises:
            ValueError: the conductivity is missing, does not fit the grid or is not positive.
        """
        if "conductivity" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but DiscTomography needs 'conductivity' (n, *grid).")
        a = inputs["conductivity"].detach()
        if a.ndim != 3:
            raise ValueError(
                f"conductivity has shape {tuple(a.shape)}; expected (n, n_theta, n_r), one field a sample."
            )
        check_positive_field(a, "conductivity")
        matrices = self.forward(Grid.polar(*a.shape[1:]) if grid is None else grid, sensors)(a)
        noisy = add_noise(matrices, noise, torch.Generator().manual_seed(seed))
        return {"measurements": noisy, "mask": torch.ones(noisy.shape[:2], dtype=torch.bool, device=noisy.device)}

    def forward(self, grid: Grid, sensors: int | None = None) -> DiscMap:
        """The map from conductivities (n, n_theta, n_r) to measurements, with its derivatives."""
        self._check(grid)
        sensors = 2 * self.n_harmonics if sensors is None else sensors
        check_sizes(sensors=sensors)
        highest = max(self.n_harmonics, (sensors + 1) // 2)
        if grid.shape[0] <= 2 * highest:
            raise ValueError(
                f"the grid has {grid.shape[0]} angles, which cannot hold sin {highest} theta; give at least {2 * highest + 1}."
            )
        return DiscMap(grid, 2 * self.n_harmonics, sensors)

    def _check(self, grid: Grid) -> None:
        if grid.kind != "polar" or grid != Grid.polar(*grid.shape):
            raise ValueError(
                f"DiscTomography lives on the unit disc, but the grid is {grid}; use Grid.polar(n_theta, n_r)."
            )


def _ellipse(
    points: NDArray[np.float64], centre: tuple[float, float], axes: tuple[float, float], angle: float
) -> NDArray[np.bool_]:
    """Whether points (..., 2) lie in an ellipse with these half axes, turned counter-clockwise."""
    x, y = np.moveaxis(points - np.asarray(centre), -1, 0)
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return (along / axes[0]) ** 2 + (across / axes[1]) ** 2 <= 1
