"""The distance between a model's prediction and the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from opflow.batch import Batch, apply_model
from opflow.losses.norms import mean_squared_error
from opflow.losses.objective import Objective

Misfit = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class DataMisfit(Objective):
    """misfit(G(a), u, w): the prediction for `batch.input` against `batch.target`.

    Args:
        misfit: ``misfit(prediction, target, weight) -> scalar Tensor``; weight is `batch.weight` and may be None.
        name: the term's name.
        on: which batch of a dict of batches; None for a step that is one `Batch`.

    Raises:
        ValueError: the batch has no target, or the prediction's shape is not the target's (it would broadcast).

    >>> import torch
    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> DataMisfit(square)(nn.Identity(), Batch(input=torch.ones(2, 1, 4), target=torch.zeros(2, 1, 4)))
    {'misfit': tensor(1.)}
    """

    def __init__(self, misfit: Misfit, *, name: str = "misfit", on: str | None = None) -> None:
        super().__init__(on=on)
        if not callable(misfit):
            raise TypeError(
                f"misfit is {type(misfit).__name__} but a function misfit(prediction, target, weight) is expected, "
                "for example relative_l2."
            )
        self.misfit = misfit
        self.name = name

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The misfit under its name."""
        part = self.pick(batch)
        prediction, target = self._compare(model, part)
        return {self.name: self.misfit(prediction, target, part.weight)}

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """sqrt(w) (prediction - target), flattened: |r|^2 / 2 is the weighted least-squares misfit, whatever `misfit` is.

        Those of `mean_squared_error` are divided by the root of their number, so that |r|^2 is the term. The weight must be >= 0
        and broadcast to the target (batch, channel, *grid), or lack its last, channel axis (batch, points, channel).
        """
        part = self.pick(batch)
        prediction, target = self._compare(model, part)
        difference = prediction - target
        if part.weight is not None:
            difference = aligned(part.weight, target).sqrt() * difference
        if self.misfit is mean_squared_error:
            difference = difference / math.sqrt(difference.numel())
        return difference.reshape(-1)

    def _compare(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.target is None:
            raise ValueError(
                f"the batch has no target, which the loss {self.name!r} compares with; give Batch(target=...)."
            )
        prediction = apply_model(model, batch)
        if prediction.shape != batch.target.shape:
            raise ValueError(
                f"the model's output has shape {tuple(prediction.shape)} but the target of the loss {self.name!r} has "
                f"{tuple(batch.target.shape)}; they must be equal, as broadcasting would compare different points."
            )
        return prediction, batch.target

    def extra_repr(self) -> str:
        """The name and the batch, for print(loss)."""
        return f"name={self.name!r}" + (f", on={self.on!r}" if self.on else "")


def aligned(weight: Tensor, target: Tensor) -> Tensor:
    """A weight per point so that it broadcasts to values at the points, with a channel axis at the end or without."""
    for candidate in (weight, weight.unsqueeze(-1)):
        tail = target.shape[target.ndim - candidate.ndim :]
        if candidate.ndim <= target.ndim and all(w in (1, n) for w, n in zip(candidate.shape, tail, strict=True)):
            return candidate
    raise ValueError(
        f"weight has shape {tuple(weight.shape)}, which fits neither the grid nor the points of the target "
        f"{tuple(target.shape)}; give one quadrature weight a point."
    )
