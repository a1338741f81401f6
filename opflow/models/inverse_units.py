"""The units of measurements and coefficients inside an inverse operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MOST_WHITENED = 1024  # numbers of a measurement, whose covariance is a matrix of that size


class InverseUnits(nn.Module):
    """y_l -> W (y_l - r_l) / s for measurements, and v -> exp(m + d v) for coefficients (m + d v where they may be negative).

    s, m and d are one number each: a deviation of every measurement would tie the model to their order, one of every point to a
    grid, and a deviation of a single sample would take away what its amplitude says.

    r_l is the mean of measurement l over the samples where the measurements are the same ones in every sample, so that networks see
    the difference from a mean domain, as in difference imaging: most of a measurement is what any domain answers to the same
    excitation. Of measurements without an identity it is the mean of all of them where these are whitened, and zero else.

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
        usual: L, how many measurements there usually are, of each of which r_l is kept; 0 keeps one for all.

    >>> units = InverseUnits().fit(torch.full((3, 2, 1, 4), 2.0), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))
    >>> round(float(units.field(torch.zeros(1))), 6)
    2.0
    """

    size: Tensor
    mean: Tensor
    deviation: Tensor
    reference: Tensor | None
    whitener: Tensor | None

    def __init__(
        self, numbers: int = 0, *, positive: bool = True, whitening: float = 0.5, noise: float = 0.01, usual: int = 0
    ) -> None:
        super().__init__()
        if not (0 <= whitening <= 1 and noise > 0):
            raise ValueError(f"whitening is {whitening} and noise {noise}; give a number in [0, 1] and one above 0.")
        if whitening and numbers > MOST_WHITENED:
            raise ValueError(
                f"a measurement has {numbers} numbers; at most {MOST_WHITENED} are whitened: give whitening=0."
            )
        if usual < 0 or (usual and numbers < 1):
            raise ValueError(
                f"usual is {usual} for measurements of {numbers} numbers; give how many numbers they have."
            )
        self.positive, self.whitening, self.noise, self.usual = positive, whitening, noise, usual
        is_whitened = numbers > 0 and whitening > 0
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        has_reference = is_whitened or usual > 0
        self.register_buffer("reference", torch.zeros(max(usual, 1), numbers) if has_reference else None)
        self.register_buffer("whitener", torch.eye(numbers) if is_whitened else None)

    @classmethod
    def build(
        cls, numbers: int, *, positive: bool, whitening: float | None, noise: float = 0.01, usual: int = 0
    ) -> InverseUnits:
        """With whitening None: by 1/2 where a measurement is small enough, else by 0."""
        if whitening is None:
            whitening = 0.5 if numbers <= MOST_WHITENED else 0.0
        return cls(numbers, positive=positive, whitening=whitening, noise=noise, usual=usual)

    @torch.no_grad()
    def fit(self, measurements: Tensor, fields: Tensor) -> InverseUnits:
        """Take s, r and W from measurements (n, L, channel, *sensors) of which those with NaN are left out, and m, d from fields
        (n, 1, *grid), both of the training set.

        Raises:
            ValueError: a field that is not finite, or not positive where it should be, or no measurement that is finite, or measurements
                that are not the usual ones.
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
        if self.usual and y.shape[1] != self.usual:
            raise ValueError(
                f"the training set has {y.shape[1]} measurements of each sample, but the model was built for {self.usual}; build it for those, "
                "or with difference=False."
            )
        if self.reference is not None:
            zeros, counts = torch.where(kept[..., None], y, 0.0), kept.sum(0)
            sums, counts = (zeros.sum(0), counts) if self.usual else (zeros.sum((0, 1))[None], counts.sum()[None])
            self.reference = (sums / counts.clamp(min=1)[:, None]).to(self.reference)
        if self.whitener is not None:
            self.whitener = self._whitener(y, kept).to(self.whitener)
        centred = y if self.reference is None else y - self.reference.double()
        whitened = centred if self.whitener is None else centred @ self.whitener.double()
        size = whitened[kept].square().mean().sqrt()
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

    def measurements(self, y: Tensor, reference: Tensor | None = None) -> Tensor:
        """Measurements (batch, L, channel, *sensors), whitened and in units of their typical size.

        Args:
            reference: r (L, numbers) or (batch, L, numbers) of measurements that are not the usual ones.
        """
        if self.reference is None:
            return y / self.size
        if math.prod(y.shape[2:]) != self.reference.shape[1]:
            raise ValueError(
                f"a measurement has the shape {tuple(y.shape[2:])} but the model expects {self.reference.shape[1]} numbers of it: another "
                "layout of sensors needs a model of its own, or interpolation to this one."
            )
        if reference is None:
            reference = self.reference
            if self.usual and y.shape[1] != self.usual:
                raise ValueError(
                    f"there are {y.shape[1]} measurements and the model knows {self.usual}; give all of them with a mask."
                )
        centred = y.flatten(2) - reference
        whitened = centred / self.size if self.whitener is None else centred @ (self.whitener / self.size)
        return whitened.unflatten(2, y.shape[2:])

    def field(self, v: Tensor) -> Tensor:
        """What a network says -> the coefficient, in its physical units."""
        t = self.mean + self.deviation * v
        return t.exp() if self.positive else t

    def raw(self, a: Tensor) -> Tensor:
        """The inverse of `field`."""
        return ((a.log() if self.positive else a) - self.mean) / self.deviation
