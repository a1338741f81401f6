"""Training of the networks of the table of inverse problems: equal seconds, a schedule in time, the state chosen on validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.inverse_questions import Case, Question, pieces, seen
from opflow import Batch
from opflow.data import Batches, random_subsets
from opflow.losses import DataMisfit, relative_l1
from opflow.pde import add_noise
from opflow.training import evaluate, fit

MOST_EPOCHS = 1_000_000
VALIDATION_NOISE = 0.01
WARM_UP = 0.02  # of the budget: the learning rate rises


class Budget:
    """A learning rate that follows processor seconds: up along a line, then down along a cosine, to zero when they are spent.

    Processor and not wall seconds, so that a run on a busy machine is the run it would have been on an idle one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seconds: float) -> None:
        self.optimizer, self.seconds, self.elsewhere = optimizer, seconds, 0.0
        self.peak = [group["lr"] for group in optimizer.param_groups]
        self.start = time.process_time()
        self.step()

    @property
    def share(self) -> float:
        """Of the budget that is spent."""
        return (time.process_time() - self.start - self.elsewhere) / self.seconds

    def step(self) -> None:
        """Set the learning rate."""
        t = min(self.share, 1.0)
        factor = min(1.0, (t + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * t)) / 2
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * factor

    def spent(self) -> bool:
        """Whether to stop."""
        return self.share >= 1.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile costs nothing: validation."""
        before = time.process_time()
        yield
        self.elsewhere += time.process_time() - before


def corrupted(settings: Mapping[str, Any], held_out: bool) -> Any:
    """What makes a training batch: noise of a level of its own for each sample, a random subset of its measurements, for each its own."""
    training = settings["training"]
    most, subsets, complete = training["noise"], training.get("subsets", True), training.get("complete", 0.0)

    def transform(batch: Batch, generator: torch.Generator) -> Batch:
        n, L = batch.input.shape[:2]
        level = most * torch.rand(n, generator=generator).square()
        noise = add_noise(batch.input, 1.0, generator) - batch.input
        noisy = batch.input + level.view(n, *[1] * (batch.input.ndim - 1)) * noise
        mask = None
        if subsets:
            mask = random_subsets(n, L, generator) | (torch.rand(n, 1, generator=generator) < complete)
        extra = {"held_out": batch.index} if held_out else None
        noisy = seen(settings, noisy)
        return Batch(noisy, batch.target, parameters=extra, mask=mask, weight=batch.weight, index=batch.index)

    return transform


def train(
    model: nn.Module,
    question: Question,
    settings: Mapping[str, Any],
    seed: int,
    *,
    held_out: bool = False,
    already: float = 0.0,
) -> dict[str, Any]:
    """Train for the seconds of the settings, less those that were `already` spent, and leave the best state by validation in the model.

    Returns:
        {"steps", "epochs", "validation", "fit_seconds", "curve"}
    """
    how = settings["training"]
    batches = Batches(
        question.train,
        how["batch_size"],
        shuffle=True,
        drop_last=True,
        seed=seed,
        transform=corrupted(settings, held_out),
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        how["learning_rate"],
        weight_decay=how.get("weight_decay", 1e-4),
    )
    validation = [
        replace(part, input=seen(settings, part.input))
        for count in settings["counts"]
        for part in pieces(question.measured(question.validation, Case(count, VALIDATION_NOISE)))
    ]
    budget = Budget(optimizer, max(settings["seconds"] - already, 0.05 * settings["seconds"]))
    every = settings["seconds"] / how.get("validations", 20)
    best, curve, due = (math.inf, copy.deepcopy(model.state_dict())), [], every
    last = None
    for record in fit(
        model, DataMisfit(relative_l1), batches, optimizer, epochs=MOST_EPOCHS, scheduler=budget,
        clip_norm=how.get("clip_norm", 1.0), stop=budget.spent, progress=False,
    ):  # fmt: skip
        last = record
        spent = budget.share * settings["seconds"]
        if spent >= due or budget.spent():
            with budget.paused():
                error = evaluate(model, validation, relative_l1)
                curve.append([record.step, round(spent, 1), error])
                due = spent + every
                if error < best[0]:
                    best = error, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])
    assert last is not None
    return {
        "steps": last.step,
        "epochs": last.epoch,
        "validation": best[0],
        "fit_seconds": already + budget.share * budget.seconds,
        "curve": curve,
    }
