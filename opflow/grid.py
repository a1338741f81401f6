"""Tensor-product grids, Cartesian and polar: where the values of a field live."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from opflow.typing import Points

LAYOUTS = ("nodes", "cells", "periodic")
AXES = ("x", "y", "z")
POLAR = ("theta", "r")


@dataclass(frozen=True)
class Grid:
    """A uniform tensor-product grid.

    Along an axis of extent [a, b] with n points the coordinates are, by layout,

    - ``nodes``:    a + i h,        h = (b - a) / (n - 1)   (both endpoints included)
    - ``cells``:    a + (i + 1/2) h, h = (b - a) / n
    - ``periodic``: a + i h,        h = (b - a) / n         (b is the image of a)

    Axes called theta and r are polar coordinates, and quadrature weights their r dr dtheta: see `polar`.

    Args:
        shape: points per axis.
        extent: one (a, b) pair per axis, or one pair for all; in physical units. Default (0, 1).
        layout: one of the three names per axis, or one for all.
        axes: coordinate names, by default the first of x, y, z.

    >>> Grid((64, 64)).spacing
    (0.015873015873015872, 0.015873015873015872)
    """

    shape: tuple[int, ...]
    extent: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    layout: tuple[str, ...] = ("nodes",)
    axes: tuple[str, ...] = ()

    def __init__(
        self,
        shape: int | Sequence[int],
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        layout: str | Sequence[str] = "nodes",
        axes: Sequence[str] = (),
    ) -> None:
        shape = tuple(operator.index(n) for n in (shape if isinstance(shape, Iterable) else (shape,)))
        dim = len(shape)
        if dim == 0:
            raise ValueError("shape is empty; a grid needs at least one axis, for example Grid((64, 64)).")
        layout = (layout,) * dim if isinstance(layout, str) else tuple(layout)
        pairs = (extent,) * dim if all(isinstance(e, Real) for e in extent) else tuple(extent)
        axes = tuple(axes) or AXES[:dim]
        for name, values in (("extent", pairs), ("layout", layout), ("axes", axes)):
            if len(values) != dim:
                raise ValueError(
                    f"{name} has {len(values)} entries but shape {shape} has {dim} axes; give one entry per axis."
                )
        for n, kind, axis in zip(shape, layout, axes, strict=True):
            if kind not in LAYOUTS:
                raise ValueError(f"layout {kind!r} of axis {axis} is unknown; choose one of {', '.join(LAYOUTS)}.")
            if n < (2 if kind == "nodes" else 1):
                raise ValueError(
                    f"axis {axis} has {n} points; a {kind} axis needs at least {2 if kind == 'nodes' else 1}."
                )
        if len(set(axes)) < dim:
            raise ValueError(
                f"axes {axes} names one axis twice; derivatives are asked for by name, so give each its own."
            )
        if any(isinstance(pair, Real) or len(pair) != 2 for pair in pairs):  # type: ignore[arg-type]
            raise ValueError(f"extent is {tuple(pairs)}; give one pair (a, b) per axis, or one pair for all.")
        extents = tuple((float(pair[0]), float(pair[1])) for pair in pairs)  # type: ignore[index]
        for (a, b), axis in zip(extents, axes, strict=True):
            if not (math.isfinite(a) and math.isfinite(b) and a < b):
                raise ValueError(f"extent of axis {axis} is ({a}, {b}); give two finite numbers in increasing order.")
        for name, value in (("shape", shape), ("extent", extents), ("layout", layout), ("axes", axes)):
            object.__setattr__(self, name, value)
        if axes == POLAR and extents[1][0] < 0:
            raise ValueError(f"r runs from {extents[1][0]} to {extents[1][1]}; a radius is not negative.")

    @staticmethod
    def polar(n_theta: int, n_r: int, radius: float = 1.0) -> Grid:
        """Angles in [0, 2 pi), periodic, times the middles of n_r rings of the disc of this radius: fields (..., n_theta, n_r).

        >>> Grid.polar(70, 70).axes, round(float(Grid.polar(70, 70, 2.0).quadrature_weights().sum() / torch.pi), 12)
        (('theta', 'r'), 4.0)
        """
        return Grid((n_theta, n_r), ((0.0, 2 * math.pi), (0.0, radius)), ("periodic", "cells"), POLAR)

    @property
    def kind(self) -> str:
        """``polar`` if the axes are theta and r, else ``cartesian``."""
        return "polar" if self.axes == POLAR else "cartesian"

    @property
    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def lengths(self) -> tuple[float, ...]:
        """b - a along each axis."""
        return tuple(b - a for a, b in self.extent)

    @property
    def box(self) -> tuple[tuple[float, float], ...]:
        """The smallest box with the domain in it, in the coordinates of `cartesian_points`: `extent`, or (-R, R)^2 of a polar grid."""
        if self.kind == "cartesian":
            return self.extent
        return ((-self.extent[1][1], self.extent[1][1]),) * 2

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance h between neighbours along each axis."""
        return tuple(
            length / (n - 1 if kind == "nodes" else n)
            for length, n, kind in zip(self.lengths, self.shape, self.layout, strict=True)
        )

    def coordinates(
        self, axis: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """The coordinates (n,) along one axis."""
        (a, b), n, kind = self.extent[axis], self.shape[axis], self.layout[axis]
        if kind == "nodes":
            x = torch.linspace(a, b, n, dtype=torch.float64)
        else:
            x = a + (torch.arange(n, dtype=torch.float64) + (0.5 if kind == "cells" else 0.0)) * ((b - a) / n)
        return x.to(dtype=dtype, device=device)

    def points(self, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Points:
        """All coordinates, (*shape, dim)."""
        lines = [self.coordinates(axis, dtype=dtype, device=device) for axis in range(self.dim)]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)

    def cartesian_points(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Points:
        """All points in Cartesian coordinates, (*shape, dim): of a polar grid r cos theta and r sin theta, else `points`."""
        points = self.points(device=device)
        if self.kind == "polar":
            theta, r = points.unbind(-1)
            points = torch.stack([r * theta.cos(), r * theta.sin()], dim=-1)
        return points.to(dtype)

    def quadrature_weights(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Weights w (*shape) with sum(w f) ~ integral of f: trapezoidal on nodes, midpoint on cells, exact for kept modes on periodic axes.

        On a polar grid the integral is that over the plane, of f r dr dtheta.
        """
        weights = torch.ones((), dtype=torch.float64)
        for n, h, kind in zip(self.shape, self.spacing, self.layout, strict=True):
            line = torch.full((n,), h, dtype=torch.float64)
            if kind == "nodes":
                line[0] = line[-1] = h / 2
            weights = weights[..., None] * line
        if self.kind == "polar":
            weights = weights * self.coordinates(1)
        return weights.to(dtype=dtype, device=device)

    def with_shape(self, shape: int | Sequence[int]) -> Grid:
        """The same domain with another number of points."""
        shape = (shape,) * self.dim if isinstance(shape, int) else tuple(shape)
        return Grid(shape, self.extent, self.layout, self.axes)

    def subsampled(self, stride: int | Sequence[int]) -> Grid:
        """The grid that keeps the same domain with `stride` times the spacing, one number for all axes or one each.

        Nodes and periodic axes keep every stride-th point; on cells, blocks of `stride` cells become one cell
        (their values are averaged, see `subsample`). A stride that does not divide is refused: dropping the last
        points would silently change the domain.
        """
        shape = []
        for n, kind, axis, step in zip(self.shape, self.layout, self.axes, self._strides(stride), strict=True):
            intervals = n - 1 if kind == "nodes" else n
            if intervals % step:
                divisors = [s for s in range(1, intervals) if intervals % s == 0]
                what = f"{intervals} intervals between its {n} nodes" if kind == "nodes" else f"{n} points"
                raise ValueError(f"stride {step} does not divide axis {axis} with {what}; use one of {divisors[:12]}.")
            shape.append(intervals // step + (kind == "nodes"))
        return self.with_shape(shape)

    def subsample(self, field: Tensor, stride: int | Sequence[int]) -> Tensor:
        """Restrict `field` (..., *shape) to ``subsampled(stride)``."""
        self.check(field)
        coarse = self.subsampled(stride)
        for axis, (kind, step) in enumerate(zip(self.layout, self._strides(stride), strict=True)):
            dim = field.ndim - self.dim + axis
            if step == 1:
                continue
            if kind == "cells":
                field = field.unflatten(dim, (coarse.shape[axis], step)).mean(dim + 1)
            else:
                field = field[(slice(None),) * dim + (slice(None, None, step),)]
        return field

    def _strides(self, stride: int | Sequence[int]) -> tuple[int, ...]:
        strides = (stride,) * self.dim if isinstance(stride, int) else tuple(stride)
        if len(strides) != self.dim or any(step < 1 for step in strides):
            raise ValueError(
                f"stride is {stride}; give a positive whole number, or one for each of the {self.dim} axes."
            )
        return strides

    def check(self, field: Tensor, name: str = "field") -> None:
        """Raise unless the last axes of `field` are this grid."""
        if tuple(field.shape[-self.dim :]) != self.shape:
            raise ValueError(
                f"{name} has shape {tuple(field.shape)} but the grid is {self.shape}; its last {self.dim} axes must be the grid."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for files and recipes."""
        return {
            "shape": list(self.shape),
            "extent": [list(e) for e in self.extent],
            "layout": list(self.layout),
            "axes": list(self.axes),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Grid:
        """The inverse of `to_json`."""
        return Grid(values["shape"], values["extent"], values["layout"], values["axes"])


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """2 a b / (a + b): the face value that keeps the flux continuous where the coefficient jumps midway."""
    return 2 * a * b / (a + b)
