"""An operator, preconditioner or network direction as a host program calls it: NumPy vectors in, NumPy vectors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator, as_operator
from opflow.typing import Preconditioner


@dataclass(frozen=True)
class HostOperation:
    """r -> z on vectors of `n` entries, the unknowns of `operator` inside its domain.

    Attributes:
        name: of what is applied.
        linear, symmetric, deterministic: which Krylov methods may use it.
    """

    name: str
    operator: LinearOperator
    function: Callable[[Tensor], Tensor]
    linear: bool
    symmetric: bool
    deterministic: bool

    @staticmethod
    def of_operator(A: Any) -> HostOperation:
        """A itself, one matrix."""
        operator = _single(A)
        return HostOperation(type(operator).__name__, operator, operator.apply, True, operator.symmetric is True, True)

    @staticmethod
    def of_inverse(M: Any, A: Any) -> HostOperation:
        """A preconditioner, or a callable from a residual of unit norm to a direction, set up on A.

        Raises:
            TypeError: M is neither.
        """
        operator, name = _single(A), type(M).__name__
        is_preconditioner = isinstance(M, Preconditioner)
        if not (is_preconditioner or callable(M)):
            raise TypeError(
                f"{name} is neither a preconditioner (setup, apply and its three flags) nor a callable r -> direction."
            )
        if hasattr(M, "setup"):
            M.setup(operator)
        if is_preconditioner:
            function = M.apply if M.linear else _finite(M.apply)
            return HostOperation(name, operator, function, M.linear, M.symmetric, M.deterministic)
        return HostOperation(name, operator, _finite(_homogeneous(M)), False, False, False)

    @property
    def n(self) -> int:
        """Entries of a vector: the unknowns inside the domain."""
        return int(self.operator.gather(torch.zeros(1, *self.operator.shape, device=self.operator.device)).shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the vectors."""
        return torch.empty(0, dtype=self.operator.dtype).numpy().dtype

    def __call__(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """(k, n) -> (k, n)"""
        # A copy: the host's vectors may be read-only, and the result must not be the same memory.
        columns = torch.from_numpy(np.array(vectors, dtype=self.dtype, order="C")).to(self.operator.device)
        with torch.no_grad():
            return self.operator.gather(self.function(self.operator.scatter(columns))).cpu().numpy()


def _single(A: Any) -> LinearOperator:
    operator = as_operator(A)
    if operator.batch != 1:
        raise ValueError(
            f"A holds a batch of {operator.batch} operators, but the host solves with one; take one of them with A.select(i)."
        )
    return operator


def _homogeneous(direction: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """r -> |r| N(r / |r|): networks learn unit residuals, and those of a host shrink by orders of magnitude."""

    def apply(r: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(r.flatten(1), dim=1).view(-1, *[1] * (r.ndim - 1))
        return direction(r / torch.where(size > 0, size, 1.0)) * size

    return apply


def _finite(apply: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What is not finite is replaced by r itself, as if there were no preconditioner."""

    def checked(r: Tensor) -> Tensor:
        z = apply(r)
        return torch.where(z.flatten(1).isfinite().all(1).view(-1, *[1] * (r.ndim - 1)), z, r)

    return checked
