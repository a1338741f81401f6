"""Spectral elements: exact on polynomials, quadrature, interpolation both ways, and an eigenvalue with twice the order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from opflow.pde.spectral_element import ElementLine, ElementSquare


@pytest.mark.parametrize(("n_elements", "degree"), [(1, 1), (3, 2), (4, 5), (2, 8), (5, 12)])
def test_polynomials_of_the_degree_are_exact(n_elements: int, degree: int) -> None:
    line = ElementLine(n_elements, degree)
    assert line.nodes.shape == line.mass.shape == (n_elements * degree + 1,) and (line.mass > 0).all()
    assert line.nodes[0] == 0 and line.nodes[-1] == 1 and (np.diff(line.nodes) > 0).all()
    points = np.append(np.random.default_rng(0).random(20), [0.0, 1.0])
    for power in range(degree + 1):
        values = line.nodes**power
        np.testing.assert_allclose(line.values_at(points) @ values, points**power, rtol=0, atol=1e-12)
        slopes = 0 if power == 0 else power**2 / (2 * power - 1)
        assert values @ (line.stiffness @ values) == pytest.approx(slopes, abs=1e-10)
        for start, end in ((0.0, 1.0), (0.13, 0.71), (0.4, 0.4)):
            expected = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
            assert line.integrals(start, end) @ values == pytest.approx(expected, abs=1e-13)
    for power in range(2 * degree):
        assert line.mass @ line.nodes**power == pytest.approx(1 / (power + 1), rel=1e-12)


def test_an_eigenvalue_converges_with_twice_the_order_of_its_function() -> None:
    errors = []
    for n_elements in (4, 8, 16):
        line = ElementLine(n_elements, 3)
        eigenvalues = scipy.linalg.eigh(line.stiffness.toarray(), np.diag(line.mass), eigvals_only=True)
        assert abs(eigenvalues[0]) < 1e-11
        errors.append(abs(eigenvalues[2] - 4 * np.pi**2))
    assert np.log2(errors[1] / errors[2]) == pytest.approx(6, abs=0.2)


def test_the_square_is_the_product_of_its_lines() -> None:
    x, y = np.linspace(0, 1, 9), np.linspace(0, 1, 12)
    square = ElementSquare((2, 3), (x, y), degree=6)
    assert square.shape == square.mass.shape == square.boundary.shape == (13, 19)
    assert square.mass.sum() == pytest.approx(1) and square.boundary.sum() == 2 * (13 + 19) - 4
    values = np.stack([x[:, None] ** 3 * y**2, x[:, None] + 0 * y])
    np.testing.assert_allclose(square.evaluate(square.interpolate(values)), values, rtol=0, atol=1e-13)
    u, v = (values.ravel() for values in square.interpolate(values))
    assert u @ (square.stiffness @ v) == pytest.approx(1 / 3)  # the integral of 3 x^2 y^2
    np.testing.assert_allclose((square.stiffness - square.stiffness.T).toarray(), 0, atol=1e-13)


def test_the_spline_has_order_six_and_keeps_the_boundary() -> None:
    line, errors = ElementLine(50), []
    for n in (33, 65, 129):
        points = np.linspace(0, 1, n)
        errors.append(np.abs(line.spline_from(points) @ np.sin(9 * points) - np.sin(9 * line.nodes)).max())
    assert np.log2(errors[1] / errors[2]) == pytest.approx(6, abs=0.6)
    square = ElementSquare((2, 2), (points, points))
    noise = np.random.default_rng(0).standard_normal((129, 129))
    inside = noise.copy()
    inside[1:-1, 1:-1] = 7.0
    np.testing.assert_array_equal(*(square.interpolate(values)[square.boundary] for values in (noise, inside)))


def test_what_is_no_element_is_refused_in_a_sentence() -> None:
    for arguments in ((0, 4), (3, 0)):
        with pytest.raises(ValueError, match="each must be a positive whole number"):
            ElementLine(*arguments)
