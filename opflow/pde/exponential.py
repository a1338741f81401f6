"""Exponential Runge-Kutta formulas of fourth order for du/dt = L u + N(u, t) with a diagonal L."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import torch
from torch import Tensor

Nonlinearity = Callable[[Tensor, float], Tensor]
Formula = Callable[[Tensor, float, Tensor], Tensor]
"""One step: (coefficients u at t, t, N(u, t)) -> coefficients at t + h. Steps of any length from one state share its N."""

CONTOUR_POINTS = 32
CONTOUR_RADIUS = 2.0


def etdrk4(linear: Tensor, nonlinear: Nonlinearity, h: float) -> Formula:
    """Exponential time differencing, Runge-Kutta 4   (Cox and Matthews 2002, eq. 26-29), with the weights of `etd_weights`."""
    z = linear * h
    half, whole = torch.exp(z / 2), torch.exp(z)
    q, f1, f2, f3 = (h * weight for weight in etd_weights(z))
    twice_q, twice_f2 = 2 * q, 2 * f2

    def step(u: Tensor, t: float, n_u: Tensor) -> Tensor:
        base = half * u
        a = torch.addcmul(base, q, n_u)
        n_a = nonlinear(a, t + h / 2)
        b = torch.addcmul(base, q, n_a)
        n_b = nonlinear(b, t + h / 2)
        c = torch.addcmul(half * a, twice_q, torch.sub(n_b, n_u, alpha=0.5))
        n_c = nonlinear(c, t + h)
        end = torch.addcmul(whole * u, f1, n_u)
        end = torch.addcmul(end, twice_f2, n_a + n_b)
        return torch.addcmul(end, f3, n_c)

    return step


def integrating_factor_rk4(linear: Tensor, nonlinear: Nonlinearity, h: float) -> Formula:
    """The classical Runge-Kutta 4 for v = exp(-t L) u   (Canuto et al. 2006, appendix D)."""
    half, whole = torch.exp(linear * (h / 2)), torch.exp(linear * h)

    def step(u: Tensor, t: float, n_u: Tensor) -> Tensor:
        base = half * u
        n_a = nonlinear(base + (h / 2) * (half * n_u), t + h / 2)
        n_b = nonlinear(base + (h / 2) * n_a, t + h / 2)
        n_c = nonlinear(whole * u + h * (half * n_b), t + h)
        return whole * (u + (h / 6) * n_u) + (h / 3) * (half * (n_a + n_b)) + (h / 6) * n_c

    return step


FORMULAS: dict[str, Callable[[Tensor, Nonlinearity, float], Formula]] = {
    "etdrk4": etdrk4,
    "integrating-factor-rk4": integrating_factor_rk4,
}


def etd_weights(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of one ETDRK4 step at z = h L, without their factor h; real for real z, exact to rounding everywhere.

        q  = (e^(z/2) - 1) / z                          f1 = (-4 - z + e^z (4 - 3 z + z^2)) / z^3
        f2 = (2 + z + e^z (z - 2)) / z^3                f3 = (-4 - 3 z - z^2 + e^z (4 - z)) / z^3

    All four are entire, but the formulas cancel for small z. There each weight is its mean over a circle around z
    (Kassam and Trefethen 2005, section 3), of radius 2 so that the circle stays away from 0; beyond |z| = 1 the formula serves.
    """
    near = z.abs() < 1
    # The branch that is not taken must be finite too, or its gradient would be NaN.
    far = _closed_forms(torch.where(near, 2.0, z))
    centre = torch.where(near, z, 0.0).to(torch.complex128)
    sums = [torch.zeros_like(centre) for _ in far]
    for j in range(CONTOUR_POINTS):
        point = cmath.rect(CONTOUR_RADIUS, 2 * math.pi * (j + 0.5) / CONTOUR_POINTS)
        sums = [total + value for total, value in zip(sums, _closed_forms(centre + point), strict=True)]
    means = [total / CONTOUR_POINTS if z.is_complex() else total.real / CONTOUR_POINTS for total in sums]
    q, f1, f2, f3 = (torch.where(near, mean, value) for mean, value in zip(means, far, strict=True))
    return q, f1, f2, f3


def _closed_forms(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    e, square = torch.exp(z), z * z
    cube = square * z
    return (
        (torch.exp(z / 2) - 1) / z,
        (-4 - z + e * (4 - 3 * z + square)) / cube,
        (2 + z + e * (z - 2)) / cube,
        (-4 - 3 * z - square + e * (4 - z)) / cube,
    )
