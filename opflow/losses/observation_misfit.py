"""The distance between data and what they observe of a solution: its derivatives, or products of its components."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit, Misfit
from opflow.losses.norms import mean_squared_error
from opflow.losses.residual import PDEResidual
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.typing import Derivatives


class ObservationMisfit(DataMisfit):
    """misfit(B(u), d): what is observed of u at the sensors, against the data.

    Where data are not values of the model's unknowns: velocities of a stream function, a flux, a strain. `DataMisfit` is the case
    B(u) = u.

    Args:
        observe: B, ``observe(u) -> {name: (points,)}`` from the same `Derivatives` that an equation gets, or one tensor; the
            names are in the order of the channels of ``batch.target`` (points, channel).
        derivatives: with the names of coordinates and unknowns.
        misfit: ``misfit(prediction, target, weight) -> scalar Tensor``.
        name, on: as of `DataMisfit`.

    Raises:
        ValueError: the batch has no coordinates or no target, or another number of channels than is observed.

    >>> slope = ObservationMisfit(lambda u: {"slope": u.d("x")}, AutogradDerivatives(("x",)))
    >>> slope(nn.Linear(1, 1), Batch(coords=torch.ones(3, 1), target=torch.zeros(3, 1)))["misfit"].shape
    torch.Size([])
    """

    def __init__(
        self,
        observe: Callable[[Derivatives], Tensor | Mapping[str, Tensor]],
        derivatives: AutogradDerivatives,
        *,
        misfit: Misfit = mean_squared_error,
        name: str = "misfit",
        on: str | None = None,
    ) -> None:
        super().__init__(misfit, name=name, on=on)
        if not isinstance(derivatives, AutogradDerivatives):
            raise TypeError(
                f"derivatives is {type(derivatives).__name__}; sensors are points, so give AutogradDerivatives(...)."
            )
        self.observed = PDEResidual(lambda u, a: observe(u), derivatives)

    def _compare(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.coords is None or batch.target is None:
            raise ValueError(
                f"the batch of {self.name!r} has no {'coords' if batch.coords is None else 'target'}; give "
                "Batch(coords=(points, dim), target=(points, channel))."
            )
        found = self.observed.equations(model, Batch(input=batch.input, coords=batch.coords)).values()
        prediction = torch.stack([v.squeeze(-1) if v.ndim == batch.target.ndim else v for v in found], dim=-1)
        if prediction.shape != batch.target.shape:
            raise ValueError(
                f"{self.name!r} observes {tuple(prediction.shape)}, (points, channel), but the target has {tuple(batch.target.shape)}."
            )
        return prediction, batch.target
