"""Matrix products and large buffers on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 << 20
MADV_HUGEPAGE = 14  # Linux


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T for matrices x (rows, k) and weight (columns, k) of any strides, outside of autograd.

    In float32 through oneDNN, which torch.mm does not take: it chooses its instructions by what the processor has, where
    MKL chooses by the maker's name (measured on an AMD processor with AVX-512: 1.4 to 2.4 times as fast).
    """
    if x.dtype == torch.float32 and x.numel() and weight.numel() and torch.backends.mkldnn.enabled:
        onednn = _onednn_linear()
        if onednn is not None:
            if not weight.is_contiguous() and not weight.t().is_contiguous():
                # Rows with gaps between them would send oneDNN to its reference code, hundreds of times slower.
                weight = weight.t().contiguous().t() if weight.stride(0) == 1 else weight.contiguous()
            return onednn(x, weight, None, "none", [], "")
    return torch.mm(x, weight.t())


@functools.cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    # The operator behind torch.compile's CPU linear layers; builds without oneDNN lack it.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def empty_field(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor whose fresh memory comes in huge pages where the system grants them on request.

    A large result is new memory, and the system maps it page by page on the first write: with pages of 4 KiB that costs
    more than the arithmetic of a spectral convolution.
    """
    field = torch.empty(shape, dtype=like.dtype, device=like.device)
    size = field.numel() * field.element_size()
    if size >= 2 * HUGE_PAGE_BYTES:
        advise = _madvise()
        if advise is not None:
            # Whole pages inside the buffer only: the advice must not reach a neighbour's memory.
            first = -(-field.data_ptr() // 4096) * 4096
            advise(first, (field.data_ptr() + size - first) // 4096 * 4096, MADV_HUGEPAGE)
    return field


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        madvise.argtypes, madvise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return madvise


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
