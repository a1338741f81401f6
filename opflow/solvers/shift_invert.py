"""A symmetric indefinite sparse system, and how near to singular it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_REFINEMENTS = 5
MOST_LANCZOS_STEPS = 30
LANCZOS_TOLERANCE = 0.01  # of the distance to the eigenvalue


class ShiftInvert:
    """(K - B) u = b by one sparse factorisation, and the eigenvalue of K v = mu B v that is nearest to 1.

    K is symmetric and B diagonal and positive, so the mu are real; K - B is indefinite where some of them lie below 1, and singular
    where one is 1. The solution of (K - B) u = b has the coefficients (v_j, b) / (mu_j - 1) in the eigenvectors: a relative change
    of B by epsilon changes it by up to epsilon / |mu - 1|, mu the nearest. That distance is what says whether a solution means
    anything, more than a condition number, which grows with the grid.

    Args:
        K: SciPy sparse array (n, n), symmetric.
        B: the diagonal (n,), positive.

    >>> from scipy.sparse import diags_array
    >>> round(ShiftInvert(diags_array([0.5, 1.1, 4.0]), np.ones(3)).nearest_eigenvalue(), 9)
    1.1
    """

    def __init__(self, K: Any, B: Array) -> None:
        from scipy.sparse import diags_array  # on use: `import opflow` loads no SciPy
        from scipy.sparse.linalg import splu

        self._matrix, self._B = (K - diags_array(B)).tocsc(), B
        try:
            # A symmetric ordering halves the fill of the default one, and pivots are taken off the diagonal where it is small.
            self._lu = splu(
                self._matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.1, options={"SymmetricMode": True}
            )
        except RuntimeError as error:
            if "singular" not in str(error):
                raise
            self._lu = None

    def nearest_eigenvalue(self) -> float:
        """mu nearest to 1, by Lanczos steps on (K - B)^-1 B, which is symmetric in the inner product of B.

        The distance is approached from above, to about one percent: 1 / (mu - 1) is the largest of the inverse's eigenvalues, and Ritz
        values lie inside the spectrum. An exactly singular system gives 1.
        """
        if self._lu is None:
            return 1.0
        v = np.random.default_rng(0).standard_normal(len(self._B))  # fixed, so that one system has one answer
        v /= np.sqrt(v @ (self._B * v))
        basis, largest = [v], 0.0
        diagonal: list[float] = []
        beside: list[float] = []
        for _ in range(min(MOST_LANCZOS_STEPS, len(v))):
            w = self._lu.solve(self._B * basis[-1])
            diagonal.append(float(w @ (self._B * basis[-1])))
            for _ in range(2):  # twice is enough to keep the basis orthogonal
                Q = np.stack(basis)
                w -= (Q @ (self._B * w)) @ Q
            ritz = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
            before, largest = largest, float(ritz[np.abs(ritz).argmax()])
            beside.append(float(np.sqrt(w @ (self._B * w))))
            if abs(largest - before) <= LANCZOS_TOLERANCE * abs(largest) or beside[-1] <= 1e-14 * abs(largest):
                break
            basis.append(w / beside[-1])
        return 1 + 1 / largest

    def solve(self, b: Array, *, rtol: float) -> Array:
        """u for every column of b (n, columns), refined until the recomputed |b - (K - B) u| <= rtol |b|.

        Raises:
            RuntimeError: the system is singular, or refinement does not reach rtol.
        """
        if self._lu is None:
            raise RuntimeError("the system is exactly singular; no solution is given.")
        u, norm = self._lu.solve(b), np.linalg.norm(b, axis=0)
        for _ in range(MOST_REFINEMENTS):
            r = b - self._matrix @ u
            size = np.linalg.norm(r, axis=0)
            if (size <= rtol * norm).all():
                return np.asarray(u)
            u += self._lu.solve(r)
        worst = float((size / np.where(norm > 0, norm, 1.0)).max())
        raise RuntimeError(
            f"the recomputed relative residual of the direct solve is {worst:.1e} after {MOST_REFINEMENTS} refinements, and "
            f"rtol={rtol:g} was asked for; ask for less, or check that the right-hand side is finite."
        )
