"""What the rows of the accuracy table learn: which fields of a data set go in and which come out, and how a batch is prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opflow import Batch
from opflow.data import FieldDataset, Statistics, channel_statistics

Transform = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True)
class Task:
    """One of `TASKS` with a row's settings: its data sets, and what happens to their batches."""

    settings: Mapping[str, Any]
    data: Path

    def dataset(self, split: str) -> FieldDataset:
        """Input and target of this split, in memory."""
        return FieldDataset(self.data / self.settings["data"] / split, stride=self.stride).in_memory()

    @property
    def stride(self) -> Any:
        """Of the points that are kept."""
        return self.settings.get("stride", 1)

    def statistics(self, training: FieldDataset) -> Statistics:
        """Of what goes in and what comes out."""
        return channel_statistics(training)

    def prepare(self, training: FieldDataset) -> Transform | None:
        """What makes a batch of the data set one that the model learns from."""
        return None


class Fields(Task):
    """Input to target, on one grid."""


class Points(Task):
    """A function at sensors to values at the nodes of (0, 1): (batch, channel, n) -> (batch, n, channel)."""

    def prepare(self, training: FieldDataset) -> Transform:
        """Coordinates beside the input, the target by points."""

        def transform(batch: Batch, generator: torch.Generator) -> Batch:
            n = batch.target.shape[-1]
            coords = torch.linspace(0, 1, n, dtype=batch.target.dtype)[:, None]
            return Batch(input=batch.input, target=batch.target.mT, coords=coords, index=batch.index)

        return transform


class Inverse(Task):
    """The problem's unknown, with noise of `noise` times its root mean square, to its input at every `target_stride`-th point."""

    def dataset(self, split: str) -> FieldDataset:
        """The problem's target as the input."""
        forward = FieldDataset(self.data / self.settings["data"] / split, stride=self.stride)
        return FieldDataset(
            forward.source, inputs=forward.target_names, targets=forward.input_names, stride=self.stride
        ).in_memory()

    def prepare(self, training: FieldDataset) -> Transform:
        """Fresh noise for every batch."""
        statistics = channel_statistics(training).input
        rms = float((statistics.mean**2 + statistics.std**2).sqrt())
        level, step = self.settings["noise"], self.settings["target_stride"]
        weight = training.grid.subsampled(step).quadrature_weights(dtype=training.dtype)

        def transform(batch: Batch, generator: torch.Generator) -> Batch:
            error = torch.randn(batch.input.shape, generator=generator, dtype=batch.input.dtype)
            target = training.grid.subsample(batch.target, step)
            return Batch(batch.input + level * rms * error, target, weight=weight, index=batch.index)

        return transform


class Forecast(Task):
    """The first `window` frames of a trajectory to those that follow."""

    def dataset(self, split: str) -> FieldDataset:
        """All frames, as the target."""
        return FieldDataset(self.data / self.settings["data"] / split, inputs=(), stride=self.stride).in_memory()

    @property
    def stride(self) -> Any:
        """Of space; every frame is kept."""
        step = self.settings.get("stride", 1)
        return (1, step, step)

    def statistics(self, training: FieldDataset) -> Statistics:
        """One and the same quantity goes in and comes out."""
        target = channel_statistics(training).target
        return Statistics(target, target)

    def prepare(self, training: FieldDataset) -> Transform:
        """Cut in two at the window."""
        window, frames = self.settings["window"], self.settings["frames"]

        def transform(batch: Batch, generator: torch.Generator) -> Batch:
            return Batch(batch.target[:, :, :window], batch.target[:, :, window:frames], index=batch.index)

        return transform


TASKS = {"fields": Fields, "points": Points, "inverse": Inverse, "forecast": Forecast}


# --- symmetries ----------------------------------------------------------------------------------------------------------


def _square(batch: Batch, generator: torch.Generator) -> Batch:
    """One of the square's eight symmetries, under which the law of the media and the equation are invariant."""
    flip_x, flip_y, swap = torch.randint(2, (3,), generator=generator).tolist()

    def turn(field: Tensor) -> Tensor:
        field = field.flip([axis for axis, flip in ((2, flip_x), (3, flip_y)) if flip])
        return field.transpose(2, 3) if swap else field

    return Batch(turn(batch.input), turn(batch.target), weight=batch.weight, index=batch.index)


def _circle(batch: Batch, generator: torch.Generator) -> Batch:
    """A shift along the circle, and u(x) -> -u(-x), under which Burgers' equation and the law of its initial values are invariant."""
    shift = int(torch.randint(batch.input.shape[-1], (), generator=generator))
    reflect = bool(torch.randint(2, (), generator=generator))

    def turn(field: Tensor) -> Tensor:
        field = field.roll(shift, -1)
        return -field.flip(-1) if reflect else field

    return Batch(turn(batch.input), turn(batch.target), weight=batch.weight, index=batch.index)


SYMMETRIES: dict[str, Transform | None] = {"none": None, "square": _square, "circle": _circle}


def chained(first: Transform | None, second: Transform | None) -> Transform | None:
    """One after the other."""
    if first is None or second is None:
        return first or second
    return lambda batch, generator: second(first(batch, generator), generator)
