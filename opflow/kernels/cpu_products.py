"""Matrix products on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# oneDNN adds the terms of a sum one after the other, so its rounding error grows with the square root of their number;
# MKL adds in several places at once. Up to here the float32 error of a transform stays below 3e-7.
LONGEST_SUM = 160


def product(x: Tensor, weight: Tensor, longest: int = LONGEST_SUM) -> Tensor:
    """x weight^T for matrices x (rows, k) and weight (columns, k) of any strides, outside of autograd.

    Sums of at most `longest` terms in float32 go through oneDNN, which torch.mm does not take: it chooses its
    instructions by what the processor has, where MKL chooses by the maker's name.
    """
    if x.dtype == torch.float32 and 0 < x.shape[1] <= longest and x.shape[0] and weight.shape[0]:
        onednn = _onednn_linear() if torch.backends.mkldnn.enabled else None
        if onednn is not None:
            down, along = weight.stride()
            if (down, along) != (weight.shape[1], 1) and (down, along) != (1, weight.shape[0]):
                # Rows with gaps between them would send oneDNN to its reference code, hundreds of times slower.
                weight = weight.t().contiguous().t() if down == 1 else weight.contiguous()
            return onednn(x, weight, None, "none", [], "")
    return torch.mm(x, weight.t())


@functools.cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    # The operator behind torch.compile's CPU linear layers; builds without oneDNN lack it.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def channel_product(weight: Tensor, x: Tensor) -> Tensor:
    """weight (out, in) times the channels of samples x (samples, in, points): (samples, out, points)."""
    if len(x) == 1:
        return product(weight, x[0].t())[None]
    return torch.bmm(weight.expand(len(x), -1, -1), x)


# Fields smaller than this share one batched product: below it, calls cost more than arithmetic.
TINY_FIELD = 1 << 14


def samples_per_piece(shape: Sequence[int], channels: int) -> int:
    """How many samples of a field (batch, channel, points) to work on at once: one, or many tiny ones."""
    return max(1, TINY_FIELD // max(1, channels * shape[-1]))
