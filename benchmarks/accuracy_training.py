"""One run of the accuracy table: train on one split, choose the state on another, test on a third."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.accuracy_tasks import SYMMETRIES, TASKS, chained
from opflow import Batch, Grid
from opflow.batch import apply_model
from opflow.data import Batches, Statistics
from opflow.files import write_json
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, mean_squared_error, relative_h1, relative_l2
from opflow.losses.norms import relative_errors
from opflow.models.recipe import build_model
from opflow.training import evaluate, fit, load_checkpoint, save_checkpoint
from opflow.training.module import evaluating

HELD_OUT_SEED = 1


RATIO = "relative L2 on an unseen grid / on that of the training"
METRICS = {"relative L2": relative_l2, "mean squared error": mean_squared_error, RATIO: relative_l2}


def run(settings: Mapping[str, Any], seed: int, *, data: Path, work: Path, device: str) -> dict[str, Any]:
    """Train and test once; goes on from the last epoch that `work` holds.

    Returns:
        {"error", "worst", "validation", "best_epoch", "epochs", "parameters", "train_seconds", "predict_seconds", "curve"}: the metric on
        the test split of the state with the lowest metric on the validation split, the seconds that one sample takes, and the `Curve`. With the metric `RATIO` the two
        errors that it is made of stand beside it.
    """
    torch.manual_seed(seed)
    how = settings["training"]
    metric = METRICS[settings["metric"]]
    task = TASKS[settings["task"]](settings, data)
    splits = {split: task.dataset(split) for split in ("train", "validation", "test")}
    model = _model(settings, task.statistics(splits["train"])).to(device)
    prepare = task.prepare(splits["train"])
    training = Batches(
        splits["train"], how["batch_size"], shuffle=True, drop_last=True, seed=seed, device=device,
        transform=chained(SYMMETRIES[how.get("augment", "none")], prepare),
    )  # fmt: skip
    # Lists: noise, where there is any, is drawn once.
    held_out = list(Batches(splits["validation"], 50, seed=HELD_OUT_SEED, device=device, transform=prepare))
    unseen = list(Batches(splits["test"], 50, seed=HELD_OUT_SEED + 1, device=device, transform=prepare))

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how["learning_rate"], weight_decay=how.get("weight_decay", 1e-4)
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, how["learning_rate"], total_steps=how["epochs"] * len(training), pct_start=how.get("pct_start", 0.3),
        div_factor=how.get("div_factor", 25.0), final_div_factor=how.get("final_div_factor", 1e4),
    )  # fmt: skip
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(how["ema"])) if "ema" in how else None
    loss = _loss(settings, splits["train"].grid)
    state = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler, "batches": training, "ema": ema}
    checkpoints, curve = work / "checkpoints", Curve(work / "curve.json")
    start = load_checkpoint(checkpoints, model, **state) if checkpoints.exists() else None
    last = start.record if start else None
    for record in fit(
        model, loss, training, optimizer, epochs=how["epochs"], scheduler=scheduler, clip_norm=how.get("clip_norm"),
        ema=ema, start=start, validate=lambda model: evaluate(model, held_out, metric),
    ):  # fmt: skip
        save_checkpoint(checkpoints, model, record=record, keep=1, **state)
        curve.add(record.epoch, record.seconds, record.validation)
        print(record, flush=True)
        last = record
    best = load_checkpoint(checkpoints, model, ema=ema, which="best")
    tested = model if ema is None else ema
    errors, seconds = _test(tested, unseen, metric)
    error, beside = float(errors.mean()), {}
    if settings["metric"] == RATIO:
        finer = TASKS[settings["task"]](settings | {"stride": settings["unseen_stride"]}, data).dataset("test")
        there, _ = _test(tested, Batches(finer, 10, seed=HELD_OUT_SEED + 1, device=device, transform=prepare), metric)
        beside = {
            "on_training_grid": error,
            "on_unseen_grid": float(there.mean()),
            "unseen_grid": list(finer.grid.shape),
        }
        error = float(there.mean()) / error
    return {
        "error": error,
        **beside,
        "worst": float(errors.max()),
        "validation": best.record.validation,
        "best_epoch": best.record.epoch,
        "epochs": last.epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": last.seconds,
        "predict_seconds": seconds,
        "curve": curve.thinned(),
    }


class Curve:
    """The metric on the validation split against epochs and seconds, kept in a file, so that a run that goes on has all of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: list[list[float]] = json.loads(path.read_text()) if path.exists() else []

    def add(self, epoch: int, seconds: float, validation: float) -> None:
        """One more epoch; what an interrupted run had beyond its last checkpoint gives way."""
        self.points = [point for point in self.points if point[0] < epoch] + [[epoch, round(seconds, 1), validation]]
        write_json(self.path, self.points)

    def thinned(self, most: int = 50) -> list[list[float]]:
        """At most so many points, the last among them: (epoch, seconds, validation)."""
        step = -(-len(self.points) // most) if self.points else 1
        return self.points[::-1][::step][::-1]


def _model(settings: Mapping[str, Any], statistics: Statistics) -> nn.Module:
    points = settings["task"] == "points"
    mean, std = statistics.target.mean, statistics.target.std
    if settings["model"].get("boundary") == "dirichlet":  # zero must stay zero
        mean, std = torch.zeros_like(mean), (mean.square() + std.square()).sqrt()
    return Normalized(
        build_model(_plain(settings["model"])),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(mean, std, points=points),
    )


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with None for "none", which TOML cannot say."""
    return {
        name: None if value == "none" else _plain(value) if isinstance(value, Mapping) else value
        for name, value in recipe.items()
    }


def _loss(settings: Mapping[str, Any], grid: Grid) -> nn.Module:
    how = settings["training"]
    if settings["metric"] == "mean squared error":
        return DataMisfit(mean_squared_error)
    loss = DataMisfit(relative_l2)
    if how.get("h1"):
        loss = loss + how["h1"] * DataMisfit(partial(relative_h1, grid=grid), name="h1")
    return loss


def _test(model: nn.Module, batches: Iterable[Batch], metric: Callable[..., Tensor]) -> tuple[Tensor, float]:
    """The metric of every sample, and the seconds that a prediction takes."""
    errors, seconds, count = [], 0.0, 0
    with evaluating(model):
        for batch in batches:
            start = time.perf_counter()
            prediction = apply_model(model, batch)
            if prediction.is_cuda:
                torch.cuda.synchronize()
            seconds, count = seconds + time.perf_counter() - start, count + batch.batch_size
            if metric is relative_l2:
                errors.append(relative_errors(prediction, batch.target, batch.weight).mean(1))
            else:
                errors.append((prediction - batch.target).square().flatten(1).mean(1))
    return torch.cat(errors).double().cpu(), seconds / count
