"""Face stencils solved by sparse triangular factors, where a Krylov method would need too many steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.solvers.face_stencil import FaceStencil

MOST_REFINEMENTS = 3
ROUNDING = 8 * float(np.finfo(np.float64).eps)


def solve_by_factors(A: FaceStencil, b: Tensor, *, rtol: float) -> Tensor:
    """x with A x = b, for b (batch, *shape), in float64 on the CPU, by sparse LU factors and iterative refinement.

    A column is accepted where ||b - A x|| <= rtol ||b||, or where it is all that numbers of this precision can do: where the
    residual is at most the rounding of its own terms, 8 eps || |A| |x| + |b| ||. For contrasts of 1e4 and more on fine grids that is
    more than 1e-10 of b (Higham 2002, "Accuracy and stability of numerical algorithms", section 7.1).

    Raises:
        RuntimeError: a residual is larger, or NaN or infinity came in.
    """
    solutions = np.empty((b.shape[0], b[0].numel() if len(b) else 0))
    for i, right in enumerate(b.detach().to("cpu", torch.float64).flatten(1).numpy()):
        if not np.isfinite(right).all():
            raise RuntimeError(
                f"the right-hand side of sample {i} holds NaN or infinity; correct or leave out this sample."
            )
        solutions[i] = _solve(as_csc(A, i if A.batch > 1 else 0), right, rtol, i)
    return torch.from_numpy(solutions).view(b.shape).to(b.device)


def as_csc(A: FaceStencil, number: int = 0) -> Any:
    """Operator `number` of the batch as a SciPy CSC array (n, n) in float64, unknowns in row-major order."""
    return A.select(number).to_sparse().astype("float64").tocsc()


def _solve(matrix: Any, b: Any, rtol: float, sample: int) -> Any:
    from scipy.sparse.linalg import splu

    # Symmetric and positive definite: the diagonal is a stable pivot, and the pattern's own fill is least.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    x = factors.solve(b)
    for _ in range(MOST_REFINEMENTS):
        residual = b - matrix @ x
        size = np.linalg.norm(residual)
        if size <= rtol * np.linalg.norm(b):
            return x
        x = x + factors.solve(residual)
    size = np.linalg.norm(b - matrix @ x)
    if size <= max(rtol * np.linalg.norm(b), ROUNDING * np.linalg.norm(abs(matrix) @ abs(x) + abs(b))):
        return x
    raise RuntimeError(
        f"the factors of sample {sample} leave a residual of {size / np.linalg.norm(b):.1e} of the right-hand side, more than rtol={rtol:g} "
        "and than rounding explains; the permeability has too large a contrast for float64."
    )
