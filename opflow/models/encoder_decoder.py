"""Convolutional networks from a fixed stack of measurements to a field: the baseline without any operator in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from opflow.grid import Grid
from opflow.layers.measurement_mixing import as_kept, check_measurements
from opflow.layers.point_interpolation import interpolate
from opflow.layers.sensor_encoder import ImageEncoder, SensorEncoder
from opflow.models.inverse_units import InverseUnits
from opflow.typing import check_sizes


class EncoderDecoder(nn.Module):
    """a = D E [y_1, ..., y_L]: convolutions down to a vector, and up to the grid   (InversionNet: Wu and Lin 2019; the "FCNN" of NIO).

    The measurements are the channels of one input, in a fixed order and number; what a mask leaves out is zero. So every measurement has
    weights of its own, and a network has to be trained with masks to be used with them.

    Args:
        encoder: (batch, L channel, *sensors) -> (batch, features).
        decoder: (batch, features) -> (batch, 1, *grid).
        scale: of measurements and fields.

    >>> from opflow import Grid
    >>> import torch
    >>> EncoderDecoder.build(20, (272,), 1, Grid((24, 24)))(torch.zeros(2, 20, 1, 272)).shape
    torch.Size([2, 1, 24, 24])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, scale: InverseUnits, *, grid: Grid) -> None:
        super().__init__()
        self.encoder, self.decoder, self.scale, self.grid = encoder, decoder, scale, grid
        self.recipe: dict[str, object] | None = None

    def forward(self, measurements: Tensor, coords: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """measurements (batch, L, channel, *sensors), mask (batch, L) -> fields (batch, 1, *grid), or (batch, points, 1) at coords"""
        field = self.scale.field(self.decoder(self.encoder(stacked(measurements, mask, self.scale, "EncoderDecoder"))))
        return field if coords is None else interpolate(field, self.grid, coords)

    @classmethod
    def build(
        cls,
        n_measurements: int,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid | Mapping[str, Any],
        *,
        channels: Sequence[int] = (32, 64, 64, 64),
        features: int = 256,
        decoder_channels: Sequence[int] = (64, 48, 32),
        positive: bool = True,
        whitening: float | None = None,
        noise: float = 0.01,
        difference: bool = True,
    ) -> EncoderDecoder:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            n_measurements, sensors, in_channels: L, the shape of one measurement's sensors, and its channels.
            grid: of the field, in one or two dimensions, or its `Grid.to_json`.
            channels: of the encoder's convolutions.
            features: of the vector between.
            decoder_channels: each level of the decoder doubles the grid.
            positive: the field is an exponential.
            whitening, noise: of single measurements, see `InverseUnits`; None whitens by 1/2 where they are small enough.
            difference: take off every measurement its mean over the training set.
        """
        grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
        check_sizes(n_measurements=n_measurements, in_channels=in_channels, features=features)
        units = InverseUnits.build(
            in_channels * math.prod(sensors), positive=positive, whitening=whitening, noise=noise,
            usual=n_measurements if difference else 0,
        )  # fmt: skip
        stack = n_measurements * in_channels
        encoder: nn.Module = (
            ImageEncoder(stack, sensors, features, channels)
            if len(sensors) == 2
            else SensorEncoder(stack, sensors[0], features, channels)
        )
        decoder = GridDecoder(features, grid.shape, decoder_channels)
        model = cls(nn.Sequential(encoder, nn.GELU()), decoder, units, grid=grid)
        model.recipe = {
            "model": cls.__name__, "n_measurements": n_measurements, "sensors": list(sensors), "in_channels": in_channels,
            "grid": grid.to_json(), "channels": list(channels), "features": features,
            "decoder_channels": list(decoder_channels), "positive": positive,
            "whitening": units.whitening, "noise": noise, "difference": difference,
        }  # fmt: skip
        return model


class GridDecoder(nn.Module):
    """A vector to a field: a linear map to a coarse grid, then doublings by linear interpolation and convolutions of 3 points an axis."""

    def __init__(self, features: int, shape: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        if len(shape) not in (1, 2) or not channels:
            raise ValueError(f"the grid is {tuple(shape)}; a decoder makes fields of one or two dimensions.")
        self.shape = tuple(shape)
        self.sizes = [tuple(max(1, math.ceil(n / 2**level)) for n in shape) for level in range(len(channels), -1, -1)]
        conv = nn.Conv2d if len(shape) == 2 else nn.Conv1d
        self.width = channels[0]
        self.linear = nn.Linear(features, channels[0] * math.prod(self.sizes[0]))
        widths = [channels[0], *channels]
        self.convs = nn.ModuleList(conv(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.last = conv(channels[-1], 1, 3, padding=1)
        self.mode = "bilinear" if len(shape) == 2 else "linear"

    def forward(self, z: Tensor) -> Tensor:
        """(batch, features) -> (batch, 1, *grid)"""
        v = F.gelu(self.linear(z)).view(-1, self.width, *self.sizes[0])
        for conv, size in zip(self.convs, self.sizes[1:], strict=True):
            v = F.gelu(conv(F.interpolate(v, size, mode=self.mode, align_corners=True)))
        return self.last(v)


def stacked(measurements: Tensor, mask: Tensor | None, scale: InverseUnits, owner: str) -> Tensor:
    """(batch, L, channel, *sensors) -> (batch, L channel, *sensors) in units of their size, zero where the mask is False."""
    check_measurements(measurements, scale.size, owner)
    kept = as_kept(mask, measurements)
    if kept is None:
        return scale.measurements(measurements).flatten(1, 2)
    zero = measurements.new_zeros(())
    y = scale.measurements(measurements.where(kept, zero))  # what is masked may be NaN
    return y.where(kept, zero).flatten(1, 2)
