"""A factorised sparse matrix, whose solves have derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class SparseFactors:
    """x = A^-1 b with one sparse factorisation of a constant A, differentiable in b to any order, in reverse and forward mode.

    The gradient of a loss g = dJ/dx gives dJ/db = A^-T g: one more solve with the same factors. The factors are SciPy's
    (SuperLU), in float64 on the CPU; x has b's dtype and device.

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

        ordering = {
            "permc_spec": "MMD_AT_PLUS_A",
            "diag_pivot_thresh": 0.0,
            "options": {"SymmetricMode": True},
        }
        try:
            self._factors = splu(matrix.tocsc(), **(ordering if positive else {}))
        except RuntimeError as error:
            raise ValueError(
                f"the matrix {matrix.shape} is singular; is the boundary value fixed somewhere, and every coefficient positive?"
            ) from error
        self.shape: tuple[int, int] = matrix.shape
        self.positive = positive

    def solve(self, b: Tensor, *, transposed: bool = False) -> Tensor:
        """A^-1 b, or A^-T b, for b (n,) or (n, columns)."""
        if b.ndim not in (1, 2) or b.shape[0] != self.shape[0]:
            raise ValueError(f"b has shape {tuple(b.shape)} but A is {self.shape}; expected (n,) or (n, columns).")
        x: Tensor = _Solve.apply(b, self, transposed and not self.positive)
        return x

    def _solve(self, b: Tensor, transposed: bool) -> Tensor:
        values = np.asfortranarray(b.detach().cpu().double().numpy())
        return torch.from_numpy(self._factors.solve(values, "T" if transposed else "N")).to(b)


class _Solve(torch.autograd.Function):
    """The solve; its derivatives are solves again."""

    @staticmethod
    def forward(b: Tensor, factors: SparseFactors, transposed: bool) -> Tensor:
        return factors._solve(b, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.factors, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Solve.apply(g, ctx.factors, not ctx.transposed and not ctx.factors.positive), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Solve.apply(tangent, ctx.factors, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, b: Tensor, factors: SparseFactors, transposed: bool) -> tuple[Tensor, int]:
        columns = b.movedim(in_dims[0], -1)  # (n, ..., batch)
        x = _Solve.apply(columns.reshape(len(columns), -1), factors, transposed)
        return x.reshape(columns.shape), columns.ndim - 1
