"""One run of the accuracy table: train on one split, choose the state on another, test on a third."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opflow import Batch, Grid
from opflow.batch import apply_model
from opflow.data import Batches, FieldDataset, channel_statistics
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_h1, relative_l2
from opflow.losses.norms import relative_errors
from opflow.models.recipe import build_model
from opflow.training import evaluate, fit, load_checkpoint, save_checkpoint
from opflow.training.module import evaluating

Transform = Callable[[Batch, torch.Generator], Batch]


def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over all values; evenly spaced points weigh alike."""
    return (prediction - target).square().mean()


METRICS = {"relative L2": relative_l2, "mean squared error": mean_squared_error}


def run(settings: Mapping[str, Any], seed: int, *, data: Path, work: Path, device: str) -> dict[str, Any]:
    """Train and test once; goes on from the last epoch that `work` holds.

    Returns:
        {"error", "validation", "best_epoch", "epochs", "parameters", "train_seconds", "predict_seconds", "errors"}: the metric on the
        test split of the state with the lowest metric on the validation split, and the seconds that one sample takes.
    """
    torch.manual_seed(seed)
    how = settings["training"]
    metric = METRICS[settings["metric"]]
    splits = {split: _split(settings, data, split) for split in ("train", "validation", "test")}
    prepare = _points if settings["task"] == "points" else None
    model = _model(settings, splits["train"]).to(device)
    augment = AUGMENTATIONS[how.get("augment", "none")]
    transform = _chain(augment, prepare)
    training = Batches(
        splits["train"], how["batch_size"], shuffle=True, drop_last=True, seed=seed, device=device, transform=transform
    )
    held_out = Batches(splits["validation"], 50, device=device, transform=_chain(None, prepare))

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
    checkpoints = work / "checkpoints"
    start = load_checkpoint(checkpoints, model, **state) if checkpoints.exists() else None
    last = start.record if start else None
    for record in fit(
        model, loss, training, optimizer, epochs=how["epochs"], scheduler=scheduler, clip_norm=how.get("clip_norm"),
        ema=ema, start=start, validate=lambda model: evaluate(model, held_out, metric),
    ):  # fmt: skip
        save_checkpoint(checkpoints, model, record=record, keep=1, **state)
        print(record, flush=True)
        last = record
    best = load_checkpoint(checkpoints, model, ema=ema, which="best")
    tested = model if ema is None else ema
    errors, seconds = _test(tested, Batches(splits["test"], 50, device=device, transform=_chain(None, prepare)), metric)
    return {
        "error": float(errors.mean()),
        "worst": float(errors.max()),
        "validation": best.record.validation,
        "best_epoch": best.record.epoch,
        "epochs": last.epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": last.seconds,
        "predict_seconds": seconds,
    }


def _split(settings: Mapping[str, Any], data: Path, split: str) -> FieldDataset:
    folder = data / settings["data"] / split
    return FieldDataset(folder, stride=settings.get("stride", 1)).in_memory()


def _model(settings: Mapping[str, Any], training: FieldDataset) -> nn.Module:
    statistics = channel_statistics(training)
    values = {name: None if value == "none" else value for name, value in settings["model"].items()}
    points = settings["task"] == "points"
    return Normalized(
        build_model(values),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std, **({"points": True} if points else {})),
    )


def _loss(settings: Mapping[str, Any], grid: Grid) -> nn.Module:
    how = settings["training"]
    if settings["metric"] == "mean squared error":
        return DataMisfit(mean_squared_error)
    loss = DataMisfit(relative_l2)
    if how.get("h1"):
        loss = loss + how["h1"] * DataMisfit(partial(relative_h1, grid=grid), name="h1")
    return loss


def _test(model: nn.Module, batches: Batches, metric: Callable[..., Tensor]) -> tuple[Tensor, float]:
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


# --- what happens to a batch ---------------------------------------------------------------------------------------------


def _chain(first: Transform | None, second: Transform | None) -> Transform | None:
    if first is None or second is None:
        return first or second
    return lambda batch, generator: second(first(batch, generator), generator)


def _points(batch: Batch, generator: torch.Generator) -> Batch:
    """A target on nodes of (0, 1) as values at coordinates: (batch, channel, n) -> (batch, n, channel)."""
    n = batch.target.shape[-1]
    coords = torch.linspace(0, 1, n, dtype=batch.target.dtype)[:, None]
    return Batch(input=batch.input, target=batch.target.mT, coords=coords, index=batch.index)


def _square(batch: Batch, generator: torch.Generator) -> Batch:
    """One of the square's eight symmetries, under which the law of the media and the equation are invariant."""
    flip_x, flip_y, swap = torch.randint(2, (3,), generator=generator).tolist()

    def turn(field: Tensor) -> Tensor:
        field = field.flip([axis for axis, flip in ((2, flip_x), (3, flip_y)) if flip])
        return field.transpose(2, 3) if swap else field

    return Batch(input=turn(batch.input), target=turn(batch.target), weight=batch.weight, index=batch.index)


def _circle(batch: Batch, generator: torch.Generator) -> Batch:
    """A shift along the circle, and u(x) -> -u(-x), under which Burgers' equation and the law of its initial values are invariant."""
    shift = int(torch.randint(batch.input.shape[-1], (), generator=generator))
    reflect = bool(torch.randint(2, (), generator=generator))

    def turn(field: Tensor) -> Tensor:
        field = field.roll(shift, -1)
        return -field.flip(-1) if reflect else field

    return Batch(input=turn(batch.input), target=turn(batch.target), weight=batch.weight, index=batch.index)


AUGMENTATIONS: dict[str, Transform | None] = {"none": None, "square": _square, "circle": _circle}
