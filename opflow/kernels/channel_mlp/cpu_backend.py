"""The perceptron along the channels on a CPU, as PyTorch operators that autograd and compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opflow.kernels.backend import is_transformed
from opflow.kernels.channel_mlp import cpu_kernel
from opflow.kernels.channel_mlp.call import ChannelMLPCall
from opflow.kernels.channel_mlp.gradients import perceptron_gradients

INPUTS = "Tensor w1, Tensor b1, Tensor w2"
torch.library.define(
    "opflow::channel_mlp",
    f"(Tensor x, {INPUTS}, Tensor b2, Tensor? beside, Tensor? gate, bool gelu, bool keep) -> (Tensor, Tensor)",
)
torch.library.define(
    "opflow::channel_mlp_backward",
    f"(Tensor g, Tensor x, Tensor before, {INPUTS}, Tensor? beside, Tensor? gate, bool gelu)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
ops = torch.ops.opflow
gelu_backward = torch.ops.aten.gelu_backward


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
        parts = (x, weights[0], biases[0], weights[1], biases[1], beside, gate)
        keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
        return ops.channel_mlp(*parts, activation is not None, keep)[0]


@torch.library.impl("opflow::channel_mlp", "cpu")
def _(x, w1, b1, w2, b2, beside, gate, gelu, keep):  # type: ignore[no-untyped-def]
    return cpu_kernel.forward(x, w1, b1, w2, b2, beside, gate, gelu, keep)


@torch.library.impl("opflow::channel_mlp_backward", "cpu")
def _(g, x, before, w1, b1, w2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    gradients = cpu_kernel.backward(g.contiguous(), x, before, w1, b1, w2, beside, gate, gelu)
    return tuple(g.new_empty(0) if part is None else part for part in gradients)


@torch.library.register_fake("opflow::channel_mlp")
def _(x, w1, b1, w2, b2, beside, gate, gelu, keep):  # type: ignore[no-untyped-def]
    y = x.new_empty(x.shape[0], w2.shape[0], x.shape[2])
    return y, torch.empty_like(y) if keep and gelu else x.new_empty(0)


@torch.library.register_fake("opflow::channel_mlp_backward")
def _(g, x, before, w1, b1, w2, beside, gate, gelu):  # type: ignore[no-untyped-def]
    shapes = (x.shape, w1.shape, b1.shape, w2.shape, w2.shape[:1])
    beside_shapes = ((0,), (0,)) if beside is None else (g.shape, gate.shape)
    return tuple(x.new_empty(shape) for shape in (*shapes, *beside_shapes))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, _, beside, gate, ctx.gelu, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], w1, b1, w2, beside, gate)


def _gradients(ctx: Any, g: Tensor | None, g_before: Tensor | None) -> tuple[Tensor | None, ...]:
    x, before, w1, b1, w2, beside, gate = ctx.saved_tensors
    g_before = g_before if ctx.gelu else None  # what is not there has no gradient
    if g is None and g_before is None:
        return (None,) * 9
    if g is not None and g_before is None and not is_transformed():
        gradients = ops.channel_mlp_backward(g, x, before, w1, b1, w2, beside, gate, ctx.gelu)
        return *(gradients if beside is not None else (*gradients[:5], None, None)), None, None
    # The same gradients from operations with derivatives and vmap rules.
    parts = [
        part for part in (g_before, g if g is None or not ctx.gelu else gelu_backward(g, before)) if part is not None
    ]
    total = sum(parts[1:], parts[0])
    g_beside = g_gate = None
    if beside is not None:
        g_beside, g_gate = total * gate[:, None], (total * beside).sum((0, 2))
    return *perceptron_gradients(total, x, w1, b1, w2), g_beside, g_gate, None, None


torch.library.register_autograd("opflow::channel_mlp", _gradients, setup_context=_remember)
