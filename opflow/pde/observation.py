"""Observations of a solution: at sensors of one's own, or scattered over a solution on a grid."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from opflow.batch import Batch
from opflow.grid import Grid
from opflow.pde.geometry.domain import Geometry


def observations(
    points: Tensor,
    values: Tensor,
    *,
    geometry: Geometry | None = None,
    weight: Tensor | None = None,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Values at sensors as a `Batch` (coords, target, weight) for `DataMisfit`.

    Args:
        points: coordinates (n, dim), in the order of the model's.
        values: (n,) or (n, channel).
        geometry: sensors outside of it are refused.
        weight: (n,), none negative: one over the variance of the measurement, for example.
        noise: standard deviation of independent Gaussian noise that is added, relative to that of each channel's values.
        seed: of the noise.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a sensor outside; the first such observation is named.

    >>> batch = observations(torch.rand(5, 2), torch.ones(5))
    >>> batch.coords.shape, batch.target.shape
    (torch.Size([5, 2]), torch.Size([5, 1]))
    """
    points, values = torch.as_tensor(points), torch.as_tensor(values)
    if points.ndim != 2 or values.ndim not in (1, 2) or len(values) != len(points) or len(points) == 0:
        raise ValueError(
            f"points have shape {tuple(points.shape)} and values {tuple(values.shape)}; expected (n, dim) and (n,) or "
            "(n, channel) with one row an observation."
        )
    values = values.reshape(len(points), -1)
    for name, table in (("value", values), ("sensor", points)):
        _refuse_not_finite(table, points, name)
    if geometry is not None:
        geometry.refuse_outside(points, "observation")
    points, values = points.to(dtype), values.to(torch.float64)
    target = (values + _noise(values.std(0, correction=0), len(values), noise, seed)).to(dtype)
    if weight is not None:
        weight = torch.as_tensor(weight)
        if weight.shape != (len(points),) or not bool((weight.isfinite() & (weight >= 0)).all()):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} for {len(points)} observations, or is negative or not finite "
                "somewhere; give one finite number >= 0 each."
            )
        weight = weight.to(dtype)
    return Batch(coords=points, target=target, weight=weight)


def scatter_observations(
    solution: Mapping[str, Tensor],
    grid: Grid,
    n: int,
    *,
    times: Sequence[float] | Tensor | None = None,
    geometry: Geometry | None = None,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """n points of a solution on a grid, drawn at random without replacement, nothing interpolated.

    Args:
        solution: {name: (*grid)}, or {name: (time, *grid)} with `times`; one target channel a name, in this order.
        grid: of space.
        times: the instants of the solution's first axis; time is then the first coordinate.
        geometry: draw from the grid's points inside of it or on its boundary only.
        noise: standard deviation of the added Gaussian noise, relative to that of the whole field of each name.
        seed: of points and noise; the sensors do not depend on the noise.

    Raises:
        ValueError: shapes that do not fit, more points than there are, NaN or infinity at a drawn point.

    >>> grid = Grid(64, (0.0, 1.0), "periodic")
    >>> batch = scatter_observations({"velocity": torch.rand(11, 64)}, grid, 20, times=torch.linspace(0, 1, 11))
    >>> batch.coords.shape, batch.target.shape
    (torch.Size([20, 2]), torch.Size([20, 1]))
    """
    if not solution:
        raise ValueError("the solution has no fields; give {name: (*grid)} or {name: (time, *grid)}.")
    lines = [grid.coordinates(axis) for axis in range(grid.dim)]
    if times is not None:
        lines = [torch.as_tensor(times, dtype=torch.float64), *lines]
    shape = tuple(len(line) for line in lines)
    for name, field in solution.items():
        if tuple(field.shape) != shape:
            raise ValueError(
                f"the field {name!r} has shape {tuple(field.shape)} but {'times and grid' if times is not None else 'the grid'} "
                f"make {shape}; give one sample, without a batch axis."
            )
    points = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).reshape(-1, len(shape))
    values = torch.stack([field.detach().reshape(-1).cpu().double() for field in solution.values()], dim=1)
    candidates = np.arange(len(points))
    if geometry is not None:
        candidates = candidates[geometry.contains(points, 1e-9 * geometry.scale).numpy()]
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(candidates):
        raise ValueError(f"n is {n!r} observations of {len(candidates)} points; give a whole number between.")
    chosen = torch.from_numpy(np.sort(_generator("sensors", seed).choice(candidates, n, replace=False)))
    points, deviation, values = points[chosen], values.std(0, correction=0), values[chosen]
    _refuse_not_finite(values, points, "value")
    if noise:
        _refuse_not_finite(deviation[None], points[:1], "standard deviation")
    return Batch(coords=points.to(dtype), target=(values + _noise(deviation, n, noise, seed)).to(dtype))


def _noise(deviation: Tensor, n: int, noise: float, seed: int) -> Tensor | float:
    if isinstance(noise, bool) or not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}; give a finite share of the standard deviation, 0.01 for one per cent.")
    if noise == 0:
        return 0.0
    draws = _generator("noise", seed).standard_normal((n, len(deviation)))
    return noise * deviation.cpu() * torch.from_numpy(draws)


def _generator(name: str, seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; give a whole number that is not negative.")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def _refuse_not_finite(table: Tensor, points: Tensor, name: str) -> None:
    broken = ~table.isfinite().all(1)
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise ValueError(
            f"the {name} of observation {first} at {points[first].tolist()} is {table[first].tolist()}, "
            f"{int(broken.sum())} of {len(table)} are not finite; leave these observations out."
        )
