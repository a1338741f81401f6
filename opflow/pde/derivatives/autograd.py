"""Derivatives at collocation points by automatic differentiation, in reverse mode or in Taylor mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from opflow.batch import Batch, Once
from opflow.pde.derivatives.jet import Jet
from opflow.pde.derivatives.multi_index import as_index, multi_indices

Method = Literal["reverse", "taylor"]


class AutogradDerivatives:
    """Makes a function with derivatives from a model of coordinates; both methods are exact to rounding.

    - "reverse": nested reverse mode (`PointFunction`). Any model will do; the cost doubles with each order.
    - "taylor": one pass of truncated Taylor series, see `Jet` (`TaylorFunction`). Cheaper from the third order on, and at any
      order where the points stay the same between steps (`layers.HardConstraint` remembers its parts) or several samples share
      their points (DeepONet). The model must be made of linear maps, arithmetic and analytic functions, and `u.of` is refused.

    Args:
        coordinates: one letter per column of the coordinates, in order; "t" is time. Default x, y, z.
        names: labels of the model's output channels, so that u["pressure"] picks one.
        method: None takes reverse mode, except in `losses.PDEResidual`, which knows the orders: Taylor mode from the third on.

    >>> batch = Batch(coords=torch.tensor([[0.5, 2.0]]))
    >>> u = AutogradDerivatives()(lambda points: points[..., :1] ** 2 * points[..., 1:], batch)
    >>> u.d("xy").item()
    1.0
    """

    def __init__(
        self, coordinates: Sequence[str] = (), names: Sequence[str] = (), method: Method | None = None
    ) -> None:
        if method not in (None, "reverse", "taylor"):
            raise ValueError(f"method is {method!r}; give 'reverse', 'taylor' or None.")
        self.coordinates, self.names, self.method = tuple(coordinates), tuple(names), method

    def __call__(
        self, model: Callable[..., Tensor], batch: Batch, *, asked: Iterable[str] = ()
    ) -> PointFunction | TaylorFunction:
        """The model at ``batch.coords`` (..., points, dim), after ``batch.input`` where there is one.

        In reverse mode the coordinates of the batch are made to require gradients in place, so that several functions of one
        batch are functions of the same points.

        Args:
            asked: in Taylor mode, the derivatives that will be asked; others are found too, by another pass.
        """
        if batch.coords is None:
            raise ValueError("the batch has no coords; AutogradDerivatives differentiates with respect to them.")
        coordinates = self.coordinates_of(batch.coords)
        if self.method == "taylor":
            return TaylorFunction(model, batch, coordinates, self.names, asked)
        if not batch.coords.requires_grad:
            batch.coords.requires_grad_(True)
        with torch.enable_grad():  # under no_grad, in an evaluation, every derivative would be zero in silence
            value = model(batch.coords) if batch.input is None else model(batch.input, batch.coords)
        return PointFunction(value, batch.coords, coordinates, self.names)

    def coordinates_of(self, coords: Tensor) -> tuple[str, ...]:
        """The name of each column of `coords`."""
        dim = coords.shape[-1]
        coordinates = self.coordinates or ("x", "y", "z")[:dim]
        if len(coordinates) != dim:
            raise ValueError(
                f"coords has {dim} columns but the coordinates are named {coordinates}; give one name per column."
            )
        return tuple(coordinates)


class _Calculus:
    """What follows from partial derivatives."""

    _coordinates: tuple[str, ...]

    @property
    def value(self) -> Tensor:
        """The function at the points."""
        raise NotImplementedError

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation."""
        raise NotImplementedError

    def gradient(self) -> tuple[Tensor, ...]:
        """The first derivatives with respect to every coordinate but time."""
        return tuple(self.d(axis) for axis in self._space)

    def laplacian(self) -> Tensor:
        """The sum of second derivatives over every coordinate but time."""
        return torch.stack([self.d(axis * 2) for axis in self._space]).sum(0)

    def div_grad(self, a: PointFunction | TaylorFunction, *, jumps: bool = False) -> Tensor:
        """div(a grad u) = grad a . grad u + a lap u.

        Raises:
            ValueError: `jumps`: a pointwise gradient of a discontinuous coefficient misses the flux across its jumps.
        """
        if jumps:
            raise ValueError(
                "a is discontinuous, and its pointwise gradient is zero almost everywhere, so that div(a grad u) would be wrong "
                "in silence; use GridDerivatives on nodes or cells, whose div_grad is conservative, or a weak form."
            )
        products = [da * du for da, du in zip(a.gradient(), self.gradient(), strict=True)]
        return torch.stack(products).sum(0) + a.value * self.laplacian()

    @property
    def _space(self) -> list[str]:
        return [axis for axis in self._coordinates if axis != "t"]


