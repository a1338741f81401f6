"""Fields on a grid between its points."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.typing import Field, Points


def interpolate(field: Field, grid: Grid, coords: Points) -> Tensor:
    """The multilinear interpolant of a field at any points of the grid's domain.

    Exact for functions linear in each coordinate, second order otherwise; on an axis of cells, constant beyond the outer midpoints.

    Args:
        field: (batch, channel, *grid).
        grid: of the field.
        coords: (points, dim) for all samples, or (batch, points, dim).

    Returns:
        (batch, points, channel)

    >>> interpolate(torch.tensor([[[0.0, 1.0, 4.0]]]), Grid(3), torch.tensor([[0.25]]))
    tensor([[[0.5000]]])
    """
    grid.check(field)
    if coords.ndim not in (2, 3) or coords.shape[-1] != grid.dim:
        raise ValueError(
            f"coords has shape {tuple(coords.shape)}; expected (points, {grid.dim}) or (batch, points, {grid.dim})."
        )
    flat = field.flatten(2)  # (batch, channel, all points)
    lower, upper, share = [], [], []
    for axis, (n, layout) in enumerate(zip(grid.shape, grid.layout, strict=True)):
        (a, _), h = grid.extent[axis], grid.spacing[axis]
        place = (coords[..., axis] - a) / h - (0.5 if layout == "cells" else 0.0)
        if layout != "periodic":
            place = place.clamp(0, n - 1)
        cell = place.floor().clamp(max=n - 2) if layout != "periodic" and n > 1 else place.floor()
        index = cell.long()
        lower.append(index % n)
        upper.append((index + 1) % n)
        share.append(place - cell)
    result = flat.new_zeros(())
    for corner in itertools.product((False, True), repeat=grid.dim):
        index, weight = torch.zeros_like(lower[0]), torch.ones_like(share[0])
        for axis, up in enumerate(corner):
            index = index * grid.shape[axis] + (upper if up else lower)[axis]
            weight = weight * (share[axis] if up else 1 - share[axis])
        if coords.ndim == 2:
            values = flat[:, :, index]
        else:
            where = index[:, None].expand(flat.shape[0], flat.shape[1], -1)
            values, weight = flat.gather(2, where), weight[:, None]
        result = result + weight * values
    return result.mT
