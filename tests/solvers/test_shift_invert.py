"""Shift-invert: agrees with dense solves and eigenvalues, and says so where the system is singular."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp

from opflow.solvers.shift_invert import ShiftInvert


def pencil(n: int = 60) -> tuple[sp.csc_array, np.ndarray]:
    """A random symmetric pencil whose eigenvalues lie on both sides of 1."""
    rng = np.random.default_rng(3)
    K = sp.random_array((n, n), density=0.1, rng=rng)
    return (K + K.T + sp.diags_array(rng.uniform(-3, 5, n))).tocsc(), rng.uniform(0.5, 2.0, n)


def test_solutions_agree_with_a_dense_solve() -> None:
    K, B = pencil()
    b = np.random.default_rng(0).standard_normal((60, 3))
    b[:, 1] = 0.0
    expected = np.linalg.solve(K.toarray() - np.diag(B), b)
    np.testing.assert_allclose(ShiftInvert(K, B).solve(b, rtol=1e-13), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_nearest_eigenvalue_is_found_on_either_side(scale: float) -> None:
    K, B = pencil()
    eigenvalues = scipy.linalg.eigh(K.toarray(), scale * np.diag(B), eigvals_only=True)
    nearest = eigenvalues[np.abs(eigenvalues - 1).argmin()]
    found = ShiftInvert(K, scale * B).nearest_eigenvalue()
    assert abs(found - 1) == pytest.approx(abs(nearest - 1), rel=0.02)
    for distance in (1e-3, -1e-6, 1e-10):  # move it to where it is asked for
        moved = ShiftInvert(K, scale * B * nearest / (1 + distance)).nearest_eigenvalue()
        assert moved - 1 == pytest.approx(distance, rel=1e-2, abs=1e-13)


def test_one_system_has_one_answer() -> None:
    K, B = pencil()
    assert ShiftInvert(K, B).nearest_eigenvalue() == ShiftInvert(K, B).nearest_eigenvalue()


def test_singular_systems_and_unreachable_tolerances_are_refused_in_a_sentence() -> None:
    singular = ShiftInvert(sp.diags_array([1.0, 2.0, 3.0]), np.ones(3))
    assert singular.nearest_eigenvalue() == 1.0
    with pytest.raises(RuntimeError, match="exactly singular"):
        singular.solve(np.ones((3, 1)), rtol=1e-8)
    K, B = pencil()
    for b, rtol in ((np.ones((60, 1)), 1e-30), (np.full((60, 1), np.nan), 1e-8)):
        with pytest.raises(RuntimeError, match=r"recomputed relative residual .* was asked for"):
            ShiftInvert(K, B).solve(b, rtol=rtol)
