"""Conditions that make an equation well posed: boundary values, fluxes, periodicity, initial values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from opflow.batch import Batch
from opflow.typing import Derivatives

Value = float | Tensor | Callable[[Tensor], Tensor] | None


class Condition(ABC):
    """A condition at points, stated as a residual that vanishes where it holds.

    A subclass states `kind` and `residual`. `value` is a number, a tensor, a function ``value(points) -> Tensor`` of the
    coordinates (..., points, dim), or None for ``batch.target``. Its shape is that of what it prescribes: (..., points) or
    (..., points, channel).

    Attributes:
        kind: "dirichlet", "neumann", "robin", "periodic" or "initial".
        unknown: which component of u; None for all, or the only one.
    """

    kind: ClassVar[str]

    def __init__(self, value: Value = 0.0, *, unknown: str | None = None) -> None:
        self.value, self.unknown = value, unknown

    def points_for(self, batch: Batch) -> Batch:
        """Where u has to be known for `residual`: at the batch's own points, unless a condition compares with others."""
        return batch

    def asked(self, coordinates: Sequence[str]) -> tuple[str, ...]:
        """The derivatives that `residual` will ask for, so that Taylor mode finds them in one pass."""
        return ()

    def has_channels(self, value: Tensor, batch: Batch) -> bool:
        """Whether the last axis of a value or residual is one of components rather than of points."""
        return self.unknown is None and value.shape != _coords(batch).shape[:-1]

    @abstractmethod
    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """What vanishes, (..., points) or (..., points, channel), for u at ``points_for(batch)``."""

    def __repr__(self) -> str:
        value = f"{self.value.dtype} {tuple(self.value.shape)}" if isinstance(self.value, Tensor) else repr(self.value)
        return f"{type(self).__name__}({value}" + (f", unknown={self.unknown!r})" if self.unknown else ")")

    def _component(self, u: Derivatives) -> Derivatives:
        return u if self.unknown is None else u[self.unknown]

    def _prescribed(self, batch: Batch, like: Tensor, value: Value, name: str = "value") -> Tensor | float:
        """A value at the batch's points in the shape of `like`."""
        points = _coords(batch)
        if value is None:
            if batch.target is None:
                raise ValueError(f"{self!r} takes its {name} from batch.target, but the batch has none; give either.")
            value = batch.target
        elif callable(value) and not isinstance(value, Tensor):
            value = value(points.detach())
        if not isinstance(value, Tensor):
            return float(value)
        value = value.to(like)
        one_channel = value.unsqueeze(-1)
        if value.ndim == 0:
            return value
        if self.has_channels(like, batch):
            if value.ndim > 1 and _is_tail(value, like):
                return value
            if like.shape[-1] == 1 and _is_tail(one_channel, like):
                return one_channel
        elif _is_tail(value, like):
            return value
        elif value.shape[-1] == 1 and _is_tail(value.squeeze(-1), like):
            return value.squeeze(-1)
        raise ValueError(
            f"the {name} of {self!r} has shape {tuple(value.shape)} at points {tuple(points.shape)}, where u has "
            f"{tuple(like.shape)}; they must be equal, as broadcasting would compare different points."
        )


class Dirichlet(Condition):
    """u = g

    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> batch = Batch(coords=torch.tensor([[0.0], [1.0]]))
    >>> u = AutogradDerivatives()(lambda y: 3 * y, batch)
    >>> Dirichlet(lambda y: 2 * y[:, 0]).residual(u, batch).flatten().tolist()
    [0.0, 1.0]
    """

    kind = "dirichlet"

    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """u - g"""
        value = self._component(u).value
        return value - self._prescribed(batch, value, self.value)


