"""Triton kernels of a whole Fourier layer, v = s(K x + W x + b), and of its gradient.

The inverse transform of the last axis, the 1 x 1 convolution, the bias and the activation share a tile, so that the
field is read and written once. Backward recomputes the pre-activation from the spectrum and x; nothing of the size of
the field is kept for it. Sums over programs go through `add_parts`, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(v):
    """v Phi(v), by the error function."""
    return 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))


@triton.jit
def gelu_derivative(v):
    """Phi(v) + v phi(v)"""
    return 0.5 * (1.0 + tl.erf(v * 0.7071067811865476)) + v * 0.3989422804014327 * tl.exp(-0.5 * v * v)


@triton.jit
def inverse_tile(
    Z, last, batch, line, c, j, channels, kept, n_padded, z_batch, z_line, z_channel, z_part, z_mode,
    K: tl.constexpr, OUT: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_k s_k Re Z_k exp(2 pi i k j/n) for channels c and points j of one line, STEP terms at a time."""
    number = last.dtype.element_ty
    p = tl.zeros((OUT, TILE), number)
    for start in range(0, 2 * K, STEP):
        q = start + tl.arange(0, STEP)
        k = q % K
        source = (
            Z + batch * z_batch + line * z_line + c[:, None] * z_channel + ((q // K) * z_part + k * z_mode)[None, :]
        )
        spectrum = tl.load(source, mask=(c[:, None] < channels) & (k[None, :] < kept), other=0.0)
        waves = tl.load(last + q[:, None] * n_padded + j[None, :])
        p = tl.dot(spectrum, waves, p, input_precision=PRECISION, out_dtype=number)
    return p


@triton.jit
def block(
    Z, last, x, W, bias, g, y, lines, n, n_padded, kept, in_channels, out_channels,
    w_out, w_in, z_batch, z_line, z_channel, z_part, z_mode,
    K: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, TILE: tl.constexpr,
    BIAS: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """p = K x + W x + b for one tile of one line, then by EPILOGUE: p itself, gelu(p), or g gelu'(p) for its gradient."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)
    c = tl.program_id(2) * OUT + tl.arange(0, OUT)
    batch, line = row // lines, row % lines
    number = last.dtype.element_ty
    p = inverse_tile(
        Z, last, batch, line, c, j, out_channels, kept, n_padded, z_batch, z_line, z_channel, z_part, z_mode,
        K, OUT, TILE, 32, PRECISION,
    )  # fmt: skip
    for start in range(0, in_channels, IN):
        i = start + tl.arange(0, IN)
        inside = (c[:, None] < out_channels) & (i[None, :] < in_channels)
        weight = tl.load(W + c[:, None] * w_out + i[None, :] * w_in, mask=inside, other=0.0)
        inside = (i[:, None] < in_channels) & (j[None, :] < n)
        source = x + ((batch * in_channels + i[:, None]) * lines + line) * n + j[None, :]
        field = tl.load(source, mask=inside, other=0.0).to(number)
        p = tl.dot(weight, field, p, input_precision=PRECISION, out_dtype=number)
    if BIAS:
        p += tl.load(bias + c, mask=c < out_channels, other=0.0)[:, None]
    target = ((batch * out_channels + c[:, None]) * lines + line) * n + j[None, :]
    inside = (c[:, None] < out_channels) & (j[None, :] < n)
    if EPILOGUE == "gelu":
        p = gelu(p)
    if EPILOGUE == "gelu_backward":
        p = tl.load(g + target, mask=inside, other=0.0).to(number) * gelu_derivative(p)
    tl.store(y + target, p, mask=inside)


@triton.jit
def block_backward(
    Z, last, x, W, bias, g, gp, gW_parts, gb_parts, rows, lines, n, n_padded, kept, in_channels, out_channels, programs,
    z_batch, z_line, z_channel, z_part, z_mode,
    K: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gp = g gelu'(p) and, in the same pass, this program's share of gW = gp x^T and gb = sum gp; all channels in one tile.

    gW_parts[programs, OUT, IN] and gb_parts[programs, OUT] are padded with zeros.
    """
    program = tl.program_id(0)
    c = tl.arange(0, OUT)
    i = tl.arange(0, IN)
    number = last.dtype.element_ty
    in_weight = (c[:, None] < out_channels) & (i[None, :] < in_channels)
    weight = tl.load(W + c[:, None] * in_channels + i[None, :], mask=in_weight, other=0.0)
    b = tl.load(bias + c, mask=c < out_channels, other=0.0)
    gW = tl.zeros((OUT, IN), number)
    gb = tl.zeros((OUT,), number)
    for turn in range(tl.cdiv(rows - program, programs)):
        row = program.to(tl.int64) + turn * programs
        batch, line = row // lines, row % lines
        for start in range(0, n, TILE):
            j = start + tl.arange(0, TILE)
            p = inverse_tile(
                Z, last, batch, line, c, j, out_channels, kept, n_padded, z_batch, z_line, z_channel, z_part, z_mode,
                K, OUT, TILE, 16, PRECISION,
            )  # fmt: skip
            source = x + ((batch * in_channels + i[:, None]) * lines + line) * n + j[None, :]
            field = tl.load(source, mask=(i[:, None] < in_channels) & (j[None, :] < n), other=0.0).to(number)
            p = tl.dot(weight, field, p, input_precision=PRECISION, out_dtype=number) + b[:, None]
            target = ((batch * out_channels + c[:, None]) * lines + line) * n + j[None, :]
            inside = (c[:, None] < out_channels) & (j[None, :] < n)
            d = tl.load(g + target, mask=inside, other=0.0).to(number) * gelu_derivative(p)
            tl.store(gp + target, d, mask=inside)
            gW = tl.dot(d, tl.trans(field), gW, input_precision=PRECISION, out_dtype=number)
            gb += tl.sum(d, 1)
    part = program.to(tl.int64) * OUT + c
    tl.store(gW_parts + part[:, None] * IN + i[None, :], gW)
    tl.store(gb_parts + part, gb)


@triton.jit
def channel_gradient(
    gp, x, gW_parts, gb_parts, rows, lines, n, in_channels, out_channels, programs, out_padded, in_padded,
    OUT: tl.constexpr, IN: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's share of gW = sum gp x^T and gb = sum gp, one tile of channels: for any number of them."""
    program = tl.program_id(0)
    c = tl.program_id(1) * OUT + tl.arange(0, OUT)
    i = tl.program_id(2) * IN + tl.arange(0, IN)
    number = gW_parts.dtype.element_ty
    gW = tl.zeros((OUT, IN), number)
    gb = tl.zeros((OUT,), number)
    for turn in range(tl.cdiv(rows - program, programs)):
        row = program.to(tl.int64) + turn * programs
        batch, line = row // lines, row % lines
        for start in range(0, n, TILE):
            j = start + tl.arange(0, TILE)
            source = x + ((batch * in_channels + i[:, None]) * lines + line) * n + j[None, :]
            field = tl.load(source, mask=(i[:, None] < in_channels) & (j[None, :] < n), other=0.0).to(number)
            source = gp + ((batch * out_channels + c[:, None]) * lines + line) * n + j[None, :]
            d = tl.load(source, mask=(c[:, None] < out_channels) & (j[None, :] < n), other=0.0).to(number)
            gW = tl.dot(d, tl.trans(field), gW, input_precision=PRECISION, out_dtype=number)
            gb += tl.sum(d, 1)
    part = program.to(tl.int64) * out_padded + c
    tl.store(gW_parts + part[:, None] * in_padded + i[None, :], gW)
    if tl.program_id(2) == 0:
        tl.store(gb_parts + part, gb)
