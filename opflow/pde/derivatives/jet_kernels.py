"""The two operations that a perceptron spends its time in, on stacked Taylor coefficients with hand-written gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.pde.derivatives.multi_index import MultiIndices

Held = tuple[int, ...]  # the places of the coefficients that are not zero, in order; 0 is the first


class RecordedLinear(NamedTuple):
    """One call y = W x + b on stacks (held, ..., in) and (held, ..., out); y is part of the graph."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor


_records: ContextVar[list[RecordedLinear] | None] = ContextVar("records", default=None)


@contextmanager
def recorded_linears() -> Iterator[list[RecordedLinear]]:
    """Collect the linear maps that series go through: with the gradients at their outputs they give Jacobians point by point."""
    records: list[RecordedLinear] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b of a stack (held, ..., in): the bias belongs to the zeroth coefficient alone."""
    if _is_transformed():
        y = F.linear(x, weight)
        return y if bias is None else torch.cat([y[:1] + bias, y[1:]])
    y = _Linear.apply(x, weight, bias)
    if (records := _records.get()) is not None:
        records.append(RecordedLinear(x.detach(), weight, bias, y))
    return y


def stacked_tanh(x: Tensor, held: Held, indices: MultiIndices) -> tuple[Tensor, Held]:
    """tanh of a stack (held, ...), by y' = w x' and w = 1 - y^2; the stack and the places that it holds."""
    plan = _plan(held, indices)
    return (_plain_tanh(x, plan) if _is_transformed() else _Tanh.apply(x, plan)), plan.out


def _is_transformed() -> bool:
    # Inside torch.func the gradients written by hand would need rules of their own.
    return torch._C._are_functorch_transforms_active()


class _Plan:
    """The terms of the recurrences, as positions in the stacks.

    Attributes:
        out: places held by y. rows: for each of them but the first the terms (weight, row of x, row of w) of its coefficient.
        squares: for each row of y the terms (weight, row, row) of that of w, or None where no later coefficient reads it.
    """

    def __init__(self, held: Held, indices: MultiIndices) -> None:
        x_row = {place: row for row, place in enumerate(held)}
        out, chains = [0], []
        for place in range(1, len(indices)):
            terms = [(weight, x_row[i], j) for weight, i, j in indices.chains[place] if i in x_row and j in out]
            if terms:
                out.append(place)
                chains.append(terms)
        self.out: Held = tuple(out)
        y_row = {place: row for row, place in enumerate(out)}
        self.rows = [[(weight, i, y_row[j]) for weight, i, j in terms] for terms in chains]
        needed = {j for terms in self.rows for _, _, j in terms}
        self.squares: list[list[tuple[float, int, int]] | None] = []
        for row, place in enumerate(out):
            pairs = [(i, j) for i, j in indices.products[place] if i <= j and i in y_row and j in y_row]
            terms = [(-1.0 if i == j else -2.0, y_row[i], y_row[j]) for i, j in pairs]
            self.squares.append(terms if row in needed else None)


@lru_cache(maxsize=512)
def _plan(held: Held, indices: MultiIndices) -> _Plan:
    return _Plan(held, indices)


def _plain_tanh(x: Tensor, plan: _Plan) -> Tensor:
    y = [x[0].tanh()]
    w: list[Any] = [1 - y[0].square()]
    for row, terms in enumerate(plan.rows, start=1):
        y.append(sum(weight * x[i] * w[j] for weight, i, j in terms))
        squares = plan.squares[row]
        w.append(None if squares is None else sum(weight * y[i] * y[j] for weight, i, j in squares))
    return torch.stack(y)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.with_bias = bias is not None
        y = F.linear(x, weight)
        if bias is not None:
            y[0] += bias
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        flat = g.flatten(0, -2)
        gx = g @ weight if ctx.needs_input_grad[0] else None
        gw = flat.mT @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        gb = g[0].flatten(0, -2).sum(0) if ctx.with_bias and ctx.needs_input_grad[2] else None
        return gx, gw, gb


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan) -> Tensor:
        y = x.new_empty(len(plan.out), *x.shape[1:])
        torch.tanh(x[0], out=y[0])
        empty = x.new_empty(0)
        w = [torch.addcmul(x.new_ones(()), y[0], y[0], value=-1.0)]
        for row, terms in enumerate(plan.rows, start=1):
            _accumulate(y[row], [(weight, x[i], w[j]) for weight, i, j in terms])
            squares = plan.squares[row]
            w.append(empty if squares is None else torch.empty_like(x[0]))
            if squares is not None:
                _accumulate(w[row], [(weight, y[i], y[j]) for weight, i, j in squares])
        ctx.plan, ctx.w = plan, w
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y = ctx.saved_tensors
        plan, w = ctx.plan, ctx.w
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            with torch.enable_grad():
                inner = x if x.requires_grad else x.detach().requires_grad_()
                (gx,) = torch.autograd.grad(_plain_tanh(inner, plan), inner, g, create_graph=True)
            return gx, None
        # Every row of gx is written before it is added to: a stack of zeros would be one more pass through memory.
        gx, written = torch.empty_like(x), [False] * len(x)
        gy = g.clone()
        gw: list[Tensor | None] = [None] * len(w)
        for row in range(len(plan.rows), 0, -1):
            squares, above = plan.squares[row], gw[row]
            if squares is not None and above is not None:
                for weight, i, j in squares:
                    gy[i].addcmul_(above, y[j], value=weight)
                    gy[j].addcmul_(above, y[i], value=weight)
            for weight, i, j in plan.rows[row - 1]:
                _add_product(gx[i], gy[row], w[j], weight, written[i])
                written[i] = True
                known = gw[j]
                gw[j] = weight * (gy[row] * x[i]) if known is None else known.addcmul_(gy[row], x[i], value=weight)
        if (first := gw[0]) is not None:
            gy[0].addcmul_(first, y[0], value=-2.0)
        _add_product(gx[0], gy[0], w[0], 1.0, written[0])
        for row in range(1, len(x)):
            if not written[row]:
                gx[row].zero_()
        return gx, None


def _accumulate(target: Tensor, terms: list[tuple[float, Tensor, Tensor]]) -> None:
    """target = sum of weight a b"""
    for n, (weight, a, b) in enumerate(terms):
        _add_product(target, a, b, weight, n > 0)


def _add_product(target: Tensor, a: Tensor, b: Tensor, weight: float, written: bool) -> None:
    """target = weight a b, added to what is there where it was written before"""
    if written:
        target.addcmul_(a, b, value=weight)
        return
    torch.mul(a, b, out=target)
    if weight != 1.0:
        target.mul_(weight)
