"""The Lippmann-Schwinger equation: scattering in the whole plane, solved on a rectangle that holds the scatterer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.solvers.linear_operator import LinearOperator


def free_space_green(points: Tensor, sources: Tensor, wavenumber: float) -> Tensor:
    """g(x, y) = (i / 4) H_0(k |x - y|) for points (m, 2) and sources (n, 2) -> (m, n), complex: the wave that leaves y.

    -(lap + k^2) g = delta, for the time factor exp(-i omega t); H_0 is the Hankel function of the first kind.
    """
    from scipy.special import hankel1  # on use: `import opflow` loads no SciPy

    distance = torch.cdist(
        points.to(torch.float64), sources.to(torch.float64), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return torch.from_numpy(0.25j * hankel1(0, wavenumber * distance.numpy()))


class VolumePotential:
    """(V f)(x_i) = int g(x_i - y) f(y) dy for f at the centres of the cells of a grid, by two FFTs of twice its size.

    The kernel is cut off at a radius beyond the diagonal of the rectangle, which changes no value in it and makes its Fourier transform
    bounded and known,

        G(s) = (1 + (i pi / 2) R (s J_1(R s) H_0(k R) - k J_0(R s) H_1(k R))) / (s^2 - k^2),

    so that the sum is exact for what the grid resolves: spectrally accurate for smooth f that vanish at the edge, of second order where
    f jumps and its cells hold averages.

    Source: Vico, Greengard and Ferrando 2016, "Fast convolution with free-space Green's functions", equations 16 to 21.

    >>> V = VolumePotential(Grid((8, 8), layout="cells"), 3.0)
    >>> V(torch.ones(1, 8, 8, dtype=torch.complex128)).shape
    torch.Size([1, 8, 8])
    """

    def __init__(self, grid: Grid, wavenumber: float) -> None:
        self.wavenumber = wavenumber
        if grid.dim != 2 or grid.layout != ("cells", "cells"):
            raise ValueError(
                f"the potential is summed over the cells of a rectangle, but the grid is {grid}; use layout='cells'."
            )
        if not (wavenumber > 0 and math.isfinite(wavenumber)):
            raise ValueError(f"the wavenumber is {wavenumber}; a positive finite number is expected.")
        self.shape = grid.shape
        radius = 1.02 * math.hypot(*grid.lengths)
        # Room for the rectangle and the kernel's whole reach, so that periodic images do not touch.
        wide = tuple(
            _even(math.ceil((length + radius) / h)) for length, h in zip(grid.lengths, grid.spacing, strict=True)
        )
        waves = [2 * np.pi * np.fft.fftfreq(n, h) for n, h in zip(wide, grid.spacing, strict=True)]
        kernel = np.fft.ifft2(_truncated_symbol(np.hypot(waves[0][:, None], waves[1]), wavenumber, radius))
        # Only differences of two cells of the rectangle are ever asked for.
        rows, columns = (np.r_[0:n, -n:0] for n in grid.shape)
        self.kernel = torch.from_numpy(np.ascontiguousarray(kernel[np.ix_(rows, columns)]))
        self.symbol = torch.fft.fft2(self.kernel)

    def __call__(self, f: Tensor) -> Tensor:
        """(..., *grid) -> (..., *grid), complex128"""
        padded = torch.fft.fft2(f, s=self.symbol.shape)
        return torch.fft.ifft2(padded * self.symbol.to(f.device))[..., : self.shape[0], : self.shape[1]]

    def between(self, cells: Tensor) -> Tensor:
        """The matrix (m, m) of V among some cells, given by their numbers (m,) in row-major order."""
        row, column = cells // self.shape[1], cells % self.shape[1]
        height, width = self.kernel.shape
        return self.kernel.to(cells.device)[(row[:, None] - row) % height, (column[:, None] - column) % width]


def _truncated_symbol(s: NDArray[np.float64], k: float, radius: float) -> NDArray[np.complex128]:
    from scipy.special import hankel1, j0, j1

    R, h0, h1 = radius, hankel1(0, k * radius), hankel1(1, k * radius)
    near = np.abs(s - k) < 1e-6 * k
    apart = np.where(near, 2 * k, s)
    symbol = (1 + 0.5j * np.pi * R * (apart * j1(R * apart) * h0 - k * j0(R * apart) * h1)) / (apart**2 - k**2)
    limit = 0.25j * np.pi * R**2 * (j0(R * k) * h0 + j1(R * k) * h1)  # of 0 / 0 at s = k
    return np.where(near, limit, symbol)


def _even(n: int) -> int:
    """The next even number without a large prime factor, where transforms are fast."""
    from scipy.fft import next_fast_len

    return 2 * int(next_fast_len((n + 1) // 2))


class LippmannSchwinger(LinearOperator):
    """A u = u - k^2 V (q u): the total field u of a contrast q in an incident wave u_i solves A u = u_i.

    Then lap u + k^2 (1 + q) u = 0 where the incident wave has no source, and u - u_i leaves to infinity (Colton and Kress 2019,
    "Inverse acoustic and electromagnetic scattering theory", section 8.2). A is neither symmetric nor definite: solve with `GMRES`.

    Args:
        q: the contrast (batch, *grid), one for each right-hand side, or (1, *grid) for all.
        potential: V, with its wavenumber k.

    >>> V = VolumePotential(Grid((8, 8), layout="cells"), 3.0)
    >>> A = LippmannSchwinger(torch.full((1, 8, 8), 0.5), V)
    >>> A.apply(torch.ones(2, 8, 8, dtype=torch.complex128)).shape
    torch.Size([2, 8, 8])
    """

    symmetric = False
    dtype = torch.complex128

    def __init__(self, q: Tensor, potential: VolumePotential) -> None:
        if q.ndim != 3 or tuple(q.shape[1:]) != potential.shape:
            raise ValueError(f"q has shape {tuple(q.shape)}; expected (batch, *grid) with the grid {potential.shape}.")
        self.potential = potential
        self.shape, self.batch, self.device = potential.shape, len(q), q.device
        self._q = q.to(torch.float64)
        self._k2q = potential.wavenumber**2 * self._q

    def apply(self, x: Tensor) -> Tensor:
        """u - k^2 V (q u), (batch, *grid) -> (batch, *grid)"""
        return x - self.potential(self._k2q * x)

    def tensors(self) -> tuple[Tensor, ...]:
        """The contrast (batch, *grid)."""
        return (self._q,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The operator of another contrast."""
        (q,) = tensors
        return LippmannSchwinger(q, self.potential)
