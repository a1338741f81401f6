"""Networks from a residual to a search direction, for conjugate directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.kernels.backend import choose
from opflow.kernels.stencil.backends import BACKENDS
from opflow.kernels.stencil.call import StencilCall
from opflow.models.stencil_levels import StencilLevel, stencil_levels
from opflow.typing import Field, check_sizes

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}
DEPTHS = {"64": (4, 6, 4), "128": (6, 10, 6)}


class TwoLevelNetwork(nn.Module):
    """The published network of the deep conjugate direction method   (Kaneda et al. 2023, "A deep conjugate direction method").

    A linear convolution to `hidden_channels`, pairs v <- s(C s(C v)) + v of convolutions of 3^d points on the fine grid, pairs on
    one of half the size, pairs on the fine grid again beside what was there before, and a linear map at every point. Zeros
    surround the grid, s is ReLU and everything has a bias, so the map is not odd and not homogeneous: it wants unit residuals.

    Args:
        depths: convolutions on the fine grid going down, on the coarse grid, on the fine grid going up; even numbers.

    >>> TwoLevelNetwork(3, depths=(4, 6, 4))(torch.zeros(1, 1, 8, 9, 7)).shape
    torch.Size([1, 1, 8, 9, 7])
    """

    def __init__(self, dim: int, hidden_channels: int = 16, *, depths: Sequence[int] = (4, 6, 4)) -> None:
        super().__init__()
        if len(depths) != 3 or any(n < 2 or n % 2 for n in depths):
            raise ValueError(f"depths is {tuple(depths)}; give three even numbers of convolutions, at least 2.")
        conv, c = CONVS[dim], hidden_channels
        self.dim = dim
        self.first = conv(1, c, 3, padding=1)
        self.down, self.coarse, self.up = (nn.ModuleList(conv(c, c, 3, padding=1) for _ in range(n)) for n in depths)
        self.last = conv(c, 1, 1)

    def forward(self, r: Field) -> Field:
        """(batch, 1, *grid) -> (batch, 1, *grid)"""
        v = _pairs(F.relu(self.down[0](self.first(r))), self.down[1:-1])
        fine = F.relu(self.down[-1](v))
        v = POOLS[self.dim](fine, 2, ceil_mode=True)  # the last block of an odd axis is one point
        v = _pairs(v, self.coarse)
        for axis, n in enumerate(fine.shape[2:], start=2):
            v = v.repeat_interleave(2, dim=axis).narrow(axis, 0, n)
        return self.last(_pairs(v + fine, self.up))


def _pairs(v: Field, convs: nn.ModuleList) -> Field:
    for first, second in zip(convs[::2], convs[1::2], strict=True):
        v = F.relu(second(F.relu(first(v)))) + v
    return v


class DirectionSmoother(nn.Module):
    """S(r) = w q + (g(q) - g(-q)) / 2,   q = r / D,   g(q) = C_3 s(G_2 C_2 s(G_1 C_1 q)).

    C are convolutions of 3^d points without bias and s is ReLU, so that S is odd and positively homogeneous, and zero residual gives
    zero. D is the diagonal of A. The gates G_1 and G_2, one number a channel and point, are a small network's of what the point
    knows of A: its couplings and its sinks relative to D. Multiplying A by a number divides S by it.

    C_1 and C_3 are linear, so that only the middle of g is computed twice.

    Args:
        dim: 2 or 3.
        hidden_channels: of C_1 and C_2.

    >>> smoother = DirectionSmoother(2, 4)
    >>> smoother.gates(torch.zeros(1, 6, 8, 9)).shape
    torch.Size([1, 2, 4, 8, 9])
    """

    def __init__(self, dim: int, hidden_channels: int = 8) -> None:
        super().__init__()
        conv, c = CONVS[dim], hidden_channels
        self.weight = nn.Parameter(torch.tensor(0.7))  # near the best damping of Jacobi's method
        self.first = conv(1, c, 3, bias=False)
        self.middle = conv(c, c, 3, bias=False)
        self.last = conv(c, 1, 3, bias=False)
        self.look = nn.Sequential(conv(2 * dim + 2, c, 3), nn.GELU(), conv(c, 2 * c, 1))
        with torch.no_grad():  # training starts near Jacobi's method and gates near 1
            for last in (self.last, cast(nn.Conv2d, self.look[-1])):
                last.weight *= 0.1

    def gates(self, features: Field, periodic: Sequence[bool] = ()) -> Tensor:
        """G_1 and G_2, (batch, 2 dim + 2, *grid) -> (batch, 2, channel, *grid)"""
        return 1 + self.look(_bordered(features, periodic)).unflatten(1, (2, -1))

    def forward(self, q: Field, gates: Tensor, periodic: Sequence[bool] = ()) -> Field:
        """(batch, 1, *grid) -> (batch, 1, *grid)"""
        h = gates[:, 0] * self.first(_bordered(q, periodic))
        both = self.middle(_bordered(F.relu(torch.cat([h, -h])), periodic)).unflatten(0, (2, -1))
        plus, minus = F.relu(gates[:, 1] * both)
        return self.weight * q + self.last(_bordered((plus - minus) / 2, periodic))


def _bordered(v: Field, periodic: Sequence[bool]) -> Field:
    """One more point at both ends of every axis: the other end's round a ring, else zero."""
    for axis, ring in enumerate(periodic, start=2):
        if ring:
            n = v.shape[axis]
            v = torch.cat([v.narrow(axis, n - 1, 1), v, v.narrow(axis, 0, 1)], dim=axis)
    rings = [*periodic, *[False] * (v.ndim - 2 - len(periodic))]
    return v if all(rings) else F.pad(v, [0 if ring else 1 for ring in reversed(rings) for _ in range(2)])


