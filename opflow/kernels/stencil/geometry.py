"""A stencil with everything that it meets in one call, brought to three axes: what kernels are launched with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from opflow.kernels.stencil.stencil import Stencil

# What a pass over a stencil computes: A u, f - A u, or u + s (f - A u).
PRODUCT, RESIDUAL, RELAXED = range(3)


@dataclass(frozen=True)
class Geometry:
    """Three axes; missing ones in front have one point.

    Attributes:
        batch: of the fields.
        operators: of the coefficients, 1 or as many.
        shape, rings, factors: of the three axes: points, whether they are periodic, and the factors of a transfer.
        axes: those that are not missing.
    """

    batch: int
    operators: int
    shape: tuple[int, int, int]
    rings: tuple[bool, bool, bool]
    axes: int
    factors: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        stencil: Stencil,
        fields: Sequence[Tensor],
        coefficients: Sequence[Tensor] = (),
        factors: tuple[int, ...] = (),
    ) -> Self:
        """For these fields and for coefficients beside the stencil's own."""
        operators = max(t.shape[0] for t in (stencil.diagonal, *stencil.upper, *coefficients))
        sizes = [t.shape[0] for t in fields]
        batch = 0 if 0 in sizes else max(operators, *sizes)
        missing = 3 - len(stencil.shape)
        shape, rings = (1,) * missing + stencil.shape, (False,) * missing + stencil.periodic
        return cls(batch, operators, shape, rings, 3 - missing, (1,) * (3 - len(factors)) + tuple(factors))  # type: ignore[arg-type]

    @property
    def points(self) -> int:
        """Of one field."""
        return math.prod(self.shape)

    @property
    def coarse(self) -> tuple[int, ...]:
        """The blocks along each axis."""
        return tuple(-(-n // factor) for n, factor in zip(self.shape, self.factors, strict=True))

    def fields(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Fields of the whole batch, contiguous; themselves where they are."""
        return tuple([_repeated(t, self.batch) for t in tensors])

    def coefficients(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Contiguous, one set for all fields or one a field."""
        return tuple([_repeated(t, self.operators) for t in tensors])

    def per_axis(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The coefficients of the three axes; those of the last one stand for missing ones."""
        found = self.coefficients(*tensors)
        return found[-1:] * (3 - len(found)) + found


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return (tensor if tensor.shape[0] == count else tensor.expand(count, *tensor.shape[1:])).detach().contiguous()
