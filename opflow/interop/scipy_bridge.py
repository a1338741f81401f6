"""opflow's operators and preconditioners as SciPy `LinearOperator`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator, as_operator
from opflow.typing import Preconditioner

if TYPE_CHECKING:
    import scipy.sparse.linalg


def as_linear_operator(A: Any) -> scipy.sparse.linalg.LinearOperator:
    """A for `scipy.sparse.linalg`: acts on flat float64 or float32 vectors of ``prod(A.shape)`` entries.

    Args:
        A: a LinearOperator of one matrix (batch 1), a SciPy sparse matrix or a dense square tensor.

    >>> from opflow.solvers import FaceStencil
    >>> as_linear_operator(FaceStencil([torch.ones(1, 4).double()])) @ np.ones(3)
    array([1., 0., 1.])
    """
    operator = as_operator(A)
    _check_single(operator)
    return _wrapped(operator.apply, operator)


def as_preconditioner(M: Preconditioner, A: Any) -> scipy.sparse.linalg.LinearOperator:
    """M as the argument ``M=`` of `scipy.sparse.linalg.cg`, set up on A.

    Raises:
        ValueError: M is not linear and symmetric; plain conjugate gradients would lose their theory in silence. Use
            `as_linear_operator`-like wrapping with a flexible method such as `gcrotmk` for those.
    """
    if not (M.linear and M.symmetric):
        raise ValueError(
            f"{type(M).__name__} declares linear={M.linear}, symmetric={M.symmetric}, but scipy.sparse.linalg.cg needs both; use a "
            "flexible method such as scipy.sparse.linalg.gcrotmk for it."
        )
    operator = as_operator(A)
    _check_single(operator)
    return _wrapped(M.setup(operator).apply, operator)


def _check_single(operator: LinearOperator) -> None:
    if operator.batch != 1:
        raise ValueError(
            f"A holds a batch of {operator.batch} operators, but SciPy solves with one; build it from one coefficient."
        )


def _wrapped(apply: Callable[[Tensor], Tensor], operator: LinearOperator) -> scipy.sparse.linalg.LinearOperator:
    import scipy.sparse.linalg

    n = int(np.prod(operator.shape))

    def matvec(v: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(v):
            return matvec(v.real) + 1j * matvec(v.imag)
        # A copy: the host's vector may be read-only, and the result must not be the same memory.
        field = torch.from_numpy(np.array(v, dtype=dtype)).view(1, *operator.shape)
        with torch.no_grad():
            return apply(field.to(operator.device)).reshape(-1).cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    return scipy.sparse.linalg.LinearOperator(
        (n, n), matvec=matvec, rmatvec=matvec if operator.symmetric else None, dtype=dtype
    )
