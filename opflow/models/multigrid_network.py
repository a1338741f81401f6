"""From an operator to the numbers of its multigrid cycle: a network that takes part in the setup only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.files import read_json, read_tensors
from opflow.kernels.stencil.couplings import Couplings, LevelCoefficients
from opflow.layers.boundary import extend
from opflow.typing import check_sizes

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}
WEIGHTS = Path(__file__).parent / "weights"
SMALLEST = 1e-6  # of the couplings over D whose logarithm is looked at
RELAXATION, SHARE, FACTOR = (
    0.95,
    1.0,
    1.5,
)  # bounds of tanh: omega - 1, the share of a neighbour block, the logarithm of a factor


class CycleCoefficients(nn.Module):
    """From raw numbers o at every point to lawful coefficients: those of the classical cycle where o = 0.

        omega = 1 + 0.95 tanh o                         a half sweep, between 0 and 2
        b_d = tanh(o) w_across / (w_across + w_inside)  an axis: what the point takes from the block across its nearest block face
        f_d = exp(3/2 tanh(o_i + o_(i+1)))              on the coarse coupling of block i to the next one
        f = exp(3/2 tanh o)                             on what a coarse row sums to

    o of blocks is the mean over their points. A subclass states `raw`.

    Args:
        dim: 2 or 3.
        sweeps: red-black sweeps before and after the coarse correction.
    """

    smoother = "red-black"

    def __init__(self, dim: int, sweeps: int = 2) -> None:
        super().__init__()
        if dim not in CONVS:
            raise ValueError(f"dim is {dim!r}; these cycles have 2 or 3 axes.")
        check_sizes(sweeps=sweeps)
        self.dim, self.sweeps = dim, sweeps
        self.parts = (2 * sweeps, dim, 2 * dim, 1)
        self.recipe: dict[str, Any] | None = None

    def raw(self, known: Tensor, periodic: Sequence[bool]) -> Tensor:
        """o (batch, sum(parts), *shape), from what the points know of A, (batch, channel, *shape)."""
        raise NotImplementedError(f"{type(self).__name__} states no raw(known, periodic).")

    def forward(self, couplings: Couplings, factors: tuple[int, ...], level: int) -> LevelCoefficients:
        """The coefficients of one level.

        Args:
            couplings: the parts of its stencil.
            factors: the points of a block an axis, 1 or 2.
            level: 0 for the finest.

        Raises:
            ValueError: the operator has another number of axes.
        """
        if len(factors) != self.dim:
            raise ValueError(
                f"the operator has {len(factors)} axes, but this cycle was made for {self.dim}; use one for {len(factors)}."
            )
        upper, rest, across = couplings.upper, couplings.rest(), couplings.across(factors)
        along = [w + w.roll(1, d + 1) for d, w in enumerate(upper)]
        diagonal = rest + sum(along)
        shares = [_over(b, total) for b, total in zip(across, along, strict=True)]
        known = [
            _over(part, diagonal) for part in (*across, *(t - b for t, b in zip(along, across, strict=True)), rest)
        ]
        like = next(self.parameters())
        inside = (diagonal > 0).to(like.dtype)
        constant = [
            torch.full_like(inside, float(level == 0)),
            *(torch.full_like(inside, factor - 1.0) for factor in factors),
        ]
        seen = [k.to(like.dtype).expand_as(inside) for k in known]
        logs = [(k + SMALLEST).log() / -math.log(SMALLEST) for k in seen]
        o = self.raw(torch.stack([*seen, *logs, inside, *constant], 1), couplings.periodic)
        relaxation, share, faces, of_rest = o.split(self.parts, 1)
        faces, of_rest = _block_mean(faces, factors), _block_mean(of_rest, factors)
        towards, back = faces.unflatten(1, (2, self.dim)).unbind(1)
        return LevelCoefficients(
            (1 + RELAXATION * relaxation.tanh()).unbind(1),
            tuple(SHARE * s.tanh() * part for s, part in zip(share.unbind(1), shares, strict=True)),
            tuple(_factor(towards[:, d] + back[:, d].roll(-1, d + 1)) for d in range(self.dim)),
            _factor(of_rest[:, 0]),
        )


class TunedCycle(CycleCoefficients):
    """The same cycle with a few trained numbers in place of a network: what a network has to beat.

    One raw number for every sweep, one for the interpolation, one for the coarse couplings, one for what coarse rows sum to: five
    for the usual two sweeps.

    >>> TunedCycle(2).numbers
    Parameter containing:
    tensor([0., 0., 0., 0., 0.], requires_grad=True)
    """

    def __init__(self, dim: int, sweeps: int = 2) -> None:
        super().__init__(dim, sweeps)
        self.numbers = nn.Parameter(torch.zeros(sweeps + 3))
        self.recipe = {"model": type(self).__name__, "dim": dim, "sweeps": sweeps}

    def spread(self) -> Tensor:
        """The number of each raw channel."""
        sweeps, rest = self.numbers[: self.sweeps], self.numbers[self.sweeps :]
        return torch.cat(
            [sweeps.repeat_interleave(2), *(n.expand(c) for n, c in zip(rest, self.parts[1:], strict=True))]
        )

    def raw(self, known: Tensor, periodic: Sequence[bool]) -> Tensor:
        """The same numbers at every point."""
        return self.spread().view(1, -1, *[1] * self.dim).expand(known.shape[0], -1, *known.shape[2:])

    @classmethod
    def build(cls, dim: int = 2, sweeps: int = 2) -> TunedCycle:
        """From plain values, which `model.recipe` keeps."""
        return cls(dim, sweeps)

    @classmethod
    def from_pretrained(cls, name: str) -> TunedCycle:
        """The numbers that opflow ships under this name, "elliptic-2d" or "elliptic-3d".

        Raises:
            ValueError: there is no such name.
        """
        record = _shipped(name)
        cycle = cls.build(record["recipe"]["dim"], record["recipe"]["sweeps"])
        with torch.no_grad():
            cycle.numbers.copy_(torch.tensor(record["tuned"]))
        return cycle


class MultigridNetwork(CycleCoefficients):
    """A small network that reads the couplings of A and emits the coefficients of its multigrid cycle, level by level.

        o = o_tuned + H s(C_2 s(C_1 s(E x)))

    x is what the points of a block of 2^d know of A, none of which changes if A is multiplied by a number: every coupling
    over D, across the nearest block face and inside the block, the same of what a row sums to, their logarithms, and whether the point is in
    the domain. E and H are linear in a block, C are convolutions of 3^d blocks, s is GELU, all shared by the levels. The o_tuned are
    the five numbers of `TunedCycle`; H starts at zero, and the whole at the classical cycle.

    The network takes no part in `apply`, so that M is linear, and symmetric and positive definite whatever the parameters are
    (V-cycles; see `CycleCoefficients` for the bounds): plain conjugate gradients are lawful, and a bad network costs iterations, never correctness.

    Args:
        dim: 2 or 3.
        hidden_channels: of a block.
        sweeps: red-black sweeps before and after the coarse correction.

    >>> from opflow.solvers.multigrid import Multigrid
    >>> from opflow.solvers.face_stencil import FaceStencil
    >>> A = FaceStencil([torch.ones(1, 33, 32), torch.ones(1, 32, 33)])
    >>> Multigrid(coefficients=MultigridNetwork(2)).setup(A).apply(torch.ones(1, 32, 32)).shape
    torch.Size([1, 32, 32])
    """

    def __init__(self, dim: int, hidden_channels: int = 16, *, sweeps: int = 2) -> None:
        super().__init__(dim, sweeps)
        check_sizes(hidden_channels=hidden_channels)
        conv, c, points = CONVS[dim], hidden_channels, 2**dim
        self.tuned = TunedCycle(dim, sweeps)
        self.embed = conv(points * (5 * dim + 4), c, 1)
        self.convs = nn.ModuleList(conv(c, c, 3) for _ in range(2))
        self.head = conv(c, points * sum(self.parts), 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.recipe = {"model": type(self).__name__, "dim": dim, "hidden_channels": c, "sweeps": sweeps}

    def raw(self, known: Tensor, periodic: Sequence[bool]) -> Tensor:
        """(batch, 5 dim + 4, *shape) -> (batch, sum(parts), *shape)"""
        shape = known.shape[2:]
        v = self.embed(_blocks(F.pad(known, [part for n in reversed(shape) for part in (0, n % 2)])))
        sides = ["periodic" if ring else "dirichlet" for ring in periodic]
        for conv in self.convs:
            v = conv(extend(F.gelu(v), sides))
        o = _points(self.head(F.gelu(v)), self.dim)
        for axis, n in enumerate(shape, start=2):
            o = o.narrow(axis, 0, n)
        return self.tuned.raw(known, periodic) + o

    @classmethod
    def build(cls, dim: int = 2, hidden_channels: int = 16, *, sweeps: int = 2) -> MultigridNetwork:
        """From plain values, which `model.recipe` keeps."""
        return cls(dim, hidden_channels, sweeps=sweeps)

    @classmethod
    def from_pretrained(cls, name: str) -> MultigridNetwork:
        """The network that opflow ships under this name; each has a model card beside it in `opflow/models/weights/`.

        "elliptic-2d" and "elliptic-3d": scalar diffusion with obstacles, jumps, log-normal media and anisotropy along an axis.

        Raises:
            ValueError: there is no such name.
        """
        record = _shipped(name)
        network = cls.build(**{key: value for key, value in record["recipe"].items() if key != "model"})
        network.load_state_dict(read_tensors(WEIGHTS / f"{name}.safetensors", expected_sha256=record["sha256"]))
        return network.eval()


def _over(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where there is nothing."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)


def _factor(o: Tensor) -> Tensor:
    return (FACTOR * o.tanh()).exp()


def _block_mean(o: Tensor, factors: Sequence[int]) -> Tensor:
    return POOLS[len(factors)](o, tuple(factors), ceil_mode=True) if max(factors) > 1 else o


def _blocks(v: Tensor) -> Tensor:
    """(batch, channel, *shape) -> (batch, 2^d channel, *shape / 2): the points of a block as channels."""
    for axis in range(2, v.ndim):
        v = torch.cat(v.unflatten(axis, (-1, 2)).unbind(axis + 1), 1)
    return v


def _points(v: Tensor, dim: int) -> Tensor:
    """The inverse of `_blocks`."""
    for axis in range(dim + 1, 1, -1):
        v = torch.stack(v.chunk(2, 1), axis + 1).flatten(axis, axis + 1)
    return v


def _shipped(name: str) -> dict[str, Any]:
    """The record of shipped weights: the recipe, the hash of the file of tensors, the numbers of the tuned cycle, how they were trained."""
    known = sorted(path.stem for path in WEIGHTS.glob("*.json"))
    if name not in known:
        raise ValueError(f"there are no weights called {name!r}; opflow ships {', '.join(known)}.")
    return read_json(WEIGHTS / f"{name}.json")
