"""The Fourier neural operator with local branches: integrals over a small ball and derivatives beside the spectral convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from opflow.grid import Grid
from opflow.layers.derivative_conv import DerivativeConv
from opflow.layers.embedding import DomainPadding, GridEmbedding, as_layout
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.function_norm import FunctionNorm
from opflow.layers.local_conv import LocalConv
from opflow.layers.mlp import ChannelLinear, ChannelMLP
from opflow.layers.spectral_conv import SpectralConv, as_modes
from opflow.models.fno import ACTIVATIONS, FNO
from opflow.typing import Field, check_sizes


class LocalBranches(nn.Module):
    """v -> W v + L v + D v: at a point, around it, and its derivatives; the skip beside a spectral convolution.

    Args:
        pointwise: W, with the bias of all three.
        local: L, an integral over a fixed radius.
        derivative: D, derivatives; None for none.

    >>> import torch
    >>> LocalBranches(ChannelLinear(3, 8), LocalConv(3, 8, 1 / 8, dim=1))(torch.zeros(2, 3, 32)).shape
    torch.Size([2, 8, 32])
    """

    def __init__(self, pointwise: nn.Module, local: nn.Module, derivative: nn.Module | None = None) -> None:
        super().__init__()
        self.pointwise, self.local, self.derivative = pointwise, local, derivative

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        y = self.pointwise(v) + self.local(v)
        return y if self.derivative is None else y + self.derivative(v)


class PaddedSpectralConv(SpectralConv):
    """The spectral convolution of a field continued by zeros, on a domain that is not periodic: pad, convolve, cut back.

    `FNO` pads once, around all its layers. Beside local branches each convolution pads for itself, so that they see the
    domain's true boundary and take no derivative across the jump to zero.

    Args:
        padding: by which fraction of the domain; the rest as for SpectralConv.

    >>> import torch
    >>> PaddedSpectralConv(1, 1, (8,), DomainPadding(0.25, dim=1))(torch.zeros(2, 1, 33)).shape
    torch.Size([2, 1, 33])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: int | Sequence[int],
        padding: DomainPadding,
        *,
        bias: bool = True,
        backend: str | None = None,
        rank: float | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, n_modes, bias=bias, backend=backend, rank=rank)
        self.padding = padding

    def forward(self, x: Field, output_shape: Sequence[int] | None = None) -> Field:
        """(batch, in, *grid) -> (batch, out, *output_shape), by default on the grid of x."""
        shape = x.shape[2:] if output_shape is None else tuple(output_shape)
        if x.ndim != len(self.n_modes) + 2:
            return super().forward(x)  # which refuses it
        y = super().forward(self.padding.pad(x), None if output_shape is None else self.padding.padded_shape(shape))
        return self.padding.crop(y, shape)


