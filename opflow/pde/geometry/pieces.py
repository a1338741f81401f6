"""Sets made of pieces of known size, and the choice among them by one number."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(u: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Which piece u (n,) in [0, 1) falls into, each as likely as its size, and how far within it, again in [0, 1).

    Evenly spread u stay evenly spread within each piece, so that no further random number is spent.

    >>> piece, within = choose(torch.tensor([0.2, 0.9]), torch.tensor([1.0, 3.0]))
    >>> piece.tolist()
    [0, 1]
    """
    ends = (sizes / sizes.sum()).cumsum(0)
    piece = torch.searchsorted(ends, u.contiguous(), right=True).clamp_max(len(sizes) - 1)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return piece, ((u - starts[piece]) / (ends - starts)[piece]).clamp(0, 1 - 2**-53)
