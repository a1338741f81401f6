"""Geometric multigrid for stencils of nearest neighbours: a symmetric cycle without a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from opflow.kernels.backend import choose
from opflow.kernels.stencil.backends import BACKENDS, StencilBackend
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.couplings import Couplings, LevelCoefficients, transfer
from opflow.kernels.stencil.reference import Reference
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.linear_system import largest

CYCLES, SMOOTHERS, COARSENINGS = ("V", "W"), ("red-black", "jacobi"), ("auto", "full")
# Damped Jacobi: the classical choice for five- and seven-point Laplacians.
DAMPING = 0.8
# Couplings that differ by no more than this are cycled in single precision inside a solve in double: it costs no iteration there.
SINGLE_PRECISION_CONTRAST = 100.0


class CycleCoefficients(Protocol):
    """Reads the couplings of a level, once an operator, and emits the coefficients of its cycle."""

    smoother: str
    sweeps: int

    def __call__(self, parts: Couplings, factors: tuple[int, ...], level: int) -> LevelCoefficients:
        """From the couplings of a level, the block sizes an axis and the number of the level, 0 the finest."""
        ...


@dataclass(frozen=True)
class Level:
    """A grid of the hierarchy: its stencil, the sweeps before and after the correction from the next one, the way there."""

    stencil: Stencil
    before: tuple[Relaxation, ...]
    after: tuple[Relaxation, ...]
    transfer: Transfer

    @property
    def vanishing(self) -> int | None:
        """The colour without a residual after the sweeps."""
        last = self.before[-1]
        return last.colour if last.exact else None


class Multigrid:
    """One symmetric multigrid cycle for a `FaceStencil`, as a preconditioner: linear, symmetric, positive definite.

    Grids of blocks of two points an axis (odd sizes end in a single one), piecewise-constant transfer, coarse stencils by finite
    volumes (half the sum of the fine face weights), which keeps every level a stencil of nearest neighbours and holds obstacles: a
    block is solid if all its points are. The sweeps after the correction mirror those before it. Nothing is stored but the weights;
    on a CPU with numba (extra `fast`) and on NVIDIA devices the steps are fused.

    Args:
        cycle: "V", or "W", which visits coarser grids twice: fewer iterations at high contrast in three dimensions.
        coefficients: a learned cycle, see `opflow.models.MultigridNetwork`: reads the operator in `setup`, takes no part in `apply`.
        smoother: "red-black" Gauss-Seidel, or "jacobi", damped by 0.8. Stencils with corners and levels whose periodic axes are odd
            have no two colours and take the latter.
        sweeps: before and after the correction.
        coarsening: "auto" leaves axes alone whose coupling is weak (semi-coarsening), "full" halves them all.
        dtype: of the cycle; None for single precision inside a solve in double where the couplings differ by no more than 100
            times, else the operator's own.
        backend: of the kernels, None for the first that serves.
        coarsest: unknowns below which a grid is solved by a dense inverse.

    Source: Brandt (1977); over-corrected aggregation: Braess, "Towards algebraic multigrid for elliptic problems of second order",
    Computing 55 (1995).

    >>> from opflow.solvers.conjugate_gradient import ConjugateGradient
    >>> A = FaceStencil([torch.ones(1, 65, 64).double(), torch.ones(1, 64, 65).double()])
    >>> ConjugateGradient(Multigrid(), rtol=1e-8).solve(A, torch.ones(64, 64).double()).iterations <= 12
    True
    """

    linear = symmetric = deterministic = True

    def __init__(
        self,
        cycle: str = "V",
        *,
        coefficients: CycleCoefficients | None = None,
        smoother: str = "red-black",
        sweeps: int = 2,
        coarsening: str = "auto",
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        coarsest: int = 256,
    ) -> None:
        for name, value, known in (
            ("cycle", cycle, CYCLES), ("smoother", smoother, SMOOTHERS), ("coarsening", coarsening, COARSENINGS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
        if sweeps < 1 or coarsest < 1:
            raise ValueError(f"sweeps is {sweeps} and coarsest {coarsest}; both must be positive whole numbers.")
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"dtype is {dtype}; choose torch.float32 or torch.float64, or None to let the contrast decide."
            )
        self.cycle, self.coefficients, self.coarsening = cycle, coefficients, coarsening
        self.smoother = smoother if coefficients is None else coefficients.smoother
        self.sweeps = sweeps if coefficients is None else coefficients.sweeps
        self.dtype, self.backend, self.coarsest = dtype, backend, coarsest
        self._ready: FaceStencil | None = None

    def setup(self, A: Any) -> Multigrid:
        """Build the grids for a FaceStencil.

        Raises:
            TypeError: A is no FaceStencil. ValueError: it holds NaN or infinity, or a negative diagonal; or corners, and the cycle is learned.
        """
        if not isinstance(A, FaceStencil):
            raise TypeError(
                f"Multigrid needs the grid and the face weights of a FaceStencil, but A is a {type(A).__name__}; use FaceStencil.from_coefficient, "
                "FaceStencil.from_sparse for a matrix of five or seven points, or AlgebraicMultigrid for any other."
            )
        if self.coefficients is not None and A.corners is not None:
            raise ValueError(
                "A couples points across corners, and a learned cycle reads couplings of nearest neighbours only; leave coefficients out."
            )
        diagonal = A.diagonal()
        size = diagonal.detach().flatten(1).amax(1)
        if not bool((diagonal >= 0).all() & size.isfinite().all()):
            raise ValueError(
                "the operator has NaN, infinity or a negative number on its diagonal; check the face weights."
            )
        self._ready, self._work = A, self._precision(A)
        # In units of the largest diagonal, so that no level leaves the dtype of the cycle.
        self._unit = torch.where(size > 0, torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent), 1.0)
        scale = (1 / self._unit).view(-1, *[1] * len(A.shape))
        # A learned cycle reads the couplings at their full contrast; the classical one halves them in its own precision.
        parts = Couplings.of(A, scale) if self.coefficients else Couplings.of(A, scale).to(self._work)
        self.levels: list[Level] = []
        while math.prod(parts.shape) > self.coarsest:
            parts = self._add_level(parts)
        # Summed anew in the operator's precision: rounded sums would hide the null space of a closed domain.
        self._inverse = _scaled_inverse(parts.to(A.dtype).stencil()).to(self._work)
        return self

    def apply(self, r: Tensor) -> Tensor:
        """One cycle from zero, (batch, *shape) -> (batch, *shape)"""
        A = self._ready
        if A is None:
            raise RuntimeError("Multigrid.apply was called before setup(A); a preconditioner reads its operator first.")
        r = r if A.mask is None else r * A.mask
        column = self._unit.expand(r.shape[0]) if self._unit.shape[0] == 1 else self._unit
        if self._work != r.dtype:  # in units of the largest entry, so that single precision holds it
            top = largest(r)
            unit = torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent)
            column, r = column / unit, (r / unit.view(-1, *[1] * (r.ndim - 1))).to(self._work)
        finest = self.levels[0].stencil if self.levels else A.stencil
        learned = [] if self.coefficients is None else [sweep.weight for level in self.levels for sweep in level.before]
        backend = choose(BACKENDS, StencilCall.of(finest, r.shape[0], r, self._inverse, *learned), self.backend)
        u = self._visit(backend, 0, r.contiguous())
        z = u.to(A.dtype) / column.view(-1, *[1] * (r.ndim - 1))
        return z if A.mask is None else z * A.mask

    def _visit(self, backend: StencilBackend, index: int, f: Tensor) -> Tensor:
        if index == len(self.levels):
            return torch.einsum("bij,bj->bi", self._inverse.expand(f.shape[0], -1, -1), f.flatten(1)).view_as(f)
        level = self.levels[index]
        u = backend.relax(level.stencil, level.before, f, None)
        coarse = backend.restrict(level.stencil, level.transfer, f, u, vanishing=level.vanishing)
        e = self._visit(backend, index + 1, coarse)
        if self.cycle == "W" and index + 1 < len(self.levels):
            again = coarse - backend.apply(self.levels[index + 1].stencil, e)
            e = e + self._visit(backend, index + 1, again)
        return backend.correct(level.stencil, level.transfer, level.after, f, u, e)

    def _precision(self, A: FaceStencil) -> torch.dtype:
        if self.dtype is not None or A.dtype != torch.float64:
            return self.dtype or A.dtype
        smallest = min(float(torch.where(w > 0, w, torch.inf).amin()) for w in A.stencil.upper)
        top = max(float(w.amax()) for w in A.stencil.upper)
        return torch.float32 if top <= SINGLE_PRECISION_CONTRAST * smallest else torch.float64

    def _add_level(self, parts: Couplings) -> Couplings:
        """One more grid; returns the couplings of the next."""
        stencil = parts.stencil()
        factors = parts.coarsened_axes(semi=self.coarsening == "auto")
        diagonal = stencil.diagonal
        inverse = torch.where(diagonal > 0, 1 / torch.where(diagonal > 0, diagonal, 1.0), 0.0)
        colours: tuple[int | None, ...] = (None,) * self.sweeps
        if self.smoother == "red-black" and stencil.two_coloured:
            colours = (0, 1) * self.sweeps
        coarse = parts.coarse(factors)
        if self.coefficients is None:
            exact = colours[0] is not None
            weight = (inverse if exact else DAMPING * inverse).to(self._work).contiguous()
            before = tuple(Relaxation(weight, colour, exact) for colour in colours)
            way = transfer(factors, parts.mask)
        else:
            learned = self.coefficients(parts, factors, len(self.levels))
            relaxation: Sequence[Tensor | float] = learned.relaxation
            if len(relaxation) != len(colours):  # a level without two colours
                relaxation = (DAMPING,) * self.sweeps
            before = tuple(
                Relaxation((omega * inverse).to(self._work).contiguous(), colour)
                for omega, colour in zip(relaxation, colours, strict=True)
            )
            way = transfer(factors, parts.mask, tuple(b.to(self._work) for b in learned.across))
            coarse = coarse.scaled(learned.coarse_faces, learned.coarse_rest)
        self.levels.append(Level(stencil.to(self._work), before, before[::-1], way))
        return coarse


def _scaled_inverse(stencil: Stencil) -> Tensor:
    """The pseudo-inverse (batch or 1, n, n), taken of the matrix scaled to a unit diagonal so that its rank shows at any contrast."""
    n, like = math.prod(stencil.shape), stencil.diagonal
    columns = torch.eye(n, dtype=like.dtype, device=like.device).view(n, *stencil.shape)
    matrix = torch.stack([Reference().apply(stencil.one(i), columns).flatten(1) for i in range(like.shape[0])])
    diagonal = like.flatten(1)
    root = torch.where(diagonal > 0, diagonal.clamp(min=torch.finfo(like.dtype).tiny).rsqrt(), 0.0)
    scaled = root[:, :, None] * matrix * root[:, None, :]
    rank = 20 * n * torch.finfo(like.dtype).eps
    return root[:, :, None] * torch.linalg.pinv(scaled, rtol=rank, hermitian=True) * root[:, None, :]
