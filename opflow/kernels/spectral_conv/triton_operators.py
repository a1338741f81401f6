"""The kernels as operators of PyTorch with their derivatives, so that autograd, vmap and torch.compile see them.

Importing this file registers them; the backend does so on its first call. `kept` holds lowest and highest frequency of
each axis in turn, and tables are arguments, since they outlive the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from opflow.kernels.spectral_conv import triton_stages as stages
from opflow.kernels.spectral_conv.triton_queue import INTERPRETED, Queue


def _operator(function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register `opflow::<name>`: torch.compile looks inside, or takes `fake` for the shapes where kernels are interpreted."""
    name = f"opflow::{function.__name__}"
    if not INTERPRETED:
        return torch.library.triton_op(name, function, mutates_args=())
    registered = torch.library.custom_op(name, function, mutates_args=())
    registered.register_fake(fake)
    return registered


# The transforms, each the adjoint of the other: a derivative of any order is a call of one of them.


def triton_analyse(x: Tensor, kept: Sequence[int], tables: Sequence[Tensor]) -> Tensor:
    """X_k = s_k sum_j x_j exp(-2 pi i k.j/n): (batch, channel, *grid) -> (modes, 2, batch, channel)."""
    return stages.analyse(Queue.of(x), x.contiguous(), kept, tables)


