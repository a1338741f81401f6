"""Triton kernel of the products along the channels, one complex matrix product for every mode."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply_modes(
    A, B, C, rows, inner, columns, a_row, a_inner, b_inner, b_column,
    ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr,
    CONJUGATE_A: tl.constexpr, CONJUGATE_B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C_k = A_k B_k for complex matrices in real pairs, A[k, 2, rows, inner], B[k, 2, inner, columns], C[k, 2, rows, columns].

    Strides and conjugation make it Y = X R, the adjoint X = Y R^H, and the gradient of the weight, X^H Y.
    """
    mode = tl.program_id(0).to(tl.int64)
    number = C.dtype.element_ty
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    a_part, b_part, c_part = rows * inner, inner * columns, rows * columns
    Cr = tl.zeros((ROWS, COLUMNS), number)
    Ci = tl.zeros((ROWS, COLUMNS), number)
    for start in range(0, inner, INNER):
        i = start + tl.arange(0, INNER)
        in_a = (row[:, None] < rows) & (i[None, :] < inner)
        in_b = (i[:, None] < inner) & (column[None, :] < columns)
        a = A + 2 * mode * a_part + row[:, None] * a_row + i[None, :] * a_inner
        b = B + 2 * mode * b_part + i[:, None] * b_inner + column[None, :] * b_column
        Ar = tl.load(a, mask=in_a, other=0.0)
        Ai = tl.load(a + a_part, mask=in_a, other=0.0)
        Br = tl.load(b, mask=in_b, other=0.0)
        Bi = tl.load(b + b_part, mask=in_b, other=0.0)
        if CONJUGATE_A:
            Ai = -Ai
        if CONJUGATE_B:
            Bi = -Bi
        Cr = tl.dot(Ar, Br, Cr, input_precision=PRECISION, out_dtype=number)
        Cr = tl.dot(-Ai, Bi, Cr, input_precision=PRECISION, out_dtype=number)
        Ci = tl.dot(Ar, Bi, Ci, input_precision=PRECISION, out_dtype=number)
        Ci = tl.dot(Ai, Br, Ci, input_precision=PRECISION, out_dtype=number)
    c = C + 2 * mode * c_part + row[:, None] * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(c, Cr, mask=inside)
    tl.store(c + c_part, Ci, mask=inside)
