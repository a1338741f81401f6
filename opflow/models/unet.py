"""The U-Net as an operator: local integrals whose radius doubles from level to level, and low-passes between the levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import nn

from opflow.layers.band_limit import BandLimitedResampler
from opflow.layers.embedding import GridEmbedding, as_layout
from opflow.layers.function_norm import FunctionNorm
from opflow.layers.local_conv import LocalConv, as_dim
from opflow.layers.mlp import ChannelLinear
from opflow.models.fno import ACTIVATIONS
from opflow.models.local_fno import as_pairs
from opflow.typing import Field, check_sizes


class LocalBlock(nn.Module):
    """v -> s(N_2 K_2 s(N_1 K_1 v) + W v): two local convolutions with a linear skip   (He et al. 2016, with integrals for pixels).

    Args:
        convs: K_1 and K_2.
        norms: N_1 and N_2; nn.Identity() for none.
        skip: W.
        activation: s.

    >>> convs = [LocalConv(3, 8, 1 / 8, dim=1), LocalConv(8, 8, 1 / 8, dim=1)]
    >>> LocalBlock(convs, [nn.Identity(), nn.Identity()], ChannelLinear(3, 8))(torch.zeros(2, 3, 32)).shape
    torch.Size([2, 8, 32])
    """

    def __init__(
        self,
        convs: Iterable[nn.Module],
        norms: Iterable[nn.Module],
        skip: nn.Module,
        *,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.conv2 = convs
        self.norm1, self.norm2 = norms
        self.skip, self.activation = skip, activation or nn.GELU()

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        u = self.activation(self.norm1(self.conv1(v)))
        return self.activation(self.norm2(self.conv2(u)) + self.skip(v))


class UNet(nn.Module):
    """u = Q D_0 [v_0, R D_1 [v_1, R ... v_L]],   v_0 = E_0 P a,  v_l = E_l R v_{l-1}   (Ronneberger et al. 2015, as an operator).

    A U-Net sees a constant number of pixels and halves its grid a constant number of times, so that it is another map on
    another grid. Here every convolution integrates over a physical radius, which doubles from level to level, and R is the
    band-limited resampling to the next grid, of twice the spacing: on a fine grid it cuts nothing off. So the levels differ
    by what they see, the coarse grids only save work, and the difference between two grids falls as they are refined.
    (The recipe: Berner et al. 2025, "Principled approaches for extending neural architectures to function spaces".)

    Takes its parts; `UNet.build` makes the usual ones from plain values.

    Args:
        lift: P, at every point.
        encoder: E_0, ..., E_L.
        decoder: D_{L-1}, ..., D_0, each from the channels of its own level and of the one below.
        project: Q, at every point.
        resampler: R.
        embedding: appends coordinates before the lift; None for none.

    >>> UNet.build(1, 1, 8, 2, radius=3 / 64, n_levels=3)(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        lift: nn.Module,
        encoder: Iterable[nn.Module],
        decoder: Iterable[nn.Module],
        project: nn.Module,
        *,
        resampler: BandLimitedResampler,
        embedding: GridEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.lift, self.project, self.resampler = embedding, lift, project, resampler
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        if len(self.decoder) != len(self.encoder) - 1:
            raise ValueError(
                f"the encoder has {len(self.encoder)} levels and the decoder {len(self.decoder)}; the decoder has one less, as the "
                "coarsest level goes up as it is."
            )
        self.recipe: dict[str, object] | None = None

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        if self.embedding is not None:
            x = self.embedding(x)
        v = self.lift(x)
        seen: list[Field] = []
        for i, block in enumerate(self.encoder):
            if i:
                seen.append(v)
                v = self.resampler(v, self.resampler.coarse_shape(v.shape[2:]))
            v = block(v)
        for block, beside in zip(self.decoder, reversed(seen), strict=True):
            v = block(torch.cat([beside, self.resampler(v, beside.shape[2:])], dim=1))
        return self.project(v)

    @classmethod
    def build(
        cls,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        dim: int,
        *,
        radius: float,
        n_levels: int = 4,
        n_splines: int = 3,
        growth: float = 2.0,
        layout: str | Sequence[str] = "periodic",
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        coordinates: bool = False,
        norm: str | None = "group",
        activation: str = "gelu",
    ) -> UNet:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            hidden_channels: of the finest level.
            dim: the number of axes, 1 to 3.
            radius: of the finest level's integrals, in the units of `extent`; that of level l is 2^l times as large, and
                the coarsest still has to fit the domain. Three spacings of the training grid are what 3 x 3 pixels are there.
            n_levels: grids, the finest included.
            n_splines: per axis and pair of channels, see LocalConv.
            growth: level l has growth^l times the channels of the finest.
            layout: "nodes", "cells" or "periodic", per axis or one for all.
            extent: one pair (a, b) per axis, or one for all.
            coordinates: append the grid's coordinates, from 0 to 1, to the input.
            norm: "instance", "group" (one group) or None; means over the domain, see FunctionNorm.
            activation: "gelu", "relu", "silu" or "tanh".
        """
        check_sizes(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels, n_levels=n_levels
        )
        layouts = as_layout(layout, as_dim(dim))
        pairs = as_pairs(extent, dim)
        for name, option, known in (
            ("norm", norm, ("instance", "group", None)),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if option not in known:
                raise ValueError(f"{name} is {option!r}; give one of {known}.")
        if not growth > 0:
            raise ValueError(
                f"growth is {growth}; give the ratio of the channels of a level to those of the next finer one."
            )
        allowed = min((b - a) / 2 if kind == "periodic" else b - a for (a, b), kind in zip(pairs, layouts, strict=True))
        coarsest = radius * 2 ** (n_levels - 1)
        if not 0 < coarsest <= allowed:
            raise ValueError(
                f"radius is {radius:g}, so that of the coarsest of {n_levels} levels is {coarsest:g}, but it is positive and at most "
                f"{allowed:g} in this domain; give fewer levels or another radius."
            )
        widths = [max(1, round(hidden_channels * growth**level)) for level in range(n_levels)]
        make_activation = ACTIVATIONS[activation]

        def block(inputs: int, outputs: int, level: int) -> LocalBlock:
            def conv(channels: int) -> LocalConv:
                return LocalConv(
                    channels, outputs, radius * 2**level, dim=dim, n_splines=n_splines, layout=layouts, extent=pairs,
                    bias=norm is None,
                )  # fmt: skip

            def normalise() -> nn.Module:
                return (
                    FunctionNorm(outputs, outputs if norm == "instance" else 1, layouts, dim=dim)
                    if norm
                    else nn.Identity()
                )

            return LocalBlock(
                (conv(inputs), conv(outputs)),
                (normalise(), normalise()),
                ChannelLinear(inputs, outputs, bias=False),
                activation=make_activation(),
            )

        levels = list(enumerate(pairwise(widths)))
        model = cls(
            lift=ChannelLinear(in_channels + dim * coordinates, widths[0]),
            encoder=[block(widths[0], widths[0], 0), *(block(fine, coarse, i + 1) for i, (fine, coarse) in levels)],
            decoder=[block(fine + coarse, fine, i) for i, (fine, coarse) in reversed(levels)],
            project=ChannelLinear(widths[0], out_channels),
            resampler=BandLimitedResampler(layouts, dim=dim),
            embedding=GridEmbedding(dim, layouts) if coordinates else None,
        )
        model.recipe = {
            "model": cls.__name__, "in_channels": in_channels, "out_channels": out_channels, "hidden_channels": hidden_channels,
            "dim": dim, "radius": radius, "n_levels": n_levels, "n_splines": n_splines, "growth": growth, "layout": list(layouts),
            "extent": pairs, "coordinates": coordinates, "norm": norm, "activation": activation,
        }  # fmt: skip
        return model
