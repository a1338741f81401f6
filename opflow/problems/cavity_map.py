"""From the refractive index in a square to the fluxes on its sides, by spectral elements: the discrete map and its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from opflow.grid import Grid
from opflow.pde.spectral_element import DEGREE, SPLINE_DEGREE, ElementLine, ElementSquare
from opflow.solvers.shift_invert import ShiftInvert

FEWEST_ELEMENTS, MOST_ELEMENTS = 6, 64  # a side
RADIANS = 4.0  # of the shortest wave, an element: 12 points a wavelength
RTOL = 1e-11  # of the recomputed residual of each direct solve

Array = NDArray[np.float64]


class CavityMap:
    """F: a -> du_l/dn at sensors on the sides, where lap u_l + (omega a)^2 u_l = 0 inside the unit square and u_l = g_l on its boundary.

    Spectral elements of degree 8, one sparse factorisation a sample for all l, with at least as many nodes as the grid and at least 12 points
    a wavelength. Between the nodes of the grid log a is the spline of degree 5 through them; fluxes are the derivatives of the polynomials.

    Calling it takes a (n, *grid), positive, to (n, L, 1, 4 sensors), float64, counter-clockwise from the corner (0, 0), and is
    differentiable once: with the factors at hand, the adjoint costs one substitution for each l.

    Args:
        boundary: g at points (..., 2) -> (L, ...).
        sensors: their number S on each side, at shares j / (S + 1) of it, j = 1, ..., S.
        tolerance: a medium is refused if a resonance omega_j has |omega_j^2 / omega^2 - 1| below it; 0 refuses nothing.
    """

    def __init__(
        self, grid: Grid, omega: float, boundary: Callable[[Tensor], Tensor], sensors: int, *, tolerance: float = 0.0
    ) -> None:
        check_nodes(grid)
        self.grid, self.omega, self.boundary, self.sensors, self.tolerance = grid, omega, boundary, sensors, tolerance

    def __call__(self, a: Tensor) -> Tensor:
        """The measurements (n, L, 1, 4 sensors); an error where a is not positive and finite, or resonates."""
        self.check(a, 3, "(n, *grid)")
        measurements: Tensor = _Fluxes.apply(a, self)
        return measurements

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """F(a) (L, 1, 4 sensors) and its derivatives (L, 1, 4 sensors, k) along `directions` (k, *grid), for one a (*grid).

        By reciprocity, from one substitution for each sensor: d(du_l/dn)_s = int v_s u_l d(omega^2 a^2).
        """
        self.check(a, 2, "(*grid)")
        self.grid.check(directions, "directions")
        medium = _Medium(self, _array(a), 0)
        adjoint = medium.adjoint(medium.cavity.flux.T)  # (nodes, 4 sensors)
        change = medium.load_derivative(_array(directions))  # (k, nodes)
        rows = [(adjoint.T * u) @ change.T for u in medium.u.T]
        return torch.from_numpy(medium.fluxes()[:, None]), torch.from_numpy(np.stack(rows)[:, None])

    def fields(self, a: Tensor) -> Tensor:
        """u (n, L, *grid), float64."""
        self.check(a, 3, "(n, *grid)")
        media = (_Medium(self, values, i) for i, values in enumerate(_array(a)))
        return torch.from_numpy(
            np.stack([m.cavity.square.evaluate(m.u.T.reshape(-1, *m.cavity.square.shape)) for m in media])
        )

    def nearest_resonance(self, a: Tensor) -> Tensor:
        """(omega_j / omega)^2 of the resonance nearest to omega for each sample (n,)."""
        self.check(a, 3, "(n, *grid)")
        return torch.tensor([self.cavity(v).system(v, self.omega).nearest_eigenvalue() for v in _array(a)])

    def cavity(self, a: Array) -> Cavity:
        """The elements for a medium (*grid)."""
        for_wave = math.ceil(self.omega * float(a.max()) / RADIANS)
        if for_wave > MOST_ELEMENTS:
            raise ValueError(
                f"omega is {self.omega:g} and the index up to {a.max():g}, which makes {self.omega * a.max() / (2 * math.pi):.0f} waves "
                f"along a side of the square; at most {MOST_ELEMENTS * RADIANS / (2 * math.pi):.0f} are solved. Lower one of them."
            )
        counts = [max(FEWEST_ELEMENTS, for_wave, math.ceil((n - 1) / DEGREE)) for n in self.grid.shape]
        return _cavity(self.grid, (counts[0], counts[1]), self.sensors)

    def check(self, a: Tensor, ndim: int, expected: str) -> None:
        """Raise unless `a` is positive and finite and fits the grid."""
        self.grid.check(a, "index")
        if a.ndim != ndim:
            raise ValueError(f"index has shape {tuple(a.shape)}; expected {expected}.")
        flat = a.detach().reshape(-1, math.prod(self.grid.shape))
        for i, row in enumerate(flat):
            if not bool(row.isfinite().all()):
                raise ValueError(f"index holds NaN or infinity in sample {i}; correct or leave out this sample.")
            if not bool((row > 0).all()):
                raise ValueError(f"index of sample {i} falls to {float(row.min()):g}; it must be positive everywhere.")


class Cavity:
    """Elements of a square with fixed values on its boundary, and the fluxes at sensors of its sides."""

    def __init__(self, square: ElementSquare, sensors: int) -> None:
        self.square = square
        self.free = np.flatnonzero(~square.boundary)
        self.stiffness = square.stiffness[self.free][:, self.free]
        x, y = square.x.nodes, square.y.nodes
        self.points = torch.from_numpy(np.stack(np.broadcast_arrays(x[:, None], y), axis=-1).reshape(-1, 2))
        self.flux = _flux(square, sensors)

    def system(self, a: Array, omega: float) -> ShiftInvert:
        """The factorised system of a medium (*grid)."""
        return ShiftInvert(self.stiffness, (self.square.mass * self.squared(a, omega)).ravel()[self.free])

    def squared(self, a: Array, omega: float) -> Array:
        """(omega a)^2 at the nodes (x.n_nodes, y.n_nodes); log a is what is interpolated, so that it stays positive."""
        return np.asarray(omega**2 * np.exp(2 * self.square.interpolate(np.log(a))))


@lru_cache(maxsize=4)
def _cavity(grid: Grid, n_elements: tuple[int, int], sensors: int) -> Cavity:
    points = grid.coordinates(0).numpy(), grid.coordinates(1).numpy()
    return Cavity(ElementSquare(n_elements, points), sensors)


def _flux(square: ElementSquare, sensors: int) -> Any:
    """The sparse matrix (4 sensors, nodes) from values at the nodes to du/dn: bottom, right, top and left, counter-clockwise."""
    from scipy.sparse import csr_array, kron, vstack  # on use: `import opflow` loads no SciPy

    along = np.arange(1, sensors + 1) / (sensors + 1)
    at_x, at_y = square.x.values_at(along), square.y.values_at(along)
    (x_low, x_high), (y_low, y_high) = _end_slopes(square.x), _end_slopes(square.y)
    sides = [
        kron(csr_array(at_x), csr_array(-y_low[None])),
        kron(csr_array(x_high[None]), csr_array(at_y)),
        kron(csr_array(at_x[::-1]), csr_array(y_high[None])),
        kron(csr_array(-x_low[None]), csr_array(at_y[::-1])),
    ]
    return vstack(sides).tocsr()


def _end_slopes(line: ElementLine) -> tuple[Array, Array]:
    """The rows (n_nodes,) that take the nodes' values to the derivative at 0 and at 1."""
    nodes = 2 * line.nodes[: line.degree + 1] * line.n_elements - 1  # of the first element, on [-1, 1]
    to_legendre = np.linalg.inv(legendre.legvander(nodes, line.degree))
    slopes = (
        2 * line.n_elements * legendre.legvander(np.array([-1.0, 1.0]), line.degree - 1) @ legendre.legder(to_legendre)
    )
    low, high = np.zeros(line.n_nodes), np.zeros(line.n_nodes)
    low[: line.degree + 1], high[-line.degree - 1 :] = slopes
    return low, high


