"""The perceptron along the channels on a CPU, a piece of the field after the other while it is in the cache.

Nothing between input and result is ever stored for a whole field: the backward pass computes it again, which costs less
than to write it and read it back.
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
    """p(u, v) = W2 gelu(W1 u + b1) + b2 + g v for pieces (samples, channel, points); without a gate g, without v."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gate: Tensor | None

    def argument(self, u: Tensor) -> Tensor:
        """W1 u + b1"""
        return channel_product(self.w1, u).add_(self.b1[:, None])

    def output(self, hidden: Tensor, v: Tensor | None, out: Tensor | None = None) -> Tensor:
        """p from gelu(W1 u + b1), into `out` if that is given."""
        p = channel_product(self.w2, hidden)
        if v is not None and self.gate is not None:
            p.addcmul_(self.gate[:, None], v)
        return torch.add(p, self.b2[:, None], out=p if out is None else out)

    def __call__(self, u: Tensor, v: Tensor | None, gelu: bool, out: Tensor) -> None:
        """out = s(p), s = gelu or the identity."""
        hidden = self.argument(u)
        self.output(aten.gelu.out(hidden, out=hidden), v, out)
        if gelu:
            aten.gelu.out(out, out=out)

    def gradients(self) -> PerceptronGradients:
        """Zeros, to which every piece adds its share."""
        w1, b1, w2, b2 = (part.new_zeros(part.shape) for part in (self.w1, self.b1, self.w2, self.b2))
        return PerceptronGradients(self, w1, b1, w2, b2, None if self.gate is None else torch.zeros_like(self.gate))


@dataclass(frozen=True)
class PerceptronGradients:
    """The gradients of W1, b1, W2, b2 and g, summed over the pieces."""

    perceptron: Perceptron
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gate: Tensor | None

    def add(self, g: Tensor, u: Tensor, v: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor | None]:
        """Add the share of a piece with gradient `g` of s(p(u, v)); return the gradients of u and v."""
        perceptron = self.perceptron
        argument = perceptron.argument(u)
        hidden = aten.gelu(argument)
        if gelu:
            g = aten.gelu_backward(g, perceptron.output(hidden, v))
        g_v = None
        if v is not None and self.gate is not None and perceptron.gate is not None:
            g_v = g * perceptron.gate[:, None]
            self.gate.add_(torch.einsum("bcp,bcp->c", g, v))  # without a product field in between
        add_outer_product(self.w2, g, hidden)
        self.b2.add_(g.sum((0, 2)))
        hidden = channel_product(perceptron.w2.t(), g)
        aten.gelu_backward.grad_input(hidden, argument, grad_input=hidden)
        add_outer_product(self.w1, hidden, u)
        self.b1.add_(hidden.sum((0, 2)))
        return channel_product(perceptron.w1.t(), hidden), g_v


def forward(x: Tensor, perceptron: Perceptron, beside: Tensor | None, gelu: bool) -> Tensor:
    """s(p(x, beside)) (batch, out, points)."""
    y = x.new_empty(len(x), len(perceptron.w2), x.shape[2])
    for piece in _pieces(x, perceptron):
        perceptron(x[piece], None if beside is None else beside[piece], gelu, y[piece])
    return y


def backward(
    g: Tensor, x: Tensor, perceptron: Perceptron, beside: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor | None, PerceptronGradients]:
    """The gradients of x, of what stands beside it and of the perceptron, from that of the result."""
    gradients, g_x = perceptron.gradients(), torch.empty_like(x)
    g_beside = None if beside is None else torch.empty_like(g)
    for piece in _pieces(x, perceptron):
        g_u, g_v = gradients.add(g[piece], x[piece], None if beside is None else beside[piece], gelu)
        g_x[piece] = g_u
        if g_beside is not None and g_v is not None:
            g_beside[piece] = g_v
    return g_x, g_beside, gradients


def _pieces(x: Tensor, perceptron: Perceptron) -> Iterator[tuple[slice, slice, slice]]:
    """Several tiny samples, one sample, or some of its points, whichever fits the cache."""
    batch, c_in, points = x.shape
    widest = max(c_in, len(perceptron.w1), len(perceptron.w2))
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
