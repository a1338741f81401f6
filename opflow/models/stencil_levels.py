"""An operator read from its face weights, on its own grid and on coarser ones: what networks look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opflow.kernels.stencil.couplings import Couplings
from opflow.kernels.stencil.stencil import Stencil, Transfer


@dataclass(frozen=True)
class StencilLevel:
    """One grid of a hierarchy. Everything is (batch or 1, *shape), and zero at points outside the domain.

    Attributes:
        couplings: the parts of the stencil.
        stencil: as kernels take it.
        active: 1 in the domain, 0 outside.
        inverse: 1 / diagonal, 0 where that is zero.
        transfer: to the next coarser grid; None on the coarsest.
    """

    couplings: Couplings
    stencil: Stencil
    active: Tensor
    inverse: Tensor
    transfer: Transfer | None

    @staticmethod
    def of(couplings: Couplings) -> StencilLevel:
        """The level with these couplings; it is coarsened along the axes where they are strong."""
        stencil = couplings.stencil()
        diagonal, mask = stencil.diagonal, couplings.mask
        active = torch.ones_like(diagonal[:1]) if mask is None else mask.to(diagonal)
        inverse = torch.where(diagonal > 0, 1 / torch.where(diagonal > 0, diagonal, 1.0), 0.0)
        transfer = None if max(stencil.shape) == 1 else Transfer(couplings.coarsened_axes(semi=True))
        return StencilLevel(couplings, stencil, active, inverse, transfer)

    def to(self, like: Tensor) -> StencilLevel:
        """The same level with the dtype and on the device of a tensor."""
        return StencilLevel.of(self.couplings.to(like.dtype, like.device))

    def features(self) -> Tensor:
        """What a point knows of A, (batch or 1, 2 dim + 2, *shape): its couplings and its sinks over the diagonal, and whether it is in the domain.

        None of it changes if A is multiplied by a number.
        """
        parts = []
        for d, w in enumerate(self.stencil.upper):
            parts += [w * self.inverse, w.roll(1, d + 1) * self.inverse]
        sink = self.couplings.rest()
        return torch.stack([*parts, sink * self.inverse, self.active.expand_as(sink)], dim=1)


@torch.no_grad()
def stencil_levels(A: Any, dtype: torch.dtype) -> list[StencilLevel]:
    """A on all its grids in another precision, from its own to a single point; each operator in the unit of its largest diagonal entry.

    Args:
        A: an operator as `Couplings.of` takes it; FaceStencil is one.

    Raises:
        TypeError: A has no stencil. ValueError: it couples points across corners, or has another number of axes than 2 or 3.
    """
    stencil = getattr(A, "stencil", None)
    if not isinstance(stencil, Stencil):
        raise TypeError(
            f"the network reads the weights of a stencil, but A is a {type(A).__name__}, which has none; build a FaceStencil, "
            "by from_coefficient or from_sparse, or use a network that reads no operator."
        )
    if stencil.corners is not None:
        raise ValueError(
            "A couples points across corners, and this network reads couplings of nearest neighbours only; use Multigrid."
        )
    unit = stencil.diagonal.flatten(1).amax(1)
    scale = (1 / torch.where(unit > 0, unit, 1.0)).view(-1, *[1] * len(stencil.shape))
    levels = [StencilLevel.of(Couplings.of(A, scale).to(dtype))]
    while (transfer := levels[-1].transfer) is not None:
        levels.append(StencilLevel.of(levels[-1].couplings.coarse(transfer.factors)))
    return levels