class Neumann(Condition):
    """du/dn = g, with the outward unit normals of ``batch.parameters["normal"]``, (points, dim); a column of time is not used.

    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> batch = Batch(coords=torch.tensor([[0.0], [1.0]]), parameters={"normal": torch.tensor([[-1.0], [1.0]])})
    >>> u = AutogradDerivatives()(lambda y: 3 * y, batch)
    >>> Neumann(3.0).residual(u, batch).flatten().tolist()
    [-6.0, 0.0]
    """

    kind = "neumann"

    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """n . grad u - g"""
        slope = self._normal_derivative(self._component(u), batch)
        return slope - self._prescribed(batch, slope, self.value)

    def asked(self, coordinates: Sequence[str]) -> tuple[str, ...]:
        """The gradient in space."""
        return tuple(letter for letter in coordinates if letter != "t")

    def _normal_derivative(self, u: Derivatives, batch: Batch) -> Tensor:
        gradient = u.gradient()
        normal = (batch.parameters or {}).get("normal")
        if normal is None:
            raise ValueError(
                f'{self!r} needs normals; give Batch(parameters={{"normal": (points, dim)}}), as boundary_batch does.'
            )
        dim = _coords(batch).shape[-1]
        # Time comes first and has no part in a normal: a space-time geometry gives zeros there.
        if normal.shape[-1] == dim and dim == len(gradient) + 1:
            normal = normal[..., 1:]
        if normal.shape[-1] != len(gradient):
            raise ValueError(
                f"the normals have {normal.shape[-1]} columns but u depends on {len(gradient)} coordinates of space; "
                "give one column each, or one more in front for time."
            )
        columns = self.has_channels(gradient[0], batch)
        factors = [n.unsqueeze(-1) if columns else n for n in normal.unbind(-1)]
        return torch.stack([n * part for n, part in zip(factors, gradient, strict=True)]).sum(0)


class Robin(Neumann):
    """alpha u + beta du/dn = g; alpha and beta are numbers, tensors or functions of the points, like g.

    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> batch = Batch(coords=torch.tensor([[1.0]]), parameters={"normal": torch.tensor([[1.0]])})
    >>> Robin(2.0, 1.0, 9.0).residual(AutogradDerivatives()(lambda y: 3 * y, batch), batch).item()
    0.0
    """

    kind = "robin"

    def __init__(self, alpha: Value, beta: Value, value: Value = 0.0, *, unknown: str | None = None) -> None:
        super().__init__(value, unknown=unknown)
        if alpha is None or beta is None:
            raise ValueError(f"alpha is {alpha} and beta {beta}; give numbers, tensors or functions of the points.")
        self.alpha, self.beta = alpha, beta

    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """alpha u + beta n . grad u - g"""
        u = self._component(u)
        slope = self._normal_derivative(u, batch)
        alpha, beta = (
            self._prescribed(batch, slope, value, name) for value, name in ((self.alpha, "alpha"), (self.beta, "beta"))
        )
        return alpha * u.value + beta * slope - self._prescribed(batch, slope, self.value)


