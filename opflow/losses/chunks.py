"""Losses that are means over points, chunk by chunk: the gradient of a chunk is taken before the next one is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opflow.batch import Batch

Means = Callable[[Batch], Mapping[str, Tensor]]  # the share of a chunk in each mean


class ChunkedMeans:
    """{name: mean} over the points of a batch; equal to the sum of the chunks' shares, at the memory of one chunk.

    Chunks of some hundred points stay in a core's cache, so that this is faster too. The value and the gradient with respect to the
    parameters are computed together, so that the graph of a chunk can go at once; gradients of gradients are refused.

    Args:
        size: points in a chunk.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"chunk is {size!r}; give a number of points, or None for all at once.")
        self.size = size
        self._known: tuple[tuple[Any, ...], Batch, list[Batch]] | None = None

    def __call__(self, shares: Means, batch: Batch, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The means; differentiable with respect to `parameters`."""
        chunks = self.split(batch)
        names: list[str] = []
        values = _Means.apply(shares, chunks, names, *parameters)
        return dict(zip(names, values.unbind(0), strict=True))

    def split(self, batch: Batch) -> list[Batch]:
        """The chunks of a batch, the very same objects as long as its tensors are."""
        parts = (batch.input, batch.coords, batch.weight, *(batch.parameters or {}).values())
        key = tuple((id(part), part._version) for part in parts if part is not None)
        if self._known is None or self._known[0] != key:
            self._known = (key, batch, _split(batch, self.size))
        return self._known[2]


def _split(batch: Batch, size: int) -> list[Batch]:
    assert batch.coords is not None
    count = batch.coords.shape[-2]

    def part(value: Tensor | None, first: int, length: int) -> Tensor | None:
        if value is None or value.ndim == 0:
            return value
        for axis in (-1, -2):
            if value.ndim >= -axis and value.shape[axis] == count:
                return value.narrow(axis, first, length)
        return value

    chunks = []
    for first in range(0, count, size):
        length = min(size, count - first)
        chunks.append(
            replace(
                batch,
                coords=batch.coords.detach().narrow(-2, first, length),
                weight=part(batch.weight, first, length),
                parameters=None
                if batch.parameters is None
                else {name: part(value, first, length) for name, value in batch.parameters.items()},  # type: ignore[misc]
            )
        )
    return chunks


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Means, chunks: list[Batch], names: list[str], *parameters: Tensor) -> Tensor:
        ctx.shares, ctx.chunks = shares, chunks
        ctx.wanted = [p for p, need in zip(parameters, ctx.needs_input_grad[3:], strict=True) if need]
        values, ctx.gradients = _accumulate(shares, chunks, names, ctx.wanted, None)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        gradients: Sequence[Tensor | None] = ctx.gradients
        if bool((g == g[0]).all()):
            found = iter([None if d is None else g[0] * d for d in gradients])
        else:  # the terms have different weights, which the forward pass could not know
            found = iter(_accumulate(ctx.shares, ctx.chunks, [], ctx.wanted, g)[1])
        return None, None, None, *(next(found) if need else None for need in ctx.needs_input_grad[3:])


def _accumulate(
    shares: Means, chunks: list[Batch], names: list[str], wanted: Sequence[Tensor], weights: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    values: Tensor | None = None
    gradients: list[Tensor | None] = [None] * len(wanted)
    for chunk in chunks:
        with torch.enable_grad():
            terms = shares(chunk)
            stacked = torch.stack(list(terms.values()))
            summed = stacked.sum() if weights is None else stacked @ weights.to(stacked)
        values = stacked.detach() if values is None else values + stacked.detach()
        names[:] = list(terms)
        if wanted:
            for i, d in enumerate(torch.autograd.grad(summed, wanted, allow_unused=True)):
                known = gradients[i]
                gradients[i] = d if known is None else known if d is None else known.add_(d)
    assert values is not None
    return values, gradients
