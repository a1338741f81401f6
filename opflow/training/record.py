"""What `fit` says about its progress, and where a run continues."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from opflow.training.random_streams import RandomStreams


@dataclass(frozen=True)
class Record:
    """One line of a training log.

    Attributes:
        epoch: the epoch, counted from 1.
        step: optimiser steps done since the beginning of the run.
        loss: the mean of the loss over the steps since the last record.
        terms: the same mean of each term, by name.
        validation: what ``validate`` returned, at the end of an epoch; None otherwise.
        best: True where `validation` is the lowest so far.
        learning_rate: of the first parameter group, in the last step.
        seconds: training time since the beginning of the run, earlier parts of a resumed run included.
        best_validation: the lowest validation so far; None before the first.
        position: batches of this epoch already used.
        epoch_done: True for the record that ends an epoch.

    >>> print(Record(epoch=1, step=8, loss=0.25, terms={"misfit": 0.25}, learning_rate=1e-3, seconds=2.0))
    epoch 1, step 8: loss 0.25, learning rate 0.001, 2.0 s
    """

    epoch: int
    step: int
    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)
    validation: float | None = None
    best: bool = False
    learning_rate: float = math.nan
    seconds: float = 0.0
    best_validation: float | None = None
    position: int = 0
    epoch_done: bool = True
    # The random streams at the beginning of the epoch, with which a plain DataLoader shuffles again in the same order.
    epoch_streams: RandomStreams | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of ``metrics.jsonl``; a number that is not finite becomes "nan", "inf" or "-inf"."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "epoch_streams"}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`."""
        whole = dict(values)
        for name in ("loss", "validation", "learning_rate", "seconds", "best_validation"):
            whole[name] = None if whole[name] is None else float(whole[name])
        whole["terms"] = {name: float(value) for name, value in whole["terms"].items()}
        return Record(**{f.name: whole[f.name] for f in fields(Record) if f.name != "epoch_streams"})

    def __str__(self) -> str:
        parts = [f"loss {self.loss:.4g}"]
        if len(self.terms) > 1:
            parts[0] += " (" + ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items()) + ")"
        if self.validation is not None:
            parts.append(f"validation {self.validation:.4g}" + (" (best)" if self.best else ""))
        parts += [f"learning rate {self.learning_rate:.3g}", f"{self.seconds:.1f} s"]
        return f"epoch {self.epoch}, step {self.step}: " + ", ".join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Start:
    """Where a run continues: what `load_checkpoint` returns and ``fit(start=...)`` takes.

    Attributes:
        path: the checkpoint.
        record: the record it was saved with; None if it was saved without.
        streams: the random streams at the save; `fit` puts them back before its first batch.
        batches: the state of the batches, which `fit` puts back too; None for a plain iterable.
        restored: which parts were loaded: "model", "loss", "optimizer", "scheduler", "batches", "ema".
    """

    path: Path
    record: Record | None
    streams: RandomStreams = field(repr=False)
    batches: Mapping[str, Any] | None = field(default=None, repr=False)
    restored: frozenset[str] = frozenset()
