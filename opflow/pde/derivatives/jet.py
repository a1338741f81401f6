"""Taylor mode: truncated Taylor series that go through a model in the place of its coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from opflow.pde.derivatives.jet_kernels import Held
from opflow.pde.derivatives.multi_index import MultiIndices

Coefficient = Tensor | None  # None is an exact zero


class Jet:
    """sum_alpha c_alpha h^alpha, alpha in a set of `MultiIndices`: the value of a function of y + h and its derivatives alpha! c_alpha.

    A jet passes through a model as a tensor does: what PyTorch does to it (linear maps, arithmetic, analytic functions, reshaping)
    is done to the truncated series. One pass yields all derivatives of the set, and one reverse pass their gradient with respect to
    the parameters, with no graph of a graph (Griewank and Walther 2008, "Evaluating Derivatives", chapter 13). With y = f(x) and
    f' = w(y, x), the coefficients of y follow from the chain rule alpha_i y_alpha = sum_(beta <= alpha) beta_i x_beta w_(alpha - beta).

    Args:
        coefficients: c_alpha in the order of `indices.all`, tensors of one shape; None is zero.
        origin: of `coordinates` themselves, the points; by them functions without parameters are remembered
            (`layers.RememberedFunction`). None of every jet that was computed.

    >>> from opflow.pde.derivatives.multi_index import multi_indices
    >>> x = Jet.coordinates(torch.tensor([[0.5]]), multi_indices(frozenset([(3,)]), 1))
    >>> torch.tanh(2 * x).derivative((3,)).shape
    torch.Size([1, 1])
    """

    def __init__(
        self, coefficients: Sequence[Coefficient], indices: MultiIndices, origin: Tensor | None = None
    ) -> None:
        self._coefficients: tuple[Coefficient, ...] | None = tuple(coefficients)
        self.indices, self.origin = indices, origin
        self._stack: tuple[Tensor, Held] | None = None

    @classmethod
    def of_stack(cls, stack: Tensor, held: Held, like: Jet) -> Jet:
        """From the coefficients that are not zero, stacked along the first axis, and their places."""
        jet = cls((), like.indices)
        jet._coefficients, jet._stack = None, (stack, held)
        return jet

    @classmethod
    def coordinates(cls, points: Tensor, indices: MultiIndices) -> Jet:
        """y + h at points (..., dim): the coefficient of the j-th first order is the j-th unit vector at every point."""
        dim = points.shape[-1]
        coefficients: list[Coefficient] = [points]
        for alpha in indices.all[1:]:
            unit = torch.tensor([float(a) for a in alpha], dtype=points.dtype, device=points.device)
            coefficients.append(unit.expand(*points.shape[:-1], dim) if sum(alpha) == 1 else None)
        return cls(coefficients, indices, points)

    @property
    def coefficients(self) -> tuple[Coefficient, ...]:
        """c_alpha in the order of `indices.all`; None is zero."""
        if self._coefficients is None:
            stack, held = cast(tuple[Tensor, Held], self._stack)
            found: list[Coefficient] = [None] * len(self.indices)
            for place, c in zip(held, stack.unbind(0), strict=True):
                found[place] = c
            self._coefficients = tuple(found)
        return self._coefficients

    @property
    def stack(self) -> tuple[Tensor, Held]:
        """The coefficients that are not zero, stacked along a new first axis, and their places."""
        if self._stack is None:
            held = tuple(i for i, c in enumerate(self.coefficients) if c is not None)
            self._stack = torch.stack([cast(Tensor, self.coefficients[i]) for i in held]), held
        return self._stack

    @property
    def value(self) -> Tensor:
        """The zeroth coefficient."""
        return self._stack[0][0] if self._coefficients is None and self._stack else cast(Tensor, self.coefficients[0])

    def derivative(self, alpha: tuple[int, ...]) -> Tensor:
        """alpha! c_alpha"""
        i = self.indices.position[alpha]
        coefficient, factorial = self.coefficients[i], self.indices.factorials[i]
        if coefficient is None:
            return torch.zeros_like(self.value)
        return coefficient if factorial == 1 else factorial * coefficient

    # As much of a tensor's face as the layers look at.
    @property
    def shape(self) -> torch.Size:
        """Of every coefficient."""
        return self.value.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Of the coefficients."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Of the coefficients."""
        return self.value.device

    @property
    def is_meta(self) -> bool:
        """As of a tensor."""
        return self.value.is_meta

    @property
    def is_cuda(self) -> bool:
        """As of a tensor."""
        return self.value.is_cuda

    def tolist(self) -> Any:
        """The values, for a message."""
        return self.value.tolist()

    def is_floating_point(self) -> bool:
        """Always: a derivative is."""
        return True

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """As of a tensor."""
        return self.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name in rules():
            return lambda *arguments, **named: rules()[name](self, *arguments, **named)
        raise AttributeError(f"a Jet has no {name!r}; {ADVICE}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func)).strip("_")
        if name not in rules():
            raise NotImplementedError(f"the Taylor method has no rule for {name!r}; {ADVICE}")
        return rules()[name](*args, **(kwargs or {}))

    def __add__(self, other: Any) -> Jet:
        return rules()["add"](self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Jet:
        return rules()["sub"](self, other)

    def __rsub__(self, other: Any) -> Jet:
        return rules()["rsub"](self, other)

    def __neg__(self) -> Jet:
        return rules()["neg"](self)

    def __mul__(self, other: Any) -> Jet:
        return rules()["mul"](self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Jet:
        return rules()["truediv"](self, other)

    def __rtruediv__(self, other: Any) -> Jet:
        return rules()["rtruediv"](self, other)

    def __pow__(self, exponent: Any) -> Jet:
        return rules()["pow"](self, exponent)

    def __matmul__(self, other: Tensor) -> Jet:
        return rules()["matmul"](self, other)

    def __getitem__(self, key: Any) -> Jet:
        return rules()["getitem"](self, key)

    def __lt__(self, other: Any) -> Tensor:
        return rules()["lt"](self, other)

    def __le__(self, other: Any) -> Tensor:
        return rules()["le"](self, other)

    def __gt__(self, other: Any) -> Tensor:
        return rules()["gt"](self, other)

    def __ge__(self, other: Any) -> Tensor:
        return rules()["ge"](self, other)


ADVICE = (
    "write the model with linear maps, arithmetic and analytic functions, or differentiate it in reverse mode, "
    'AutogradDerivatives(..., method="reverse").'
)


@cache
def rules() -> dict[str, Callable[..., Any]]:
    """What PyTorch's functions do to a jet, by name. The rules are written in jets, so they are imported on use."""
    from opflow.pde.derivatives.jet_rules import RULES

    return RULES
