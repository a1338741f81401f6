"""The units of measurements and coefficients inside an inverse operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MOST_WHITENED = 1024  # numbers of a measurement, whose covariance is a matrix of that size


class InverseUnits(nn.Module):
    """y -> W (y - y_0) / s for measurements, and v -> exp(m + d v) for coefficients (m + d v where they may be negative).

    s, m and d are one number each: a number for every measurement would tie the model to their order, one for every point to a
    grid, and a deviation of a single sample would take away what its amplitude says.

    W = V f(Lambda) V^T,   f(lambda) = (lambda + nu^2)^(-w / 2) lambda / (lambda + nu^2)

    partly whitens one measurement, with V Lambda V^T the covariance of y_l over samples, averaged over l, and nu the noise. What
    distinguishes two coefficients is often a small part of what the measurements hold; a network would learn it last or never.
    W is symmetric, so that sensors remain sensors, and what lies below the noise is not raised.

    Buffers: they travel in checkpoints.

    Args:
        numbers: of a measurement, channels times sensors; 0 leaves W out.
        positive: the coefficient is an exponential.
        whitening: w, 0 for the size alone.
        noise: nu relative to the root mean square of the measurements; the difference between solvers counts as noise.

    >>> units = InverseUnits().fit(torch.full((3, 2, 1, 4), 2.0), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))
    >>> round(float(units.field(torch.zeros(1))), 6)
    2.0
    """

    size: Tensor
    mean: Tensor
    deviation: Tensor
    offset: Tensor | None
    whitener: Tensor | None

    def __init__(self, numbers: int = 0, *, positive: bool = True, whitening: float = 0.5, noise: float = 0.01) -> None:
        super().__init__()
        if not (0 <= whitening <= 1 and noise > 0):
            raise ValueError(f"whitening is {whitening} and noise {noise}; give a number in [0, 1] and one above 0.")
        if whitening and numbers > MOST_WHITENED:
            raise ValueError(
                f"a measurement has {numbers} numbers; at most {MOST_WHITENED} are whitened: give whitening=0."
            )
        self.positive, self.whitening, self.noise = positive, whitening, noise
        is_whitened = numbers > 0 and whitening > 0
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("offset", torch.zeros(numbers) if is_whitened else None)
        self.register_buffer("whitener", torch.eye(numbers) if is_whitened else None)

    @classmethod
    def build(cls, numbers: int, *, positive: bool, whitening: float | None, noise: float = 0.01) -> InverseUnits:
        """With whitening None: by 1/2 where a measurement is small enough, else by 0."""
        if whitening is None:
            whitening = 0.5 if numbers <= MOST_WHITENED else 0.0
        return cls(numbers, positive=positive, whitening=whitening, noise=noise)

    @torch.no_grad()
    def fit(self, measurements: Tensor, fields: Tensor) -> InverseUnits:
        """Take s, y_0 and W from measurements (n, L, channel, *sensors) of which those with NaN are left out, and m, d from fields
        (n, 1, *grid), both of the training set.

        Raises:
            ValueError: a field that is not finite, or not positive where it should be, or no measurement that is.
        """
        if not bool(fields.isfinite().all()) or (self.positive and not bool((fields > 0).all())):
            raise ValueError(
                "a field is not finite, or not positive everywhere; build with positive=False for fields of any sign."
            )
        y = measurements.double().flatten(2)
        kept = y.isfinite().all(-1)
        if not bool(kept.any()):
            raise ValueError("every measurement holds NaN or infinity; there is nothing to take units from.")
        t = fields.double().log() if self.positive else fields.double()
        deviation = t.std(correction=0)
        if self.whitener is not None and self.offset is not None:
            self.offset = y[kept].mean(0).to(self.offset)
            self.whitener = self._whitener(y, kept).to(self.whitener)
            size = ((y[kept] - self.offset.double()) @ self.whitener.double()).square().mean().sqrt()
        else:
            size = y[kept].square().mean().sqrt()
        self.size = torch.where(size > 0, size, 1.0).to(self.size)
        self.mean = t.mean().to(self.mean)
        self.deviation = torch.where(deviation > 1e-6 * t.mean().abs(), deviation, 1.0).to(self.deviation)
        return self

    def _whitener(self, y: Tensor, kept: Tensor) -> Tensor:
        zeros = torch.where(kept[..., None], y, 0.0)
        mean = zeros.sum(0) / kept.sum(0).clamp(min=1)[:, None]  # of each measurement over the samples
        centred = torch.where(kept[..., None], y - mean, 0.0).flatten(0, 1)
        values, V = torch.linalg.eigh(centred.T @ centred / kept.sum())
        values = values.clamp(min=0)
        floor = values + self.noise**2 * y[kept].square().mean().clamp(min=torch.finfo(y.dtype).tiny)
        return (V * (floor ** (-self.whitening / 2) * values / floor)) @ V.T

    def measurements(self, y: Tensor) -> Tensor:
        """Measurements (batch, L, channel, *sensors), whitened and in units of their typical size."""
        if self.whitener is None or self.offset is None:
            return y / self.size
        if math.prod(y.shape[2:]) != len(self.offset):
            raise ValueError(
                f"a measurement has the shape {tuple(y.shape[2:])} but the model expects {len(self.offset)} numbers of it: another layout "
                "of sensors needs a model of its own, or interpolation to this one."
            )
        return ((y.flatten(2) - self.offset) @ (self.whitener / self.size)).unflatten(2, y.shape[2:])

    def field(self, v: Tensor) -> Tensor:
        """What a network says -> the coefficient, in its physical units."""
        t = self.mean + self.deviation * v
        return t.exp() if self.positive else t

    def raw(self, a: Tensor) -> Tensor:
        """The inverse of `field`."""
        return ((a.log() if self.positive else a) - self.mean) / self.deviation
