"""Learned multigrid cycles: linear operators on grids, of linear cost, that see the whole domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.layers.boundary import as_boundary, extend
from opflow.typing import Field, check_field, check_sizes

CYCLES = ("backslash", "V")
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Stencil(nn.Module):
    """(K v)_i = sum_{|j| <= 1} k_j v_{s i + j}: 3^dim points with the step s, 1 or 2, and the ghost values of `extend`.

    With the step 2 an axis of n points becomes one of (n + 1) // 2, whose first point stays where it was.

    >>> Stencil(3, 8, ("neumann", "periodic"), step=2)(torch.zeros(2, 3, 9, 8)).shape
    torch.Size([2, 8, 5, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, boundary: Sequence[str], *, step: int = 1) -> None:
        super().__init__()
        self.boundary, self.step = tuple(boundary), step
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[3] * len(boundary)))
        _reset(self.weight)

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid), or of half the size"""
        convolution, weight = _CONVOLUTIONS[len(self.boundary)], channels_last(self.weight)
        if all(name == "dirichlet" for name in self.boundary):
            return convolution(v, weight, stride=self.step, padding=1)
        return convolution(extend(v, self.boundary), weight, stride=self.step)

    def extra_repr(self) -> str:
        """Channels, boundary and step for `print(model)`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, boundary={self.boundary}, step={self.step}"


class Prolongation(nn.Module):
    """(P w)_i = sum_j p_{i - 2 j} w_j, -1 <= i - 2 j <= 2: from (n + 1) // 2 points an axis to n, n even or odd.

    >>> Prolongation(4, ("dirichlet",))(torch.zeros(2, 4, 5), (9,)).shape
    torch.Size([2, 4, 9])
    """

    def __init__(self, channels: int, boundary: Sequence[str]) -> None:
        super().__init__()
        self.boundary = tuple(boundary)
        self.weight = nn.Parameter(torch.empty(channels, channels, *[4] * len(boundary)))
        _reset(self.weight)

    def forward(self, w: Field, shape: Sequence[int]) -> Field:
        """(batch, channel, *coarse) -> (batch, channel, *shape)"""
        padding = 1
        if any(name != "dirichlet" for name in self.boundary):
            w, padding = extend(w, self.boundary), 3
        v = _TRANSPOSED[len(self.boundary)](w, channels_last(self.weight), stride=2, padding=padding)
        for axis, n in enumerate(shape, start=2):
            if torch.compiler.is_compiling() or v.shape[axis] != n:  # a graph must serve both parities
                v = v.narrow(axis, 0, n)
        return v

    def extra_repr(self) -> str:
        """Channels and boundary for `print(model)`."""
        return f"{self.weight.shape[0]}, boundary={self.boundary}"


def channels_last(v: Tensor) -> Tensor:
    """The same tensor (batch, channel, *grid) with the channels of a point side by side in memory, faster to convolve (`benchmarks.mgno_step`)."""
    return v.movedim(1, -1).contiguous().movedim(-1, 1) if v.ndim > 3 else v


def _reset(weight: Tensor) -> None:
    """PyTorch's default of a convolution: uniform with variance 1 / (3 fan_in)."""
    bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
    nn.init.uniform_(weight, -bound, bound)


class Level(nn.Module):
    """One grid of a cycle: smoothing u -> u + S (f - A u) before and after the coarser grids are visited, and the transfers.

    A V-cycle has one A for the residual and all smoothing, a backslash cycle one in every step (but none where u starts from zero).

    Args:
        S, A: the stencils of smoothing, first step first.
        before: how many of the steps come before the coarser grids.
        restrict, prolong: R and P, None on the coarsest grid.
        project: Pi, the coarser grid's start; None to restrict the residual f - A u and start from zero.
    """

    def __init__(
        self,
        S: Sequence[Stencil],
        A: Sequence[Stencil],
        before: int,
        *,
        restrict: Stencil | None = None,
        prolong: Prolongation | None = None,
        project: Stencil | None = None,
    ) -> None:
        super().__init__()
        self.S, self.A, self.before = nn.ModuleList(S), nn.ModuleList(A), before
        self.restrict, self.prolong, self.project = restrict, prolong, project

    def _smooth(self, u: Field | None, f: Field, step: int) -> Field:
        if u is None:
            return channels_last(self.S[step](f))
        A = self.A[max(step - len(self.S), -len(self.A))]  # the last steps have one each, or all share the only one
        return u + self.S[step](f - A(u))

    def descend(self, u: Field | None, f: Field) -> Field:
        """u, None for zero, after the smoothing that comes before the coarser grids."""
        for step in range(self.before):
            u = self._smooth(u, f, step)
        return cast(Field, u)

    def coarser(self, u: Field, f: Field) -> tuple[Field | None, Field]:
        """What the next grid starts from, and its right-hand side."""
        restrict = cast(Stencil, self.restrict)
        if self.project is None:
            return None, restrict(f - self.A[0](u))
        return self.project(u), restrict(f)

    def ascend(self, u: Field, correction: Field | None, f: Field) -> Field:
        """u with the correction of the coarser grid, after the smoothing that follows it."""
        if correction is not None:
            u = u + cast(Prolongation, self.prolong)(correction, u.shape[2:])
        for step in range(self.before, len(self.S)):
            u = self._smooth(u, f, step)
        return u


