"""The truth: the perceptron along the channels in plain torch operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu

from opflow.kernels.channel_mlp.call import ChannelMLPCall


def channel_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b at every point: (batch, in, points) -> (batch, out, points)."""
    # One batched product with the bias inside; a convolution of width 1 makes more passes over memory on a CPU.
    weight = weight.expand(x.shape[0], -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, None], weight, x)


class Reference:
    """Written to be read, differentiable by autograd to any order."""

    name = "reference"

    def refusal(self, call: ChannelMLPCall) -> str | None:
        """It refuses nothing."""
        return None

    def __call__(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        beside: Tensor | None,
        gate: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        """s(W2 gelu(W1 x + b1) + b2 + g v) of fields flattened to (batch, channel, points)."""
        y = channel_linear(gelu(channel_linear(x, weights[0], biases[0])), weights[1], biases[1])
        if beside is not None and gate is not None:
            y = torch.addcmul(y, gate[:, None], beside)
        return y if activation is None else gelu(y)
