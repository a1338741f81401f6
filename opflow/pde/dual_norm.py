"""The norm in which a residual of a weak form measures the error."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from opflow.pde.sparse_map import SparseFactors
from opflow.pde.weak_form import WeakForm


class DualNorm:
    """|R| = sqrt(R^T K^-1 R), with K_ij = int k grad phi_i . grad phi_j + m phi_i phi_j on the free nodes of a weak form.

    It is the largest R(v) over test functions v of norm 1. For F = k grad u it equals the error of u in the energy norm, so its
    square has condition number 1 there, where |R|_2^2 has the square of K's, which grows like h^-4. K is factorised once;
    the gradient is exact. z = K^-1 R is the residual's Riesz representative; |R|^2 = int k |grad z|^2 + m z^2.

    Args:
        form: its free nodes and its space; a vector has K for every component.
        coefficient: k, a positive number or nodal field; near the equation's own diffusivity the norm is near the energy norm.
        mass: m >= 0; None is 0, or 1 where no node is fixed, since K alone is singular there.

    Raises:
        ValueError: k or m is not as stated, or K is singular.

    >>> from opflow.mesh import Mesh
    >>> from opflow.pde.finite_element import FiniteElementSpace
    >>> points = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]], dtype=torch.float64)
    >>> space = FiniteElementSpace(Mesh(points, torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])))
    >>> norm = DualNorm(WeakForm(space, lambda u, grad, x, p: grad))
    >>> norm(torch.tensor([6.0], dtype=torch.float64))  # K = 4
    tensor(3., dtype=torch.float64)
    """

    def __init__(self, form: WeakForm, coefficient: Tensor | float = 1.0, *, mass: float | None = None) -> None:
        space = form.space
        k = torch.as_tensor(coefficient, dtype=torch.float64).detach()
        if not bool((k > 0).all()) or not bool(k.isfinite().all()):
            raise ValueError("the coefficient of the norm must be positive and finite everywhere.")
        self.mass = (0.0 if bool(form.fixed.any()) else 1.0) if mass is None else float(mass)
        if not self.mass >= 0:
            raise ValueError(f"mass is {mass}; it must not be negative.")
        self.form = form
        self.coefficient = k.expand(space.n_nodes) if k.ndim == 0 else k

    @cached_property
    def factors(self) -> SparseFactors:
        """K, factorised."""
        from scipy.sparse import eye_array, kron

        space, free = self.form.space, self.form.free.numpy()
        matrix = space.stiffness(self.coefficient) + self.mass * space.mass()
        whole: Any = kron(matrix, eye_array(space.components or 1)).tocsr()
        return SparseFactors(whole[free][:, free], positive=True)

    def representative(self, residual: Tensor) -> Tensor:
        """z = K^-1 R (n_free,), the function whose inner product with any v is R(v)."""
        return self.factors.solve(residual)

    def squared(self, residual: Tensor) -> Tensor:
        """R^T K^-1 R."""
        return residual @ self.representative(residual)

    def __call__(self, residual: Tensor) -> Tensor:
        """sqrt(R^T K^-1 R); its gradient at R = 0, where it has none, is set to 0."""
        square = self.squared(residual)
        return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)

    def whitened(self, residual: Tensor) -> Tensor:
        """A vector r, 1-D, with |r|^2 = R^T K^-1 R, for Gauss-Newton: sqrt(k dx) grad z, and sqrt(m dx) z, at the quadrature points."""
        space = self.form.space
        z = residual.new_zeros(self.form.fixed.numel())
        z = z.index_copy(0, self.form.free.to(z.device), self.representative(residual)).view(space.shape)
        value, gradient = space.at_quadrature(z)
        weights = space.weights.to(z)
        root = (weights * space.interpolated(self.coefficient.to(z))).sqrt()
        parts = [torch.einsum("eq,eq...->eq...", root, gradient).flatten()]
        if self.mass:
            parts.append(torch.einsum("eq,eq...->eq...", (self.mass * weights).sqrt(), value).flatten())
        return torch.cat(parts)
