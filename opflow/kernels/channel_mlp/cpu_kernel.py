"""The perceptron along the channels on a CPU, a piece of the field after the other while it is in the cache.

Nothing of the hidden layer is ever stored for a whole field: the backward pass computes it again, which costs less than
to write it and read it back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from opflow.kernels.cpu_products import channel_product, product, samples_per_piece

aten = torch.ops.aten
# A piece of the field and its hidden layer stay in the second-level cache.
PIECE_BYTES = 2 << 20


def forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    beside: Tensor | None,
    gate: Tensor | None,
    gelu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """s(W2 gelu(W1 x + b1) + b2 + g v) (batch, out, points); if `keep` and `gelu`, also what s was applied to."""
    y = x.new_empty(len(x), len(w2), x.shape[2])
    before = torch.empty_like(y) if keep and gelu else x.new_empty(0)
    for piece in _pieces(x, w1, w2):
        hidden = channel_product(w1, x[piece]).add_(b1[:, None])
        aten.gelu.out(hidden, out=hidden)
        total = channel_product(w2, hidden)
        target = (before if before.numel() else y)[piece]
        if beside is not None and gate is not None:
            total = total.addcmul_(gate[:, None], beside[piece])
        torch.add(total, b2[:, None], out=target)
        if gelu:
            aten.gelu.out(target, out=y[piece])
    return y, before


def backward(
    g: Tensor,
    x: Tensor,
    before: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    beside: Tensor | None,
    gate: Tensor | None,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, W1, b1, W2, b2, v and g from that of the result."""
    g_w1, g_b1, g_w2, g_b2 = (g.new_zeros(shape) for shape in (w1.shape, b1.shape, w2.shape, w2.shape[:1]))
    g_x = torch.empty_like(x)
    g_beside = g_gate = None
    if beside is not None and gate is not None:
        g_beside, g_gate = torch.empty_like(g), torch.zeros_like(gate)
    w1_t, w2_t = w1.t(), w2.t()
    for piece in _pieces(x, w1, w2):
        # The hidden layer again.
        argument = channel_product(w1, x[piece]).add_(b1[:, None])
        total = aten.gelu_backward(g[piece], before[piece]) if gelu else g[piece]
        _add_outer_product(g_w2, total, aten.gelu(argument))
        g_b2 += total.sum((0, 2))
        if beside is not None and gate is not None and g_beside is not None and g_gate is not None:
            torch.mul(total, gate[:, None], out=g_beside[piece])
            g_gate += torch.einsum("bcp,bcp->c", total, beside[piece])
        hidden = channel_product(w2_t, total)
        aten.gelu_backward.grad_input(hidden, argument, grad_input=hidden)
        _add_outer_product(g_w1, hidden, x[piece])
        g_b1 += hidden.sum((0, 2))
        g_x[piece] = channel_product(w1_t, hidden)
    return g_x, g_w1, g_b1, g_w2, g_b2, g_beside, g_gate


def _pieces(x: Tensor, w1: Tensor, w2: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Several tiny samples, one sample, or some of its points, whichever fits the cache."""
    batch, _, points = x.shape
    widest = max(len(w1), w1.shape[1], len(w2))
    samples, length = samples_per_piece(x.shape, widest), max(64, PIECE_BYTES // (2 * widest * x.element_size()))
    count = -(-points // length)  # pieces of nearly equal length, so that none is a mere remainder
    for first in range(0, batch, samples):
        for i in range(count):
            yield slice(first, first + samples), slice(None), slice(i * points // count, (i + 1) * points // count)


def _add_outer_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += sum over samples and points of left right^T."""
    for a, b in zip(left, right, strict=True):
        into += product(a, b)
