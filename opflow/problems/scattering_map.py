"""From a contrast to the waves that it scatters: the discrete map, its adjoint and its derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opflow.grid import Grid
from opflow.solvers.gmres import GMRES
from opflow.solvers.lippmann_schwinger import LippmannSchwinger, VolumePotential, free_space_green

MOST_NUMBERS = 1 << 24  # complex, of a solve's Krylov vectors at once
MOST_ELIMINATED, FEWEST_ELIMINATED = (
    1000,
    4,
)  # cells of a target, and waves, for which elimination takes less time than iteration
RANK_TOLERANCE = 1e-13  # singular values of what receivers see, left out below this share of the largest


class ScatteringMap:
    """F(q)[l, :, r] = (Re, Im) s_l(x_r),   s_l(x) = k^2 int g(x, y) q(y) u_l(y) dy,   u_l = u_i,l + k^2 V (q u_l)

    the wave that q scatters from the incident wave l to the receivers: q (n, *grid) -> (n, L, 2, receivers), float64.

    Gradients are those of the discrete map: one adjoint solve an incident wave. `linearise` needs one solve for each direction in which the
    receivers see anything, about 2 k (radius of the square) + 20 of them however many receivers there are.

    Args:
        incident: for each wavenumber its incident waves (L_k, *grid), complex128; measurements are numbered in this order.
        receivers: points (m, 2) outside the rectangle.
        rtol: of the recomputed residual of each solve.
    """

    def __init__(
        self, grid: Grid, incident: Sequence[tuple[float, Tensor]], receivers: Tensor, *, rtol: float = 1e-10
    ) -> None:
        outside = [(receivers[:, axis] < a) | (receivers[:, axis] > b) for axis, (a, b) in enumerate(grid.extent)]
        if not bool((outside[0] | outside[1]).all()):
            bad = int((~(outside[0] | outside[1])).nonzero()[0])
            raise ValueError(
                f"receiver {bad} stands at {receivers[bad].tolist()}, inside the rectangle {grid.extent} of the target; move it out."
            )
        self.grid, self.receivers = grid, receivers
        points, area = grid.points().reshape(-1, 2), grid.spacing[0] * grid.spacing[1]
        self._bands = []
        for k, waves in incident:
            seen = k**2 * area * free_space_green(receivers, points, k)
            self._bands.append(_Band(VolumePotential(grid, k), waves, seen.view(-1, *grid.shape), rtol))

    @property
    def n_measurements(self) -> int:
        """L, over all wavenumbers."""
        return sum(len(band.waves) for band in self._bands)

    def __call__(self, q: Tensor) -> Tensor:
        """(n, *grid) -> (n, L, 2, receivers); an error where 1 + q is not positive."""
        _check(q, self.grid, 3)
        scattered: list[Tensor] = [_Scattered.apply(q, band) for band in self._bands]
        return torch.cat(scattered, dim=1)

    def fields(self, q: Tensor) -> Tensor:
        """The total fields in the rectangle (n, L, *grid), complex."""
        _check(q, self.grid, 3)
        return torch.cat([band.total(q.detach().to(torch.float64)) for band in self._bands], dim=1)

    def linearise(self, q: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """q (*grid), directions (k, *grid) -> F(q) (L, 2, receivers) and dF(q)[directions] (L, 2, receivers, k).

        ds_l = k^2 int w_r u_l dq,  w_r the total field that a source at receiver r would make: what reciprocity says, and here exactly
        the derivative of the discrete map.
        """
        _check(q, self.grid, 2)
        self.grid.check(directions, "directions")
        parts = [
            band.linearise(q.detach().to(torch.float64), directions.detach().to(torch.float64)) for band in self._bands
        ]
        return torch.cat([data for data, _ in parts]), torch.cat([jacobian for _, jacobian in parts])


class _Band:
    """The measurements of one wavenumber."""

    def __init__(self, potential: VolumePotential, waves: Tensor, seen: Tensor, rtol: float) -> None:
        self.potential, self.waves, self.seen, self.rtol = potential, waves, seen, rtol
        self._factors: tuple[Tensor, Tensor] | None = None

    def solve(self, q: Tensor, right: Tensor) -> Tensor:
        """A(q) x = right for q (n, *grid) and right (n or 1, m, *grid) -> (n, m, *grid), a piece at a time."""
        right = right.expand(len(q), *right.shape[1:])
        method = GMRES(rtol=self.rtol, max_steps=2000, raise_on_failure=True)
        columns = right.flatten(0, 1)
        owners = torch.arange(len(q)).repeat_interleave(right.shape[1])
        at_once = max(1, MOST_NUMBERS // (method.restart * q[0].numel())) if len(q) else 1
        guess = torch.cat([self._guess(a, b) for a, b in zip(q, right, strict=True)]) if len(q) else columns
        found = [
            method.solve(LippmannSchwinger(q[mine], self.potential), b.contiguous(), x0).x
            for b, mine, x0 in zip(*(t.split(at_once) for t in (columns, owners, guess)), strict=True)
        ]
        return (torch.cat(found) if found else columns).view(right.shape)

    def _guess(self, q: Tensor, right: Tensor) -> Tensor:
        """Where a small target is hit by several waves, the solution by elimination among its own cells; else what comes in.

        x = right + k^2 V (q x) holds everywhere as soon as it holds where q is not zero. The iteration then only checks the residual.
        """
        cells = q.flatten().nonzero()[:, 0]
        if not 0 < len(cells) <= MOST_ELIMINATED or len(right) < FEWEST_ELIMINATED:
            return right
        k2q = self.potential.wavenumber**2 * q
        matrix = torch.eye(len(cells), dtype=right.dtype) - self.potential.between(cells) * k2q.flatten()[cells]
        inside = torch.linalg.solve(matrix, right.flatten(1)[:, cells].T).T
        source = torch.zeros_like(right).flatten(1)
        source[:, cells] = k2q.flatten()[cells] * inside
        return right + self.potential(source.view(right.shape))

    def total(self, q: Tensor) -> Tensor:
        """u (n, L, *grid)"""
        return self.solve(q, self.waves[None])

    def scattered(self, q: Tensor, u: Tensor) -> Tensor:
        """(n, L, 2, receivers) from the contrast and the total fields."""
        s = (q[:, None] * u).flatten(2) @ self.seen.flatten(1).T
        return torch.stack([s.real, s.imag], dim=2)

    def linearise(self, q: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self._low_rank()
        both = self.solve(q[None], torch.cat([self.waves, right])[None])[0]
        u, w = both[: len(self.waves)], both[len(self.waves) :]
        d = directions.flatten(1).T.to(u.dtype)
        rows = [left @ ((w * field).flatten(1) @ d) for field in u]
        jacobian = torch.stack(rows)  # (L, receivers, k)
        return self.scattered(q[None], u[None])[0], torch.stack([jacobian.real, jacobian.imag], dim=1)

    def _low_rank(self) -> tuple[Tensor, Tensor]:
        """What the receivers see as left (m, rank) times right (rank, *grid): waves of high angular order do not reach them."""
        if self._factors is None:
            U, S, Vh = torch.linalg.svd(self.seen.flatten(1), full_matrices=False)
            kept = int((RANK_TOLERANCE * S[0] < S).sum())
            self._factors = U[:, :kept] * S[:kept], Vh[:kept].view(kept, *self.seen.shape[1:])
        return self._factors


class _Scattered(torch.autograd.Function):
    """s(q) of one band; the backward pass is one solve for each sample and incident wave."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, band: _Band) -> Tensor:
        contrast = q.detach().to("cpu", torch.float64)
        u = band.total(contrast)
        ctx.band = band
        ctx.save_for_backward(q, u)
        return band.scattered(contrast, u).to(q.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        q, u = ctx.saved_tensors
        g = g.to("cpu", torch.float64)
        # d loss = Re sum conj(g) ds, and ds_r = int w_r u dq with A w_r = seen_r: one w for the whole sum.
        weights = torch.complex(g[:, :, 0], -g[:, :, 1])  # (n, L, receivers)
        loads = (weights @ ctx.band.seen.flatten(1)).view(u.shape)
        w = ctx.band.solve(q.detach().to("cpu", torch.float64), loads)
        return (w * u).real.sum(1).to(q), None


def _check(q: Tensor, grid: Grid, ndim: int) -> None:
    grid.check(q, "contrast")
    if q.ndim != ndim:
        expected = "(n, *grid)" if ndim == 3 else "(*grid), one sample"
        raise ValueError(f"contrast has shape {tuple(q.shape)}; expected {expected}.")
    if not bool(q.isfinite().all()):
        raise ValueError("contrast holds NaN or infinity; correct or leave out such samples.")
    if not bool((q > -1).all()):
        raise ValueError(
            f"contrast falls to {float(q.min()):g}; 1 + contrast, the permittivity, must be positive everywhere."
        )
