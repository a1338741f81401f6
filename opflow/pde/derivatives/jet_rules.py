"""What PyTorch's functions do to a truncated Taylor series: one rule a function, by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from opflow.pde.derivatives.jet import ADVICE, Coefficient, Jet
from opflow.pde.derivatives.jet_kernels import stacked_linear, stacked_tanh


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Jet) else x


def _like(jet: Jet, coefficients: Sequence[Coefficient]) -> Jet:
    return Jet(coefficients, jet.indices)


def _each(jet: Jet, function: Callable[..., Tensor], *arguments: Any, **named: Any) -> Jet:
    """A linear map, the same of every coefficient."""
    return _like(jet, [None if c is None else function(c, *arguments, **named) for c in jet.coefficients])


def _linear(x: Any, weight: Any, bias: Tensor | None = None) -> Jet:
    if not isinstance(x, Jet) or isinstance(weight, Jet):
        raise NotImplementedError(f"the Taylor method takes linear maps of the coordinates only; {ADVICE}")
    stack, held = x.stack
    return Jet.of_stack(stacked_linear(stack, weight, bias), held, x)


def _matmul(x: Any, y: Any) -> Jet:
    if isinstance(x, Jet) and isinstance(y, Jet):
        raise NotImplementedError(f"the Taylor method has no rule for products of two matrices of jets; {ADVICE}")
    if isinstance(x, Jet):
        stack, held = x.stack
        return Jet.of_stack(stack @ y, held, x)
    return _each(y, lambda c: x @ c)


def _einsum(equation: str, *operands: Any) -> Jet:
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    places = [i for i, x in enumerate(operands) if isinstance(x, Jet)]
    if len(places) != 1:
        raise NotImplementedError(f"the Taylor method takes einsum with one operand that depends on them; {ADVICE}")
    (place,) = places

    def contract(c: Tensor) -> Tensor:
        return torch.einsum(equation, *operands[:place], c, *operands[place + 1 :])

    return _each(operands[place], contract)


def _add(x: Any, y: Any, *, alpha: float = 1.0) -> Jet:
    if alpha != 1.0:
        y = alpha * y
    if not isinstance(x, Jet):
        x, y = y, x
    if not isinstance(y, Jet):
        value = x.value + y
        return _like(x, [value, *(_broadcast(c, value) for c in x.coefficients[1:])])
    value = x.value + y.value
    rest = [
        _broadcast(b if a is None else a if b is None else a + b, value)
        for a, b in zip(x.coefficients[1:], y.coefficients[1:], strict=True)
    ]
    return _like(x, [value, *rest])


def _broadcast(c: Coefficient, value: Tensor) -> Coefficient:
    return c if c is None or c.shape == value.shape else c.expand(value.shape)


def _sub(x: Any, y: Any, *, alpha: float = 1.0) -> Jet:
    return _add(x, -y if alpha == 1.0 else -alpha * y)


def _mul(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    if not isinstance(y, Jet):
        return _each(x, lambda c: c * y)
    coefficients: list[Coefficient] = []
    for pairs in x.indices.products:
        terms = [(x.coefficients[i], y.coefficients[j]) for i, j in pairs]
        coefficients.append(_sum_of_products([(1.0, a, b) for a, b in terms if a is not None and b is not None]))
    return _like(x, coefficients)


def _sum_of_products(terms: Sequence[tuple[float, Tensor, Tensor]]) -> Coefficient:
    total: Coefficient = None
    for weight, a, b in terms:
        if total is None:
            total = a * b if weight == 1.0 else (weight * a) * b
        else:
            total = torch.addcmul(total, a, b, value=weight)
    return total


def _square(x: Jet) -> Jet:
    coefficients: list[Coefficient] = []
    for pairs in x.indices.products:
        terms = []
        for i, j in pairs:
            a, b = x.coefficients[i], x.coefficients[j]
            if i <= j and a is not None and b is not None:
                terms.append((1.0 if i == j else 2.0, a, b))
        coefficients.append(_sum_of_products(terms))
    return _like(x, coefficients)


def _div(x: Any, y: Any) -> Jet:
    """q with q y = x: q_alpha = (x_alpha - sum_(beta < alpha) q_beta y_(alpha - beta)) / y_0"""
    if not isinstance(y, Jet):
        return _each(x, lambda c: c / y)
    inverse = y.value.reciprocal()
    quotient: list[Coefficient] = []
    for place, pairs in enumerate(y.indices.products):
        top = x.coefficients[place] if isinstance(x, Jet) else (x if place == 0 else None)
        total: Any = top
        for i, j in pairs:
            if i == place:
                continue
            a, b = quotient[i], y.coefficients[j]
            if a is not None and b is not None:
                total = -a * b if total is None else total - a * b
        quotient.append(None if total is None else total * inverse)
    return _like(y, quotient)


def _chain(x: Jet, place: int, w: Sequence[Coefficient]) -> Coefficient:
    """y_alpha of y' = w x', from the coefficients of w below alpha."""
    terms = []
    for weight, i, j in x.indices.chains[place]:
        a, b = x.coefficients[i], w[j]
        if a is not None and b is not None:
            terms.append((weight, a, b))
    return _sum_of_products(terms)


def _compose(x: Jet, value: Tensor, derivative: Jet) -> Jet:
    """f(x) from f(x_0) and the series of f'(x)."""
    rest = [_chain(x, place, derivative.coefficients) for place in range(1, len(x.indices))]
    return _like(x, [value, *rest])


