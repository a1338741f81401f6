"""Inverse scattering in the whole plane: from scattered waves to the permittivity of a target."""

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
from opflow.problems.constants import check_positive
from opflow.problems.scattering_map import ScatteringMap
from opflow.problems.scattering_targets import Ellipse, draw_ellipses, draw_rods, paint
from opflow.solvers.lippmann_schwinger import free_space_green

LAWS = ("discs", "ellipses", "rods")
INCIDENT = ("plane", "line")


@dataclass(frozen=True)
class OpenScattering:
    """lap u + k^2 (1 + q) u = 0 in the plane, u - u_i leaving to infinity: Re((d/dr - i k)(u - u_i)) = o(r^(-1/2)).

    q is the contrast, 1 + q the relative permittivity of a target inside the square (-half_width, half_width)^2, u the electric field
    along the cylinder (transverse magnetic) or a pressure; time factor exp(-i omega t). Lengths and wavenumbers are in the units of
    half_width. What is measured is the scattered wave u - u_i on a circle of receivers, as two channels, its real and imaginary part; a
    measurement is an incident wave at a wavenumber, wavenumber by wavenumber:

    - incident "plane": u_i = exp(i k x . (cos t_l, sin t_l));
    - incident "line":  u_i = (i / 4) H_0(k |x - y_l|), a line source at y_l = source_radius (cos t_l, sin t_l);

    t_l = 2 pi l / incidences. The random targets of `sample` are averaged over cells:

    - law "discs" or "ellipses": one to three, of contrasts within `contrast`; later ones cover earlier ones;
    - law "rods": a foam cylinder with rods inside and outside, like the dielectric targets of the Institut Fresnel.

    Source: Colton and Kress 2019, "Inverse acoustic and electromagnetic scattering theory"; Geffrin, Sabouroux and Eyraud 2005.

    Attributes:
        wavenumbers: k, all different; a side of the square has half_width k / pi waves.
        incidences: incident waves a wavenumber.
        receivers: how many, at angles 2 pi r / receivers.
        receiver_radius, source_radius: of their circles, beyond the corners of the square.

    >>> problem, grid = OpenScattering(), Grid((32, 32), (-0.5, 0.5), "cells")
    >>> problem.observe(problem.sample(2, grid))["measurements"].shape
    torch.Size([2, 16, 2, 32])
    """

    wavenumbers: tuple[float, ...] = (10.0,)
    incidences: int = 16
    incident: str = "plane"
    receivers: int = 32
    receiver_radius: float = 2.0
    source_radius: float = 2.0
    half_width: float = 0.5
    law: str = "ellipses"
    contrast: tuple[float, float] = (0.2, 1.0)

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("contrast",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        check_positive(half_width=self.half_width)
        numbers = tuple(float(k) for k in self.wavenumbers)
        if (
            not numbers
            or min(numbers) <= 0
            or not all(map(math.isfinite, numbers))
            or len(set(numbers)) != len(numbers)
        ):
            raise ValueError(
                f"wavenumbers are {self.wavenumbers}; give at least one, positive, no two equal: equal ones measure the same twice."
            )
        for name, given, choices in (("law", self.law, LAWS), ("incident", self.incident, INCIDENT)):
            if given not in choices:
                raise ValueError(f"{name} is {given!r}; choose one of {', '.join(choices)}.")
        if self.incidences < 1 or self.receivers < 1:
            raise ValueError(
                f"incidences is {self.incidences} and receivers {self.receivers}; each must be at least 1."
            )
        corner = math.sqrt(2) * self.half_width
        for name, radius in (("receiver_radius", self.receiver_radius), ("source_radius", self.source_radius)):
            if not corner < radius < math.inf:
                raise ValueError(
                    f"{name} is {radius}; it must be more than {corner:.4g}, where the corners of the square are."
                )
        low, high = self.contrast
        if not -1 < low <= high:
            raise ValueError(f"contrast is {self.contrast}; two numbers in increasing order above -1 are expected.")

    @property
    def angles(self) -> Tensor:
        """t_l (incidences,) in radians."""
        return 2 * torch.pi * torch.arange(self.incidences, dtype=torch.float64) / self.incidences

    @property
    def descriptors(self) -> Tensor:
        """(cos t_l, sin t_l, half_width k / pi) of each measurement (L, 3)."""
        t = self.angles
        return torch.cat(
            [
                torch.stack([t.cos(), t.sin(), torch.full_like(t, self.half_width * k / torch.pi)], 1)
                for k in self.wavenumbers
            ]
        )

    def grid(self, shape: int | Sequence[int]) -> Grid:
        """Cells of the square."""
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        return Grid(shape, (-self.half_width, self.half_width), "cells")

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random contrasts {"contrast": (n, *grid)}, float64: the averages over its cells of one target on every grid."""
        self._check(grid)
        fields = torch.zeros(0, *grid.shape, dtype=torch.float64)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        if generators:
            fields = torch.stack([paint(self._draw(generator), grid) for generator in generators])
        return {"contrast": fields}

    def forward(self, grid: Grid, sensors: int | Tensor | None = None, *, rtol: float = 1e-10) -> ScatteringMap:
        """The map F of contrasts (n, *grid) to measurements (n, L, 2, receivers), with gradients and `linearise`.

        Of second order in the spacing for targets that jump and are averaged over cells.

        Args:
            sensors: another number of receivers, or points (m, 2) outside the square; the problem's own by default.
            rtol: of each linear solve.
        """
        self._check(grid)
        points = grid.points()
        direction = torch.stack([self.angles.cos(), self.angles.sin()], dim=1)
        incident = []
        for k in self.wavenumbers:
            if self.incident == "plane":
                waves = torch.exp(1j * k * torch.einsum("ld,xyd->lxy", direction, points))
            else:
                waves = free_space_green(self.source_radius * direction, points.reshape(-1, 2), k).view(-1, *grid.shape)
            incident.append((float(k), waves))
        return ScatteringMap(grid, incident, self._receivers(sensors), rtol=rtol)

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | Tensor | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
        rtol: float = 1e-8,
    ) -> dict[str, Tensor]:
        """{"measurements": (n, L, 2, receivers), "mask": (n, L)} of inputs {"contrast": (n, *grid)}, float64.

        Args:
            sensors: see `forward`.
            grid: of the contrast; by default cells of the square.
            noise: deviation of additive Gaussian noise, as a share of the root mean square of a sample's measurements.
            seed: of the noise.

        Raises:
            ValueError: the contrast is missing, not finite or not above -1, or does not fit the grid.
        """
        if "contrast" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but OpenScattering needs 'contrast' (n, *grid).")
        q = inputs["contrast"].detach()
        grid = grid or self.grid(tuple(q.shape[-2:]))
        measurements = self.forward(grid, sensors, rtol=rtol)(q)
        measurements = add_noise(measurements, noise, torch.Generator().manual_seed(seed))
        return {"measurements": measurements, "mask": torch.ones(measurements.shape[:2], dtype=torch.bool)}

    def _draw(self, generator: np.random.Generator) -> list[Ellipse]:
        if self.law == "rods":
            return draw_rods(generator, self.half_width)
        return draw_ellipses(generator, self.half_width, self.contrast, round=self.law == "discs")

    def _receivers(self, sensors: int | Tensor | None) -> Tensor:
        if isinstance(sensors, Tensor):
            if sensors.ndim != 2 or sensors.shape[1] != 2 or not bool(sensors.isfinite().all()):
                raise ValueError(
                    f"sensors have shape {tuple(sensors.shape)}; expected finite points (m, 2), or a number."
                )
            return sensors.to(torch.float64)
        number = self.receivers if sensors is None else sensors
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"sensors are {sensors!r}; give how many receivers there are, or their points (m, 2).")
        angle = 2 * torch.pi * torch.arange(number, dtype=torch.float64) / number
        return self.receiver_radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def _check(self, grid: Grid) -> None:
        square = ((-self.half_width, self.half_width),) * 2
        if grid.dim != 2 or grid.layout != ("cells", "cells") or grid.extent != square:
            raise ValueError(
                f"OpenScattering lives on the cells of the square {square}, but the grid is {grid}; use problem.grid(n)."
            )
