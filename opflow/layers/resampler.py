"""Learned down- and up-sampling of two-dimensional fields, around attention on a coarse grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional as F

from opflow.grid import LAYOUTS
from opflow.typing import Field, check_field


class DownSampler(nn.Module):
    """v -> s(I_c [C1 v', C2 C1 v', C3 C2 C1 v']),  v' = I_m relu(C0 v)   (Cao 2021).

    C0 to C3 are 3 x 3 convolutions, I_m and I_c bilinear interpolation to the intermediate grid of about sqrt(n n_c)
    points an axis and to the coarse one of n_c. The three parts hold a third of the channels each, the last the rest.
    Convolutions of 3 x 3 points see less of the domain on a finer grid: the theorem of resolution is not claimed.

    Args:
        in_channels, out_channels: out_channels is at least 3.
        coarse: the coarse grid, one number of points per axis; or a factor below 1, the same share of the spacings
            (on nodes) or points (on cells) of every input grid.
        layout: "nodes", whose corners stay where they are, or "cells".
        dropout: in training, of relu(C0 v).
        activation: s, SiLU by default.

    >>> DownSampler(3, 16, (11, 11))(torch.zeros(2, 3, 41, 41)).shape
    torch.Size([2, 16, 11, 11])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        coarse: Sequence[int] | float,
        *,
        layout: str = "nodes",
        dropout: float = 0.0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 3:
            raise ValueError(
                f"in_channels is {in_channels} and out_channels {out_channels}; a DownSampler makes three groups of "
                "channels, so give at least 1 and 3."
            )
        self.coarse = _as_coarse(coarse)
        self.in_channels, self.layout = in_channels, _as_sampler_layout(layout)
        third = out_channels // 3
        widths = [out_channels, third, third, out_channels - 2 * third]
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.groups = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.activation = activation or nn.SiLU()

    def coarse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The coarse grid of a field with grid `shape`."""
        if not isinstance(self.coarse, float):
            return self.coarse
        ends = int(self.layout == "nodes")
        # Rounded in whole numbers: torch.export can follow these at a dynamic resolution.
        p, q = Fraction(self.coarse).limit_denominator(1000).as_integer_ratio()
        return tuple((2 * p * (n - ends) + q) // (2 * q) + ends for n in shape)

    def forward(self, v: Field) -> Field:
        """(batch, in, n1, n2) -> (batch, out, *coarse_shape)"""
        check_field(v, self.in_channels, 2, self.first.weight, "DownSampler")
        coarse = self.coarse_shape(v.shape[2:])
        middle = [_geometric_mean(n, m) for n, m in zip(v.shape[2:], coarse, strict=True)]
        v = interpolate(self.dropout(F.relu(self.first(v))), middle, self.layout)
        parts = []
        for conv in self.groups:
            v = conv(v)
            parts.append(v)
        return self.activation(interpolate(torch.cat(parts, dim=1), coarse, self.layout))

    def extra_repr(self) -> str:
        """The coarse grid, for `print(model)`."""
        return f"coarse={self.coarse}, layout={self.layout!r}"


class UpSampler(nn.Module):
    """v -> I_f s(C I_m v): bilinear to an intermediate grid, a 3 x 3 convolution, bilinear to the fine grid   (Cao 2021).

    The intermediate grid has about sqrt(n n_f) points an axis. The theorem of resolution is not claimed, as for DownSampler.

    Args:
        channels: in and out.
        layout: "nodes", whose corners stay where they are, or "cells".
        dropout: in training, of C I_m v.
        activation: s, SiLU by default.

    >>> UpSampler(16)(torch.zeros(2, 16, 11, 11), (41, 41)).shape
    torch.Size([2, 16, 41, 41])
    """

    def __init__(
        self,
        channels: int,
        *,
        layout: str = "nodes",
        dropout: float = 0.0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.layout = channels, _as_sampler_layout(layout)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.activation = activation or nn.SiLU()

    def forward(self, v: Field, output_shape: Sequence[int]) -> Field:
        """(batch, channel, n1, n2) -> (batch, channel, *output_shape)"""
        check_field(v, self.channels, 2, self.conv.weight, "UpSampler")
        middle = [_geometric_mean(n, m) for n, m in zip(v.shape[2:], output_shape, strict=True)]
        v = self.activation(self.dropout(self.conv(interpolate(v, middle, self.layout))))
        return interpolate(v, output_shape, self.layout)

    def extra_repr(self) -> str:
        """The layout, for `print(model)`."""
        return f"layout={self.layout!r}"


def interpolate(v: Field, shape: Sequence[int], layout: str) -> Field:
    """Bilinear interpolation of a field (batch, channel, n1, n2) on nodes or cells of one domain to another grid of it."""
    return F.interpolate(v, size=tuple(shape), mode="bilinear", align_corners=layout == "nodes")


def _geometric_mean(n: int, m: int) -> int:
    # torch's own functions, which torch.export can follow at a dynamic resolution.
    return torch.sym_int(torch.sym_sqrt(n * m) + 0.5)


def _as_coarse(coarse: Sequence[int] | float) -> tuple[int, ...] | float:
    if isinstance(coarse, float):
        if not 0 < coarse <= 1:
            raise ValueError(f"coarse is {coarse}; a factor lies in (0, 1], or give the number of points per axis.")
        return coarse
    shape = tuple(coarse) if isinstance(coarse, Sequence) else (coarse,)
    if len(shape) != 2 or any(not isinstance(n, int) or n < 2 for n in shape):
        raise ValueError(
            f"coarse is {coarse!r}; the samplers work on two-dimensional fields, so give two numbers of points, or a factor."
        )
    return shape


def _as_sampler_layout(layout: str) -> str:
    if layout not in LAYOUTS or layout == "periodic":
        raise ValueError(
            f"layout is {layout!r}; the samplers interpolate on 'nodes' or 'cells', and would not join the ends of a periodic domain."
        )
    return layout
