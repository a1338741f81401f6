"""Conservation laws along their characteristics, as a loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.residual import PDEResidual
from opflow.losses.unknown import Unknown
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.typing import Derivatives

Speed = Callable[[Tensor], Tensor] | float | Tensor


@dataclass(frozen=True)
class CharacteristicForm:
    """x_t = c(w), w_t = nu w_xx along the particles s of w_t + c(w) w_x = nu w_xx, where

    w_xx = (w_ss - w_x x_ss) / x_s^2,   w_x = w_s / x_s.

    Attributes:
        speed: c, a number or a function of w.
        viscosity: nu >= 0.
    """

    speed: Speed
    viscosity: float | Tensor = 0.0

    coordinates: ClassVar[tuple[str, ...]] = ("t", "s")
    unknowns: ClassVar[tuple[str, ...]] = ("position", "value")

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"position": x_t - c(w), "value": w_t - nu w_xx}"""
        x, w = u["position"], u["value"]
        speed = self.speed(w.value) if callable(self.speed) else self.speed
        residual = w.d("t")
        if isinstance(self.viscosity, Tensor) or self.viscosity != 0:
            stretch = x.d("s")
            slope = w.d("s") / stretch
            residual = residual - self.viscosity * (w.d("ss") - slope * x.d("ss")) / stretch**2
        return {"position": x.d("t") - speed, "value": residual}


class LagrangianResidual(PDEResidual):
    """mean (x_t - c(w))^2 + mean (w_t - nu w_xx)^2 over labels, for w_t + c(w) w_x = nu w_xx   (Mojgani, Balajewicz and Hassanzadeh 2023, eqs. 6 and 10).

    For `models.LagrangianPINN`, or any model (t, xi) -> (position, value). Everything of `PDEResidual` holds. Where characteristics
    cross, x_xi <= 0, `crossing` says it, and `point_sizes`, which is asked between steps of training, warns.

    Args:
        speed: c(w), a function of w or a number: ``lambda w: w`` is Burgers' equation.
        viscosity: nu >= 0.
        unknowns: "viscosity", or "speed" where it is a number, that training has to find.
        method: of `AutogradDerivatives`.
        on: which batch of a dict of batches.
        chunk: see `PDEResidual`.

    >>> loss = LagrangianResidual(lambda w: w, viscosity=0.01)
    >>> labels = Batch(coords=torch.rand(5, 2, dtype=torch.float64))
    >>> moving = lambda y: torch.stack([y[..., 1] + y[..., 0], y[..., 1].sin()], -1)
    >>> sorted(loss(moving, labels))
    ['position', 'value']
    """

    def __init__(
        self,
        speed: Speed,
        viscosity: float | Tensor = 0.0,
        unknowns: Mapping[str, Unknown] | None = None,
        *,
        method: str | None = "taylor",
        on: str | None = None,
        chunk: int | None = None,
    ) -> None:
        if not isinstance(viscosity, Tensor) and not viscosity >= 0:
            raise ValueError(
                f"viscosity is {viscosity}; diffusion backwards in time is not well posed, give a number >= 0."
            )
        if callable(speed) and unknowns and "speed" in unknowns:
            raise ValueError(
                "the unknown 'speed' is a number, but a function was given; let the function hold its own parameters."
            )
        super().__init__(
            CharacteristicForm(speed, viscosity),
            AutogradDerivatives(method=method),  # type: ignore[arg-type]
            unknowns,
            on=on,
            chunk=chunk,
        )
        if isinstance(speed, nn.Module):
            self.speed = speed  # its parameters are this loss's

    def crossing(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> tuple[float, float, float] | None:
        """The earliest of the batch's points at which x_xi <= 0 as (t, xi, x_xi); None where there is none."""
        part = self.pick(batch)
        found = self._method(model, part)(model, part)
        stretch = found["position"].d("s").detach()
        assert part.coords is not None
        crossed = stretch <= 0
        if not bool(crossed.any()):
            return None
        t, label = part.coords.detach().unbind(-1)
        first = int(torch.where(crossed, t, torch.inf).argmin())
        return float(t.flatten()[first]), float(label.flatten()[first]), float(stretch.flatten()[first])

    def point_sizes(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """As of `PDEResidual`; warns where characteristics cross."""
        crossed = self.crossing(model, batch)
        if crossed is not None:
            t, label, stretch = crossed
            warnings.warn(
                f"characteristics cross at t = {t:.4g}, label {label:.4g} (x_xi = {stretch:.3g}): a shock has formed there, or the network is "
                "not trained yet. If it stays, end before it, add viscosity, or train in Eulerian coordinates.",
                RuntimeWarning,
                stacklevel=2,
            )
        return super().point_sizes(model, batch)
