"""The Galerkin transformer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from opflow.layers.coordinates import as_box
from opflow.layers.embedding import DomainPadding, as_layout, unit_coordinates
from opflow.layers.galerkin_attention import (
    FourierAttention,
    GalerkinAttention,
    TransformerLayer,
)
from opflow.layers.mlp import MLP, ChannelLinear, ChannelMLP
from opflow.layers.point_set import checked_weights, unit_points
from opflow.layers.resampler import DownSampler, UpSampler
from opflow.layers.spectral_conv import as_modes
from opflow.layers.spectral_decoder import SpectralDecoder
from opflow.models.fno import ACTIVATIONS
from opflow.typing import Field, Points, check_field, check_sizes

ATTENTIONS = {"galerkin": GalerkinAttention, "fourier": FourierAttention}
DECODERS = ("spectral", "pointwise")


class GalerkinTransformer(nn.Module):
    """u = D (x, L_n ... L_1 P(x, a)): lift, attention layers on the points, decoder   (Cao 2021, "Choose a transformer").

    The coordinates x stand beside the input a, inside every attention head and again before the decoder. Attention is a
    sum over points with quadrature weights, so the model takes any grid, and with a pointwise decoder any set of points.
    A nonlinear model is claimed only as a difference that falls under refinement; with samplers not even that.

    Takes its parts; `GalerkinTransformer.build` makes the usual ones from plain values.

    Args:
        lift: P on fields, from the coordinates' and the input's channels (`lift.in_channels`) to the hidden ones; a
            DownSampler changes the grid.
        layers: L on points, called as layer(y, coords, weights).
        decoder: D on fields, from the coordinates' (unless `decoder_coordinates` is False) and the hidden channels to the output's.
        extent: the domain, one pair (a, b) per axis; coordinates are scaled to the unit box.
        layout: where grid values live, per axis. Periodic axes do not hold their second end.
        measure: what quadrature weights sum to; by default the volume of `extent`.
        upsample: from the grid of the layers to that of the output, called as upsample(v, shape).
        output_shape: the grid of the output after `upsample`; None for that of the input.
        boundary: "dirichlet" makes the output exactly zero on the boundary nodes; None leaves it free. Wrapped in
            Normalized, it is zero in physical units if the output's mean is.
        unstructured: whether coords may be given: nothing but the layers may look at neighbours.

    >>> model = GalerkinTransformer.build(1, 1, 32, layout="periodic")
    >>> model(torch.zeros(2, 1, 64)).shape
    torch.Size([2, 1, 64])
    """

    def __init__(
        self,
        lift: nn.Module,
        layers: Iterable[nn.Module],
        decoder: nn.Module,
        extent: Sequence[Sequence[float]],
        *,
        layout: Sequence[str],
        measure: float | None = None,
        upsample: nn.Module | None = None,
        output_shape: Sequence[int] | None = None,
        boundary: str | None = None,
        decoder_coordinates: bool = True,
        unstructured: bool = False,
    ) -> None:
        super().__init__()
        self.dim = len(extent)
        self.extent = as_box(extent, self.dim)
        self.layout = as_layout(layout, self.dim)
        self.measure = math.prod(b - a for a, b in self.extent) if measure is None else measure
        if not self.measure > 0:
            raise ValueError(
                f"measure is {measure}; give the positive measure of the domain, or None for that of extent."
            )
        if boundary not in ("dirichlet", None):
            raise ValueError(f"boundary is {boundary!r}; give 'dirichlet' or None.")
        if boundary and set(self.layout) != {"nodes"}:
            raise ValueError(
                f"boundary is {boundary!r} on layout {self.layout}; only nodes lie on the boundary, so use layout='nodes'."
            )
        self.lift, self.layers, self.decoder, self.upsample = lift, nn.ModuleList(layers), decoder, upsample
        self.output_shape = None if output_shape is None else tuple(output_shape)
        self.boundary, self.decoder_coordinates = boundary, decoder_coordinates
        self.unstructured = unstructured
        self.recipe: dict[str, object] | None = None

    def forward(self, x: Field, coords: Points | None = None, weights: Tensor | None = None) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid); or (batch, in, points) at coords -> (batch, out, points).

        Args:
            x: the input on a grid of `extent` in `layout`, or at the points of coords.
            coords: (points, dim) or (batch, points, dim), inside `extent`; None for the grid's own.
            weights: quadrature weights (*grid) or (batch, *grid) on the grid of the attention layers, the points being
                one axis where coords are given; they sum to `measure`. None for equal ones.
        """
        self._check(x, coords)
        position = self._grid_position(x, x.shape[2:]) if coords is None else self._point_position(x, coords)
        v = self.lift(torch.cat([position.expand(x.shape[0], -1, *x.shape[2:]), x], dim=1))
        grid = v.shape[2:]
        if coords is None:
            position = self._grid_position(v, grid)
        if weights is not None:
            weights = self._flat_weights(weights, v)
        y, points = v.flatten(2).mT.contiguous(), position.flatten(2).mT
        if coords is None or coords.ndim == 2:
            points = points[0]
        for layer in self.layers:
            y = layer(y, points, weights)
        v = y.mT.unflatten(2, grid)
        if self.upsample is not None:
            v = self.upsample(v, x.shape[2:] if self.output_shape is None else self.output_shape)
        if self.decoder_coordinates:
            position = position if self.upsample is None else self._grid_position(v, v.shape[2:])
            v = torch.cat([position.expand(v.shape[0], -1, *v.shape[2:]), v], dim=1)
        return self._on_boundary(self.decoder(v))

    def _grid_position(self, like: Tensor, grid: Sequence[int]) -> Tensor:
        """The unit coordinates of a grid, (1, dim, *grid)."""
        lines = [unit_coordinates(n, layout, like) for n, layout in zip(grid, self.layout, strict=True)]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"))[None]

    def _point_position(self, x: Tensor, coords: Tensor) -> Tensor:
        """Coordinates scaled to the unit box, (batch or 1, dim, points)."""
        if not self.unstructured:
            raise ValueError(
                "coords were given, but this model has a spectral decoder, samplers or a boundary, which work on grids; "
                "build it with decoder='pointwise' and without downsample, upsample and boundary, or leave coords out."
            )
        n, shapes = x.shape[2], ((x.shape[2], self.dim), (*x.shape[::2], self.dim))
        if coords.shape not in shapes:
            raise ValueError(
                f"coords has shape {tuple(coords.shape)} but x holds {n} points; expected {shapes[0]}, one set for the "
                f"whole batch, or {shapes[1]}."
            )
        if coords.device != x.device or not coords.is_floating_point():
            raise ValueError(f"coords is {coords.dtype} on {coords.device}; give real numbers on {x.device}, as x is.")
        return unit_points(coords, self.extent).to(x.dtype).mT.reshape(-1, self.dim, n)

    def _flat_weights(self, weights: Tensor, v: Tensor) -> Tensor:
        grid = tuple(v.shape[2:])
        if weights.shape not in (grid, (v.shape[0], *grid)):
            raise ValueError(
                f"weights has shape {tuple(weights.shape)} but the attention layers work on {grid}; expected {grid}, one rule "
                f"for the whole batch, or {(v.shape[0], *grid)}."
            )
        flat = weights.reshape(*weights.shape[: weights.ndim - len(grid)], -1)
        return checked_weights(flat, (v.shape[0], flat.shape[-1]), self.measure, v)

    def _on_boundary(self, u: Field) -> Field:
        if self.boundary is None:
            return u
        for axis in range(2, u.ndim):
            u = u.narrow(axis, 1, u.shape[axis] - 2)
        return nn.functional.pad(u, (1, 1) * self.dim)

    def _check(self, x: Tensor, coords: Tensor | None) -> None:
        first = next(self.parameters())
        channels = int(self.lift.in_channels) - self.dim  # type: ignore[arg-type]
        check_field(x, channels, self.dim if coords is None else 1, first, "GalerkinTransformer")

    @classmethod
    def build(
        cls,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        dim: int = 1,
        *,
        heads: int = 1,
        n_layers: int = 4,
        ffn_channels: int | None = None,
        attention: str = "galerkin",
        decoder: str = "spectral",
        decoder_channels: int = 48,
        decoder_layers: int = 2,
        n_modes: int | Sequence[int] = 32,
        decoder_padding: float = 0.0,
        decoder_coordinates: bool = True,
        downsample: Sequence[int] | int | float | None = None,
        upsample: Sequence[int] | bool = False,
        layout: str | Sequence[str] = "nodes",
        boundary: str | None = None,
        extent: Sequence[float] | Sequence[Sequence[float]] = (0.0, 1.0),
        measure: float | None = None,
        dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        sampler_dropout: float = 0.0,
        activation: str = "silu",
        ffn_activation: str = "relu",
        eps: float = 1e-5,
    ) -> GalerkinTransformer:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            dim: number of coordinates.
            heads: of each attention layer; must divide `hidden_channels`.
            ffn_channels: hidden width of the perceptron in each layer; by default twice `hidden_channels`.
            attention: "galerkin" or "fourier".
            decoder: "spectral", Fourier layers and a perceptron, for smooth outputs on grids; "pointwise", a perceptron,
                for rough outputs and for points.
            decoder_channels: width of the Fourier layers, or of the pointwise perceptron.
            decoder_layers: Fourier layers, or hidden layers of the pointwise perceptron.
            n_modes: two-sided, per axis or one for all; the paper's "16 modes" are one-sided and thus 32.
            decoder_padding: fraction of the domain added around the Fourier layers on axes that are not periodic; the
                paper has none.
            decoder_coordinates: append the coordinates again before the decoder.
            downsample: the coarse grid of the attention layers, one number for all axes or one each; a factor below 1;
                or None, for the input's own grid.
            upsample: after the layers, True for the input's grid or a shape; False decodes where the layers are.
            layout: "nodes", "cells" or "periodic", per axis or one for all.
            boundary: "dirichlet" for output that is zero on the boundary nodes.
            extent: the domain, one pair for all axes or one each; where coords are allowed to lie.
            measure: of the domain, if it is not the whole box; what quadrature weights must sum to.
            dropout: in training, of each attention's output.
            ffn_dropout: in training, of the perceptrons' hidden layers.
            attention_dropout: in training, of the attention matrix.
            sampler_dropout: in training, in the samplers.
            activation: "gelu", "relu", "silu" or "tanh", in the decoder and the samplers.
            ffn_activation: one of the same, in the perceptrons of the layers.
            eps: of the normalisation in the heads.
        """
        width = 2 * hidden_channels if ffn_channels is None else ffn_channels
        check_sizes(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels, dim=dim, heads=heads,
            n_layers=n_layers, decoder_channels=decoder_channels, decoder_layers=decoder_layers, ffn_channels=width,
        )  # fmt: skip
        for name, option, known in (
            ("attention", attention, tuple(ATTENTIONS)),
            ("decoder", decoder, DECODERS),
            ("activation", activation, tuple(ACTIVATIONS)),
            ("ffn_activation", ffn_activation, tuple(ACTIVATIONS)),
        ):
            if option not in known:
                raise ValueError(f"{name} is {option!r}; give one of {known}.")
        layouts, pairs = as_layout(layout, dim), _as_extent(extent, dim)
        samples = downsample is not None or upsample is not False
        if samples and dim != 2:
            raise ValueError(
                f"downsample is {downsample} and upsample {upsample} in {dim} dimensions; the samplers work on "
                "two-dimensional fields, so leave them out or use dim=2."
            )
        make_activation = ACTIVATIONS[activation]

        def layer() -> TransformerLayer:
            hidden = ACTIVATIONS[ffn_activation]()
            return TransformerLayer(
                ATTENTIONS[attention](hidden_channels, heads, dim, measure=None, dropout=attention_dropout, eps=eps),
                MLP(
                    (hidden_channels, width, hidden_channels),
                    activation=nn.Sequential(hidden, nn.Dropout(ffn_dropout)) if ffn_dropout else hidden,
                ),
                dropout=dropout,
            )

        lift: nn.Module = ChannelLinear(in_channels + dim, hidden_channels)
        coarse: Sequence[int] | float | None = (downsample,) * dim if isinstance(downsample, int) else downsample
        if coarse is not None:
            lift = DownSampler(
                in_channels + dim, hidden_channels, coarse,
                layout=_one_layout(layouts), dropout=sampler_dropout, activation=make_activation(),
            )  # fmt: skip
        decoded = hidden_channels + dim * decoder_coordinates
        if decoder == "spectral":
            modes = as_modes((n_modes,) * dim if isinstance(n_modes, int) else n_modes)
            if len(modes) != dim:
                raise ValueError(
                    f"n_modes is {n_modes} in {dim} dimensions; give one number for all axes, or one per axis."
                )
            head: nn.Module = SpectralDecoder(
                decoded, out_channels, decoder_channels, modes, n_layers=decoder_layers,
                activation=make_activation(), padding=_padding(decoder_padding, layouts),
            )  # fmt: skip
        else:
            head = ChannelMLP(decoded, out_channels, decoder_channels, decoder_layers + 1, activation=make_activation())
        model = cls(
            lift,
            [layer() for _ in range(n_layers)],
            head,
            pairs,
            layout=layouts,
            measure=measure,
            upsample=UpSampler(
                hidden_channels, layout=_one_layout(layouts), dropout=sampler_dropout, activation=make_activation()
            )
            if upsample is not False
            else None,
            output_shape=None if isinstance(upsample, bool) else tuple(upsample),
            boundary=boundary,
            decoder_coordinates=decoder_coordinates,
            unstructured=decoder == "pointwise" and not samples and boundary is None,
        )
        model.recipe = {
            "model": cls.__name__, "in_channels": in_channels, "out_channels": out_channels,
            "hidden_channels": hidden_channels, "dim": dim, "heads": heads, "n_layers": n_layers, "ffn_channels": width,
            "attention": attention, "decoder": decoder, "decoder_channels": decoder_channels,
            "decoder_layers": decoder_layers, "n_modes": n_modes if isinstance(n_modes, int) else list(n_modes),
            "decoder_padding": decoder_padding, "decoder_coordinates": decoder_coordinates,
            "downsample": list(downsample) if isinstance(downsample, Sequence) else downsample,
            "upsample": upsample if isinstance(upsample, bool) else list(upsample), "layout": list(layouts),
            "boundary": boundary, "extent": [list(pair) for pair in pairs], "measure": measure, "dropout": dropout,
            "ffn_dropout": ffn_dropout, "attention_dropout": attention_dropout, "sampler_dropout": sampler_dropout,
            "activation": activation, "ffn_activation": ffn_activation, "eps": eps,
        }  # fmt: skip
        return model


def _as_extent(extent: Sequence[float] | Sequence[Sequence[float]], dim: int) -> tuple[tuple[float, float], ...]:
    """One pair for all axes, or one per axis."""
    pairs = [extent] * dim if all(isinstance(end, int | float) for end in extent) else extent
    return as_box(pairs, dim)  # type: ignore[arg-type]


def _one_layout(layouts: Sequence[str]) -> str:
    if len(set(layouts)) > 1:
        raise ValueError(f"layout is {tuple(layouts)}; the samplers need the same on both axes.")
    return layouts[0]


def _padding(fraction: float, layouts: Sequence[str]) -> DomainPadding | None:
    if not fraction:
        return None
    return DomainPadding([0.0 if kind == "periodic" else fraction for kind in layouts], layouts, dim=len(layouts))
