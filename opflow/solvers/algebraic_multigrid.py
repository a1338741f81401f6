"""Algebraic multigrid for matrices that are no stencil: PyAMG's hierarchy as a symmetric V-cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator, as_operator

METHODS = ("smoothed-aggregation", "ruge-stueben")
LARGEST_DENSE = 1000
# Below this share of the largest one, an eigenvalue on the coarsest level is the rounding of a zero.
NULL_EIGENVALUE = 1e-12

Array = NDArray[np.float64]


class AlgebraicMultigrid:
    """M^-1 r: one V-cycle from zero over a hierarchy that is read off the matrix alone.

    For any operator that gives itself as a sparse matrix: a SciPy sparse matrix, a dense one, or a FaceStencil with or
    without a mask. A symmetric Gauss-Seidel sweep before and after each coarse correction makes the cycle symmetric, and
    the coarsest level is solved by a pseudo-inverse, so that closed (singular) boxes are served too. Unknowns without any
    entry pass unchanged. The hierarchy is kept in float64 on the CPU, one for each operator of a batch.

    Args:
        method: "smoothed-aggregation" for elliptic systems and wide stencils; "ruge-stueben" for scalar problems whose
            off-diagonal entries are mostly negative, strong at jumps and aligned anisotropy.
        near_null_space: vectors (n, k) that A nearly annihilates, such as the rigid body modes of elasticity; constants by
            default. Smoothed aggregation only.
        block: unknowns a node, the displacements of elasticity for example. Smoothed aggregation only.

    Raises:
        ImportError: PyAMG is not installed.

    Source: Ruge and Stueben (1987); Vanek, Mandel and Brezina (1996), as implemented by PyAMG (Bell, Olson, Schroder and
    Southworth 2023).

    >>> from opflow.solvers.conjugate_gradient import ConjugateGradient
    >>> A = 2.1 * torch.eye(200).double() - torch.eye(200).roll(1, 0) - torch.eye(200).roll(-1, 0)
    >>> ConjugateGradient(AlgebraicMultigrid()).solve(A, torch.ones(200).double()).all_converged
    True
    """

    linear = symmetric = deterministic = True

    def __init__(
        self,
        method: str = "smoothed-aggregation",
        *,
        near_null_space: Any = None,
        block: int = 1,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}.")
        if block < 1:
            raise ValueError(f"block is {block}; give the number of unknowns a node, 1 for scalar problems.")
        if method != "smoothed-aggregation" and (near_null_space is not None or block != 1):
            raise ValueError(
                f"near_null_space and block are for smoothed-aggregation; {method} treats scalar problems."
            )
        self._pyamg = _pyamg()
        self.method, self.near_null_space, self.block = method, near_null_space, block
        self._hierarchies: list[_Hierarchy] = []
        self._operators: list[LinearOperator] = []

    def setup(self, A: Any) -> AlgebraicMultigrid:
        """Build the hierarchy, one for each operator of a batch.

        Raises:
            TypeError: A gives no sparse matrix. ValueError: A is not finite or not symmetric, or does not fit the options.
        """
        operator = as_operator(A)
        self._operators = [operator.select(i) for i in range(operator.batch)]
        self._hierarchies = [self._hierarchy(one.to_sparse()) for one in self._operators]
        return self

    def apply(self, r: Tensor) -> Tensor:
        """One V-cycle on each column, (batch, *shape) -> (batch, *shape)"""
        if not self._hierarchies:
            raise RuntimeError(
                "AlgebraicMultigrid.apply was called before setup(A); a preconditioner reads its operator first."
            )
        shares = [r] if len(self._hierarchies) == 1 else r.split(1)
        parts = [
            operator.scatter(hierarchy.cycles(operator.gather(share)))
            for operator, hierarchy, share in zip(self._operators, self._hierarchies, shares, strict=True)
        ]
        return torch.cat(parts)

    @property
    def nbytes(self) -> int:
        """Memory of the hierarchies: the matrices of all levels and the interpolations between them."""
        return sum(hierarchy.nbytes for hierarchy in self._hierarchies)

    def _hierarchy(self, matrix: Any) -> _Hierarchy:
        matrix = _checked(matrix)
        entries = np.flatnonzero(np.diff(matrix.indptr))
        B = None if self.near_null_space is None else np.asarray(self.near_null_space, dtype=np.float64)
        n = matrix.shape[0]
        if (B is not None and (B.ndim != 2 or len(B) != n)) or n % self.block:
            raise ValueError(
                f"A has {n} rows, but block is {self.block} and near_null_space has shape {None if B is None else B.shape}; "
                "expected (n, k) with n a multiple of block."
            )
        if len(entries) < n:
            if self.block > 1:
                raise ValueError(
                    f"A has {n - len(entries)} rows without entries, which block={self.block} does not allow; remove them."
                )
            matrix, B = matrix[entries][:, entries], None if B is None else B[entries]
        with _fixed_random_numbers():
            if self.method == "ruge-stueben":
                solver = self._pyamg.ruge_stuben_solver(matrix)
            else:
                matrix = matrix.tobsr((self.block, self.block)) if self.block > 1 else matrix
                solver = self._pyamg.smoothed_aggregation_solver(matrix, B=B, symmetry="symmetric")
        return _Hierarchy(solver.levels, self._coarsest(solver.levels[-1].A), entries)

    def _coarsest(self, matrix: Any) -> Callable[[Array], Array]:
        """The coarsest level solved: exactly, but for what is null; where nothing coarsened any more, by sweeps."""
        if matrix.shape[0] <= LARGEST_DENSE:
            inverse = np.linalg.pinv(matrix.toarray(), rcond=NULL_EIGENVALUE, hermitian=True)
            return lambda r: inverse @ r
        sweeps = self._pyamg.coarse_grid_solver(("gauss_seidel", {"sweep": "symmetric", "iterations": 10}))
        return lambda r: np.asarray(sweeps(matrix, r))


class _Hierarchy:
    """The levels of one matrix. `entries` are its rows with entries; the others pass unchanged, as if they held a one."""

    def __init__(self, levels: Any, coarsest: Callable[[Array], Array], entries: Any) -> None:
        self.levels, self.coarsest, self.entries = levels, coarsest, entries

    def cycles(self, columns: Tensor) -> Tensor:
        """One V-cycle from zero on each column, (batch, n) -> (batch, n)"""
        r = columns.detach().to("cpu", torch.float64).numpy()
        z = r.copy()
        for i in range(len(r)):
            z[i, self.entries] = self._cycle(0, r[i, self.entries])
        return torch.from_numpy(z).to(columns)

    def _cycle(self, depth: int, r: Array) -> Array:
        if depth == len(self.levels) - 1:
            return self.coarsest(r)
        level = self.levels[depth]
        z = np.zeros_like(r)
        level.presmoother(level.A, z, r)
        z += level.P @ self._cycle(depth + 1, level.R @ (r - level.A @ z))
        level.postsmoother(level.A, z, r)
        return z

    @property
    def nbytes(self) -> int:
        matrices = [getattr(level, name) for level in self.levels for name in "APR" if hasattr(level, name)]
        return sum(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes for m in matrices)


def _checked(matrix: Any) -> Any:
    """The matrix as PyAMG takes it: CSR in float64 with 32-bit indices, an object of its own."""
    from scipy.sparse import csr_array  # on use: `import opflow` loads no SciPy

    eps = np.finfo(matrix.dtype).eps
    checked = csr_array(matrix, dtype=np.float64)  # may share its arrays with the caller's
    if checked is matrix or not checked.has_canonical_format:
        checked = checked.copy()
    checked.sum_duplicates()
    checked.eliminate_zeros()
    if checked.nnz >= np.iinfo(np.int32).max:
        raise ValueError(
            f"A has {checked.nnz} entries, but PyAMG counts them in 32 bits; use Multigrid on a FaceStencil."
        )
    checked.indices, checked.indptr = checked.indices.astype(np.int32), checked.indptr.astype(np.int32)
    if not np.isfinite(checked.data).all():
        raise ValueError("A has entries that are NaN or infinite; a hierarchy needs finite ones.")
    gap, size = (abs(m).max() if m.nnz else 0.0 for m in (checked - checked.T, checked))
    if gap > eps**0.5 * size:
        raise ValueError(
            f"A is not symmetric: entries differ from their mirror images by up to {gap / size:.0e} of the largest. "
            "The V-cycle here is a symmetric one; use PyAMG with GMRES for this matrix."
        )
    return checked


def _pyamg() -> Any:
    try:
        import pyamg
    except ImportError as error:
        raise ImportError(
            "AlgebraicMultigrid needs PyAMG, which is not installed; run: pip install 'opflow[amg]'"
        ) from error
    return pyamg


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    """PyAMG draws from NumPy's global stream: the same numbers at every setup, and the caller's stream left as it was."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
