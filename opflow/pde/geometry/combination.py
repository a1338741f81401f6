"""Unions, intersections and differences of geometries."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.pieces import choose
from opflow.pde.geometry.space_time import SpaceTime

# Both sides of a surface are looked at from this share of the geometry's size: far above rounding, far below any detail.
_STEP = 1e-6


class _Combination(Geometry):
    """Geometries of one dimension, their boundaries' parts that are the boundary of the whole."""

    def __init__(self, *parts: Geometry) -> None:
        if len(parts) < 2 or not all(isinstance(part, Geometry) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
            raise TypeError(f"{type(self).__name__} came with {kinds}; give two geometries or more.")
        if len({part.dim for part in parts}) > 1:
            dims = ", ".join(str(part.dim) for part in parts)
            raise ValueError(f"the geometries have dimensions {dims}; combine those of one dimension.")
        if any(isinstance(part, SpaceTime) for part in parts):
            raise TypeError("space-time products do not combine; combine the geometries in space first.")
        self.parts = parts
        self.dim = parts[0].dim
        low, high = self.bounds
        if not bool((low < high).all()):
            raise ValueError(f"{self!r} is empty: its parts do not meet.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    @property
    def surface_dim(self) -> int:
        """As many as the part that takes most."""
        return max(part.surface_dim for part in self.parts)

    @property
    def proposed_surface(self) -> float:
        """The surfaces of all parts together."""
        return sum(part.proposed_surface for part in self.parts)

    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The surfaces of the parts; kept is what separates inside from outside of the whole, once where surfaces coincide."""
        surfaces = torch.tensor([part.proposed_surface for part in self.parts], dtype=torch.float64)
        chosen, rest = choose(u[:, 0], surfaces)
        points, normals = u.new_empty(len(u), self.dim), u.new_empty(len(u), self.dim)
        kept = torch.zeros(len(u), dtype=torch.bool)
        within = torch.cat([rest[:, None], u[:, 1:]], dim=1)
        for i, part in enumerate(self.parts):
            rows = chosen == i
            found = part.propose_surface(within[rows, : part.surface_dim])
            points[rows], kept[rows] = found[0], found[2]
            normals[rows] = self._sign(i) * found[1]
            for earlier in self.parts[:i]:
                kept[rows] &= ~_separates(earlier, found[0], found[1], _STEP * self.scale)
        beyond = self.signed_distance(points + _STEP * self.scale * normals)
        before = self.signed_distance(points - _STEP * self.scale * normals)
        return points, normals, kept & (beyond > 0) & (before < 0)

    def _sign(self, part: int) -> float:
        return 1.0


class Union(_Combination):
    """A | B | ...: the points of any.

    The signed distance min(d_A, d_B) is exact outside; inside it is at most the true distance in absolute value, and zero on
    the face where two parts meet without overlap.

    >>> from opflow.pde.geometry.primitives import Box
    >>> round(Union(Box([(0, 2), (0, 1)]), Box([(0, 1), (0, 2)])).boundary_measure, 2)
    8.0
    """

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest box around all parts' boxes."""
        return _extremes(self.parts, torch.amin, torch.amax)

    def signed_distance(self, points: Tensor) -> Tensor:
        """min(d_A, d_B, ...)"""
        return torch.stack([part.signed_distance(points) for part in self.parts]).amin(0)


class Intersection(_Combination):
    """A & B & ...: the points of all.

    The signed distance max(d_A, d_B) is exact inside (where those of the parts are); outside it is at most the true one.

    >>> from opflow.pde.geometry.primitives import Box, Disc
    >>> quarter = Disc() & Box([(0, 1), (0, 1)])
    >>> abs(quarter.measure - torch.pi / 4) < 1e-3
    True
    """

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """What the parts' boxes have in common."""
        return _extremes(self.parts, torch.amax, torch.amin)

    def signed_distance(self, points: Tensor) -> Tensor:
        """max(d_A, d_B, ...)"""
        return torch.stack([part.signed_distance(points) for part in self.parts]).amax(0)


class Difference(_Combination):
    """A - B: the points of A that do not lie in B, whose surface counts with its normals turned.

    The signed distance max(d_A, -d_B) is exact inside (where those of the parts are); outside it is at most the true one.

    >>> from opflow.pde.geometry.primitives import Disc
    >>> ring = Difference(Disc(radius=2.0), Disc(radius=1.0))
    >>> ring.signed_distance(torch.tensor([0.0, 1.25])).item()
    -0.25
    """

    def __init__(self, whole: Geometry, removed: Geometry) -> None:
        super().__init__(whole, removed)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The box of the first."""
        return self.parts[0].bounds

    def signed_distance(self, points: Tensor) -> Tensor:
        """max(d_A, -d_B)"""
        return torch.maximum(self.parts[0].signed_distance(points), -self.parts[1].signed_distance(points))

    def _sign(self, part: int) -> float:
        return -1.0 if part else 1.0


def _extremes(parts, low, high) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]  # torch's reductions
    lows, highs = zip(*[part.bounds for part in parts], strict=True)
    return low(torch.stack(lows), 0), high(torch.stack(highs), 0)


def _separates(part: Geometry, points: Tensor, normals: Tensor, step: float) -> Tensor:
    """Whether the surface of `part` runs through the points across the normals."""
    beyond, before = (part.signed_distance(points + side * step * normals) for side in (1, -1))
    return beyond * before < 0
