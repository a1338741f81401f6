"""Learned differential operators by finite differences: what a convolution whose weights sum to zero becomes on every grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.kernels.channel_mlp.reference import channel_linear
from opflow.layers.embedding import as_layout
from opflow.layers.local_conv import as_dim, as_lengths
from opflow.typing import Field, check_field

# Central differences by accuracy and order of the derivative: the weights at 0, 1, ...; those of first derivatives are odd.
STENCILS: dict[tuple[int, int], tuple[float, ...]] = {
    (2, 1): (0.0, 1 / 2),
    (4, 1): (0.0, 2 / 3, -1 / 12),
    (2, 2): (-2.0, 1.0),
    (4, 2): (-5 / 2, 4 / 3, -1 / 12),
}


class DerivativeConv(nn.Module):
    """(D v)(x) = sum_c sum_j (theta_cj l d_j v_c(x) + phi_cj l^2 d_jj v_c(x)), the second sum with `second`.

    A stencil whose weights sum to zero, divided by the spacing, tends to a directional derivative (Liu-Schiaffini et al. 2024, "Neural
    operators with localized integral and differential kernels"). Published so, a learned stencil of three points has an even
    part beside the odd one, and that is h times a second derivative: it acts on the training grid and is gone on finer ones. Here the
    two parts are apart: central differences divided by h, and second differences divided by h^2, each with weights of its own, so
    that D v tends to the equation above with the order `accuracy` of its differences.

    On periodic axes the field wraps. Elsewhere it is continued by the polynomial through its outermost points, which are
    the one-sided differences of the same order.

    Args:
        length: l, in the units of `extent`. It makes the derivatives of fields that vary over l as large as the fields;
            the default is 1.
        dim: the number of axes, 1 to 3.
        accuracy: 2 (three points an axis) or 4 (five points).
        second: add the unmixed second derivatives.
        layout: "nodes", "cells" or "periodic", per axis or one for all.
        extent: one pair (a, b) per axis, or one for all.

    >>> DerivativeConv(3, 8, 1 / 16, dim=2)(torch.zeros(2, 3, 64, 63)).shape
    torch.Size([2, 8, 64, 63])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        length: float = 1.0,
        *,
        dim: int,
        accuracy: int = 2,
        second: bool = False,
        layout: str | Sequence[str] = "periodic",
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"in_channels is {in_channels} and out_channels {out_channels}; both must be positive.")
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"length is {length}; a positive length in the units of the domain is expected.")
        if accuracy not in (2, 4):
            raise ValueError(f"accuracy is {accuracy}; give 2, for three points an axis, or 4, for five.")
        self.layout, self.lengths = as_layout(layout, as_dim(dim)), as_lengths(extent, dim)
        self.in_channels, self.out_channels, self.dim = in_channels, out_channels, dim
        self.length, self.accuracy, self.orders = float(length), accuracy, (1, 2) if second else (1,)
        # As many points as the stencil has, or as fix the polynomial beyond the boundary.
        self.min_points = tuple(accuracy + (1 if kind == "periodic" else self.orders[-1]) for kind in self.layout)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, dim * len(self.orders)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform with variance 1 / (3 in_channels) over the number of derivatives, as a convolution's."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        check_field(x, self.in_channels, self.dim, self.weight, "DerivativeConv")
        for axis, (n, least) in enumerate(zip(x.shape[2:], self.min_points, strict=True)):
            if n < least:
                raise ValueError(
                    f"axis {axis} has {n} points, but differences of order {self.accuracy} need {least} on a "
                    f"{self.layout[axis]} axis; refine the grid."
                )
        terms = [self._difference(x, axis, order) for order in self.orders for axis in range(self.dim)]
        v = torch.stack(terms, dim=2).flatten(3).flatten(1, 2)  # (batch, in * derivatives, points)
        return channel_linear(v, self.weight.flatten(1).to(v.dtype), None).unflatten(2, x.shape[2:])

    def _difference(self, x: Field, axis: int, order: int) -> Field:
        """l^order d^order v / dx_axis^order"""
        n, kind = x.shape[axis + 2], self.layout[axis]
        stencil, reach = STENCILS[self.accuracy, order], self.accuracy // 2
        wide = (
            _wrapped(x, axis + 2, reach)
            if kind == "periodic"
            else _continued(x, axis + 2, reach, self.accuracy + order)
        )
        center = stencil[0] * x
        sign = 1.0 if order == 2 else -1.0
        for k, weight in enumerate(stencil[1:], start=1):
            ahead, behind = wide.narrow(axis + 2, reach + k, n), wide.narrow(axis + 2, reach - k, n)
            center = center + weight * (ahead + sign * behind)
        intervals = n - 1 if kind == "nodes" else n
        return center * (intervals * (self.length / self.lengths[axis])) ** order

    def extra_repr(self) -> str:
        """Channels and the differences for `print(model)`."""
        return (
            f"{self.in_channels}, {self.out_channels}, length={self.length:g}, dim={self.dim}, accuracy={self.accuracy}, "
            f"orders={self.orders}, layout={self.layout}"
        )


def _wrapped(x: Tensor, dim: int, reach: int) -> Tensor:
    """`reach` more points at both ends of a periodic axis"""
    n = x.shape[dim]
    return torch.cat([x.narrow(dim, n - reach, reach), x, x.narrow(dim, 0, reach)], dim=dim)


def _continued(x: Tensor, dim: int, reach: int, points: int) -> Tensor:
    """`reach` more points at both ends, from the polynomial through the outermost `points`: its differences of that order are zero"""
    weights = [(-1) ** j * math.comb(points, j + 1) for j in range(points)]
    for _ in range(reach):
        n = x.shape[dim]
        before = sum(w * x.narrow(dim, j, 1) for j, w in enumerate(weights))
        after = sum(w * x.narrow(dim, n - 1 - j, 1) for j, w in enumerate(weights))
        x = torch.cat([before, x, after], dim=dim)
    return x
