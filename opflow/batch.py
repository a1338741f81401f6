"""What a model is trained on: one batch of inputs, targets and what belongs to them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass
class Batch:
    """One batch, every part optional.

    Attributes:
        input: fields (batch, channel, *grid), or measurements.
        target: fields (batch, channel, *grid) or point values (batch, points, channel).
        coords: coordinates (points, dim), or (batch, points, dim).
        parameters: named parameters of the equation, each (batch, ...).
        mask: True where a measurement or a point counts.
        weight: quadrature weights, broadcastable to the target's grid or points.
        index: the samples' numbers in their data set (batch,), named when training has to stop.

    >>> Batch(input=torch.zeros(2, 1, 8)).batch_size
    2
    """

    input: Tensor | None = None
    target: Tensor | None = None
    coords: Tensor | None = None
    parameters: Mapping[str, Tensor] | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None
    index: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """The number of samples."""
        for part in (self.input, self.target, self.index):
            if part is not None:
                return part.shape[0]
        raise ValueError("this batch has neither input, target nor index, so its size is unknown.")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Move every part to a device; `dtype` converts the floating-point parts only."""

        def move(part: Any) -> Any:
            if isinstance(part, Mapping):
                return {name: move(value) for name, value in part.items()}
            if isinstance(part, Tensor):
                return part.to(device=device, dtype=dtype if part.is_floating_point() else None)
            return part

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


class Once:
    """A model that is called once for the same arguments and then remembers: several losses may look at one prediction.

    Lives as long as one evaluation of a loss. Arguments are the same if they are the same objects.

    >>> model = Once(nn.Dropout())
    >>> x = torch.ones(100)
    >>> model(x) is model(x), model(x) is model(x.clone())
    (True, False)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the model says."""
        key = (*map(id, arguments), *((name, id(value)) for name, value in sorted(named.items())))
        if key not in self._known:  # the arguments are kept too, so that no other object takes their place
            self._known[key] = (self.model(*arguments, **named), (arguments, named))
        return self._known[key][0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model inside DistributedDataParallel, DataParallel, torch.compile and `Once`."""
    while True:
        if isinstance(model, Once):
            model = model.model
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def apply_model(model: nn.Module, batch: Batch) -> Tensor:
    """Call `model` with the non-None of (input, coords), then by name with what its forward declares of the rest.

    That is ``parameters`` (the whole mapping), ``mask``, and each entry of the batch's parameters, for example ``descriptors``.
    """
    positional = [part for part in (batch.input, batch.coords) if part is not None]
    optional = {**(batch.parameters or {}), "parameters": batch.parameters, "mask": batch.mask}
    if all(part is None for part in optional.values()):
        return model(*positional)
    inner = unwrapped(model)
    inner = inner.module if isinstance(inner, AveragedModel) else inner
    # The first names take the positional parts; an entry that happens to bear such a name is not that part.
    declared = [
        name
        for name, parameter in list(inspect.signature(inner.forward).parameters.items())[len(positional) :]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return model(
        *positional,
        **{name: part for name, part in optional.items() if part is not None and name in declared},
    )
