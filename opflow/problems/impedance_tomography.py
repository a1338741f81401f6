"""Impedance tomography on the square: the conductivity inside from currents through the boundary (Calderon's problem)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import sample_generators
from opflow.problems.boundary_fluxes import BoundaryFluxes
from opflow.problems.constants import check_positive
from opflow.typing import check_sizes

MEDIA = ("trigonometric", "tensor")
MODES = 4  # along the diagonal of the trigonometric law, along each axis of the tensor law
FEWEST_NODES = 6  # a side: a cubic needs four beside the corners
DESCRIBED_AT = 16  # points of the boundary whose values describe a boundary function that is given


@dataclass(frozen=True)
class ImpedanceTomography:
    """-div(a grad u) = 0 in the unit square, u = g_l on its boundary; a du/dn on the boundary is measured, a is asked for.

    a is the conductivity, u the potential, both dimensionless (Calderon 1980; the set-up of Molinaro, Yang, Engquist and Mishra 2023,
    "Neural Inverse Operators", section 3.1). The voltages are plane waves

        g_l(x, y) = cos(omega_l (x cos theta_l + y sin theta_l)),   theta_l = pi l / L,   l = 0, ..., L - 1.

    Half a turn: the cosine is even, so that angles all around would give every wave twice. Conductivities are

    - medium "trigonometric": a = exp(sum_(k <= m) c_k sin(k pi x) sin(k pi y)), c_k ~ U(-1, 1), m = round(N(3, 1)) mod 5: at most four
      numbers, the published family;
    - medium "tensor": a = exp(sum_(j, k <= 4) c_jk sin(j pi x) sin(k pi y)), c_jk ~ U(-1, 1) 2 / (j + k): sixteen numbers.

    Attributes:
        omega: of the waves, one number or one for each.
        n_measurements: L.
        sensors_per_side: fluxes are measured at shares j / (sensors_per_side + 1) of each side, counter-clockwise from the corner (0, 0),
            whatever the grid of the solve.
        boundary_functions: voltages in place of the waves, each a function of points (..., 2); dataclasses whose fields are plain
            values can be recorded in the recipe of a data set.

    Raises:
        ValueError: an unknown medium, a number that is not positive, or two boundary functions that are equal on the boundary.

    >>> problem, grid = ImpedanceTomography(), Grid((70, 70))
    >>> problem.observe(problem.sample(2, grid))["measurements"].shape
    torch.Size([2, 20, 1, 272])
    """

    medium: str = "trigonometric"
    omega: float | tuple[float, ...] = 2 * math.pi
    n_measurements: int = 20
    sensors_per_side: int = 68
    boundary_functions: tuple[Callable[[Tensor], Tensor], ...] = ()

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("conductivity",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        if self.medium not in MEDIA:
            raise ValueError(f"medium is {self.medium!r}; choose one of {', '.join(MEDIA)}.")
        check_sizes(n_measurements=self.n_measurements, sensors_per_side=self.sensors_per_side)
        functions = tuple(self.boundary_functions)
        object.__setattr__(self, "boundary_functions", functions)
        if functions and len(functions) != self.n_measurements:
            raise ValueError(
                f"{len(functions)} boundary functions are given but n_measurements is {self.n_measurements}; make them agree."
            )
        if not isinstance(self.omega, int | float):
            object.__setattr__(self, "omega", tuple(float(omega) for omega in self.omega))
            if len(self.omega) != self.n_measurements:
                raise ValueError(
                    f"omega has {len(self.omega)} numbers; give one for all, or one for each of {self.n_measurements} measurements."
                )
        for omega in self._omegas:
            check_positive(omega=omega)
        self._refuse_equal()

    @property
    def descriptors(self) -> Tensor:
        """What says which boundary function it is, (L, d) float64: cos 2 theta_l, sin 2 theta_l, omega_l / 2 pi for waves.

        theta and theta + pi are the same wave, hence the double angle. Of functions that are given: their values at 16 points,
        counter-clockwise from (0, 0), four on each side.
        """
        if self.boundary_functions:
            return self._voltages(_around(np.arange(DESCRIBED_AT // 4) / (DESCRIBED_AT // 4)))
        angle = 2 * self._angles
        return torch.stack([angle.cos(), angle.sin(), torch.tensor(self._omegas).double() / (2 * math.pi)], -1)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random conductivities {"conductivity": (n, *grid)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        c, k = np.zeros((len(generators), MODES, MODES)), np.arange(1, MODES + 1)
        for matrix, generator in zip(c, generators, strict=True):
            if self.medium == "tensor":
                matrix[:] = generator.uniform(-1, 1, (MODES, MODES)) * 2 / (k[:, None] + k)
            else:
                amplitudes, m = generator.uniform(-1, 1, MODES), round(generator.normal(3, 1)) % (MODES + 1)
                matrix[:] = np.diag(np.where(k <= m, amplitudes, 0))
        x, y = (np.sin(np.pi * np.outer(k, grid.coordinates(axis).numpy())) for axis in (0, 1))
        return {"conductivity": torch.from_numpy(np.exp(np.einsum("njk,jx,ky->nxy", c, x, y)))}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """{"measurements": (n, L, 1, 4 sensors), "mask": (n, L) of True}: see `BoundaryFluxes` for the solver, of second order.

        Args:
            inputs: "conductivity" (n, *grid), positive.
            sensors: on each side; None takes `sensors_per_side`.
            grid: where the conductivity is given; None means the nodes of the unit square.
            noise: deviation of additive Gaussian noise, relative to the root mean square of a sample's measurements.
            seed: of the noise.

        Raises:
            ValueError: the conductivity is missing, does not fit the grid or is not positive.
        """
        if "conductivity" not in inputs:
            raise ValueError(
                f"the inputs are {sorted(inputs)} but ImpedanceTomography needs 'conductivity' (n, *grid)."
            )
        a = inputs["conductivity"].detach()
        if a.ndim != 3:
            raise ValueError(f"conductivity has shape {tuple(a.shape)}; expected (n, *grid), one field a sample.")
        fluxes = self.forward(Grid(tuple(a.shape[1:])) if grid is None else grid, sensors)(a)
        noisy = add_noise(fluxes, noise, torch.Generator().manual_seed(seed))
        return {"measurements": noisy, "mask": torch.ones(noisy.shape[:2], dtype=torch.bool, device=noisy.device)}

    def forward(self, grid: Grid, sensors: int | None = None) -> BoundaryFluxes:
        """The map from conductivities (n, *grid) to measurements, with its derivatives."""
        self._check(grid)
        sensors = self.sensors_per_side if sensors is None else sensors
        check_sizes(sensors=sensors)
        return BoundaryFluxes(grid, self._voltages(grid.points()), sensors)

    def sensor_points(self, sensors: int | None = None) -> Tensor:
        """Where the fluxes are measured, (4 sensors, 2)."""
        n = self.sensors_per_side if sensors is None else sensors
        return _around(np.arange(1, n + 1) / (n + 1))

    @property
    def _angles(self) -> Tensor:
        return torch.arange(self.n_measurements, dtype=torch.float64) * (math.pi / self.n_measurements)

    @property
    def _omegas(self) -> list[float]:
        return list(self.omega) if isinstance(self.omega, tuple) else [float(self.omega)] * self.n_measurements

    def _voltages(self, points: Tensor) -> Tensor:
        """g_l at points (..., 2): (L, ...), float64."""
        if not self.boundary_functions:
            directions = torch.stack([self._angles.cos(), self._angles.sin()]) * torch.tensor(self._omegas).double()
            return torch.cos(points.double() @ directions).movedim(-1, 0)
        values = [torch.as_tensor(function(points)).double() for function in self.boundary_functions]
        for l, value in enumerate(values):
            if value.shape != points.shape[:-1]:
                raise ValueError(
                    f"boundary function {l} gave the shape {tuple(value.shape)} at points {tuple(points.shape)}; "
                    f"one number a point, {tuple(points.shape[:-1])}, is expected."
                )
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"boundary function {l} is not finite at some point of the square; give finite voltages."
                )
        return torch.stack(values)

    def _refuse_equal(self) -> None:
        g = self._voltages(_around(np.arange(self.sensors_per_side + 1) / (self.sensors_per_side + 1)))
        size = g.abs().amax(1)
        apart = (g[:, None] - g).abs().amax(-1) > 1e-9 * torch.maximum(size[:, None], size)
        equal = (~apart).triu(1).nonzero()
        if len(equal):
            first, second = equal[0].tolist()
            raise ValueError(
                f"boundary functions {first} and {second} are equal on the boundary, so that their measurements are one; "
                "make all of them different."
            )

    def _check(self, grid: Grid) -> None:
        square = grid.dim == 2 and grid.layout == ("nodes", "nodes") and grid.extent == ((0.0, 1.0), (0.0, 1.0))
        if not square or min(grid.shape) < FEWEST_NODES:
            raise ValueError(
                f"ImpedanceTomography lives on the nodes of the unit square, at least {FEWEST_NODES} a side, but the grid is {grid}; "
                "use Grid((n, n))."
            )


def _around(shares: NDArray[np.float64]) -> Tensor:
    """The points at these shares of each side, (4 shares, 2), counter-clockwise from (0, 0)."""
    zero, one = np.zeros_like(shares), np.ones_like(shares)
    x, y = np.concatenate([shares, one, 1 - shares, zero]), np.concatenate([zero, shares, one, 1 - shares])
    return torch.from_numpy(np.stack([x, y], -1))
