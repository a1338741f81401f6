"""Taylor-Hood elements: their derivative, what integrates exactly, and the maps they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from opflow.pde.taylor_hood import FoldedMeshError, TaylorHood


def curved(n_s: int = 7, n_n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    s, n = np.meshgrid(np.linspace(0, 1, n_s), np.linspace(0, 1, n_n), indexing="ij")
    return 2 * s + 0.1 * np.sin(3 * n), n + 0.2 * np.sin(2 * s)


def state(elements: TaylorHood, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(2 * elements.n_nodes + elements.n_pressures)


def residual(elements: TaylorHood, z: np.ndarray, advection: float, force: float = 0.0) -> np.ndarray:
    n = elements.n_nodes
    f = np.full(n, force)
    return elements.residual(z[:n], z[n : 2 * n], z[2 * n :], (f, -f), advection=advection)


@pytest.mark.parametrize("advection", [0.0, 0.3, 1.0])
def test_the_jacobian_is_the_derivative_of_the_residual(advection: float) -> None:
    """The residual is quadratic, so that a difference is the derivative halfway, without an error."""
    elements = TaylorHood(*curved(), viscosity=0.3)
    a, b, n = state(elements, 0), state(elements, 1), elements.n_nodes
    halfway = (a + b) / 2
    matrix = elements.jacobian(halfway[:n], halfway[n : 2 * n], advection=advection)
    difference = residual(elements, b, advection, 2.0) - residual(elements, a, advection, 2.0)
    np.testing.assert_allclose(matrix @ (b - a), difference, rtol=0, atol=1e-12 * abs(difference).max())
    if advection == 0:
        assert abs(matrix - matrix.T).max() < 1e-14


def test_what_integrates_exactly() -> None:
    """A constant velocity has neither stress nor divergence; a force sums to its integral; (x, y) has the divergence 2."""
    x, y = curved()
    elements, n = TaylorHood(x, y, 1.0), x.size
    constant = np.concatenate([np.full(n, 3.0), np.full(n, -2.0), np.zeros(elements.n_pressures)])
    assert abs(residual(elements, constant, 1.0)).max() < 1e-13
    points = np.stack([x, y], -1)
    edge = np.concatenate([points[:, 0], points[-1], points[::-1, -1], points[0, ::-1]])
    load = -residual(elements, np.zeros_like(constant), 0.0, force=1.5)
    area = load[:n].sum() / 1.5
    stretched = np.concatenate([x.ravel(), y.ravel(), np.zeros(elements.n_pressures)])
    divergence = -residual(elements, stretched, 0.0)[2 * n :].sum()
    assert divergence == pytest.approx(2 * area, rel=1e-13)
    polygon = 0.5 * abs(np.sum(edge[:, 0] * np.roll(edge[:, 1], -1) - edge[:, 1] * np.roll(edge[:, 0], -1)))
    assert area == pytest.approx(polygon, rel=0.02) and load[n : 2 * n].sum() == pytest.approx(-1.5 * area)


def test_refusals_are_sentences() -> None:
    x, y = curved()
    with pytest.raises(ValueError, match=r"the grid has \(6, 5\) nodes, but elements of 3 x 3 nodes need odd numbers"):
        TaylorHood(x[:-1], y[:-1], 1.0)
    with pytest.raises(FoldedMeshError, match=r"folded or mirrored: .* in 6 of 6 elements, first at node \(0, 0\)"):
        TaylorHood(x[:, ::-1], y[:, ::-1], 1.0)