def _tanh(x: Jet) -> Jet:
    """y' = (1 - y^2) x'"""
    stack, held = stacked_tanh(*x.stack, x.indices)
    return Jet.of_stack(stack, held, x)


def _sigmoid(x: Jet) -> Jet:
    return 0.5 + 0.5 * _tanh(0.5 * x)


def _exp(x: Jet) -> Jet:
    """y' = y x'"""
    y: list[Coefficient] = [x.value.exp()]
    for place in range(1, len(x.indices)):
        y.append(_chain(x, place, y))
    return _like(x, y)


def _sin_cos(x: Jet) -> tuple[Jet, Jet]:
    """s' = c x', c' = -s x'"""
    sine: list[Coefficient] = [x.value.sin()]
    cosine: list[Coefficient] = [x.value.cos()]
    for place in range(1, len(x.indices)):
        s, c = _chain(x, place, cosine), _chain(x, place, sine)
        sine.append(s)
        cosine.append(None if c is None else -c)
    return _like(x, sine), _like(x, cosine)


def _sinh_cosh(x: Jet) -> tuple[Jet, Jet]:
    e, inverse = _exp(x), _exp(-x)
    return 0.5 * (e - inverse), 0.5 * (e + inverse)


def _pow(x: Any, exponent: Any) -> Jet:
    if isinstance(exponent, Jet) or not isinstance(x, Jet):
        raise NotImplementedError(f"the Taylor method has no rule for a power with a varying exponent; {ADVICE}")
    if isinstance(exponent, int) or (isinstance(exponent, float) and exponent.is_integer()):
        n = int(exponent)
        if n < 0:
            return _div(1.0, _pow(x, -n))
        if n == 0:
            return _like(x, [torch.ones_like(x.value), *[None] * (len(x.indices) - 1)])
        half = x if n == 1 else _square(_pow(x, n // 2)) if n % 2 == 0 else _mul(x, _pow(x, n - 1))
        return half
    # y' = a x^(a - 1) x', and x y' = a y x' would divide by x_0 as often.
    return _compose(x, x.value**exponent, exponent * _power_below(x, exponent - 1))


def _power_below(x: Jet, exponent: float) -> Jet:
    """x^a by exp(a log x), for x_0 > 0."""
    return _exp(exponent * _log(x))


def _log(x: Jet) -> Jet:
    """y' = x' / x"""
    return _compose(x, x.value.log(), _div(1.0, x))


def _sqrt(x: Jet) -> Jet:
    """y with y^2 = x: y_alpha = (x_alpha - sum_(0 < beta < alpha) y_beta y_(alpha - beta)) / (2 y_0)"""
    y: list[Coefficient] = [x.value.sqrt()]
    inverse = 0.5 / cast(Tensor, y[0])
    for place in range(1, len(x.indices)):
        total: Coefficient = x.coefficients[place]
        for i, j in x.indices.products[place]:
            a, b = (y[i] if i < place else None), (y[j] if j < place else None)
            if i and j and a is not None and b is not None:
                total = -a * b if total is None else total - a * b
        y.append(None if total is None else total * inverse)
    return _like(x, y)


def _erf(x: Jet) -> Jet:
    return _compose(x, x.value.erf(), (2 / torch.pi**0.5) * _exp(-_square(x)))


def _gelu(x: Jet, approximate: str = "none") -> Jet:
    if approximate != "none":
        return 0.5 * x * (1 + _tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * _pow(x, 3))))
    return 0.5 * x * (1 + _erf(x * 0.5**0.5))


def _softplus(x: Jet, beta: float = 1.0, threshold: float = 20.0) -> Jet:
    return _compose(x, F.softplus(x.value, beta, threshold), _sigmoid(beta * x))


def _atan(x: Jet) -> Jet:
    return _compose(x, x.value.atan(), _div(1.0, 1 + _square(x)))


def _atan2(y: Any, x: Any) -> Jet:
    """The angle a of (x, y), with r^2 a' = x y' - y x'; smooth but on the cut of its value."""
    jet = y if isinstance(y, Jet) else x
    y, x = (part if isinstance(part, Jet) else _constant(part, jet) for part in (y, x))
    square = _square(x) + _square(y)
    wy, wx = _div(x, square), -_div(y, square)
    rest = []
    for place in range(1, len(jet.indices)):
        parts = [p for p in (_chain(y, place, wy.coefficients), _chain(x, place, wx.coefficients)) if p is not None]
        rest.append(sum(parts[1:], parts[0]) if parts else None)
    return _like(jet, [torch.atan2(y.value, x.value), *rest])


