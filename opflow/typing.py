"""Shapes and protocols: what the parts of opflow expect of each other, stated once.

The aliases carry axis names for readers and type checkers (jaxtyping, a development dependency);
at run time they are plain ``torch.Tensor``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    Field = Float[Tensor, "batch channel *grid"]
    Points = Float[Tensor, "*batch points dim"]
    Scalar = Float[Tensor, ""]
else:
    Field = Points = Scalar = Tensor


@runtime_checkable
class Derivatives(Protocol):
    """A function together with its derivatives, however they are computed.

    A problem's residual is written once against this protocol; collocation points supply it by automatic
    differentiation, grids by finite differences or spectrally.
    """

    @property
    def value(self) -> Tensor:
        """The function itself, at every point."""
        ...

    def __getitem__(self, name: str) -> Derivatives:
        """One named component, its channel axis dropped."""
        ...

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation: ``d("xx")`` is u_xx."""
        ...

    def gradient(self) -> tuple[Tensor, ...]:
        """All first derivatives with respect to the space coordinates."""
        ...

    def laplacian(self) -> Tensor:
        """The sum of the unmixed second derivatives over the space coordinates."""
        ...

    def div_grad(self, a: Derivatives, *, jumps: bool = False) -> Tensor:
        """div(a grad u); ``jumps=True`` says that ``a`` is discontinuous, so that only a conservative scheme will do."""
        ...

    def of(self, value: Tensor) -> Derivatives:
        """The same machinery for another function of the same points, a product for example."""
        ...


@runtime_checkable
class Preconditioner(Protocol):
    """An approximate inverse. ``linear``, ``symmetric`` and ``deterministic`` say which Krylov methods may use it."""

    linear: bool
    symmetric: bool
    deterministic: bool

    def setup(self, A: Any) -> Preconditioner:
        """Read the operator once; return self."""
        ...

    def apply(self, r: Tensor) -> Tensor:
        """z with A z ~ r, in the shape and dtype of r."""
        ...


class Problem(Protocol):
    """A partial differential equation with its inputs, its unknowns and a classical solver."""

    coordinates: tuple[str, ...]
    inputs: tuple[str, ...]
    unknowns: tuple[str, ...]

    def sample(
        self, indices: int | Sequence[int], grid: Any, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random inputs ``{name: (n, *grid)}``; sample i is the same function on every grid."""
        ...

    def solve(self, inputs: Mapping[str, Tensor], grid: Any, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """The unknowns ``{name: (n, *grid)}``."""
        ...


@runtime_checkable
class InverseProblem(Protocol):
    """A coefficient of a partial differential equation, and what is measured of its solutions: the data of an inverse problem.

    ``inputs`` names the one coefficient; ``unknowns`` is ``("measurements",)``.
    """

    coordinates: tuple[str, ...]
    inputs: tuple[str, ...]
    unknowns: tuple[str, ...]

    def sample(
        self, indices: int | Sequence[int], grid: Any, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random coefficients ``{name: (n, *grid)}``; sample i is the same function on every grid."""
        ...

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Any = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """``{"measurements": (n, measurement, channel, *sensors), "mask": (n, measurement), True where measured}``.

        The sensors do not depend on the grid. `noise` is the deviation of additive noise relative to a sample's root mean
        square; complex data are two channels.
        """
        ...


def check_sizes(**sizes: int) -> None:
    """Raise unless every named number is a positive whole one."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; give a positive whole number.")


def check_field(x: Tensor, channels: int, dim: int | None, like: Tensor, owner: str) -> None:
    """Raise unless `x` is a field (batch, channel, *grid) that `owner`, with parameters such as `like`, can take.

    Raises:
        ValueError: the rank, the number of channels or the device is wrong. TypeError: the dtype is.
    """
    if (x.ndim < 3) if dim is None else (x.ndim != dim + 2):
        expected = "at least 3" if dim is None else f"{dim + 2}"
        raise ValueError(
            f"x has shape {tuple(x.shape)} with {x.ndim} axes, but {owner} expects {expected}: (batch, channel, *grid)."
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"x has {x.shape[1]} channels but {owner} expects {channels}; "
            "fields are (batch, channel, *grid), so check that the channel axis is second."
        )
    check_placement(x, like, owner)


def check_placement(x: Tensor, like: Tensor, owner: str, name: str = "x") -> None:
    """Raise unless `x` has the device and the dtype of `owner`'s parameters, such as `like`; autocast may mix dtypes."""
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device} but {owner} is on {like.device}; move one with .to(device).")
    if x.dtype != like.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise TypeError(f"{name} is {x.dtype} but {owner} works in {like.dtype}; convert one with .to(dtype).")
