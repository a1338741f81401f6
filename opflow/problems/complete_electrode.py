"""The complete electrode model by linear elements: resistances between electrodes, and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.mesh import Mesh

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ElectrodeState:
    """What one factorisation gives: for every electrode a but the last, unit current in at a and out at the last one.

    Attributes:
        potentials: u_a at the points, (n_points, electrodes - 1).
        resistance: U_a of the electrodes, the last one grounded, (electrodes - 1, electrodes - 1); symmetric.
        impedances: z, (electrodes,).
    """

    potentials: Array
    resistance: Array
    impedances: Array

    def voltages(self, pattern: Array, currents: Array) -> Array:
        """Measured differences pattern' U of currents: (electrodes, K), (electrodes, L) -> (K, L); columns of both sum to zero."""
        return pattern[:-1].T @ self.resistance @ currents[:-1]


class CompleteElectrodeModel:
    """div(sigma grad u) = 0, sigma du/dn = 0 between electrodes, and on electrode e   (Somersalo, Cheney and Isaacson 1992)

        u + z_e sigma du/dn = U_e,    int_e sigma du/dn = I_e.

    Linear elements, sigma constant on every triangle; the discrete weak form, symmetric and positive definite with the last electrode grounded, is

        int sigma grad u . grad v + sum_e 1/z_e int_e (u - U_e) (v - V_e) = sum_e I_e V_e.

    One sparse factorisation gives the potentials u_a of unit currents between all electrodes, and by linearity those of every current
    pattern. The derivatives of the resistances R_ab need nothing more, since the problem is its own adjoint:

        dR_ab / dsigma_T = -int_T grad u_a . grad u_b,     dR_ab / dz_e = 1/z_e^2 int_e (u_a - U_ea) (u_b - U_eb).

    Args:
        mesh: triangles of three points.
        electrodes: per electrode its boundary sides (sides, 2), as pairs of points.

    >>> import torch
    >>> square = Mesh(torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    >>> model = CompleteElectrodeModel(square, [np.array([[3, 0]]), np.array([[1, 2]])])
    >>> round(float(model.state(np.ones(2), np.array([0.1, 0.2])).resistance[0, 0]), 12)  # 1 of the square, 0.3 of the contacts
    1.3
    """

    def __init__(self, mesh: Mesh, electrodes: Sequence[NDArray[np.int64]]) -> None:
        self.points = mesh.points.detach().cpu().double().numpy()
        self.triangles = mesh.triangles.cpu().numpy()
        self.electrodes = [np.asarray(sides, dtype=np.int64) for sides in electrodes]
        n, cells, count = len(self.points), len(self.triangles), len(self.electrodes)
        corners = self.points[self.triangles]
        opposite = corners[:, [2, 0, 1]] - corners[:, [1, 2, 0]]
        twice = opposite[:, 1, 0] * opposite[:, 2, 1] - opposite[:, 1, 1] * opposite[:, 2, 0]  # signed
        self.areas = np.abs(twice) / 2
        #: gradients of the basis, (cells, 3, 2)
        self.gradients = np.stack([-opposite[..., 1], opposite[..., 0]], -1) / twice[:, None, None]
        # Every entry of the matrix is linear in the parameters (sigma of the cells, 1/z of the electrodes).
        local = np.einsum("tad,tbd,t->tab", self.gradients, self.gradients, self.areas)
        rows = [np.repeat(self.triangles, 3, 1).ravel()]
        columns = [np.tile(self.triangles, (1, 3)).ravel()]
        values, parameters = [local.ravel()], [np.repeat(np.arange(cells), 9)]
        self._contacts: list[Array] = []
        for e, sides in enumerate(self.electrodes):
            lengths = np.linalg.norm(self.points[sides[:, 0]] - self.points[sides[:, 1]], axis=1)
            mass = lengths[:, None, None] * np.array([[2.0, 1.0], [1.0, 2.0]]) / 6
            self._contacts.append(mass)
            terms = [(np.repeat(sides, 2, 1).ravel(), np.tile(sides, (1, 2)).ravel(), mass.ravel())]
            if e < count - 1:
                own, half = np.full(sides.size, n + e), np.repeat(lengths / 2, 2)
                terms += [
                    (sides.ravel(), own, -half),
                    (own, sides.ravel(), -half),
                    (np.array([n + e]), np.array([n + e]), lengths.sum(keepdims=True)),
                ]
            for row, column, value in terms:
                rows.append(row)
                columns.append(column)
                values.append(value)
                parameters.append(np.full(len(value), cells + e))
        self._parts = tuple(np.concatenate(part) for part in (rows, columns, values, parameters))
        # Factors fill least in an order that the pattern alone decides: it is looked for once, and entries are placed in it.
        self._place = np.arange(n + count - 1)
        self._assemble()
        self._place = self._factors(np.ones(cells), np.full(count, 1.0), "MMD_AT_PLUS_A").perm_c
        self._assemble()

    def _assemble(self) -> None:
        """The pattern of the matrix, and the sparse map from the parameters to its entries."""
        from scipy.sparse import csr_array

        rows, columns, values, parameters = self._parts
        n = len(self._place)
        places, entry = np.unique(self._place[columns].astype(np.int64) * n + self._place[rows], return_inverse=True)
        self._indices, self._pointers = places % n, np.searchsorted(places // n, np.arange(n + 1))
        self._entries = csr_array(
            (values, (entry, parameters)), shape=(len(places), len(self.triangles) + len(self.electrodes))
        )

    def _factors(self, conductivity: Array, impedances: Array, order: str) -> Any:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        n = len(self._place)
        entries = self._entries @ np.concatenate([conductivity, 1 / impedances])
        matrix = csc_array((entries, self._indices, self._pointers), shape=(n, n))
        # Symmetric and positive definite: the diagonal is a stable pivot.
        return splu(matrix, permc_spec=order, diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def state(self, conductivity: Array, impedances: Array) -> ElectrodeState:
        """Potentials and resistances for sigma (n_cells,) and z (electrodes,), both positive."""
        n, free = len(self.points), len(self.electrodes) - 1
        currents = np.zeros((n + free, free))
        currents[self._place[n:], np.arange(free)] = 1.0
        solution = self._factors(conductivity, impedances, "NATURAL").solve(currents)[self._place]
        if not np.isfinite(solution).all():
            raise RuntimeError(
                "the factors of the electrode model hold NaN or infinity; the conductivity or an impedance is too extreme."
            )
        return ElectrodeState(solution[:n], solution[n:], impedances)

    def fields(self, state: ElectrodeState) -> Array:
        """The gradients of u_a on every triangle, (2, n_cells, electrodes - 1)."""
        return np.einsum("tcd,tca->dta", self.gradients, state.potentials[self.triangles])

    def conductivity_gradient(self, state: ElectrodeState, weight: Array) -> Array:
        """d <weight, R> / dsigma for weights (electrodes - 1, electrodes - 1), (n_cells,)."""
        fields = self.fields(state)
        return -self.areas * np.einsum("dta,dta->t", fields @ weight, fields)

    def conductivity_jacobian(self, state: ElectrodeState, pattern: Array, currents: Array) -> Array:
        """d voltages / dsigma, (K, L, n_cells): products of the fields that the currents make and that the measurements would make."""
        fields = self.fields(state)
        measuring, driving = fields @ pattern[:-1], fields @ currents[:-1]
        return -np.einsum("dtk,dtl,t->klt", measuring, driving, self.areas, optimize=True)

    def impedance_jacobian(self, state: ElectrodeState, pattern: Array, currents: Array) -> Array:
        """d voltages / dz, (K, L, electrodes)."""
        grounded = np.vstack([state.resistance, np.zeros((1, len(state.resistance)))])
        derivatives = []
        for e, (sides, mass) in enumerate(zip(self.electrodes, self._contacts, strict=True)):
            jump = state.potentials[sides] - grounded[e]  # (sides, 2, a)
            product = np.einsum("sia,sij,sjb->ab", jump, mass, jump) / state.impedances[e] ** 2
            derivatives.append(pattern[:-1].T @ product @ currents[:-1])
        return np.stack(derivatives, -1)
