"""Mean, deviation and range of every channel, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opflow.batch import Batch
from opflow.data.batches import Batches
from opflow.data.dataset import FieldDataset
from opflow.data.schema import DataError
from opflow.typing import Field


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics over samples and grid points, a number a channel; float64, in the data's units.

    Attributes:
        mean: (channel,).
        std: (channel,), of the population (divided by count).
        min: (channel,).
        max: (channel,).
        count: values a channel.

    >>> ChannelStatistics.of(torch.tensor([[[1.0, 3.0]]])).std
    tensor([1.], dtype=torch.float64)
    """

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    count: int

    @staticmethod
    def of(field: Field, channel_axis: int = 1) -> ChannelStatistics:
        """The statistics of one batch of fields (batch, channel, *grid); of measurements with ``channel_axis=2``."""
        values = field.detach().cpu().double().movedim(channel_axis, 0).flatten(1)
        if values.shape[1] == 0:
            raise DataError(
                f"a field of shape {tuple(field.shape)} holds no values; statistics need at least one sample."
            )
        # Relative to the first value: a constant field gives a deviation of exactly zero, and a large mean costs no digits.
        origin = values[:, :1]
        shifted = values - origin
        centre = shifted.mean(1, keepdim=True)
        std = (shifted - centre).square().mean(1).sqrt()
        return ChannelStatistics((origin + centre)[:, 0], std, values.amin(1), values.amax(1), values.shape[1])

    def merge(self, *others: ChannelStatistics) -> ChannelStatistics:
        """The statistics of all parts together (Chan, Golub and LeVeque 1979), bit for bit the same in any order of the parts."""
        parts = sorted((self, *others), key=lambda part: (part.count, *part.mean.tolist(), *part.std.tolist()))
        channels = {part.mean.shape for part in parts}
        if len(channels) > 1:
            raise DataError(
                f"statistics of {sorted(len(p.mean) for p in parts)} channels cannot be merged; they must agree."
            )
        total = parts[0]
        for part in parts[1:]:
            total = _pair(total, part)
        return total


def _pair(a: ChannelStatistics, b: ChannelStatistics) -> ChannelStatistics:
    count = a.count + b.count
    delta = b.mean - a.mean
    share = b.count / count
    variance = a.std.square() * (1 - share) + b.std.square() * share + delta.square() * (share * (1 - share))
    return ChannelStatistics(
        a.mean + delta * share, variance.sqrt(), torch.minimum(a.min, b.min), torch.maximum(a.max, b.max), count
    )


@dataclass(frozen=True)
class Statistics:
    """The statistics of inputs and targets; None where a data set has none."""

    input: ChannelStatistics | None
    target: ChannelStatistics | None


def channel_statistics(data: FieldDataset | Batches | Iterable[Batch], *, batch_size: int = 64) -> Statistics:
    """The statistics of every input and target channel, in float64; those of measurements are taken over all of them.

    Args:
        data: a data set; or its `Batches`, whose data set is then read, without transform and without moving their
            position; or any iterable of batches of fields, which is consumed.
        batch_size: samples read at a time from a data set.

    Raises:
        DataError: there are no samples.

    >>> from opflow import Grid
    >>> data = FieldDataset.from_arrays(torch.arange(4.0)[:, None].expand(4, 2), None, Grid(2))
    >>> channel_statistics(data).input.mean
    tensor([1.5000], dtype=torch.float64)
    """
    if isinstance(data, Batches):
        data = data.dataset
    axes = {"input": 1, "target": 1}
    if isinstance(data, FieldDataset):
        axes = {"input": 2 if data.measured_input else 1, "target": 2 if data.measured_target else 1}
    batches = _blocks(data, batch_size) if isinstance(data, FieldDataset) else data
    totals: dict[str, ChannelStatistics] = {}
    for batch in batches:
        for name in ("input", "target"):
            field = getattr(batch, name)
            if field is not None and field.shape[0]:
                part = ChannelStatistics.of(field, axes[name])
                totals[name] = _pair(totals[name], part) if name in totals else part
    if not totals:
        raise DataError("there are no fields to take statistics of; give a data set with at least one sample.")
    return Statistics(totals.get("input"), totals.get("target"))


def _blocks(dataset: FieldDataset, size: int) -> Iterator[Batch]:
    for start in range(0, len(dataset), size):
        yield dataset.read(np.arange(start, min(start + size, len(dataset))))
