"""Fluxes on the sides of a rectangle as a function of the conductivity inside, with their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.problems.line_factors import LineFactors, flow_inside, outflow

STENCIL = 4  # nodes that a sensor's value is interpolated from
COLUMNS = 320  # right-hand sides that are solved together: few enough to stay in the cache
MEMORY = 2**26  # bytes of factors that are held at once where no gradient is asked for


class BoundaryFluxes:
    """F: a -> a du/dn at sensors on the sides, where -div(a grad u) = 0 inside and u = g_l on the boundary, l = 1, ..., L.

    Five-point finite volumes on nodes with harmonic faces, in float64. The flux at a boundary node is what its half cell loses to its
    neighbours, (A u)_b / h: conservative, so that the discrete Dirichlet-to-Neumann map is symmetric and takes constants to zero, and of
    second order. Corner nodes, whose cells have two normals, are never read: sensors are interpolated along a side by cubics through its
    other nodes, exactly at the nodes, extrapolated between the last of them and a corner.

    Calling it takes a (n, *grid), positive, to (n, L, 1, 4 sensors), counter-clockwise from the corner of the lowest coordinates, and is
    differentiable once, by the adjoint method: for the cotangent c, with v_l the solution whose boundary values are the transposed
    interpolation of c_l, the derivative by the weight of face ij is sum_l (v_i - v_j)(u_i - u_j).

    Args:
        boundary: the boundary functions on the grid (L, *grid); what they are inside is not read.
        sensors: their number S on each side, at shares j / (S + 1) of it, j = 1, ..., S.

    >>> grid = Grid((9, 9))
    >>> forward = BoundaryFluxes(grid, grid.points()[..., 0][None], 2)  # u = x
    >>> forward(torch.ones(1, 9, 9)).flatten().round(decimals=9).abs().tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, grid: Grid, boundary: Tensor, sensors: int) -> None:
        self.grid, self.sensors = grid, sensors
        self._boundary = boundary.double()
        # From what flows out of the boundary nodes of a side to fluxes at its sensors.
        self._read_x, self._read_y = (
            torch.from_numpy(_interpolation(n, sensors) / h) for n, h in zip(grid.shape, grid.spacing, strict=True)
        )

    def __call__(self, a: Tensor) -> Tensor:
        """The measurements (n, L, 1, 4 sensors), float64."""
        self._check(a, 3, "(n, *grid)")
        lines, line = self.grid.shape
        held = len(a) if a.requires_grad else max(1, MEMORY // (8 * lines * line**2))
        parts = [_Flux.apply(*self._faces(part), self) for part in a.double().split(max(held, 1))]
        return torch.cat(parts) if parts else a.new_zeros(0, len(self._boundary), 1, 4 * self.sensors).double()

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """F(a) (L, 1, 4 sensors) and its derivatives (L, 1, 4 sensors, k) along `directions` (k, *grid), for one a (*grid).

        delta u solves the same system with the load -(delta A) u, so that all L k of them need one factorisation.
        """
        self._check(a, 2, "(*grid)")
        self.grid.check(directions, "directions")
        factors = LineFactors(*self._faces(a.detach().double()[None]))
        u = factors.extend(self._boundary.to(a.device)[None])
        data, columns = self._read(outflow(*_of_each(factors), u))[0], []
        for some in directions.detach().double().split(max(1, COLUMNS // len(self._boundary))):
            along_x, along_y = (faces[:, None] for faces in self._face_derivatives(a.detach().double(), some))
            load = flow_inside(along_x, along_y, u)  # (k, L, *inside)
            change = torch.nn.functional.pad(-factors.solve(load.flatten(0, 1)[None])[0], (1, 1, 1, 1))
            explicit, implicit = outflow(along_x, along_y, u), outflow(*_of_each(factors), change[None])
            columns.append(self._read(explicit) + self._read(implicit)[0].view(*load.shape[:2], 1, 4 * self.sensors))
        return data, torch.cat(columns).movedim(0, -1) if columns else data.new_zeros(*data.shape, 0)

    def potentials(self, a: Tensor) -> Tensor:
        """u (n, L, *grid), float64."""
        self._check(a, 3, "(n, *grid)")
        boundary = self._boundary.to(a.device)[None]
        parts = [LineFactors(*self._faces(one[None])).extend(boundary) for one in a.detach().double()]
        return torch.cat(parts) if parts else boundary.new_zeros(0, *boundary.shape[1:])

    def _faces(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The face weights, a times length over distance; a face along the boundary has half a length."""
        halves_x, halves_y = self._geometry(a)
        left, right, low, high = a[:, :-1], a[:, 1:], a[..., :-1], a[..., 1:]
        return halves_x * (2 * left * right / (left + right)), halves_y * (2 * low * high / (low + high))

    def _face_derivatives(self, a: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
        """How the face weights change along da (k, *grid)."""
        halves_x, halves_y = self._geometry(a)

        def change(p: Tensor, q: Tensor, dp: Tensor, dq: Tensor) -> Tensor:
            return 2 * (q**2 * dp + p**2 * dq) / (p + q) ** 2

        return (
            halves_x * change(a[:-1], a[1:], da[:, :-1], da[:, 1:]),
            halves_y * change(a[:, :-1], a[:, 1:], da[..., :-1], da[..., 1:]),
        )

    def _geometry(self, like: Tensor) -> tuple[Tensor, Tensor]:
        (h_x, h_y), (n_x, n_y) = self.grid.spacing, self.grid.shape
        across_x, across_y = like.new_full((n_y,), h_y / h_x), like.new_full((n_x, 1), h_x / h_y)
        across_x[[0, -1]] /= 2
        across_y[[0, -1]] /= 2
        return across_x, across_y

    def _read(self, outflow: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """From what flows out of the nodes of the sides, (..., L, n - 2), to (..., L, 1, 4 sensors)."""
        x, y = self._read_x.to(outflow[0].device), self._read_y.to(outflow[0].device)
        left, right, bottom, top = (values @ read.T for values, read in zip(outflow, (y, y, x, x), strict=True))
        return torch.cat([bottom, right, top.flip(-1), left.flip(-1)], -1)[..., None, :]

    def _spread(self, cotangent: Tensor) -> Tensor:
        """The transpose of `_read`, zero inside and at corners."""
        x, y = self._read_x.to(cotangent.device), self._read_y.to(cotangent.device)
        bottom, right, top, left = cotangent.squeeze(-2).split(self.sensors, -1)
        out = cotangent.new_zeros(*cotangent.shape[:-2], *self.grid.shape)
        out[..., 1:-1, 0], out[..., 1:-1, -1] = bottom @ x, top.flip(-1) @ x
        out[..., 0, 1:-1], out[..., -1, 1:-1] = left.flip(-1) @ y, right @ y
        return out

    def _check(self, a: Tensor, rank: int, expected: str) -> None:
        if a.ndim != rank or tuple(a.shape[-2:]) != self.grid.shape:
            raise ValueError(
                f"the coefficient has shape {tuple(a.shape)}; expected {expected} with the grid {self.grid.shape}."
            )
        check_positive_field(a if rank == 3 else a[None], "the coefficient")


class _Flux(torch.autograd.Function):
    """The fluxes of face weights; the derivative by a weight is the product of two differences."""

    @staticmethod
    def forward(ctx: Any, along_x: Tensor, along_y: Tensor, owner: BoundaryFluxes) -> Tensor:
        factors = LineFactors(along_x, along_y)
        boundary = owner._boundary.to(along_x.device)
        u = factors.extend(boundary.expand(len(along_x), *boundary.shape))
        ctx.factors, ctx.owner, ctx.u = (factors, owner, u) if any(ctx.needs_input_grad) else (None, None, None)
        return owner._read(outflow(*_of_each(factors), u))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        v = ctx.factors.extend(ctx.owner._spread(cotangent))
        along_x, along_y = ((v.diff(dim=d) * ctx.u.diff(dim=d)).sum(1) for d in (-2, -1))
        return along_x, along_y, None


def _of_each(factors: LineFactors) -> tuple[Tensor, Tensor]:
    """The face weights of every sample, for all of its right-hand sides."""
    return factors.along_x[:, None], factors.along_y[:, None]


def check_positive_field(field: Tensor, name: str) -> None:
    """Raise unless all samples of `field` (n, ...) are finite and positive everywhere.

    Raises:
        ValueError: names the sample, and the value.
    """
    flat = field.detach().flatten(1)
    if not bool(flat.isfinite().all()):
        bad = int((~flat.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name} holds NaN or infinity in sample {bad}; correct or leave out this sample.")
    if not bool((flat > 0).all()):
        bad = int((flat <= 0).any(1).nonzero()[0])
        raise ValueError(f"{name} of sample {bad} falls to {float(flat[bad].min()):g}; it must be positive everywhere.")


def _interpolation(n: int, sensors: int) -> Any:
    """The matrix (sensors, n - 2) from values at the nodes i / (n - 1) of a side, without its ends, to those at j / (sensors + 1)."""
    position = np.arange(1, sensors + 1) * (n - 1) / (sensors + 1)  # in spacings
    first = np.clip(np.floor(position).astype(int) - STENCIL // 2 + 1, 1, n - 1 - STENCIL)
    matrix = np.zeros((sensors, n - 2))
    for k in range(STENCIL):
        others = [m for m in range(STENCIL) if m != k]
        weight = np.prod([(position - first - m) / (k - m) for m in others], axis=0)
        matrix[np.arange(sensors), first + k - 1] = weight
    return matrix
