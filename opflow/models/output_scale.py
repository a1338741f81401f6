"""The units of measurements and coefficients inside an inverse operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OutputScale(nn.Module):
    """y -> y / s for measurements and v -> exp(m + d v) for coefficients (m + d v where they may be negative).

    One number each, since a number for every measurement would tie the model to their order, and one for every point to a grid; no
    deviation of a single sample is divided by, so that amplitudes keep what they say. Buffers: they travel in checkpoints.

    >>> scale = OutputScale().fit(torch.full((3, 2, 1, 4), 2.0), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))
    >>> round(float(scale.field(torch.zeros(1))), 6)
    2.0
    """

    size: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, *, positive: bool = True) -> None:
        super().__init__()
        self.positive = positive
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    @torch.no_grad()
    def fit(self, measurements: Tensor, fields: Tensor) -> OutputScale:
        """Take s from measurements (n, L, channel, *sensors), NaN left out, and m, d from fields (n, 1, *grid), both of the training set.

        Raises:
            ValueError: a field that is not finite, or not positive where it should be.
        """
        if not bool(fields.isfinite().all()) or (self.positive and not bool((fields > 0).all())):
            raise ValueError(
                "a field is not finite, or not positive everywhere; build with positive=False for fields of any sign."
            )
        values = measurements[measurements.isfinite()].double()
        t = fields.double().log() if self.positive else fields.double()
        size, deviation = values.square().mean().sqrt(), t.std(correction=0)
        self.size = torch.where(size > 0, size, 1.0).to(self.size)
        self.mean = t.mean().to(self.mean)
        self.deviation = torch.where(deviation > 1e-6 * t.mean().abs(), deviation, 1.0).to(self.deviation)
        return self

    def measurements(self, y: Tensor) -> Tensor:
        """Measurements in units of their typical size."""
        return y / self.size

    def field(self, v: Tensor) -> Tensor:
        """What a network says -> the coefficient, in its physical units."""
        t = self.mean + self.deviation * v
        return t.exp() if self.positive else t

    def raw(self, a: Tensor) -> Tensor:
        """The inverse of `field`."""
        return ((a.log() if self.positive else a) - self.mean) / self.deviation
