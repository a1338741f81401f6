"""The gradients of the perceptron along the channels in operations that can be differentiated and mapped again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu


def perceptron_gradients(
    g: Tensor, u: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, v: Tensor | None, gate: Tensor | None, activated: bool
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of u, W1, b1, W2, b2, v and g from that of s(p), p = W2 gelu(W1 u + b1) + b2 + g v.

    On (batch, channel, points); s is gelu if `activated`.
    """
    argument = torch.einsum("hi,bip->bhp", w1, u) + b1[:, None]
    hidden = gelu(argument)
    if activated:
        p = torch.einsum("oh,bhp->bop", w2, hidden) + b2[:, None]
        p = p if v is None or gate is None else p + gate[:, None] * v
        g = torch.ops.aten.gelu_backward(g, p)
    g_argument = torch.ops.aten.gelu_backward(torch.einsum("oh,bop->bhp", w2, g), argument)
    return (
        torch.einsum("hi,bhp->bip", w1, g_argument),
        torch.einsum("bhp,bip->hi", g_argument, u),
        g_argument.sum((0, 2)),
        torch.einsum("bop,bhp->oh", g, hidden),
        g.sum((0, 2)),
        None if gate is None else g * gate[:, None],
        None if v is None else (g * v).sum((0, 2)),
    )
