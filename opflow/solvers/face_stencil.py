"""-div(a grad u) on a grid as weights on the faces between unknowns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opflow.grid import Grid, harmonic_mean
from opflow.solvers.linear_operator import LinearOperator

BOUNDARIES = ("dirichlet", "neumann")


class FaceStencil(LinearOperator):
    """(A u)_i = sum over axes of w_(i-1/2) (u_i - u_(i-1)) + w_(i+1/2) (u_i - u_(i+1)), zero outside the grid.

    Symmetric, and positive definite where some outer face has a positive weight; with zero weights on all outer faces
    (Neumann) it annihilates constants.

    Args:
        weights: one tensor per axis, (batch or 1, *shape) with one more entry along its own axis: the first and the
            last are the outer faces.
        boundary: what the outer faces stand for, for `FastPoisson`.
        layout: where the unknowns live: "nodes" (the interior ones) or "cells".

    >>> A = FaceStencil([torch.ones(1, 4)])
    >>> A.apply(torch.ones(1, 3))
    tensor([[1., 0., 1.]])
    """

    symmetric = True

    def __init__(self, weights: Sequence[Tensor], *, boundary: str = "dirichlet", layout: str = "nodes") -> None:
        dim = len(weights)
        shapes = {
            tuple(n - (axis == d) for axis, n in enumerate(w.shape[1:]))
            for d, w in enumerate(weights)
            if w.ndim == dim + 1
        }
        if len(shapes) != 1 or any(w.ndim != dim + 1 for w in weights):
            raise ValueError(
                f"the face weights have shapes {[tuple(w.shape) for w in weights]}; expected one tensor per axis, "
                "(batch, *shape) with one more entry along its own axis."
            )
        self.weights = tuple(weights)
        self.shape = shapes.pop()
        batches = {w.shape[0] for w in weights} - {1}
        if len(batches) > 1:
            raise ValueError(
                f"the face weights hold batches of {sorted(batches)} operators; expected one number, or 1."
            )
        self.batch = batches.pop() if batches else 1
        self.dtype, self.device = weights[0].dtype, weights[0].device
        self.boundary, self.layout = boundary, layout
        self._inner = tuple(w.narrow(d + 1, 1, w.shape[d + 1] - 2) for d, w in enumerate(self.weights))
        self._diagonal = sum(
            (
                w.narrow(d + 1, 0, w.shape[d + 1] - 1) + w.narrow(d + 1, 1, w.shape[d + 1] - 1)
                for d, w in enumerate(self.weights)
            ),
            start=torch.zeros((), dtype=self.dtype, device=self.device),
        )

    @classmethod
    def from_coefficient(cls, a: Tensor, grid: Grid, *, boundary: str = "dirichlet") -> FaceStencil:
        """-div(a grad u) of second order, with harmonic means of `a` (batch, *grid) on the faces.

        On nodes with Dirichlet boundary the unknowns are the interior nodes, so `shape` is two less per axis than the
        grid. On cells the outer faces are half a spacing away (Dirichlet) or closed (Neumann).

        Raises:
            ValueError: shapes, layout or boundary are not among these, or the coefficient is not positive.
        """
        grid.check(a, "the coefficient")
        if a.ndim != grid.dim + 1:
            raise ValueError(
                f"the coefficient has shape {tuple(a.shape)}; expected (batch, *grid) with grid {grid.shape}."
            )
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {boundary!r}; choose one of {', '.join(BOUNDARIES)}.")
        layout = grid.layout[0]
        if any(kind != layout for kind in grid.layout) or (layout, boundary) not in (
            ("nodes", "dirichlet"), ("cells", "dirichlet"), ("cells", "neumann"),
        ):  # fmt: skip
            raise ValueError(
                f"layout {grid.layout} with a {boundary} boundary is not discretised here; "
                "use nodes with dirichlet, or cells with dirichlet or neumann."
            )
        if layout == "nodes" and min(grid.shape) < 3:
            raise ValueError(f"the grid {grid.shape} has no interior node; use at least 3 nodes per axis.")
        if not bool(((a > 0) & (a < torch.inf)).all()):
            raise ValueError(
                "the coefficient must be positive and finite everywhere and not NaN; -div(a grad u) is not elliptic otherwise."
            )
        weights = []
        for d, h in enumerate(grid.spacing):
            axis, n = d + 1, grid.shape[d]
            if layout == "nodes":
                line = a
                for other in range(1, a.ndim):
                    if other != axis:
                        line = line.narrow(other, 1, line.shape[other] - 2)
                faces = harmonic_mean(line.narrow(axis, 0, n - 1), line.narrow(axis, 1, n - 1))
            else:
                ends = [a.narrow(axis, i, 1) * (2.0 if boundary == "dirichlet" else 0.0) for i in (0, n - 1)]
                inner = harmonic_mean(a.narrow(axis, 0, n - 1), a.narrow(axis, 1, n - 1))
                faces = torch.cat([ends[0], inner, ends[1]], dim=axis)
            weights.append(faces / h**2)
        return cls(weights, boundary=boundary, layout=layout)

    def diagonal(self) -> Tensor:
        """The diagonal of A, (batch or 1, *shape)"""
        return self._diagonal

    def apply(self, x: Tensor) -> Tensor:
        """A x, (batch, *shape) -> (batch, *shape)"""
        y = self._diagonal * x
        for d, w in enumerate(self._inner):
            axis, n = d + 1, self.shape[d]
            left, right = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
            y.narrow(axis, 1, n - 1).addcmul_(w, left, value=-1)
            y.narrow(axis, 0, n - 1).addcmul_(w, right, value=-1)
        return y

    def null_space(self) -> Tensor | None:
        """The unit constant if every outer face is closed."""
        closed = all(
            not w.select(d + 1, 0).any() and not w.select(d + 1, w.shape[d + 1] - 1).any()
            for d, w in enumerate(self.weights)
        )
        if not closed:
            return None
        ones = torch.ones(self.shape, dtype=self.dtype, device=self.device)
        return ones / ones.norm()
