"""The neural inverse operator: from measurements, in any number and order, to the coefficient of an equation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.grid import Grid
from opflow.layers.branch_trunk import BranchTrunk
from opflow.layers.coordinates import BoxCoordinates, FourierFeatures, is_symbolic
from opflow.layers.latent_least_squares import LatentLeastSquares
from opflow.layers.measurement_mixing import MeasurementMixing, as_kept, check_measurements
from opflow.layers.mlp import MLP
from opflow.layers.point_interpolation import interpolate
from opflow.layers.sensor_encoder import FlatEncoder, ImageEncoder, SensorEncoder, SideEncoder
from opflow.models.fno import FNO
from opflow.models.inverse_units import InverseUnits
from opflow.models.kernel_ridge import KernelRidge
from opflow.typing import Field, check_sizes

ENCODERS = ("circular", "line", "perceptron", "image", "published")
LIFTINGS = ("trained", "frozen")


class NIO(nn.Module):
    """a = exp(m + d R(f, x)),  f_c(x) = sum_k B_ck(mix_l E(y_l, g_l)) t_k(x)   (Molinaro et al. 2023, "Neural inverse operators", eq. 9).

    E encodes a measurement y_l together with the descriptor g_l of what was done to the domain, the mixing makes one description of
    the set, by means over it and by least squares, B gives the coefficients of several feature channels f_c in the functions t_k of a
    trunk, and R is a Fourier neural operator. The output depends neither on the order of the measurements nor on their number, which
    may be any at any time.

    The published network is the special case of `NIO.published`: no descriptors, one feature channel, the mean alone, and B the identity.
    There the mean is taken after the sum over k, which is the same, and costs L times more.

    Args:
        encoder: E without descriptors, (n, channel, *sensors) -> (n, features).
        embedding: (..., d) -> (..., features), which scales the features and shifts them; None takes no descriptors.
        mixing: (batch, L, features) -> (batch, pooled).
        coefficients: B, (batch, pooled [+ latent]) -> (batch, fields, basis).
        trunk: t, (points, dim) -> (points, 1, basis).
        combine: the sum over k, with an axis of feature channels.
        refine: R, (batch, fields[ + 1], *grid) -> (batch, 1, *grid).
        scale: of measurements and coefficients; `model.scale.fit(measurements, fields)` before training.
        grid: where the output is.
        latent: (batch, L, features) and descriptors -> (batch, latent), a second pooling beside the mixing.
        descriptors: g (L, d) of the usual measurements, taken where a call gives none.
        reconstruction: a model of the measurements whose output, in the units of R, joins f and is added to R's output.
        skip: add the first feature channel to R's output.

    >>> model = NIO.build((272,), 1, Grid((24, 24)), descriptors=torch.eye(20).tolist())
    >>> model(torch.zeros(2, 20, 1, 272)).shape
    torch.Size([2, 1, 24, 24])
    """

    descriptors: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        mixing: MeasurementMixing,
        coefficients: nn.Module,
        trunk: nn.Module,
        *,
        combine: BranchTrunk,
        refine: nn.Module,
        scale: InverseUnits,
        grid: Grid,
        embedding: nn.Module | None = None,
        latent: LatentLeastSquares | None = None,
        descriptors: Tensor | None = None,
        reconstruction: nn.Module | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.embedding, self.mixing, self.coefficients = encoder, embedding, mixing, coefficients
        self.trunk, self.combine, self.refine, self.scale = trunk, combine, refine, scale
        self.grid, self.reconstruction, self.skip, self.latent = grid, reconstruction, skip, latent
        self.register_buffer("descriptors", descriptors)
        self.recipe: dict[str, object] | None = None

    def forward(
        self,
        measurements: Tensor,
        coords: Tensor | None = None,
        *,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
        held_out: Tensor | None = None,
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """measurements (batch, L, channel, *sensors) -> the coefficient (batch, 1, *grid), or (batch, points, 1) at coords

        Args:
            coords: (points, dim) or (batch, points, dim): the output is interpolated there.
            descriptors: (L, d), or (batch or 1, L, d).
            mask: (batch, L), True where measured; what is masked may hold NaN.
            held_out: handed to a reconstruction that takes it, see `KernelRidge`; for training.
            shape: of another grid on the same domain for the output.
        """
        check_measurements(measurements, self.scale.size, "NIO")
        kept = as_kept(mask, measurements)
        if kept is not None:
            measurements = measurements.where(kept, measurements.new_zeros(()))
        g = self._descriptors(descriptors, measurements.shape[1])
        reference = None if descriptors is None else self._reference(descriptors)
        features = self._encoded(self.scale.measurements(measurements, reference), mask)
        if self.embedding is not None:
            gain, shift = self.embedding(g).chunk(2, dim=-1)
            features = features * (1 + gain) + shift
        pooled = self.mixing(features if self.embedding is None else F.gelu(features), mask)
        if self.latent is not None and g is not None:  # before the activation: what is linear in a measurement stays so
            pooled = torch.cat([pooled, self.latent(features, g, mask)], dim=1)
        grid = self.grid if shape is None else self.grid.with_shape(shape)
        fields = self._fields(self.coefficients(pooled), grid)
        raw = fields[:, :1] if self.skip else 0.0
        if self.reconstruction is not None:
            base = self._reconstructed(measurements, mask, held_out, grid)
            raw, fields = raw + base, torch.cat([base, fields], dim=1)
        field = self.scale.field(raw + self.refine(fields))
        return field if coords is None else interpolate(field, grid, coords)

    def _encoded(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """E(y_l) (batch, L, features); what is masked costs nothing and is zero, except in graphs, whose shapes are fixed."""
        flat = y.flatten(0, 1)
        if mask is None or is_symbolic(y):
            return self.encoder(flat).unflatten(0, y.shape[:2])
        kept = mask.flatten()
        encoded = self.encoder(flat[kept])
        return encoded.new_zeros(len(flat), encoded.shape[1]).index_put((kept,), encoded).unflatten(0, y.shape[:2])

    def _reference(self, descriptors: Tensor) -> Tensor | None:
        """What to take off measurements with these descriptors, (L, numbers) or (batch, L, numbers): the usual ones' r between them.

        An exponential kernel interpolates; far from all usual descriptors it falls back to the mean of all r.
        """
        known, r = self.descriptors, self.scale.reference
        if known is None or r is None or not self.scale.usual:
            return None
        distances = torch.cdist(known, known)
        width = distances.mean().clamp(min=torch.finfo(known.dtype).tiny)
        weights = torch.linalg.solve(torch.exp(-distances / width), r - r.mean(0))
        return r.mean(0) + torch.exp(-torch.cdist(descriptors, known) / width) @ weights

    def _fields(self, coefficients: Tensor, grid: Grid) -> Field:
        """f (batch, fields, *grid)"""
        points = grid.cartesian_points(dtype=coefficients.dtype, device=coefficients.device).flatten(0, -2)
        return self.combine(coefficients, self.trunk(points)).mT.unflatten(-1, grid.shape)

    def _reconstructed(self, measurements: Tensor, mask: Tensor | None, held_out: Tensor | None, grid: Grid) -> Field:
        assert self.reconstruction is not None
        extra = {} if held_out is None else {"held_out": held_out}
        base = self.scale.raw(self.reconstruction(measurements, mask=mask, **extra))
        if grid.shape == self.grid.shape:
            return base
        points = grid.points(dtype=base.dtype, device=base.device).flatten(0, -2)
        return interpolate(base, self.grid, points).mT.unflatten(-1, grid.shape)

    def _descriptors(self, given: Tensor | None, L: int) -> Tensor | None:
        if self.embedding is None:
            if given is not None:
                raise ValueError("descriptors were given to a model without; build it with descriptors=(L, d) numbers.")
            return None
        if given is None:
            given = self.descriptors
            if given is None or given.shape[0] != L:
                known = "no" if given is None else f"{given.shape[0]}"
                raise ValueError(
                    f"there are {L} measurements and the model has {known} descriptors of its own; give descriptors=(L, d) that say "
                    "which these are, or all measurements with a mask."
                )
        if given.ndim not in (2, 3) or given.shape[-2] != L:
            raise ValueError(
                f"descriptors have shape {tuple(given.shape)} for {L} measurements; expected (L, d) or (batch, L, d)."
            )
        return given

    @classmethod
    def build(
        cls,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid | Mapping[str, Any],
        hidden_channels: int = 16,
        *,
        encoder: str = "circular",
        encoder_channels: Sequence[int] | None = None,
        descriptors: Sequence[Sequence[float]] | Tensor | None = None,
        features: int = 128,
        pooling: Sequence[str] = ("mean",),
        queries: int = 4,
        latent: int | None = 64,
        latent_rank: int = 16,
        fields: int = 16,
        basis: int = 64,
        mixer: Sequence[int] | None = (256,),
        linear_paths: bool = True,
        trunk: Sequence[int] = (128, 128, 128),
        trunk_features: int | None = 64,
        fourier_scale: float = 1.0,
        n_modes: int | Sequence[int] = 12,
        n_layers: int = 1,
        padding: float = 0.25,
        skip: bool = True,
        positive: bool = True,
        whitening: float | None = None,
        noise: float = 0.01,
        difference: bool = True,
        lifting: str = "trained",
        reconstruction: KernelRidge | Mapping[str, Any] | None = None,
    ) -> NIO:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            sensors: the shape of one measurement's sensors.
            in_channels: of a measurement.
            grid: of the output, or its `Grid.to_json`.
            hidden_channels: of the Fourier layers.
            encoder: "circular" (`SensorEncoder`, sensors around a closed boundary), "line" (the same with two ends), "perceptron"
                (`FlatEncoder`), "image" (`ImageEncoder`, records in time) or "published" (`SideEncoder`).
            encoder_channels: its widths, by default its own; of "published" one number, the share of the published widths in per cent.
            descriptors: (L, d) numbers that tell the usual measurements apart; None for none.
            features: of an encoded measurement.
            pooling, queries: see `MeasurementMixing`.
            latent, latent_rank: see `LatentLeastSquares`, which needs descriptors; None for no pooling but `pooling`.
            fields: feature channels that the trunk makes.
            basis: functions of the trunk.
            mixer: hidden widths from the pooled features to the coefficients; None for the identity, which needs
                the mean alone, one field, and as many features as functions.
            linear_paths: linear maps beside the perceptrons of encoder and mixer, which then correct what is linear in the measurements.
            trunk: hidden widths of the trunk.
            trunk_features: so many random Fourier features of the coordinates go into the trunk; None for the coordinates themselves, from
                which it learns what varies slowly first, and the finest part of a coefficient perhaps never.
            fourier_scale: deviation of their frequencies, in cycles per half of the domain's side.
            n_modes: two-sided, per axis or one number for all.
            n_layers: Fourier layers.
            padding: of axes that are not periodic.
            skip: add the first feature channel to R's output, so that R corrects a field that is linear in the functions of the trunk.
            positive: the coefficient is an exponential.
            whitening, noise: see `InverseUnits`; None whitens by 1/2 where a measurement is small enough.
            difference: take off every measurement the mean of its kind over the training set, which needs descriptors: see `InverseUnits`.
            lifting: "frozen" keeps the first map of the Fourier part as it was drawn: a fault of the published code, for ablations.
            reconstruction: a fitted `KernelRidge`, or its recipe, whose output R corrects.
        """
        grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
        modes = [n_modes] * grid.dim if isinstance(n_modes, int) else list(n_modes)
        check_sizes(
            in_channels=in_channels, hidden_channels=hidden_channels, features=features, fields=fields, basis=basis
        )
        if lifting not in LIFTINGS:
            raise ValueError(f"lifting is {lifting!r}; give one of {', '.join(LIFTINGS)}.")
        table = None if descriptors is None else torch.as_tensor(descriptors, dtype=torch.get_default_dtype())
        if table is not None and (table.ndim != 2 or len(table.unique(dim=0)) != len(table)):
            raise ValueError(
                f"descriptors have shape {tuple(table.shape)} or are the same for two measurements; give (L, d) numbers, all rows distinct."
            )
        mixing = MeasurementMixing(features, pooling, queries=queries)
        least_squares = None
        if table is not None and latent is not None:
            least_squares = LatentLeastSquares(features, table.shape[1], latent=latent, rank=latent_rank)
        pooled = mixing.out_features + (least_squares.latent if least_squares is not None else 0)
        if mixer is None and (fields != 1 or pooled != basis):
            raise ValueError(
                f"mixer=None makes {fields} fields of {basis} functions from {pooled} features; give fields=1, pooling=('mean',) "
                "and features equal to basis, or hidden widths."
            )
        units = InverseUnits.build(
            in_channels * math.prod(sensors), positive=positive, whitening=whitening, noise=noise,
            usual=0 if table is None or not difference else len(table),
        )  # fmt: skip
        widths = None if mixer is None else (pooled, *mixer, fields * basis)
        is_reconstructed = reconstruction is not None
        refine = FNO.build(
            modes, fields + is_reconstructed, 1, hidden_channels, n_layers=n_layers,
            padding=[0.0 if layout == "periodic" else padding for layout in grid.layout],
            layout=grid.layout, lifting_channel_ratio=0, channel_mlp=None,
        )  # fmt: skip
        if lifting == "frozen":
            refine.lift.requires_grad_(False)
        if isinstance(reconstruction, Mapping):
            values = {name: value for name, value in reconstruction.items() if name != "model"}
            reconstruction = KernelRidge.build(**values)
        model = cls(
            _encoder(encoder, in_channels, tuple(sensors), features, encoder_channels, linear_paths),
            mixing,
            nn.Sequential(
                nn.Identity() if widths is None else MLP(widths, skip=linear_paths), nn.Unflatten(-1, (fields, basis))
            ),
            nn.Sequential(
                BoxCoordinates(grid.box),
                *_waves(grid.dim, trunk_features, fourier_scale),
                MLP((trunk_features or grid.dim, *trunk, basis)),
                nn.GELU(),
                nn.Unflatten(-1, (1, basis)),
            ),
            combine=BranchTrunk(fields),
            refine=refine,
            scale=units,
            grid=grid,
            embedding=None if table is None else MLP((table.shape[1], features, 2 * features)),
            latent=least_squares,
            descriptors=table,
            reconstruction=reconstruction,
            skip=skip,
        )
        model.recipe = {
            "model": cls.__name__, "sensors": list(sensors), "in_channels": in_channels, "grid": grid.to_json(),
            "hidden_channels": hidden_channels, "encoder": encoder,
            "encoder_channels": None if encoder_channels is None else list(encoder_channels),
            "descriptors": None if table is None else table.tolist(), "features": features, "pooling": list(mixing.pooling),
            "queries": queries, "latent": latent, "latent_rank": latent_rank, "linear_paths": linear_paths, "fields": fields, "basis": basis, "mixer": None if mixer is None else list(mixer),
            "trunk": list(trunk), "trunk_features": trunk_features, "fourier_scale": fourier_scale, "n_modes": modes, "n_layers": n_layers, "padding": padding, "skip": skip,
            "positive": positive, "whitening": units.whitening, "noise": noise, "difference": difference,
            "lifting": lifting, "reconstruction": reconstruction.recipe if reconstruction is not None else None,
        }  # fmt: skip
        return model

    @classmethod
    def published(
        cls,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid | Mapping[str, Any],
        hidden_channels: int = 64,
        *,
        basis: int = 50,
        width: float = 1.0,
        trunk: Sequence[int] = (256,) * 8,
        n_modes: int | Sequence[int] = 32,
        n_layers: int = 2,
        lifting: str = "frozen",
        positive: bool = False,
    ) -> NIO:
        """The form of the published code: what the improved one is to be compared with.

        One feature channel, the mean over measurements, no descriptors, and a lifting that is never trained; it differs from the code
        in the trunk, which has GELU for LeakyReLU with batch normalisation, and in the padded axes (the code pads at the far ends, too).

        Args:
            hidden_channels, n_modes, n_layers: of the Fourier part; n_modes is two-sided, the code's 16 are 32 here.
            basis: functions of the trunk.
            width: a factor of the encoder's channels.
            trunk: hidden widths.
            lifting: "trained" mends the fault.
        """
        return cls.build(
            sensors, in_channels, grid, hidden_channels, encoder="published", encoder_channels=(round(100 * width),),
            features=basis, pooling=("mean",), fields=1, basis=basis, mixer=None, trunk=trunk, trunk_features=None, n_modes=n_modes,
            n_layers=n_layers, skip=False, positive=positive, whitening=0.0, lifting=lifting,
        )  # fmt: skip


def _waves(dim: int, features: int | None, scale: float) -> list[nn.Module]:
    return [] if features is None else [FourierFeatures(dim, features, scale=scale)]


def _encoder(
    kind: str, in_channels: int, sensors: tuple[int, ...], features: int, channels: Sequence[int] | None, skip: bool
) -> nn.Module:
    if kind not in ENCODERS:
        raise ValueError(f"encoder is {kind!r}; give one of {', '.join(ENCODERS)}.")
    if kind in ("circular", "line", "published") and len(sensors) != 1:
        raise ValueError(f"encoder {kind!r} takes sensors along one axis, but sensors is {sensors}.")
    given = () if channels is None else (channels,)
    if kind == "perceptron":
        return FlatEncoder(in_channels, sensors, features, *given, skip=skip)
    if kind == "image":
        return ImageEncoder(in_channels, sensors, features, *given)
    if kind == "published":
        return SideEncoder(in_channels, sensors[0], features, width=1.0 if channels is None else channels[0] / 100)
    return SensorEncoder(in_channels, sensors[0], features, *given, closed=kind == "circular")
