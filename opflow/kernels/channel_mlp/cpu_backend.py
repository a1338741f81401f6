"""The perceptron along the channels on a CPU, as PyTorch operators that autograd and compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opflow.kernels.backend import is_transformed
from opflow.kernels.channel_mlp import cpu_kernel
from opflow.kernels.channel_mlp.call import ChannelMLPCall
from opflow.kernels.channel_mlp.cpu_kernel import Perceptron
from opflow.kernels.channel_mlp.gradients import perceptron_gradients

INPUTS = "Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? beside, Tensor? gate, bool gelu"
torch.library.define("opflow::channel_mlp", f"({INPUTS}) -> Tensor")
torch.library.define(
    "opflow::channel_mlp_backward",
    f"(Tensor g, {INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
ops = torch.ops.opflow


class Cpu:
    """Pieces of the field in the cache, products by oneDNN; float32 and float64."""

    name = "cpu"

    def refusal(self, call: ChannelMLPCall) -> str | None:
        """Another device, half precision, autocast, or a caller that needs plain torch operations."""
        if call.device.type != "cpu":
            return f"x is on {call.device.type}"
        if call.dtype not in (torch.float32, torch.float64):
            return f"x is {call.dtype}"
        if torch.is_autocast_enabled("cpu"):
            return "autocast chooses the precision of each product"
        return call.only_reference

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
        return ops.channel_mlp(x, weights[0], biases[0], weights[1], biases[1], beside, gate, activation is not None)


@torch.library.impl("opflow::channel_mlp", "cpu")
def _(x, w1, b1, w2, b2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    return cpu_kernel.forward(x, Perceptron(w1, b1, w2, b2, gate), beside, gelu)


@torch.library.impl("opflow::channel_mlp_backward", "cpu")
def _(g, x, w1, b1, w2, b2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    perceptron = Perceptron(w1, b1, w2, b2, gate)
    g_x, g_beside, found = cpu_kernel.backward(g.contiguous(), x, perceptron, beside, gelu)
    gradients = (g_x, found.w1, found.b1, found.w2, found.b2, g_beside, found.gate)
    return tuple(g.new_empty(0) if part is None else part for part in gradients)


@torch.library.register_fake("opflow::channel_mlp")
def _(x, w1, b1, w2, b2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], w2.shape[0], x.shape[2])


@torch.library.register_fake("opflow::channel_mlp_backward")
def _(g, x, w1, b1, w2, b2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    return tuple(g.new_empty(0 if part is None else part.shape) for part in (x, w1, b1, w2, b2, beside, gate))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *parts, ctx.gelu = inputs
    ctx.save_for_backward(*parts)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    parts = ctx.saved_tensors
    if is_transformed():
        x, w1, b1, w2, b2, beside, gate = parts
        return *perceptron_gradients(g, x, w1, b1, w2, b2, beside, gate, ctx.gelu), None
    gradients = ops.channel_mlp_backward(g, *parts, ctx.gelu)
    return *(None if part is None else gradient for part, gradient in zip(parts, gradients, strict=True)), None


torch.library.register_autograd("opflow::channel_mlp", _gradients, setup_context=_remember)
