"""Low-rank tensors in Tucker form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def tucker_ranks(shape: Sequence[int], fraction: float) -> tuple[int, ...]:
    """Ranks r_i ~ s n_i, one common s, the largest whose core and factors hold at most `fraction` of the dense entries."""
    if not 0 < fraction <= 1:
        raise ValueError(f"rank is {fraction}; it is the fraction of the dense parameters to keep, in (0, 1].")

    def ranks(scale: float) -> tuple[int, ...]:
        return tuple(max(1, int(scale * n)) for n in shape)

    def size(r: Sequence[int]) -> int:
        return math.prod(r) + sum(n * k for n, k in zip(shape, r, strict=True))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if size(ranks(middle)) <= fraction * math.prod(shape) else (low, middle)
    return ranks(low)


class Tucker(nn.Module):
    """T = core x_1 U_1 x_2 U_2 ...: a dense tensor of `shape` from a small core and one real factor an axis.

    The entries start with mean 0 and standard deviation `std`, as a dense normal initialisation would.

    >>> Tucker((8, 5, 2, 16, 16), rank=0.1, std=0.1)().shape
    torch.Size([8, 5, 2, 16, 16])
    """

    def __init__(self, shape: Sequence[int], *, rank: float, std: float) -> None:
        super().__init__()
        self.ranks = tucker_ranks(shape, rank)
        self.core = nn.Parameter(std * torch.randn(self.ranks))
        # Rows of variance 1 / r leave the variance of the core unchanged along each axis.
        self.factors = nn.ParameterList(
            torch.randn(n, r) / math.sqrt(r) for n, r in zip(shape, self.ranks, strict=True)
        )

    def forward(self) -> Tensor:
        """The dense tensor."""
        tensor = self.core
        for axis, factor in enumerate(self.factors):
            tensor = torch.tensordot(factor, tensor, dims=([1], [axis])).movedim(0, axis)
        return tensor
