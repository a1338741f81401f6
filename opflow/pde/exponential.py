"""Exponential Runge-Kutta formulas of fourth order for du/dt = L u + N(u, t) with a diagonal L."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Nonlinearity = Callable[[Tensor, float], Tensor]
Formula = Callable[[Tensor, float], Tensor]
"""One step: (coefficients, t) -> coefficients at t + h."""

CONTOUR_POINTS = 64


def etdrk4(linear: Tensor, nonlinear: Nonlinearity, h: float) -> Formula:
    """Exponential time differencing, Runge-Kutta 4   (Cox and Matthews 2002, eq. 26-29).

    The weights (phi functions of h L, which cancel catastrophically for small |h L|) are means over a circle of radius
    one around every h L (Kassam and Trefethen 2005, section 3), exact to rounding by the mean value property.
    """
    z = linear * h
    half, whole = torch.exp(z / 2), torch.exp(z)
    q, f1, f2, f3 = (h * weight for weight in _phi_weights(z))

    def step(u: Tensor, t: float) -> Tensor:
        n_u = nonlinear(u, t)
        base = half * u
        a = torch.addcmul(base, q, n_u)
        n_a = nonlinear(a, t + h / 2)
        b = torch.addcmul(base, q, n_a)
        n_b = nonlinear(b, t + h / 2)
        c = torch.addcmul(half * a, q, 2 * n_b - n_u)
        n_c = nonlinear(c, t + h)
        return whole * u + f1 * n_u + 2 * f2 * (n_a + n_b) + f3 * n_c

    return step


def integrating_factor_rk4(linear: Tensor, nonlinear: Nonlinearity, h: float) -> Formula:
    """The classical Runge-Kutta 4 for v = exp(-t L) u   (Canuto et al. 2006, appendix D)."""
    half, whole = torch.exp(linear * (h / 2)), torch.exp(linear * h)

    def step(u: Tensor, t: float) -> Tensor:
        n_1 = nonlinear(u, t)
        base = half * u
        n_2 = nonlinear(base + (h / 2) * (half * n_1), t + h / 2)
        n_3 = nonlinear(base + (h / 2) * n_2, t + h / 2)
        n_4 = nonlinear(whole * u + h * (half * n_3), t + h)
        return whole * (u + (h / 6) * n_1) + (h / 3) * (half * (n_2 + n_3)) + (h / 6) * n_4

    return step


FORMULAS: dict[str, Callable[[Tensor, Nonlinearity, float], Formula]] = {
    "etdrk4": etdrk4,
    "integrating-factor-rk4": integrating_factor_rk4,
}


@lru_cache(maxsize=1)
def _circle() -> tuple[complex, ...]:
    angles = [2 * math.pi * (j + 0.5) / CONTOUR_POINTS for j in range(CONTOUR_POINTS)]
    return tuple(complex(math.cos(a), math.sin(a)) for a in angles)


def _phi_weights(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(e^(z/2) - 1) / z and the three weights of the final sum, without their factor h; real for real z."""
    sums = [torch.zeros_like(z, dtype=torch.complex128) for _ in range(4)]
    for point in _circle():
        r = z.to(torch.complex128) + point
        e, cube = torch.exp(r), r**3
        sums[0] += (torch.exp(r / 2) - 1) / r
        sums[1] += (-4 - r + e * (4 - 3 * r + r * r)) / cube
        sums[2] += (2 + r + e * (r - 2)) / cube
        sums[3] += (-4 - 3 * r - r * r + e * (4 - r)) / cube
    means = [total / CONTOUR_POINTS for total in sums]
    q, f1, f2, f3 = means if z.is_complex() else [mean.real for mean in means]
    return q, f1, f2, f3
