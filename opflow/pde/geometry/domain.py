"""What every geometry offers: signed distance, points inside, points on the boundary with normals."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from opflow.pde.geometry.combination import Difference, Intersection, Union

Seed = int | Sequence[int]
Where = Callable[[Tensor, Tensor], Tensor]

# Shares of proposals below one in 2^17 are taken for none: more likely an empty set than a slender one.
_PATIENCE = 2**20
_QUADRATURE = 2**16


class Geometry(ABC):
    """An open bounded set in R^dim. Lengths are in the units of the coordinates.

    A subclass states `dim`, `bounds`, `signed_distance` and how points of the unit cube become points of its interior
    and of its boundary; `|`, `&` and `-` combine geometries. All computations are in float64.

    >>> from opflow.pde.geometry.primitives import Box, Disc
    >>> plate = Box([(0, 1), (0, 1)]) - Disc((0.5, 0.5), 0.25)
    >>> plate.sample(100).shape, bool(plate.contains(torch.tensor([0.5, 0.5])))
    (torch.Size([100, 2]), False)
    """

    dim: int

    @property
    @abstractmethod
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The corners (dim,), lowest and highest, of a box that holds the geometry."""

    @abstractmethod
    def signed_distance(self, points: Tensor) -> Tensor:
        """The distance to the boundary (...) at points (..., dim): negative inside, positive outside."""

    @property
    def surface_dim(self) -> int:
        """How many numbers in [0, 1) `propose_surface` takes."""
        return max(self.dim - 1, 1)

    @property
    def interior_dim(self) -> int:
        """How many numbers in [0, 1) `propose_interior` takes."""
        return self.dim

    def propose_interior(self, u: Tensor) -> Tensor:
        """Points of a set that holds the geometry (n, dim), uniform where u (n, interior_dim) is uniform in the unit cube."""
        low, high = self.bounds
        return low + (high - low) * u

    @abstractmethod
    def propose_surface(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, dim), outward unit normals (n, dim) and whether they lie on the boundary (n,), uniform in area where u is uniform."""

    @property
    @abstractmethod
    def proposed_surface(self) -> float:
        """The area of all that `propose_surface` proposes."""

    @cached_property
    def measure(self) -> float:
        """Length, area or volume: exact for primitives, otherwise by quadrature over 65536 Sobol points (about 1e-4 of it)."""
        low, high = self.bounds
        u = _unit_cube(self.dim, 0, "measure").random(_QUADRATURE)
        inside = self.signed_distance(low + (high - low) * torch.from_numpy(u)) < 0
        return float(inside.double().mean() * (high - low).prod())

    @cached_property
    def boundary_measure(self) -> float:
        """The length or area of the boundary, the number of ends in one dimension; exact where `measure` is."""
        u = _unit_cube(self.surface_dim, 0, "measure").random(_QUADRATURE)
        return float(self.propose_surface(torch.from_numpy(u))[2].double().mean()) * self.proposed_surface

    @property
    def scale(self) -> float:
        """The diagonal of `bounds`: the length against which tolerances are meant."""
        low, high = self.bounds
        return float((high - low).norm())

    def contains(self, points: Tensor, tolerance: float = 0.0) -> Tensor:
        """Whether points (..., dim) lie inside, on the boundary or at most `tolerance` beyond; NaN lies nowhere."""
        return self.signed_distance(self.check(points)) <= tolerance

    def sample(self, n: int, *, seed: Seed = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """The first n interior points (n, dim) of a scrambled Sobol sequence, strictly inside after rounding to `dtype`.

        Sobol points fill a set more evenly than random ones; the first m of n are those of ``sample(m)``.

        Args:
            seed: of the scrambling; equal seeds give equal points.

        Raises:
            ValueError: n < 1, or no interior was found.
        """

        def inside(u: Tensor) -> tuple[Tensor, ...]:
            points = self.propose_interior(u).to(dtype)
            return (points[self.signed_distance(points.double()) < 0],)

        return _collect(n, self.interior_dim, seed, "interior", inside, f"inside {self!r}")[0]

    def boundary(
        self, n: int, *, seed: Seed = 0, where: Where | None = None, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """n points on the boundary and their outward unit normals, each (n, dim), uniform in length or area, by Sobol.

        Args:
            where: ``where(points, normals) -> (n,) bool`` keeps a part of the boundary, an inlet for example.

        Raises:
            ValueError: n < 1, or no boundary (that `where` keeps) was found.

        >>> from opflow.pde.geometry.primitives import Box
        >>> points, normals = Box([(0, 1), (0, 2)]).boundary(8, where=lambda points, normals: normals[:, 0] < 0)
        >>> points[:, 0].tolist() == [0.0] * 8
        True
        """

        def on_boundary(u: Tensor) -> tuple[Tensor, ...]:
            points, normals, kept = self.propose_surface(u)
            if where is not None:
                chosen = where(points, normals)
                if chosen.shape != kept.shape or chosen.dtype != torch.bool:
                    raise ValueError(
                        f"where returned {chosen.dtype} of shape {tuple(chosen.shape)} for {len(points)} points; "
                        "give one bool a point."
                    )
                kept = kept & chosen
            return points[kept].to(dtype), normals[kept].to(dtype)

        part = "on the part that where= keeps of the boundary" if where else "on the boundary"
        points, normals = _collect(n, self.surface_dim, seed, "boundary", on_boundary, f"{part} of {self!r}")
        return points, normals

    def check(self, points: Tensor) -> Tensor:
        """The points, if they have this geometry's dimension.

        Raises:
            ValueError: they have not.
        """
        if points.ndim == 0 or points.shape[-1] != self.dim:
            raise ValueError(
                f"points have shape {tuple(points.shape)} but {self!r} has dimension {self.dim}; "
                f"give (..., {self.dim}), time first where there is time."
            )
        return points

    def refuse_outside(self, points: Tensor, what: str) -> None:
        """Raise unless all points lie inside or, but for rounding, on the boundary.

        Raises:
            ValueError: names the first that does not, as the `what` of its number.
        """
        flat = self.check(points).detach().reshape(-1, self.dim).double()
        precision = torch.finfo(points.dtype).eps if points.is_floating_point() else 0.0
        magnitude = max(float(bound.abs().max()) for bound in self.bounds)
        outside = ~self.contains(flat, max(1e-9 * self.scale, 8 * precision * magnitude))
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            at = ", ".join(f"{x:.6g}" for x in flat[first].tolist())
            raise ValueError(
                f"{what} {first} at ({at}) lies outside the domain {self!r}, {int(outside.sum())} of {len(flat)} do; "
                "leave them out, or check the order of the coordinates and their units."
            )

    def __or__(self, other: Geometry) -> Union:
        from opflow.pde.geometry.combination import Union

        return Union(self, other)

    def __and__(self, other: Geometry) -> Intersection:
        from opflow.pde.geometry.combination import Intersection

        return Intersection(self, other)

    def __sub__(self, other: Geometry) -> Difference:
        from opflow.pde.geometry.combination import Difference

        return Difference(self, other)


def _unit_cube(dim: int, seed: Seed, name: str):  # type: ignore[no-untyped-def]  # scipy loads on use
    """A scrambled Sobol sequence in [0, 1)^dim, its stream set by (seed, name)."""
    from scipy.stats import qmc

    entropy = [*(seed if isinstance(seed, Sequence) else [seed]), zlib.crc32(name.encode())]
    if any(isinstance(word, bool) or not isinstance(word, int) or word < 0 for word in entropy):
        raise ValueError(f"seed is {seed!r}; give whole numbers that are not negative.")
    return qmc.Sobol(dim, scramble=True, seed=np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))))


def _collect(
    n: int, dim: int, seed: Seed, name: str, keep: Callable[[Tensor], tuple[Tensor, ...]], place: str
) -> tuple[Tensor, ...]:
    """The first n that `keep` keeps of a Sobol sequence, whatever the size of the blocks it is drawn in."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r} points; give a positive whole number.")
    sequence = _unit_cube(dim, seed, name)
    block = min(max(256, 1 << (n - 1).bit_length()), 2**18)  # powers of two, for which Sobol points are balanced
    parts: list[tuple[Tensor, ...]] = []
    found = drawn = 0
    while found < n:
        if drawn >= _PATIENCE and found < drawn >> 17:
            raise ValueError(
                f"of {drawn} points proposed {found} lie {place}; it is empty or too slender, so check its sizes."
            )
        parts.append(keep(torch.from_numpy(sequence.random(block))))
        found, drawn, block = found + len(parts[-1][0]), drawn + block, min(2 * block, 2**18)
    return tuple(torch.cat(column)[:n] for column in zip(*parts, strict=True))
