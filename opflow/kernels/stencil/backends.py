"""The backends of stencils, in order of preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from opflow.kernels.backend import Backend
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.numba_backend import Numba
from opflow.kernels.stencil.reference import Reference
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer
from opflow.kernels.stencil.triton_backend import Triton


class StencilBackend(Backend[StencilCall], Protocol):
    """One implementation of a stencil and of the steps of a multigrid cycle; fields are (batch, *shape), contiguous."""

    def apply(self, stencil: Stencil, u: Tensor) -> Tensor:
        """A u"""
        ...

    def relax(self, stencil: Stencil, sweeps: Sequence[Relaxation], f: Tensor, u: Tensor | None) -> Tensor:
        """The sweeps in turn, from u (which may be overwritten) or from zero."""
        ...

    def restrict(
        self, stencil: Stencil, transfer: Transfer, f: Tensor, u: Tensor, *, vanishing: int | None = None
    ) -> Tensor:
        """P^T (f - A u); `vanishing` is a colour known to have no residual."""
        ...

    def correct(
        self, stencil: Stencil, transfer: Transfer, sweeps: Sequence[Relaxation], f: Tensor, u: Tensor, e: Tensor
    ) -> Tensor:
        """u + P e and then the sweeps; u may be overwritten."""
        ...


BACKENDS: tuple[StencilBackend, ...] = (Triton(), Numba(), Reference())
