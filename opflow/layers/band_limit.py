"""Band-limited down- and up-sampling: what pooling and interpolation by pixels become between any two grids of a domain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.layers.embedding import as_layout
from opflow.typing import Field


class BandLimitedResampler(nn.Module):
    """v -> its series through the values of one grid, cut at the Nyquist limit of another, on the other.

    The series is Fourier's on periodic axes, v(x) = sum_{|k| <= n/2} v_k exp(2 pi i k x), and the cosine series on nodes and
    cells, v(x) = sum_k a_k cos(pi k x), that of the field mirrored at both ends. Up-sampling adds nothing; down-sampling is
    the ideal low-pass, which folds nothing back, where a maximum or a mean of pixels does. A field below both limits is
    the same function before and after. On nodes and cells that means: with a normal derivative of zero; the
    coefficients of other smooth fields fall as k^-2.

    One dense matrix (m, n) an axis: linear, differentiable to any order, and a resolution may be a symbol. On periodic axes the
    function is that of `functional.resample`.

    Args:
        layout: "nodes", "cells" or "periodic", per axis or one for all.
        dim: the number of axes.

    >>> BandLimitedResampler("nodes", dim=2)(torch.zeros(2, 3, 65, 33), (33, 17)).shape
    torch.Size([2, 3, 33, 17])
    """

    def __init__(self, layout: str | Sequence[str] = "periodic", *, dim: int) -> None:
        super().__init__()
        self.layout = as_layout(layout, dim)

    def coarse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The grid with twice the spacing; the next finer one where that is not whole."""
        return tuple(
            n // 2 + 1 if kind == "nodes" else (n + 1) // 2 for n, kind in zip(shape, self.layout, strict=True)
        )

    def forward(self, v: Field, shape: Sequence[int]) -> Field:
        """(batch, channel, *grid) -> (batch, channel, *shape)"""
        dim = len(self.layout)
        if v.ndim != dim + 2 or len(shape) != dim:
            raise ValueError(
                f"v has shape {tuple(v.shape)} and goes to the grid {tuple(shape)}, but BandLimitedResampler expects {dim} axes of "
                "each: (batch, channel, *grid)."
            )
        if not v.is_floating_point():
            raise TypeError(f"v is {v.dtype}; a series has real floating-point values, so convert it with .float().")
        for axis, (m, kind) in enumerate(zip(shape, self.layout, strict=True)):
            n, rest = v.shape[axis + 2], v.shape[axis + 3 :]
            least = 2 if kind == "nodes" else 1
            if n < least or m < least:
                raise ValueError(f"axis {axis} has {n} points and would get {m}; a {kind} axis has at least {least}.")
            matrix = resampling_matrix(n, m, kind, v)
            if rest:
                lead, u = v.shape[: axis + 2], v.flatten(axis + 3).flatten(0, axis + 1)
                v = torch.bmm(matrix.expand(u.shape[0], -1, -1), u).unflatten(0, lead).unflatten(-1, rest)
            else:
                v = v @ matrix.T
        return v

    def extra_repr(self) -> str:
        """Layouts for `print(model)`."""
        return f"layout={self.layout}"


def resampling_matrix(n: int, m: int, layout: str, like: Tensor) -> Tensor:
    """From the values at n points of an axis to those at m points of it, (m, n), in the dtype of `like`."""
    # All frequencies of the n points, those beyond the limit of m with weight zero: a resolution that is a symbol has no minimum.
    k = torch.arange(n // 2 + 1 if layout == "periodic" else n, device=like.device)
    i, j = (torch.arange(points, device=like.device) for points in (m, n))
    kept = (2 * k <= m) if layout == "periodic" else (k < m)
    share, weights = torch.where(k == 0, 1.0, 2.0).double() * kept, torch.ones_like(j, dtype=torch.float64)
    if layout == "periodic":
        # +n/2 and -n/2 share the unpaired frequency of an even grid; a coarser grid does not keep it.
        share = torch.where(2 * k == n, 1.0 * kept, share)
        (cos_i, sin_i), (cos_j, sin_j) = _waves(i, k, m), _waves(j, k, n)
        return (((cos_i * share) @ cos_j.T + (sin_i * share) @ sin_j.T) / n).to(like.dtype)
    if layout == "cells":
        at_i, at_j, intervals = _waves(2 * i + 1, k, 4 * m)[0], _waves(2 * j + 1, k, 4 * n)[0], n
    else:
        share = torch.where(k == n - 1, 1.0 * kept, share)
        weights = torch.where((j == 0) | (j == n - 1), 0.5, weights)
        at_i, at_j, intervals = _waves(i, k, 2 * (m - 1))[0], _waves(j, k, 2 * (n - 1))[0], n - 1
    return ((at_i * share) @ (at_j * (weights / intervals)[:, None]).T).to(like.dtype)


def _waves(j: Tensor, k: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j k / period, (j, k), float64; the products are reduced as whole numbers, without rounding"""
    angle = (j[:, None] * k % period).double() * (2 * math.pi / period)
    return angle.cos(), angle.sin()
