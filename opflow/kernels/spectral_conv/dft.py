"""The truncated discrete Fourier transform: which frequencies of which grid, at what scale, and its real matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class TruncatedDFT:
    """A pair of real-linear maps between real fields on a grid and the kept half of their spectra.

        analyse:     X_k = s_k sum_j x_j exp(-2 pi i k.j/n)
        synthesise:  x_j = Re sum_k s_k X_k exp(2 pi i k.j/n)

    With the same scale s each is the adjoint of the other for the inner product Re <X, Y> = sum Xr Yr + Xi Yi, so the
    gradient of either is a call of the other. Frequencies are `lowest .. highest` per axis, 0 .. highest on the last.

    Attributes:
        shape: points n per axis.
        kept: (lowest, highest) per axis; the last starts at 0.
        weights: what s_k is, but for a common factor, one per column of the last axis.
        mean: the common factor is 1 / (n_1 ... n_d) and not 1.
    """

    shape: tuple[int, ...]
    kept: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    mean: bool

    @property
    def scale(self) -> tuple[float, ...]:
        """s_k, one per column of the last axis."""
        return tuple(w / math.prod(self.shape) for w in self.weights) if self.mean else self.weights

    @property
    def modes(self) -> tuple[int, ...]:
        """The number of kept frequencies per axis."""
        return tuple(highest - lowest + 1 for lowest, highest in self.kept)


@lru_cache(maxsize=256)
def waves(n: int, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """cos(2 pi k j / n) and sin(2 pi k j / n) in float64, rows k = lowest .. highest, columns j = 0 .. n - 1.

    The phase k j is reduced modulo n in whole numbers, and multiples of a quarter turn are exact: the sine of the
    unpaired row k = n/2 is zero and not 1e-16.
    """
    k = torch.arange(lowest, highest + 1, dtype=torch.int64)
    turn = torch.remainder(k[:, None] * torch.arange(n, dtype=torch.int64), n)
    angle = turn.double() * (2 * math.pi / n)
    cosine, sine = angle.cos(), angle.sin()
    quarters, is_quarter = torch.div(4 * turn, n, rounding_mode="floor"), 4 * turn % n == 0
    exact = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0], dtype=torch.float64).view(2, 4)
    return (
        torch.where(is_quarter, exact[0][quarters], cosine),
        torch.where(is_quarter, exact[1][quarters], sine),
    )
