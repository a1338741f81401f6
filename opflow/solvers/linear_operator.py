"""Linear operators: stencils, SciPy sparse matrices and dense tensors behind one verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class LinearOperator:
    """x -> A x for a batch of unknowns (batch, *shape).

    Attributes:
        shape: the shape of one unknown, (n,) or a grid.
        dtype, device: of the numbers that define A.
        batch: how many operators A holds, one for each right-hand side; 1 is one for all.
        symmetric: True if symmetric by construction; None if unknown, and then solvers probe it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    batch: int = 1
    symmetric: bool | None = None

    def apply(self, x: Tensor) -> Tensor:
        """A x, (batch, *shape) -> (batch, *shape)"""
        raise TypeError(f"{type(self).__name__} does not define apply(x); a linear operator needs it.")

    def null_space(self) -> Tensor | None:
        """A unit vector (*shape) that spans the null space where that is known; None where A has none that is known."""
        return None

    def null_part(self, x: Tensor) -> Tensor | None:
        """The orthogonal projection of x (batch, *shape) on the null space; None where A has none that is known."""
        null = self.null_space()
        if null is None:
            return None
        return (x * null).flatten(1).sum(1).view(-1, *[1] * null.ndim) * null

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that define A, for gradients with respect to them; none where A keeps its numbers elsewhere."""
        return ()

    def with_tensors(self, tensors: Sequence[Tensor]) -> LinearOperator:
        """The same operator on other tensors of equal shapes, in the order of `tensors()`."""
        if tensors or self.tensors():
            raise TypeError(
                f"{type(self).__name__} does not define with_tensors(tensors); gradients with respect to A need it."
            )
        return self

    def select(self, i: int) -> LinearOperator:
        """The i-th of a batch of operators, alone."""
        if self.batch == 1:
            return self
        return self.with_tensors([t[i : i + 1] if len(t) == self.batch else t for t in self.tensors()])

    def gather(self, x: Tensor) -> Tensor:
        """The unknowns as the vectors that a host program holds, (batch, *shape) -> (batch, n)"""
        return x.flatten(1)

    def scatter(self, v: Tensor) -> Tensor:
        """Such vectors back in place, (batch, n) -> (batch, *shape)"""
        return v.reshape(len(v), *self.shape)

    def to_sparse(self) -> Any:
        """A as a SciPy CSR array (n, n), acting on the vectors that `gather` gives."""
        raise TypeError(
            f"{type(self).__name__} does not define to_sparse(); give a FaceStencil, a SciPy sparse matrix or a dense square tensor."
        )


class DenseOperator(LinearOperator):
    """A dense matrix (n, n).

    >>> DenseOperator(2 * torch.eye(3)).apply(torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """

    def __init__(self, matrix: Tensor, *, allow_complex: bool = False) -> None:
        numbers = matrix.is_floating_point() or (allow_complex and matrix.is_complex())
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not numbers:
            raise ValueError(
                f"A is {matrix.dtype} of shape {tuple(matrix.shape)}; expected a square matrix of "
                f"{'real or complex' if allow_complex else 'real'} floating-point numbers."
            )
        self.matrix = matrix
        self.shape, self.dtype, self.device = (matrix.shape[0],), matrix.dtype, matrix.device

    def apply(self, x: Tensor) -> Tensor:
        """A x, (batch, n) -> (batch, n)"""
        return x @ self.matrix.T

    def tensors(self) -> tuple[Tensor, ...]:
        """The matrix (n, n)."""
        return (self.matrix,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> DenseOperator:
        """The operator of another matrix (n, n)."""
        return DenseOperator(*tensors, allow_complex=self.matrix.is_complex())

    def to_sparse(self) -> Any:
        """The matrix without its zeros, a SciPy CSR array (n, n)."""
        from scipy.sparse import csr_array  # on use: `import opflow` loads no SciPy

        return csr_array(self.matrix.detach().cpu().numpy())


class SparseOperator(LinearOperator):
    """A SciPy sparse matrix or array, applied by SciPy on the CPU."""

    def __init__(self, matrix: Any, *, allow_complex: bool = False) -> None:
        matrix = matrix.tocsr()
        allowed = (np.float32, np.float64) + ((np.complex64, np.complex128) if allow_complex else ())
        if matrix.shape[0] != matrix.shape[1] or matrix.dtype not in allowed:
            raise ValueError(
                f"A is {matrix.dtype} of shape {matrix.shape}; expected a square matrix in float32 or float64"
                f"{', complex64 or complex128' if allow_complex else ''}."
            )
        self.matrix = matrix
        self.shape = (matrix.shape[0],)
        self.dtype = torch.from_numpy(matrix.data[:0].copy()).dtype
        self.device = torch.device("cpu")

    def apply(self, x: Tensor) -> Tensor:
        """A x, (batch, n) -> (batch, n)"""
        return torch.from_numpy(np.ascontiguousarray((self.matrix @ x.detach().numpy().T).T))

    def to_sparse(self) -> Any:
        """The matrix itself, in CSR format (n, n)."""
        return self.matrix


def as_operator(A: Any, *, allow_complex: bool = False) -> LinearOperator:
    """A LinearOperator as it is; a SciPy sparse matrix, a NumPy array or a dense tensor wrapped.

    Raises:
        TypeError: A is none of these. ValueError: A is not square, or not real and `allow_complex` is not said.
    """
    if isinstance(A, LinearOperator):
        return A
    if isinstance(A, Tensor):
        return DenseOperator(A, allow_complex=allow_complex)
    if isinstance(A, np.ndarray):
        return DenseOperator(
            torch.from_numpy(np.array(A)), allow_complex=allow_complex
        )  # a copy: torch warns about read-only arrays
    if hasattr(A, "tocsr"):
        return SparseOperator(A, allow_complex=allow_complex)
    raise TypeError(
        f"A is a {type(A).__name__}; expected an opflow LinearOperator, a SciPy sparse matrix or a dense square tensor."
    )
