"""A linear system as solvers work on it: checked, batched, each column in a unit of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator, as_operator

MANY_COLUMNS = 8  # from here on one call for all columns is faster than one a column


def dot(u: Tensor, v: Tensor) -> Tensor:
    """u.v of each column, (batch, *shape) -> (batch,)"""
    u, v = u.flatten(1), v.flatten(1)
    if not 0 < len(u) < MANY_COLUMNS:
        return torch.linalg.vecdot(u, v)
    # A product of vectors reads each once; in single precision its running sum loses digits that a sum by halves keeps.
    return torch.stack(
        [torch.dot(x, y) if x.dtype == torch.float64 else (x * y).sum() for x, y in zip(u, v, strict=True)]
    )


def norm(u: Tensor) -> Tensor:
    """The Euclidean norm of each column, (batch,)"""
    return dot(u, u).sqrt()


def largest(u: Tensor) -> Tensor:
    """The largest absolute entry of each column, (batch,), of complex ones the larger of the parts; NaN if one is NaN."""
    u = (torch.view_as_real(u) if u.is_complex() else u).flatten(1)
    return torch.maximum(u.amax(1), -u.amin(1))


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
    def of(A: Any, b: Any, x0: Any, *, allow_complex: bool = False) -> LinearSystem:
        """Check A, b and x0 as a user gave them; every error says what came and what was expected."""
        operator = as_operator(A, allow_complex=allow_complex)
        numpy = isinstance(b, np.ndarray)
        rhs = _tensor(b)
        if not isinstance(rhs, Tensor) or not (rhs.is_floating_point() or (allow_complex and rhs.is_complex())):
            numbers = "real or complex" if allow_complex else "real"
            raise TypeError(
                f"b is {getattr(b, 'dtype', type(b).__name__)}; expected a NumPy array or a tensor of {numbers} floating-point numbers."
            )
        if rhs.dtype != operator.dtype or rhs.device != operator.device:
            raise TypeError(
                f"b is {rhs.dtype} on {rhs.device} but A is {operator.dtype} on {operator.device}; convert one of them."
            )
        single = tuple(rhs.shape) == operator.shape
        if (
            not single
            and len(operator.shape) == 1
            and rhs.ndim == 2
            and rhs.shape[0] == operator.shape[0] != rhs.shape[1]
        ):
            raise ValueError(
                f"b has shape {tuple(rhs.shape)} and A acts on {operator.shape}: right-hand sides stand in the rows here, not in the "
                f"columns as in SciPy; give b.T, {tuple(rhs.T.shape)}, and read the solutions in the rows of x."
            )
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
    size = largest(b) if b.numel() else b.real.new_zeros(b.shape[0])
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)
