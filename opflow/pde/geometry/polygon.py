"""Polygons, the L-shape among them: exact signed distances, corners that enter included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.pieces import choose

# Points times segments at once in a distance: 32 MB of float64 an intermediate.
_CHUNK = 2**21


class SegmentBound(Geometry):
    """A plane region bounded by segments (n, 2, 2), each with the inside to its left; closed curves, holes allowed."""

    dim = 2

    def __init__(self, segments: Tensor) -> None:
        self.segments = segments

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest box around the segments."""
        ends = self.segments.reshape(-1, 2)
        return ends.amin(0), ends.amax(0)

    @cached_property
    def measure(self) -> float:
        """The area, by Green's theorem: sum (x_0 y_1 - x_1 y_0) / 2."""
        (x0, y0), (x1, y1) = (end.unbind(1) for end in self.segments.unbind(1))
        return float((x0 * y1 - x1 * y0).sum() / 2)

    @property
    def proposed_surface(self) -> float:
        """The length of all segments."""
        return float(self._lengths.sum())

    @cached_property
    def boundary_measure(self) -> float:
        """The length of all segments."""
        return self.proposed_surface

    def signed_distance(self, points: Tensor) -> Tensor:
        """The distance to the nearest segment; negative where a ray to the right crosses the boundary an odd number of times."""
        flat = self.check(points).reshape(-1, 2)
        size = max(1, _CHUNK // len(self.segments))
        return torch.cat([self._signed_distance(part) for part in flat.split(size)]).reshape(points.shape[:-1])

    def _signed_distance(self, points: Tensor) -> Tensor:
        start, end = self.segments.to(points).unbind(1)
        along = end - start
        away = points[:, None] - start  # (points, segments, 2)
        share = ((away * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
        squares = (away - share[..., None] * along).square().sum(-1)
        # The gradient of a square root at zero is infinite, on the boundary itself it must not spoil the others.
        nearest = squares.amin(1)
        distance = torch.where(nearest > 0, nearest, 1.0).sqrt() * (nearest > 0)
        above, (x, y) = points[:, None, 1] >= torch.stack([start[:, 1], end[:, 1]]).unsqueeze(1), points.unbind(1)
        straddles = above[0] != above[1]
        slope = along[:, 0] / torch.where(along[:, 1] == 0, 1.0, along[:, 1])
        crossing = start[:, 0] + (y[:, None] - start[:, 1]) * slope
        inside = (straddles & (x[:, None] < crossing)).sum(1) % 2 == 1
        return torch.where(inside, -distance, distance)

    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform in arc length."""
        piece, share = choose(u[:, 0], self._lengths)
        start, end = self.segments[piece].unbind(1)
        along = (end - start) / self._lengths[piece, None]
        normals = torch.stack([along[:, 1], -along[:, 0]], dim=1)
        return start + share[:, None] * (end - start), normals, torch.ones(len(u), dtype=torch.bool)

    @cached_property
    def _lengths(self) -> Tensor:
        return (self.segments[:, 1] - self.segments[:, 0]).norm(dim=1)


class Polygon(SegmentBound):
    """A simple polygon by its corners, in either sense of rotation.

    Args:
        corners: three or more points (x, y), each side from one to the next, the last to the first.

    Raises:
        ValueError: fewer than three corners, equal neighbours, or sides that cross.

    >>> Polygon([(0, 0), (1, 0), (0, 1)]).measure
    0.5
    """

    def __init__(self, corners: Sequence[Sequence[float]]) -> None:
        points = torch.tensor([[float(x) for x in corner] for corner in corners], dtype=torch.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not bool(points.isfinite().all()):
            raise ValueError(f"corners are {list(corners)}; give three finite points (x, y) or more.")
        sides = torch.stack([points, points.roll(-1, 0)], dim=1)
        if bool((sides[:, 0] == sides[:, 1]).all(1).any()):
            raise ValueError(f"corners are {list(corners)}; two neighbours are equal, so leave one out.")
        crossing = _first_crossing(sides)
        if crossing:
            raise ValueError("sides {} and {} of the polygon cross or touch; order the corners.".format(*crossing))
        super().__init__(sides)
        if self.measure < 0:
            super().__init__(sides.flip(0, 1))
            del self.measure
        self.corners = tuple(tuple(corner) for corner in points.tolist())

    def __repr__(self) -> str:
        return f"Polygon({list(self.corners)})"


class LShape(Polygon):
    """A square of side 2 `size` around `corner` without its quadrant x > 0, y < 0: three quarters about an entering corner.

    With polar angle theta in (0, 3 pi / 2) about the corner, r^(2/3) sin(2 theta / 3) is the singular function of the
    Laplacian there.

    >>> LShape().measure, LShape().signed_distance(torch.tensor([0.5, -0.25])).item()
    (3.0, 0.25)
    """

    def __init__(self, corner: Sequence[float] = (0.0, 0.0), size: float = 1.0) -> None:
        if len(corner) != 2 or not (math.isfinite(size) and size > 0):
            raise ValueError(f"corner is {tuple(corner)} and size {size}; give a point (x, y) and a positive number.")
        x, y = (float(value) for value in corner)
        steps = ((0, 0), (1, 0), (1, 1), (-1, 1), (-1, -1), (0, -1))
        super().__init__([(x + size * i, y + size * j) for i, j in steps])
        self.corner, self.size = (x, y), float(size)

    def __repr__(self) -> str:
        return f"LShape({self.corner}, {self.size})"


def _first_crossing(sides: Tensor) -> tuple[int, int] | None:
    """The first two sides that are no neighbours and share a point."""

    def turn(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (
            (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
        ).sign()

    (a, b), n = sides.unbind(1), len(sides)
    p, q, r, s = a[:, None], b[:, None], a[None], b[None]
    across = (turn(p, q, r) * turn(p, q, s) <= 0) & (turn(r, s, p) * turn(r, s, q) <= 0)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    boxes_meet = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(-1)
    apart = (torch.arange(n)[:, None] - torch.arange(n)[None]).remainder(n)
    found = (across & boxes_meet & (apart > 1) & (apart < n - 1)).nonzero()
    return (int(found[0, 0]), int(found[0, 1])) if len(found) else None
