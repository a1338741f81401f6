"""Stencils compiled for a CPU. Fields and coefficients are flat; a grid has three axes, missing ones in front have one point, and any array stands for their coefficients.

Loops run along rows of the last axis, several at once, without a branch: where a point has no neighbour its coefficient is zero.
A unit of work is a plane, or a block of rows where there is but one plane; several sweeps follow one another through the units, so that
each array is read from memory once for all of them. Nothing is reordered and no product is fused with a sum (no `fastmath`): NaN comes
through, and the bits do not depend on how the units are shared among threads.
"""

from __future__ import annotations

import numba
import numpy as np

from opflow.kernels.stencil.geometry import PRODUCT, RESIDUAL
from opflow.kernels.stencil.numba_rows import CORRECTION, ZERO


def compiled(function):
    """Compiled at the first call and kept on disk, where there is a place for it; runs without the interpreter's lock."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def unit_rows(unit, shape, block):
    """The plane and the rows [first, last) of a unit."""
    if shape[0] > 1:
        return unit, 0, shape[1]
    return 0, unit * block, min(shape[1], (unit + 1) * block)


@compiled
def rows_at_once(j, last, shape, rings, block):
    """The end of the rows from j on whose neighbours lie at the same distances."""
    if rings[2] or j == 0 or j == shape[1] - 1:
        return j + 1
    return min(last, shape[1] - 1, (j // block + 1) * block)


@compiled
def add_neighbours(t, f, u, w0, w1, w2, field, operator, i, j, end, shape, rings, axes, with_f):
    """t = f + sum of w u over the neighbours, on rows [j, end) of plane i; without f the sum alone.

    `field` and `operator` say where u and f, and the coefficients, of this sample begin.
    """
    n0, n1, n = shape
    plane, m = n1 * n, (end - j) * n
    at, here = field + i * plane + j * n, operator + i * plane + j * n
    row, last = u[at : at + m], w2[here : here + m]
    if axes == 3:
        up = at + plane if i < n0 - 1 else (at - i * plane if rings[0] else at)
        down = at - plane if i > 0 else (at + (n0 - 1) * plane if rings[0] else at)
        lower = here - plane if i > 0 else here + (n0 - 1) * plane
        u_up, u_down, w_up, w_down = u[up : up + m], u[down : down + m], w0[here : here + m], w0[lower : lower + m]
        if with_f:
            f_row = f[at : at + m]
            for x in range(m):
                t[x] = f_row[x] + w_up[x] * u_up[x] + w_down[x] * u_down[x]
        else:
            for x in range(m):
                t[x] = w_up[x] * u_up[x] + w_down[x] * u_down[x]
    elif with_f:
        t[:m] = f[at : at + m]
    else:
        t[:m] = 0
    # Where a row ends inside, its neighbour in memory has the coefficient zero; the first and the last point look around the ring.
    t[0] += last[0] * row[min(1, n - 1)] + last[n - 1] * row[n - 1]
    if m > 1:
        t[m - 1] += last[m - 1] * row[m - n] + last[m - 2] * row[m - 2]
    if axes == 1:
        for x in range(m - 2):
            t[x + 1] += last[x + 1] * row[x + 2] + last[x] * row[x]
        return
    up = at + n if end < n1 else (at - j * n if rings[1] else at)
    down = at - n if j > 0 else (at + (n1 - 1) * n if rings[1] else at)
    lower = here - n if j > 0 else here + (n1 - 1) * n
    u_up, u_down, w_up, w_down = u[up : up + m], u[down : down + m], w1[here : here + m], w1[lower : lower + m]
    t[0] += w_up[0] * u_up[0] + w_down[0] * u_down[0]
    for x in range(m - 2):
        t[x + 1] += (
            w_up[x + 1] * u_up[x + 1] + w_down[x + 1] * u_down[x + 1] + last[x + 1] * row[x + 2] + last[x] * row[x]
        )
    if m > 1:
        t[m - 1] += w_up[m - 1] * u_up[m - 1] + w_down[m - 1] * u_down[m - 1]


@compiled
def residual(result, out, f, u, weight, diagonal, w0, w1, w2, shape, rings, axes, block, operators, fields, units):
    """out = A u, f - A u or u + weight (f - A u), as `result` says."""
    n0, n1, n = shape
    points = n0 * n1 * n
    t = np.empty(min(block, n1) * n, u.dtype)
    for b in range(fields[0], fields[1]):
        field, operator = b * points, (b if operators > 1 else 0) * points
        for unit in range(units[0], units[1]):
            i, j, last = unit_rows(unit, shape, block)
            while j < last:
                end = rows_at_once(j, last, shape, rings, block)
                with_f = result != PRODUCT
                add_neighbours(t, f, u, w0, w1, w2, field, operator, i, j, end, shape, rings, axes, with_f)
                place, m = (i * n1 + j) * n, (end - j) * n
                at, here = field + place, operator + place
                o, row, d = out[at : at + m], u[at : at + m], diagonal[here : here + m]
                if result == PRODUCT:
                    for x in range(m):
                        o[x] = d[x] * row[x] - t[x]
                elif result == RESIDUAL:
                    for x in range(m):
                        o[x] = t[x] - d[x] * row[x]
                else:
                    s = weight[here : here + m]
                    for x in range(m):
                        o[x] = row[x] + s[x] * (t[x] - d[x] * row[x])
                j = end


@compiled
def point_across(i, n, ring):
    """The neighbour of point i across the nearest block face, -1 where there is none: pairs (1, 2), (3, 4), ..."""
    p = i + 1 if i % 2 else i - 1
    if 0 <= p < n:
        return p
    return (p + n) % n if ring and n % 2 == 0 else -1


@compiled
def spread(t, e, at, n, factor):
    """t = the n values of the blocks along the row of e that begins at `at`."""
    if factor == 1:
        t[:n] = e[at : at + n]
        return
    row = e[at : at + (n + 1) // 2]
    for k in range(n // 2):
        t[2 * k] = row[k]
        t[2 * k + 1] = row[k]
    if n % 2:
        t[n - 1] = row[n // 2]


@compiled
def add_correction(t, u, e, weighted, own, a0, a1, a2, field, operator, coarse, i, j, shape, rings, factors):
    """u += P e on row j of plane i, `weighted` or constant on blocks; `coarse` says where e of this sample begins."""
    n0, n1, n = shape
    m1, m = (n1 + factors[1] - 1) // factors[1], (n + factors[2] - 1) // factors[2]
    at, here = field + (i * n1 + j) * n, operator + (i * n1 + j) * n
    row, block0, block1 = u[at : at + n], i // factors[0], j // factors[1]
    first = coarse + (block0 * m1 + block1) * m
    spread(t, e, first, n, factors[2])
    if not weighted:
        for k in range(n):
            row[k] += t[k]
        return
    a = own[here : here + n]
    for k in range(n):
        row[k] += a[k] * t[k]
    if factors[0] > 1:
        p = point_across(i, n0, rings[0])
        if p >= 0:
            spread(t, e, coarse + (p // 2 * m1 + block1) * m, n, factors[2])
            a = a0[here : here + n]
            for k in range(n):
                row[k] += a[k] * t[k]
    if factors[1] > 1:
        p = point_across(j, n1, rings[1])
        if p >= 0:
            spread(t, e, coarse + (block0 * m1 + p // 2) * m, n, factors[2])
            a = a1[here : here + n]
            for k in range(n):
                row[k] += a[k] * t[k]
    if factors[2] > 1:
        for k in range(n):
            p = point_across(k, n, rings[2])
            if p >= 0:
                row[k] += a2[here + k] * e[first + p // 2]


@compiled
def relax_row(u, t, weight, exact, diagonal, at, here, x, n, first):
    """u += s (t - D u) at every second point from `first` on, t = f + sum w u; u = s t if s = 1 / D is exact."""
    row, result, s = u[at + first : at + n], t[x + first : x + n], weight[here + first : here + n]
    if exact:
        for k in range((n - first + 1) // 2):
            row[2 * k] = s[2 * k] * result[2 * k]
    else:
        d = diagonal[here + first : here + n]
        for k in range((n - first + 1) // 2):
            row[2 * k] += s[2 * k] * (result[2 * k] - d[2 * k] * row[2 * k])


@compiled
def sweep(
    u, f, weights, colours, exact, start, weighted, diagonal, w0, w1, w2, e, own, a0, a1, a2, factors, shape, rings, axes, block,
    operators, lag, fields, units, shrink, stages,
):  # fmt: skip
    """Sweeps of one colour each, in place, one unit behind the other.

    start: from u, from zero (stage 0 is the first sweep), or from u + P e (stage 0 adds the correction).
    lag: units by which a stage follows the one before it; neighbours are no further.
    shrink: units, in lags, by which the range at its lower and upper end is less at each stage; negative to grow.
    """
    n0, n1, n = shape
    points = n0 * n1 * n
    coarse_points = 1
    for a in range(3):
        coarse_points *= (shape[a] + factors[a] - 1) // factors[a]
    t = np.empty(max(min(block, n1), 1) * n, u.dtype)
    begin, behind = stages[0], (stages[1] - 1 - stages[0]) * lag
    for b in range(fields[0], fields[1]):
        field, operator = b * points, (b if operators > 1 else 0) * points
        for step in range(units[0], units[1] + (behind if shrink[1] >= 0 else 2 * behind)):
            for stage in range(begin, stages[1]):
                away = (stage - begin) * lag
                unit = step - away
                if unit < units[0] + shrink[0] * away or unit >= units[1] - shrink[1] * away:
                    continue
                i, j, last = unit_rows(unit, shape, block)
                if stage == 0 and start == CORRECTION:
                    for y in range(j, last):
                        add_correction(
                            t,
                            u,
                            e,
                            weighted,
                            own,
                            a0,
                            a1,
                            a2,
                            field,
                            operator,
                            b * coarse_points,
                            i,
                            y,
                            shape,
                            rings,
                            factors,
                        )
                    continue
                index = stage - 1 if start == CORRECTION else stage
                s, colour = weights[index], colours[index]
                if stage == 0 and start == ZERO:
                    for y in range(j, last):
                        at, here, first = field + (i * n1 + y) * n, operator + (i * n1 + y) * n, (i + y + colour) % 2
                        u[at + 1 - first : at + n : 2] = 0
                        for k in range(first, n, 2):
                            u[at + k] = s[here + k] * f[at + k]
                    continue
                while j < last:
                    end = rows_at_once(j, last, shape, rings, block)
                    add_neighbours(t, f, u, w0, w1, w2, field, operator, i, j, end, shape, rings, axes, True)
                    for y in range(j, end):
                        place = (i * n1 + y) * n
                        first = (i + y + colour) % 2
                        relax_row(u, t, s, exact, diagonal, field + place, operator + place, (y - j) * n, n, first)
                    j = end


@compiled
def restrict(out, f, u, diagonal, w0, w1, w2, vanishing, shape, rings, axes, block, factors, operators, fields, units):
    """out = the sums of f - A u over blocks; points of the colour `vanishing`, if not negative, are passed over.

    The units must begin and end where blocks do.
    """
    n0, n1, n = shape
    points = n0 * n1 * n
    m1, m = (n1 + factors[1] - 1) // factors[1], (n + factors[2] - 1) // factors[2]
    coarse_points = (n0 + factors[0] - 1) // factors[0] * m1 * m
    t = np.empty(min(block, n1) * n, u.dtype)
    for b in range(fields[0], fields[1]):
        field, operator = b * points, (b if operators > 1 else 0) * points
        for unit in range(units[0], units[1]):
            i, j, last = unit_rows(unit, shape, block)
            coarse = b * coarse_points + i // factors[0] * m1 * m
            if i % factors[0] == 0:
                out[coarse + j // factors[1] * m : coarse + (last + factors[1] - 1) // factors[1] * m] = 0
            while j < last:
                end = rows_at_once(j, last, shape, rings, block)
                add_neighbours(t, f, u, w0, w1, w2, field, operator, i, j, end, shape, rings, axes, True)
                for y in range(j, end):
                    at, here, x = field + (i * n1 + y) * n, operator + (i * n1 + y) * n, (y - j) * n
                    row, d, r = u[at : at + n], diagonal[here : here + n], t[x : x + n]
                    sums = out[coarse + y // factors[1] * m : coarse + (y // factors[1] + 1) * m]
                    if vanishing >= 0 and factors[2] > 1:
                        first = (i + y + vanishing + 1) % 2
                        for k in range((n - first + 1) // 2):
                            sums[k] += r[2 * k + first] - d[2 * k + first] * row[2 * k + first]
                        continue
                    for k in range(n):
                        r[k] -= d[k] * row[k]
                    if factors[2] == 1:
                        for k in range(n):
                            sums[k] += r[k]
                    else:
                        for k in range(n // 2):
                            sums[k] += r[2 * k] + r[2 * k + 1]
                        if n % 2:
                            sums[m - 1] += r[n - 1]
                j = end


@compiled
def collect(out, r, own, a0, a1, a2, shape, rings, factors, operators, fields, blocks):
    """out = P^T r with weights; `blocks` are coarse planes, or coarse rows where there is but one plane."""
    n0, n1, n = shape
    points = n0 * n1 * n
    m0, m1, m = [(size + factor - 1) // factor for size, factor in zip(shape, factors)]  # noqa: B905
    t, aside = np.empty(n, r.dtype), np.empty(n, r.dtype)
    for b in range(fields[0], fields[1]):
        field, operator = b * points, (b if operators > 1 else 0) * points
        for block in range(blocks[0], blocks[1]):
            planes = block if m0 > 1 else 0
            for row in range(0 if m0 > 1 else block, m1 if m0 > 1 else block + 1):
                t[:], aside[:] = 0, 0
                for i in range(planes * factors[0], min(n0, (planes + 1) * factors[0])):
                    for j in range(row * factors[1], min(n1, (row + 1) * factors[1])):
                        place = (i * n1 + j) * n
                        for k in range(n):
                            t[k] += own[operator + place + k] * r[field + place + k]
                            aside[k] += a2[operator + place + k] * r[field + place + k]
                        p = point_across(i, n0, rings[0])
                        if factors[0] > 1 and p >= 0:
                            place = (p * n1 + j) * n
                            for k in range(n):
                                t[k] += a0[operator + place + k] * r[field + place + k]
                        p = point_across(j, n1, rings[1])
                        if factors[1] > 1 and p >= 0:
                            place = (i * n1 + p) * n
                            for k in range(n):
                                t[k] += a1[operator + place + k] * r[field + place + k]
                at = ((b * m0 + planes) * m1 + row) * m
                if factors[2] == 1:
                    out[at : at + m] = t
                    continue
                for k in range(n):
                    p = point_across(k, n, rings[2])
                    if p >= 0:
                        t[k] += aside[p]
                for k in range(m):
                    out[at + k] = t[2 * k] + (t[2 * k + 1] if 2 * k + 1 < n else 0)
