"""What an inversion returns: the field, and in words why it stopped and how well it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from opflow.inversion.prior import GaussianPrior

# A surrogate's misfit is confirmed where the true map's is at most this many times as large, or as the noise.
CONFIRMED = 1.5


class Outcome(Enum):
    """Why an inversion stopped; the first two claim success, after the misfit was computed once more from the field."""

    MINIMUM = "the gradient of misfit and prior vanished"
    DISCREPANCY = "the misfit reached the level of the noise"
    MAX_STEPS = "the step limit came first; raise max_steps"
    STAGNATED = "no step lowered the objective, although its gradient has not vanished: the derivative may be inexact"
    NAN_OR_INF = "the forward map returned NaN or infinity at the start; check the start and the prior's scale"
    REFUTED = "the checking map does not confirm the misfit: the field exploits errors of the surrogate"

    @property
    def succeeded(self) -> bool:
        """True for the two outcomes that claim success."""
        return self in (Outcome.MINIMUM, Outcome.DISCREPANCY)


@dataclass(frozen=True)
class Estimate:
    """The outcome of one inversion.

    Attributes:
        field: a (*grid).
        coefficients: z (k,), its coordinates in the prior.
        misfit: the root mean square of (F(a) - data) / deviation over what was measured, recomputed from `field` by the map
            that was minimised; 1 is the level of the noise.
        steps: steps taken.
        reason: an `Outcome`.
        message: one sentence.
        history: the misfit at the start and after each step (steps + 1,).
        checked_misfit: the same by the `check=` map, where one was given.
        covariance: (k, k), the Laplace approximation (J^T J + I)^(-1) of the posterior of z, J = d(F / deviation)/dz at the estimate;
            exact where F is linear. None from methods without a Jacobian.
        prior: what the coordinates mean.
    """

    field: Tensor
    coefficients: Tensor
    misfit: float
    steps: int
    reason: Outcome
    message: str
    history: Tensor
    checked_misfit: float | None
    covariance: Tensor | None
    prior: GaussianPrior

    @property
    def succeeded(self) -> bool:
        """Whether the reason claims success."""
        return self.reason.succeeded

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Pointwise credible intervals (lower, upper) of the field, each (*grid), by the Laplace approximation."""
        return self.prior.interval(self.coefficients, self._covariance(), level)

    @property
    def deviation(self) -> Tensor:
        """Half the width of the 68.3 % interval (*grid): the posterior deviation of a where the link is the identity."""
        lower, upper = self.interval(0.6826894921370859)
        return (upper - lower) / 2

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n fields (n, *grid) of the Laplace approximation."""
        root = torch.linalg.cholesky(self._covariance())
        draws = torch.randn(n, len(root), generator=generator, dtype=torch.float64).to(root.device)
        return self.prior.field(self.coefficients + draws @ root.T)

    def _covariance(self) -> Tensor:
        if self.covariance is None:
            raise ValueError("this estimate has no covariance; `gauss_newton` from its coefficients computes one.")
        return self.covariance


@dataclass(frozen=True)
class Measured:
    """Data (n, L, channel, *sensors) with deviations, and which of them count."""

    data: Tensor
    deviation: Tensor
    kept: Tensor

    @classmethod
    def of(cls, data: Tensor, deviation: float | Tensor, mask: Tensor | None) -> Measured:
        """Check data (n, L, ...), deviations that broadcast against them and a mask (n, L) or of the data's shape.

        Raises:
            ValueError: nothing is measured, a measured number is not finite, or a deviation is not positive.
        """
        data = data.detach().to(torch.float64)
        kept = torch.ones_like(data, dtype=torch.bool)
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != data.shape[: mask.ndim]:
                raise ValueError(
                    f"mask is {mask.dtype} of shape {tuple(mask.shape)} and the data have shape {tuple(data.shape)}; give a bool "
                    "for each measurement, or for each number."
                )
            kept = mask.reshape(*mask.shape, *[1] * (data.ndim - mask.ndim)).expand(data.shape)
        if not bool(kept.flatten(1).any(1).all()):
            raise ValueError("the mask leaves nothing measured; keep at least one measurement of every sample.")
        bad = int((~data.isfinite() & kept).sum())
        if bad:
            raise ValueError(
                f"{bad} of the measured numbers are NaN or infinite; name what is missing in mask=, False where nothing was measured."
            )
        scale = torch.as_tensor(deviation, dtype=torch.float64, device=data.device)
        try:
            scale = scale.expand(data.shape)
        except RuntimeError:
            raise ValueError(
                f"deviation has shape {tuple(scale.shape)}, which does not broadcast against data {tuple(data.shape)}."
            ) from None
        if not bool((scale[kept] > 0).all() and scale[kept].isfinite().all()):
            raise ValueError(
                "deviation is not positive and finite everywhere; give the standard deviation of the noise, and without noise that "
                "of the error of the discretisation."
            )
        return cls(torch.where(kept, data, 0.0), torch.where(kept, scale, 1.0), kept)

    def residual(self, predicted: Tensor, rows: Tensor | None = None) -> Tensor:
        """(predicted - data) / deviation, zero where nothing was measured: (n, L, channel, *sensors)"""
        data, deviation, kept = (t if rows is None else t[rows] for t in (self.data, self.deviation, self.kept))
        if predicted.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"the forward map returned {tuple(predicted.shape)} but the data are {tuple(data.shape)}: (n, L, channel, *sensors)."
            )
        return torch.where(kept, (predicted.to(torch.float64) - data) / deviation, 0.0)

    def misfit(self, residual: Tensor, rows: Tensor | None = None) -> Tensor:
        """The root mean square over what was measured: (n, L, ...) -> (n,)"""
        kept = self.kept if rows is None else self.kept[rows]
        return (residual.flatten(1).square().sum(1) / kept.flatten(1).sum(1)).sqrt()


def concluded(
    prior: GaussianPrior,
    z: Tensor,
    measured: Measured,
    forward: Callable[[Tensor], Tensor],
    check: Callable[[Tensor], Tensor] | None,
    reason: Outcome,
    history: Tensor,
    covariance: Tensor | None = None,
) -> Estimate:
    """The estimate at z (k,) of one sample, with its misfit computed once more and checked."""
    with torch.no_grad():
        field = prior.field(z)
        misfit = float(measured.misfit(measured.residual(forward(field[None]))))
        checked = None if check is None else float(measured.misfit(measured.residual(check(field[None]))))
    if checked is not None and reason.succeeded and not checked <= CONFIRMED * max(misfit, 1.0):
        reason = Outcome.REFUTED
    steps = len(history) - 1
    also = "" if checked is None else f", {checked:.3g} by the checking map"
    message = f"misfit {misfit:.3g} of the noise{also} after {steps} steps: {reason.value}."
    return Estimate(field, z, misfit, steps, reason, message, history, checked, covariance, prior)
