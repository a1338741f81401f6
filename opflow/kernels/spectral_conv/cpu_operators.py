"""The CPU kernels as PyTorch operators: what autograd, torch.compile and opcheck know of them.

    opflow::truncated_dft, opflow::truncated_dft_adjoint    the transforms, each the other's derivative
    opflow::fourier_layer, opflow::fourier_layer_backward   the fused layer and its gradients

Second and higher derivatives of the layer go through the transforms and plain products, so they are exact as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opflow.kernels.spectral_conv import cpu_layer
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.cpu_transform import analyse, synthesise
from opflow.kernels.spectral_conv.dft import TruncatedDFT
from opflow.kernels.spectral_conv.mixing import complex_rows_adjoint

# torch.library.define and impl, not custom_op: that one imports the compiler at the first call.
DFT = "int[] kept, float[] weights, bool mean"
torch.library.define("opflow::truncated_dft", f"(Tensor x, {DFT}) -> Tensor")
torch.library.define("opflow::truncated_dft_adjoint", f"(Tensor spectrum, int[] shape, {DFT}) -> Tensor")
LAYER = "int[] n_modes, int[] in_shape, int[] out_shape, bool gelu"
torch.library.define(
    "opflow::fourier_layer",
    f"(Tensor x, Tensor weight, Tensor? skip, Tensor? bias, {LAYER}, bool keep) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "opflow::fourier_layer_backward",
    f"(Tensor g, Tensor? x, Tensor before, Tensor rows, Tensor weight, Tensor? skip, {LAYER}) -> (Tensor, Tensor, Tensor, Tensor)",
)
ops = torch.ops.opflow


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


# --- the fused layer ------------------------------------------------------------------------------------------------


@torch.library.impl("opflow::fourier_layer", "cpu")
def _(
    x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None,
    n_modes: list[int], in_shape: list[int], out_shape: list[int], gelu: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return cpu_layer.forward(x, weight, skip, bias, _call(x, weight, n_modes, in_shape, out_shape), gelu, keep)


@torch.library.impl("opflow::fourier_layer_backward", "cpu")
def _(
    g: Tensor, x: Tensor | None, before: Tensor, rows: Tensor, weight: Tensor, skip: Tensor | None,
    n_modes: list[int], in_shape: list[int], out_shape: list[int], gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = _call(g, weight, n_modes, in_shape, out_shape)
    g_x, g_weight, g_skip, g_bias = cpu_layer.backward(g, x, before, rows, weight, skip, call, gelu)
    return g_x, g_weight, g.new_empty(0) if g_skip is None else g_skip, g_bias


@torch.library.register_fake("opflow::fourier_layer")
def _(
    x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None,
    n_modes: list[int], in_shape: list[int], out_shape: list[int], gelu: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = _call(x, weight, n_modes, in_shape, out_shape)
    batch, (c_in, c_out) = x.shape[0], call.channels
    y = x.new_empty(batch, c_out, *call.out_shape)
    modes = 1
    for m in call.analysis().modes:
        modes *= m
    return (
        y,
        torch.empty_like(y) if keep and gelu else x.new_empty(0),
        x.new_empty(modes, 2 * batch, 2 * c_in) if keep else x.new_empty(0),
    )


@torch.library.register_fake("opflow::fourier_layer_backward")
def _(
    g: Tensor, x: Tensor | None, before: Tensor, rows: Tensor, weight: Tensor, skip: Tensor | None,
    n_modes: list[int], in_shape: list[int], out_shape: list[int], gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    c_in, c_out = weight.shape[-2:]
    return (
        g.new_empty(g.shape[0], c_in, *in_shape),
        torch.empty_like(weight),
        g.new_empty(0) if skip is None else torch.empty_like(skip),
        g.new_empty(c_out),
    )


def _remember_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, skip, bias, *ctx.layer, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias is not None
    # Without a skip the spectrum is all that the gradients need of x.
    ctx.save_for_backward(None if skip is None else x, weight, skip, output[1], output[2])


def _layer_gradients(ctx: Any, g: Tensor | None, g_before: Tensor | None, g_rows: Tensor | None) -> tuple[Any, ...]:
    x, weight, skip, before, rows = ctx.saved_tensors
    n_modes, in_shape, out_shape, gelu = ctx.layer
    rest = (None,) * 5
    g_before = g_before if gelu else None  # what is not there has no gradient
    if g_before is None and g_rows is None and g is not None and not torch.is_grad_enabled():
        g_x, g_weight, g_skip, g_bias = ops.fourier_layer_backward(g, x, before, rows, weight, skip, *ctx.layer)
        return g_x, g_weight, None if skip is None else g_skip, g_bias if ctx.has_bias else None, *rest
    # Under differentiation: the same gradients from operators that know their own derivatives.
    call = _call(weight, weight, n_modes, in_shape, out_shape)
    total = g_before
    if g is not None:
        g = torch.ops.aten.gelu_backward(g, before) if gelu else g
        total = g if total is None else total + g
    g_x = g_weight = g_skip = g_bias = None
    if total is not None:
        spectrum = ops.truncated_dft(total, *dft_arguments(call.synthesis())).flatten(0, -4).flatten(1, 2)
        kept = call.kept_weight(weight)
        more = torch.bmm(spectrum, kept.flatten(0, -4).flatten(1, 2).mT)
        g_rows = more if g_rows is None else g_rows + more
        g_weight = call.embedded_weight(torch.bmm(rows.mT, spectrum).view(kept.shape), weight.shape)
        if skip is not None:
            g_skip = torch.einsum("bop,bip->oi", total.flatten(2), x.flatten(2))
        if ctx.has_bias:
            g_bias = total.flatten(2).sum((0, 2))
    if g_rows is not None:
        g_spectrum = complex_rows_adjoint(g_rows)
        g_spectrum = g_spectrum.view(*call.analysis().modes, *g_spectrum.shape[1:])
        g_x = ops.truncated_dft_adjoint(g_spectrum, in_shape, *dft_arguments(call.analysis()))
    if total is not None and skip is not None:
        through = torch.einsum("oi,bop->bip", skip, total.flatten(2)).unflatten(2, tuple(in_shape))
        g_x = through if g_x is None else g_x + through
    return g_x, g_weight, g_skip, g_bias, *rest


torch.library.register_autograd("opflow::fourier_layer", _layer_gradients, setup_context=_remember_layer)
