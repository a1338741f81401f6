"""Gaussian random fields on a mesh: the Whittle-Matern prior of unknown coefficient fields."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from opflow.pde.finite_element import FiniteElementSpace
from opflow.pde.sparse_map import SparseFactors, SparseMatrix


class MaternField:
    """f - m ~ N(0, C), C = s^2 A^-1 M_l A^-1, A = K + kappa^2 M: (kappa^2 - Laplacian) (f - m) = s * white noise on finite elements.

    Away from the boundary its covariance is that of Matern with nu = 1 and deviation `deviation`, s^2 = 4 pi kappa^2 deviation^2,
    kappa = sqrt(8) / length; near the boundary, where du/dn = 0, the variance is up to twice as large. M_l is the lumped mass.

    Args:
        space: of degree 1, for fields without components; the lumped mass of degree 2 is not positive.
        length: where the correlation has fallen to about 0.14, in units of the coordinates.
        deviation: of a single value, away from the boundary.
        mean: m.

    Source: Lindgren, Rue and Lindström 2011, "An explicit link between Gaussian fields and Gaussian Markov random fields", section 2.

    >>> square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    >>> from opflow.mesh import Mesh
    >>> prior = MaternField(FiniteElementSpace(Mesh(square, torch.tensor([[0, 1, 2], [0, 2, 3]]))), 0.5, 2.0)
    >>> f = prior.sample(np.random.default_rng(0))
    >>> torch.allclose(prior.whitened(f).square().sum(), f @ prior.precision(f))
    True
    """

    def __init__(self, space: FiniteElementSpace, length: float, deviation: float = 1.0, *, mean: float = 0.0) -> None:
        if space.degree != 1 or space.components is not None:
            raise ValueError(
                f"the space has degree {space.degree} and components {space.components}; a Matern field is a scalar of degree 1."
            )
        if not (0 < length < math.inf and 0 < deviation < math.inf):
            raise ValueError(f"length is {length} and deviation {deviation}; both must be positive and finite.")
        from scipy.sparse import diags_array

        self.space, self.mean = space, float(mean)
        kappa = math.sqrt(8) / length
        mass = space.mass()
        operator = space.stiffness() + kappa**2 * mass
        scale = math.sqrt(4 * math.pi) * kappa * deviation
        self._root = np.sqrt(mass.sum(1))
        self._whitening = SparseMatrix(diags_array(1 / (scale * self._root)) @ operator)
        self._transposed = SparseMatrix(operator @ diags_array(1 / (scale * self._root)))
        self._factors = SparseFactors(operator, positive=True)
        self._scale = scale

    def whitened(self, f: Tensor) -> Tensor:
        """r = M_l^(-1/2) A (f - m) / s of nodal values f (n_nodes,), so that -log p(f) = |r|^2 / 2 + const."""
        return self._whitening(f - self.mean)

    def precision(self, f: Tensor) -> Tensor:
        """C^-1 (f - m)."""
        return self._transposed(self.whitened(f))

    def coloured(self, white: Tensor) -> Tensor:
        """m + s A^-1 M_l^(1/2) w of values w (n_nodes,): the inverse of `whitened`."""
        return self.mean + self._factors.solve(self._scale * torch.as_tensor(self._root).to(white) * white)

    def covariance(self, g: Tensor) -> Tensor:
        """C g for g (n_nodes,) or (n_nodes, columns)."""
        mass = torch.as_tensor(self._scale**2 * self._root**2).to(g)
        inner = self._factors.solve(g)
        return self._factors.solve(mass * inner if g.ndim == 1 else mass[:, None] * inner)

    def sample(self, generator: np.random.Generator) -> Tensor:
        """One field, nodal values (n_nodes,), float64."""
        return self.coloured(torch.from_numpy(generator.standard_normal(self.space.n_nodes)))
