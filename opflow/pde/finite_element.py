"""Continuous finite elements on triangles: fields at quadrature points, and integrals against every basis function."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.mesh import Mesh


class FiniteElementSpace:
    """Piecewise polynomials u(x) = sum_i u_i phi_i(x) of degree 1 or 2, continuous, on a mesh of triangles.

    A field is its nodal values, (n_nodes,), or (n_nodes, components) if it is a vector. The nodes are the corners of triangles,
    in the mesh's order, then for degree 2 one node a side. Bases and quadrature come from scikit-fem (`pip install
    'opflow[fem]'`); what is done with them is vectorised over elements and differentiable. Curved sides are mapped
    isoparametrically, so degree 2 keeps its order on a curved domain only with a mesh of six points a cell.

    Args:
        mesh: an opflow `Mesh`, or scikit-fem's MeshTri or MeshTri2.
        degree: 1 or 2.
        components: None for a scalar field, else the number of components of a vector.
        quadrature: the polynomial degree that the rule integrates exactly; 2 * degree by default, exact for products of two
            fields on straight sides.

    Attributes:
        nodes: coordinates (n_nodes, 2), float64.
        n_nodes, n_vertices, boundary_nodes, edges: as of the mesh; two nodes are joined by an edge if an element has both.

    Raises:
        ValueError: the degree is neither 1 nor 2. ImportError: scikit-fem is missing.

    >>> square = Mesh(torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    >>> space = FiniteElementSpace(square, degree=2)
    >>> u = space.nodes.prod(1)  # x y, which degree 2 holds exactly
    >>> space.n_nodes, round(float(space.integral(space.at_quadrature(u)[0])), 9)
    (9, 0.25)
    """

    def __init__(
        self, mesh: Any, degree: int = 1, *, components: int | None = None, quadrature: int | None = None
    ) -> None:
        if degree not in (1, 2):
            raise ValueError(f"degree is {degree!r}; elements of degree 1 and 2 are known.")
        if components is not None and components < 1:
            raise ValueError(f"components is {components}; give a positive number, or None for a scalar field.")
        self.mesh = mesh if isinstance(mesh, Mesh) else Mesh.from_skfem(mesh)
        self.degree, self.components = degree, components
        self.quadrature = 2 * degree if quadrature is None else quadrature
        host = self.mesh.to_skfem()  # first: it says what to install
        import skfem

        self._element = skfem.ElementTriP1() if degree == 1 else skfem.ElementTriP2()
        self._basis = basis = skfem.Basis(host, self._element, intorder=self.quadrature)
        self.nodes = torch.tensor(basis.doflocs.T.copy())
        self.n_nodes, self.n_vertices = len(self.nodes), self.mesh.n_vertices
        self.boundary_nodes = torch.tensor(np.unique(basis.get_dofs().flatten()).astype(np.int64))
        self.element_nodes = torch.tensor(basis.element_dofs.T.astype(np.int64))  # (elements, basis)
        # Values at the quadrature points are the same in every element, gradients are not.
        self._values = torch.tensor(np.stack([np.asarray(phi[0])[0] for phi in basis.basis], -1))  # (q, basis)
        gradients = np.stack([phi[0].grad for phi in basis.basis])  # (basis, dim, elements, q)
        self._gradients = torch.tensor(gradients.transpose(2, 3, 0, 1).copy())
        self.weights = torch.tensor(basis.dx)  # (elements, q)
        self._weighted_values = torch.einsum("qb,eq->eqb", self._values, self.weights)
        self._weighted_gradients = torch.einsum("eqbd,eq->eqbd", self._gradients, self.weights)
        self.points = torch.tensor(np.asarray(basis.global_coordinates()).transpose(1, 2, 0).copy())  # (elements, q, 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a field's nodal values."""
        return (self.n_nodes,) if self.components is None else (self.n_nodes, self.components)

    @cached_property
    def edges(self) -> Tensor:
        """Pairs of nodes of one element (n_edges, 2), each once: the graph for message passing."""
        first, second = np.triu_indices(self.element_nodes.shape[1], 1)
        pairs = torch.stack([self.element_nodes[:, first], self.element_nodes[:, second]], -1).reshape(-1, 2)
        return pairs.sort(1).values.unique(dim=0)

    def at_quadrature(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Values (elements, points[, channel]) and gradients (elements, points[, channel], 2) of nodal values u."""
        local = u[self.element_nodes.to(u.device)]  # (elements, basis[, channel])
        value = torch.einsum("qb,eb...->eq...", self._values.to(u), local)
        gradient = torch.einsum("eqbd,eb...->eq...d", self._gradients.to(u), local)
        return value, gradient

    def interpolated(self, field: Tensor) -> Tensor:
        """A field at the quadrature points, (elements, points[, channel]); values at the corners only are of degree 1."""
        if len(field) == self.n_nodes:
            return torch.einsum("qb,eb...->eq...", self._values.to(field), field[self.element_nodes.to(field.device)])
        if len(field) != self.n_vertices:
            raise ValueError(
                f"the field has {len(field)} values; expected one at each of {self.n_nodes} nodes or {self.n_vertices} corners."
            )
        return torch.einsum(
            "qb,eb...->eq...", self._linear.to(field), field[self.element_nodes[:, :3].to(field.device)]
        )

    def integral(self, values: Tensor) -> Tensor:
        """The integral of values at the quadrature points (elements, points[, ...]), which are summed over."""
        return torch.einsum("eq,eq...->...", self.weights.to(values), values)

    def load(self, source: Tensor | None = None, flux: Tensor | None = None) -> Tensor:
        """The integrals of phi_i s + grad phi_i . F over the domain, for every node: (n_nodes[, channel]).

        Args:
            source: s at the quadrature points (elements, points[, channel]).
            flux: F there (elements, points[, channel], 2).
        """
        parts: list[Tensor] = []
        if source is not None:
            parts.append(torch.einsum("eqb,eq...->eb...", self._weighted_values.to(source), source))
        if flux is not None:
            parts.append(torch.einsum("eqbd,eq...d->eb...", self._weighted_gradients.to(flux), flux))
        if not parts:
            raise ValueError("there is nothing to integrate; give a source, a flux or both.")
        local = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return self._gathered(local)

    def boundary_load(
        self,
        traction: Callable[[Tensor, Tensor], Tensor] | Tensor | float,
        on: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The integrals of phi_i g over the boundary, or a part of it, (n_nodes[, components]), float64.

        Args:
            traction: g, a number, one value a component, or a function of points (..., 2) and outward unit normals (..., 2).
            on: a function of points (n, 2), the middles of boundary sides, that says which of them belong to the part.

        Raises:
            ValueError: no side belongs to the part, or g has a wrong shape.
        """
        import skfem

        host = self._basis.mesh
        facets = host.boundary_facets()
        if on is not None:
            middle = torch.tensor(host.p[:, host.facets[:, facets]].mean(1).T.copy())
            facets = facets[torch.as_tensor(on(middle)).numpy()]
        if not len(facets):
            raise ValueError("no side of the boundary belongs to the part that `on` describes.")
        basis = skfem.FacetBasis(host, self._element, facets=facets, intorder=self.quadrature)
        points, normals = (
            torch.tensor(np.asarray(part).transpose(1, 2, 0).copy())
            for part in (basis.global_coordinates(), basis.normals)
        )
        g = torch.as_tensor(traction(points, normals) if callable(traction) else traction, dtype=torch.float64)
        expected = (*points.shape[:2], *self.shape[1:])
        try:
            g = g.expand(expected)
        except RuntimeError as error:
            raise ValueError(f"the traction has shape {tuple(g.shape)}; expected {expected}, or one value.") from error
        values = torch.tensor(np.stack([np.asarray(phi[0]) for phi in basis.basis], -1))  # (facets, q, basis)
        local = torch.einsum("fqb,fq,fq...->fb...", values, torch.tensor(basis.dx), g)
        return self._gathered(local, torch.tensor(basis.element_dofs.T.astype(np.int64)))

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Basis values (points, basis), gradients (elements, points, basis, 2) and weights (elements, points), with like's dtype."""
        return self._values.to(like), self._gradients.to(like), self.weights.to(like)

    def stiffness(self, coefficient: Tensor | None = None) -> Any:
        """The integrals of k grad phi_i . grad phi_j, a SciPy CSR array (n_nodes, n_nodes); k = 1 or a nodal field."""
        weights = self._weights(coefficient)
        return self.matrix(torch.einsum("eq,eqbd,eqcd->ebc", weights, self._gradients, self._gradients))

    def mass(self, coefficient: Tensor | None = None) -> Any:
        """The integrals of k phi_i phi_j, a SciPy CSR array (n_nodes, n_nodes); k = 1 or a nodal field."""
        return self.matrix(torch.einsum("eq,qb,qc->ebc", self._weights(coefficient), self._values, self._values))

    def matrix(self, local: Tensor) -> Any:
        """The sum of element matrices (elements, basis, basis), a SciPy CSR array (n_nodes, n_nodes)."""
        from scipy.sparse import coo_array

        at = self.element_nodes.numpy()
        rows, columns = np.broadcast_arrays(at[:, :, None], at[:, None, :])
        entries = local.detach().cpu().double().numpy().ravel()
        return coo_array((entries, (rows.ravel(), columns.ravel())), (self.n_nodes, self.n_nodes)).tocsr()

    def interpolation(self, points: Tensor) -> Any:
        """The matrix (n_points, n_nodes) that takes nodal values to values at points (n_points, 2), a SciPy CSR array.

        Raises:
            ValueError: a point is outside of the polygon of the mesh's corners.
        """
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points have shape {tuple(points.shape)}; expected (n_points, 2).")
        distance = self.mesh.signed_distance(points.detach().cpu().double())
        outside = ~(distance <= 1e-12 * float(self.mesh.points.abs().max()))  # NaN is outside too
        if bool(outside.any()):
            where = int(outside.nonzero()[0])
            raise ValueError(
                f"point {where}, {points[where].tolist()}, lies {float(distance[where]):.3g} outside of the mesh; "
                "leave it out, or move it onto the boundary."
            )
        from scipy.sparse import csr_array

        x, host = points.detach().cpu().double().numpy().T, self._basis.mesh
        # Cells are looked for by their corners: scikit-fem has no search among curved ones.
        corners = self._basis.mesh if host.affine else Mesh(self.mesh.vertices, self.mesh.triangles).to_skfem()
        cells = corners.element_finder()(*x)
        local = self._basis.mapping.invF(x[:, :, None], tind=cells)
        if min(local.min(), 1 - local.sum(0).max()) < -1e-6:
            raise ValueError("a point lies between a curved side and its chord, where its cell is not known; move it.")
        values = [self._element.gbasis(self._basis.mapping, local, i, tind=cells)[0] for i in range(self._basis.Nbfun)]
        rows = np.repeat(np.arange(len(cells)), len(values))
        entries = np.stack([np.asarray(v)[:, 0] for v in values], 1)
        at = self._basis.element_dofs[:, cells].T
        return csr_array((entries.ravel(), (rows, at.ravel())), (len(cells), self.n_nodes))

    def _weights(self, coefficient: Tensor | None) -> Tensor:
        return (
            self.weights
            if coefficient is None
            else self.weights * self.interpolated(coefficient.detach().cpu().double())
        )

    def _gathered(self, local: Tensor, at: Tensor | None = None) -> Tensor:
        """The sum over elements of values (elements, basis[, channel]) at every node."""
        index = (self.element_nodes if at is None else at).to(local.device).flatten()
        flat = local.reshape(len(index), *local.shape[2:])
        return flat.new_zeros((self.n_nodes, *flat.shape[1:])).index_add(0, index, flat)

    @cached_property
    def _linear(self) -> Tensor:
        """The values of the linear basis at the quadrature points (q, 3)."""
        x, y = torch.tensor(self._basis.X)
        return torch.stack([1 - x - y, x, y], -1)
