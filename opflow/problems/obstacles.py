"""Random solids in a box, stated in its coordinates, so that they are the same on every grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opflow.grid import Grid

STYLES = ("spheres", "boxes", "mixed", "plates", "pockets")


@dataclass(frozen=True)
class Obstacle:
    """A solid: its centre in shares of the sides of the box, its size in shares of the shortest one.

    - "sphere": radius 0.06 to 0.16.
    - "box": half-widths 0.02 to 0.2.
    - "plate": one cell thick across one axis, half-widths 0.1 to 0.3 along the others.
    - "pocket": a hollow box of half-widths 0.06 to 0.16 with walls one cell thick, closed but for a hole of one cell in one of them.

    Attributes:
        kind: one of these.
        centre: one share per axis.
        size: one number between 0 and 1 per axis, from the smallest to the largest size of the kind; the first is that of a sphere.
        side: a number between 0 and 1 that picks the thin axis of a plate and the wall with the hole.
    """

    kind: str
    centre: tuple[float, ...]
    size: tuple[float, ...]
    side: float

    def solid(self, grid: Grid) -> NDArray[np.bool_]:
        """(*grid), True in the cells whose centres lie in the solid; walls of one cell are the cells that they run through."""
        away = self._away_from_centre(grid)
        if self.kind == "sphere":
            squares = sum(distance**2 for distance in away)
            return np.asarray(squares < self._sizes(grid, 0.06, 0.16)[0] ** 2)
        if self.kind == "pocket":
            return self._shell(grid)
        low, high = (0.1, 0.3) if self.kind == "plate" else (0.02, 0.2)
        inside = [np.abs(d) < half for d, half in zip(away, self._sizes(grid, low, high), strict=True)]
        if self.kind == "plate":
            thin = int(self.side * grid.dim)
            one = np.zeros(grid.shape[thin], dtype=bool)
            one[self._cell(grid, thin)] = True
            inside[thin] = one.reshape(inside[thin].shape)
        return np.logical_and.reduce(np.broadcast_arrays(*inside))

    def _shell(self, grid: Grid) -> NDArray[np.bool_]:
        half = self._sizes(grid, 0.06, 0.16)
        low = [self._cell(grid, axis, -half[axis]) for axis in range(grid.dim)]
        high = [self._cell(grid, axis, half[axis]) for axis in range(grid.dim)]
        solid = np.zeros(grid.shape, dtype=bool)
        solid[tuple(slice(i, j + 1) for i, j in zip(low, high, strict=True))] = True
        solid[tuple(slice(i + 1, j) for i, j in zip(low, high, strict=True))] = False
        axis, end = divmod(int(self.side * 2 * grid.dim), 2)
        hole = [self._cell(grid, axis) for axis in range(grid.dim)]
        hole[axis] = (low, high)[end][axis]
        solid[tuple(hole)] = False
        return solid

    def _sizes(self, grid: Grid, low: float, high: float) -> list[float]:
        return [(low + (high - low) * share) * min(grid.lengths) for share in self.size]

    def _away_from_centre(self, grid: Grid) -> list[NDArray[np.float64]]:
        """The distance of every cell along each axis, as arrays that broadcast to the grid."""
        lines = [
            grid.coordinates(axis).numpy() - grid.extent[axis][0] - self.centre[axis] * grid.lengths[axis]
            for axis in range(grid.dim)
        ]
        return list(np.meshgrid(*lines, indexing="ij", sparse=True))

    def _cell(self, grid: Grid, axis: int, offset: float = 0.0) -> int:
        """The cell along an axis that holds the centre, moved by an offset; of those of the box the nearest."""
        at = grid.extent[axis][0] + self.centre[axis] * grid.lengths[axis] + offset
        return int(np.abs(grid.coordinates(axis).numpy() - at).argmin())


def random_obstacles(generator: np.random.Generator, number: int, style: str, dim: int) -> list[Obstacle]:
    """The first `number` obstacles of a stream, centres 0.15 to 0.85; more of them begin with the same ones.

    Args:
        style: "spheres", "boxes", "plates", "pockets", or "mixed", spheres and boxes in turn.
    """
    kinds = {"spheres": "sphere", "boxes": "box", "plates": "plate", "pockets": "pocket"}
    obstacles = []
    for i in range(number):
        draws = generator.random(2 * dim + 1)
        kind = ("sphere", "box")[i % 2] if style == "mixed" else kinds[style]
        centre = 0.15 + 0.7 * draws[:dim]
        obstacles.append(Obstacle(kind, tuple(centre.tolist()), tuple(draws[dim:-1].tolist()), float(draws[-1])))
    return obstacles