class MultigridConv(nn.Module):
    """u = W f: one multigrid cycle for A u = f with learned stencils on every level, a linear map   (He, Liu and Xu 2024, "MgNO").

    cycle "backslash" is the published form: every level starts from what the finer one found, and f itself is restricted,

        u_0 = S_0 f_0,   u_(l+1) = Pi u_l,   f_(l+1) = R f_l,   u_l <- u_l + S_l (f_l - A_l u_l),   then   u_l <- u_l + P u_(l+1),

    with stencils of its own in every step of smoothing. cycle "V" is the multigrid cycle of numerical analysis: the residual is
    restricted, the coarser grid starts from zero, one A a level serves its residual and all of its smoothing, which also follows
    the correction,

        u_l = S_l f_l,   f_(l+1) = R (f_l - A_l u_l),   u_l <- u_l + P u_(l+1),   u_l <- u_l + S'_l (f_l - A_l u_l);

    with the stencils of a difference scheme it is that scheme's multigrid (a test). f_l has in_channels channels on every
    level, u_l out_channels; S, A, Pi and R have 3^dim points, P has 4^dim. Without biases, norms or activations W is linear.

    Boundaries decide the values outside of the grid. "periodic": W commutes with shifts by 2^(n_levels - 1) points where that
    divides the grid. "neumann" on nodes: even about the end nodes; where 2^(n_levels - 1) divides n - 1 all levels share them, and with
    mirror-symmetric stencils W is then the periodic operator of the even extension. "dirichlet": zero one spacing outside of
    the grid; the values on the grid's own ends are free (`MgNO` sets them).

    Stencils are in units of the spacing: on a finer grid W sees less of the domain, and the theorem of resolution is not
    claimed. Any size of at least 2^(n_levels - 1) + 1 points an axis will do.

    Args:
        n_levels: grids, the finest counted.
        dim: 1, 2 or 3.
        smoothing: (before, after) per level, finest first. By default (1, 0) for "backslash", (1, 1) for "V", (2, 0) on the coarsest.
        reference_shape: points per axis for which the stencils are meant. Where A is a differential operator of second order,
            A and S go like h^-2 and h^2, which on another grid makes W (h / h_reference)^2 of itself; None for no scaling.

    >>> MultigridConv(3, 8, 4)(torch.zeros(2, 3, 21, 16)).shape
    torch.Size([2, 8, 21, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_levels: int = 6,
        *,
        cycle: str = "backslash",
        boundary: str | Sequence[str] = "dirichlet",
        dim: int = 2,
        smoothing: Sequence[Sequence[int]] | None = None,
        reference_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, n_levels=n_levels)
        if dim not in _CONVOLUTIONS:
            raise ValueError(f"dim is {dim!r}; a MultigridConv works on grids of 1, 2 or 3 axes.")
        if cycle not in CYCLES:
            raise ValueError(f"cycle is {cycle!r}; choose one of {', '.join(CYCLES)}.")
        self.in_channels, self.out_channels, self.cycle = in_channels, out_channels, cycle
        self.boundary = as_boundary(boundary, dim)
        self.smoothing = _as_smoothing(smoothing, n_levels, cycle)
        self.reference_shape = _as_reference(reference_shape, self.boundary)
        self.levels = nn.ModuleList(self._level(l, *steps) for l, steps in enumerate(self.smoothing))

    @property
    def n_levels(self) -> int:
        """The number of grids."""
        return len(self.levels)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """The grids of all levels, the finest first."""
        shapes = [tuple(shape)]
        for _ in range(self.n_levels - 1):
            shapes.append(tuple((n + 1) // 2 for n in shapes[-1]))
        return shapes

    def forward(self, f: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)

        Raises:
            ValueError: an axis is too short for the levels, or f does not fit. TypeError: its dtype does not.
        """
        weight = next(self.parameters())
        check_field(f, self.in_channels, len(self.boundary), weight, "MultigridConv")
        shortest = 2 ** (self.n_levels - 1) + 1
        if any(n < shortest for n in f.shape[2:]):
            raise ValueError(
                f"the grid {tuple(f.shape[2:])} is too coarse for {self.n_levels} levels: the coarsest would be "
                f"{self.shapes(f.shape[2:])[-1]}, and 2 points an axis are the least. Give at least {shortest} points an axis, or fewer levels."
            )
        levels = cast(Sequence[Level], self.levels)
        fine: list[tuple[Field, Field]] = []
        u: Field | None = None
        for level in levels:
            if fine:
                u, f = levels[len(fine) - 1].coarser(*fine[-1])
            fine.append((level.descend(u, f), f))
        correction: Field | None = None
        for level, (v, g) in zip(reversed(levels), reversed(fine), strict=True):
            correction = level.ascend(v, correction, g)
        return self._scaled(cast(Field, correction))

    def _scaled(self, u: Field) -> Field:
        if self.reference_shape is None:
            return u
        ends = [int(name != "periodic") for name in self.boundary]
        ratios = [(r - e) / (n - e) for r, n, e in zip(self.reference_shape, u.shape[2:], ends, strict=True)]
        return u * math.prod(ratios) ** (2 / len(ratios))

    def _stencil(self, kind: str, step: int = 1) -> Stencil:
        """S: f -> u, A: u -> f, R: f -> f, Pi: u -> u."""
        f, u = self.in_channels, self.out_channels
        a, b = {"S": (f, u), "A": (u, f), "R": (f, f), "Pi": (u, u)}[kind]
        return Stencil(a, b, self.boundary, step=step)

    def _level(self, level: int, before: int, after: int) -> Level:
        steps, is_coarsest, is_v = before + after, level == len(self.smoothing) - 1, self.cycle == "V"
        operators = int(steps > 1 or not is_coarsest) if is_v else steps - (level == 0)
        transfers: dict[str, Any] = {}
        if not is_coarsest:
            transfers = {"restrict": self._stencil("R", 2), "prolong": Prolongation(self.out_channels, self.boundary)}
            if not is_v:
                transfers["project"] = self._stencil("Pi", 2)
        smoothers = [self._stencil("S") for _ in range(steps)]
        return Level(smoothers, [self._stencil("A") for _ in range(operators)], before, **transfers)

    def extra_repr(self) -> str:
        """Cycle, boundary and smoothing for `print(model)`."""
        return f"cycle={self.cycle!r}, boundary={self.boundary}, smoothing={self.smoothing}"


def _as_smoothing(smoothing: Sequence[Sequence[int]] | None, n_levels: int, cycle: str) -> tuple[tuple[int, int], ...]:
    if smoothing is None:
        return (*[(1, int(cycle == "V"))] * (n_levels - 1), (2, 0))
    steps = [tuple(pair) for pair in smoothing]
    if len(steps) != n_levels or any(len(p) != 2 or p[0] < 1 or p[1] < 0 for p in steps):
        raise ValueError(
            f"smoothing is {smoothing!r}; give one pair (before, after) for each of the {n_levels} levels, finest first, with at least "
            "one step before the coarser grid is visited."
        )
    return tuple((int(a), int(b)) for a, b in steps)


def _as_reference(shape: int | Sequence[int] | None, boundary: Sequence[str]) -> tuple[int, ...] | None:
    if shape is None:
        return None
    sizes = (shape,) * len(boundary) if isinstance(shape, int) else tuple(shape)
    if len(sizes) != len(boundary) or any(n < 2 for n in sizes):
        raise ValueError(
            f"reference_shape is {shape!r}; give the points per axis, at least 2, for each of the {len(boundary)} axes."
        )
    return sizes