class _Medium:
    """The fields u (nodes, L) of one index (*grid), its factors and what its derivative needs."""

    def __init__(self, F: CavityMap, a: Array, sample: int) -> None:
        self.a, self.cavity = a, F.cavity(a)
        square = self.cavity.square
        self._load = square.mass * self.cavity.squared(a, F.omega)  # int (omega a)^2 phi_i phi_i
        self._system = self.cavity.system(a, F.omega)
        if F.tolerance > 0:
            nearest = self._system.nearest_eigenvalue()
            if abs(nearest - 1) < F.tolerance:
                raise ValueError(
                    f"index of sample {sample} resonates at omega = {F.omega * math.sqrt(nearest):.10g}, and omega is {F.omega:.10g}: "
                    f"their squares differ by {abs(nearest - 1):.1e} of it, less than resonance_tolerance={F.tolerance:g}, so that "
                    "measurements would be those of rounding. Choose another omega or another medium, or a smaller resonance_tolerance."
                )
        boundary = square.boundary.ravel()
        u = np.zeros((boundary.size, 0))
        given = F.boundary(self.cavity.points[torch.from_numpy(boundary)])
        u = np.zeros((boundary.size, len(given)))
        u[boundary] = given.detach().to(torch.float64).numpy().T
        # The mass is diagonal and couples no two nodes, so that the stiffness alone takes the boundary to the other side.
        u[self.cavity.free] = self._system.solve(-(square.stiffness @ u)[self.cavity.free], rtol=RTOL)
        self.u = u

    def fluxes(self) -> Array:
        """(L, 4 sensors)"""
        return np.asarray((self.cavity.flux @ self.u).T)

    def adjoint(self, cotangent: Any) -> Array:
        """v (nodes, m), zero on the boundary, with d(sum_s c_s flux_s) = int v u d(omega a)^2 for c flux^T (nodes, m)."""
        right = cotangent.toarray() if hasattr(cotangent, "toarray") else cotangent
        v = np.zeros(right.shape)
        v[self.cavity.free] = self._system.solve(right[self.cavity.free], rtol=RTOL)
        return v

    def load_derivative(self, directions: Array) -> Array:
        """The change of the load along directions (k, *grid): (k, nodes)."""
        return np.asarray(
            (2 * self._load * self.cavity.square.interpolate(directions / self.a)).reshape(len(directions), -1)
        )

    def load_transposed(self, dual: Array) -> Array:
        """The transpose of `load_derivative`: (nodes,) -> (*grid)"""
        square = self.cavity.square
        weighted = 2 * self._load * dual.reshape(square.shape)
        return np.asarray(square.interpolate_transposed(weighted) / self.a)


