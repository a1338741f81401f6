"""Training as a generator of records, and evaluation."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from opflow.batch import Batch, apply_model, unwrapped
from opflow.training.arguments import check_arguments
from opflow.training.module import device_of, evaluating, is_first_rank, modes_of, set_modes
from opflow.training.random_streams import RandomStreams
from opflow.training.record import Record, Start
from opflow.training.step import AnyBatch, Loss, Step, on_device

Metric = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[AnyBatch],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    validate: Callable[[nn.Module], float] | None = None,
    scheduler: Any = None,
    clip_norm: float | None = None,
    ema: AveragedModel | None = None,
    autocast: torch.dtype | None = None,
    start: Start | None = None,
    every: int | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
) -> Generator[Record, None, None]:
    """Train `model`, yielding a `Record` after every epoch; logging, saving and stopping are the body of your loop.

    Args:
        loss: ``loss(model, batch) -> {name: scalar Tensor}``, an `Objective` for example.
        batches: an iterable of `Batch` or dict of `Batch`, iterated once an epoch; moved to the model's device.
        optimizer: any of torch's, L-BFGS too.
        epochs: in all, those before `start` included.
        validate: called after each epoch with the plain model, or with the averaged one if `ema` is given, in eval
            mode and without gradients; the lowest value it returned marks the best record.
        scheduler: stepped after every batch.
        clip_norm: the largest norm of the gradient over all parameters of the optimiser.
        ema: an `AveragedModel` of the model, updated after every step.
        autocast: None or torch.bfloat16, for the loss.
        start: what `load_checkpoint` returned.
        every: a record after every so many steps too, so that a checkpoint can be written within an epoch.
        stop: asked after every step; if it returns True, a last record is yielded and training ends
            (`Interruption`, which listens to SIGTERM and Ctrl-C, is one).
        progress: a bar on standard error, if that is a terminal.

    Raises:
        ValueError, TypeError: an argument does not fit; at once, before any work.
        TrainingDiverged: the loss or a gradient is not finite; the weights are those before that step.

    >>> from opflow.losses.misfit import DataMisfit
    >>> model = nn.Linear(1, 1)
    >>> loss = DataMisfit(lambda prediction, target, weight: (prediction - target).square().mean())
    >>> batches = [Batch(input=torch.ones(4, 1), target=torch.ones(4, 1))]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> [record.step for record in fit(model, loss, batches, optimizer, epochs=3)]
    [1, 2, 3]
    """
    check_arguments(
        model, loss, batches, optimizer, epochs, validate, scheduler, clip_norm, ema, autocast, start, every
    )
    device = device_of(model)
    assert device is not None  # the check refused a model without parameters
    step = Step(model, loss, optimizer, clip_norm=clip_norm, autocast=autocast, device=device)
    return _Run(step, batches, epochs, validate, scheduler, ema, start, every, stop, progress).records()


class _Run:
    """The state of one `fit`: counters, sums since the last record, the best validation so far."""

    def __init__(
        self,
        step: Step,
        batches: Iterable[AnyBatch],
        epochs: int,
        validate: Callable[[nn.Module], float] | None,
        scheduler: Any,
        ema: AveragedModel | None,
        start: Start | None,
        every: int | None,
        stop: Callable[[], bool] | None,
        progress: bool,
    ) -> None:
        self.do_step, self.batches, self.epochs, self.validate = step, batches, epochs, validate
        self.scheduler, self.ema, self.every, self.stop, self.start = scheduler, ema, every, stop, start
        self.model, self.optimizer = step.model, step.optimizer
        self.progress = progress and sys.stderr.isatty()
        self.last = start.record if start else None
        self.length = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
        last = self.last
        self.epoch = 1 if last is None else last.epoch + last.epoch_done
        self.position = 0 if last is None or last.epoch_done else last.position
        self.step = last.step if last else 0
        self.best_validation = last.best_validation if last else None
        self.seconds_before = last.seconds if last else 0.0
        self.learning_rate = last.learning_rate if last else math.nan
        self.sums: dict[str, float] = {}
        self.count = 0
        self.stopped = False

    def records(self) -> Generator[Record, None, None]:
        """Train to the end, pausing at every record."""
        self.clock = time.perf_counter()
        total = self.length * (self.epochs - self.epoch + 1) - self.position if self.length else None
        # No bar object at all when nobody looks: tqdm starts a thread and a semaphore for it.
        bar = tqdm(total=max(0, total) if total else None, unit="step") if self.progress else None
        if not self.model.training:
            self.model.train()
        try:
            if self.start is not None:
                self._put_back(self.start)
            while self.epoch <= self.epochs and not self.stopped:
                yield from self._epoch(bar)
        finally:
            if bar is not None:
                bar.close()

    def _epoch(self, bar: Any) -> Iterator[Record]:
        for batch in self._remaining():
            terms = self.do_step(batch, self.epoch, self.step + 1, self.last)
            self._after_step(terms)
            if bar is not None:
                bar.update()
            self.stopped = bool(self.stop()) if self.stop else False
            # The last batch of an epoch has the epoch's own record.
            due = self.every is not None and self.step % self.every == 0 and self.position != self.length
            if due or self.stopped:
                yield from self._pause(self._record(epoch_done=False), bar)
            if self.stopped:
                return
        if self.position == 0:
            raise ValueError(f"batches is empty in epoch {self.epoch}; training needs at least one batch an epoch.")
        yield from self._pause(self._record(epoch_done=True, validation=self._validation()), bar)
        self.epoch, self.position = self.epoch + 1, 0

    def _remaining(self) -> Iterator[AnyBatch]:
        """This epoch's batches from `position` on."""
        if self.position == 0 or hasattr(self.batches, "load_state_dict"):
            self.epoch_streams = RandomStreams.capture()
            return iter(self.batches)
        # A plain DataLoader draws its order from the global streams at the beginning of the epoch: draw it again.
        now = RandomStreams.capture()
        self.epoch_streams = (self.last and self.last.epoch_streams) or now
        if is_first_rank():
            self.epoch_streams.restore()
        remaining = iter(self.batches)
        skipped = sum(1 for _ in islice(remaining, self.position))
        if skipped < self.position:
            raise ValueError(
                f"the checkpoint was written after {self.position} batches of an epoch, but batches has only {skipped}; "
                "continue with the same data and batch size."
            )
        now.restore()
        return remaining

    def _put_back(self, start: Start) -> None:
        # Here and not when loading: whatever was drawn or read in between must not change the run.
        if is_first_rank():
            start.streams.restore()
        if start.batches is not None:
            self.batches.load_state_dict(start.batches)  # type: ignore[attr-defined]

    def _after_step(self, terms: dict[str, float]) -> None:
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])
        if self.scheduler is not None:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(unwrapped(self.model))
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.step, self.position, self.count = self.step + 1, self.position + 1, self.count + 1

    def _validation(self) -> float | None:
        if self.validate is None:
            return None
        # The plain model: a wrapper's forward would wait for ranks that do not validate.
        candidate = unwrapped(self.ema.module if self.ema is not None else self.model)
        with evaluating(candidate):
            return float(self.validate(candidate))

    def _record(self, *, epoch_done: bool, validation: float | None = None) -> Record:
        if self.count:
            terms = {name: value / self.count for name, value in self.sums.items()}
        else:  # a record for the same step was the last thing before
            terms = dict(self.last.terms) if self.last else {}
        best = validation is not None and (
            validation < (math.inf if self.best_validation is None else self.best_validation)
        )
        if best:
            self.best_validation = validation
        self.sums, self.count = {}, 0
        self.last = Record(
            epoch=self.epoch,
            step=self.step,
            loss=sum(terms.values()),
            terms=terms,
            validation=validation,
            best=best,
            learning_rate=self.learning_rate,
            seconds=self.seconds_before + time.perf_counter() - self.clock,
            best_validation=self.best_validation,
            position=self.position,
            epoch_done=epoch_done,
            epoch_streams=self.epoch_streams,
        )
        return self.last

    def _pause(self, record: Record, bar: Any) -> Iterator[Record]:
        if bar is not None:
            bar.set_postfix_str(f"epoch {record.epoch}, loss {record.loss:.3g}", refresh=False)
            bar.clear()
        modes = modes_of(self.model)
        yield record
        # A body that plots often leaves the model in eval mode, which would silently switch dropout off from here on.
        if self.model.training != modes[self.model]:
            set_modes(modes)


