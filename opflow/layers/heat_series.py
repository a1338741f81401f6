"""Initial data carried along by the heat equation, as a Fourier series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 512  # points whose terms are held at a time
DECAYED = 60.0  # exp(-60) = 9e-27: a term is below rounding even after some differentiations


class HeatSeries(nn.Module):
    """G(t, x) = sum_k exp(-d w_k^2 t) (a_k cos w_k x + b_k sin w_k x), w_k = 2 pi k / period, which solves G_t = d G_xx.

    A lift for `HardConstraint` where the initial data have a kink: u = G + t N needs a smooth N only, while with u = u_0 + t N the
    kink of u_0 would stay in u for ever. A coordinate jet gets its Taylor coefficients from the differentiated series, exactly; the
    terms of large k vanish within a time of 1 / (d w_k^2).

    Args:
        cosine: a_0, a_1, ...
        sine: b_0 (which counts for nothing), b_1, ...; None for an even function.
        period: of x.
        diffusivity: d >= 0, in length^2 / time.

    >>> G = HeatSeries([0.0, 1.0], period=2.0, diffusivity=1.0)
    >>> y = torch.tensor([[0.1, 0.25]], dtype=torch.float64)
    >>> torch.allclose(G(y), math.exp(-0.1 * math.pi**2) * torch.cos(math.pi * y[:, 1:]))
    True
    """

    wavenumber: Tensor
    cosine: Tensor
    sine: Tensor | None

    def __init__(
        self,
        cosine: Tensor | Sequence[float],
        sine: Tensor | Sequence[float] | None = None,
        *,
        period: float,
        diffusivity: float,
    ) -> None:
        super().__init__()
        a = torch.as_tensor(cosine, dtype=torch.float64).detach().clone()
        b = None if sine is None else torch.as_tensor(sine, dtype=torch.float64).detach().clone()
        if a.ndim != 1 or not len(a) or (b is not None and b.shape != a.shape):
            raise ValueError(
                f"cosine has shape {tuple(a.shape)}{'' if b is None else f' and sine {tuple(b.shape)}'}; give one coefficient "
                "a wave number, k = 0, 1, .., equally many of both."
            )
        if not (math.isfinite(period) and period > 0 and math.isfinite(diffusivity) and diffusivity >= 0):
            raise ValueError(
                f"period is {period} and diffusivity {diffusivity}; the first must be > 0, the second >= 0."
            )
        self.period, self.diffusivity = float(period), float(diffusivity)
        self.register_buffer("cosine", a)
        self.register_buffer("sine", b)
        self.register_buffer("wavenumber", 2 * math.pi / period * torch.arange(len(a), dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        """(..., 2) of (t, x) -> (..., 1)"""
        if y.shape[-1] != 2:
            raise ValueError(
                f"the coordinates have shape {tuple(y.shape)}; HeatSeries expects (t, x) along the last axis."
            )
        points, orders = (y, ((0, 0),)) if isinstance(y, Tensor) else (getattr(y, "origin", None), None)
        if points is None:
            raise NotImplementedError(
                "HeatSeries takes the coordinates themselves, not functions of them; give it (t, x)."
            )
        jet: Any = y
        flat = points.reshape(-1, 2)
        # Together with others of its time a point meets only the terms that are left by then.
        order = flat[:, 0].argsort()
        parts = [self._derivatives(p, orders or jet.indices.all) for p in flat[order].split(CHUNK)]
        back = order.argsort()
        found = [torch.cat(column)[back].reshape(*points.shape[:-1], 1) for column in zip(*parts, strict=True)]
        if orders is not None:
            return found[0]
        factorials = jet.indices.factorials
        return type(jet)([c / n for c, n in zip(found, factorials, strict=True)], jet.indices)

    def _derivatives(self, points: Tensor, orders: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """d_t^m d_x^n G at points (n, 2) for each (m, n)."""
        t, x = points[:, :1], points[:, 1:]
        left = self._terms_left(float(t.detach().min())) if len(t) else 1
        w, a = self.wavenumber[:left].to(points), self.cosine[:left].to(points)
        rate = -self.diffusivity * w.square()
        decay, angle = torch.exp(rate * t), w * x
        # The n-th derivative of a cosine is w^n times the one n quarter turns further.
        c, s = decay * torch.cos(angle), decay * torch.sin(angle)
        turned = (c, -s, -c, s)
        found = []
        for m, n in orders:
            factor = rate**m * w**n
            value = turned[n % 4] @ (factor * a)
            if self.sine is not None:
                # A sine is a cosine a quarter turn back.
                value = value + turned[(n + 3) % 4] @ (factor * self.sine[:left].to(points))
            found.append(value)
        return found

    def _terms_left(self, t: float) -> int:
        """How many terms have not decayed at time t."""
        if t <= 0 or self.diffusivity == 0:
            return len(self.cosine)
        largest = math.sqrt(DECAYED / (self.diffusivity * t)) * self.period / (2 * math.pi)
        return min(len(self.cosine), math.ceil(largest) + 1)

    def extra_repr(self) -> str:
        """The numbers, for print(model)."""
        return f"{len(self.cosine)} wave numbers, period={self.period:g}, diffusivity={self.diffusivity:g}"