def _constant(x: Any, jet: Jet) -> Jet:
    value = x if isinstance(x, Tensor) else torch.full_like(jet.value, float(x))
    return _like(jet, [value, *[None] * (len(jet.indices) - 1)])


def _where(condition: Tensor, x: Any, y: Any) -> Jet:
    """Piecewise: the derivatives of the branch that is taken."""
    jet = x if isinstance(x, Jet) else y
    x, y = (part if isinstance(part, Jet) else _constant(part, jet) for part in (x, y))
    coefficients: list[Coefficient] = []
    for a, b in zip(x.coefficients, y.coefficients, strict=True):
        if a is None and b is None:
            coefficients.append(None)
            continue
        zero = torch.zeros_like(cast(Tensor, b if a is None else a))
        coefficients.append(torch.where(condition, zero if a is None else a, zero if b is None else b))
    return _like(jet, coefficients)


def _relu(x: Jet, inplace: bool = False) -> Jet:
    return _where(x.value > 0, x, 0.0)


def _abs(x: Jet) -> Jet:
    return _each(x, lambda c: c * x.value.sign())


def _joined(join: Callable[..., Tensor]) -> Callable[..., Jet]:
    def rule(parts: Sequence[Any], dim: int = 0) -> Jet:
        jet = next(part for part in parts if isinstance(part, Jet))
        parts = [part if isinstance(part, Jet) else _constant(part, jet) for part in parts]
        coefficients: list[Coefficient] = []
        for place in range(len(jet.indices)):
            held = [part.coefficients[place] for part in parts]
            if all(c is None for c in held):
                coefficients.append(None)
                continue
            filled = [torch.zeros_like(part.value) if c is None else c for c, part in zip(held, parts, strict=True)]
            coefficients.append(join(filled, dim))
        return _like(jet, coefficients)

    return rule


def _split(function: Callable[..., Sequence[Tensor]]) -> Callable[..., tuple[Jet, ...]]:
    def rule(x: Jet, *arguments: Any, **named: Any) -> tuple[Jet, ...]:
        parts = [None if c is None else function(c, *arguments, **named) for c in x.coefficients]
        count = len(cast(Sequence[Tensor], parts[0]))
        return tuple(_like(x, [None if p is None else p[i] for p in parts]) for i in range(count))

    return rule


def _same(name: str) -> Callable[..., Jet]:
    method = getattr(torch.Tensor, name)
    return lambda x, *arguments, **named: _each(x, method, *arguments, **named)


def _constant_like(name: str) -> Callable[..., Tensor]:
    function = getattr(torch, name)
    return lambda x, *arguments, **named: function(x.value, *arguments, **named)


RULES: dict[str, Callable[..., Any]] = {
    "linear": _linear, "matmul": _matmul, "einsum": _einsum,
    "add": _add, "radd": _add, "sub": _sub, "subtract": _sub, "rsub": lambda x, y: _sub(y, x), "mul": _mul, "rmul": _mul,
    "multiply": _mul, "div": _div, "truediv": _div, "true_divide": _div, "rtruediv": lambda x, y: _div(y, x), "rdiv": lambda x, y: _div(y, x),
    "neg": lambda x: _each(x, torch.neg), "pow": _pow, "square": _square, "reciprocal": lambda x: _div(1.0, x),
    "tanh": _tanh, "sigmoid": _sigmoid, "silu": lambda x, inplace=False: _mul(x, _sigmoid(x)), "exp": _exp, "log": _log,
    "sin": lambda x: _sin_cos(x)[0], "cos": lambda x: _sin_cos(x)[1], "tan": lambda x: _div(*_sin_cos(x)),
    "sinh": lambda x: _sinh_cosh(x)[0], "cosh": lambda x: _sinh_cosh(x)[1],
    "sqrt": _sqrt, "rsqrt": lambda x: _div(1.0, _sqrt(x)), "erf": _erf, "gelu": _gelu, "softplus": _softplus, "atan": _atan, "arctan": _atan,
    "atan2": _atan2, "arctan2": _atan2, "relu": _relu, "abs": _abs, "where": _where,
    "cat": _joined(torch.cat), "concat": _joined(torch.cat), "stack": _joined(torch.stack),
    "unbind": _split(torch.unbind), "split": _split(torch.split), "chunk": _split(torch.chunk),
    "lt": lambda x, y: _value(x) < _value(y), "le": lambda x, y: _value(x) <= _value(y),
    "gt": lambda x, y: _value(x) > _value(y), "ge": lambda x, y: _value(x) >= _value(y),
    **{name: _constant_like(name) for name in ("zeros_like", "ones_like", "full_like")},
    "detach": lambda x: _each(x, torch.detach), "getitem": lambda x, key: _each(x, lambda c: c[key]),
    **{name: _same(name) for name in (
        "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "movedim", "permute", "expand", "select", "narrow",
        "sum", "mean", "clone", "contiguous", "to", "roll", "flip", "index_select", "repeat", "expand_as",
    )},
}  # fmt: skip