class Periodic(Condition):
    """d^k u / dx^k (y + shift) = d^k u / dx^k (y) for k in `orders`, at the points of one side.

    Args:
        axis: the letter of the coordinate across the sides, "x" for example.
        shift: what leads from a point to its image, one number per coordinate: (0, 2) for (t, x) with period 2 in x.
        orders: which derivatives agree; an equation of order m in x needs 0 to m - 1.

    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> condition, batch = Periodic("x", (2 * torch.pi,)), Batch(coords=torch.zeros(1, 1, dtype=torch.float64))
    >>> u = AutogradDerivatives()(lambda y: y.sin(), condition.points_for(batch))
    >>> bool(condition.residual(u, batch).abs().max() < 1e-12)
    True
    """

    kind = "periodic"

    def __init__(
        self, axis: str, shift: Sequence[float], *, orders: Sequence[int] = (0, 1), unknown: str | None = None
    ) -> None:
        super().__init__(unknown=unknown)
        if len(axis) != 1 or axis == "t":
            raise ValueError(f"axis is {axis!r}; give the letter of one coordinate of space.")
        if not orders or any(isinstance(k, bool) or not isinstance(k, int) or k < 0 for k in orders):
            raise ValueError(f"orders are {tuple(orders)}; give whole numbers from 0 on, (0, 1) for example.")
        if not any(shift):
            raise ValueError(f"shift is {tuple(shift)}; a point would be its own image, so give the period.")
        self.axis, self.shift, self.orders = axis, tuple(float(s) for s in shift), tuple(orders)
        self._pair: tuple[Tensor, int, Batch] | None = None

    def __repr__(self) -> str:
        return f"Periodic({self.axis!r}, {self.shift}, orders={self.orders})"

    def points_for(self, batch: Batch) -> Batch:
        """The points and, after them, their images; the same tensor again for the same points."""
        coords = _coords(batch)
        if coords.shape[-1] != len(self.shift):
            raise ValueError(
                f"shift has {len(self.shift)} numbers but the points have {coords.shape[-1]} coordinates; give one each."
            )
        if self._pair is None or self._pair[0] is not coords or self._pair[1] != coords._version:
            here = coords.detach()
            both = torch.cat([here, here + here.new_tensor(self.shift)], dim=-2)
            # Normals and weights belong to the sides, not to the pair.
            self._pair = (coords, coords._version, Batch(input=batch.input, coords=both))
        pair = self._pair[2]
        return pair if pair.input is batch.input else Batch(input=batch.input, coords=pair.coords)

    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """The differences, (..., points, orders * channel)"""
        coords = _coords(batch)
        u, n = self._component(u), coords.shape[-2]
        differences = []
        for order in self.orders:
            value = u.d(self.axis * order) if order else u.value
            value = value if super().has_channels(value, self.points_for(batch)) else value.unsqueeze(-1)
            differences.append(value.narrow(-2, n, n) - value.narrow(-2, 0, n))
        return torch.cat(differences, dim=-1)

    def asked(self, coordinates: Sequence[str]) -> tuple[str, ...]:
        """The derivatives across the sides."""
        return tuple(self.axis * order for order in self.orders if order)

    def has_channels(self, value: Tensor, batch: Batch) -> bool:
        """Always: one for each order."""
        return True


class Initial(Condition):
    """d^k u / dt^k = g at the first moment; k = 0 for values, 1 for velocities.

    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> batch = Batch(coords=torch.tensor([[0.0, 0.5]]))
    >>> u = AutogradDerivatives(("t", "x"))(lambda y: y[:, :1] * 7 + y[:, 1:], batch)
    >>> Initial(lambda y: y[:, 1]).residual(u, batch).item(), Initial(7.0, order=1).residual(u, batch).item()
    (0.0, 0.0)
    """

    kind = "initial"

    def __init__(self, value: Value = 0.0, *, order: int = 0, unknown: str | None = None) -> None:
        super().__init__(value, unknown=unknown)
        if isinstance(order, bool) or not isinstance(order, int) or order < 0:
            raise ValueError(f"order is {order!r}; give 0 for values, 1 for the derivative in time.")
        self.order = order

    def residual(self, u: Derivatives, batch: Batch) -> Tensor:
        """d^k u / dt^k - g"""
        u = self._component(u)
        value = u.d("t" * self.order) if self.order else u.value
        return value - self._prescribed(batch, value, self.value)

    def asked(self, coordinates: Sequence[str]) -> tuple[str, ...]:
        """The derivative in time."""
        return ("t" * self.order,) if self.order else ()


def _coords(batch: Batch) -> Tensor:
    if batch.coords is None:
        raise ValueError("the batch has no coords, but a condition holds at points; give Batch(coords=(points, dim)).")
    return batch.coords


def _is_tail(value: Tensor, like: Tensor) -> bool:
    """Whether samples may share the value: its shape is what `like` has last."""
    return value.ndim <= like.ndim and value.shape == like.shape[like.ndim - value.ndim :]