class TaylorFunction(_Calculus):
    """A function at points (..., points, dim) by Taylor mode; see `typing.Derivatives`.

    Several samples may share their points: coords (points, dim) and a value (batch, points, channel).
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        batch: Batch,
        coordinates: tuple[str, ...],
        names: tuple[str, ...] = (),
        asked: Iterable[str] = (),
    ) -> None:
        assert batch.coords is not None
        # `Once` remembers by identity, and a jet is new every time.
        self._model, self._input = model.model if isinstance(model, Once) else model, batch.input
        # The very object where that is possible: by it the model remembers what it knows of these points.
        self._points = batch.coords.detach() if batch.coords.requires_grad else batch.coords
        self._coordinates, self._names = coordinates, names
        self._channel: int | None = None
        self._indices = {as_index(axes, coordinates) for axes in asked}
        self._held: list[Jet] = []

    @property
    def jet(self) -> Jet:
        """The series of all channels."""
        if not self._held:
            indices = multi_indices(frozenset(self._indices), self._points.shape[-1])
            coords = Jet.coordinates(self._points, indices)
            found = self._model(coords) if self._input is None else self._model(self._input, coords)
            if not isinstance(found, Jet):
                raise ValueError(
                    f"the model answered a Jet with {type(found).__name__}: its output does not depend on the coordinates, or it "
                    'left the series out; use method="reverse".'
                )
            self._held.append(found)
        return self._held[0]

    @property
    def value(self) -> Tensor:
        """The function at the points."""
        return self._pick(self.jet.value)

    def __getitem__(self, name: str) -> TaylorFunction:
        """The channel called `name`, without its channel axis."""
        _check_name(name, self._names)
        part = TaylorFunction.__new__(TaylorFunction)
        part.__dict__ = self.__dict__ | {"_channel": self._names.index(name), "_names": ()}
        return part  # the same series: what one component asks anew, the others have too

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation; one that the series lacks is had by another pass."""
        alpha = as_index(axes, self._coordinates)
        if not self._held or alpha not in self.jet.indices.position:
            self._indices.add(alpha)
            self._held.clear()
        return self._pick(self.jet.derivative(alpha))

    def of(self, value: Tensor) -> PointFunction:
        """Refused: a value has lost its series."""
        raise ValueError(
            "u.of(value) asks for the derivatives of a product, which has lost its Taylor series; write the product rule out, "
            'or use AutogradDerivatives(..., method="reverse").'
        )

    def _pick(self, value: Tensor) -> Tensor:
        return value if self._channel is None else value[..., self._channel]


class PointFunction(_Calculus):
    """A differentiable function at points (..., points, dim), value (..., points, channel) or one component without
    the channel axis; see `typing.Derivatives`.
    """

    def __init__(
        self, value: Tensor, points: Tensor, coordinates: tuple[str, ...], names: tuple[str, ...] = ()
    ) -> None:
        if value.shape not in (points.shape[:-1], (*points.shape[:-1], *value.shape[-1:])):
            raise ValueError(
                f"the function has shape {tuple(value.shape)} at points {tuple(points.shape)}; expected {tuple(points.shape[:-1])}, or that "
                "with a channel axis at the end. Give every sample points of its own, coords.expand(batch, -1, -1), so that the "
                "samples' derivatives are not summed."
            )
        self._value, self._points, self._coordinates, self._names = value, points, coordinates, names
        self._known: dict[str, Tensor] = {}

    @property
    def value(self) -> Tensor:
        """The function at the points."""
        return self._value

    def __getitem__(self, name: str) -> PointFunction:
        """The channel called `name`, without its channel axis."""
        _check_name(name, self._names)
        return PointFunction(self._value[..., self._names.index(name)], self._points, self._coordinates)

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation; each order is computed once and kept."""
        as_index(axes, self._coordinates)
        if axes not in self._known:
            lower = self._value if len(axes) == 1 else self.d(axes[:-1])
            for letter, part in zip(self._coordinates, self._jacobian(lower), strict=True):
                self._known[axes[:-1] + letter] = part
        return self._known[axes]

    def of(self, value: Tensor) -> PointFunction:
        """The derivatives of another differentiable function of the same points."""
        return PointFunction(value, self._points, self._coordinates, self._names)

    @torch.enable_grad()
    def _jacobian(self, value: Tensor) -> tuple[Tensor, ...]:
        components = value.unbind(-1) if value.ndim == self._points.ndim else (value,)
        columns = []
        for component in components:
            # Every point depends on its own coordinates only, so the gradient of the sum holds all the derivatives.
            gradient = self._points.new_zeros(self._points.shape)
            if component.requires_grad:
                (found,) = torch.autograd.grad(component.sum(), self._points, create_graph=True, allow_unused=True)
                gradient = gradient if found is None else found
            columns.append(gradient)
        if value.ndim == self._points.ndim:
            return tuple(torch.stack([c[..., i] for c in columns], dim=-1) for i in range(self._points.shape[-1]))
        return tuple(columns[0].unbind(-1))


def _check_name(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise KeyError(f"no component is called {name!r}; this function has {names or 'no named components'}.")
