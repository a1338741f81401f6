"""The weights of the exponential formulas against closed forms, and single steps against known solutions."""

from __future__ import annotations

import cmath
import math
from fractions import Fraction

import pytest
import torch

from opflow.pde.exponential import FORMULAS, etd_weights


def phi(j: int, z: complex | Fraction) -> complex | Fraction:
    """sum_k z^k / (k + j)!, from which every weight is composed; exact for rational z, without cancellation for complex z."""
    return sum(
        z**k / (Fraction(math.factorial(k + j)) if isinstance(z, Fraction) else math.factorial(k + j))
        for k in range(60)
    )


def by_series(z: complex | Fraction) -> list[complex]:
    q = phi(1, z / 2) / 2
    one, two, three = (phi(j, z) for j in (1, 2, 3))
    return [complex(w) for w in (q, one - 3 * two + 4 * three, two - 2 * three, 4 * three - two)]


def by_formula(z: complex) -> list[complex]:
    """The closed forms, which do not cancel far from 0."""
    e = cmath.exp(z)
    return [
        (cmath.exp(z / 2) - 1) / z,
        (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
        (2 + z + e * (z - 2)) / z**3,
        (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
    ]


@pytest.mark.parametrize("z", [0.0, 1e-12, -1e-5, 1e-3, -0.1, 0.5, -0.999, 0.999, -1.0, 1.0, -1.001, 1.5, -3.0])
def test_weights_near_zero_are_those_of_the_series(z: float) -> None:
    found = etd_weights(torch.tensor([z], dtype=torch.float64))
    for weight, expected in zip(found, by_series(Fraction(z)), strict=True):
        assert weight.dtype == torch.float64
        assert float(weight) == pytest.approx(expected.real, rel=1e-14)


@pytest.mark.parametrize("angle", [0.1, 0.5, 0.75, 1.0, 1.4])
@pytest.mark.parametrize("radius", [1e-9, 1e-3, 0.3, 0.99, 1.01, 2.0])
def test_complex_weights_near_zero_are_those_of_the_series(radius: float, angle: float) -> None:
    z = cmath.rect(radius, math.pi * angle)
    found = etd_weights(torch.tensor([z], dtype=torch.complex128))
    for weight, expected in zip(found, by_series(z), strict=True):
        assert abs(complex(weight) - expected) <= 3e-16 + 1e-14 * abs(expected)


@pytest.mark.parametrize("z", [-5.0, -40.0, -1e3, -1e9, 8.0, 20j, -333j, 1e6j, -30 + 50j])
def test_weights_far_from_zero_are_those_of_the_formula(z: complex) -> None:
    dtype = torch.complex128 if isinstance(z, complex) else torch.float64
    for weight, expected in zip(etd_weights(torch.tensor([z], dtype=dtype)), by_formula(complex(z)), strict=True):
        assert abs(complex(weight) - expected) <= 1e-13 * abs(expected)


def test_weights_have_derivatives_everywhere() -> None:
    for z in (
        torch.tensor([0.0, -0.3, 0.999, -1.001, -20.0], dtype=torch.float64),
        torch.tensor([0.0, 0.3j, 0.999j, -7j, -2 + 1j], dtype=torch.complex128),
    ):
        assert torch.autograd.gradcheck(etd_weights, z.requires_grad_())


# One step


@pytest.mark.parametrize("formula", FORMULAS)
def test_without_nonlinearity_a_step_is_the_exponential(formula: str) -> None:
    z = torch.tensor([-3.0, 0.0, 0.4, 5.0], dtype=torch.float64)
    u = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.complex128)
    step = FORMULAS[formula](z, lambda c, t: torch.zeros_like(c), 0.5)
    torch.testing.assert_close(step(u, 0.0, torch.zeros_like(u)), torch.exp(0.5 * z) * u, rtol=1e-15, atol=0)


def test_exponential_differencing_is_exact_for_quadratic_forcing() -> None:
    """u' = L u + a + b t + c t^2: ETDRK4 integrates a quadratic in time exactly, however stiff L is."""
    linear = torch.tensor([-1e4, -3.0, -1e-7, 0.7], dtype=torch.float64)
    h, (a, b, c) = 0.3, (0.5, -2.0, 3.0)

    def nonlinear(u: torch.Tensor, t: float) -> torch.Tensor:
        return torch.full_like(u, a + b * t + c * t * t)

    u = torch.ones(4, dtype=torch.complex128)
    found = FORMULAS["etdrk4"](linear, nonlinear, h)(u, 0.0, nonlinear(u, 0.0))
    for value, rate in zip(found, linear, strict=True):
        z = complex(float(rate) * h)
        moments = [phi(j + 1, z) if abs(z) < 3 else None for j in range(3)]
        if moments[0] is None:
            moments = [(cmath.exp(z) - 1) / z]
            moments.append((moments[0] - 1) / z)
            moments.append((moments[1] - 0.5) / z)
        expected = cmath.exp(z) + h * (a * moments[0] + b * h * moments[1] + 2 * c * h * h * moments[2])
        assert abs(complex(value) - expected) < 1e-13 * abs(expected)


def test_the_integrating_factor_is_runge_kutta_where_nothing_is_stiff() -> None:
    """With L = 0 it is the classical method: u' = u over one step gives the Taylor polynomial of degree 4."""
    for formula, h in (("integrating-factor-rk4", 0.5), ("etdrk4", 0.5)):
        u = torch.ones(1, dtype=torch.complex128)
        found = FORMULAS[formula](torch.zeros(1, dtype=torch.float64), lambda c, t: c, h)(u, 0.0, u)
        assert complex(found).real == pytest.approx(sum(h**k / math.factorial(k) for k in range(5)), rel=1e-15)
