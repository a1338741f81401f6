"""Conditions that hold by construction, and functions of coordinates that are computed once for the same points."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

CONDITIONS = ("initial", "dirichlet", "neumann", "robin", "periodic")
Function = Callable[[Tensor], Tensor]


class RememberedFunction(nn.Module):
    """A function of coordinates without parameters, remembered for the point sets that come again.

    In Taylor mode (`AutogradDerivatives(..., method="taylor")`) the coordinates arrive as a `Jet` that names its points. As long as
    the points stay, thousands of steps of a full-batch optimiser, the function's series are constants and are looked up. Plain
    tensors pass through.

    Args:
        function: pure, of coordinates (..., dim); a module without parameters will do.
        keep: how many point sets are remembered, the latest ones.

    >>> import torch
    >>> RememberedFunction(lambda y: y.sin())(torch.zeros(3, 1)).shape
    torch.Size([3, 1])
    """

    def __init__(self, function: Function, *, keep: int = 64) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function is {type(function).__name__}; give a function of the coordinates (..., dim).")
        if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
            raise ValueError(
                "the function has parameters, so that its values change; only a fixed one can be remembered."
            )
        self.function, self.keep = function, keep
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def forward(self, y: Tensor) -> Tensor:
        """(..., dim) -> (..., channel)"""
        points = getattr(y, "origin", None)
        if points is None:
            return self.function(y)
        key = (id(points), points._version, y.indices)
        if key not in self._known:
            self._known[key] = (points, self.function(y))  # the points too, so that no other tensor takes their place
            while len(self._known) > self.keep:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": OrderedDict()}  # a copy of the model does not copy what it can compute

    def extra_repr(self) -> str:
        """The function's name, for print(model)."""
        return "" if isinstance(self.function, nn.Module) else getattr(self.function, "__name__", repr(self.function))


class HardConstraint(nn.Module):
    """u(y) = G(y) + l(y) N(y): u = G wherever l = 0, whatever the network N   (Lagaris, Likas and Fotiadis 1998, eq. 4).

    With l = t the initial values G hold; with l = t (1 - x^2) those at x = -1 and 1 too; a double zero of l keeps the slope of G.
    The loss is then the residual alone, and there is no weight to choose.

    Args:
        network: coordinates (..., dim) -> (..., channel); or an operator at coordinates, such as `DeepONet`.
        lift: G, (..., dim) -> (..., channel) or (..., 1).
        distance: l, (..., dim) -> (..., 1) or (..., channel), zero exactly where u is given.
        conditions: which kinds hold, of "initial", "dirichlet", "neumann", "robin" and "periodic". G and l do not tell, and
            `losses.warn_if_ill_posed` believes it, so there is no default.

    >>> import torch
    >>> u = HardConstraint(nn.Linear(2, 1), lambda y: y[..., 1:].sin(), lambda y: y[..., :1], conditions=("initial",))
    >>> y = torch.tensor([[0.0, 0.5]])
    >>> torch.equal(u(y), y[:, 1:].sin())
    True
    """

    def __init__(self, network: nn.Module, lift: Function, distance: Function, *, conditions: Sequence[str]) -> None:
        super().__init__()
        unknown = [name for name in conditions if name not in CONDITIONS]
        if unknown:
            raise ValueError(f"conditions names {unknown[0]!r}; give some of {', '.join(CONDITIONS)}.")
        self.network = network
        self.lift = _remembered(lift)
        self.distance = _remembered(distance)
        self.conditions = tuple(conditions)

    def forward(self, *arguments: Tensor) -> Tensor:
        """coordinates (..., dim), the last argument -> (..., channel); the network sees all: a DeepONet the input function first"""
        y = arguments[-1]
        return self.lift(y) + self.distance(y) * self.network(*arguments)


def _remembered(function: Function) -> nn.Module:
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        return function  # one that is learned, for example a boundary value
    return function if isinstance(function, RememberedFunction) else RememberedFunction(function)
