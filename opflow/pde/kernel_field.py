"""Gaussian processes by their kernel: the random inputs of a DeepONet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid

LONGEST = 64.0  # an interval in correlation lengths: beyond, exp(-s^2 / 2) nears the smallest double
TAIL = 1e-16


class SquaredExponentialField:
    """g ~ N(0, k),  k(x, y) = exp(-(x - y)^2 / (2 length^2))   on an interval, as a series of fixed functions.

        g(x) = sum_n xi_n psi_n(s),   psi_n(s) = exp(-s^2 / 2) s^n / sqrt(n!),   s = (x - centre) / length,

    with xi_n ~ N(0, 1), drawn in the order of n. It is the kernel's own power series,
    sum_n psi_n(s) psi_n(t) = exp(-(s - t)^2 / 2), so that the law is exact up to the terms left out. Those hold at most
    P(Poisson(c^2) >= cutoff) of the variance, c = half the interval in lengths; the default cutoff makes that 1e-16 by
    Chernoff's bound. Unlike a Nystroem or Karhunen-Loeve series it needs neither quadrature nor eigenvectors, whose
    signs and small parts depend on the machine.

    Args:
        length: the correlation length, in the units of the grid's extent.
        cutoff: how many functions; None for as many as the interval needs.

    Source: Steinwart, Hush and Scovel 2006, "An explicit description of the RKHS of Gaussian RBF kernels".

    >>> grid, law = Grid(100), SquaredExponentialField(0.2)
    >>> law.evaluate(torch.zeros(3, law.n_functions(grid)), grid).shape
    torch.Size([3, 100])
    """

    def __init__(self, length: float = 0.2, *, cutoff: int | None = None) -> None:
        if not (math.isfinite(length) and length > 0) or (cutoff is not None and cutoff < 1):
            raise ValueError(
                f"length is {length} and cutoff {cutoff}; give positive numbers (or None for the cutoff that is needed)."
            )
        self.length, self.cutoff = float(length), cutoff

    def n_functions(self, grid: Grid) -> int:
        """How many functions the series has on the interval of a grid."""
        if grid.dim != 1:
            raise ValueError(f"the field lives on an interval, but the grid has {grid.dim} axes; give a grid of one.")
        lengths = grid.lengths[0] / self.length
        if lengths > LONGEST:
            raise ValueError(
                f"the interval is {lengths:g} correlation lengths long, but the series reaches {LONGEST:g}; "
                "take a longer length or a shorter interval."
            )
        return self.cutoff or _needed(lengths / 2)

    def coefficients(self, generators: Sequence[np.random.Generator], grid: Grid) -> Tensor:
        """Standard normals, a row per generator: (n, functions), float64; they depend on the interval, not on the points."""
        draws = np.empty((len(generators), self.n_functions(grid)))
        for row, generator in zip(draws, generators, strict=True):
            generator.standard_normal(out=row)
        return torch.from_numpy(draws)

    def evaluate(self, coefficients: Tensor, grid: Grid) -> Tensor:
        """The field on a grid, (n, functions) -> (n, *grid.shape), float64 on the CPU"""
        return coefficients.to(torch.float64) @ self.functions(grid).mT

    def functions(self, grid: Grid) -> Tensor:
        """psi_0, psi_1, ... at the points of a grid: (points, functions)"""
        a, b = grid.extent[0]
        s = (grid.coordinates(0) - (a + b) / 2) / self.length
        columns = [torch.exp(-s.square() / 2)]
        for n in range(1, self.n_functions(grid)):
            columns.append(columns[-1] * s / math.sqrt(n))
        return torch.stack(columns, dim=-1)


@lru_cache(maxsize=64)
def _needed(c: float) -> int:
    """The smallest N > c^2 with P(Poisson(c^2) >= N) <= exp(-c^2) (e c^2 / N)^N <= 1e-16"""
    mean = c * c
    n = math.floor(mean) + 1
    while n * (math.log(n / mean) - 1) + mean < -math.log(TAIL):
        n += 1
    return n
