"""The CPU kernels as PyTorch operators: what autograd, vmap, torch.compile and opcheck know of them.

    opflow::truncated_dft, opflow::truncated_dft_adjoint    the transforms, each the other's derivative
    opflow::fourier_layer, opflow::fourier_layer_backward   the fused layer and its gradients

Second and higher derivatives of the layer go through the transforms and plain products, so they are exact as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opflow.kernels.backend import is_transformed
from opflow.kernels.channel_mlp.cpu_kernel import Perceptron
from opflow.kernels.channel_mlp.gradients import perceptron_gradients
from opflow.kernels.spectral_conv import cpu_layer
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.cpu_transform import analyse, synthesise
from opflow.kernels.spectral_conv.dft import TruncatedDFT
from opflow.kernels.spectral_conv.mixing import complex_rows_adjoint

# torch.library.define and impl, not custom_op: that one imports the compiler at the first call.
DFT = "int[] kept, float[] weights, bool mean"
torch.library.define("opflow::truncated_dft", f"(Tensor x, {DFT}) -> Tensor")
torch.library.define("opflow::truncated_dft_adjoint", f"(Tensor spectrum, int[] shape, {DFT}) -> Tensor")
SHAPES = "int[] n_modes, int[] in_shape, int[] out_shape, bool gelu"
PERCEPTRON = "Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, Tensor? gate"
torch.library.define(
    "opflow::fourier_layer",
    f"(Tensor x, Tensor weight, Tensor? skip, Tensor? bias, {PERCEPTRON}, {SHAPES}, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "opflow::fourier_layer_backward",
    "(Tensor g, Tensor? x, Tensor first, Tensor rows, Tensor weight, Tensor? skip,"
    f" {PERCEPTRON}, {SHAPES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
ops = torch.ops.opflow
gelu_backward = torch.ops.aten.gelu_backward


def dft_arguments(dft: TruncatedDFT) -> tuple[list[int], list[float], bool]:
    """A `TruncatedDFT` without its shape as an operator takes it."""
    return [k for pair in dft.kept for k in pair], list(dft.weights), dft.mean


def _dft(shape: Sequence[int], kept: Sequence[int], weights: Sequence[float], mean: bool) -> TruncatedDFT:
    return TruncatedDFT(tuple(shape), tuple(zip(kept[::2], kept[1::2], strict=True)), tuple(weights), mean)


def _call(
    x: Tensor, weight: Tensor, n_modes: Sequence[int], in_shape: Sequence[int], out_shape: Sequence[int]
) -> SpectralConvCall:
    c_in, c_out = weight.shape[-2:]
    return SpectralConvCall(tuple(n_modes), tuple(in_shape), tuple(out_shape), (c_in, c_out), x.dtype, x.device)


# --- the transforms -------------------------------------------------------------------------------------------------


@torch.library.impl("opflow::truncated_dft", "cpu")
def _(x: Tensor, kept: list[int], weights: list[float], mean: bool) -> Tensor:
    """(batch, channel, *grid) -> (*modes, 2, batch, channel)"""
    return analyse(x.flatten(0, 1), _dft(x.shape[2:], kept, weights, mean)).unflatten(-1, x.shape[:2])


@torch.library.impl("opflow::truncated_dft_adjoint", "cpu")
def _(spectrum: Tensor, shape: list[int], kept: list[int], weights: list[float], mean: bool) -> Tensor:
    """(*modes, 2, batch, channel) -> (batch, channel, *shape)"""
    return synthesise(spectrum.flatten(-2), _dft(shape, kept, weights, mean)).unflatten(0, spectrum.shape[-2:])


@torch.library.register_fake("opflow::truncated_dft")
def _(x: Tensor, kept: list[int], weights: list[float], mean: bool) -> Tensor:
    modes = [high - low + 1 for low, high in zip(kept[::2], kept[1::2], strict=True)]
    return x.new_empty(*modes, 2, *x.shape[:2])


@torch.library.register_fake("opflow::truncated_dft_adjoint")
def _(spectrum: Tensor, shape: list[int], kept: list[int], weights: list[float], mean: bool) -> Tensor:
    return spectrum.new_empty(*spectrum.shape[-2:], *shape)


def _remember_transform(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape, ctx.dft = inputs[0].shape[2:], inputs[1:]


def _remember_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dft = inputs[2:]


torch.library.register_autograd(
    "opflow::truncated_dft",
    lambda ctx, g: (ops.truncated_dft_adjoint(g, ctx.shape, *ctx.dft), None, None, None),
    setup_context=_remember_transform,
)
torch.library.register_autograd(
    "opflow::truncated_dft_adjoint",
    lambda ctx, g: (ops.truncated_dft(g, *ctx.dft), None, None, None, None),
    setup_context=_remember_adjoint,
)


# Many vector-Jacobian products at once (`is_grads_batched`) map the backward pass: a map over fields joins the batch.


@torch.library.register_vmap("opflow::truncated_dft")
def _(info: Any, in_dims: Any, x: Tensor, *dft: Any) -> tuple[Tensor, int]:
    x = x.movedim(in_dims[0], 0)
    spectrum = ops.truncated_dft(x.flatten(0, 1), *dft)
    return spectrum.unflatten(-2, x.shape[:2]), spectrum.ndim - 2


@torch.library.register_vmap("opflow::truncated_dft_adjoint")
def _(info: Any, in_dims: Any, spectrum: Tensor, shape: list[int], *dft: Any) -> tuple[Tensor, int]:
    spectrum = spectrum.movedim(in_dims[0], -3)
    x = ops.truncated_dft_adjoint(spectrum.flatten(-3, -2), shape, *dft)
    return x.unflatten(0, spectrum.shape[-3:-1]), 0


# --- the fused layer ------------------------------------------------------------------------------------------------


def _parts(skip: Tensor | None, bias: Tensor | None, perceptron: Sequence[Tensor | None]) -> cpu_layer.Parts:
    w1, b1, w2, b2, gate = perceptron
    if w1 is None or b1 is None or w2 is None or b2 is None:
        return cpu_layer.Parts(skip, bias)
    return cpu_layer.Parts(skip, bias, Perceptron(w1, b1, w2, b2, gate))


@torch.library.impl("opflow::fourier_layer", "cpu")
def _(x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    perceptron, (n_modes, in_shape, out_shape, gelu, keep) = rest[:5], rest[5:]
    call = _call(x, weight, n_modes, in_shape, out_shape)
    results = cpu_layer.forward(x, weight, _parts(skip, bias, perceptron), call, gelu, keep)
    return tuple(x.new_empty(0) if part is None else part for part in results)


@torch.library.impl("opflow::fourier_layer_backward", "cpu")
def _(
    g: Tensor, x: Tensor | None, first: Tensor, rows: Tensor, weight: Tensor, skip: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    perceptron, (n_modes, in_shape, out_shape, gelu) = rest[:5], rest[5:]
    call = _call(g, weight, n_modes, in_shape, out_shape)
    found = cpu_layer.backward(g, x, first, rows, weight, _parts(skip, None, perceptron), call, gelu)
    mlp = found.perceptron
    of_mlp = (None,) * 5 if mlp is None else (mlp.w1, mlp.b1, mlp.w2, mlp.b2, mlp.gate)
    gradients = (found.x, found.weight, found.skip, found.bias, *of_mlp)
    return tuple(g.new_empty(0) if part is None else part for part in gradients)


@torch.library.register_fake("opflow::fourier_layer")
def _(x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    w1, (n_modes, in_shape, out_shape, gelu, keep) = rest[0], rest[5:]
    call = _call(x, weight, n_modes, in_shape, out_shape)
    modes = math.prod(call.analysis().modes)
    y, nothing = x.new_empty(x.shape[0], call.channels[1], *call.out_shape), x.new_empty(0)
    return (
        y,
        torch.empty_like(y) if keep and (gelu or w1 is not None) else nothing,
        x.new_empty(modes, 2 * x.shape[0], 2 * call.channels[0]) if keep else x.new_empty(0),
    )


@torch.library.register_fake("opflow::fourier_layer_backward")
def _(
    g: Tensor, x: Tensor | None, first: Tensor, rows: Tensor, weight: Tensor, skip: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    perceptron, (_, in_shape, _, _) = rest[:5], rest[5:]
    like = [g.new_empty(0) if part is None else part.new_empty(part.shape) for part in (skip, *perceptron)]
    g_bias = g.new_empty(weight.shape[-1])
    g_x = g.new_empty(g.shape[0], weight.shape[-2], *in_shape)
    return g_x, weight.new_empty(weight.shape), like[0], g_bias, *like[1:]


def _remember_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, skip, bias = inputs[:4]
    perceptron, ctx.shapes = inputs[4:9], inputs[9:13]
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias is not None
    # Without a skip the spectrum is all that the gradients need of x.
    ctx.save_for_backward(None if skip is None else x, weight, skip, *output[1:], *perceptron)


def _layer_gradients(ctx: Any, g: Tensor | None, g_first: Tensor | None, g_rows: Tensor | None) -> tuple[Any, ...]:
    x, weight, skip, first, rows, *perceptron = ctx.saved_tensors
    # What is not there has no gradient.
    g_first = g_first if ctx.shapes[-1] or perceptron[0] is not None else None
    rest = (None,) * 5
    if g is not None and g_first is None and g_rows is None and not is_transformed():
        gradients = ops.fourier_layer_backward(g, x, first, rows, weight, skip, *perceptron, *ctx.shapes)
        given = (True, True, skip is not None, ctx.has_bias, *(part is not None for part in perceptron))
        return *(part if there else None for part, there in zip(gradients, given, strict=True)), *rest
    return *_differentiable_gradients(ctx, g, g_first, g_rows), *rest


def _differentiable_gradients(
    ctx: Any, g: Tensor | None, g_first: Tensor | None, g_rows: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same gradients from operators with derivatives and vmap rules, for what `is_transformed` names."""
    x, weight, skip, first, rows, *perceptron = ctx.saved_tensors
    n_modes, in_shape, out_shape, gelu = ctx.shapes
    call = _call(weight, weight, n_modes, in_shape, out_shape)
    g_x: Tensor | None = None
    g_mlp: tuple[Tensor | None, ...] = (None,) * 5
    if perceptron[0] is not None and g is not None:
        w1, b1, w2, b2, gate = perceptron
        u = torch.nn.functional.gelu(first) if gelu else first
        found = perceptron_gradients(g.flatten(2), u.flatten(2), w1, b1, w2, b2, x.flatten(2), gate, gelu)
        g_u, *of_weights, through, of_gate = found
        g_mlp = (*of_weights, of_gate)
        g = None if g_u is None else g_u.view(first.shape)
        g_x = None if through is None else through.view(x.shape)
    total = _sum(gelu_backward(g, first) if gelu and g is not None else g, g_first)
    g_weight = g_skip = g_bias = None
    if total is not None:
        spectrum = ops.truncated_dft(total, *dft_arguments(call.synthesis())).flatten(0, -4).flatten(1, 2)
        kept = call.kept_weight(weight)
        g_rows = _sum(torch.bmm(spectrum, kept.flatten(0, -4).flatten(1, 2).mT), g_rows)
        g_weight = call.embedded_weight(torch.bmm(rows.mT, spectrum).view(kept.shape), weight.shape)
        if skip is not None:
            g_skip = torch.einsum("bop,bip->oi", total.flatten(2), x.flatten(2))
            g_x = _sum(torch.einsum("oi,bop->bip", skip, total.flatten(2)).unflatten(2, tuple(in_shape)), g_x)
        if ctx.has_bias:
            g_bias = total.flatten(2).sum((0, 2))
    if g_rows is not None:
        g_spectrum = complex_rows_adjoint(g_rows)
        g_spectrum = g_spectrum.view(*call.analysis().modes, *g_spectrum.shape[1:])
        g_x = _sum(ops.truncated_dft_adjoint(g_spectrum, in_shape, *dft_arguments(call.analysis())), g_x)
    return g_x, g_weight, g_skip, g_bias, *g_mlp


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


torch.library.register_autograd("opflow::fourier_layer", _layer_gradients, setup_context=_remember_layer)
