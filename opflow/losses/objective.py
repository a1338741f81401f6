"""Losses that add: what an optimiser lowers, as named terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from opflow.batch import Batch, Once


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of named scalar terms.

    >>> total({"misfit": torch.tensor(1.0), "residual": torch.tensor(0.5)})
    tensor(1.5000)
    """
    if not isinstance(terms, Mapping):
        raise TypeError(f"the loss returned {type(terms).__name__} but a dict {{name: scalar Tensor}} is expected.")
    if not terms:
        raise ValueError("the loss returned no terms, so there is nothing to minimise; return at least one.")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim != 0:
            what = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"the term {name!r} of the loss is {what} but a scalar Tensor is expected; average it.")
    return torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))


class Objective(nn.Module):
    """A loss: ``loss(model, batch) -> {name: scalar Tensor}``. Losses add, and scale by a number >= 0.

    A subclass states `forward`, where it can `residuals`, and where it knows them `names`. A step may yield one
    `Batch` or a dict of them ("interior", "boundary", ...): ``on`` says which of the dict this loss looks at, and
    `pick` fetches it.

    >>> from opflow.losses.misfit import DataMisfit
    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> loss = DataMisfit(square, on="observations") + 0.1 * DataMisfit(square, name="edge", on="boundary")
    >>> loss.names
    ('misfit', 'edge')
    """

    def __init__(self, *, on: str | None = None) -> None:
        super().__init__()
        self.on = on

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms, where they are known before the first call; empty otherwise."""
        return ()

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The terms, each a scalar."""
        raise NotImplementedError(f"{type(self).__name__} states no forward(model, batch) -> {{name: scalar Tensor}}.")

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """The residual vector r (1-D) for Gauss-Newton, which lowers |r|^2 / 2."""
        raise NotImplementedError(
            f"{type(self).__name__} is no sum of squares, so Gauss-Newton cannot use it; use a first-order optimiser."
        )

    def pick(self, batch: Batch | Mapping[str, Batch]) -> Batch:
        """The `Batch` this loss looks at: the one named `on`, or the whole where `on` is None."""
        if isinstance(batch, Batch):
            if self.on is not None:
                raise ValueError(
                    f"{type(self).__name__} looks at on={self.on!r} but the step has one unnamed Batch; "
                    "yield a dict of batches, or leave on= out."
                )
            return batch
        if self.on is None:
            raise ValueError(
                f"the step has batches {', '.join(batch)}; say with on= which of them {type(self).__name__} uses."
            )
        if self.on not in batch:
            raise ValueError(
                f"the step has batches {', '.join(batch)} but {type(self).__name__} looks at on={self.on!r}."
            )
        return batch[self.on]

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, Objective):
            return Sum(self, other)
        return self if isinstance(other, int | float) and other == 0 else NotImplemented

    __radd__ = __add__  # sum(losses) starts from 0

    def __mul__(self, weight: Any) -> Objective:
        return Scaled(self, weight) if isinstance(weight, int | float) else NotImplemented

    __rmul__ = __mul__


class Sum(Objective):
    """The terms of several losses together. Two terms of one name are refused: the reader of a log could not tell them apart."""

    def __init__(self, *losses: Objective) -> None:
        super().__init__()
        flat = [part for loss in losses for part in (loss.losses if isinstance(loss, Sum) else [loss])]
        self.losses: nn.ModuleList = nn.ModuleList(flat)
        _refuse_repeated(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the losses."""
        return tuple(name for loss in self.losses for name in loss.names)  # type: ignore[union-attr]

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The terms of every loss, merged; a prediction that several of them look at is made once."""
        model = model if isinstance(model, Once) else cast(nn.Module, Once(model))
        pairs = [pair for loss in self.losses for pair in loss(model, batch).items()]
        _refuse_repeated(tuple(name for name, _ in pairs))
        return dict(pairs)

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """The residuals of every loss, one after another."""
        model = model if isinstance(model, Once) else cast(nn.Module, Once(model))
        return torch.cat([loss.residuals(model, batch) for loss in self.losses])  # type: ignore[operator]


class Scaled(Objective):
    """weight * loss: every term times the weight, the residuals times its square root."""

    def __init__(self, loss: Objective, weight: float) -> None:
        super().__init__()
        if isinstance(weight, bool) or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of a loss is {weight}; losses are minimised, so give a finite number >= 0.")
        self.loss = loss
        self.weight = float(weight)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scaled loss."""
        return self.loss.names

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The terms, scaled."""
        return {name: self.weight * term for name, term in self.loss(model, batch).items()}

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """sqrt(weight) r, so that |r|^2 / 2 scales by the weight."""
        return math.sqrt(self.weight) * self.loss.residuals(model, batch)

    def extra_repr(self) -> str:
        """The weight, for print(loss)."""
        return f"weight={self.weight}"


def _refuse_repeated(names: tuple[str, ...]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"two of the added losses are both called {', '.join(map(repr, repeated))}; give one of them another name=, "
            "so that the log can tell them apart."
        )
