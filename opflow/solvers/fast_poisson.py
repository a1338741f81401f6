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
def _transform(
    n: int, layout: str, sides: tuple[str, str], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The orthonormal eigenvectors (n, n), one a row, of the second difference with unit weights, and its eigenvalues."""
    i = torch.arange(n, dtype=torch.float64)
    if (layout, sides) == ("nodes", ("dirichlet", "dirichlet")):  # DST-I
        angle = math.pi * (i + 1) / (n + 1)
        vectors = torch.sin(angle[:, None] * (i + 1))
    elif layout == "periodic":  # real Fourier vectors
        angle = 2 * math.pi * torch.div(i + 1, 2, rounding_mode="floor") / n
        vectors = torch.where((i % 2 == 0)[:, None], torch.cos(angle[:, None] * i), torch.sin(angle[:, None] * i))
        if n % 2 == 0:
            vectors[-1] = torch.cos(math.pi * i)
    elif (layout, sides) == ("cells", ("dirichlet", "dirichlet")):  # DST-II
        angle = math.pi * (i + 1) / n
        vectors = torch.sin(angle[:, None] * (i + 0.5))
    elif (layout, sides) == ("cells", ("neumann", "neumann")):  # DCT-II
        angle = math.pi * i / n
        vectors = torch.cos(angle[:, None] * (i + 0.5))
    elif layout == "cells":  # DCT-IV where the lower side is closed, DST-IV where the upper one is
        angle = math.pi * (i + 0.5) / n
        wave = torch.cos if sides == ("neumann", "dirichlet") else torch.sin
        vectors = wave(angle[:, None] * (i + 0.5))
    else:
        raise ValueError(
            f"FastPoisson has no transform for {layout} with {sides[0]} and {sides[1]} sides; use Multigrid."
        )
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return vectors.to(dtype=dtype, device=device), (2 - 2 * torch.cos(angle)).to(dtype=dtype, device=device)


class FastPoisson:
    """M = -sum_d w_d d^2/dx_d^2 with the mean face weight w_d of A along each axis, inverted exactly.

    For a coefficient of contrast c the preconditioned condition number is at most c max_d w_d / min_d w_d at every
    resolution, the weights taken per unit spacing. The transforms are matrix products with the orthonormal sine or
    cosine vectors: O(n) per unknown and axis, and the same on every device. Sides may differ on cells; periodic axes take Fourier
    vectors. Obstacles are not seen by M: it is the box's inverse, cut to the domain.

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
        if A.reaction is not None or A.corners is not None:
            raise ValueError(
                "FastPoisson inverts -div(a grad u) alone, but A has a reaction or corner weights; use Multigrid."
            )
        dim = len(A.shape)
        eigenvalues = torch.zeros((), dtype=A.dtype, device=A.device)
        self._vectors = []
        for d, n in enumerate(A.shape):
            vectors, values = _transform(n, A.layout[d], A.boundary[d], A.dtype, A.device)
            self._vectors.append(vectors)
            w = _mean_weight(A, d)
            eigenvalues = eigenvalues + w.view(-1, *[1] * dim) * values.view([-1 if a == d else 1 for a in range(dim)])
        self.eigenvalues = eigenvalues
        # The pseudo-inverse: a closed (Neumann) box has the eigenvalue 0 for constants.
        self._inverse = torch.where(eigenvalues > 0, 1 / eigenvalues, 0.0)
        self._scale = None
        if self.scaled:
            diagonal = A.diagonal()
            inside = diagonal > 0
            mean = (diagonal.flatten(1).sum(1) / inside.flatten(1).sum(1)).view(-1, *[1] * dim)
            self._scale = torch.where(inside, mean / diagonal, 0.0).sqrt()
        self._ready = A
        return self

    def apply(self, r: Tensor) -> Tensor:
        """M^(-1) r, (batch, *shape) -> (batch, *shape)"""
        if self._ready is None:
            raise RuntimeError(
                "FastPoisson.apply was called before setup(A); a preconditioner reads its operator first."
            )
        outside = self._ready.mask
        r = r if outside is None else r * outside
        z = r if self._scale is None else self._scale * r
        z = self._rotate(z, inverse=False) * self._inverse
        z = self._rotate(z, inverse=True)
        z = z if self._scale is None else self._scale * z
        return z if outside is None else z * outside

    def from_modes(self, c: Tensor) -> Tensor:
        """sum_j c_j q_j over the orthonormal eigenvectors of M, (batch, *shape) -> (batch, *shape), in the order of `eigenvalues`"""
        return self._rotate(c, inverse=True)

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


def _mean_weight(A: FaceStencil, d: int) -> Tensor:
    """The mean weight (batch or 1,) of the inner faces along axis d; obstacles are left out of it."""
    n, axis = A.shape[d], d + 1
    if n == 1:  # outer faces only, half a spacing away on cells
        ends = A.weights[d].movedim(axis, 1).reshape(A.weights[d].shape[0], 2, -1).mean(2)
        return ends.amax(1) / 2 if A.layout[d] == "cells" else ends.mean(1)
    faces = A.weights[d].narrow(axis, 1, n - 1).flatten(1)
    if A.mask is None:
        return faces.mean(1)
    return faces.sum(1) / (faces != 0).sum(1).clamp(min=1)
