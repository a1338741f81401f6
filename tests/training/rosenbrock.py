"""Rosenbrock's function in many dimensions, and the closure with which an optimiser asks for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def start(size: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor([-1.2, 1.0] * (size // 2), dtype=dtype))


def closure_of(
    optimizer: torch.optim.Optimizer, function: Callable[..., Tensor], *arguments: Tensor
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = function(*arguments)
        loss.backward()
        return loss

    return closure
