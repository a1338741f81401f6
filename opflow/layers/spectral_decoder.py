"""From features to smooth outputs by Fourier layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from opflow.layers.embedding import DomainPadding
from opflow.layers.fourier import FourierLayer
from opflow.layers.mlp import ChannelLinear, ChannelMLP
from opflow.layers.spectral_conv import SpectralConv, as_modes
from opflow.typing import Field, check_field


class SpectralDecoder(nn.Module):
    """u = M(v_n),  v_l = s(K_l v_{l-1} + W_l v_{l-1} + b_l): Fourier layers, then a perceptron at each point   (Cao 2021).

    Args:
        in_channels, out_channels: of v_0 and u.
        hidden_channels: of v_1 to v_n; M has 2 dim hidden_channels hidden ones.
        n_modes: two-sided number of modes per axis, its length the dimension.
        n_layers: n.
        activation: s, also inside M; SiLU by default.
        padding: lengthens a domain that is not periodic around the Fourier layers; None for none.

    >>> import torch
    >>> SpectralDecoder(97, 1, 48, (32,))(torch.zeros(2, 97, 64)).shape
    torch.Size([2, 1, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        n_modes: int | Sequence[int],
        *,
        n_layers: int = 2,
        activation: nn.Module | None = None,
        padding: DomainPadding | None = None,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}; a SpectralDecoder needs at least one Fourier layer.")
        modes = as_modes(n_modes)
        self.in_channels, self.padding, self.activation = in_channels, padding, activation or nn.SiLU()
        # The activation stands outside the layers: what is left in them is one fused operation.
        self.layers = nn.ModuleList(
            FourierLayer(SpectralConv(a, b, modes, bias=False), ChannelLinear(a, b), activation=nn.Identity())
            for a, b in itertools.pairwise([in_channels, *[hidden_channels] * n_layers])
        )
        self.project = ChannelMLP(
            hidden_channels, out_channels, 2 * len(modes) * hidden_channels, activation=self.activation
        )

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        check_field(v, self.in_channels, None, next(self.parameters()), "SpectralDecoder")
        grid = v.shape[2:]
        if self.padding is not None:
            v = self.padding.pad(v)
        for layer in self.layers:
            v = self.activation(layer(v))
        if self.padding is not None:
            v = self.padding.crop(v, grid)
        return self.project(v)
