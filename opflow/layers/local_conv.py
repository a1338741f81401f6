"""The convolution with a kernel of fixed physical size: what a convolution of m x m pixels becomes on every grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.grid import Grid
from opflow.kernels.channel_mlp.reference import channel_linear
from opflow.layers.embedding import as_layout, unit_coordinates
from opflow.typing import Field, check_field


class LocalConv(nn.Module):
    """(K v)(x) = sum_c int kappa_c(x - y) v_c(y) dy + b,   kappa(z) = sum_l theta_l prod_j B((z_j - s l_j) / s) / s.

    B is the cubic B-spline of integral 1, l_j = -(m-1)/2, ..., (m-1)/2 runs over the m splines of an axis, s = 2 r / (m + 3)
    is the distance of their centres, and so kappa vanishes outside |z_j| < r. The m^d numbers theta a pair of channels are those
    of a convolution of m x m pixels; they stand at physical places and not at pixels, so the layer is one operator on all grids.
    (Discrete-continuous convolutions: Ocampo et al. 2023; Liu-Schiaffini et al. 2024. They take piecewise linear functions.)

    The integral is the sum with the grid's quadrature weights: h, and h / 2 at both ends of an axis of nodes. On periodic axes the
    field wraps; elsewhere it is zero outside the domain. The error is of fourth order in the spacing h, as B is twice
    continuously differentiable, and of second order within r of a boundary where the field is not zero. Of constants it is at
    most about 2 (h / (pi s))^4, and none where s is a multiple of h: so choose a radius of (m + 3) / 2 spacings, or of a multiple.

    Each spline takes a local mean. At the start theta has the variance 1 / (3 m^d in_channels), so that K v has a third of the
    variance of fields that vary slowly over r, as behind the 1 x 1 convolution beside it, and this does not depend on the grid.

    The sum is taken axis by axis with matrices (m, n_out, n_in), which have m n_out entries times the points within r. They are multiplied as
    dense ones: up to hundreds of points an axis this takes less time than a convolution with as many taps.

    Args:
        radius: r, in the units of `extent`; at most half of the length of a periodic axis.
        dim: the number of axes, 1 to 3.
        n_splines: m, per axis.
        layout: "nodes", "cells" or "periodic", per axis or one for all.
        extent: one pair (a, b) per axis, or one for all.
        bias: add one number per output channel.

    Raises:
        ValueError: in `forward`, where the splines are narrower than the spacing and the sum would not be the integral.

    >>> layer = LocalConv(3, 8, 1 / 16, dim=2)
    >>> layer(torch.zeros(2, 3, 64, 63)).shape, layer(torch.zeros(2, 3, 64, 64), output_shape=(16, 16)).shape
    (torch.Size([2, 8, 64, 63]), torch.Size([2, 8, 16, 16]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        radius: float,
        *,
        dim: int,
        n_splines: int = 3,
        layout: str | Sequence[str] = "periodic",
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"in_channels is {in_channels} and out_channels {out_channels}; both must be positive.")
        if n_splines < 1:
            raise ValueError(f"n_splines is {n_splines}; at least one spline per axis is expected.")
        self.layout, self.lengths = as_layout(layout, as_dim(dim)), as_lengths(extent, dim)
        for axis, (kind, length) in enumerate(zip(self.layout, self.lengths, strict=True)):
            largest = length / 2 if kind == "periodic" else length
            if not 0 < radius <= largest:
                raise ValueError(
                    f"radius is {radius}, but axis {axis} is {kind} and {length:g} long; give a positive radius of at most {largest:g}."
                )
        self.in_channels, self.out_channels, self.dim = in_channels, out_channels, dim
        self.radius, self.n_splines, self.spacing = float(radius), n_splines, 2 * radius / (n_splines + 3)
        # As many spacings as make each no wider than that of the splines, in whole numbers for a resolution that is a symbol.
        self.min_points = tuple(
            math.ceil(length / self.spacing - 1e-6) + (kind == "nodes")
            for kind, length in zip(self.layout, self.lengths, strict=True)
        )
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[n_splines] * dim))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default of a convolution with as many weights: uniform with variance 1 / (3 m^d in_channels)."""
        bound = 1 / math.sqrt(self.in_channels * self.n_splines**self.dim)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Field, output_shape: Sequence[int] | None = None) -> Field:
        """(batch, in, *grid) -> (batch, out, *output_shape), by default on the grid of x; another grid covers the same domain."""
        check_field(x, self.in_channels, self.dim, self.weight, "LocalConv")
        grid = x.shape[2:]
        self._check(grid)
        outputs = grid if output_shape is None else tuple(output_shape)
        if len(outputs) != self.dim:
            raise ValueError(
                f"output_shape is {outputs}; one number of points for each of {self.dim} axes is expected."
            )
        *leading, last = (self._quadrature(axis, grid[axis], outputs[axis], x) for axis in range(self.dim))
        v = x
        for axis, matrix in enumerate(leading):
            v = _along(v, matrix, axis)
        # All splines of the leading axes meet all channels, and the splines of the last axis stay apart until its own sum.
        mixing = self.weight.movedim(-1, 1).flatten(2).flatten(0, 1).to(v.dtype)  # (out * m, in * m^(dim-1))
        u = channel_linear(v.flatten(2), mixing, None)
        u = u.unflatten(1, (self.out_channels, self.n_splines)).unflatten(3, v.shape[2:])  # (batch, out, m, *grid)
        y = u.movedim(2, -2).flatten(-2) @ torch.cat(last.unbind(0), dim=1).T  # over splines and points at once
        return y if self.bias is None else y + self.bias.view(-1, *[1] * self.dim).to(y.dtype)

    def kernel(self, offsets: Tensor) -> Tensor:
        """kappa at offsets z (points, dim), (out, in, points): to look at, and to test against."""
        values = self.weight.flatten(2).to(offsets)
        at = [cubic_spline(offsets[:, j] / self.spacing - self._centres(offsets)[:, None]) for j in range(self.dim)]
        basis = at[0] / self.spacing
        for line in at[1:]:
            basis = (basis.unsqueeze(1) * line / self.spacing).flatten(0, 1)
        return values @ basis

    def _centres(self, like: Tensor) -> Tensor:
        """l (m,), in units of the spacing of the splines"""
        return torch.arange(self.n_splines, dtype=like.dtype, device=like.device) - (self.n_splines - 1) / 2

    def _quadrature(self, axis: int, n_in: int, n_out: int, like: Tensor) -> Tensor:
        """w_j B((x_i - y_j - s l) / s) / s, (m, n_out, n_in), in the dtype of `like`"""
        length, kind = self.lengths[axis], self.layout[axis]
        exact = torch.empty(0, dtype=torch.float64, device=like.device)
        x, y = (unit_coordinates(n, kind, exact) * (length / self.spacing) for n in (n_out, n_in))
        offsets = x[:, None] - y - self._centres(exact)[:, None, None]
        if kind == "periodic":  # the nearest image: no spline reaches farther than half a period
            offsets = offsets - (length / self.spacing) * torch.round(offsets * (self.spacing / length))
        intervals = n_in - 1 if kind == "nodes" else n_in
        weights = torch.full_like(y, length / self.spacing) / intervals
        if kind == "nodes":
            j = torch.arange(n_in, device=like.device)
            weights = torch.where((j == 0) | (j == n_in - 1), 0.5, 1.0) * weights
        return (weights * cubic_spline(offsets)).to(like.dtype)

    def _check(self, grid: Sequence[int]) -> None:
        for axis, (n, least) in enumerate(zip(grid, self.min_points, strict=True)):
            if n < least:
                raise ValueError(
                    f"axis {axis} has {n} points, but the {self.n_splines} splines within the radius {self.radius:g} need a spacing of at "
                    f"most {self.spacing:g}; give at least {least} points, a larger radius or fewer splines."
                )

    def extra_repr(self) -> str:
        """Channels and the kernel's size for `print(model)`."""
        return (
            f"{self.in_channels}, {self.out_channels}, radius={self.radius:g}, dim={self.dim}, n_splines={self.n_splines}, "
            f"layout={self.layout}"
        )