class DirectionCycle(nn.Module):
    """One multigrid cycle with learned nonlinear smoothers, the same two on every grid.

    From u = 0 on the grid of level l:

    - u <- S_1(f)
    - u <- u + P cycle_(l+1)(P^T (f - A_l u))
    - u <- u + S_2(f - A_l u)

    A_l are the operator's face weights on blocks of points, see `StencilLevel`; P is constant on blocks. There are as many levels as it
    takes to reach a single point, where u = f / D. So the cycle sees the whole domain whatever its size, with the same parameters.
    It is odd and positively homogeneous because its smoothers are.

    Args:
        down, up: S_1 and S_2.

    Raises:
        RuntimeError: called before `setup(A)`. ValueError: the field does not fit the operator.
    """

    def __init__(self, down: DirectionSmoother, up: DirectionSmoother) -> None:
        super().__init__()
        self.down, self.up = down, up
        self._levels: list[StencilLevel] = []
        self._known: tuple[Any, list[tuple[Tensor, Tensor]]] | None = None

    def setup(self, A: Any) -> DirectionCycle:
        """Read an operator: its grids in this module's precision."""
        self._levels = stencil_levels(A, self.down.weight.dtype)
        self._known = None
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> DirectionCycle:
        """What is kept of the operator follows the parameters to another device or dtype."""
        super()._apply(fn, recurse)
        self._levels, self._known = [level.to(self.down.weight) for level in self._levels], None
        return self

    def _gates(self) -> list[tuple[Tensor, Tensor]]:
        """Of both smoothers on every level; kept while neither the operator nor a parameter changes."""
        stamp = [(id(p), p._version) for p in self.parameters()]
        if not torch.is_grad_enabled() and self._known is not None and self._known[0] == stamp:
            return self._known[1]
        found = []
        for level in self._levels:
            features, periodic = level.features(), level.stencil.periodic
            found.append((self.down.gates(features, periodic), self.up.gates(features, periodic)))
        self._known = None if torch.is_grad_enabled() else (stamp, found)
        return found

    def forward(self, r: Field) -> Field:
        """(batch, 1, *grid) -> (batch, 1, *grid)"""
        if not self._levels:
            raise RuntimeError("the network was called before setup(A); it reads the operator first.")
        stencil = self._levels[0].stencil
        batch = stencil.diagonal.shape[0]
        if tuple(r.shape[2:]) != stencil.shape or batch not in (1, r.shape[0]):
            raise ValueError(
                f"r has shape {tuple(r.shape)} but the operator of setup(A) is {batch} on {stencil.shape}; give fields (batch, 1, "
                f"*{stencil.shape}), one for each operator where there are several, or call setup with the operator at hand."
            )
        gates = self._gates()
        return self._descend(r[:, 0], 0, gates)[:, None]

    def _descend(self, f: Tensor, number: int, gates: list[tuple[Tensor, Tensor]]) -> Tensor:
        level = self._levels[number]
        if level.transfer is None:
            return level.inverse * f
        stencil, transfer, periodic = level.stencil, level.transfer, level.stencil.periodic
        backend = choose(BACKENDS, StencilCall.of(stencil, f.shape[0], f))

        def smoothed(smoother: DirectionSmoother, r: Tensor, gate: Tensor) -> Tensor:
            return smoother((level.inverse * r)[:, None], gate, periodic)[:, 0] * level.active

        before, after = gates[number]
        u = smoothed(self.down, f, before)
        coarse = self._descend(backend.restrict(stencil, transfer, f, u), number + 1, gates)
        u = (
            backend.correct(stencil, transfer, (), f, u, coarse) * level.active
        )  # a coarse block reaches beyond the domain
        return u + smoothed(self.up, f - backend.apply(stencil, u), after)


