"""Triton kernels of the truncated DFT's synthesis, x_j = Re sum_k s_k X_k exp(2 pi i k.j/n), as matrix products.

The same tables as `triton_analysis`, so each is the adjoint of the other; spectra are mode-major, (*kept, 2, rows).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_folded(
    X, r, column, position, mask, axis_stride, part_stride, negative, positive, K: tl.constexpr, Q: tl.constexpr
):
    """M[(cos | sin) k, (re | im) q] of a leading axis, so that sum_k X_k exp(2 pi i k j/n) = [cos | sin]_j M.

    sum_k X_k e^{i k t} = sum_{k >= 0} (X_k + X_-k) cos(k t) + i (X_k - X_-k) sin(k t): the sine rows take the other part.
    """
    sine, k = (r // K)[:, None], (r % K)[:, None].to(tl.int64)
    imaginary = (column // Q)[None, :]
    source = X + (sine ^ imaginary) * part_stride + position[None, :]
    plus = tl.load(source + (negative + k) * axis_stride, mask=(k < positive) & mask[None, :], other=0.0)
    has_minus = (k > 0) & (k <= negative) & mask[None, :]
    minus = tl.load(source + (negative - k) * axis_stride, mask=has_minus, other=0.0)
    return tl.where(sine == 0, plus + minus, tl.where(imaginary == 0, minus - plus, plus - minus))


@triton.jit
def leading_axis(
    X, lead, j, column, position, mask, axis_stride, part_stride, negative, positive, n_padded,
    K: tl.constexpr, Q: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z[j, (re | im) q] = sum_k X_k exp(2 pi i k j/n) for a tile of points j, a few frequencies at a time."""
    number = lead.dtype.element_ty
    Z = tl.zeros((TILE, 2 * Q), number)
    for start in range(0, 2 * K, 32):
        r = start + tl.arange(0, 32)
        M = load_folded(X, r, column, position, mask, axis_stride, part_stride, negative, positive, K, Q)
        waves = tl.load(lead + r[None, :] * n_padded + j[:, None])
        Z = tl.dot(waves, M, Z, input_precision=PRECISION, out_dtype=number)
    return Z


@triton.jit
def synthesise_planes(
    X, last, lead, y, planes, n1, n2, n1_padded, n2_padded, negative, positive, kept2,
    K1: tl.constexpr, K2: tl.constexpr, TILE1: tl.constexpr, TILE2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both axes of one plane: Z = lead^T M for a tile of lines, then y = Z last, tile by tile."""
    plane = tl.program_id(0).to(tl.int64)
    j1 = tl.program_id(1) * TILE1 + tl.arange(0, TILE1)
    q = tl.arange(0, 2 * K2)
    k2 = q % K2
    part_stride = tl.cast(planes, tl.int64)
    position = 2 * part_stride * k2 + plane
    axis_stride = 2 * part_stride * kept2
    Z = leading_axis(
        X, lead, j1, q, position, k2 < kept2, axis_stride, part_stride, negative, positive, n1_padded,
        K1, K2, TILE1, PRECISION,
    )  # fmt: skip
    for start in range(0, n2, TILE2):
        j2 = start + tl.arange(0, TILE2)
        waves = tl.load(last + q[:, None] * n2_padded + j2[None, :])
        field = tl.dot(Z, waves, out_dtype=last.dtype.element_ty, input_precision=PRECISION)
        inside = (j1[:, None] < n1) & (j2[None, :] < n2)
        tl.store(y + plane * n1 * n2 + j1[:, None] * n2 + j2[None, :], field, mask=inside)


@triton.jit
def synthesise_lines(
    X, last, y, rows, n, n_padded, kept,
    K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """X[k, 2, rows] -> y[rows, n], one tile."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)
    number = last.dtype.element_ty
    field = tl.zeros((ROWS, TILE), number)
    for start in range(0, 2 * K, 32):
        q = start + tl.arange(0, 32)
        k = q % K
        source = X + (2 * k + q // K)[None, :] * tl.cast(rows, tl.int64) + row[:, None]
        spectrum = tl.load(source, mask=(row[:, None] < rows) & (k[None, :] < kept), other=0.0)
        waves = tl.load(last + q[:, None] * n_padded + j[None, :])
        field = tl.dot(spectrum, waves, field, input_precision=PRECISION, out_dtype=number)
    tl.store(y + row[:, None] * n + j[None, :], field, mask=(row[:, None] < rows) & (j[None, :] < n))


@triton.jit
def synthesise_third_axis(
    X, lead, W, rows, n, n_padded, negative, positive, modes,
    K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The axis that three dimensions have before the planes: X[k, modes, 2, rows] -> W[modes, 2, rows, n], one tile."""
    mode = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, 2 * ROWS)
    row = tl.program_id(1) * ROWS + column % ROWS
    j = tl.program_id(2) * TILE + tl.arange(0, TILE)
    part_stride = tl.cast(rows, tl.int64)
    position = 2 * mode * part_stride + row
    axis_stride = 2 * part_stride * modes
    lines = leading_axis(
        X, lead, j, column, position, row < rows, axis_stride, part_stride, negative, positive, n_padded,
        K, ROWS, TILE, PRECISION,
    )  # fmt: skip
    target = W + ((2 * mode + column // ROWS) * rows + row)[None, :] * n + j[:, None]
    tl.store(target, lines, mask=(j[:, None] < n) & (row[None, :] < rows))


@triton.jit
def synthesise_lead(
    X, lead, Z, planes, n1, n1_padded, negative, positive, kept2, channels, outer,
    K1: tl.constexpr, K2: tl.constexpr, TILE1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The leading axis alone, X[k1, k2, 2, (b, c, j0)] -> Z[b, (j0, j1), c, (re | im) k2]: what `block` reads by lines.

    `outer` points j0 come before j1 in three dimensions, one otherwise; k2 is padded with zeros to K2.
    """
    plane = tl.program_id(0).to(tl.int64)
    j1 = tl.program_id(1) * TILE1 + tl.arange(0, TILE1)
    q = tl.arange(0, 2 * K2)
    k2 = q % K2
    part_stride = tl.cast(planes, tl.int64)
    position = 2 * part_stride * k2 + plane
    axis_stride = 2 * part_stride * kept2
    lines = leading_axis(
        X, lead, j1, q, position, k2 < kept2, axis_stride, part_stride, negative, positive, n1_padded,
        K1, K2, TILE1, PRECISION,
    )  # fmt: skip
    j0 = plane % outer
    channel = plane // outer % channels
    batch = plane // outer // channels
    line = (batch * outer + j0) * n1 + j1[:, None]
    tl.store(Z + (line * channels + channel) * (2 * K2) + q[None, :], lines, mask=j1[:, None] < n1)
