"""Stencils and the steps of a multigrid cycle on NVIDIA devices. Points, or blocks of points, are numbered along the last axis first.

A program takes SIZE points of one sample. Coefficients of a sample begin at `sample * step`; step is 0 where all share one set.
Axes in front of the AXES that there are have one point, and any pointer stands for their coefficients.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(points, SIZE: tl.constexpr):
    """The sample of this program and its points."""
    blocks = tl.cdiv(points, SIZE)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    return sample, (tl.program_id(0) % blocks) * SIZE + tl.arange(0, SIZE)


@triton.jit
def next_points(p, c, n, stride, inside, RING: tl.constexpr):
    """The neighbours of the points p along an axis, where c counts the points and neighbours are `stride` apart; whether there are any."""
    has_up, has_down = inside & (c < n - 1), inside & (c > 0)
    up, down = p + stride, p - stride
    if RING:
        has_up, has_down = inside, inside
        up = tl.where(c < n - 1, up, p - (n - 1) * stride)
        down = tl.where(c > 0, down, p + (n - 1) * stride)
    return up, has_up, down, has_down


@triton.jit
def one_axis(u, w, p, c, n, stride, inside, RING: tl.constexpr):
    """w_i u_(i+1) + w_(i-1) u_(i-1) along an axis."""
    up, has_up, down, has_down = next_points(p, c, n, stride, inside, RING)
    above = tl.load(w + p, has_up, 0.0) * tl.load(u + up, has_up, 0.0)
    return above + tl.load(w + down, has_down, 0.0) * tl.load(u + down, has_down, 0.0)


@triton.jit
def neighbours(
    u, w0, w1, w2, p, inside, n0, n1, n2,
    AXES: tl.constexpr, RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr,
):  # fmt: skip
    """sum of w u over the neighbours of the points p."""
    total = one_axis(u, w2, p, p % n2, n2, 1, inside, RING2)
    if AXES >= 2:
        total += one_axis(u, w1, p, (p // n2) % n1, n1, n2, inside, RING1)
    if AXES >= 3:
        total += one_axis(u, w0, p, p // (n1 * n2), n0, n1 * n2, inside, RING0)
    return total


@triton.jit
def parity(p, n1, n2):
    """Of the sum of the indices."""
    return (p % n2 + (p // n2) % n1 + p // (n1 * n2)) % 2


@triton.jit
def stencil_residual(
    out, f, u, weight, diagonal, w0, w1, w2, n0, n1, n2, step, RESULT: tl.constexpr, AXES: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out = A u (RESULT 0), f - A u (1) or u + weight (f - A u) (2)."""
    points = n0 * n1 * n2
    sample, p = place(points, SIZE)
    inside, field, own = p < points, sample * points, sample * step
    here = tl.load(u + field + p, inside, 0.0)
    product = tl.load(diagonal + own + p, inside, 0.0) * here
    product -= neighbours(u + field, w0 + own, w1 + own, w2 + own, p, inside, n0, n1, n2, AXES, RING0, RING1, RING2)
    if RESULT == 0:
        result = product
    else:
        result = tl.load(f + field + p, inside, 0.0) - product
        if RESULT == 2:
            result = here + tl.load(weight + own + p, inside, 0.0) * result
    tl.store(out + field + p, result, inside)


@triton.jit
def scaled_axis(f, s, w, p, c, n, stride, inside, RING: tl.constexpr):
    """`one_axis` of u = s f."""
    up, has_up, down, has_down = next_points(p, c, n, stride, inside, RING)
    above = tl.load(s + up, has_up, 0.0) * tl.load(f + up, has_up, 0.0)
    below = tl.load(s + down, has_down, 0.0) * tl.load(f + down, has_down, 0.0)
    return tl.load(w + p, has_up, 0.0) * above + tl.load(w + down, has_down, 0.0) * below