def evaluate(
    model: nn.Module, batches: Iterable[Batch], metric: Metric, *, device: torch.device | str | None = None
) -> float:
    """The mean of `metric` over all samples, in eval mode and without gradients; the model's mode is restored.

    Args:
        batches: each with a target.
        metric: ``metric(prediction, target, weight)``, the mean over its batch (then weighted by the batch's size) or
            one value a sample (batch,).
        device: where to; the model's own by default. The model is not moved.

    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> evaluate(nn.Identity(), [Batch(input=torch.ones(2, 1, 4), target=torch.zeros(2, 1, 4))], square)
    1.0
    """
    where = device_of(model) if device is None else torch.device(device)
    total, count = 0.0, 0
    with evaluating(model):
        for item in batches:
            batch = on_device(item, where)
            if not isinstance(batch, Batch) or batch.target is None:
                raise ValueError(
                    "evaluate compares with targets, but a batch has none; give Batch(input=..., target=...)."
                )
            size = batch.batch_size
            if size == 0:
                continue
            value = metric(apply_model(model, batch), batch.target, batch.weight)
            if value.numel() not in (1, size) or value.ndim > 1:
                raise ValueError(
                    f"metric returned shape {tuple(value.shape)} for a batch of {size}; give its mean or one value a sample."
                )
            total += float(value.double().mean()) * size
            count += size
    if count == 0:
        raise ValueError("batches holds no samples, so there is nothing to evaluate.")
    return total / count
