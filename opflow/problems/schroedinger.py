"""The nonlinear Schroedinger equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.problems.periodic_evolution import IntervalEvolution
from opflow.typing import Derivatives


@dataclass(frozen=True)
class Schroedinger(IntervalEvolution):
    """i h_t + 1/2 h_xx + |h|^2 h = 0 on a periodic interval   (Raissi et al. 2019, section 3.1).

    The envelope h = real + i imaginary of a wave packet that focuses itself; the integral of |h|^2 is kept.

    >>> from opflow import Grid
    >>> problem, grid = Schroedinger(), Grid((64,), (-5.0, 5.0), "periodic")
    >>> sorted(problem.solve(problem.sample(2, grid), grid, rtol=1e-6))
    ['imaginary', 'real']
    """

    inputs: ClassVar[tuple[str, ...]] = ("initial_real", "initial_imaginary")
    unknowns: ClassVar[tuple[str, ...]] = ("real", "imaginary")
    real: ClassVar[bool] = False

    def pack(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """h at t = 0, (n, *grid), complex"""
        return torch.complex(inputs["initial_real"], inputs["initial_imaginary"])

    def unpack(self, state: Tensor) -> dict[str, Tensor]:
        """The parts of h, (n, time, *grid) each"""
        return {"real": state.real, "imaginary": state.imag}

    def linear(self, space: FourierSpace) -> Tensor:
        """-i k^2 / 2"""
        return 0.5j * space.laplacian

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """i |h|^2 h, point by point.

        No modes are dropped: no derivative amplifies the alias, and the product turns the phase of h at every point without
        changing |h|, so that the equations on the grid keep the norm as those on the interval do.
        """

        def focusing(c: Tensor, t: float) -> Tensor:
            h = space.field(c)
            return 1j * space.coefficients((h.real.square() + h.imag.square()) * h)

        return focusing

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """The equation's parts: {"real": -q_t + p_xx / 2 + |h|^2 p, "imaginary": p_t + q_xx / 2 + |h|^2 q} for h = p + i q."""
        p, q = u["real"], u["imaginary"]
        square = p.value**2 + q.value**2
        return {
            "real": -q.d("t") + 0.5 * p.d("xx") + square * p.value,
            "imaginary": p.d("t") + 0.5 * q.d("xx") + square * q.value,
        }

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A soliton at points (..., 2) of (t, x): {"initial_real", "initial_imaginary", "real", "imaginary"}, each (...).

        h = 2 sech(2 (x - t)) exp(i x + 3 i t / 2)   (Zakharov and Shabat 1972); it lives on the whole line, and is periodic up to
        exp(-2 d), d the distance to the end of the interval.
        """
        t, x = points.unbind(-1)

        def parts(t: Tensor) -> tuple[Tensor, Tensor]:
            amplitude, phase = 2 / torch.cosh(2 * (x - t)), x + 1.5 * t
            return amplitude * torch.cos(phase), amplitude * torch.sin(phase)

        (p0, q0), (p, q) = parts(torch.zeros_like(t)), parts(t)
        return {"initial_real": p0, "initial_imaginary": q0, "real": p, "imaginary": q}
