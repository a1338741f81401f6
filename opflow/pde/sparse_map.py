"""Products with sparse matrices and solves with factorised ones, both differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class SparseMap:
    """b -> B b for a constant matrix B, or its transpose: what `SparseMatrix` and `SparseFactors` share.

    It is differentiable to any order, in reverse and in forward mode. The work is SciPy's, in float64 on the CPU; the result has b's
    dtype and device.
    """

    shape: tuple[int, int]
    symmetric = False

    def _checked(self, b: Tensor, rows: int) -> Tensor:
        if b.ndim not in (1, 2) or b.shape[0] != rows:
            raise ValueError(
                f"the vector has shape {tuple(b.shape)} but the matrix is {self.shape}; expected ({rows},) or ({rows}, columns)."
            )
        return b

    def _mapped(self, b: Tensor, transposed: bool) -> Tensor:
        values = self._apply(np.asfortranarray(b.detach().cpu().double().numpy()), transposed)
        return torch.from_numpy(values).to(b)

    def _apply(self, values: Any, transposed: bool) -> Any:
        raise NotImplementedError


class SparseMatrix(SparseMap):
    """x -> A x for a SciPy sparse matrix A (rows, columns), with derivatives.

    >>> from scipy.sparse import csr_array
    >>> B = SparseMatrix(csr_array([[0.5, 0.5, 0.0]]))
    >>> B(torch.tensor([1.0, 3.0, 7.0]))
    tensor([2.])
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix, self._transpose = matrix.tocsr(), matrix.T.tocsr()
        self.shape = matrix.shape

    def __call__(self, x: Tensor) -> Tensor:
        """A x for x (columns,) or (columns, k)."""
        y: Tensor = _Map.apply(self._checked(x, self.shape[1]), self, False)
        return y

    def _apply(self, values: Any, transposed: bool) -> Any:
        return (self._transpose if transposed else self._matrix) @ values


class SparseFactors(SparseMap):
    """x = A^-1 b with one sparse factorisation of a constant A. The gradient of a loss, g = dJ/dx, gives dJ/db = A^-T g: one more solve.

    Args:
        matrix: SciPy sparse (n, n), real.
        positive: A is symmetric and positive definite, which saves most of the pivoting and of the fill.

    Raises:
        ValueError: A is singular.

    >>> from scipy.sparse import diags_array
    >>> b = torch.ones(2, requires_grad=True)
    >>> SparseFactors(diags_array([2.0, 4.0]), positive=True).solve(b).sum().backward()
    >>> b.grad
    tensor([0.5000, 0.2500])
    """

    def __init__(self, matrix: Any, *, positive: bool = False) -> None:
        from scipy.sparse.linalg import splu  # on use: `import opflow` loads no SciPy

        ordering = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        try:
            self._factors = splu(matrix.tocsc(), **(ordering if positive else {}))
            pivots = abs(self._factors.U.diagonal())
        except RuntimeError:  # SuperLU met an exact zero; rounding mostly leaves a small number instead
            pivots = np.zeros(1)
        if not pivots.min() > 1e-14 * pivots.max():
            raise ValueError(
                f"the matrix {matrix.shape} is singular to rounding; is a boundary value fixed somewhere, and every coefficient positive?"
            )
        self.shape, self.symmetric = matrix.shape, positive

    def solve(self, b: Tensor) -> Tensor:
        """A^-1 b for b (n,) or (n, columns)."""
        x: Tensor = _Map.apply(self._checked(b, self.shape[0]), self, False)
        return x

    def _apply(self, values: Any, transposed: bool) -> Any:
        return self._factors.solve(values, "T" if transposed else "N")


class _Map(torch.autograd.Function):
    """A linear map; its derivatives are the map and its transpose again."""

    @staticmethod
    def forward(b: Tensor, linear: SparseMap, transposed: bool) -> Tensor:
        return linear._mapped(b, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.linear, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Map.apply(g, ctx.linear, not ctx.transposed and not ctx.linear.symmetric), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Map.apply(tangent, ctx.linear, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, b: Tensor, linear: SparseMap, transposed: bool) -> tuple[Tensor, int]:
        columns = b.movedim(in_dims[0], -1)  # (n, ..., batch)
        x = _Map.apply(columns.reshape(len(columns), -1), linear, transposed)
        return x.reshape(len(x), *columns.shape[1:]), columns.ndim - 1