class LocalFNO(FNO):
    """An FNO whose layers are v -> s(K v + L v + D v + W v + b)   (Liu-Schiaffini et al. 2024, "Neural operators with localized
    integral and differential kernels").

    K is the spectral convolution, over the whole domain and its longest waves; L integrates over a fixed radius; D takes
    derivatives; W acts at every point. Each is one operator on all grids, and so is what they make, but for what the activations
    put beyond a grid's limit: the difference between two grids falls as they are refined.

    Takes its parts, as FNO; `LocalFNO.build` makes them from plain values.

    >>> import torch
    >>> LocalFNO.build((16, 16), 1, 1, 32, radius=1 / 16)(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """

    @classmethod
    def build(  # type: ignore[override]  # a model is built under its own name, and this one has other parts
        cls,
        n_modes: int | Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        *,
        radius: float,
        n_layers: int = 4,
        n_splines: int = 3,
        derivatives: bool = True,
        padding: float | Sequence[float] = 0.0,
        coordinates: bool = True,
        layout: str | Sequence[str] | None = None,
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        channel_mlp: float | None = 0.5,
        norm: str | None = None,
        rank: float | None = None,
        activation: str = "gelu",
        lifting_channel_ratio: float = 2.0,
        projection_channel_ratio: float = 2.0,
    ) -> LocalFNO:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            n_modes: two-sided number of modes per axis, its length the dimension (neuraloperator's meaning).
            radius: of the local integrals, in the units of `extent`, and the length by which derivatives are scaled. Three
                spacings of the training grid with three splines are what 3 x 3 pixels are there.
            n_splines: per axis and pair of channels, see LocalConv.
            derivatives: also the branch of first derivatives, by differences of fourth order.
            padding: fraction of the domain by which each spectral convolution continues its input with zeros, per axis or
                one for all; for axes that are not periodic.
            coordinates: append the grid's coordinates, from 0 to 1, to the input.
            layout: where the values live, per axis or one for all: "nodes", "cells" or "periodic". By default nodes on
                padded axes and periodic on the others.
            extent: one pair (a, b) per axis, or one for all.
            channel_mlp: hidden width of the perceptron in each layer, as a fraction of `hidden_channels`; None for none.
            norm: "instance", "group" (one group) or None; means over the domain, see FunctionNorm.
            rank: None for dense spectral weights; a fraction in (0, 1] for Tucker weights.
            activation: "gelu", "relu", "silu" or "tanh", in the lift, the layers and the projection.
            lifting_channel_ratio, projection_channel_ratio: hidden widths as multiples of `hidden_channels`; 0 makes a
                linear map.
        """
        modes = as_modes(n_modes)
        dim, c = len(modes), hidden_channels
        check_sizes(in_channels=in_channels, out_channels=out_channels, hidden_channels=c, n_layers=n_layers)
        for name, option, known in (
            ("norm", norm, ("instance", "group", None)),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if option not in known:
                raise ValueError(f"{name} is {option!r}; give one of {known}.")
        fractions = [float(padding)] * dim if isinstance(padding, int | float) else [float(p) for p in padding]
        layouts = as_layout(["nodes" if p else "periodic" for p in fractions] if layout is None else layout, dim)
        make_activation = ACTIVATIONS[activation]

        def spectral() -> SpectralConv:
            # The bias stands in the pointwise branch, once for all.
            if any(fractions):
                domain = DomainPadding(fractions, layouts, dim=dim)
                return PaddedSpectralConv(c, c, modes, domain, bias=False, rank=rank)
            return SpectralConv(c, c, modes, bias=False, rank=rank)

        def branches() -> LocalBranches:
            local = LocalConv(c, c, radius, dim=dim, n_splines=n_splines, layout=layouts, extent=extent, bias=False)
            derivative = DerivativeConv(c, c, radius, dim=dim, accuracy=4, layout=layouts, extent=extent)
            return LocalBranches(ChannelLinear(c, c), local, derivative if derivatives else None)

        def block(is_last: bool) -> FourierLayer:
            return FourierLayer(
                spectral(),
                branches(),
                channel_mlp=ChannelMLP(c, c, max(1, round(channel_mlp * c))) if channel_mlp else None,
                channel_mlp_skip=SoftGate(c, bias=False) if channel_mlp else None,
                norm=FunctionNorm(c, c if norm == "instance" else 1, layouts, dim=dim) if norm else None,
                activation=nn.Identity() if is_last else make_activation(),
            )

        def perceptron(inputs: int, outputs: int, ratio: float) -> ChannelMLP:
            width = max(1, round(ratio * c))
            return ChannelMLP(inputs, outputs, width, 2 if ratio else 1, activation=make_activation())

        model = cls(
            lift=perceptron(in_channels + dim * coordinates, c, lifting_channel_ratio),
            blocks=[block(i == n_layers - 1) for i in range(n_layers)],
            project=perceptron(c, out_channels, projection_channel_ratio),
            embedding=GridEmbedding(dim, layouts) if coordinates else None,
        )
        model.recipe = {
            "model": cls.__name__, "n_modes": list(modes), "in_channels": in_channels, "out_channels": out_channels,
            "hidden_channels": c, "radius": radius, "n_layers": n_layers, "n_splines": n_splines, "derivatives": derivatives,
            "padding": fractions, "coordinates": coordinates, "layout": list(layouts), "extent": as_pairs(extent, dim),
            "channel_mlp": channel_mlp, "norm": norm, "rank": rank, "activation": activation,
            "lifting_channel_ratio": lifting_channel_ratio, "projection_channel_ratio": projection_channel_ratio,
        }  # fmt: skip
        return model


def as_pairs(extent: Sequence[float] | Sequence[Sequence[float]], dim: int) -> list[list[float]]:
    """`extent` as plain values for a recipe, one pair per axis."""
    return Grid((2,) * dim, extent).to_json()["extent"]
