"""The Fourier neural operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from opflow.layers.embedding import DomainPadding, GridEmbedding, as_layout
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.mlp import ChannelLinear, ChannelMLP
from opflow.layers.spectral_conv import SpectralConv, as_modes
from opflow.typing import Field, check_sizes

SKIPS = ("linear", "identity", "soft-gating", None)
NORMS = ("instance", "group", None)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class FNO(nn.Module):
    """u = Q o L_n o ... o L_1 o P (a): lift, Fourier layers, project   (Li et al. 2021, "Fourier neural operator", eq. 1-2).

    Takes its parts; `FNO.build` makes the usual ones from plain values.

    Args:
        lift: P, from the input's (and the coordinates') channels to the hidden ones, at every point.
        blocks: the Fourier layers.
        project: Q, from the hidden channels to the output's.
        embedding: appends coordinates before the lift; None for none.
        padding: lengthens a domain that is not periodic, around the blocks; None for none.

    >>> import torch
    >>> FNO.build((16, 16), 1, 1, 32)(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        lift: nn.Module,
        blocks: Iterable[nn.Module],
        project: nn.Module,
        *,
        embedding: GridEmbedding | None = None,
        padding: DomainPadding | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.padding = embedding, padding
        self.lift, self.blocks, self.project = lift, nn.ModuleList(blocks), project
        self.recipe: dict[str, object] | None = None

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        grid = x.shape[2:]
        if self.embedding is not None:
            x = self.embedding(x)
        v = self.lift(x)
        if self.padding is not None:
            v = self.padding.pad(v)
        for block in self.blocks:
            v = block(v)
        if self.padding is not None:
            v = self.padding.crop(v, grid)
        return self.project(v)

    @property
    def composition(self) -> tuple[nn.Module, ...]:
        """The parts in the order of `forward`, for bounds of the whole; padding and crop between them make no norm larger."""
        parts = (self.embedding, self.lift, *self.blocks, self.project)
        return tuple(part for part in parts if part is not None)

    @classmethod
    def build(
        cls,
        n_modes: int | Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        *,
        n_layers: int = 4,
        padding: float | Sequence[float] = 0.0,
        coordinates: bool = True,
        layout: str | Sequence[str] | None = None,
        channel_mlp: float | str | None = 0.5,
        channel_mlp_skip: str | None = "soft-gating",
        skip: str | None = "linear",
        norm: str | None = None,
        rank: float | None = None,
        activation: str = "gelu",
        lifting_channel_ratio: float = 2.0,
        projection_channel_ratio: float = 2.0,
    ) -> FNO:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            n_modes: two-sided number of modes per axis, its length the dimension (neuraloperator's meaning).
            padding: fraction of the domain added around the Fourier layers, per axis or one for all; for axes
                that are not periodic.
            coordinates: append the grid's coordinates to the input.
            layout: where the values live, per axis or one for all: "nodes", "cells" or "periodic". By default
                nodes on padded axes and periodic on the others.
            channel_mlp: hidden width of the perceptron in each layer, as a fraction of `hidden_channels`; None for none.
                "identity" puts the identity in its place: the activation is then taken twice, which is what
                neuraloperator computes with use_channel_mlp=False.
            channel_mlp_skip: "linear" (1 x 1), "identity", "soft-gating" or None, beside each perceptron.
            skip: one of the same, beside each spectral convolution.
            norm: "instance", "group" (one group) or None. Both take means over the grid, so they are resolution
                independent only up to quadrature error.
            rank: None for dense spectral weights; a fraction in (0, 1] for Tucker weights (TFNO).
            activation: "gelu", "relu", "silu" or "tanh", in the lift, the layers and the projection. The perceptrons
                inside the layers keep "gelu", as in neuraloperator.
            lifting_channel_ratio: hidden width of the lift, as a multiple of `hidden_channels`; 0 makes it one linear map.
            projection_channel_ratio: hidden width of the projection, likewise.
        """
        modes = as_modes(n_modes)
        dim = len(modes)
        check_sizes(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels, n_layers=n_layers
        )
        for name, option, known in (
            ("skip", skip, SKIPS),
            ("channel_mlp_skip", channel_mlp_skip, SKIPS),
            ("norm", norm, NORMS),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if option not in known:
                raise ValueError(f"{name} is {option!r}; give one of {known}.")
        for name, ratio in (
            ("lifting_channel_ratio", lifting_channel_ratio),
            ("projection_channel_ratio", projection_channel_ratio),
        ):
            if not ratio >= 0:
                raise ValueError(f"{name} is {ratio}; give a multiple of hidden_channels, or 0 for one linear map.")
        if isinstance(channel_mlp, str) and channel_mlp != "identity":
            raise ValueError(f"channel_mlp is {channel_mlp!r}; give a fraction of hidden_channels, 'identity' or None.")
        fractions = [float(padding)] * dim if isinstance(padding, int | float) else [float(p) for p in padding]
        layouts = as_layout(["nodes" if p else "periodic" for p in fractions] if layout is None else layout, dim)
        pad = DomainPadding(fractions, layouts, dim=dim) if any(fractions) else None
        make_activation = ACTIVATIONS[activation]
        has_perceptron = bool(channel_mlp) and channel_mlp != "identity"

        def perceptron(inputs: int, outputs: int, ratio: float) -> ChannelMLP:
            width = max(1, round(ratio * hidden_channels))
            return ChannelMLP(inputs, outputs, width, 2 if ratio else 1, activation=make_activation())

        def block(is_last: bool) -> FourierLayer:
            return FourierLayer(
                SpectralConv(hidden_channels, hidden_channels, modes, bias=skip != "linear", rank=rank),
                _skip(skip, hidden_channels, bias=True),
                channel_mlp=_channel_mlp(channel_mlp, hidden_channels),
                channel_mlp_skip=_skip(channel_mlp_skip, hidden_channels, bias=False) if has_perceptron else None,
                norm=_norm(norm, hidden_channels),
                activation=nn.Identity() if is_last else make_activation(),
            )

        model = cls(
            lift=perceptron(in_channels + dim * coordinates, hidden_channels, lifting_channel_ratio),
            blocks=[block(i == n_layers - 1) for i in range(n_layers)],
            project=perceptron(hidden_channels, out_channels, projection_channel_ratio),
            embedding=GridEmbedding(dim, layouts) if coordinates else None,
            padding=pad,
        )
        model.recipe = {
            "model": cls.__name__, "n_modes": list(modes), "in_channels": in_channels, "out_channels": out_channels,
            "hidden_channels": hidden_channels, "n_layers": n_layers, "padding": fractions, "coordinates": coordinates,
            "layout": list(layouts), "channel_mlp": channel_mlp, "channel_mlp_skip": channel_mlp_skip, "skip": skip,
            "norm": norm, "rank": rank, "activation": activation, "lifting_channel_ratio": lifting_channel_ratio,
            "projection_channel_ratio": projection_channel_ratio,
        }  # fmt: skip
        return model


def _skip(kind: str | None, channels: int, *, bias: bool) -> nn.Module | None:
    if kind == "linear":
        # Beside the spectral convolution its bias serves both, at no cost: it is added inside the matrix product.
        return ChannelLinear(channels, channels, bias=bias)
    if kind == "soft-gating":
        # What it is added to ends in a bias: a second one in the same place would be no new function.
        return SoftGate(channels, bias=False)
    return nn.Identity() if kind == "identity" else None


def _channel_mlp(width: float | str | None, channels: int) -> nn.Module | None:
    if isinstance(width, str):
        return nn.Identity()
    return ChannelMLP(channels, channels, max(1, round(width * channels))) if width else None


def _norm(kind: str | None, channels: int) -> nn.Module | None:
    if kind is None:
        return None
    return nn.GroupNorm(channels if kind == "instance" else 1, channels)
