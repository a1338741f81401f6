"""A Fourier layer on a CPU, whole or in part: one pass over the field forward, two backward.

    u = s(K x + W x + b),    y = s(M(u) + g x)      with M a perceptron along the channels

The spectra of all samples are mixed together; then each sample gets its inverse transform, its skip connection, its
activation and its perceptron while it is in the cache. The bias b enters as the coefficient of k = 0, at no cost.
Temporaries are as large as a few samples, so the allocator hands the same memory out again and again; only results are
as large as the field.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.kernels.channel_mlp.cpu_kernel import Perceptron, PerceptronGradients, add_outer_product
from opflow.kernels.cpu_products import channel_product, samples_per_piece
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.cpu_transform import analyse, chunks, synthesise, transform
from opflow.kernels.spectral_conv.dft import TruncatedDFT
from opflow.kernels.spectral_conv.mixing import complex_rows, complex_rows_adjoint

aten = torch.ops.aten


@dataclass(frozen=True)
class Parts:
    """What stands around the convolution; None where it does not.

    Without a skip the convolution stands alone; with a perceptron there is a gate.
    """

    skip: Tensor | None = None
    bias: Tensor | None = None
    perceptron: Perceptron | None = None


@dataclass(frozen=True)
class Gradients:
    """One per input; None where there is none."""

    x: Tensor
    weight: Tensor
    skip: Tensor | None
    bias: Tensor
    perceptron: PerceptronGradients | None = None


def forward(
    x: Tensor, weight: Tensor, parts: Parts, call: SpectralConvCall, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result (batch, out, *out_shape), and if `keep`, what the backward pass needs: the pre-activation of the first
    half and the spectrum as `complex_rows`.
    """
    x = x.contiguous()
    (batch, c_in), c_out = x.shape[:2], call.channels[1]
    analysis, synthesis = transforms(call)
    rows = complex_rows(analyse(x.flatten(0, 1), analysis).unflatten(-1, (batch, c_in)).flatten(0, -4))
    mixed = torch.bmm(rows, _matrices(weight, call)).view(*analysis.modes, 2, batch, c_out)
    if parts.bias is not None:
        mixed[(*_zero_mode(call), 0)] += parts.bias
    if parts.skip is None:
        y = synthesise(mixed.flatten(-2), synthesis).view(batch, c_out, *call.out_shape)
        return y, None, rows if keep else None
    y = x.new_empty(batch, c_out, *call.out_shape)
    first = torch.empty_like(y) if keep and (gelu or parts.perceptron) else None
    inverse = transform(synthesis, x.dtype)
    for chunk in _samples(x, call):
        convolved = inverse.synthesise(mixed[..., chunk, :].flatten(-2)).unflatten(0, (-1, c_out))
        for piece, part in _pieces(chunk, x, call):
            # Where nothing is kept, the result's own memory holds what comes before it.
            u = (y if first is None else first)[piece]
            field = channel_product(parts.skip, x[piece].flatten(2)).view(u.shape)
            torch.add(field, convolved[part], out=u)
            if gelu:
                u = aten.gelu.out(u, out=y[piece])
            if parts.perceptron:
                parts.perceptron(u.flatten(2), x[piece].flatten(2), gelu, y[piece].flatten(2))
    return y, first, rows if keep else None


def backward(
    g: Tensor,
    x: Tensor | None,
    first: Tensor,
    rows: Tensor,
    weight: Tensor,
    parts: Parts,
    call: SpectralConvCall,
    gelu: bool,
) -> Gradients:
    """All gradients from that of the result; `x` is needed where there is a skip."""
    g = g.contiguous()
    batch, (c_in, c_out) = len(g), call.channels
    analysis, synthesis = transforms(call)
    shape = (batch, c_in, *call.in_shape)
    if x is None or parts.skip is None:
        spectrum = analyse(g.flatten(0, 1), synthesis).unflatten(-1, (batch, c_out))
        g_weight, g_spectrum = _through_the_mixing(spectrum, rows, weight, call)
        return Gradients(
            synthesise(g_spectrum.flatten(-2), analysis).view(shape), g_weight, None, _of_zero_mode(spectrum, call)
        )
    g_skip = torch.zeros_like(parts.skip)
    g_mlp = None if parts.perceptron is None else parts.perceptron.gradients()
    g_x = g.new_empty(shape)
    spectrum = g.new_empty(*synthesis.modes, 2, batch, c_out)
    forwards = transform(synthesis, g.dtype)
    for chunk in _samples(g, call):
        # Gradients of the pre-activation, of these samples only: the transform takes them before the next ones come.
        total = torch.empty_like(g[chunk]) if gelu or g_mlp is not None else g[chunk]
        for piece, part in _pieces(chunk, g, call):
            here, through = g[piece], None
            if g_mlp is not None:
                u = aten.gelu(first[piece]) if gelu else first[piece]
                flat, through = g_mlp.add(here.flatten(2), u.flatten(2), x[piece].flatten(2), gelu)
                here = flat.view(here.shape)
            if gelu:
                aten.gelu_backward.grad_input(here, first[piece], grad_input=total[part])
            elif g_mlp is not None:
                total[part] = here
            field = total[part].flatten(2)
            add_outer_product(g_skip, field, x[piece].flatten(2))
            field = channel_product(parts.skip.t(), field)
            target = g_x[piece].flatten(2)
            if through is None:
                target.copy_(field)
            else:
                torch.add(field, through, out=target)
        spectrum[..., chunk, :] = forwards.analyse(total.flatten(0, 1)).unflatten(-1, (-1, c_out))
    g_weight, g_spectrum = _through_the_mixing(spectrum, rows, weight, call)
    inverse = transform(analysis, g.dtype)
    for chunk in _samples(g, call):
        g_x[chunk] += inverse.synthesise(g_spectrum[..., chunk, :].flatten(-2)).unflatten(0, (-1, c_in))
    g_bias = _of_zero_mode(spectrum, call)
    return Gradients(g_x, g_weight, g_skip, g_bias, g_mlp)


def _through_the_mixing(
    spectrum: Tensor, rows: Tensor, weight: Tensor, call: SpectralConvCall
) -> tuple[Tensor, Tensor]:
    """From the gradient of the mixed spectrum (*modes, 2, batch, out) those of the weight and of the spectrum of x."""
    *modes, two, batch, c_out = spectrum.shape
    g_mixed = spectrum.flatten(0, -4).flatten(1, 2)
    g_kept = torch.bmm(rows.mT, g_mixed).view(*modes, two, call.channels[0], c_out)
    g_rows = torch.bmm(g_mixed, _matrices(weight, call).mT)
    g_spectrum = complex_rows_adjoint(g_rows).view(*modes, two, batch, call.channels[0])
    return call.embedded_weight(g_kept, weight.shape), g_spectrum


def _of_zero_mode(spectrum: Tensor, call: SpectralConvCall) -> Tensor:
    """The gradient of the bias: the sum over the field is its coefficient of k = 0."""
    return spectrum[(*_zero_mode(call), 0)].sum(0)


@functools.lru_cache(maxsize=256)
def transforms(call: SpectralConvCall) -> tuple[TruncatedDFT, TruncatedDFT]:
    """The analysis and the synthesis of a call."""
    return call.analysis(), call.synthesis()


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
