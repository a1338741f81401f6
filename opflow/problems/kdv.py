"""The Korteweg-de Vries equation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.problems.constants import check_finite
from opflow.problems.periodic_evolution import IntervalEvolution, quadratic_flux
from opflow.typing import Derivatives


@dataclass(frozen=True)
class KortewegDeVries(IntervalEvolution):
    """u_t + c u u_x + e u_xxx = 0 on a periodic interval   (Korteweg and de Vries 1895; Zabusky and Kruskal 1965).

    u is the height of long waves in shallow water. `solve` takes the integrating factor: its rotations are free of error, so that
    the fast dispersion of short waves, in rough initial fields, does not shorten the steps.

    Attributes:
        convection: c.
        dispersion: e, in length^3 / time.

    >>> from opflow import Grid
    >>> problem, grid = KortewegDeVries(), Grid((128,), (-20.0, 20.0), "periodic")
    >>> problem.solve(problem.sample(2, grid), grid, rtol=1e-6)["height"].shape
    torch.Size([2, 128])
    """

    convection: float | Tensor = 6.0
    dispersion: float | Tensor = 1.0

    unknowns: ClassVar[tuple[str, ...]] = ("height",)
    formula: ClassVar[str] = "integrating-factor-rk4"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(convection=self.convection, dispersion=self.dispersion)

    def linear(self, space: FourierSpace) -> Tensor:
        """i e k^3"""
        return -self.dispersion * space.gradient[0] ** 3

    def nonlinear(self, space: FourierSpace, inputs: Mapping[str, Tensor]) -> Nonlinearity:
        """-c (u^2 / 2)_x"""
        return quadratic_flux(space, self.convection)

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum": u_t + c u u_x + e u_xxx}"""
        u = u["height"]
        return {"momentum": u.d("t") + self.convection * u.value * u.d("x") + self.dispersion * u.d("xxx")}

    def exact(
        self, points: Tensor, solitons: Sequence[tuple[float, float]] = ((1.4, -10.0), (1.0, 0.0))
    ) -> dict[str, Tensor]:
        """Solitons that pass through each other, at points (..., 2) of (t, x): {"initial", "height"}, each (...).

            u = (12 e / c) (log F)_xx,   F = sum over sets S of solitons of exp(sum_S eta_i) prod_(i < j in S) ((k_i - k_j) / (k_i + k_j))^2,

        eta_i = k_i (x - x_i) - e k_i^3 t   (Hirota 1971). Alone, a soliton is (3 e k^2 / c) sech^2(eta / 2), with the speed e k^2. They
        live on the whole line, and are periodic up to exp(-k d), d the distance to the end of the interval.

        Args:
            solitons: (k_i, x_i) of each, all k_i > 0 and different.
        """
        numbers = [k for k, _ in solitons]
        if not numbers or min(numbers) <= 0 or len(set(numbers)) < len(numbers):
            raise ValueError(f"solitons are {solitons}; give pairs (k, x) with positive, different k.")
        t, x = points.unbind(-1)
        sets = [s for m in range(len(numbers) + 1) for s in itertools.combinations(range(len(numbers)), m)]
        shifts = [
            sum(
                2 * math.log(abs(numbers[i] - numbers[j]) / (numbers[i] + numbers[j]))
                for i, j in itertools.combinations(s, 2)
            )
            for s in sets
        ]

        def height(t: Tensor) -> Tensor:
            eta = [k * (x - centre) - self.dispersion * k**3 * t for k, centre in solitons]
            # Each exponent is linear in x, so (log F)_xx is the variance of their slopes under the shares of the terms in F.
            exponents = [
                sum((eta[i] for i in s), torch.full_like(x, shift)) for s, shift in zip(sets, shifts, strict=True)
            ]
            share = torch.stack(exponents, dim=-1).softmax(-1)
            slope = x.new_tensor([sum(numbers[i] for i in s) for s in sets])
            variance = 0.5 * torch.einsum("...i,...j,ij->...", share, share, (slope[:, None] - slope).square())
            return (12 * self.dispersion / self.convection) * variance

        return {"initial": height(torch.zeros_like(t)), "height": height(t)}
