"""Derivatives at collocation points by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opflow.batch import Batch


class AutogradDerivatives:
    """Makes a `PointFunction` from a model of coordinates: nested reverse mode, exact to rounding.

    Args:
        coordinates: one letter per column of the coordinates, in order; "t" is time. Default x, y, z.
        names: labels of the model's output channels, so that u["pressure"] picks one.

    >>> batch = Batch(coords=torch.tensor([[0.5, 2.0]]))
    >>> u = AutogradDerivatives()(lambda points: points[..., :1] ** 2 * points[..., 1:], batch)
    >>> u.d("xy").item()
    1.0
    """

    def __init__(self, coordinates: Sequence[str] = (), names: Sequence[str] = ()) -> None:
        self.coordinates, self.names = tuple(coordinates), tuple(names)

    def __call__(self, model: Callable[..., Tensor], batch: Batch) -> PointFunction:
        """The model at ``batch.coords`` (..., points, dim), after ``batch.input`` where there is one.

        The coordinates of the batch are made to require gradients in place, so that several functions of one batch
        are functions of the same points.
        """
        if batch.coords is None:
            raise ValueError("the batch has no coords; AutogradDerivatives differentiates with respect to them.")
        if not batch.coords.requires_grad:
            batch.coords.requires_grad_(True)
        dim = batch.coords.shape[-1]
        coordinates = self.coordinates or ("x", "y", "z")[:dim]
        if len(coordinates) != dim:
            raise ValueError(
                f"coords has {dim} columns but the coordinates are named {coordinates}; give one name per column."
            )
        with torch.enable_grad():  # under no_grad, in an evaluation, every derivative would be zero in silence
            value = model(batch.coords) if batch.input is None else model(batch.input, batch.coords)
        return PointFunction(value, batch.coords, coordinates, self.names)


class PointFunction:
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
        if name not in self._names:
            raise KeyError(
                f"no component is called {name!r}; this function has {self._names or 'no named components'}."
            )
        return PointFunction(self._value[..., self._names.index(name)], self._points, self._coordinates)

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation; each order is computed once and kept."""
        if not axes or any(letter not in self._coordinates for letter in axes):
            raise ValueError(
                f"d({axes!r}) asks for coordinates that are not there; there are {', '.join(self._coordinates)}."
            )
        if axes not in self._known:
            lower = self._value if len(axes) == 1 else self.d(axes[:-1])
            for letter, part in zip(self._coordinates, self._jacobian(lower), strict=True):
                self._known[axes[:-1] + letter] = part
        return self._known[axes]

    def gradient(self) -> tuple[Tensor, ...]:
        """The first derivatives with respect to every coordinate but time."""
        return tuple(self.d(axis) for axis in self._space)

    def laplacian(self) -> Tensor:
        """The sum of second derivatives over every coordinate but time."""
        return torch.stack([self.d(axis * 2) for axis in self._space]).sum(0)

    def div_grad(self, a: PointFunction, *, jumps: bool = False) -> Tensor:
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

    def of(self, value: Tensor) -> PointFunction:
        """The derivatives of another differentiable function of the same points."""
        return PointFunction(value, self._points, self._coordinates, self._names)

    @property
    def _space(self) -> list[str]:
        return [axis for axis in self._coordinates if axis != "t"]

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
