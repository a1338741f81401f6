"""What optimisers share that see all parameters as one vector and try points before they move there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# A closure leaves the gradients in .grad and returns the loss.
Closure = Callable[[], Any]


@dataclass(frozen=True)
class SearchReport:
    """What the last ``step`` of an optimiser did, and all steps so far.

    Attributes:
        outcome: "moved"; "converged" (the gradient vanished); "stalled" (no lower point was found along the last
            direction); "not finite" (the loss at the current weights is NaN or infinite, so nothing was tried).
        iterations, evaluations: since the optimiser was built; an evaluation is one call of the closure.
        failures: how many searches found no lower point.
        restarts: how often the curvature that had been gathered was thrown away.

    >>> print(SearchReport("moved", iterations=100, evaluations=102, failures=0, restarts=0))
    moved; 100 iterations, 102 evaluations, 0 failed searches, 0 restarts so far
    """

    outcome: str
    iterations: int
    evaluations: int
    failures: int
    restarts: int

    def __str__(self) -> str:
        return (
            f"{self.outcome}; {self.iterations} iterations, {self.evaluations} evaluations, "
            f"{self.failures} failed searches, {self.restarts} restarts so far"
        )


class FlatOptimizer(torch.optim.Optimizer):
    """One parameter group as one vector x, with counters, the outcome as a value and a state that keeps its dtype.

    ``judges_trials`` tells `fit` that this optimiser compares the values of trial points itself: a trial that is not
    finite is refused by it, and is no reason to stop training.

    Args:
        dtype: of the algebra between the evaluations; the parameters keep theirs.

    Raises:
        ValueError: no parameters, several groups, complex ones, or parameters on several devices.
    """

    judges_trials: ClassVar[bool] = True
    _counters: ClassVar[tuple[str, ...]] = ("iterations", "evaluations", "failures", "restarts")

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], *, dtype: torch.dtype) -> None:
        super().__init__(params, defaults)
        name = type(self).__name__
        if len(self.param_groups) != 1:
            raise ValueError(
                f"{name} was given {len(self.param_groups)} parameter groups, but it sees all parameters as one vector; "
                "give one list of parameters."
            )
        self._params: list[Tensor] = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        if not self._params:
            raise ValueError(f"{name} was given no parameter that requires a gradient.")
        if any(not p.is_floating_point() for p in self._params):
            raise ValueError(f"{name} works on real parameters, but one of them is not floating point.")
        devices = sorted({str(p.device) for p in self._params})
        if len(devices) > 1:
            raise ValueError(
                f"the parameters are on {', '.join(devices)}, but {name} needs them on one device; move them."
            )
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}; give a floating-point one.")
        self.dtype, self.device = dtype, self._params[0].device
        self.size = sum(p.numel() for p in self._params)
        # Differences of losses below this share of the loss are rounding of the parameters' own precision.
        self.rounding = max(torch.finfo(p.dtype).eps for p in self._params)
        self._memory: dict[str, Any] = self.state[self._params[0]]
        self._memory.update(dict.fromkeys(self._counters, 0), outcome="not started")

    @property
    def report(self) -> SearchReport:
        """What the last step did, and how much work went in so far."""
        return SearchReport(self._memory["outcome"], *(self._memory[name] for name in self._counters))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As in torch, but tensors come back as copies in the dtype that they were saved in."""
        super().load_state_dict(dict(state_dict))
        self._params = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        for stored in state_dict["state"].values():
            self.state[self._params[0]] = {key: self._copied(value) for key, value in stored.items()}
        self._memory = self.state[self._params[0]]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, copy=True)
        return [self._copied(part) for part in value] if isinstance(value, list) else value

    def _weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1).to(self.dtype) for p in self._params])

    @torch.no_grad()
    def _put(self, weights: Tensor) -> None:
        offset = 0
        for p in self._params:
            p.copy_(weights[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def _gradient(self) -> Tensor:
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.detach().reshape(-1) for p in self._params]
        return torch.cat([part.to(self.dtype) for part in parts])

    def _evaluate(self, closure: Closure) -> tuple[float, Tensor]:
        with torch.enable_grad():
            loss = closure()
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        self._memory["evaluations"] += 1
        return value, self._gradient()


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number > 0."""
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; give a positive number.")
