"""Gauss-Newton inversion with Levenberg-Marquardt damping: the most probable field and its covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opflow.inversion.estimate import Estimate, Measured, Outcome, concluded
from opflow.inversion.prior import GaussianPrior

ROWS_AT_ONCE = 32
MOST_TRIALS = 15


def gauss_newton(
    forward: Callable[[Tensor], Tensor],
    data: Tensor,
    prior: GaussianPrior,
    *,
    deviation: float | Tensor,
    mask: Tensor | None = None,
    max_steps: int = 20,
    discrepancy: float | None = 1.0,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    check: Callable[[Tensor], Tensor] | None = None,
) -> Estimate:
    """The z that minimises |(F(a(z)) - data) / deviation|^2 / 2 + |z|^2 / 2, one sample.

    z <- z - (J^T J + (1 + lambda) I)^(-1) (J^T r + z),   J = dr/dz,   r = (F(a(z)) - data) / deviation

    with lambda = 0 where that lowers the objective as predicted, and raised until it does otherwise (Levenberg 1944, Marquardt
    1963). One eigendecomposition serves every lambda of a step. J comes from ``forward.linearise`` where there is one, else from
    automatic differentiation. A linear F is solved in one step, and the covariance is then the posterior's.

    Args:
        forward: F, a (n, *grid) -> (n, L, channel, *sensors).
        data: (L, channel, *sensors).
        deviation: of the noise, a number or a tensor that broadcasts against the data.
        mask: (L,) bool, or of the data's shape: True where measured.
        discrepancy: stop as soon as the misfit is at most this many deviations (Morozov's principle); right where the prior is
            only a regularisation. None goes on to the minimum: right where the prior is meant and the covariance is wanted.
        start: z (k,) to begin from; the prior's mean by default.
        tolerance: the gradient's norm that counts as zero. The prior makes the curvature one at least, as far as F is linear, so that
            the minimum is no further than this, in the prior's deviations.
        check: another forward map, for example a finer solver where F is a network: its misfit is reported, and a success that
            it does not confirm becomes ``Outcome.REFUTED``.

    >>> from opflow import Grid
    >>> prior = GaussianPrior.cosine(Grid(9), 3, link="identity")
    >>> observe = lambda a: a[:, None, None, ::2]  # every other node
    >>> estimate = gauss_newton(observe, torch.ones(1, 1, 5), prior, deviation=0.01, discrepancy=None)
    >>> estimate.steps, estimate.reason.name, bool((estimate.field - 1).abs().max() < 1e-3)
    (1, 'MINIMUM', True)
    """
    measured = Measured.of(data[None], deviation, None if mask is None else mask[None])
    z = prior.modes.new_zeros(prior.n_modes)
    if start is not None:
        if start.shape != z.shape or not bool(start.isfinite().all()):
            raise ValueError(f"start has shape {tuple(start.shape)}; give {len(z)} finite coordinates.")
        z = start.detach().to(z)

    def residual(z: Tensor) -> Tensor:
        with torch.no_grad():
            field = prior.field(z)
            if not bool(field.isfinite().all()):  # too long a step: forward maps refuse what is not finite
                return torch.full_like(measured.data, torch.inf).flatten()
            return measured.residual(forward(field[None])).flatten()

    def objective(r: Tensor, z: Tensor) -> float:
        return float(r @ r + z @ z) / 2

    count = float(measured.kept.sum())
    r = residual(z)
    value = objective(r, z)
    history, damping, reason = [float((r @ r / count).sqrt())], 0.0, Outcome.MAX_STEPS
    covariance = None
    if not bool(r.isfinite().all()):
        return concluded(prior, z, measured, forward, None, Outcome.NAN_OR_INF, torch.tensor(history))
    for step in range(max_steps + 1):
        J = _jacobian(forward, prior, z, measured)
        eigenvalues, V = torch.linalg.eigh(J.T @ J)
        eigenvalues = eigenvalues.clamp(min=0.0)
        covariance = (V / (eigenvalues + 1)) @ V.T
        slope = J.T @ r + z
        if float(slope.norm()) <= tolerance:
            reason = Outcome.MINIMUM
            break
        if discrepancy is not None and history[-1] <= discrepancy:
            reason = Outcome.DISCREPANCY
            break
        if step == max_steps:
            break
        for _ in range(MOST_TRIALS):
            move = -V @ ((V.T @ slope) / (eigenvalues + 1 + damping))
            trial = residual(z + move)
            predicted = -float(slope @ move) - float((J @ move).square().sum() + move @ move) / 2
            gain = value - objective(trial, z + move)
            if gain >= 1e-4 * predicted > 0:  # False for NaN too
                break
            damping = max(4 * damping, 1e-3 * float(eigenvalues[-1] + 1))
        else:
            # Rounding hides a decrease near the minimum; there the gradient decides.
            reason = Outcome.MINIMUM if predicted <= 1e-12 * (1 + value) else Outcome.STAGNATED
            break
        z, r, value = z + move, trial, value - gain
        damping = damping / 8 if gain > 0.75 * predicted else damping
        damping = 0.0 if damping < 1e-4 else damping
        history.append(float((r @ r / count).sqrt()))
    return concluded(prior, z, measured, forward, check, reason, torch.tensor(history, dtype=torch.float64), covariance)


def _jacobian(forward: Any, prior: GaussianPrior, z: Tensor, measured: Measured) -> Tensor:
    """dr/dz (numbers, k), zero rows where nothing was measured."""
    if hasattr(forward, "linearise"):
        _, jacobian = forward.linearise(prior.field(z), prior.directions(z))
        J = jacobian.detach().to(torch.float64).flatten(0, -2)
    else:
        J = _differentiated(forward, prior, z)
    if J.shape != (measured.data.numel(), len(z)):
        raise ValueError(
            f"the derivative has shape {tuple(J.shape)}, but there are {measured.data.numel()} numbers and {len(z)} modes."
        )
    rows = torch.where(measured.kept, 1 / measured.deviation, 0.0).flatten()
    return torch.where(rows[:, None] > 0, rows[:, None] * J, 0.0)


def _differentiated(forward: Callable[[Tensor], Tensor], prior: GaussianPrior, z: Tensor) -> Tensor:
    """dF/dz (numbers, k) by reverse mode, which every differentiable map has: some rows at once, as samples of one batch."""
    rows, start, total = [], 0, 1
    while start < total:
        batch = z.expand(ROWS_AT_ONCE, -1).clone().requires_grad_()
        outputs = forward(prior.field(batch)).flatten(1)
        total = outputs.shape[1]
        kept = min(ROWS_AT_ONCE, total - start)
        chosen = outputs[torch.arange(kept), torch.arange(start, start + kept)]
        rows.append(torch.autograd.grad(chosen.sum(), batch)[0][:kept])
        start += kept
    return torch.cat(rows)
