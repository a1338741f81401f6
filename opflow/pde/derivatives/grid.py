"""Derivatives of grid values: spectral on periodic axes, finite differences of second order elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opflow.fourier import spectral_derivative
from opflow.grid import Grid, harmonic_mean


class GridDerivatives:
    """Makes a `GridFunction` from values (..., *grid).

    Args:
        grid: where the values live.
        order: of the finite differences; 2.

    >>> grid = Grid((65,))
    >>> x = grid.coordinates(0)
    >>> u = GridDerivatives(grid)(torch.sin(x))
    >>> bool((u.d("x") - torch.cos(x)).abs().max() < 2e-4)
    True
    """

    def __init__(self, grid: Grid, order: int = 2) -> None:
        if order != 2:
            raise ValueError(
                f"order is {order}; finite differences of order 2 are available (periodic axes are spectral)."
            )
        for n, kind, axis in zip(grid.shape, grid.layout, grid.axes, strict=True):
            if kind != "periodic" and n < 4:
                raise ValueError(f"axis {axis} has {n} points; second derivatives up to the boundary need at least 4.")
        self.grid = grid

    def __call__(self, field: Tensor, names: Sequence[str] = ()) -> GridFunction:
        """Values (..., *grid); `names` label the channels of (..., channel, *grid), so that u["pressure"] picks one."""
        self.grid.check(field)
        return GridFunction(field, self.grid, tuple(names))


class GridFunction:
    """A function known by its values on a grid, with its derivatives on the same grid; see `typing.Derivatives`."""

    def __init__(self, value: Tensor, grid: Grid, names: tuple[str, ...] = ()) -> None:
        self._value, self._grid, self._names = value, grid, names

    @property
    def value(self) -> Tensor:
        """(..., *grid)"""
        return self._value

    @property
    def grid(self) -> Grid:
        """Where the values live."""
        return self._grid

    def __getitem__(self, name: str) -> GridFunction:
        """The channel called `name`, without its channel axis."""
        if name not in self._names:
            raise KeyError(
                f"no component is called {name!r}; this function has {self._names or 'no named components'}."
            )
        channel = self._value.select(self._value.ndim - self._grid.dim - 1, self._names.index(name))
        return GridFunction(channel, self._grid)

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation: d("xx"), d("xy")."""
        if not axes or any(letter not in self._grid.axes for letter in axes):
            raise ValueError(
                f"d({axes!r}) asks for axes that the grid does not have; it has {', '.join(self._grid.axes)}."
            )
        value = self._value
        for letter in dict.fromkeys(axes):
            value = self._along(value, self._grid.axes.index(letter), axes.count(letter))
        return value

    def gradient(self) -> tuple[Tensor, ...]:
        """The first derivatives along every space axis."""
        return tuple(self.d(axis) for axis in self._space)

    def laplacian(self) -> Tensor:
        """The sum of second derivatives along the space axes."""
        return torch.stack([self.d(axis * 2) for axis in self._space]).sum(0)

    def div_grad(self, a: GridFunction, *, jumps: bool = False) -> Tensor:
        """div(a grad u): conservative, with harmonic means of `a` on the faces; spectral on periodic axes.

        On the boundary, where no face lies outside, the divergence is extrapolated linearly from the interior.

        Raises:
            ValueError: `jumps` on a periodic axis, where the spectral derivative of a jump does not converge.
        """
        terms = []
        for axis in self._space:
            i = self._grid.axes.index(axis)
            if self._grid.layout[i] == "periodic":
                if jumps:
                    raise ValueError(
                        f"a is discontinuous but axis {axis} is periodic, where derivatives are spectral and would ring; "
                        "use a grid of nodes or cells, whose div_grad is conservative."
                    )
                terms.append(self._along(a.value * self.d(axis), i, 1))
            else:
                terms.append(self._conservative(a.value, i))
        return torch.stack(terms).sum(0)

    def of(self, value: Tensor) -> GridFunction:
        """The derivatives of other values on the same grid."""
        self._grid.check(value)
        return GridFunction(value, self._grid, self._names)

    @property
    def _space(self) -> list[str]:
        return [axis for axis in self._grid.axes if axis != "t"]

    def _along(self, value: Tensor, axis: int, order: int) -> Tensor:
        dim = value.ndim - self._grid.dim + axis
        if self._grid.layout[axis] == "periodic":
            return spectral_derivative(value, dim, self._grid.lengths[axis], order)
        n, lost = self._grid.shape[axis], 2 * ((order + 1) // 2)
        if n < lost + 2:
            raise ValueError(
                f"axis {self._grid.axes[axis]} has {n} points; derivatives of order {order} along it need at least {lost + 2}."
            )
        return difference(value, dim, self._grid.spacing[axis], order)

    def _conservative(self, a: Tensor, axis: int) -> Tensor:
        u = self._value
        dim, n, h = u.ndim - self._grid.dim + axis, self._grid.shape[axis], self._grid.spacing[axis]
        adim = a.ndim - self._grid.dim + axis
        left, right = a.narrow(adim, 0, n - 1), a.narrow(adim, 1, n - 1)
        flux = harmonic_mean(left, right) * u.diff(dim=dim) / h
        return _extend(flux.diff(dim=dim) / h, dim)


def difference(u: Tensor, dim: int, h: float, order: int) -> Tensor:
    """The derivative of any order, of second order in h: central inside, at the ends one-sided or extrapolated linearly.

    The ends are filled once, at the last: to difference what was extrapolated would cost an order each time.
    """
    if order == 1:
        return first_difference(u, dim, h)
    inside = u.diff(n=2 * (order // 2), dim=dim) / h ** (2 * (order // 2))
    if order % 2:
        m = inside.shape[dim] - 2
        inside = (inside.narrow(dim, 2, m) - inside.narrow(dim, 0, m)) / (2 * h)
    for _ in range((order + 1) // 2):
        inside = _extend(inside, dim)
    return inside


def first_difference(u: Tensor, dim: int, h: float) -> Tensor:
    """u' of second order: central inside, one-sided three-point at the ends."""
    n = u.shape[dim]

    def at(i: int) -> Tensor:
        return u.narrow(dim, i % n, 1)

    inside = (u.narrow(dim, 2, n - 2) - u.narrow(dim, 0, n - 2)) / (2 * h)
    first = (-3 * at(0) + 4 * at(1) - at(2)) / (2 * h)
    last = (3 * at(-1) - 4 * at(-2) + at(-3)) / (2 * h)
    return torch.cat([first, inside, last], dim=dim)


def _extend(inside: Tensor, dim: int) -> Tensor:
    m = inside.shape[dim]
    first = 2 * inside.narrow(dim, 0, 1) - inside.narrow(dim, 1, 1)
    last = 2 * inside.narrow(dim, m - 1, 1) - inside.narrow(dim, m - 2, 1)
    return torch.cat([first, inside, last], dim=dim)