def cubic_spline(u: Tensor) -> Tensor:
    """B(u), the cubic B-spline: zero for |u| >= 2, twice continuously differentiable, of integral 1; sum_l B(u - l) = 1."""
    a = u.abs()
    return ((2 - a).clamp(min=0) ** 3 - 4 * (1 - a).clamp(min=0) ** 3) / 6


def as_dim(dim: int) -> int:
    """`dim`, if it is 1, 2 or 3."""
    if dim not in (1, 2, 3):
        raise ValueError(f"dim is {dim}; fields of one to three axes are expected.")
    return dim


def as_lengths(extent: Sequence[float] | Sequence[Sequence[float]], dim: int) -> tuple[float, ...]:
    """b - a along each axis, from one pair (a, b) per axis or one for all."""
    return Grid((2,) * dim, extent).lengths


def _along(v: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """(batch, channel, *grid) -> (batch, channel * m, *grid): the sum along one axis, once for each spline"""
    lead, rest = v.shape[: axis + 2], v.shape[axis + 3 :]
    u = v.flatten(axis + 3).flatten(0, axis + 1)
    y = torch.bmm(torch.cat(matrix.unbind(0)).expand(u.shape[0], -1, -1), u)
    y = y.unflatten(1, matrix.shape[:2]).unflatten(0, lead).movedim(axis + 2, 2).flatten(1, 2)
    return y.unflatten(-1, rest)
