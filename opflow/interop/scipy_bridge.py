"""opflow's operators, preconditioners and network directions as SciPy `LinearOperator`s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opflow.interop.host_operation import HostOperation
from opflow.typing import Preconditioner

if TYPE_CHECKING:
    import scipy.sparse.linalg


def as_linear_operator(operation: Any, A: Any = None) -> scipy.sparse.linalg.LinearOperator:
    """A for `scipy.sparse.linalg`, or with two arguments what maps residuals to directions, as ``M=`` of a flexible method.

    Acts on vectors (n,) and on (n, k), in the dtype of A; n is ``prod(A.shape)``, and for a FaceStencil with a mask or
    `free_dofs` the number of unknowns inside the domain.

    Args:
        operation: a LinearOperator of one matrix (batch 1), a SciPy sparse matrix or a dense square tensor. With `A` given: a
            preconditioner, or a callable from a residual of unit norm to a direction, set up on A. It need not be linear, so it
            is for flexible methods such as `scipy.sparse.linalg.gcrotmk`; for `cg` there is `as_preconditioner`, which checks.
            Directions that are not finite are replaced by the residual.
        A: the operator that a preconditioner or direction is for.

    >>> import torch
    >>> from opflow.solvers import FaceStencil
    >>> as_linear_operator(FaceStencil([torch.ones(1, 4).double()])) @ np.ones(3)
    array([1., 0., 1.])
    """
    return _wrapped(HostOperation.of_operator(operation) if A is None else HostOperation.of_inverse(operation, A))


def as_preconditioner(M: Preconditioner, A: Any) -> scipy.sparse.linalg.LinearOperator:
    """M as the argument ``M=`` of `scipy.sparse.linalg.cg`, set up on A.

    Raises:
        ValueError: M is not linear and symmetric; plain conjugate gradients would lose their theory in silence. Use
            `as_linear_operator(M, A)` with a flexible method such as `gcrotmk` for those.
    """
    linear, symmetric = (getattr(M, flag, None) for flag in ("linear", "symmetric"))
    if not (linear and symmetric):
        raise ValueError(
            f"{type(M).__name__} declares linear={linear}, symmetric={symmetric}, but scipy.sparse.linalg.cg needs both; use "
            "as_linear_operator(M, A) with a flexible method such as scipy.sparse.linalg.gcrotmk for it."
        )
    return _wrapped(HostOperation.of_inverse(M, A))


def _wrapped(operation: HostOperation) -> scipy.sparse.linalg.LinearOperator:
    import scipy.sparse.linalg

    def matmat(V: np.ndarray) -> np.ndarray:
        """(n, k) -> (n, k), all columns at once"""
        if np.iscomplexobj(V):
            return matmat(V.real) + 1j * matmat(V.imag)
        return operation(V.T).T

    def matvec(v: np.ndarray) -> np.ndarray:
        return matmat(v.reshape(-1, 1))[:, 0]

    n = operation.n
    adjoint = {"rmatvec": matvec, "rmatmat": matmat} if operation.linear and operation.symmetric else {}
    return scipy.sparse.linalg.LinearOperator((n, n), matvec=matvec, matmat=matmat, dtype=operation.dtype, **adjoint)
