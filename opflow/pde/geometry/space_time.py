"""A time interval times a geometry in space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from opflow.pde.geometry.domain import Geometry, Seed
from opflow.pde.geometry.primitives import Interval


class SpaceTime(Geometry):
    """(t_0, t_1) x Omega, points (t, x, ...) with time first; its boundary is the lateral one, (t_0, t_1) x boundary of Omega.

    Args:
        time: an `Interval`, or a pair (t_0, t_1).
        space: Omega.

    The signed distance is that of the product; where space and time differ in scale only its sign means something.

    >>> domain = SpaceTime((0, 1), Interval(-1, 1))
    >>> points, normals = domain.boundary(4)
    >>> normals[:, 0].tolist(), domain.initial(2)[:, 0].tolist()
    ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0])
    """

    def __init__(self, time: Interval | Sequence[float], space: Geometry) -> None:
        if not isinstance(time, Interval):
            if len(time) != 2:
                raise ValueError(f"time is {tuple(time)}; give its beginning and its end.")
            time = Interval(*time)
        if not isinstance(space, Geometry) or isinstance(space, SpaceTime):
            raise TypeError(f"space is {type(space).__name__}; give a geometry in space, a Box for example.")
        self.time, self.space = time, space
        self.dim = 1 + space.dim

    def __repr__(self) -> str:
        return f"SpaceTime({self.time!r}, {self.space!r})"

    @property
    def start(self) -> float:
        """t_0"""
        return self.time.extent[0][0]

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The box of the product."""
        low, high = zip(self.time.bounds, self.space.bounds, strict=True)
        return torch.cat(low), torch.cat(high)

    @cached_property
    def measure(self) -> float:
        """The duration times the measure of Omega."""
        return self.time.measure * self.space.measure

    @property
    def proposed_surface(self) -> float:
        """The duration times what is proposed in space."""
        return self.time.measure * self.space.proposed_surface

    @cached_property
    def boundary_measure(self) -> float:
        """The duration times the boundary of Omega."""
        return self.time.measure * self.space.boundary_measure

    @property
    def surface_dim(self) -> int:
        """One for time."""
        return 1 + self.space.surface_dim

    @property
    def interior_dim(self) -> int:
        """One for time."""
        return 1 + self.space.interior_dim

    def signed_distance(self, points: Tensor) -> Tensor:
        """|max(d, 0)| + min(max d, 0) for the pair d of distances in time and in space."""
        in_time = self.time.signed_distance(self.check(points)[..., :1])
        pair = torch.stack([in_time, self.space.signed_distance(points[..., 1:])], dim=-1)
        return pair.clamp_min(0).norm(dim=-1) + pair.amax(-1).clamp_max(0)

    def propose_interior(self, u: Tensor) -> Tensor:
        """Time from the first number, space from the others."""
        return torch.cat([self._times(u), self.space.propose_interior(u[:, 1:])], dim=1)

    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time from the first number; normals have no component in time."""
        points, normals, kept = self.space.propose_surface(u[:, 1:])
        return (
            torch.cat([self._times(u), points], dim=1),
            torch.cat([torch.zeros_like(u[:, :1]), normals], dim=1),
            kept,
        )

    def initial(self, n: int, *, seed: Seed = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """n points (n, dim) at t = t_0, inside Omega, by Sobol."""
        inside = self.space.sample(n, seed=seed, dtype=dtype)
        return torch.cat([inside.new_full((n, 1), self.start), inside], dim=1)

    def _times(self, u: Tensor) -> Tensor:
        a, b = self.time.extent[0]
        return a + (b - a) * u[:, :1]
