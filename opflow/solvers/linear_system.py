"""A linear system as solvers work on it: checked, batched, each column in a unit of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator, as_operator


def dot(u: Tensor, v: Tensor) -> Tensor:
    """u.v of each column, (batch, *shape) -> (batch,)"""
    return torch.linalg.vecdot(u.flatten(1), v.flatten(1))


def norm(u: Tensor) -> Tensor:
    """The Euclidean norm of each column, (batch,)"""
    return torch.linalg.vector_norm(u.flatten(1), dim=1)


def largest(u: Tensor) -> Tensor:
    """The largest absolute entry of each column, (batch,)"""
    return torch.linalg.vector_norm(u.flatten(1), ord=torch.inf, dim=1)


def _tensor(values: Any) -> Any:
    # A copy: torch takes no negative strides and warns about arrays that are read-only.
    return torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values


@dataclass
class LinearSystem:
    """A, b and x0 checked and brought to (batch, *shape), each column in a unit of its own (batch,).

    The unit is the power of two below the largest entry of b, so that squares neither underflow (a tiny b would
    pass for zero) nor overflow, and no digit changes.
    """

    A: LinearOperator
    b: Tensor
    x: Tensor
    unit: Tensor
    single: bool
    numpy: bool

    @staticmethod
    def of(A: Any, b: Any, x0: Any) -> LinearSystem:
        """Check A, b and x0 as a user gave them; every error says what came and what was expected."""
        operator = as_operator(A)
        numpy = isinstance(b, np.ndarray)
        rhs = _tensor(b)
        if not isinstance(rhs, Tensor) or not rhs.is_floating_point():
            raise TypeError(
                f"b is {getattr(b, 'dtype', type(b).__name__)}; expected a NumPy array or a tensor of real floating-point numbers."
            )
        if rhs.dtype != operator.dtype or rhs.device != operator.device:
            raise TypeError(
                f"b is {rhs.dtype} on {rhs.device} but A is {operator.dtype} on {operator.device}; convert one of them."
            )
        single = tuple(rhs.shape) == operator.shape
        if not single and tuple(rhs.shape[1:]) != operator.shape:
            raise ValueError(
                f"b has shape {tuple(rhs.shape)} but A acts on {operator.shape}; give {operator.shape} or (batch, *{operator.shape}). "
                "A stencil on nodes with u = 0 on the boundary acts on the interior nodes only."
            )
        if operator.batch > 1 and (single or rhs.shape[0] != operator.batch):
            raise ValueError(
                f"b has shape {tuple(rhs.shape)} but A is a batch of {operator.batch} operators on {operator.shape}; "
                f"give one right-hand side for each: {(operator.batch, *operator.shape)}."
            )
        guess = (
            torch.zeros_like(rhs) if x0 is None else torch.as_tensor(_tensor(x0), dtype=rhs.dtype, device=rhs.device)
        )
        if guess.shape != rhs.shape:
            raise ValueError(
                f"x0 has shape {tuple(guess.shape)} but b has {tuple(rhs.shape)}; an initial guess has the shape of b."
            )
        if single:
            rhs, guess = rhs[None], guess[None]
        unit = _unit(rhs)
        scale = unit.view(-1, *[1] * (rhs.ndim - 1))
        return LinearSystem(operator, rhs / scale, guess / scale, unit, single, numpy)


def _unit(b: Tensor) -> Tensor:
    size = largest(b) if b.numel() else b.new_zeros(b.shape[0])
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)
