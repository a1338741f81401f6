"""One optimiser step: the loss and its gradient, both found finite before any weight moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.objective import total
from opflow.losses.well_posed import warn_if_ill_posed
from opflow.training.jacobian import LeastSquares
from opflow.training.record import Record

AnyBatch = Batch | Mapping[str, Batch]
Loss = Callable[[nn.Module, AnyBatch], Mapping[str, Tensor]]


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is NaN or infinite; the weights are those before the step that would have spoilt them.

    Attributes:
        epoch, step: where; the step that was not made, both counted from 1.
        term: the loss term or the parameter that is not finite.
        index: the numbers of the batch's samples in their data set, where the batch holds them.
        last_record: the last `Record` before; None in the first.
    """

    def __init__(
        self, epoch: int, step: int, term: str, value: str, batch: AnyBatch, last_record: Record | None
    ) -> None:
        self.epoch, self.step, self.term, self.last_record = epoch, step, term, last_record
        self.index = sample_numbers(batch)
        samples = f"samples {_listed(self.index)}" if self.index else "a batch without sample numbers"
        good = "no record came before" if last_record is None else f"the last good record is {last_record}"
        super().__init__(
            f"training diverged in epoch {epoch}, step {step}: {term} is {value} for {samples}{_poisoned(batch)}; {good}. "
            "The weights are those before this step. Lower the learning rate, set clip_norm, or look at these samples, "
            "and continue from the last checkpoint."
        )


class Step:
    """``step(batch, epoch, number, last) -> {term: float}``: one call of ``optimizer.step(closure)``.

    The closure sees the same batch on every re-evaluation (L-BFGS), so that a line search compares like with like; it
    clips the gradient itself; the terms are those of its first evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None,
        autocast: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.model, self.loss, self.optimizer, self.clip_norm = model, loss, optimizer, clip_norm
        self.autocast, self.device = autocast, device
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.looked_at = False
        self.judges_trials = bool(getattr(optimizer, "judges_trials", False))
        # Only a line search moves the weights before the loss is known to be finite, so only there a copy is worth its memory.
        self.moves_early = isinstance(optimizer, torch.optim.LBFGS) or self.judges_trials

    def __call__(self, batch: AnyBatch, epoch: int, number: int, last: Record | None) -> dict[str, float]:
        """Make the step, or raise `TrainingDiverged` with the weights as they were."""
        batch = on_device(batch, self.device)
        if not self.looked_at and isinstance(self.loss, nn.Module):
            warn_if_ill_posed(self.model, self.loss, batch)
        self.looked_at = True
        first: dict[str, float] = {}

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            with self._precision():
                terms = self.loss(self.model, batch)
                value = total(terms)
            if not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on any parameter that requires a gradient; "
                    "check that the loss calls the model and that its parameters are not frozen."
                )
            value.backward()
            # The check comes after backward: in DDP a rank that stopped before it would leave the others waiting.
            numbers = {name: float(term.detach()) for name, term in terms.items()}
            sum_of_terms = float(value.detach())
            fault = self._fault(numbers, sum_of_terms) or self._clip()
            if fault and first and self.judges_trials:  # a trial of its search: it will shorten the step
                return math.inf
            if fault:
                raise TrainingDiverged(epoch, number, *fault, batch, last)
            if not first:
                first.update(numbers)
            return sum_of_terms

        before = [p.detach().clone() for p in self.parameters] if self.moves_early else []
        try:
            if getattr(self.optimizer, "needs_residuals", False):
                self.optimizer.step(LeastSquares(self.model, self.loss, batch, evaluate=closure))
            else:
                self.optimizer.step(closure)
        except TrainingDiverged:
            with torch.no_grad():
                for parameter, kept in zip(self.parameters, before, strict=False):
                    parameter.copy_(kept)
            raise
        return first

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def _fault(self, terms: Mapping[str, float], value: float) -> tuple[str, str] | None:
        for name, number in terms.items():
            if not math.isfinite(number):
                return f"the loss term {name!r}", str(number)
        return None if math.isfinite(value) else ("the sum of the loss terms", str(value))

    def _clip(self) -> tuple[str, str] | None:
        """Clip the gradient; if it is not finite, say where."""
        with_gradient = [p for p in self.parameters if p.grad is not None]
        gradients = [p.grad for p in with_gradient if p.grad is not None]
        if not gradients:
            return None
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            for parameter in with_gradient:
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return f"the gradient of {self._name_of(parameter)}", "not finite"
            if (
                self.clip_norm is not None
            ):  # finite entries whose squares overflow: clipping would silently make them zero
                return "the norm of the gradient", str(float(norm))
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self.clip_norm, norm)
        return None

    def _name_of(self, parameter: Tensor) -> str:
        for module in (self.model, self.loss):
            if isinstance(module, nn.Module):
                for name, candidate in module.named_parameters():
                    if candidate is parameter:
                        return repr(name)
        return "a parameter of the optimiser that belongs neither to the model nor to the loss"


def on_device(batch: AnyBatch, device: torch.device | None) -> AnyBatch:
    """The batch, or every batch of a dict, on `device`.

    Raises:
        TypeError: neither a `Batch` nor a dict of them.
    """
    if isinstance(batch, Batch):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping) and batch and all(isinstance(part, Batch) for part in batch.values()):
        return {name: part if device is None else part.to(device) for name, part in batch.items()}
    raise TypeError(
        f"batches yields {type(batch).__name__} but a Batch, or a dict of them, is expected; "
        "wrap tensors as Batch(input=x, target=y)."
    )


def sample_numbers(batch: AnyBatch) -> list[int]:
    """The data set numbers of the samples in a batch, or in a dict of batches; empty where they are not known."""
    parts = [batch] if isinstance(batch, Batch) else list(batch.values())
    return [int(i) for part in parts if part.index is not None for i in part.index.flatten().tolist()]


def _listed(numbers: list[int], count: int = 16) -> str:
    return ", ".join(map(str, numbers[:count])) + (f" and {len(numbers) - count} more" if len(numbers) > count else "")


def _poisoned(batch: AnyBatch) -> str:
    """Which parts of the batch hold NaN or infinity themselves, as the end of a clause."""
    found = []
    for name, part in {"": batch}.items() if isinstance(batch, Batch) else batch.items():
        for f in fields(part):
            tensor = getattr(part, f.name)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or bool(tensor.isfinite().all()):
                continue
            where = f"{name}.{f.name}" if name else f.name
            if part.index is not None and tensor.ndim > 0 and tensor.shape[0] == len(part.index):
                bad = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
                where += f" of sample {_listed([int(i) for i in part.index[bad].tolist()])}"
            found.append(where)
    return f" (there is NaN or infinity in the {' and the '.join(found)})" if found else ""
