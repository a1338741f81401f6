"""How far one step along a network's direction goes: the loss of the deep conjugate direction method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from opflow.batch import Batch, apply_model, unwrapped
from opflow.losses.objective import Objective
from opflow.solvers.linear_system import dot

NORMS = ("residual", "energy")


class DirectionLoss(Objective):
    """What the best step along d = N(r) leaves of r, or of the error:   alpha = d.r / d.A d,

    - "residual": |r - alpha A d|^2 / |r|^2, the published loss, which needs no solution   (Kaneda et al. 2023)
    - "energy": 1 - (d.r)^2 / ((d.A d) (r.x)) with A x = r: the energy of the error after the step over that before, in [0, 1]

    Averaged over the batch. Neither changes if d is multiplied by a number, -1 included: a network may well learn -A^-1, and then
    d.r < 0. An exact line search takes it as it is, with alpha < 0. Who uses d otherwise looks at the sign of d.r first.
    A direction with d.A d <= 0, zero among them, counts as no step: the loss is 1.

    The batch's input is r (batch, 1, *grid), of norm 1 for networks that are not homogeneous, and for "energy" its target is x.
    A model with `setup(A)` is told the operator before it is called.

    Args:
        operator: A, with `apply(x)` for x (batch, *grid) and a `dtype`, in which the loss is computed; or a function of the batch that
            returns one, where operators differ from batch to batch.
        norm: "residual" or "energy".

    Raises:
        ValueError: the batch has no input, no target for "energy", or the model changes the shape.

    >>> class Twice:
    ...     dtype = torch.float32
    ...     def apply(self, x):
    ...         return 2 * x
    >>> loss = DirectionLoss(Twice())(nn.Identity(), Batch(input=torch.ones(3, 1, 4, 4)))
    >>> float(loss["direction"])  # A is a multiple of the identity: one step solves
    0.0
    """

    def __init__(
        self,
        operator: Any | Callable[[Batch], Any],
        norm: str = "residual",
        *,
        name: str = "direction",
        on: str | None = None,
    ) -> None:
        super().__init__(on=on)
        if not hasattr(operator, "apply") and not callable(operator):
            raise TypeError(
                f"operator is a {type(operator).__name__}; give a linear operator with apply(x), or a function batch -> operator."
            )
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; give one of {', '.join(map(repr, NORMS))}.")
        self.operator, self.norm, self.name = operator, norm, name

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The loss under its name."""
        part = self.pick(batch)
        A, r, d = self._step(model, part)
        if self.norm == "residual":
            return {self.name: self._left(A, r, d).square().flatten(1).sum(1).mean()}
        if part.target is None:
            raise ValueError(
                "the energy of the error needs x with A x = r; give it as Batch(target=x), or use norm='residual'."
            )
        x = part.target[:, 0].to(A.dtype)
        along, curvature = dot(d, r), dot(d, A.apply(d))
        gain = along.square() * _reciprocal(curvature) / dot(r, x)
        return {self.name: (1 - gain).mean()}

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """(r - alpha A d) / |r|, flattened, for norm="residual"."""
        if self.norm != "residual":
            return super().residuals(model, batch)
        return self._left(*self._step(model, self.pick(batch))).reshape(-1)

    def _step(self, model: nn.Module, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        if batch.input is None or batch.input.ndim < 3 or batch.input.shape[1] != 1:
            shape = None if batch.input is None else tuple(batch.input.shape)
            raise ValueError(f"the batch's input has shape {shape}; give residuals (batch, 1, *grid).")
        A: Any = self.operator if hasattr(self.operator, "apply") else self.operator(batch)
        inner = unwrapped(model)
        inner = inner.module if isinstance(inner, AveragedModel) else inner
        read: Any = getattr(inner, "setup", None)
        if read is not None:
            read(A)
        d = apply_model(model, Batch(input=batch.input))
        if d.shape != batch.input.shape:
            raise ValueError(
                f"the model made {tuple(d.shape)} of residuals {tuple(batch.input.shape)}; a direction has the residual's shape."
            )
        return A, batch.input[:, 0].to(A.dtype), d[:, 0].to(A.dtype)

    def _left(self, A: Any, r: Tensor, d: Tensor) -> Tensor:
        Ad = A.apply(d)
        alpha = dot(d, r) * _reciprocal(dot(d, Ad))
        shape = (-1, *[1] * (r.ndim - 1))
        return (r - alpha.view(shape) * Ad) / dot(r, r).sqrt().view(shape)

    def extra_repr(self) -> str:
        """The norm, for print(loss)."""
        return f"norm={self.norm!r}"


def _reciprocal(curvature: Tensor) -> Tensor:
    """1 / curvature, and 0 where there is none; without NaN in the gradient."""
    positive = curvature > 0
    return torch.where(positive, 1 / torch.where(positive, curvature, 1.0), 0.0)
