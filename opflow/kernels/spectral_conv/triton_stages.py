"""The steps of the spectral convolution as launches of Triton kernels: plain functions of tensors and a queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.kernels.spectral_conv.triton_analysis import add_parts, analyse_lines, analyse_planes, analyse_third_axis
from opflow.kernels.spectral_conv.triton_block import block, block_backward, channel_gradient
from opflow.kernels.spectral_conv.triton_mixing import multiply_modes
from opflow.kernels.spectral_conv.triton_queue import Queue, wrap_triton
from opflow.kernels.spectral_conv.triton_synthesis import (
    synthesise_lead,
    synthesise_lines,
    synthesise_planes,
    synthesise_third_axis,
)
from opflow.kernels.spectral_conv.triton_tables import padded_modes


@dataclass(frozen=True)
class Axis:
    """One axis of a transform: n points, frequencies -negative .. positive - 1, its table and that table's sides."""

    n: int
    negative: int
    positive: int
    table: Tensor

    @property
    def modes(self) -> int:
        """The number of kept frequencies."""
        return self.negative + self.positive

    @property
    def side(self) -> int:
        """Half the rows of the table: the frequencies |k|, padded."""
        return self.table.shape[0] // 2

    @property
    def padded(self) -> int:
        """The points of the table."""
        return self.table.shape[1]


def axes(shape: Sequence[int], kept: Sequence[int], tables: Sequence[Tensor]) -> list[Axis]:
    """`kept` holds lowest and highest of each axis, one after the other."""
    bounds = zip(kept[::2], kept[1::2], strict=True)
    return [
        Axis(n, -lowest, highest + 1, table)
        for n, (lowest, highest), table in zip(shape, bounds, tables, strict=True)
    ]  # fmt: skip


def count(kept: Sequence[int]) -> int:
    """The number of kept modes."""
    return math.prod(highest - lowest + 1 for lowest, highest in zip(kept[::2], kept[1::2], strict=True))


def analyse(queue: Queue, x: Tensor, kept: Sequence[int], tables: Sequence[Tensor]) -> Tensor:
    """x (batch, channel, *grid), contiguous -> its kept spectrum (modes, 2, batch, channel)."""
    batch, channels = x.shape[:2]
    *leading, last = axes(x.shape[2:], kept, tables)
    rows = batch * channels
    X = last.table.new_empty(count(kept), 2, batch, channels)
    if not leading:
        _analyse_lines(queue, x, X, rows, last)
        return X
    planes = rows * math.prod(axis.n for axis in leading[:-1])
    W = X if len(leading) == 1 else last.table.new_empty(leading[-1].modes * last.modes, 2, planes)
    _analyse_planes(queue, x, W, planes, leading[-1], last)
    if len(leading) == 2:
        _analyse_third_axis(queue, W, X, rows, leading[0])
    return X


