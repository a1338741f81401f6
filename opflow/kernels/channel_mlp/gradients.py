"""The gradients of the perceptron along the channels in operations that can be differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu


def perceptron_gradients(
    g: Tensor, u: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, W1, b1, W2 and b2 from that of W2 gelu(W1 u + b1) + b2, on (batch, channel, points)."""
    argument = torch.einsum("hi,bip->bhp", w1, u) + b1[:, None]
    hidden = torch.ops.aten.gelu_backward(torch.einsum("oh,bop->bhp", w2, g), argument)
    return (
        torch.einsum("hi,bhp->bip", w1, hidden),
        torch.einsum("bhp,bip->hi", hidden, u),
        hidden.sum((0, 2)),
        torch.einsum("bop,bhp->oh", g, gelu(argument)),
        g.sum((0, 2)),
    )
