"""DeepONet for measurements: all of them, in a fixed order, are the input of its branch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from opflow.grid import Grid
from opflow.layers.branch_trunk import BranchTrunk
from opflow.layers.coordinates import BoxCoordinates, FourierFeatures
from opflow.layers.mlp import MLP
from opflow.models.encoder_decoder import stacked
from opflow.models.inverse_units import InverseUnits
from opflow.typing import check_sizes


class StackedDeepONet(nn.Module):
    """a(x) = exp(m + d (sum_k b_k(y_1, ..., y_L) t_k(x) + b_0)): the DeepONet baseline of NIO   (Molinaro et al. 2023, section 4).

    The measurements are one input in a fixed order and number; what a mask leaves out is zero, so the network has to be trained with
    masks to be used with them. The output can be asked for at any coordinates.

    Args:
        branch: (batch, L channel sensors) -> (batch, basis).
        trunk: (points, dim) -> (points, basis).
        combine: the sum.
        scale: of measurements and fields.
        grid: where the field is given without coordinates.

    >>> import torch
    >>> StackedDeepONet.build(20, (272,), 1, Grid((24, 24)))(torch.zeros(2, 20, 1, 272)).shape
    torch.Size([2, 1, 24, 24])
    """

    def __init__(
        self, branch: nn.Module, trunk: nn.Module, combine: BranchTrunk, scale: InverseUnits, *, grid: Grid
    ) -> None:
        super().__init__()
        self.branch, self.trunk, self.combine, self.scale, self.grid = branch, trunk, combine, scale, grid
        self.recipe: dict[str, object] | None = None

    def forward(self, measurements: Tensor, coords: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """measurements (batch, L, channel, *sensors), mask (batch, L) -> fields (batch, 1, *grid), or (batch, points, 1) at coords"""
        y = stacked(measurements, mask, self.scale, "StackedDeepONet").flatten(1)
        points = self.grid.points(dtype=y.dtype, device=y.device).flatten(0, -2) if coords is None else coords
        field = self.scale.field(self.combine(self.branch(y), self.trunk(points)))
        return field[..., None] if coords is not None else field.view(-1, 1, *self.grid.shape)

    @classmethod
    def build(
        cls,
        n_measurements: int,
        sensors: Sequence[int],
        in_channels: int,
        grid: Grid | Mapping[str, Any],
        *,
        basis: int = 128,
        branch: Sequence[int] = (256, 256),
        trunk: Sequence[int] = (128, 128, 128),
        trunk_features: int | None = None,
        fourier_scale: float = 1.0,
        positive: bool = True,
        whitening: float | None = None,
        noise: float = 0.01,
        difference: bool = True,
    ) -> StackedDeepONet:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            n_measurements, sensors, in_channels: L, the shape of one measurement's sensors, and its channels.
            grid: of the field, or its `Grid.to_json`.
            basis: how many products are summed.
            branch, trunk: hidden widths.
            trunk_features, fourier_scale: as of `NIO.build`.
            positive: the field is an exponential.
            whitening, noise: of single measurements, see `InverseUnits`; None whitens by 1/2 where they are small enough.
            difference: take off every measurement its mean over the training set.
        """
        grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
        check_sizes(n_measurements=n_measurements, in_channels=in_channels, basis=basis)
        units = InverseUnits.build(
            in_channels * math.prod(sensors), positive=positive, whitening=whitening, noise=noise,
            usual=n_measurements if difference else 0,
        )  # fmt: skip
        size = n_measurements * in_channels * math.prod(sensors)
        model = cls(
            MLP((size, *branch, basis)),
            nn.Sequential(
                BoxCoordinates(grid.extent),
                *([] if trunk_features is None else [FourierFeatures(grid.dim, trunk_features, scale=fourier_scale)]),
                MLP((trunk_features or grid.dim, *trunk, basis)),
                nn.GELU(),
            ),
            BranchTrunk(),
            units,
            grid=grid,
        )
        model.recipe = {
            "model": cls.__name__, "n_measurements": n_measurements, "sensors": list(sensors), "in_channels": in_channels,
            "grid": grid.to_json(), "basis": basis, "branch": list(branch), "trunk": list(trunk),
            "trunk_features": trunk_features, "fourier_scale": fourier_scale, "positive": positive,
            "whitening": units.whitening, "noise": noise, "difference": difference,
        }  # fmt: skip
        return model
