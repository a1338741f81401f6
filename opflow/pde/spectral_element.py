"""Spectral elements on the unit square: continuous piecewise polynomials with nodes at Gauss-Lobatto-Legendre points."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEGREE = 8
SPLINE_DEGREE = 5  # order 6 in the spacing of the given values


class ElementLine:
    """The unit interval in `n_elements` equal elements of polynomials of one degree, continuous where two meet.

    A function is its values at the nodes (n_nodes,), n_nodes = n_elements * degree + 1: in each element the Gauss-Lobatto-Legendre
    points, which hold both ends and are the points of a quadrature exact to degree 2 * degree - 1.

    Args:
        n_elements: elements, at least one.
        degree: of the polynomials, at least one.

    Source: Patera 1984, "A spectral element method for fluid dynamics"; Deville, Fischer and Mund 2002, section 2.

    >>> line = ElementLine(4)
    >>> bool(abs(line.mass @ np.sin(line.nodes) - (1 - np.cos(1.0))) < 1e-14)
    True
    """

    def __init__(self, n_elements: int, degree: int = DEGREE) -> None:
        if n_elements < 1 or degree < 1:
            raise ValueError(f"n_elements is {n_elements} and degree {degree}; each must be a positive whole number.")
        self.n_elements, self.degree = n_elements, degree
        highest = np.eye(degree + 1)[degree]  # the Legendre polynomial P of this degree
        ends = np.array([-1.0, 1.0])
        self._points = np.insert(ends, 1, np.sort(legendre.legroots(legendre.legder(highest)).real))
        self._weights = 2 / (degree * (degree + 1) * legendre.legval(self._points, highest) ** 2)
        self._to_legendre = np.linalg.inv(legendre.legvander(self._points, degree))

    @property
    def n_nodes(self) -> int:
        """The number of nodes."""
        return self.n_elements * self.degree + 1

    @cached_property
    def nodes(self) -> Array:
        """Their coordinates (n_nodes,), from 0 to 1."""
        inside = np.arange(self.n_elements)[:, None] + (self._points[:-1] + 1) / 2
        return np.append(inside.ravel(), self.n_elements) / self.n_elements

    @cached_property
    def mass(self) -> Array:
        """The quadrature weights (n_nodes,): the mass matrix, which this quadrature makes diagonal."""
        weights = np.tile(self._weights / (2 * self.n_elements), self.n_elements)
        return np.bincount(self._element_nodes.ravel(), weights).astype(np.float64)

    @cached_property
    def stiffness(self) -> Any:
        """The integrals of phi_i' phi_j', a SciPy CSR array (n_nodes, n_nodes), exact."""
        from scipy.sparse import coo_array  # on use: `import opflow` loads no SciPy

        slopes = legendre.legvander(self._points, self.degree - 1) @ legendre.legder(self._to_legendre)
        block = 2 * self.n_elements * slopes.T @ (self._weights[:, None] * slopes)
        at = self._element_nodes
        rows, columns = np.broadcast_arrays(at[:, :, None], at[:, None, :])
        values = np.broadcast_to(block, rows.shape)
        return coo_array((values.ravel(), (rows.ravel(), columns.ravel())), (self.n_nodes, self.n_nodes)).tocsr()

    def values_at(self, points: Array) -> Array:
        """The matrix (points, n_nodes) that takes the nodes' values to the values at these points of [0, 1]."""
        element = np.minimum((points * self.n_elements).astype(int), self.n_elements - 1)
        local = legendre.legvander(2 * (points * self.n_elements - element) - 1, self.degree) @ self._to_legendre
        matrix = np.zeros((len(points), self.n_nodes))
        matrix[np.arange(len(points))[:, None], self._element_nodes[element]] = local
        return matrix

    def integrals(self, start: float, end: float) -> Array:
        """The integrals (n_nodes,) of every basis function from `start` to `end`, exact: the load of a piecewise constant."""
        edges = np.arange(self.n_elements + 1) / self.n_elements
        low, high = np.clip(edges[:-1], start, end), np.clip(edges[1:], start, end)
        points, weights = legendre.leggauss(self.degree // 2 + 1)
        points = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * points
        return ((high - low)[:, None] / 2 * weights).ravel() @ self.values_at(points.ravel())

    def spline_from(self, points: Array) -> Array:
        """The matrix (n_nodes, points) that takes values at increasing points from 0 to 1 to those of their spline at the nodes.

        The spline is of degree 5 with the not-a-knot condition: an error of order 6 in the spacing of the points.
        """
        from scipy.interpolate import make_interp_spline  # on use: `import opflow` loads no SciPy

        matrix = np.asarray(make_interp_spline(points, np.eye(len(points)), k=SPLINE_DEGREE)(self.nodes))
        matrix[[0, -1]] = np.eye(len(points))[[0, -1]]  # both ends are points: exactly, not to rounding
        return matrix

    @cached_property
    def _element_nodes(self) -> NDArray[np.intp]:
        """The numbers of each element's nodes (n_elements, degree + 1)."""
        return np.arange(self.n_elements)[:, None] * self.degree + np.arange(self.degree + 1)


class ElementSquare:
    """Spectral elements on the unit square, with values given and asked for at the products of two sets of points.

    A function is its values (x.n_nodes, y.n_nodes) at the products of the nodes of two `ElementLine`, flat in that order for matrices.

    Args:
        n_elements: along x and along y.
        points: of each axis, increasing from 0 to 1, at least six.
        degree: of the polynomials along each axis.

    >>> x = np.linspace(0, 1, 11)
    >>> square = ElementSquare((2, 3), (x, x))
    >>> u = square.interpolate(x[:, None] * x).ravel()  # x y, whose gradient has the squared norm 2/3
    >>> bool(abs(u @ (square.stiffness @ u) - 2 / 3) < 1e-13)
    True
    """

    def __init__(self, n_elements: tuple[int, int], points: tuple[Array, Array], degree: int = DEGREE) -> None:
        self.x, self.y = (ElementLine(n, degree) for n in n_elements)
        self._from_points = tuple(line.spline_from(p) for line, p in zip((self.x, self.y), points, strict=True))
        self._to_points = tuple(line.values_at(p) for line, p in zip((self.x, self.y), points, strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """(x.n_nodes, y.n_nodes)"""
        return self.x.n_nodes, self.y.n_nodes

    @cached_property
    def mass(self) -> Array:
        """The quadrature weights (x.n_nodes, y.n_nodes)."""
        return self.x.mass[:, None] * self.y.mass

    @cached_property
    def stiffness(self) -> Any:
        """The integrals of grad phi_i . grad phi_j, a SciPy CSC array: -Laplacian with its natural condition, du/dn = 0."""
        from scipy.sparse import diags_array, kron  # on use: `import opflow` loads no SciPy

        along_x, along_y = (
            kron(self.x.stiffness, diags_array(self.y.mass)),
            kron(diags_array(self.x.mass), self.y.stiffness),
        )
        return (along_x + along_y).tocsc()

    @cached_property
    def boundary(self) -> NDArray[np.bool_]:
        """Which nodes lie on the boundary (x.n_nodes, y.n_nodes)."""
        boundary = np.ones(self.shape, dtype=bool)
        boundary[1:-1, 1:-1] = False
        return boundary

    def interpolate(self, values: Array) -> Array:
        """Values at the points (..., x, y) -> those of their spline at the nodes (..., x.n_nodes, y.n_nodes).

        On the boundary it depends on the values there only.
        """
        return self._from_points[0] @ values @ self._from_points[1].T

    def interpolate_transposed(self, values: Array) -> Array:
        """The transpose of `interpolate`: (..., x.n_nodes, y.n_nodes) -> (..., x, y)"""
        return self._from_points[0].T @ values @ self._from_points[1]

    def evaluate(self, values: Array) -> Array:
        """Values at the nodes (..., x.n_nodes, y.n_nodes) -> those of their polynomials at the points (..., x, y)."""
        return self._to_points[0] @ values @ self._to_points[1].T
