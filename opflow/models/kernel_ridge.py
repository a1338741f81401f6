"""Kernel ridge regression between principal components of measurements and of fields: the baseline of inverse operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opflow.grid import Grid
from opflow.layers.measurement_mixing import as_kept
from opflow.layers.point_interpolation import interpolate
from opflow.typing import check_sizes

SHAPES = ("matern", "gaussian")
MOST_SAMPLES = 8000  # of the fit, whose work grows with the cube


class KernelRidge(nn.Module):
    """a = exp(m + W k(P y)),  k(s) = sum_i c_i kappa(|s - s_i|)   (Batlle et al. 2024, "Kernel methods are competitive for operator learning").

    P takes all measurements of a sample to their leading principal components, each divided by its deviation to the power `whitening`, W
    has those of the logarithms of the fields (of the fields themselves if `positive` is False), and c minimises the squared error with a
    ridge. No iteration, no seed; the length of the kernel and the ridge are those with the smallest leave-one-out error in
    the fields, which has a closed form.

    P y is not the projection but the estimate of the components under noise, with the Gaussian law that the training set suggests:
    (sum_l U_l' U_l + noise^2 Lambda^-1) s = sum_l U_l' (y_l - m_l), over the measurements that a mask leaves. A projection would hand
    on components far below the noise, or below the difference between two solvers, as if they were known. Fit to measurements with the
    noise that is expected: clean ones let the smallest ridge win, for which noise is then too much.

    It computes in float64 whatever the dtype of the measurements, and stays there when a model is converted around it.

    Built empty by `KernelRidge.build`, then `fit`; what `fit` finds are buffers, which travel in checkpoints.

    >>> y, a = torch.randn(40, 3, 1, 8), torch.rand(40, 1, 9) + 1
    >>> model = KernelRidge.build(3, (8,), 1, Grid(9), components=10, targets=4).fit(y, a)
    >>> model(y[:5]).shape
    torch.Size([5, 1, 9])
    """

    mean: Tensor
    components: Tensor
    gram: Tensor
    deviation: Tensor
    support: Tensor
    coefficients: Tensor
    inverse: Tensor
    target_mean: Tensor
    target_modes: Tensor
    length: Tensor

    def __init__(
        self,
        n_measurements: int,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid,
        *,
        components: int,
        targets: int,
        samples: int,
        kernel: str,
        positive: bool,
        whitening: float,
        noise: float,
    ) -> None:
        super().__init__()
        self.n_measurements, self.sensors, self.in_channels = n_measurements, tuple(sensors), in_channels
        self.grid, self.kernel, self.positive = grid, kernel, positive
        self.whitening, self.noise = whitening, noise
        size, points = in_channels * math.prod(self.sensors), math.prod(grid.shape)
        shapes = {
            "mean": (n_measurements, size), "components": (components, n_measurements, size),
            "gram": (n_measurements, components, components), "deviation": (components,),
            "support": (samples, components), "coefficients": (samples, targets), "inverse": (samples, samples),
            "target_mean": (points,), "target_modes": (targets, points), "length": (),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.recipe: dict[str, object] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelRidge:
        """Follow a move to another device, but stay in float64: in single precision the sum over samples would be lost to cancellation."""
        return super()._apply(lambda t: t.to(fn(t.new_zeros(())).device), recurse)

    @property
    def is_fitted(self) -> bool:
        """Whether `fit`, or a checkpoint, has filled the buffers."""
        return bool(self.length > 0)

    def forward(
        self,
        measurements: Tensor,
        coords: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        held_out: Tensor | None = None,
    ) -> Tensor:
        """measurements (batch, L, channel, *sensors), mask (batch, L) -> fields (batch, 1, *grid), or (batch, points, 1) at coords

        Args:
            held_out: numbers (batch,) of samples of the fit that must not help with their own prediction, -1 for none: what a network
                that is trained on these predictions has to see.
        """
        self._check(measurements)
        kappa = self._kappa(
            torch.cdist(self.scores(measurements, mask), self.support, compute_mode=EXACT) / self.length
        )
        found = kappa @ self.coefficients
        if held_out is not None:
            found = found - self._own_share(kappa, held_out)
        field = self.target_mean + found @ self.target_modes
        field = (field.exp() if self.positive else field).view(-1, 1, *self.grid.shape).to(measurements.dtype)
        return field if coords is None else interpolate(field, self.grid, coords)

    def scores(self, measurements: Tensor, mask: Tensor | None = None) -> Tensor:
        """The scaled principal components (batch, components), estimated from what the mask leaves: those below the noise vanish."""
        y, U = measurements.double().flatten(2), self.components
        kept = as_kept(mask, y)
        precision = self._residual_variance / self.deviation.square()
        if kept is None:
            s = torch.einsum("bld,kld->bk", y - self.mean, U) / (1 + precision)  # the components are orthonormal
        else:
            normal = torch.einsum("bl,lkj->bkj", kept[..., 0].to(y.dtype), self.gram) + torch.diag(precision)
            s = torch.linalg.solve(normal, torch.einsum("bld,kld->bk", torch.where(kept, y - self.mean, 0.0), U))
        return s / self.deviation**self.whitening

    @property
    def _residual_variance(self) -> Tensor:
        # What the components leave unexplained has the size of the last of them, spread over its directions; noise comes on top.
        energy = self.mean.square().sum() + self.deviation.square().sum()
        return self.deviation[-1].square() + self.noise**2 * energy / self.mean.numel()

    def _own_share(self, kappa: Tensor, held_out: Tensor) -> Tensor:
        """What leaving sample i out of the fit takes off: c - c^(-i) = K^-1 e_i c_i / (K^-1)_ii."""
        own = held_out.clamp(min=0)
        column = self.inverse[:, own]  # (samples, batch)
        share = (kappa * column.T).sum(1, keepdim=True) * self.coefficients[own] / self.inverse[own, own][:, None]
        return torch.where((held_out >= 0)[:, None], share, 0.0)

    def _kappa(self, r: Tensor) -> Tensor:
        if self.kernel == "gaussian":
            return torch.exp(-r.square() / 2)
        r = math.sqrt(5) * r
        return (1 + r + r.square() / 3) * torch.exp(-r)  # Matern, nu = 5/2

    @torch.no_grad()
    def fit(self, measurements: Tensor, fields: Tensor) -> KernelRidge:
        """Find components, length, ridge and coefficients.

        Args:
            measurements: (n, L, channel, *sensors), n as the recipe says or, for a fresh model, any.
            fields: (n, 1, *grid), positive if the model is.

        Raises:
            ValueError: shapes that do not fit, too few or too many samples, values that are not finite, or a field that is not positive.
        """
        self._check(measurements)
        n = len(measurements)
        if tuple(fields.shape) != (n, 1, *self.grid.shape):
            raise ValueError(f"fields have shape {tuple(fields.shape)}; expected ({n}, 1, *{self.grid.shape}).")
        if not len(self.deviation) < n <= MOST_SAMPLES:
            raise ValueError(
                f"there are {n} samples; more than the {len(self.deviation)} components and at most {MOST_SAMPLES} are expected."
            )
        for name, values in (("measurements", measurements), ("fields", fields)):
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} hold NaN or infinity; leave these samples out, a fit takes no mask.")
        a = fields.double().flatten(1)
        if self.positive and not bool((a > 0).all()):
            raise ValueError("a field is not positive everywhere; build with positive=False to fit fields of any sign.")
        device = self.mean.device
        mean, modes, deviation = principal_components(measurements.double().flatten(1), len(self.deviation))
        t_mean, t_modes, _ = principal_components(a.log() if self.positive else a, len(self.target_modes))
        self.mean = mean.view(self.mean.shape).to(device)
        self.components = modes.view(self.components.shape).to(device)
        self.gram = torch.einsum(
            "kld,jld->lkj", self.components, self.components
        )  # of each measurement: what a mask leaves is a sum
        self.deviation, self.target_mean, self.target_modes = (
            deviation.to(device),
            t_mean.to(device),
            t_modes.to(device),
        )
        s = self.scores(measurements)
        t = ((a.log() if self.positive else a) - t_mean) @ t_modes.T
        distance = torch.cdist(s, s, compute_mode=EXACT)
        typical = float(distance[~torch.eye(n, dtype=torch.bool, device=s.device)].median())
        best = (math.inf, 0.0, 0.0)
        for factor in LENGTHS:
            K = self._kappa(distance / (factor * typical))
            values, vectors = torch.linalg.eigh(K)
            rotated = vectors.T @ t
            for ridge in RIDGES:
                inverse_values = 1 / (values.clamp(min=0) + ridge * n)
                c = vectors @ (inverse_values[:, None] * rotated)
                left_out = c / (vectors.square() @ inverse_values)[:, None]
                error = float(left_out.square().sum())
                if error < best[0]:
                    best = (error, factor, ridge)
        _, factor, ridge = best
        K = self._kappa(distance / (factor * typical)) + ridge * n * torch.eye(n, dtype=s.dtype, device=s.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(K))
        self.support, self.coefficients = s.to(device), (inverse @ t).to(device)
        self.inverse, self.length = inverse.to(device), mean.new_tensor(factor * typical).to(device)
        if self.recipe is not None:
            self.recipe["samples"] = n
        return self

    def _check(self, measurements: Tensor) -> None:
        expected = (self.n_measurements, self.in_channels, *self.sensors)
        if tuple(measurements.shape[1:]) != expected:
            raise ValueError(
                f"the measurements have shape {tuple(measurements.shape)} but KernelRidge expects (batch, "
                f"{', '.join(map(str, expected))}); fewer measurements are given with a mask."
            )
        if not measurements.is_floating_point():
            raise TypeError(f"the measurements are {measurements.dtype}; convert them to a floating-point dtype.")
        if measurements.device != self.mean.device:
            raise ValueError(
                f"the measurements are on {measurements.device} but KernelRidge is on {self.mean.device}; move one of them."
            )

    @classmethod
    def build(
        cls,
        n_measurements: int,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid | Mapping[str, Any],
        *,
        components: int = 100,
        targets: int = 40,
        samples: int = 0,
        kernel: str = "matern",
        positive: bool = True,
        whitening: float = 0.25,
        noise: float = 0.01,
    ) -> KernelRidge:
        """An empty model from plain values, which `model.recipe` keeps; `fit` fills it.

        Args:
            n_measurements: L.
            sensors: the shape of one measurement's sensors.
            in_channels: of a measurement.
            grid: of the fields, or its `Grid.to_json`.
            components, targets: principal components of measurements and of fields.
            samples: of the fit; 0 before it.
            kernel: "matern" (nu = 5/2) or "gaussian".
            positive: fit the logarithm of the field.
            whitening: 0 keeps the components' own sizes, 1 makes all alike.
            noise: expected, relative to the root mean square of the measurements; the difference between solvers counts as noise.
        """
        grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
        check_sizes(n_measurements=n_measurements, in_channels=in_channels, components=components, targets=targets)
        if kernel not in SHAPES:
            raise ValueError(f"kernel is {kernel!r}; give one of {', '.join(SHAPES)}.")
        if not (0 <= whitening <= 1 and noise >= 0):
            raise ValueError(f"whitening is {whitening} and noise {noise}; give a number in [0, 1] and one >= 0.")
        options = {
            "components": components, "targets": targets, "samples": samples, "kernel": kernel, "positive": positive,
            "whitening": whitening, "noise": noise,
        }  # fmt: skip
        model = cls(n_measurements, sensors, in_channels, grid, **options)  # type: ignore[arg-type]
        model.recipe = {
            "model": cls.__name__, "n_measurements": n_measurements, "sensors": list(sensors), "in_channels": in_channels,
            "grid": grid.to_json(), **options,
        }  # fmt: skip
        return model


# Multiples of the median distance, and ridges per sample, among which leave-one-out errors choose.
LENGTHS = (1.0, 4.0, 16.0, 64.0)
RIDGES = tuple(10.0**-e for e in range(4, 13))
EXACT = "donot_use_mm_for_euclid_dist"  # the fast way loses half the digits of small distances


def principal_components(x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), directions (n, d) and deviations (n,) of rows x (samples, d), by the smaller of the two Gram matrices.

    Directions along which the samples do not differ are orthogonal to nothing and get a deviation of 1e-7 of the largest.
    """
    mean = x.mean(0)
    centred = x - mean
    if len(x) <= x.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0)[:n].clamp(min=0), vectors.flip(1)[:, :n]
        size = values.sqrt()
        floor = 1e-7 * size[0].clamp(min=torch.finfo(x.dtype).tiny)
        modes = (vectors.T @ centred) / torch.maximum(size, floor)[:, None]
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        values, modes = values.flip(0)[:n].clamp(min=0), vectors.flip(1)[:, :n].T
        size = values.sqrt()
        floor = 1e-7 * size[0].clamp(min=torch.finfo(x.dtype).tiny)
    missing = n - len(size)
    if missing > 0:
        size = torch.cat([size, size.new_zeros(missing)])
        modes = torch.cat([modes, modes.new_zeros(missing, x.shape[1])])
    return mean, modes, torch.maximum(size, floor) / math.sqrt(len(x))
