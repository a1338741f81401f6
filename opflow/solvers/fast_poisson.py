"""The constant-coefficient Poisson operator inverted by sine or cosine transforms: a preconditioner, or a direct solver."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from opflow.solvers.face_stencil import FaceStencil


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for later calls, which may need gradients
def _transform(n: int, kind: tuple[str, str], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The orthonormal eigenvectors (n, n), one a row, of the second difference with unit weights, and its eigenvalues."""
    i = torch.arange(n, dtype=torch.float64)
    if kind == ("nodes", "dirichlet"):  # DST-I
        angle = math.pi * (i + 1) / (n + 1)
        vectors = torch.sin(angle[:, None] * (i + 1))
    elif kind == ("cells", "dirichlet"):  # DST-II
        angle = math.pi * (i + 1) / n
        vectors = torch.sin(angle[:, None] * (i + 0.5))
    else:  # ("cells", "neumann"): DCT-II
        angle = math.pi * i / n
        vectors = torch.cos(angle[:, None] * (i + 0.5))
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return vectors.to(dtype=dtype, device=device), (2 - 2 * torch.cos(angle)).to(dtype=dtype, device=device)


class FastPoisson:
    """M = -sum_d w_d d^2/dx_d^2 with the mean face weight w_d of A along each axis, inverted exactly.

    For a coefficient of contrast c the preconditioned condition number is at most c max_d w_d / min_d w_d at every
    resolution, the weights taken per unit spacing. The transforms are matrix products with the orthonormal sine or
    cosine vectors: O(n) per unknown and axis, and the same on every device.

    Args:
        scaled: M is replaced by D^(1/2) M D^(1/2) with D the ratio of the diagonals. It pays for coefficients that vary
            smoothly over orders of magnitude and hurts for piecewise-constant ones.

    >>> from opflow.grid import Grid
    >>> A = FaceStencil.from_coefficient(torch.ones(1, 17, 17), Grid((17, 17)))
    >>> b = torch.ones(1, 15, 15)
    >>> bool(torch.allclose(A.apply(FastPoisson().setup(A).apply(b)), b, atol=1e-4))
    True
    """

    linear = symmetric = deterministic = True

    def __init__(self, *, scaled: bool = False) -> None:
        self.scaled = scaled
        self._ready: FaceStencil | None = None

    def setup(self, A: Any) -> FastPoisson:
        """Read the mean weights of a FaceStencil.

        Raises:
            TypeError: A is no FaceStencil, so that its grid is unknown.
        """
        if not isinstance(A, FaceStencil):
            raise TypeError(
                f"FastPoisson needs a FaceStencil to know the grid, but A is a {type(A).__name__}; build one with FaceStencil.from_coefficient."
            )
        kind = (A.layout, A.boundary)
        dim = len(A.shape)
        eigenvalues = torch.zeros((), dtype=A.dtype, device=A.device)
        self._vectors = []
        for d, n in enumerate(A.shape):
            vectors, values = _transform(n, kind, A.dtype, A.device)
            self._vectors.append(vectors)
            w = A.weights[d].narrow(d + 1, 1, max(n - 1, 1)).flatten(1).mean(1)
            if n == 1 and A.layout == "cells":
                w = w / 2  # a single cell has outer faces only, half a spacing away
            eigenvalues = eigenvalues + w.view(-1, *[1] * dim) * values.view([-1 if a == d else 1 for a in range(dim)])
        # The pseudo-inverse: a closed (Neumann) box has the eigenvalue 0 for constants.
        self._inverse = torch.where(eigenvalues > 0, 1 / eigenvalues, 0.0)
        self._scale = None
        if self.scaled:
            mean = A.diagonal().flatten(1).mean(1).view(-1, *[1] * dim)
            self._scale = (mean / A.diagonal()).sqrt()
        self._ready = A
        return self

    def apply(self, r: Tensor) -> Tensor:
        """M^(-1) r, (batch, *shape) -> (batch, *shape)"""
        if self._ready is None:
            raise RuntimeError(
                "FastPoisson.apply was called before setup(A); a preconditioner reads its operator first."
            )
        z = r if self._scale is None else self._scale * r
        z = self._rotate(z, inverse=False) * self._inverse
        z = self._rotate(z, inverse=True)
        return z if self._scale is None else self._scale * z

    def _rotate(self, z: Tensor, *, inverse: bool) -> Tensor:
        for d, vectors in enumerate(self._vectors):
            matrix = vectors.T if inverse else vectors
            axis = d + 1
            # The last two axes take their product in place; an earlier one is brought there.
            if axis == z.ndim - 1:
                z = z @ matrix.T
            elif axis == z.ndim - 2:
                z = matrix @ z
            else:
                z = (z.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return z
