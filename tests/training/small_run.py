"""A small training run with everything that has a state: dropout, AdamW, OneCycleLR, shuffled batches, EMA, an unknown."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opflow.batch import Batch
from opflow.files import write_tensors
from opflow.losses.misfit import DataMisfit
from opflow.losses.objective import Objective
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.loop import evaluate, fit
from opflow.training.record import Start

EPOCHS, SAMPLES, BATCH_SIZE = 4, 20, 4
STEPS = EPOCHS * SAMPLES // BATCH_SIZE


def square(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return (prediction - target).square().mean()


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(0.3), nn.Linear(width, 1))


class Prior(Objective):
    """A loss with a learnable unknown and with randomness of its own, from Python's and NumPy's streams."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = nn.Parameter(torch.tensor(2.0))

    def forward(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return {"prior": (self.unknown - noise).square()}


class ShuffledBatches:
    """A new order every epoch, with a state: what `opflow.data.Batches` promises to a training loop."""

    def __init__(self, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 3, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()
        self.seed, self.epoch, self.position = seed, 0, 0

    def __len__(self) -> int:
        return SAMPLES // BATCH_SIZE

    def __iter__(self):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        while self.position < len(self):
            index = order[self.position * BATCH_SIZE : (self.position + 1) * BATCH_SIZE]
            self.position += 1
            yield Batch(input=self.x[index], target=self.y[index], index=index)
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]


def parts(batches: Any = None, lr: float = 1e-2) -> dict[str, Any]:
    """The arguments that fit, save_checkpoint and load_checkpoint share."""
    model = network()
    loss = DataMisfit(square) + 0.1 * Prior()
    optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=lr)
    return {
        "model": model,
        "loss": loss,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=STEPS),
        "batches": ShuffledBatches() if batches is None else batches,
        "ema": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    }


def seed_everything() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def validation(model: nn.Module) -> float:
    held_out = ShuffledBatches(seed=77)
    return evaluate(model, held_out, square)


def run(
    folder: Path | None,
    run_parts: dict[str, Any],
    start: Start | None = None,
    every: int | None = 2,
    epochs: int = EPOCHS,
) -> dict[str, Tensor]:
    """Train to the end, saving at every record; return every tensor that training changes."""
    for record in fit(
        **run_parts, epochs=epochs, validate=validation, clip_norm=1.0, every=every, start=start, progress=False
    ):
        if folder is not None:
            save_checkpoint(folder, **run_parts, record=record)
    return result(run_parts)


def run_or_continue(folder: Path) -> dict[str, Tensor]:
    """What a script with --resume does."""
    seed_everything()
    run_parts = parts()
    try:
        start = load_checkpoint(folder, **run_parts)
    except FileNotFoundError:
        start = None
    return run(folder, run_parts, start)


def start_child(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Start function(*args) in a process forked from one that has torch loaded but never used it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "opflow.training.checkpoint", "opflow.training.loop", "safetensors.torch"]
    )
    child = context.Process(target=function, args=args)
    child.start()
    return child


def run_to_file(folder: Path, target: Path) -> None:
    """In a child: train to the end, then leave the result."""
    torch.set_num_threads(1)
    write_tensors(target, run_or_continue(folder))


def save_next_until_call(folder: Path, call: str, nth: int) -> None:
    """In a child: continue to the next record and die in the nth os.replace or os.fsync of saving it.

    After the call where nth is odd, before it where it is even.
    """
    torch.set_num_threads(1)
    run_parts = parts()
    start = load_checkpoint(folder, **run_parts)
    record = next(fit(**run_parts, epochs=EPOCHS, validate=validation, clip_norm=1.0, every=2, start=start))
    original, calls = getattr(os, call), itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> None:
        if next(calls) == nth:
            if nth % 2:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args, **kwargs)

    setattr(os, call, dying)
    save_checkpoint(folder, **run_parts, record=record, keep=1)


def result(run_parts: dict[str, Any]) -> dict[str, Tensor]:
    states = {name: run_parts[name].state_dict() for name in ("model", "loss", "ema") if name in run_parts}
    return {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names whose bits differ."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