def triton_synthesise(
    X: Tensor, shape: Sequence[int], kept: Sequence[int], tables: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """x_j = Re sum_k s_k X_k exp(2 pi i k.j/n): (modes, 2, batch, channel) -> (batch, channel, *shape)."""
    return stages.synthesise(Queue.of(X, dtype), X.contiguous(), shape, kept, tables, dtype)


def triton_multiply(A: Tensor, B: Tensor, adjoint: str) -> Tensor:
    """A_k B_k, A_k B_k^H ("right") or A_k^H B_k ("left") for every mode k, in real pairs (modes, 2, rows, columns)."""
    return stages.multiply(Queue.of(A), A.contiguous(), B.contiguous(), adjoint)


def _fake_spectrum(x: Tensor, kept: Sequence[int], tables: Sequence[Tensor]) -> Tensor:
    return tables[-1].new_empty(stages.count(kept), 2, *x.shape[:2])


def _fake_field(
    X: Tensor, shape: Sequence[int], kept: Sequence[int], tables: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    return X.new_empty(*X.shape[2:], *shape, dtype=dtype)


def _fake_product(A: Tensor, B: Tensor, adjoint: str) -> Tensor:
    rows = A.shape[3] if adjoint == "left" else A.shape[2]
    return A.new_empty(A.shape[0], 2, rows, B.shape[2] if adjoint == "right" else B.shape[3])


analyse = _operator(triton_analyse, _fake_spectrum)
synthesise = _operator(triton_synthesise, _fake_field)
multiply = _operator(triton_multiply, _fake_product)


def _remember_analysis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kept, tables = inputs
    ctx.shape, ctx.dtype = x.shape[2:], x.dtype
    ctx.save_for_backward(*tables)


def _remember_synthesis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.kept, tables, _ = inputs
    ctx.save_for_backward(*tables)


def _remember_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    A, B, ctx.adjoint = inputs
    ctx.save_for_backward(A, B)


def _analysis_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    tables = list(ctx.saved_tensors)
    return synthesise(g, ctx.shape, ctx.kept, tables, ctx.dtype), None, [None] * len(tables)


def _synthesis_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    tables = list(ctx.saved_tensors)
    return analyse(g, ctx.kept, tables), None, None, [None] * len(tables), None


def _product_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    A, B = ctx.saved_tensors
    wants_a, wants_b = ctx.needs_input_grad[:2]
    if ctx.adjoint == "left":  # C = A^H B
        return multiply(B, g, "right") if wants_a else None, multiply(A, g, "") if wants_b else None, None
    if ctx.adjoint == "right":  # C = A B^H
        return multiply(g, B, "") if wants_a else None, multiply(g, A, "left") if wants_b else None, None
    return multiply(g, B, "right") if wants_a else None, multiply(A, g, "left") if wants_b else None, None


analyse.register_autograd(_analysis_backward, setup_context=_remember_analysis)
synthesise.register_autograd(_synthesis_backward, setup_context=_remember_synthesis)
multiply.register_autograd(_product_backward, setup_context=_remember_product)


# A map over samples joins the batch; a map over weights joins the modes.


def _map_analysis(info: Any, in_dims: tuple[Any, ...], x: Tensor, kept: Any, tables: Any) -> tuple[Tensor, int]:
    X = analyse(x.movedim(in_dims[0], 0).flatten(0, 1), kept, tables)
    return X.unflatten(2, (info.batch_size, -1)), 2


def _map_synthesis(
    info: Any, in_dims: tuple[Any, ...], X: Tensor, shape: Any, kept: Any, tables: Any, dtype: Any
) -> tuple[Tensor, int]:
    x = synthesise(X.movedim(in_dims[0], 2).flatten(2, 3), shape, kept, tables, dtype)
    return x.unflatten(0, (info.batch_size, -1)), 0


def _map_product(info: Any, in_dims: tuple[Any, ...], A: Tensor, B: Tensor, adjoint: str) -> tuple[Tensor, int]:
    if in_dims[1] is None and adjoint != "left":
        C = multiply(A.movedim(in_dims[0], 2).flatten(2, 3), B, adjoint)
        return C.unflatten(2, (info.batch_size, -1)), 2
    mapped = []
    for part, dim in ((A, in_dims[0]), (B, in_dims[1])):
        copies = part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
        mapped.append(copies.flatten(0, 1))
    return multiply(*mapped, adjoint).unflatten(0, (info.batch_size, -1)), 0


analyse.register_vmap(_map_analysis)
synthesise.register_vmap(_map_synthesis)
multiply.register_vmap(_map_product)


# A whole Fourier layer.


def triton_block(
    x: Tensor, R: Tensor, W: Tensor, bias: Tensor, kept: Sequence[int], analysis: Sequence[Tensor],
    synthesis: Sequence[Tensor], activated: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """v = s(K x + W x + b), and the spectrum of x that the backward pass starts from."""
    queue, x, W = Queue.of(x), x.contiguous(), W.contiguous()
    X = stages.analyse(queue, x, kept, analysis)
    lines = stages.lead(queue, stages.multiply(queue, X, R.contiguous(), ""), x.shape[2:], kept, synthesis)
    return stages.combine(queue, lines, x, W, bias.contiguous(), "gelu" if activated else "none"), X


def triton_block_backward(
    g: Tensor, x: Tensor, X: Tensor, R: Tensor, W: Tensor, bias: Tensor, kept: Sequence[int],
    analysis: Sequence[Tensor], synthesis: Sequence[Tensor], activated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients by x, R, W and bias; the pre-activation is made again from X and x."""
    queue, shape = Queue.of(x), x.shape[2:]
    g, x, X, R, W = (part.contiguous() for part in (g, x, X, R, W))
    if activated:
        lines = stages.lead(queue, stages.multiply(queue, X, R, ""), shape, kept, synthesis)
        gp, gW, gb = stages.combine_backward(queue, lines, x, W, bias.contiguous(), g)
    else:
        gp, (gW, gb) = g, stages.channel_gradients(queue, g, x)
    G = stages.analyse(queue, gp, kept, synthesis)
    lines = stages.lead(queue, stages.multiply(queue, G, R, "right"), shape, kept, analysis)
    return stages.combine(queue, lines, gp, W.t(), None, "none"), stages.multiply(queue, X, G, "left"), gW, gb


def _fake_block(
    x: Tensor, R: Tensor, W: Tensor, bias: Tensor, kept: Any, analysis: Any, synthesis: Any, activated: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], W.shape[0], *x.shape[2:]), R.new_empty(R.shape[0], 2, *x.shape[:2])


def _fake_block_backward(
    g: Tensor, x: Tensor, X: Tensor, R: Tensor, W: Tensor, bias: Tensor, kept: Any, analysis: Any, synthesis: Any, activated: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), R.new_empty(R.shape), W.new_empty(W.shape), bias.new_empty(bias.shape)


block = _operator(triton_block, _fake_block)
block_backward = _operator(triton_block_backward, _fake_block_backward)


def parts(
    x: Tensor, R: Tensor, W: Tensor, bias: Tensor, kept: Sequence[int], analysis: Sequence[Tensor],
    synthesis: Sequence[Tensor], activated: bool,
) -> Tensor:  # fmt: skip
    """`triton_block` as operators that are differentiable to any order."""
    Y = multiply(analyse(x, kept, analysis), R, "")
    with torch.autocast(x.device.type, enabled=False):
        linear = torch.baddbmm(bias[:, None], W.expand(x.shape[0], -1, -1), x.to(W.dtype).flatten(2))
        p = synthesise(Y, x.shape[2:], kept, synthesis, W.dtype) + linear.unflatten(2, x.shape[2:])
        return (gelu(p) if activated else p).to(x.dtype)


def _remember_block(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, R, W, bias, ctx.kept, analysis, synthesis, ctx.activated = inputs
    ctx.save_for_backward(x, R, W, bias, output[1], *analysis, *synthesis)


def _block_backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, R, W, bias, X, *tables = ctx.saved_tensors
    analysis, synthesis = tables[: len(tables) // 2], tables[len(tables) // 2 :]
    record = (ctx.kept, analysis, synthesis, ctx.activated)
    none = (None, [None] * len(analysis), [None] * len(synthesis), None)
    if not torch.is_grad_enabled():
        return *block_backward(g, x, X, R, W, bias, *record), *none
    # A gradient of the gradient is wanted: differentiate the parts, not the fused kernels.
    inputs = (x, R, W, bias)
    wanted = [part for part, wants in zip(inputs, ctx.needs_input_grad, strict=False) if wants]
    found = iter(torch.autograd.grad(parts(*inputs, *record), wanted, g, create_graph=True))
    return *(next(found) if wants else None for wants in ctx.needs_input_grad[:4]), *none


block.register_autograd(_block_backward, setup_context=_remember_block)


def _map_block(info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> tuple[Any, Any]:
    if in_dims[0] is not None and all(dim is None for dim in in_dims[1:4]):
        y, X = block(x.movedim(in_dims[0], 0).flatten(0, 1), *others)
        return (y.unflatten(0, (info.batch_size, -1)), X.unflatten(2, (info.batch_size, -1))), (0, 2)
    return _one_by_one(block, info.batch_size, in_dims, x, *others)


def _map_block_backward(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
    return _one_by_one(block_backward, info.batch_size, in_dims, *inputs)


def _one_by_one(function: Any, count: int, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
    calls = [
        function(
            *(part.select(dim, i) if isinstance(dim, int) else part for part, dim in zip(inputs, in_dims, strict=True))
        )
        for i in range(count)
    ]
    outputs = tuple(torch.stack(values) for values in zip(*calls, strict=True))
    return outputs, (0,) * len(outputs)


block.register_vmap(_map_block)
block_backward.register_vmap(_map_block_backward)