@triton.jit
def stencil_start(
    out, f, first, second, w0, w1, w2, n0, n1, n2, step, COLOUR: tl.constexpr, TWO: tl.constexpr, AXES: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """From zero a sweep with weight `first` at COLOUR and, if TWO, one with weight `second` at the other colour.

    At a point of the other colour every neighbour holds first f.
    """
    points = n0 * n1 * n2
    sample, p = place(points, SIZE)
    inside, field, own = p < points, sample * points, sample * step
    here = inside & (parity(p, n1, n2) == COLOUR)
    result = tl.load(first + own + p, here, 0.0) * tl.load(f + field + p, inside, 0.0)
    result = tl.where(here, result, 0.0)
    if TWO:
        there = inside & (parity(p, n1, n2) != COLOUR)
        total = tl.load(f + field + p, there, 0.0)
        total += scaled_axis(f + field, first + own, w2 + own, p, p % n2, n2, 1, there, RING2)
        if AXES >= 2:
            total += scaled_axis(f + field, first + own, w1 + own, p, (p // n2) % n1, n1, n2, there, RING1)
        if AXES >= 3:
            total += scaled_axis(f + field, first + own, w0 + own, p, p // (n1 * n2), n0, n1 * n2, there, RING0)
        result = tl.where(there, tl.load(second + own + p, there, 0.0) * total, result)
    tl.store(out + field + p, result, inside)


@triton.jit
def stencil_sweep(
    u, f, weight, diagonal, w0, w1, w2, n0, n1, n2, step, COLOUR: tl.constexpr, EXACT: tl.constexpr, AXES: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A sweep of one colour in place: it reads the other colour and writes its own, every second point of a row."""
    points, half = n0 * n1 * n2, (n2 + 1) // 2
    sample, q = place(n0 * n1 * half, SIZE)
    row = q // half
    k = 2 * (q % half) + (row % n1 + row // n1 + COLOUR) % 2
    p = row * n2 + k
    inside, field, own = (q < n0 * n1 * half) & (k < n2), sample * points, sample * step
    t = tl.load(f + field + p, inside, 0.0)
    t += neighbours(u + field, w0 + own, w1 + own, w2 + own, p, inside, n0, n1, n2, AXES, RING0, RING1, RING2)
    s = tl.load(weight + own + p, inside, 0.0)
    if EXACT:
        result = s * t
    else:
        here = tl.load(u + field + p, inside, 0.0)
        result = here + s * (t - tl.load(diagonal + own + p, inside, 0.0) * here)
    tl.store(u + field + p, result, inside)


@triton.jit
def stencil_restrict(
    out, f, u, diagonal, w0, w1, w2, n0, n1, n2, step, VANISHING: tl.constexpr,
    FACTOR0: tl.constexpr, FACTOR1: tl.constexpr, FACTOR2: tl.constexpr, AXES: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out = the sums of f - A u over blocks; points of the colour VANISHING, if not negative, are passed over."""
    points = n0 * n1 * n2
    m0, m1, m2 = tl.cdiv(n0, FACTOR0), tl.cdiv(n1, FACTOR1), tl.cdiv(n2, FACTOR2)
    sample, q = place(m0 * m1 * m2, SIZE)
    field, own = sample * points, sample * step
    total = tl.zeros((SIZE,), out.dtype.element_ty)
    for child in range(
        FACTOR0 * FACTOR1 * FACTOR2
    ):  # not unrolled: all loads at once would need more registers than there are
        i = q // (m1 * m2) * FACTOR0 + child // (FACTOR1 * FACTOR2)
        j = (q // m2) % m1 * FACTOR1 + child // FACTOR2 % FACTOR1
        k = q % m2 * FACTOR2 + child % FACTOR2
        inside = (q < m0 * m1 * m2) & (i < n0) & (j < n1) & (k < n2)
        if VANISHING >= 0:
            inside = inside & ((i + j + k) % 2 != VANISHING)
        p = (i * n1 + j) * n2 + k
        r = tl.load(f + field + p, inside, 0.0)
        r -= tl.load(diagonal + own + p, inside, 0.0) * tl.load(u + field + p, inside, 0.0)
        r += neighbours(u + field, w0 + own, w1 + own, w2 + own, p, inside, n0, n1, n2, AXES, RING0, RING1, RING2)
        total += r
    tl.store(out + sample * (m0 * m1 * m2) + q, total, q < m0 * m1 * m2)


@triton.jit
def across(c, n, RING: tl.constexpr):
    """The neighbour of point c across the nearest block face, and whether there is one: pairs (1, 2), (3, 4), ..."""
    x = tl.where(c % 2 == 1, c + 1, c - 1)
    found = (x >= 0) & (x < n)
    if RING:  # the pair (n - 1, 0) where that is an odd and an even point
        x = tl.where(x < 0, n - 1, tl.where(x < n, x, 0))
        found = x % 2 != c % 2
    return x, found


@triton.jit
def from_across(r, b, p, c, n, stride, inside, RING: tl.constexpr):
    """b r of the points across the nearest block faces."""
    x, found = across(c, n, RING)
    there = p + (x - c) * stride
    return tl.load(b + there, inside & found, 0.0) * tl.load(r + there, inside & found, 0.0)


@triton.jit
def stencil_collect(
    out, r, weight, b0, b1, b2, n0, n1, n2, step,
    FACTOR0: tl.constexpr, FACTOR1: tl.constexpr, FACTOR2: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out = P^T r with the weights a = `weight` and b_d."""
    points = n0 * n1 * n2
    m0, m1, m2 = tl.cdiv(n0, FACTOR0), tl.cdiv(n1, FACTOR1), tl.cdiv(n2, FACTOR2)
    sample, q = place(m0 * m1 * m2, SIZE)
    field, own = sample * points, sample * step
    total = tl.zeros((SIZE,), out.dtype.element_ty)
    for child in range(FACTOR0 * FACTOR1 * FACTOR2):
        i = q // (m1 * m2) * FACTOR0 + child // (FACTOR1 * FACTOR2)
        j = (q // m2) % m1 * FACTOR1 + child // FACTOR2 % FACTOR1
        k = q % m2 * FACTOR2 + child % FACTOR2
        inside = (q < m0 * m1 * m2) & (i < n0) & (j < n1) & (k < n2)
        p = (i * n1 + j) * n2 + k
        total += tl.load(weight + own + p, inside, 0.0) * tl.load(r + field + p, inside, 0.0)
        if FACTOR0 == 2:
            total += from_across(r + field, b0 + own, p, i, n0, n1 * n2, inside, RING0)
        if FACTOR1 == 2:
            total += from_across(r + field, b1 + own, p, j, n1, n2, inside, RING1)
        if FACTOR2 == 2:
            total += from_across(r + field, b2 + own, p, k, n2, 1, inside, RING2)
    tl.store(out + sample * (m0 * m1 * m2) + q, total, q < m0 * m1 * m2)


@triton.jit
def corrected(
    u, e, weight, b0, b1, b2, p, inside, n0, n1, n2, WEIGHTED: tl.constexpr,
    FACTOR0: tl.constexpr, FACTOR1: tl.constexpr, FACTOR2: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr,
):  # fmt: skip
    """u + P e at the points p."""
    m1, m2 = tl.cdiv(n1, FACTOR1), tl.cdiv(n2, FACTOR2)
    i, j, k = p // (n1 * n2), (p // n2) % n1, p % n2
    block = ((i // FACTOR0) * m1 + j // FACTOR1) * m2 + k // FACTOR2
    value = tl.load(u + p, inside, 0.0)
    own = tl.load(e + block, inside, 0.0)
    if WEIGHTED:
        own *= tl.load(weight + p, inside, 0.0)
    value += own
    if WEIGHTED and FACTOR0 == 2:
        x, found = across(i, n0, RING0)
        there = ((x // 2) * m1 + j // FACTOR1) * m2 + k // FACTOR2
        value += tl.load(b0 + p, inside & found, 0.0) * tl.load(e + there, inside & found, 0.0)
    if WEIGHTED and FACTOR1 == 2:
        x, found = across(j, n1, RING1)
        there = ((i // FACTOR0) * m1 + x // 2) * m2 + k // FACTOR2
        value += tl.load(b1 + p, inside & found, 0.0) * tl.load(e + there, inside & found, 0.0)
    if WEIGHTED and FACTOR2 == 2:
        x, found = across(k, n2, RING2)
        there = ((i // FACTOR0) * m1 + j // FACTOR1) * m2 + x // 2
        value += tl.load(b2 + p, inside & found, 0.0) * tl.load(e + there, inside & found, 0.0)
    return value


@triton.jit
def corrected_axis(
    u, e, weight, b0, b1, b2, w, p, c, n, stride, inside, n0, n1, n2, WEIGHTED: tl.constexpr,
    FACTOR0: tl.constexpr, FACTOR1: tl.constexpr, FACTOR2: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """`one_axis` of u + P e."""
    up, has_up, down, has_down = next_points(p, c, n, stride, inside, RING)
    above = corrected(
        u, e, weight, b0, b1, b2, up, has_up, n0, n1, n2, WEIGHTED, FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2
    )
    below = corrected(
        u, e, weight, b0, b1, b2, down, has_down, n0, n1, n2, WEIGHTED, FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2
    )
    return tl.load(w + p, has_up, 0.0) * above + tl.load(w + down, has_down, 0.0) * below


@triton.jit
def stencil_correct(
    out, f, u, e, weight, b0, b1, b2, relaxation, diagonal, w0, w1, w2, n0, n1, n2, step,
    COLOUR: tl.constexpr, EXACT: tl.constexpr, WEIGHTED: tl.constexpr,
    FACTOR0: tl.constexpr, FACTOR1: tl.constexpr, FACTOR2: tl.constexpr, AXES: tl.constexpr,
    RING0: tl.constexpr, RING1: tl.constexpr, RING2: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out = u + P e and, if COLOUR is not negative, a sweep of that colour, which makes the neighbours' correction again."""
    points = n0 * n1 * n2
    coarse = tl.cdiv(n0, FACTOR0) * tl.cdiv(n1, FACTOR1) * tl.cdiv(n2, FACTOR2)
    sample, p = place(points, SIZE)
    inside, own = p < points, sample * step
    u, f, e, out = u + sample * points, f + sample * points, e + sample * coarse, out + sample * points
    weight, b0, b1, b2 = weight + own, b0 + own, b1 + own, b2 + own
    result = corrected(
        u, e, weight, b0, b1, b2, p, inside, n0, n1, n2, WEIGHTED, FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2
    )
    if COLOUR >= 0:
        here = inside & (parity(p, n1, n2) == COLOUR)
        t = tl.load(f + p, here, 0.0)
        t += corrected_axis(
            u, e, weight, b0, b1, b2, w2 + own, p, p % n2, n2, 1, here, n0, n1, n2, WEIGHTED,
            FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2, RING2,
        )  # fmt: skip
        if AXES >= 2:
            t += corrected_axis(
                u, e, weight, b0, b1, b2, w1 + own, p, (p // n2) % n1, n1, n2, here, n0, n1, n2, WEIGHTED,
                FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2, RING1,
            )  # fmt: skip
        if AXES >= 3:
            t += corrected_axis(
                u, e, weight, b0, b1, b2, w0 + own, p, p // (n1 * n2), n0, n1 * n2, here, n0, n1, n2, WEIGHTED,
                FACTOR0, FACTOR1, FACTOR2, RING0, RING1, RING2, RING0,
            )  # fmt: skip
        s = tl.load(relaxation + own + p, here, 0.0)
        relaxed = s * t
        if not EXACT:
            relaxed = result + s * (t - tl.load(diagonal + own + p, here, 0.0) * result)
        result = tl.where(here, relaxed, result)
    tl.store(out + p, result, inside)
