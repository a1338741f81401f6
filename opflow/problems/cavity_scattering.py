"""Inverse wave scattering in a cavity: the refractive index inside from fluxes on the boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import sample_generators
from opflow.problems.cavity_map import CavityMap, check_nodes
from opflow.problems.constants import check_positive
from opflow.typing import check_sizes

MOST_INCLUSIONS = 4
ADMISSION_GRID = Grid((49, 49))  # where `sample` looks for resonances, whatever grid it is asked for
MOST_REDRAWS = 100


@dataclass(frozen=True)
class CavityScattering:
    """lap u + omega^2 a^2 u = 0 in the unit square, u = g_l on its boundary; du/dn on the boundary is measured, a is asked for.

    a is the refractive index, u the field, both dimensionless (Molinaro, Yang, Engquist and Mishra 2023, "Neural Inverse Operators", section
    3.3). The paper writes omega^2 a u; its solver squares the coefficient, and so is it here. The boundary functions are plane waves

        g_l(x, y) = cos(omega (x cos theta_l + y sin theta_l)),   theta_l = pi l / L,   l = 0, ..., L - 1,

    half a turn, since the cosine is even; media are one to four nearly square inclusions, which may overlap,

        a = 1 + sum_(k <= m) exp(-c (x - x_k)^4 - c (y - y_k)^4),   m ~ U{1, ..., 4},   x_k, y_k ~ U(margin, 1 - margin).

    A cavity has resonances, at which there is no solution. What has one too near is refused by `observe` and drawn again by `sample`.

    Attributes:
        omega: > 0; 2 pi is one wave along the side where a = 1.
        n_measurements: L.
        sensors_per_side: fluxes are measured at shares j / (sensors_per_side + 1) of each side, counter-clockwise from the corner (0, 0),
            whatever the grid of the solve.
        sharpness: c; inclusions are 2 c^(-1/4) wide.
        margin: of the centres from the sides.
        resonance_tolerance: a medium is refused if a resonance omega_j has |omega_j^2 / omega^2 - 1| below it. 0 refuses nothing.

    >>> problem, grid = CavityScattering(), Grid((33, 33))
    >>> problem.observe(problem.sample(2, grid))["measurements"].shape
    torch.Size([2, 20, 1, 272])
    """

    omega: float = 2 * math.pi
    n_measurements: int = 20
    sensors_per_side: int = 68
    sharpness: float = 2e4 / 3
    margin: float = 0.1
    resonance_tolerance: float = 1e-2

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("index",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        check_positive(omega=self.omega, sharpness=self.sharpness)
        check_sizes(n_measurements=self.n_measurements, sensors_per_side=self.sensors_per_side)
        if not 0 <= self.margin < 0.5 or not 0 <= self.resonance_tolerance < 1:
            raise ValueError(
                f"margin is {self.margin} and resonance_tolerance {self.resonance_tolerance}; expected 0 <= margin < 0.5 and "
                "0 <= resonance_tolerance < 1."
            )

    @property
    def angles(self) -> Tensor:
        """theta_l (L,), all within half a turn."""
        return torch.arange(self.n_measurements, dtype=torch.float64) * (math.pi / self.n_measurements)

    @property
    def descriptors(self) -> Tensor:
        """cos 2 theta_l, sin 2 theta_l, omega / 2 pi (L, 3): theta and theta + pi are the same wave, hence the double angle."""
        t = 2 * self.angles
        return torch.stack([t.cos(), t.sin(), torch.full_like(t, self.omega / (2 * math.pi))], dim=1)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random media {"index": (n, *grid)}, float64; sample i is one function on every grid.

        A medium with a resonance nearer than twice `resonance_tolerance` is drawn again from its own stream; the factor is the room
        for the grid on which it is solved.

        Raises:
            RuntimeError: the tolerance all but excludes the law.
        """
        check_nodes(grid)
        admission = self.forward(ADMISSION_GRID)
        media = []
        for generator in sample_generators(type(self).__name__, indices, seed, split):
            for _ in range(MOST_REDRAWS):
                centres = generator.uniform(
                    self.margin, 1 - self.margin, (int(generator.integers(1, MOST_INCLUSIONS + 1)), 2)
                )
                if self.resonance_tolerance == 0:
                    break
                nearest = admission.nearest_resonance(self._medium(centres, ADMISSION_GRID)[None])
                if abs(float(nearest) - 1) >= 2 * self.resonance_tolerance:
                    break
            else:
                raise RuntimeError(
                    f"a medium was drawn {MOST_REDRAWS} times without one that is far enough from resonance; "
                    f"resonance_tolerance={self.resonance_tolerance} all but excludes the law at omega={self.omega}."
                )
            media.append(self._medium(centres, grid))
        return {"index": torch.stack(media) if media else torch.zeros(0, *grid.shape, dtype=torch.float64)}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """{"measurements": (n, L, 1, 4 sensors), "mask": (n, L) of True}, float64: see `CavityMap` for the solver.

        Args:
            inputs: "index" (n, *grid), positive.
            sensors: on each side; None takes `sensors_per_side`.
            grid: where the index is given; None means the nodes of the unit square.
            noise: deviation of additive Gaussian noise, relative to the root mean square of a sample's measurements.
            seed: of the noise.

        Raises:
            ValueError: the index is missing, does not fit the grid, is not positive, or resonates.
        """
        if "index" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but CavityScattering needs 'index' (n, *grid).")
        a = inputs["index"].detach()
        if a.ndim != 3:
            raise ValueError(f"index has shape {tuple(a.shape)}; expected (n, *grid), one field a sample.")
        fluxes = self.forward(Grid(tuple(a.shape[1:])) if grid is None else grid, sensors)(a)
        noisy = add_noise(fluxes, noise, torch.Generator().manual_seed(seed))
        return {"measurements": noisy, "mask": torch.ones(noisy.shape[:2], dtype=torch.bool)}

    def forward(self, grid: Grid, sensors: int | None = None) -> CavityMap:
        """The map from media (n, *grid) to measurements, with its derivatives."""
        sensors = self.sensors_per_side if sensors is None else sensors
        check_sizes(sensors=sensors)
        return CavityMap(grid, self.omega, self._waves, sensors, tolerance=self.resonance_tolerance)

    def _waves(self, points: Tensor) -> Tensor:
        """g_l at points (..., 2): (L, ...)"""
        directions = torch.stack([self.angles.cos(), self.angles.sin()])
        return torch.cos(self.omega * (points.to(torch.float64) @ directions)).movedim(-1, 0)

    def _medium(self, centres: np.ndarray, grid: Grid) -> Tensor:
        x, y = (
            torch.exp(-self.sharpness * (grid.coordinates(axis) - torch.from_numpy(centres[:, axis, None])) ** 4)
            for axis in (0, 1)
        )
        return 1 + torch.einsum("kx,ky->xy", x, y)
