"""The most probable fields of many samples at once, by limited-memory BFGS through a network or a solver."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opflow.inversion.estimate import Estimate, Measured, Outcome, concluded
from opflow.inversion.prior import GaussianPrior
from opflow.typing import check_sizes

_ARMIJO = 1e-4
_CURVATURE = 1e-10  # pairs with s.y below this share of |s| |y| say nothing and are left out
_MOST_TRIALS = 20


def map_estimate(
    forward: Callable[[Tensor], Tensor],
    data: Tensor,
    prior: GaussianPrior,
    *,
    deviation: float | Tensor,
    mask: Tensor | None = None,
    max_steps: int = 100,
    discrepancy: float | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-3,
    history: int = 10,
    check: Callable[[Tensor], Tensor] | None = None,
) -> list[Estimate]:
    """For each sample the z that minimises |(F(a(z)) - data) / deviation|^2 / 2 + |z|^2 / 2.

    One evaluation of F serves all samples that are still under way; each has its own BFGS memory (Nocedal and Wright 2006, algorithm
    7.4) and its own backtracking by quadratic interpolation. F needs a gradient only, so that it may be a network, whose errors the
    minimisation then exploits: give the true solver as `check`, and trust what it confirms.

    Args:
        forward: F, a (n, *grid) -> (n, L, channel, *sensors), differentiable by autograd, samples independent of each other.
        data: (n, L, channel, *sensors).
        deviation: of the noise, a number or a tensor that broadcasts against the data.
        mask: (n, L) bool, or of the data's shape: True where measured.
        discrepancy: stop a sample as soon as its misfit is at most this many deviations; None goes on to the minimum.
        start: z (n, k) to begin from; the prior's mean by default.
        tolerance: the gradient's norm that counts as zero. The prior makes the curvature one at least, as far as F is linear, so that
            the minimum is no further than this, in the prior's deviations.
        history: pairs of steps and gradients kept.
        check: as in `gauss_newton`; called once, with all fields.

    >>> from opflow import Grid
    >>> prior = GaussianPrior.cosine(Grid(9), 3, link="identity")
    >>> observe = lambda a: a[:, None, None, ::2]  # every other node
    >>> estimates = map_estimate(observe, torch.ones(2, 1, 1, 5), prior, deviation=0.01)
    >>> [e.reason.name for e in estimates], bool((estimates[1].field - 1).abs().max() < 1e-3)
    (['MINIMUM', 'MINIMUM'], True)
    """
    check_sizes(history=history)
    measured = Measured.of(data, deviation, mask)
    n, k = len(data), prior.n_modes
    z = prior.modes.new_zeros(n, k)
    if start is not None:
        if start.shape != z.shape or not bool(start.isfinite().all()):
            raise ValueError(f"start has shape {tuple(start.shape)}; give finite coordinates ({n}, {k}).")
        z = start.detach().to(z).clone()

    def evaluate(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The objective (m,), its gradient (m, k) and the misfit (m,) of the samples `rows`."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            r = measured.residual(forward(prior.field(z)), rows)
            value = r.flatten(1).square().sum(1) / 2 + z.square().sum(1) / 2
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient, measured.misfit(r.detach(), rows)

    everything = torch.arange(n, device=z.device)
    value, gradient, misfit = evaluate(z, everything)
    reasons: list[Outcome | None] = [None if ok else Outcome.NAN_OR_INF for ok in value.isfinite().tolist()]
    histories = [[m] for m in misfit.tolist()]
    pairs: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # steps and gradient changes (n, k), 1 / s.y (n,) with 0 for a pair left out

    for _ in range(max_steps + 1):
        for i, (g, m) in enumerate(zip(gradient.norm(dim=1).tolist(), misfit.tolist(), strict=True)):
            if reasons[i] is None and g <= tolerance:
                reasons[i] = Outcome.MINIMUM
            elif reasons[i] is None and discrepancy is not None and m <= discrepancy:
                reasons[i] = Outcome.DISCREPANCY
        rows = torch.tensor([i for i, reason in enumerate(reasons) if reason is None], dtype=torch.long).to(z.device)
        if not len(rows) or len(histories[int(rows[0])]) > max_steps:
            break
        direction = _direction(gradient[rows], [(s[rows], y[rows], rho[rows]) for s, y, rho in pairs])
        found = _backtrack(evaluate, z, value, gradient, direction, rows)
        moved, z_new, value_new, gradient_new, misfit_new = found
        for i, ok in zip(rows.tolist(), moved.tolist(), strict=True):
            if not ok:  # at rounding level no step lowers the objective: then the gradient decides
                small = float(gradient[i].square().sum()) <= 1e-12 * (1 + float(value[i]))
                reasons[i] = Outcome.MINIMUM if small else Outcome.STAGNATED
        rows = rows[moved]
        s, y = torch.zeros_like(z), torch.zeros_like(z)
        s[rows], y[rows] = z_new[moved] - z[rows], gradient_new[moved] - gradient[rows]
        sy = (s * y).sum(1)
        curved = sy > _CURVATURE * s.norm(dim=1) * y.norm(dim=1)
        pairs = [*pairs, (s, y, torch.where(curved, 1 / torch.where(curved, sy, 1.0), 0.0))][-history:]
        z[rows], value[rows], gradient[rows] = z_new[moved], value_new[moved], gradient_new[moved]
        misfit[rows] = misfit_new[moved]
        for i in rows.tolist():
            histories[i].append(float(misfit[i]))
    return _conclude(prior, z, measured, forward, check, reasons, histories)


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """-H g by the two-loop recursion, each sample with its own pairs: (m, k)"""
    q, shares = gradient.clone(), []
    for s, y, rho in reversed(pairs):
        share = rho * (s * q).sum(1)
        q = q - share[:, None] * y
        shares.append(share)
    base = 1 / gradient.norm(dim=1).clamp(min=1.0)  # before any curvature is known: a step of length at most one
    for s, y, rho in pairs:  # the newest that counts wins
        base = torch.where(rho > 0, (s * y).sum(1) / y.square().sum(1).clamp(min=1e-300), base)
    q = base[:, None] * q
    for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
        q = q + s * (share - rho * (y * q).sum(1))[:, None]
    return -q


def _backtrack(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    z: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
    rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Armijo's condition for every sample by itself: which moved (m,), and z, value, gradient, misfit there."""
    slope = (gradient[rows] * direction).sum(1)
    uphill = slope >= 0  # rounding, or a memory that misleads
    direction = torch.where(uphill[:, None], -gradient[rows], direction)
    slope = torch.where(uphill, -gradient[rows].square().sum(1), slope)
    best = [z[rows].clone(), value[rows].clone(), gradient[rows].clone(), torch.zeros_like(slope)]
    moved = torch.zeros_like(rows, dtype=torch.bool)
    step = torch.ones_like(slope)
    for _ in range(_MOST_TRIALS):
        open_ = (~moved).nonzero().flatten()
        if not len(open_):
            break
        trial = z[rows[open_]] + step[open_, None] * direction[open_]
        found, slopes, misfits = evaluate(trial, rows[open_])
        bound = value[rows[open_]] + _ARMIJO * step[open_] * slope[open_]
        # Where rounding hides the decrease, the slope tells of it: Hager and Zhang's approximate condition. NaN is False.
        level = found <= value[rows[open_]] + 1e-12 * value[rows[open_]].abs()
        flatter = (slopes * direction[open_]).sum(1) <= (2 * _ARMIJO - 1) * slope[open_]
        accepted = (found <= bound) | (level & flatter)
        chosen = open_[accepted]
        for kept, new in zip(best, (trial, found, slopes, misfits), strict=True):
            kept[chosen] = new[accepted]
        moved[chosen] = True
        t, excess = step[open_], found - value[rows[open_]] - step[open_] * slope[open_]
        quadratic = -slope[open_] * t.square() / (2 * excess)
        quadratic = torch.where(quadratic.isfinite(), quadratic, 0.1 * t)
        step[open_] = torch.minimum(torch.maximum(quadratic, 0.1 * t), 0.5 * t)
    return moved, best[0], best[1], best[2], best[3]


def _conclude(
    prior: GaussianPrior,
    z: Tensor,
    measured: Measured,
    forward: Callable[[Tensor], Tensor],
    check: Callable[[Tensor], Tensor] | None,
    reasons: list[Outcome | None],
    histories: list[list[float]],
) -> list[Estimate]:
    """One estimate a sample; the true map is called once, for all fields."""
    with torch.no_grad():
        fields = prior.field(z)
        predicted = forward(fields)
        checked = None if check is None else check(fields)
    estimates = []
    for i, reason in enumerate(reasons):
        own = Measured(*(t[i : i + 1] for t in (measured.data, measured.deviation, measured.kept)))

        def known(values: Tensor, i: int = i) -> Callable[[Tensor], Tensor]:
            return lambda _: values[i : i + 1]

        truth = None if checked is None else known(checked)
        history = torch.tensor(histories[i], dtype=torch.float64)
        estimates.append(concluded(prior, z[i], own, known(predicted), truth, reason or Outcome.MAX_STEPS, history))
    return estimates