class _Fluxes(torch.autograd.Function):
    """Fluxes of index fields; the factors of the forward pass serve the backward one."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, F: CavityMap) -> Tensor:
        values = _array(a)
        media, fluxes = [], []
        for i, one in enumerate(values):
            medium = _Medium(F, one, i)
            fluxes.append(medium.fluxes())
            if ctx.needs_input_grad[0]:
                media.append(medium)
        ctx.media, ctx.like = media, a
        empty = np.zeros((0, len(F.boundary(torch.zeros(1, 2, dtype=torch.float64))), 4 * F.sensors))
        return torch.from_numpy(np.stack(fluxes) if fluxes else empty)[:, :, None].to(a.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        gradients = []
        for medium, c in zip(ctx.media, _array(cotangent)[:, :, 0], strict=True):
            v = medium.adjoint(np.asarray(medium.cavity.flux.T @ c.T))
            gradients.append(medium.load_transposed((v * medium.u).sum(1)))
        return torch.from_numpy(np.stack(gradients)).to(ctx.like), None


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def check_nodes(grid: Grid) -> None:
    """Raise unless the grid has enough nodes of the unit square."""
    square = grid.dim == 2 and grid.layout == ("nodes", "nodes") and grid.extent == ((0.0, 1.0), (0.0, 1.0))
    if not square or min(grid.shape) <= SPLINE_DEGREE:
        raise ValueError(
            f"CavityScattering lives on the nodes of the unit square, at least {SPLINE_DEGREE + 1} a side, but the grid is {grid}; "
            "use Grid((n, n))."
        )
