"""What `fit` refuses before it begins: each mistake here would cost hours if it showed at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from opflow.batch import unwrapped
from opflow.training.module import device_of
from opflow.training.record import Start


def check_arguments(
    model: nn.Module,
    loss: Callable[..., Any],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    validate: Callable[..., Any] | None,
    scheduler: Any,
    clip_norm: float | None,
    ema: AveragedModel | None,
    autocast: torch.dtype | None,
    start: Start | None,
    every: int | None,
) -> None:
    """Raise ValueError or TypeError with a sentence about the first argument of `fit` that does not fit."""
    check_count("epochs", epochs)
    if every is not None:
        check_count("every", every)
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"clip_norm is {clip_norm}; give a positive number, or None for no clipping.")
    if clip_norm is not None and getattr(optimizer, "judges_trials", False):
        raise ValueError(
            f"clip_norm is {clip_norm}, but {type(optimizer).__name__} compares the slopes of a search with its values, and a "
            "clipped gradient is no slope; leave clip_norm out."
        )
    if getattr(optimizer, "needs_residuals", False):
        if not callable(getattr(loss, "residuals", None)):
            raise TypeError(
                f"{type(optimizer).__name__} needs loss.residuals(model, batch), which {type(loss).__name__} does not have; "
                "use a loss of opflow.losses, or another optimiser."
            )
        if autocast is not None:
            raise ValueError(
                f"autocast is {autocast}, but {type(optimizer).__name__} works in full precision; leave it out."
            )
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast is {autocast}; give None or torch.bfloat16 (float16 would need a gradient scaler).")
    for name, value in (("loss", loss), ("validate", validate)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {type(value).__name__} but something to call is expected.")
    if ema is not None and not isinstance(ema, AveragedModel):
        raise TypeError(f"ema is {type(ema).__name__}; give torch.optim.swa_utils.AveragedModel(model, ...).")
    _check_batches(batches)
    _check_parameters(model, loss, optimizer)
    _check_scheduler(scheduler, optimizer, batches, epochs, start)
    if start is not None:
        _check_start(start, loss, batches, scheduler, ema)


def check_count(name: str, value: Any) -> None:
    """Raise unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a positive whole number.")


def _check_batches(batches: Iterable[Any]) -> None:
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches is {type(batches).__name__}; give a list of Batch, a DataLoader or opflow.data.Batches."
        )
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches is an iterator ({type(batches).__name__}), used up after one epoch; "
            "give something that can be iterated again, a list of Batch for example."
        )
    if hasattr(batches, "__len__") and len(batches) == 0:  # type: ignore[arg-type]
        raise ValueError("batches is empty; training needs at least one batch an epoch.")


def _check_parameters(model: nn.Module, loss: Callable[..., Any], optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(
            f"the model {type(unwrapped(model)).__name__} has no parameters, so there is nothing to train."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in parameters.values()):
        raise ValueError(
            "the optimizer holds none of the model's parameters; build it from this model's model.parameters()."
        )
    if not isinstance(loss, nn.Module):
        return
    free = [
        name
        for name, p in loss.named_parameters()
        if p.requires_grad and id(p) not in held and id(p) not in {id(q) for q in parameters.values()}
    ]
    if free:
        raise ValueError(
            f"the loss has learnable parameters that the optimizer does not hold: {', '.join(free[:4])}; "
            "build the optimizer from [*model.parameters(), *loss.parameters()]."
        )
    device = device_of(model)
    for name, tensor in (*loss.named_parameters(), *loss.named_buffers()):
        if tensor.device != device:
            raise ValueError(
                f"{name} of the loss is on {tensor.device} but the model is on {device}; call loss.to({str(device)!r})."
            )


def _check_scheduler(
    scheduler: Any, optimizer: torch.optim.Optimizer, batches: Iterable[Any], epochs: int, start: Start | None
) -> None:
    if scheduler is None:
        return
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau follows the validation, but fit steps the scheduler after every batch; leave scheduler= out "
            "and call scheduler.step(record.validation) in the body of your loop."
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("the scheduler was built for another optimizer; build it for the one given to fit.")
    limit = getattr(scheduler, "total_steps", None)  # OneCycleLR raises beyond it
    if isinstance(limit, int) and hasattr(batches, "__len__"):
        done = start.record.step if start and start.record else 0
        needed = epochs * len(batches) - done  # type: ignore[arg-type]
        if needed > limit - scheduler.last_epoch:
            raise ValueError(
                f"the scheduler has {limit - scheduler.last_epoch} steps left but {needed} are to come "
                f"({epochs} epochs of {len(batches)} batches); build it with total_steps={needed + done}."  # type: ignore[arg-type]
            )


def _check_start(start: Start, loss: Any, batches: Any, scheduler: Any, ema: Any) -> None:
    if not isinstance(start, Start):
        raise TypeError(f"start is {type(start).__name__} but what load_checkpoint returned is expected.")
    wanted = {
        "model": True,
        "optimizer": True,
        "loss": isinstance(loss, nn.Module) and bool(loss.state_dict()),
        "scheduler": scheduler is not None,
        "batches": hasattr(batches, "load_state_dict"),
        "ema": ema is not None,
    }
    lost = [name for name, needed in wanted.items() if needed and name not in start.restored]
    if lost:
        raise ValueError(
            f"start was loaded without {', '.join(lost)}, so the run would not continue where it stopped; pass "
            f"{', '.join(f'{name}={name}' for name in lost)} to save_checkpoint and to load_checkpoint, "
            "or leave start= out to begin a new run with these weights."
        )
