"""Steady incompressible flow on a mapped grid by Taylor and Hood's finite elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.intp]

GAUSS_POINTS = (np.array([-(0.6**0.5), 0.0, 0.6**0.5]) + 1) / 2  # on (0, 1), exact to degree 5
GAUSS_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18


class FoldedMeshError(ValueError):
    """The map of a mesh from its reference square is not one to one, or mirrors it."""


class TaylorHood:
    """-nu lap u + theta (u . grad) u + grad p = f,  div u = 0   in weak form, on a grid of nodes that is mapped into the plane:

        nu (grad u, grad w) + theta ((u . grad) u, w) - (p, div w) = (f, w),    -(q, div u) = 0

    for all w and q of the spaces. Velocities are biquadratic on elements of 3 x 3 nodes, pressures bilinear between their
    corners (Taylor and Hood 1973), and elements are curved as their nodes are (isoparametric). Where a boundary has no condition,
    the stress nu du/dn - p n vanishes: a free outflow. For smooth maps the error is of third order in the velocity and of
    second in the pressure.

    Args:
        x, y: coordinates of the nodes, (n_s, n_n), both numbers odd.
        viscosity: nu.

    Raises:
        FoldedMeshError: the Jacobian x_s y_n - x_n y_s is not positive at some node or point of quadrature.

    >>> x, y = np.meshgrid(np.linspace(0, 2, 9), np.linspace(0, 1, 5), indexing="ij")
    >>> elements = TaylorHood(x, y, 0.1)
    >>> elements.n_nodes, elements.n_pressures
    (45, 15)
    """

    def __init__(self, x: Array, y: Array, viscosity: float) -> None:
        self.viscosity = viscosity
        ref = self._reference = _reference(x.shape)
        self.n_nodes, self.n_pressures = x.size, (x.shape[0] // 2 + 1) * (x.shape[1] // 2 + 1)
        xe, ye = x.ravel()[ref.nodes], y.ravel()[ref.nodes]
        _check_unfolded(xe, ye, x.shape)
        x_s, x_n, y_s, y_n, jacobian = _metric(xe, ye, ref.phi_s, ref.phi_n)
        self._weights = ref.weights * jacobian  # (E, Q)
        self._phi_x = (y_n[..., None] * ref.phi_s - y_s[..., None] * ref.phi_n) / jacobian[..., None]  # (E, Q, 9)
        self._phi_y = (x_s[..., None] * ref.phi_n - x_n[..., None] * ref.phi_s) / jacobian[..., None]
        w = self._weights[..., None]
        self._stiffness = viscosity * (_outer(w * self._phi_x, self._phi_x) + _outer(w * self._phi_y, self._phi_y))
        self._minus_div = -_outer(w * ref.psi, self._phi_x), -_outer(w * ref.psi, self._phi_y)  # (E, 4, 9) each

    def residual(self, u: Array, v: Array, p: Array, force: tuple[Array, Array], *, advection: float = 1.0) -> Array:
        """Left minus right side for every shape function w of u, then of v, then q: (2 N + P,).

        Args:
            u, v, force: values at the N nodes. p: at the P corners of elements.
            advection: theta.
        """
        ref = self._reference
        ue, ve, pe = u[ref.nodes], v[ref.nodes], p[ref.corners]
        parts = []
        for component, minus_div, f in zip((ue, ve), self._minus_div, force, strict=True):
            rate = advection * self._advected(ue, ve, component) - f[ref.nodes] @ ref.phi.T
            tested = _apply(self._stiffness, component) + _apply(minus_div.swapaxes(1, 2), pe)
            parts.append(_assembled(ref.nodes, tested + (self._weights * rate) @ ref.phi, self.n_nodes))
        mass = _apply(self._minus_div[0], ue) + _apply(self._minus_div[1], ve)
        return np.concatenate([*parts, _assembled(ref.corners, mass, self.n_pressures)])

    def jacobian(self, u: Array, v: Array, *, advection: float = 1.0) -> Any:
        """The derivative of `residual` by (u, v, p), a SciPy CSR array (2 N + P, 2 N + P)."""
        from scipy.sparse import coo_array  # on use: `import opflow` loads no SciPy

        ref, n = self._reference, self.n_nodes
        ue, ve = u[ref.nodes], v[ref.nodes]
        phi = advection * self._weights[..., None] * ref.phi
        along = (ue @ ref.phi.T)[..., None] * self._phi_x + (ve @ ref.phi.T)[..., None] * self._phi_y
        transport = self._stiffness + _outer(phi, along)
        blocks = {}
        for i, component in enumerate((ue, ve)):
            for j, derivative in enumerate((self._phi_x, self._phi_y)):
                gradient = _apply(derivative, component)[..., None]
                blocks[i, j] = _outer(phi * gradient, np.broadcast_to(ref.phi, phi.shape)) + (i == j) * transport
            blocks[2, i], blocks[i, 2] = self._minus_div[i], self._minus_div[i].swapaxes(1, 2)
        numbers = (ref.nodes, n + ref.nodes, 2 * n + ref.corners)
        rows = [np.broadcast_to(numbers[i][:, :, None], block.shape).ravel() for (i, _), block in blocks.items()]
        columns = [np.broadcast_to(numbers[j][:, None, :], block.shape).ravel() for (_, j), block in blocks.items()]
        values = np.concatenate([block.ravel() for block in blocks.values()])
        size = 2 * n + self.n_pressures
        return coo_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=(size, size)).tocsr()

    def _advected(self, ue: Array, ve: Array, component: Array) -> Array:
        """(u . grad) component at the points of quadrature, (E, Q)"""
        phi = self._reference.phi.T
        return (ue @ phi) * _apply(self._phi_x, component) + (ve @ phi) * _apply(self._phi_y, component)


@dataclass(frozen=True)
class _Reference:
    """What the numbers of nodes alone determine, for E elements with Q points of quadrature."""

    nodes: Integers  # (E, 9)
    corners: Integers  # (E, 4), numbers of pressures
    phi: Array  # (Q, 9) biquadratic functions, and their derivatives
    phi_s: Array
    phi_n: Array
    psi: Array  # (Q, 4) bilinear functions
    weights: Array  # (Q,)


@lru_cache(maxsize=16)
def _reference(shape: tuple[int, int]) -> _Reference:
    if any(n < 3 or n % 2 == 0 for n in shape):
        raise ValueError(
            f"the grid has {shape} nodes, but elements of 3 x 3 nodes need odd numbers from 3 on; use 65 or 129, for example."
        )
    rows, columns = (n // 2 for n in shape)
    i, j = (index.reshape(-1, 1) for index in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    a, b = np.divmod(np.arange(9), 3)
    c, d = np.divmod(np.arange(4), 2)
    t = GAUSS_POINTS
    value, slope, linear = quadratic(t), quadratic_slope(t), np.stack([1 - t, t], -1)
    return _Reference(
        nodes=(2 * i + a) * shape[1] + 2 * j + b,
        corners=(i + c) * (columns + 1) + j + d,
        phi=_product(value, value),
        phi_s=_product(slope, value),
        phi_n=_product(value, slope),
        psi=_product(linear, linear),
        weights=_product(GAUSS_WEIGHTS, GAUSS_WEIGHTS),
    )


def quadratic(t: Array) -> Array:
    """The three quadratic functions that are 1 at one of 0, 1/2, 1 and 0 at the others, at t: (len(t), 3)"""
    return np.stack([(2 * t - 1) * (t - 1), 4 * t * (1 - t), t * (2 * t - 1)], -1)


def quadratic_slope(t: Array) -> Array:
    """Their derivatives, (len(t), 3)"""
    return np.stack([4 * t - 3, 4 - 8 * t, 4 * t - 1], -1)


def _metric(xe: Array, ye: Array, phi_s: Array, phi_n: Array) -> tuple[Array, Array, Array, Array, Array]:
    """x_s, x_n, y_s, y_n and x_s y_n - x_n y_s, per element and point: (E, 9) -> (E, Q) each"""
    x_s, x_n, y_s, y_n = xe @ phi_s.T, xe @ phi_n.T, ye @ phi_s.T, ye @ phi_n.T
    return x_s, x_n, y_s, y_n, x_s * y_n - x_n * y_s


def _check_unfolded(xe: Array, ye: Array, shape: tuple[int, int]) -> None:
    """Raise unless the Jacobian is positive at the nodes of every element and at its points of quadrature."""
    t = np.concatenate([[0.0, 0.5, 1.0], GAUSS_POINTS])
    value, slope = quadratic(t), quadratic_slope(t)
    jacobian = _metric(xe, ye, _product(slope, value), _product(value, slope))[-1]
    folded = ~(jacobian.min(1) > 0)
    if folded.any():
        row, column = divmod(int(folded.argmax()), shape[1] // 2)
        raise FoldedMeshError(
            f"the mesh is folded or mirrored: the Jacobian of its map is not positive in {int(folded.sum())} of {len(folded)} elements, "
            f"first at node ({2 * row}, {2 * column}); rows and columns of nodes must run so that they turn left and never cross."
        )


def _product(along: Array, across: Array) -> Array:
    """Functions of s times functions of n, at products of points"""
    return np.asarray(np.kron(along, across), dtype=np.float64)


def _apply(matrices: Array, values: Array) -> Array:
    """sum_j m_(e i j) v_(e j)"""
    return np.asarray((matrices @ values[..., None])[..., 0])


def _outer(a: Array, b: Array) -> Array:
    """sum_q a_(e q i) b_(e q j)"""
    return np.asarray(a.swapaxes(-1, -2) @ b)


def _assembled(numbers: Integers, values: Array, n: int) -> Array:
    """The sums over elements at each of n numbers."""
    return np.asarray(np.bincount(numbers.ravel(), values.ravel(), n), dtype=np.float64)
