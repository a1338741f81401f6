"""Random targets of wave scattering: discs, ellipses, and cylinders with rods, averaged over cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid

POINTS_PER_CELL = 8  # along each axis, of the average over a cell
MOST_TRIES = 200
FOAM_RADIUS, FOAM_CONTRAST, FOAM_OFFSET = (0.38, 0.56), (0.25, 0.7), 0.1
ROD_RADIUS, ROD_CONTRAST = (0.12, 0.24), (1.2, 2.6)
MOST_RODS = 2  # inside the foam, and as many outside


@dataclass(frozen=True)
class Ellipse:
    """A homogeneous elliptic cylinder: centre, half axes, the angle of the first of them, and its contrast."""

    x: float
    y: float
    half_axes: tuple[float, float]
    angle: float
    contrast: float


def paint(shapes: list[Ellipse], grid: Grid) -> Tensor:
    """The contrast averaged over each cell (*grid), float64: later shapes cover earlier ones, and outside it is zero.

    The average is that of 8 x 8 points a cell, which a jump needs for second order.

    >>> float(paint([Ellipse(0, 0, (0.3, 0.3), 0, 1.0)], Grid((16, 16), (-0.5, 0.5), "cells")).mean())
    0.282470703125
    """
    fine = grid.with_shape(tuple(POINTS_PER_CELL * n for n in grid.shape))
    x, y = (fine.coordinates(axis).numpy() for axis in (0, 1))
    q = np.zeros(fine.shape)
    for shape in shapes:
        dx, dy = x[:, None] - shape.x, y[None, :] - shape.y
        c, s = math.cos(shape.angle), math.sin(shape.angle)
        along, across = (c * dx + s * dy) / shape.half_axes[0], (c * dy - s * dx) / shape.half_axes[1]
        q[along**2 + across**2 < 1] = shape.contrast
    nx, ny = grid.shape
    return torch.from_numpy(q.reshape(nx, POINTS_PER_CELL, ny, POINTS_PER_CELL).mean(axis=(1, 3)))


def draw_ellipses(
    generator: np.random.Generator, half_width: float, contrast: tuple[float, float], *, round: bool
) -> list[Ellipse]:
    """One to three ellipses, or discs, inside the square, of half axes from 0.12 to 0.4 of its half width."""
    shapes = []
    for _ in range(int(generator.integers(1, 4))):
        axes = generator.uniform(0.12, 0.4, 2)
        axes = axes[[0, 0]] if round else axes
        room = 0.95 - axes.max()
        x, y = generator.uniform(-room, room, 2)
        angle, value = generator.uniform(0, math.pi), generator.uniform(*contrast)
        half_axes = (float(axes[0] * half_width), float(axes[1] * half_width))
        shapes.append(Ellipse(float(x * half_width), float(y * half_width), half_axes, float(angle), float(value)))
    return shapes


def draw_rods(generator: np.random.Generator, half_width: float) -> list[Ellipse]:
    """A foam cylinder near the centre with up to two rods inside and up to two touching it from outside or standing near.

    The family of the dielectric targets of Geffrin, Sabouroux and Eyraud 2005, varied: in units of the half width the foam has a radius of
    0.38 to 0.56 and the rods of 0.12 to 0.24; contrasts are 0.25 to 0.7 and 1.2 to 2.6. Rods do not overlap.
    """
    foam = float(generator.uniform(*FOAM_RADIUS))
    x, y = (float(v) for v in generator.uniform(-FOAM_OFFSET, FOAM_OFFSET, 2))
    rods: list[tuple[float, float, float]] = []
    inside, outside = (int(n) for n in generator.integers(0, MOST_RODS + 1, 2))
    wanted = [True] * inside + [False] * outside
    for within in wanted:
        for _ in range(MOST_TRIES):
            radius, angle = float(generator.uniform(*ROD_RADIUS)), float(generator.uniform(0, 2 * math.pi))
            if within:
                distance = (foam - radius) * float(generator.uniform()) ** 0.5
            else:
                distance = foam + radius + float(generator.uniform(0, 0.1)) * float(generator.integers(0, 2))
            cx, cy = x + distance * math.cos(angle), y + distance * math.sin(angle)
            free = all(math.hypot(cx - u, cy - v) >= radius + r for u, v, r in rods)
            if free and math.hypot(cx, cy) + radius < 0.97:
                rods.append((cx, cy, radius))
                break
    pieces = [(x, y, foam, float(generator.uniform(*FOAM_CONTRAST)))]
    pieces += [(u, v, r, float(generator.uniform(*ROD_CONTRAST))) for u, v, r in rods]
    return [Ellipse(u * half_width, v * half_width, (r * half_width, r * half_width), 0.0, q) for u, v, r, q in pieces]
