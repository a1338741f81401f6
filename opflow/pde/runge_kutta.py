"""Butcher tableaux of collocation methods, for any number of stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ButcherTableau:
    """A Runge-Kutta method u_(n+1) = u_n + h sum_j b_j f(U_j), U_i = u_n + h sum_j a_ij f(U_j), U_i at t_n + c_i h.

    Attributes:
        nodes: c, (stages,).
        matrix: a, (stages, stages).
        weights: b, (stages,).
        order: the error at the end of a fixed interval is O(h^order) for smooth solutions.

    Raises:
        ValueError: the three do not fit each other, or are not finite.
    """

    nodes: Array
    matrix: Array
    weights: Array
    order: int

    def __post_init__(self) -> None:
        q = len(self.nodes)
        if self.nodes.shape != (q,) or self.matrix.shape != (q, q) or self.weights.shape != (q,) or q == 0:
            raise ValueError(
                f"nodes have shape {self.nodes.shape}, matrix {self.matrix.shape} and weights {self.weights.shape}; "
                "expected (q,), (q, q) and (q,) for q stages."
            )
        for part in (self.nodes, self.matrix, self.weights):
            if not np.isfinite(part).all():
                raise ValueError("the tableau holds NaN or infinity; correct it.")

    @property
    def stages(self) -> int:
        """q"""
        return len(self.nodes)


@lru_cache(maxsize=16)
def gauss_legendre(stages: int) -> ButcherTableau:
    """The Gauss method: collocation at the Legendre nodes of [0, 1], of order 2q   (Hairer, Norsett and Wanner 1993, section II.7).

    c_i = (1 + x_i) / 2 and b_i = w_i / 2 with the nodes and weights of [-1, 1]. The interpolant of f in Legendre polynomials has the
    coefficients (2k + 1)/2 sum_j w_j P_k(x_j) f_j, exact by quadrature, so that

        a_ij = (w_j / 2) sum_(k < q) (2k + 1)/2 P_k(x_j) int_(-1)^(x_i) P_k,    int_(-1)^x P_k = (P_(k+1) - P_(k-1))(x) / (2k + 1).

    No system is solved, so that entries are right to 1e-15 up to hundreds of stages. The arrays are shared: they are read-only.

    >>> tableau = gauss_legendre(2)
    >>> tableau.order, tableau.matrix.sum(1).round(4).tolist() == tableau.nodes.round(4).tolist()
    (4, True)
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ValueError(f"stages is {stages!r}; give a positive whole number.")
    x, w = _nodes(stages)
    p = _legendre(x, stages + 1)
    k = np.arange(stages)[:, None]
    integral = np.empty((stages, stages), dtype=x.dtype)  # (k, i)
    integral[0] = x + 1
    integral[1:] = (p[2 : stages + 1] - p[: stages - 1]) / (2 * k[1:] + 1)
    matrix = (integral.T @ ((2 * k + 1) / 2 * p[:stages])) * (w / 2)
    return ButcherTableau(_frozen((1 + x) / 2), _frozen(matrix), _frozen(w / 2), order=2 * stages)


def _frozen(part: NDArray[np.longdouble]) -> Array:
    rounded = part.astype(np.float64)
    rounded.flags.writeable = False
    return rounded


def _nodes(n: int) -> tuple[NDArray[np.longdouble], NDArray[np.longdouble]]:
    """Legendre nodes on [-1, 1] in increasing order and their weights, by Newton's method in extended precision."""
    x = -np.cos(np.pi * (np.arange(n, dtype=np.longdouble) + 0.75) / (n + 0.5))
    for _ in range(8):  # converges quadratically
        p = _legendre(x, n)
        x = x - p[n] * (1 - x * x) / (n * (p[n - 1] - x * p[n]))
    x = (x - x[::-1]) / 2  # exactly symmetric
    p = _legendre(x, n)
    return x, 2 * (1 - x * x) / (n * p[n - 1]) ** 2


def _legendre(x: NDArray[np.longdouble], n: int) -> NDArray[np.longdouble]:
    """P_0 .. P_n at x, (n + 1, points), by the three-term recurrence."""
    p = np.empty((n + 1, len(x)), dtype=x.dtype)
    p[0], p[1] = 1, x
    for k in range(1, n):
        p[k + 1] = ((2 * k + 1) * x * p[k] - k * p[k - 1]) / (k + 1)
    return p