class DirectionNetwork(nn.Module):
    """d = N(r), a direction near A^-1 r up to a factor: what `ConjugateDirection` searches along   (Kaneda et al. 2023, DCDM).

    Takes its body, a map of fields of one channel; `DirectionNetwork.build` makes the usual ones from plain values:

    - "multilevel": `DirectionCycle`. It reads every operator through `setup(A)`, is odd and positively homogeneous, and has the same
      parameters on every grid, so that one network serves every size, every geometry and every coefficient.
    - "64", "128": `TwoLevelNetwork`, the published ones. They know no operator but the one they were trained for.

    The sign and the size of d mean nothing: the exact line search along d takes the best multiple, negative ones too.

    Args:
        body: (batch, 1, *grid) -> (batch, 1, *grid); if it has `setup(A)`, that is called with every operator.
        dim: the number of axes of its grids, 2 or 3.

    >>> network = DirectionNetwork.build(2, "64")
    >>> network(torch.ones(3, 9, 8, dtype=torch.float64)).dtype
    torch.float64
    """

    def __init__(self, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.body, self.dim = body, dim
        self.recipe: dict[str, Any] | None = None

    def setup(self, A: Any) -> DirectionNetwork:
        """Let the body read an operator, if it does so; return self.

        Raises:
            ValueError, TypeError: the operator has another number of axes, or nothing to read.
        """
        if len(A.shape) != self.dim:
            raise ValueError(
                f"A acts on unknowns of shape {tuple(A.shape)} but this network has {self.dim} axes. A matrix has no grid: build a FaceStencil "
                "from it, by FaceStencil.from_sparse."
            )
        read: Any = getattr(self.body, "setup", None)
        if read is not None:
            read(A)
        return self

    def forward(self, r: Tensor) -> Tensor:
        """Residuals of norm 1, (batch, *grid) or (batch, 1, *grid) -> the same shape and dtype; inside, the dtype of the parameters."""
        if r.ndim not in (self.dim + 1, self.dim + 2) or (r.ndim == self.dim + 2 and r.shape[1] != 1):
            raise ValueError(
                f"r has shape {tuple(r.shape)} but this network has {self.dim} axes; give residuals (batch, *grid) or (batch, 1, *grid)."
            )
        like = next(self.parameters())
        if r.device != like.device or not r.is_floating_point():
            raise TypeError(
                f"r is {r.dtype} on {r.device} but the network is on {like.device}; give floating-point numbers there."
            )
        fields = r if r.ndim == self.dim + 2 else r[:, None]
        return self.body(fields.to(like.dtype)).reshape(r.shape).to(r.dtype)

    @classmethod
    def build(cls, dim: int = 2, variant: str = "multilevel", hidden_channels: int | None = None) -> DirectionNetwork:
        """The usual bodies from plain values, which `model.recipe` keeps.

        Args:
            dim: 2 or 3.
            variant: "multilevel", or "64" or "128": the network published for that many points an axis.
            hidden_channels: 8 for "multilevel" and 16, as published, for the others.
        """
        if dim not in CONVS:
            raise ValueError(f"dim is {dim!r}; these networks have 2 or 3 axes.")
        width = (8 if variant == "multilevel" else 16) if hidden_channels is None else hidden_channels
        check_sizes(hidden_channels=width)
        if variant == "multilevel":
            body: nn.Module = DirectionCycle(DirectionSmoother(dim, width), DirectionSmoother(dim, width))
        elif variant in DEPTHS:
            body = TwoLevelNetwork(dim, width, depths=DEPTHS[variant])
        else:
            raise ValueError(f"variant is {variant!r}; give 'multilevel', {', '.join(map(repr, DEPTHS))}.")
        model = cls(body, dim)
        model.recipe = {"model": cls.__name__, "dim": dim, "variant": variant, "hidden_channels": width}
        return model
