"""Triton kernels of the truncated DFT's analysis, X_k = s_k sum_j x_j exp(-2 pi i k.j/n), as matrix products.

Spectra are mode-major, (*kept, 2, rows): all rows of one mode lie together, real parts first. Tables are those of
`triton_tables`, padded with zeros. Sums run in one order, without atomics, so that equal inputs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_unfolded(
    V, X, position, mask, axis_stride, part_stride, negative, positive, K: tl.constexpr, Q: tl.constexpr
):
    """Store both +k and -k of a leading axis from V[(cos | sin) k, (re | im) q]: half the products of one row each.

    With C = sum cos(2 pi k j/n) t_j and S = sum sin(2 pi k j/n) t_j for complex t:  X_{+-k} = C -+ i S.
    """
    V = tl.permute(tl.reshape(V, (2, K, 2, Q)), (1, 3, 2, 0))
    C, S = tl.split(V)
    Cr, Ci = tl.split(C)
    Sr, Si = tl.split(S)
    k = tl.arange(0, K)[:, None].to(tl.int64)
    plus = X + (negative + k) * axis_stride + position[None, :]
    minus = X + (negative - k) * axis_stride + position[None, :]
    has_plus = (k < positive) & mask[None, :]
    has_minus = (k > 0) & (k <= negative) & mask[None, :]
    tl.store(plus, Cr + Si, mask=has_plus)
    tl.store(plus + part_stride, Ci - Sr, mask=has_plus)
    tl.store(minus, Cr - Si, mask=has_minus)
    tl.store(minus + part_stride, Ci + Sr, mask=has_minus)


@triton.jit
def analyse_planes(
    x, last, lead, X, planes, n1, n2, n1_padded, n2_padded, negative, positive, kept2,
    K1: tl.constexpr, K2: tl.constexpr, TILE1: tl.constexpr, TILE2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both axes of one plane x[n1, n2], read once: T = x last^T for a tile of lines, then V += lead T.

    last[(re | im) k2, j2] carries the scale, lead[(cos | sin) k1, j1]; X[k1, k2, 2, planes].
    """
    plane = tl.program_id(0).to(tl.int64)
    number = last.dtype.element_ty
    q = tl.arange(0, 2 * K2)
    r = tl.arange(0, 2 * K1)
    V = tl.zeros((2 * K1, 2 * K2), number)
    for start1 in range(0, n1, TILE1):
        j1 = start1 + tl.arange(0, TILE1)
        T = tl.zeros((TILE1, 2 * K2), number)
        for start2 in range(0, n2, TILE2):
            j2 = start2 + tl.arange(0, TILE2)
            inside = (j1[:, None] < n1) & (j2[None, :] < n2)
            field = tl.load(x + plane * n1 * n2 + j1[:, None] * n2 + j2[None, :], mask=inside, other=0.0).to(number)
            waves = tl.load(last + q[None, :] * n2_padded + j2[:, None])
            T = tl.dot(field, waves, T, input_precision=PRECISION, out_dtype=number)
        lead_waves = tl.load(lead + r[:, None] * n1_padded + j1[None, :])
        V = tl.dot(lead_waves, T, V, input_precision=PRECISION, out_dtype=number)
    k2 = tl.arange(0, K2)
    part_stride = tl.cast(planes, tl.int64)
    position = 2 * part_stride * k2 + plane
    store_unfolded(V, X, position, k2 < kept2, 2 * part_stride * kept2, part_stride, negative, positive, K1, K2)


@triton.jit
def analyse_lines(
    x, last, parts, rows, n, n_padded, kept, chunk,
    K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of the sum over j for a tile of lines x[rows, n]; parts[chunk, k, 2, rows] are added by `add_parts`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    number = last.dtype.element_ty
    q = tl.arange(0, 2 * K)
    X = tl.zeros((ROWS, 2 * K), number)
    end = tl.minimum(n, (part + 1) * chunk)
    for start in range(part * chunk, end, TILE):
        j = start + tl.arange(0, TILE)
        inside = (row[:, None] < rows) & (j[None, :] < end)
        field = tl.load(x + row[:, None] * n + j[None, :], mask=inside, other=0.0).to(number)
        waves = tl.load(last + q[None, :] * n_padded + j[:, None])
        X = tl.dot(field, waves, X, input_precision=PRECISION, out_dtype=number)
    k = q % K
    target = parts + ((part.to(tl.int64) * kept + k[None, :]) * 2 + (q // K)[None, :]) * rows + row[:, None]
    tl.store(target, X, mask=(row[:, None] < rows) & (k[None, :] < kept))


@triton.jit
def analyse_third_axis(
    W, lead, X, rows, n, n_padded, negative, positive, modes,
    K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The axis left over in three dimensions: W[modes, 2, rows, n] -> X[k, modes, 2, rows], a tile of rows of one mode."""
    mode = tl.program_id(0).to(tl.int64)
    number = lead.dtype.element_ty
    r = tl.arange(0, 2 * K)
    column = tl.arange(0, 2 * ROWS)
    row = tl.program_id(1) * ROWS + column % ROWS
    source = W + ((2 * mode + column // ROWS) * rows + row) * n
    V = tl.zeros((2 * K, 2 * ROWS), number)
    for start in range(0, n, TILE):
        j = start + tl.arange(0, TILE)
        lines = tl.load(source[None, :] + j[:, None], mask=(j[:, None] < n) & (row[None, :] < rows), other=0.0)
        waves = tl.load(lead + r[:, None] * n_padded + j[None, :])
        V = tl.dot(waves, lines, V, input_precision=PRECISION, out_dtype=number)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    part_stride = tl.cast(rows, tl.int64)
    position = 2 * mode * part_stride + row
    store_unfolded(V, X, position, row < rows, 2 * part_stride * modes, part_stride, negative, positive, K, ROWS)


@triton.jit
def add_parts(parts, total, size, count, TILE: tl.constexpr):
    """total[i] = sum_s parts[s, i], in the order of s: the second stage of every sum over programs."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    value = tl.zeros((TILE,), parts.dtype.element_ty)
    for s in range(count):
        value += tl.load(parts + s * tl.cast(size, tl.int64) + i, mask=i < size, other=0.0)
    tl.store(total + i, value, mask=i < size)
