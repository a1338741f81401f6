"""A Fourier layer on a CPU, s(K x + W x + b), or its spectral convolution K alone: one pass forward, one backward.

The spectra of all samples are mixed together; then each sample gets its inverse transform, its skip connection and its
activation while it is in the cache. The bias enters as the coefficient of k = 0, at no cost. Temporaries are as large as
a few samples, so the allocator hands the same memory out again and again; only results are as large as the field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from opflow.kernels.cpu_products import channel_product, product, samples_per_piece
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.cpu_transform import analyse, chunks, synthesise, transform
from opflow.kernels.spectral_conv.mixing import complex_rows, complex_rows_adjoint

aten = torch.ops.aten


def forward(
    x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None, call: SpectralConvCall, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result (batch, out, *out_shape); if `keep`, also the pre-activation and the spectrum as `complex_rows`."""
    x = x.contiguous()
    (batch, c_in), c_out = x.shape[:2], call.channels[1]
    analysis, synthesis = call.analysis(), call.synthesis()
    rows = complex_rows(analyse(x.flatten(0, 1), analysis).unflatten(-1, (batch, c_in)).flatten(0, -4))
    mixed = torch.bmm(rows, _matrices(weight, call)).view(*analysis.modes, 2, batch, c_out)
    if bias is not None:
        mixed[(*_zero_mode(call), 0)] += bias
    nothing = x.new_empty(0)
    if skip is None and not gelu:
        y = synthesise(mixed.flatten(-2), synthesis).view(batch, c_out, *call.out_shape)
        return y, nothing, rows if keep else nothing
    y = x.new_empty(batch, c_out, *call.out_shape)
    before = torch.empty_like(y) if keep and gelu else None
    inverse = transform(synthesis, x.dtype)
    for chunk in _samples(x, call):
        convolved = inverse.synthesise(mixed[..., chunk, :].flatten(-2)).unflatten(0, (-1, c_out))
        for piece, part in _pieces(chunk, x, call):
            target = (y if before is None else before)[piece]
            if skip is None:
                target.copy_(convolved[part])
            else:
                field = channel_product(skip, x[piece].flatten(2)).view(target.shape)
                torch.add(field, convolved[part], out=target)
            if gelu:
                aten.gelu.out(target, out=y[piece])
    return y, nothing if before is None else before, rows if keep else nothing


def backward(
    g: Tensor,
    x: Tensor | None,
    before: Tensor,
    rows: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    call: SpectralConvCall,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The gradients of x, weight, skip and bias from that of the result; `x` is needed where there is a skip."""
    g = g.contiguous()
    batch, (c_in, c_out) = len(g), call.channels
    analysis, synthesis = call.analysis(), call.synthesis()
    shape = (batch, c_in, *call.in_shape)
    g_skip = None if skip is None else torch.zeros_like(skip)
    if skip is None and not gelu:
        spectrum = analyse(g.flatten(0, 1), synthesis).unflatten(-1, (batch, c_out))
    else:
        total = torch.empty_like(g) if gelu else g
        spectrum = g.new_empty(*synthesis.modes, 2, batch, c_out)
        forwards = transform(synthesis, g.dtype)
        for chunk in _samples(g, call):
            for piece, _ in _pieces(chunk, g, call):
                if gelu:
                    aten.gelu_backward.grad_input(g[piece], before[piece], grad_input=total[piece])
                if x is not None and g_skip is not None:
                    for gradient, field in zip(total[piece].flatten(2), x[piece].flatten(2), strict=True):
                        g_skip += product(gradient, field)
            planes = total[chunk].flatten(0, 1)
            spectrum[..., chunk, :] = forwards.analyse(planes).unflatten(-1, (-1, c_out))
    g_bias = spectrum[(*_zero_mode(call), 0)].sum(0)
    g_mixed = spectrum.flatten(0, -4).flatten(1, 2)
    g_weight = call.embedded_weight(torch.bmm(rows.mT, g_mixed).view(*analysis.modes, 2, c_in, c_out), weight.shape)
    g_rows = torch.bmm(g_mixed, _matrices(weight, call).mT)
    g_spectrum = complex_rows_adjoint(g_rows).view(*analysis.modes, 2, batch, c_in)
    if skip is None:
        return synthesise(g_spectrum.flatten(-2), analysis).view(shape), g_weight, None, g_bias
    # The gradient of a sample takes the place of that of its pre-activation, which is needed no longer.
    g_x = total if gelu and c_in == c_out else g.new_empty(shape)
    inverse, skip_t = transform(analysis, g.dtype), skip.t()
    for chunk in _samples(g, call):
        convolved = inverse.synthesise(g_spectrum[..., chunk, :].flatten(-2)).unflatten(0, (-1, c_in))
        for piece, part in _pieces(chunk, g, call):
            field = channel_product(skip_t, total[piece].flatten(2)).view(convolved[part].shape)
            torch.add(field, convolved[part], out=g_x[piece])
    return g_x, g_weight, g_skip, g_bias


def _matrices(weight: Tensor, call: SpectralConvCall) -> Tensor:
    """The kept weight as (modes, 2 in, out)."""
    return call.kept_weight(weight).flatten(0, -4).flatten(1, 2)


def _samples(x: Tensor, call: SpectralConvCall) -> list[slice]:
    size = max(call.channels) * math.prod(map(max, call.in_shape, call.out_shape)) * x.element_size()
    return list(chunks(len(x), size))


def _pieces(chunk: slice, x: Tensor, call: SpectralConvCall) -> Iterator[tuple[slice, slice]]:
    """The samples of a chunk, one by one or many tiny ones at once: their places in the batch and in the chunk."""
    step = samples_per_piece((len(x), math.prod(call.in_shape)), max(call.channels))
    for first in range(chunk.start, chunk.stop, step):
        last = min(first + step, chunk.stop)
        yield slice(first, last), slice(first - chunk.start, last - chunk.start)


def _zero_mode(call: SpectralConvCall) -> tuple[int, ...]:
    return tuple(-call.kept(axis)[0] for axis in range(len(call.n_modes)))
