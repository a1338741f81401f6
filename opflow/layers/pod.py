"""The proper orthogonal decomposition of training targets as a trunk."""

from __future__ import annotations

import itertools
import math

import torch
from einops import rearrange
from torch import Tensor, nn

from opflow.grid import Grid
from opflow.layers.branch_trunk import as_multi_output
from opflow.layers.coordinates import is_symbolic
from opflow.typing import Points, check_placement

# Samples, points and outputs as the rows and columns whose right singular vectors are the modes, and these as functions.
_ROWS = {
    (True, True): ("s n o -> o s n", "o k n -> n o k"),  # each output has modes of its own
    (False, True): ("s n o -> 1 s (n o)", "1 k (n o) -> n o k"),  # a mode is a function with all outputs
    (True, False): ("s n o -> 1 (s o) n", "1 k n -> n 1 k"),  # the outputs are samples of the same modes
}


class PODTrunk(nn.Module):
    """t_k = phi_k, the modes that represent training targets best in L2   (Lu et al. 2022, "A comprehensive and fair comparison of two neural operators": POD-DeepONet).

    With targets u_1, ..., u_n, their mean phi_0 and the grid's quadrature weights w, the modes are the right singular vectors of
    sqrt(w) (u_i - phi_0), divided by sqrt(w): orthonormal, int phi_j phi_k = delta_jk, and of all bases of this size the one with

        sum_i |u_i - phi_0 - sum_k <u_i - phi_0, phi_k> phi_k|^2 = sum_(k > basis) sigma_k^2

    the smallest. So no DeepONet with this trunk has a smaller mean squared error on the targets than this sum / n.
    They are functions of the grid, exact at its points; between them they are interpolated linearly along each axis.

    Args:
        grid: where the targets live.
        basis: how many modes.
        out_channels: of the targets.
        multi_output: "independent" and "split_both" give each output its own modes; "split_branch" gives all outputs the
            same; "split_trunk" makes each mode a function with all outputs, whose coefficient they share.

    The modes are buffers, not a number until `fit` computes them or a state dict brings them.

    >>> grid = Grid(50)
    >>> trunk = PODTrunk(grid, 3)
    >>> singular_values = trunk.fit(torch.sin(torch.rand(20, 1) + 3 * grid.coordinates(0))[..., None])
    >>> trunk(torch.rand(7, 1)).shape, bool(singular_values[0, 2] < 1e-10)
    (torch.Size([7, 1, 3]), True)
    """

    mean: Tensor
    modes: Tensor

    def __init__(self, grid: Grid, basis: int, out_channels: int = 1, *, multi_output: str = "independent") -> None:
        super().__init__()
        points, self.apart = math.prod(grid.shape), as_multi_output(multi_output)
        if basis < 1 or out_channels < 1 or basis > points:
            raise ValueError(
                f"basis is {basis} and out_channels {out_channels} on {points} points; give positive numbers, and no more modes "
                "than points."
            )
        self.grid = grid
        self.register_buffer("mean", torch.full((points, out_channels), torch.nan))
        self.register_buffer("modes", torch.full((points, out_channels if self.apart[1] else 1, basis), torch.nan))

    @torch.no_grad()
    def fit(self, targets: Tensor) -> Tensor:
        """Compute mean and modes from targets (samples, points, out), points in the order of the flattened grid.

        Returns:
            All singular values (outputs apart or 1, rank), in decreasing order: their tail is the error of the modes.
        """
        points, outputs = self.mean.shape
        if targets.ndim != 3 or targets.shape[1:] != self.mean.shape or targets.shape[0] < 1:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)} but PODTrunk expects (samples, {points}, {outputs}): "
                f"the points of the grid {self.grid.shape} in one axis, and the channels last."
            )
        if not bool(targets.isfinite().all()):
            raise ValueError("targets holds NaN or infinity; correct or leave out these samples.")
        values = targets.to(torch.float64)
        root = self.grid.quadrature_weights(device=targets.device).flatten()[:, None].sqrt()
        as_rows, as_functions = _ROWS[self.apart]
        rows = rearrange((values - values.mean(0)) * root, as_rows)
        basis = self.modes.shape[-1]
        if basis > min(rows.shape[-2:]):
            raise ValueError(
                f"{basis} modes were asked for but {rows.shape[-2]} samples on {rows.shape[-1]} values span only "
                f"{min(rows.shape[-2:])}; give more samples, or build with a smaller basis."
            )
        _, singular_values, vectors = torch.linalg.svd(rows, full_matrices=False)
        vectors = vectors[:, :basis]
        largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
        modes = rearrange(vectors * largest.sign(), as_functions, n=points)
        self.mean.copy_(values.mean(0))
        self.modes.copy_(modes / root[:, None])
        return singular_values

    def forward(self, coords: Points) -> Tensor:
        """The modes, (..., dim) -> (..., outputs apart or 1, basis)"""
        return self._at(coords, self.modes.flatten(1)).unflatten(-1, self.modes.shape[1:])

    def mean_at(self, coords: Points) -> Tensor:
        """phi_0, (..., dim) -> (..., out)"""
        return self._at(coords, self.mean)

    def _at(self, coords: Points, values: Tensor) -> Tensor:
        """Multilinear interpolation of values (points, channel); linear extrapolation half a cell beyond cell centres."""
        if coords.ndim < 1 or coords.shape[-1] != self.grid.dim:
            raise ValueError(
                f"the coordinates have shape {tuple(coords.shape)} but PODTrunk expects {self.grid.dim} numbers along the last axis."
            )
        check_placement(coords, self.modes, "PODTrunk", "coords")
        if not is_symbolic(values) and bool(values[0, 0].isnan()):
            raise RuntimeError("this PODTrunk has no modes yet; call fit(targets) first, or load a checkpoint.")
        sides = [self._neighbours(coords[..., axis], axis) for axis in range(self.grid.dim)]
        total = coords.new_zeros(())
        for corner in itertools.product((0, 1), repeat=self.grid.dim):
            index, weight = torch.zeros_like(sides[0][0][0]), torch.ones_like(sides[0][0][1])
            for n, side, which in zip(self.grid.shape, sides, corner, strict=True):
                index, weight = index * n + side[which][0], weight * side[which][1]
            total = total + weight[..., None] * values[index]
        return total

    def _neighbours(self, y: Tensor, axis: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The grid points on both sides of y along an axis, each with its weight."""
        n, kind = self.grid.shape[axis], self.grid.layout[axis]
        s = (y - self.grid.extent[axis][0]) / self.grid.spacing[axis] - (0.5 if kind == "cells" else 0.0)
        low = s.detach().floor() if kind == "periodic" else s.detach().floor().clamp(0, max(n - 2, 0))
        i, t = low.long(), s - low
        if kind == "periodic":
            return (i % n, 1 - t), ((i + 1) % n, t)
        return (i, 1 - t), ((i + 1).clamp(max=n - 1), t)

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        return f"{self.grid.shape}, basis={self.modes.shape[-1]}, out_channels={self.mean.shape[-1]}"
