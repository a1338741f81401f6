"""Stencils and the steps of a multigrid cycle on a CPU by compiled loops (extra `fast`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby, takewhile

import torch
from torch import Tensor

from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.geometry import PRODUCT, RELAXED, RESIDUAL
from opflow.kernels.stencil.numba_rows import CORRECTION, FIELD, ZERO, Rows, flat
from opflow.kernels.stencil.reference import of_colour
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer

INSTALLED = find_spec("numba") is not None
# Numbers in a whole batch below which compiled loops are not loaded, which takes half a second: from here on a multigrid solve takes about
# half the time that plain torch operations need, or less.
SMALLEST = 1 << 14
# Sweeps of which a multiple is compiled.
SWEEPS = 4


class Numba:
    """float32 and float64 on a CPU, in as many threads as torch uses; the bits do not depend on their number."""

    name = "numba"

    def refusal(self, call: StencilCall) -> str | None:
        """Another device or dtype, too little work, no numba, or a caller that needs plain torch operations."""
        if call.only_reference is not None:
            return call.only_reference
        if call.device.type != "cpu":
            return f"x is on {call.device.type}"
        if call.dtype not in (torch.float32, torch.float64):
            return f"x is {call.dtype}"
        if torch.compiler.is_compiling():
            return "a compiled graph goes through plain torch operations"
        if not INSTALLED:
            return "numba is not installed (pip install 'opflow[fast]')"
        if math.prod(call.shape) < SMALLEST:
            return f"x holds {math.prod(call.shape)} numbers, and loading compiled loops pays from {SMALLEST} on"
        return None

    def apply(self, stencil: Stencil, u: Tensor) -> Tensor:
        """A u, (batch, *shape) -> (batch, *shape)"""
        return _residual(stencil, None, u)

    def relax(self, stencil: Stencil, sweeps: Sequence[Relaxation], f: Tensor, u: Tensor | None) -> Tensor:
        """The sweeps in turn, from u (which may be overwritten) or from zero."""
        if not sweeps and u is None:
            raise ValueError("no sweep was given and no field to start from; give at least one of them.")
        two_coloured, start = stencil.two_coloured, FIELD
        if u is None and two_coloured and sweeps[0].colour is not None:
            u, start = f.new_empty(f.shape), ZERO
        elif u is None:
            u, sweeps = of_colour(sweeps[0]) * f, sweeps[1:]
        for in_place, group in groupby(sweeps, key=lambda sweep: two_coloured and sweep.colour is not None):
            if in_place:
                u = _sweep(stencil, list(group), f, u, start)
            else:
                for sweep in group:
                    u = _residual(stencil, f, u, of_colour(sweep))
            start = FIELD
        return u

    def restrict(
        self, stencil: Stencil, transfer: Transfer, f: Tensor, u: Tensor, *, vanishing: int | None = None
    ) -> Tensor:
        """P^T (f - A u), (batch, *shape) -> (batch, *coarse); `vanishing` is a colour known to have no residual."""
        from opflow.kernels.stencil import numba_kernel

        weights = transfer.weights
        rows = Rows.of(stencil, (f, u), weights, transfer.factors)
        out = u.new_empty(rows.batch, *transfer.coarse_shape(stencil.shape))
        if not weights:
            colour = -1 if vanishing is None else vanishing
            arrays = flat(
                (out, *rows.fields(f, u), *rows.coefficients(stencil.diagonal), *rows.per_axis(stencil.upper))
            )
            geometry = (colour, rows.shape, rows.rings, rows.axes, rows.block, rows.factors, rows.operators)
            rows.share(numba_kernel.restrict, (*arrays, *geometry), rows.units, rows.factors[0])
            return out
        r = rows.fields(_residual(stencil, f, u))
        arrays = flat((out, *r, *rows.coefficients(weights[0]), *rows.per_axis(weights[1:])))
        planes, lines, _ = rows.coarse
        arguments = (*arrays, rows.shape, rows.rings, rows.factors, rows.operators)
        rows.share(numba_kernel.collect, arguments, planes if planes > 1 else lines)
        return out

    def correct(
        self,
        stencil: Stencil,
        transfer: Transfer,
        sweeps: Sequence[Relaxation],
        f: Tensor,
        u: Tensor,
        e: Tensor,
    ) -> Tensor:
        """u + P e and then the sweeps; u may be overwritten."""
        at_once = list(takewhile(lambda sweep: sweep.colour is not None, sweeps)) if stencil.two_coloured else []
        u = _sweep(stencil, at_once, f, u, CORRECTION, transfer, e)
        return u if len(at_once) == len(sweeps) else self.relax(stencil, sweeps[len(at_once) :], f, u)


def _residual(stencil: Stencil, f: Tensor | None, u: Tensor, weight: Tensor | None = None) -> Tensor:
    """f - A u, A u without f, u + weight (f - A u) with a weight."""
    from opflow.kernels.stencil import numba_kernel

    rows = Rows.of(stencil, (u,) if f is None else (f, u), () if weight is None else (weight,))
    out = u.new_empty(rows.batch, *stencil.shape)
    result = PRODUCT if f is None else RESIDUAL if weight is None else RELAXED
    # What is not given is not read either.
    fields = rows.fields(u if f is None else f, u)
    numbers = rows.coefficients(stencil.diagonal if weight is None else weight, stencil.diagonal)
    arrays = flat((out, *fields, *numbers, *rows.per_axis(stencil.upper)))
    geometry = (rows.shape, rows.rings, rows.axes, rows.block, rows.operators)
    rows.share(numba_kernel.residual, (result, *arrays, *geometry), rows.units)
    return out


def _sweep(
    stencil: Stencil,
    sweeps: Sequence[Relaxation],
    f: Tensor,
    u: Tensor,
    start: int,
    transfer: Transfer | None = None,
    e: Tensor | None = None,
) -> Tensor:
    """Sweeps of one colour each, in place where u is whole and contiguous, after the correction if there is one."""
    from opflow.kernels.stencil import numba_kernel

    weights = () if transfer is None else transfer.weights
    factors = (1,) * len(stencil.shape) if transfer is None else transfer.factors
    e = u if e is None else e
    rows = Rows.of(stencil, (f, u, e), (*(sweep.weight for sweep in sweeps), *weights), factors)
    u, f, e = rows.fields(u, f, e)
    numbers = (*rows.coefficients(stencil.diagonal), *rows.per_axis(stencil.upper))
    interpolation = (*rows.coefficients(weights[0]), *rows.per_axis(weights[1:])) if weights else numbers
    # The loops are compiled for a number of weights, so that numbers are rounded up; no stage reads what fills the gap.
    gap = -len(sweeps) % SWEEPS if sweeps else SWEEPS
    relaxation = (*rows.coefficients(*(sweep.weight for sweep in sweeps)), *numbers[:1] * gap)
    colours = tuple([sweep.colour for sweep in sweeps] + [0] * gap)
    exact = all(sweep.exact for sweep in sweeps)
    stages = (flat(relaxation), colours, exact, start, bool(weights))
    geometry = (rows.factors, rows.shape, rows.rings, rows.axes, rows.block, rows.operators, rows.lag)
    arguments = (*flat((u, f)), *stages, *flat(numbers), *flat((e, *interpolation)), *geometry)
    rows.share_sweeps(numba_kernel.sweep, arguments, len(sweeps) + (start == CORRECTION))
    return u
