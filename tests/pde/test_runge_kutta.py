"""Butcher tableaux: the conditions that define the Gauss method, at any number of stages, and exact entries."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from opflow.pde.runge_kutta import ButcherTableau, gauss_legendre

mpmath = pytest.importorskip("mpmath")


@pytest.mark.parametrize("q", [1, 2, 3, 4, 7, 20, 51, 100, 500])
def test_the_gauss_tableau_satisfies_its_simplifying_assumptions(q: int) -> None:
    """B(2q) and C(q) (Hairer, Norsett and Wanner 1993, theorem II.7.9), and b_i a_ij + b_j a_ji = b_i b_j, all to rounding."""
    tableau = gauss_legendre(q)
    c, a, b = tableau.nodes, tableau.matrix, tableau.weights
    assert tableau.stages == q and tableau.order == 2 * q
    assert (np.diff(c) > 0).all() and c[0] > 0 and c[-1] < 1
    for k in sorted({1, 2, q, 2 * q - 1, 2 * q}):
        assert abs(b @ c ** (k - 1) - 1 / k) < 1e-15
    for k in sorted({1, min(2, q), (q + 1) // 2, q}):
        np.testing.assert_allclose(a @ c ** (k - 1), c**k / k, rtol=0, atol=1e-15)
    np.testing.assert_allclose(b[:, None] * a + (b[:, None] * a).T, np.outer(b, b), rtol=0, atol=1e-15)
    np.testing.assert_allclose(a + a[::-1, ::-1], np.broadcast_to(b, (q, q)), rtol=0, atol=1e-15)
    if q <= 10:  # and the order is no more than that
        assert abs(b @ c ** (2 * q) - 1 / (2 * q + 1)) > 1e-14


def test_two_stages_are_the_textbook_ones() -> None:
    tableau = gauss_legendre(2)
    root = np.sqrt(3) / 6
    np.testing.assert_allclose(tableau.nodes, [0.5 - root, 0.5 + root], rtol=0, atol=1e-16)
    np.testing.assert_allclose(tableau.matrix, [[0.25, 0.25 - root], [0.25 + root, 0.25]], rtol=0, atol=1e-16)
    np.testing.assert_allclose(tableau.weights, [0.5, 0.5], rtol=0, atol=1e-16)


@pytest.mark.parametrize("q", [9, 60])
def test_entries_agree_with_forty_digits(q: int) -> None:
    """a_ij = int_0^(c_i) l_j: the Lagrange polynomial as its coefficients, integrated term by term in 80 digits."""
    tableau = gauss_legendre(q)
    with mpmath.workdps(80):
        p = [mpmath.mpf(c) for c in _legendre_coefficients(q)]
        slope = [k * c for k, c in enumerate(p)][1:]
        for j in (0, q // 2, q - 1):
            c = _root(p, slope, float(tableau.nodes[j]))
            assert abs(float(c - mpmath.mpf(float(tableau.nodes[j])))) < 1e-16
            quotient = [mpmath.mpf(0)] * q  # p / (x - c) by Horner's rule
            for k in range(q, 0, -1):
                quotient[k - 1] = p[k] + (c * quotient[k] if k < q else 0)
            scale = _value(quotient, c)
            integral = [mpmath.mpf(0), *(coefficient / (k + 1) / scale for k, coefficient in enumerate(quotient))]
            assert abs(float(_value(integral, 1)) - tableau.weights[j]) < 1e-16
            for i in (0, q // 3, q - 1):
                exact = float(_value(integral, _root(p, slope, float(tableau.nodes[i]))))
                assert abs(exact - tableau.matrix[i, j]) < 1e-15


def _legendre_coefficients(q: int) -> list[int]:
    """Of the Legendre polynomial on [0, 1], increasing powers: (-1)^(q + k) binom(q, k) binom(q + k, k)."""
    return [(-1) ** (q + k) * comb(q, k) * comb(q + k, k) for k in range(q + 1)]


def _value(coefficients, x):
    return mpmath.polyval(coefficients[::-1], x)


def _root(p, slope, start: float):
    c = mpmath.mpf(start)
    for _ in range(6):
        c -= _value(p, c) / _value(slope, c)
    return c


def test_the_arrays_are_shared_and_protected() -> None:
    assert gauss_legendre(5) is gauss_legendre(5)
    with pytest.raises(ValueError, match="read-only"):
        gauss_legendre(5).matrix[0, 0] = 1.0


@pytest.mark.parametrize("stages", [0, -1, 2.0, True])
def test_a_number_of_stages_that_is_none_is_refused(stages: object) -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        gauss_legendre(stages)  # type: ignore[arg-type]


def test_a_tableau_that_does_not_fit_is_refused() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"expected \(q,\), \(q, q\) and \(q,\)"):
        ButcherTableau(one, np.ones((2, 2)), one, order=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ButcherTableau(one, np.full((1, 1), np.nan), one, order=1)
    assert ButcherTableau(one, np.ones((1, 1)), one, order=1).stages == 1  # implicit Euler
