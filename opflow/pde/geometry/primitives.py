"""Intervals, boxes, balls and discs, all with exact signed distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.pieces import choose


class Box(Geometry):
    """(a_1, b_1) x ... x (a_d, b_d), of any dimension.

    Args:
        extent: one pair (a, b) with a < b per axis, as in `Grid`.

    >>> box = Box([(0, 1), (0, 2), (-1, 1)])
    >>> box.measure, box.boundary_measure, box.signed_distance(torch.tensor([0.5, 1.0, 0.75])).item()
    (4.0, 16.0, -0.25)
    """

    def __init__(self, extent: Sequence[Sequence[float]]) -> None:
        pairs = [tuple(float(end) for end in pair) for pair in extent]
        if not pairs:
            raise ValueError("extent is empty; give one pair (a, b) per axis.")
        for axis, pair in enumerate(pairs):
            if len(pair) != 2 or not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]):
                raise ValueError(f"extent of axis {axis} is {pair}; give two finite numbers in increasing order.")
        self.extent = tuple((a, b) for a, b in pairs)
        self.dim = len(pairs)

    def __repr__(self) -> str:
        return f"Box({list(self.extent)})"

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The box itself."""
        low, high = torch.tensor(self.extent, dtype=torch.float64).unbind(1)
        return low, high

    @cached_property
    def measure(self) -> float:
        """The product of the lengths."""
        return math.prod(b - a for a, b in self.extent)

    @property
    def proposed_surface(self) -> float:
        """2 sum_i prod_(j != i) L_j"""
        return float(2 * self._face_areas.sum())

    @cached_property
    def boundary_measure(self) -> float:
        """The area of all faces."""
        return self.proposed_surface

    def signed_distance(self, points: Tensor) -> Tensor:
        """|max(q, 0)| + min(max_i q_i, 0) for q = |y - centre| - half lengths."""
        low, high = (bound.to(points) for bound in self.bounds)
        # Each side by its own difference: at a face the distance is then zero exactly, not but for rounding.
        q = torch.maximum(low - self.check(points), points - high)
        return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)

    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Faces by their areas; what is left of the first number is the first coordinate within the face."""
        areas = self._face_areas.repeat_interleave(2)
        face, rest = choose(u[:, 0], areas)
        axis, side = face // 2, face % 2
        points = u.new_empty(len(u), self.dim)
        low, high = self.bounds
        within = torch.cat([rest[:, None], u[:, 1:]], dim=1)
        for i in range(self.dim):
            rows = axis == i
            others = [j for j in range(self.dim) if j != i]
            points[rows, i] = torch.where(side[rows] == 0, low[i], high[i])
            for column, j in enumerate(others):
                points[rows, j] = low[j] + (high[j] - low[j]) * within[rows, column]
        normals = torch.zeros_like(points)
        normals[torch.arange(len(u)), axis] = 2.0 * side.to(u.dtype) - 1.0
        return points, normals, torch.ones(len(u), dtype=torch.bool)

    @cached_property
    def _face_areas(self) -> Tensor:
        lengths = [b - a for a, b in self.extent]
        return torch.tensor([math.prod(lengths[:i] + lengths[i + 1 :]) for i in range(self.dim)], dtype=torch.float64)


class Interval(Box):
    """(a, b), whose boundary is its two ends with normals -1 and 1.

    >>> Interval(0, 2).measure
    2.0
    """

    def __init__(self, a: float, b: float) -> None:
        super().__init__([(a, b)])

    def __repr__(self) -> str:
        return "Interval({}, {})".format(*self.extent[0])


class Ball(Geometry):
    """|y - centre| < radius, in two dimensions or more.

    >>> round(Ball((0, 0, 0), 1.0).measure, 4), round(Ball((0, 0, 0), 1.0).boundary_measure, 4)
    (4.1888, 12.5664)
    """

    def __init__(self, centre: Sequence[float], radius: float) -> None:
        self.centre, self.radius = tuple(float(x) for x in centre), float(radius)
        self.dim = len(self.centre)
        if self.dim < 2 or not all(math.isfinite(x) for x in self.centre):
            raise ValueError(f"centre is {self.centre}; give two finite numbers or more, or use Interval on a line.")
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"radius is {radius}; give a positive number.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.centre}, {self.radius})"

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """centre -+ radius"""
        return self._centre - self.radius, self._centre + self.radius

    @cached_property
    def measure(self) -> float:
        """pi^(d/2) / Gamma(d/2 + 1) R^d"""
        return math.pi ** (self.dim / 2) / math.gamma(self.dim / 2 + 1) * self.radius**self.dim

    @property
    def proposed_surface(self) -> float:
        """d/R times the volume."""
        return self.dim / self.radius * self.measure

    @cached_property
    def boundary_measure(self) -> float:
        """The area of the sphere."""
        return self.proposed_surface

    @property
    def surface_dim(self) -> int:
        """An angle, two of them, or one normal deviate a coordinate."""
        return self.dim - 1 if self.dim <= 3 else self.dim

    @property
    def interior_dim(self) -> int:
        """The radius and a direction."""
        return 1 + self.surface_dim

    def signed_distance(self, points: Tensor) -> Tensor:
        """|y - centre| - R"""
        return (self.check(points) - self._centre.to(points)).norm(dim=-1) - self.radius

    def propose_interior(self, u: Tensor) -> Tensor:
        """Radius R u^(1/d) along a uniform direction; nothing is rejected, in high dimensions neither."""
        return self._centre + self.radius * u[:, :1] ** (1 / self.dim) * self._directions(u[:, 1:])

    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform directions; in three dimensions by Archimedes' equal-area map."""
        normals = self._directions(u)
        return self._centre + self.radius * normals, normals, torch.ones(len(u), dtype=torch.bool)

    @cached_property
    def _centre(self) -> Tensor:
        return torch.tensor(self.centre, dtype=torch.float64)

    def _directions(self, u: Tensor) -> Tensor:
        if self.dim == 2:
            angle = 2 * math.pi * u[:, 0]
            return torch.stack([angle.cos(), angle.sin()], dim=1)
        if self.dim == 3:
            height, angle = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
            across = (1 - height.square()).clamp_min(0).sqrt()
            return torch.stack([across * angle.cos(), across * angle.sin(), height], dim=1)
        deviates = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return deviates / deviates.norm(dim=1, keepdim=True)


class Disc(Ball):
    """|y - centre| < radius in the plane.

    >>> round(Disc().measure, 4)
    3.1416
    """

    def __init__(self, centre: Sequence[float] = (0.0, 0.0), radius: float = 1.0) -> None:
        super().__init__(centre, radius)
        if self.dim != 2:
            raise ValueError(f"centre is {self.centre}; a disc lies in the plane, so give two numbers, or use Ball.")