def synthesise(
    queue: Queue, X: Tensor, shape: Sequence[int], kept: Sequence[int], tables: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """A spectrum X (modes, 2, batch, channel) -> the field (batch, channel, *shape): the adjoint of `analyse`."""
    batch, channels = X.shape[2:]
    *leading, last = axes(shape, kept, tables)
    rows = batch * channels
    y = X.new_empty(batch, channels, *shape, dtype=dtype)
    if not leading:
        c = queue.configuration("synthesise_lines", K=last.side)
        lines, tile = fit(c.pop("ROWS"), rows), fit(c.pop("TILE"), last.n)
        grid = (-(-rows // lines), -(-last.n // tile))
        wrapped = wrap_triton(synthesise_lines)
        queue(wrapped, grid, X, last.table, y, rows, last.n, last.padded, last.modes,
              K=last.side, ROWS=lines, TILE=tile, PRECISION=queue.precision, **c)  # fmt: skip
        return y
    lead = leading[-1]
    planes = rows * math.prod(axis.n for axis in leading[:-1])
    W = X if len(leading) == 1 else _synthesise_third_axis(queue, X, rows, leading[0])
    c = queue.configuration("synthesise_planes", K1=lead.side, K2=last.side)
    tile1, tile2 = fit(c.pop("TILE1"), lead.n), fit(c.pop("TILE2"), last.n)
    wrapped = wrap_triton(synthesise_planes)
    queue(wrapped, (planes, -(-lead.n // tile1)), W, last.table, lead.table, y, planes, lead.n, last.n, lead.padded,
          last.padded, lead.negative, lead.positive, last.modes,
          K1=lead.side, K2=last.side, TILE1=tile1, TILE2=tile2, PRECISION=queue.precision, **c)  # fmt: skip
    return y


def multiply(queue: Queue, A: Tensor, B: Tensor, adjoint: str) -> Tensor:
    """C_k = A_k B_k, A_k B_k^H (adjoint "right") or A_k^H B_k ("left") for real pairs (modes, 2, rows, columns)."""
    (modes, _, rows, inner), columns = A.shape, B.shape[3]
    a_row, a_inner, b_inner, b_column = inner, 1, columns, 1
    if adjoint == "left":
        rows, inner, a_row, a_inner = inner, rows, 1, inner
    if adjoint == "right":
        columns, b_inner, b_column = B.shape[2], 1, inner
    C = A.new_empty(modes, 2, rows, columns)
    c = queue.configuration("multiply_modes")
    tiles = {"ROWS": fit(c.pop("ROWS"), rows), "COLUMNS": fit(c.pop("COLUMNS"), columns)}
    grid = (modes, -(-rows // tiles["ROWS"]), -(-columns // tiles["COLUMNS"]))
    wrapped = wrap_triton(multiply_modes)
    queue(wrapped, grid, A, B, C, rows, inner, columns, a_row, a_inner, b_inner, b_column, INNER=fit(c.pop("INNER"), inner),
          CONJUGATE_A=adjoint == "left", CONJUGATE_B=adjoint == "right", PRECISION=queue.precision, **tiles, **c)  # fmt: skip
    return C


@dataclass(frozen=True)
class Lines:
    """A spectrum before the last axis of its synthesis, with the strides by which `block` reads a line of it."""

    Z: Tensor
    lines: int
    last: Axis
    strides: tuple[int, int, int, int, int]  # batch, line, channel, part, mode


def lead(queue: Queue, X: Tensor, shape: Sequence[int], kept: Sequence[int], tables: Sequence[Tensor]) -> Lines:
    """The leading axes of the synthesis of X (modes, 2, batch, channel)."""
    batch, channels = X.shape[2:]
    *leading, last = axes(shape, kept, tables)
    rows = batch * channels
    if not leading:
        return Lines(X, 1, last, (channels, 0, 1, rows, 2 * rows))
    first = leading[-1]
    outer = math.prod(axis.n for axis in leading[:-1])
    W = X if len(leading) == 1 else _synthesise_third_axis(queue, X, rows, leading[0])
    lines, width = outer * first.n, 2 * last.side
    Z = X.new_empty(batch, lines, channels, width)
    c = queue.configuration("synthesise_lead", K1=first.side, K2=last.side)
    tile = fit(c.pop("TILE1"), first.n)
    wrapped = wrap_triton(synthesise_lead)
    queue(wrapped, (rows * outer, -(-first.n // tile)), W, first.table, Z, rows * outer, first.n, first.padded, first.negative,
          first.positive, last.modes, channels, outer,
          K1=first.side, K2=last.side, TILE1=tile, PRECISION=queue.precision, **c)  # fmt: skip
    return Lines(Z, lines, last, (lines * channels * width, channels * width, width, last.side, 1))


def combine(
    queue: Queue, spectrum: Lines, x: Tensor, W: Tensor, bias: Tensor | None, epilogue: str, g: Tensor | None = None
) -> Tensor:
    """The last axis of the synthesis with the 1 x 1 convolution beside it; W (out, in) may be transposed in memory.

    epilogue: "none" gives p = K x + W x + b, "gelu" s(p), "gelu_backward" g s'(p).
    """
    (out_channels, in_channels), last = W.shape, spectrum.last
    y = x.new_empty(x.shape[0], out_channels, *x.shape[2:])
    c = queue.configuration("block", K=last.side)
    tiles = {
        "OUT": fit(c.pop("OUT"), out_channels),
        "IN": fit(c.pop("IN"), in_channels),
        "TILE": fit(c.pop("TILE"), last.n),
    }
    grid = (x.shape[0] * spectrum.lines, -(-last.n // tiles["TILE"]), -(-out_channels // tiles["OUT"]))
    wrapped = wrap_triton(block)
    queue(wrapped, grid, spectrum.Z, last.table, x, W, W if bias is None else bias, x if g is None else g, y, spectrum.lines,
          last.n, last.padded, last.modes, in_channels, out_channels, *W.stride(), *spectrum.strides,
          K=last.side, BIAS=bias is not None, EPILOGUE=epilogue, PRECISION=queue.precision, **tiles, **c)  # fmt: skip
    return y


def combine_backward(
    queue: Queue, spectrum: Lines, x: Tensor, W: Tensor, bias: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """gp = g s'(p), gW = sum gp x^T and gb = sum gp for the activated `combine`."""
    (out_channels, in_channels), last = W.shape, spectrum.last
    widest = {"out": padded_modes(out_channels), "in": padded_modes(in_channels)}
    c = queue.configuration("block_backward", K=last.side, channels=max(widest.values()))
    if not c:  # too many channels for one tile: the pass over the field is made twice
        gp = combine(queue, spectrum, x, W, bias, "gelu_backward", g)
        return gp, *channel_gradients(queue, gp, x)
    rows, programs = x.shape[0] * spectrum.lines, c.pop("PROGRAMS")
    programs = max(1, min(programs, rows))
    gp = torch.empty_like(g)
    gW = W.new_empty(programs, widest["out"], widest["in"])
    gb = W.new_empty(programs, widest["out"])
    wrapped = wrap_triton(block_backward)
    queue(wrapped, (programs,), spectrum.Z, last.table, x, W, bias, g, gp, gW, gb, rows, spectrum.lines, last.n, last.padded,
          last.modes, in_channels, out_channels, programs, *spectrum.strides,
          K=last.side, OUT=widest["out"], IN=widest["in"], TILE=fit(c.pop("TILE"), last.n), PRECISION=queue.precision,
          **c)  # fmt: skip
    return (
        gp,
        _added(queue, gW)[:out_channels, :in_channels].contiguous(),
        _added(queue, gb)[:out_channels].contiguous(),
    )


def channel_gradients(queue: Queue, gp: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """gW = sum gp x^T (out, in) and gb = sum gp (out,) over batch and grid."""
    batch, in_channels, *shape = x.shape
    out_channels = gp.shape[1]
    number = torch.promote_types(x.dtype, torch.float32)
    c = queue.configuration("channel_gradient")
    out, inner = fit(c.pop("OUT"), out_channels), fit(c.pop("IN"), in_channels)
    tiles = -(-out_channels // out), -(-in_channels // inner)
    lines = math.prod(shape[:-1])
    rows = batch * lines
    programs = max(1, min(c.pop("PROGRAMS"), rows))
    gW = x.new_empty(programs, tiles[0] * out, tiles[1] * inner, dtype=number)
    gb = x.new_empty(programs, tiles[0] * out, dtype=number)
    wrapped = wrap_triton(channel_gradient)
    queue(wrapped, (programs, *tiles), gp, x, gW, gb, rows, lines, shape[-1], in_channels, out_channels, programs,
          tiles[0] * out, tiles[1] * inner,
          OUT=out, IN=inner, TILE=fit(c.pop("TILE"), shape[-1]), PRECISION=queue.precision, **c)  # fmt: skip
    return _added(queue, gW)[:out_channels, :in_channels].contiguous(), _added(queue, gb)[:out_channels].contiguous()


def fit(tile: int, size: int) -> int:
    """The tile, or the power of two, at least 16, that holds `size` if that is smaller."""
    side = 16
    while side < tile and side < size:
        side *= 2
    return side


def _added(queue: Queue, parts: Tensor) -> Tensor:
    if parts.shape[0] == 1:
        return parts[0]
    total = torch.empty_like(parts[0])
    c = queue.configuration("add_parts")
    tile = c.pop("TILE")
    wrapped = wrap_triton(add_parts)
    queue(wrapped, (-(-total.numel() // tile),), parts, total, total.numel(), parts.shape[0], TILE=tile, **c)
    return total


def _analyse_lines(queue: Queue, x: Tensor, X: Tensor, rows: int, last: Axis) -> None:
    c = queue.configuration("analyse_lines", K=last.side)
    lines, tile, programs = fit(c.pop("ROWS"), rows), fit(c.pop("TILE"), last.n), c.pop("PROGRAMS")
    # Enough chunks of the sum to fill the device, none shorter than a few tiles.
    chunks = max(1, min(programs // max(1, -(-rows // lines)), -(-last.n // (4 * tile))))
    chunk = -(-last.n // (chunks * tile)) * tile
    chunks = -(-last.n // chunk)
    parts = X if chunks == 1 else X.new_empty(chunks, *X.shape)
    wrapped = wrap_triton(analyse_lines)
    queue(wrapped, (-(-rows // lines), chunks), x, last.table, parts, rows, last.n, last.padded, last.modes, chunk,
          K=last.side, ROWS=lines, TILE=tile, PRECISION=queue.precision, **c)  # fmt: skip
    if chunks > 1:
        X.copy_(_added(queue, parts))


def _analyse_planes(queue: Queue, x: Tensor, X: Tensor, planes: int, lead: Axis, last: Axis) -> None:
    c = queue.configuration("analyse_planes", K1=lead.side, K2=last.side)
    tile1, tile2 = fit(c.pop("TILE1"), lead.n), fit(c.pop("TILE2"), last.n)
    wrapped = wrap_triton(analyse_planes)
    queue(wrapped, (planes,), x, last.table, lead.table, X, planes, lead.n, last.n, lead.padded, last.padded, lead.negative,
          lead.positive, last.modes,
          K1=lead.side, K2=last.side, TILE1=tile1, TILE2=tile2, PRECISION=queue.precision, **c)  # fmt: skip


def _analyse_third_axis(queue: Queue, W: Tensor, X: Tensor, rows: int, axis: Axis) -> None:
    modes = W.shape[0]
    c = queue.configuration("analyse_third_axis", K=axis.side)
    lines, tile = fit(c.pop("ROWS"), rows), fit(c.pop("TILE"), axis.n)
    wrapped = wrap_triton(analyse_third_axis)
    queue(wrapped, (modes, -(-rows // lines)), W, axis.table, X, rows, axis.n, axis.padded, axis.negative, axis.positive, modes,
          K=axis.side, ROWS=lines, TILE=tile, PRECISION=queue.precision, **c)  # fmt: skip


def _synthesise_third_axis(queue: Queue, X: Tensor, rows: int, axis: Axis) -> Tensor:
    modes = X.shape[0] // axis.modes
    W = X.new_empty(modes, 2, rows * axis.n)
    c = queue.configuration("synthesise_third_axis", K=axis.side)
    lines, tile = fit(c.pop("ROWS"), rows), fit(c.pop("TILE"), axis.n)
    wrapped = wrap_triton(synthesise_third_axis)
    queue(wrapped, (modes, -(-rows // lines), -(-axis.n // tile)), X, axis.table, W, rows, axis.n, axis.padded, axis.negative,
          axis.positive, modes, K=axis.side, ROWS=lines, TILE=tile, PRECISION=queue.precision, **c)  # fmt: skip
    return W
