"""How far a few steps of preconditioned conjugate gradients go: the loss of learned preconditioners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.objective import Objective
from opflow.solvers.linear_system import dot

SMALLEST = 1e-15  # of E_m / E_0: what rounding leaves of it; beyond there is no gradient, so take fewer steps


class EnergyReduction(Objective):
    """(1 / 2m) log E_m / E_0 after m steps of conjugate gradients on A x = A x*, from x_0 = 0, with the preconditioner M:

        E_k = (x_k - x*).A (x_k - x*),   E_(k+1) = E_k - (r_k.z_k)^2 / p_k.A p_k,   z_k = M r_k

    so that its exponential is the mean factor by which a step reduces the error in the energy norm. The gradient goes through these
    steps to the parameters of M. With `after`, so many steps with the same M come before, without a gradient: what they leave of the
    error is what this M is poor at, which a few steps from a random error would not show. Averaged over the batch. Multiplying M by a number changes nothing, and where
    E_0 = 0 there is nothing to reduce: the value is 0.

    The batch's target is x* (batch, 1, *grid): errors rich in what M is poor at are the ones to learn from.

    Args:
        operator: A, with `apply(x)` for x (batch, *grid) and a `dtype`; or a function of the batch that returns one.
        preconditioner: a function of the model that returns M with `setup(A)` and `apply(r)`, say
            ``lambda model: Multigrid(coefficients=model)``.
        steps: m.
        after: steps before, a number or a function of the batch.

    Raises:
        ValueError: the batch has no target (batch, 1, *grid), or m is not positive.

    >>> from opflow.solvers.linear_operator import DenseOperator
    >>> class Identity:
    ...     setup = apply = lambda self, r: r
    >>> loss = EnergyReduction(DenseOperator(torch.diag(torch.tensor([1.0, 1.0, 3.0]))), lambda model: Identity(), steps=1)
    >>> value = loss(nn.Identity(), Batch(target=torch.tensor([[[1.0, 1.0, 1.0]]])))["energy"]
    >>> round(float(value.mul(2).exp()), 4)  # 1 - 11^2 / (29 * 5)
    0.1655
    """

    def __init__(
        self,
        operator: Any | Callable[[Batch], Any],
        preconditioner: Callable[[nn.Module], Any],
        steps: int = 4,
        *,
        after: int | Callable[[Batch], int] = 0,
        name: str = "energy",
        on: str | None = None,
    ) -> None:
        super().__init__(on=on)
        if steps < 1:
            raise ValueError(f"steps is {steps}; give a positive number of steps of conjugate gradients.")
        self.operator, self.preconditioner, self.steps, self.after, self.name = (
            operator,
            preconditioner,
            steps,
            after,
            name,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The loss under its name."""
        return {self.name: self.rates(model, batch).mean()}

    def rates(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """(1 / 2m) log E_m / E_0 of every sample, (batch,)"""
        part = self.pick(batch)
        if part.target is None or part.target.ndim < 3 or part.target.shape[1] != 1:
            shape = None if part.target is None else tuple(part.target.shape)
            raise ValueError(
                f"the batch's target has shape {shape}; give the solutions x* (batch, 1, *grid) to be found."
            )
        A: Any = self.operator if hasattr(self.operator, "apply") else self.operator(part)
        M = self.preconditioner(model)
        error = part.target[:, 0].to(A.dtype)
        before = self.after(part) if callable(self.after) else self.after
        if before:
            with torch.no_grad():
                error = _steps(A, M.setup(A), error, before)[0]
        M.setup(A)
        first, left = dot(error, A.apply(error)), _steps(A, M, error, self.steps)[1]
        left = torch.where(first > 0, left / _positive(first), 1.0)
        return left.clamp(min=SMALLEST).log() / (2 * self.steps)

    def extra_repr(self) -> str:
        """The number of steps, for print(loss)."""
        return f"steps={self.steps}"


def _steps(A: Any, M: Any, error: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The error and its energy after so many steps of conjugate gradients, (batch, *grid) and (batch,)"""
    r = A.apply(error)
    energy = dot(error, r)
    p, last, shape = torch.zeros_like(r), torch.ones_like(energy), (-1, *[1] * (r.ndim - 1))
    for _ in range(steps):
        z = M.apply(r)
        rz = dot(r, z)
        p = z + (rz / last).view(shape) * p
        Ap = A.apply(p)
        alpha = rz / _positive(dot(p, Ap))
        energy, last = energy - alpha * rz, _positive(rz)
        error, r = error - alpha.view(shape) * p, r - alpha.view(shape) * Ap
    return error, energy


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)
