"""The perceptron along the channels on a CPU, a piece of the field after the other while it is in the cache.

Nothing of the hidden layer is ever stored for a whole field: the backward pass computes it again, which costs less than
to write it and read it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.kernels.cpu_products import channel_product, product, samples_per_piece

aten = torch.ops.aten
# A piece of the field and its hidden layer stay in the second-level cache.
PIECE_BYTES = 2 << 20


@dataclass(frozen=True)
class Perceptron:
    """M(u) = W2 gelu(W1 u + b1), without its last bias, of pieces (samples, channel, points)."""

    w1: Tensor
    b1: Tensor
    w2: Tensor

    def argument(self, u: Tensor) -> Tensor:
        """W1 u + b1"""
        return channel_product(self.w1, u).add_(self.b1[:, None])

    def __call__(self, u: Tensor) -> Tensor:
        """M(u), new memory"""
        hidden = self.argument(u)
        return channel_product(self.w2, aten.gelu.out(hidden, out=hidden))

    def gradients(self) -> PerceptronGradients:
        """Zeros, to which every piece adds its share."""
        return PerceptronGradients(
            self, self.w1.new_zeros(self.w1.shape), self.b1.new_zeros(self.b1.shape),
            self.w2.new_zeros(self.w2.shape), self.w2.new_zeros(len(self.w2)),
        )  # fmt: skip


@dataclass(frozen=True)
class PerceptronGradients:
    """The gradients of W1, b1, W2 and b2, summed over the pieces."""

    perceptron: Perceptron
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def add(self, g: Tensor, u: Tensor) -> Tensor:
        """Add the share of a piece with input `u` and gradient `g` of M(u) + b2; return the gradient of u."""
        argument = self.perceptron.argument(u)
        add_outer_product(self.w2, g, aten.gelu(argument))
        self.b2.add_(g.sum((0, 2)))
        hidden = channel_product(self.perceptron.w2.t(), g)
        aten.gelu_backward.grad_input(hidden, argument, grad_input=hidden)
        add_outer_product(self.w1, hidden, u)
        self.b1.add_(hidden.sum((0, 2)))
        return channel_product(self.perceptron.w1.t(), hidden)


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
    perceptron = Perceptron(w1, b1, w2)
    for piece in _pieces(x, w1, w2):
        total = perceptron(x[piece])
        target = (before if before.numel() else y)[piece]
        if beside is not None and gate is not None:
            total.addcmul_(gate[:, None], beside[piece])
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
    gradients, g_x = Perceptron(w1, b1, w2).gradients(), torch.empty_like(x)
    g_beside = g_gate = None
    if beside is not None and gate is not None:
        g_beside, g_gate = torch.empty_like(g), torch.zeros_like(gate)
    for piece in _pieces(x, w1, w2):
        total = aten.gelu_backward(g[piece], before[piece]) if gelu else g[piece]
        if beside is not None and gate is not None and g_beside is not None and g_gate is not None:
            torch.mul(total, gate[:, None], out=g_beside[piece])
            g_gate += channel_dot(total, beside[piece])
        g_x[piece] = gradients.add(total, x[piece])
    return g_x, gradients.w1, gradients.b1, gradients.w2, gradients.b2, g_beside, g_gate


def _pieces(x: Tensor, w1: Tensor, w2: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Several tiny samples, one sample, or some of its points, whichever fits the cache."""
    batch, _, points = x.shape
    widest = max(len(w1), w1.shape[1], len(w2))
    samples, length = samples_per_piece(x.shape, widest), max(64, PIECE_BYTES // (2 * widest * x.element_size()))
    count = -(-points // length)  # pieces of nearly equal length, so that none is a mere remainder
    for first in range(0, batch, samples):
        for i in range(count):
            yield slice(first, first + samples), slice(None), slice(i * points // count, (i + 1) * points // count)


def add_outer_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += sum over samples and points of left right^T: the gradient of a 1 x 1 map.

    By oneDNN however long, which PyTorch's own 1 x 1 convolution takes as well.
    """
    for a, b in zip(left, right, strict=True):
        into += product(a, b, longest=a.shape[1])


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a b over samples and points, per channel, without a product field in between."""
    return torch.einsum("bcp,bcp->c", a, b)
