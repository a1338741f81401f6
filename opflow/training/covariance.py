"""Standard errors of what a loss' noisy data determine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opflow.batch import unwrapped
from opflow.losses.discrete_time import DiscreteTimeResidual
from opflow.losses.objective import Objective
from opflow.training.jacobian import added_losses, jacobian


@dataclass(frozen=True)
class Covariance:
    """What `gauss_newton_covariance` found.

    Attributes:
        matrix: (k, k), of the wanted parameters in their order.
        noise: the standard deviation of the data, in their units; estimated from the misfit where it was not given.
        effective_parameters: how many of the data's degrees of freedom the fit took, 0 to their number.
        remaining: (k,), what one more Gauss-Newton step would add; far below the errors where training has converged.
    """

    matrix: Tensor
    noise: float
    effective_parameters: float
    remaining: Tensor

    @property
    def standard_errors(self) -> Tensor:
        """(k,), the roots of the diagonal"""
        return self.matrix.diagonal().sqrt()


def gauss_newton_covariance(
    model: nn.Module,
    loss: Objective,
    batch: Any,
    wanted: Sequence[Tensor],
    *,
    data: Sequence[Objective],
    noise: float | None = None,
    rcond: float = 1e-9,
) -> Covariance:
    """The covariance of parameters that minimise |r|^2, from independent noise in the data.

        r = (r_d, r_0),   J = dr/dp,   C = s^2 J^+_d (J^+_d)^T,   J^+ = (J^T J)^-1 J^T = (J^+_d, J^+_0)

    r_d are the rows of the terms that compare with data, of deviation s; the others, the residual of an equation above all, are
    penalties without noise: they hold the network down, but are no observations, so that the usual s^2 (J^T J)^-1 would count them
    as such. This is the sandwich form (J^T J)^-1 J_d^T s^2 J_d (J^T J)^-1 (White 1982; Seber and Wild 1989, section 2.8). The
    weights of a network are marginalised with it; directions that no residual feels are left out by the pseudo-inverse.

    C is the error of the minimiser for small noise. It holds if training has converged, which `remaining` tells, and leaves out the
    bias of a penalty that is too weak to hold the equation up against the noise, or too strong for the network to fulfil it: the
    weight of the residual should be about (deviation of the data / size of the residual that the network leaves without noise)^2.

    Args:
        loss: of scaled sums of objectives, whose `residuals` are made of points; see `jacobian`.
        batch: the step's batch or dict of batches, the same that was trained on.
        wanted: parameters, of one number each: ``unknown.raw`` of an `Unknown`. Times its slope, an error of raw becomes one of c.
        data: those of the losses, the objects before they were scaled and added, that compare with noisy data; their terms are means
            of squares (`DataMisfit` of `mean_squared_error`, a `PDEResidual` at sensors). All stages of a `DiscreteTimeResidual`
            at a point share the noise of its snapshot there.
        noise: s, where it is known; None estimates s^2 = |r_d|^2 / (n - effective parameters).
        rcond: singular values of J below this share of the largest are zero.

    Raises:
        ValueError: a wanted parameter is no single number, or neither the model's nor the loss'; data are no part of the loss, or
            their residuals are not their terms; there are no more data than the network fits freely, so that s cannot be estimated.

    >>> from opflow.batch import Batch
    >>> from opflow.losses.misfit import DataMisfit
    >>> from opflow.losses.norms import mean_squared_error
    >>> line, x = nn.Linear(1, 1, bias=False), torch.ones(8, 1)
    >>> misfit = DataMisfit(mean_squared_error)
    >>> found = gauss_newton_covariance(line, misfit, Batch(coords=x, target=x), [line.weight], data=[misfit], noise=2.0)
    >>> round(float(found.standard_errors**2), 6)  # of the mean of eight numbers of variance four
    0.5
    """
    inner = unwrapped(model)
    parameters = [p for p in (*inner.parameters(), *loss.parameters()) if p.requires_grad]
    columns = _columns(parameters, wanted)
    leaves = list(added_losses(loss))
    missing = [part for part in data if not any(part is leaf for leaf, _ in leaves)]
    if missing or not data:
        raise ValueError(
            f"data names {len(data)} losses, of which {len(missing)} are no part of the loss; give those that compare with "
            "data, the very objects that were added."
        )
    rows, matrices, scales, repeats = [], [], [], []
    for leaf, factor in leaves:
        found, matrix = jacobian(leaf, inner, batch, parameters)
        rows.append(factor * found.double())
        matrices.append(factor * matrix.double())
        # What a deviation of one in the data is in these rows; none in the rows of penalties.
        unit = factor * _scale(leaf, inner, batch, found) if any(part is leaf for part in data) else 0.0
        scales.append(torch.full_like(rows[-1], unit))
        repeats.append(_repeats(leaf, batch, len(found)) if unit else 1)
    r, J, scale = torch.cat(rows), torch.cat(matrices), torch.cat(scales)
    noisy = scale > 0
    sizes = [len(part) for part in rows]
    share = torch.cat([torch.full_like(part, 1 / q) for part, q in zip(rows, repeats, strict=True)])

    def by_datum(values: Tensor) -> Tensor:
        """(rows, k), those of one datum added: they have the same noise."""
        parts = [part.unflatten(0, (-1, q)).sum(1) for part, q in zip(values.split(sizes), repeats, strict=True)]
        return torch.cat(parts)

    # J = Q R, and the singular values and right vectors of J are those of R.
    _, S, Vt = torch.linalg.svd(torch.linalg.qr(J, mode="r").R, full_matrices=False)
    kept = rcond * S[0] < S
    basis = Vt[kept].T / S[kept]  # the columns of J basis are orthonormal
    inverse = (J @ basis) @ basis[columns].T  # the wanted rows of J^+, as columns
    taken = by_datum((share.sqrt() * noisy)[:, None] * (J @ basis))
    effective, n = float(taken.square().sum()), round(float(share[noisy].sum()))
    if noise is None:
        if effective > 0.99 * n:
            raise ValueError(
                f"the fit takes {effective:.1f} of {n} degrees of freedom of the data, so that nothing is left to estimate their "
                "noise from; give noise=, more data, or the penalty more weight."
            )
        noise = math.sqrt(float((share[noisy] * (r[noisy] / scale[noisy]).square()).sum()) / (n - effective))
    spread = by_datum(noise * scale[:, None] * inverse)
    return Covariance(spread.T @ spread, noise, effective, -(inverse.T @ r))


def _columns(parameters: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[int]:
    first, offset = {}, 0
    for p in parameters:
        first[id(p)] = offset
        offset += p.numel()
    for p in wanted:
        if id(p) not in first or p.numel() != 1:
            raise ValueError(
                f"a wanted parameter has shape {tuple(p.shape)} and is {'one' if id(p) in first else 'none'} of those that the "
                "model and the loss hold; give single numbers that were trained, unknown.raw for example."
            )
    if not wanted:
        raise ValueError("no parameter is wanted; give at least one.")
    return [first[id(p)] for p in wanted]


def _repeats(loss: Any, batch: Any, rows: int) -> int:
    """How many rows in a row hold the same datum: every stage of a Runge-Kutta step is compared with one snapshot."""
    if not isinstance(loss, DiscreteTimeResidual):
        return 1
    target = loss.pick(batch).target
    if target is None:
        raise ValueError(
            "a DiscreteTimeResidual has its snapshot as a function, of which the noisy data are not known; give Batch(target=...)."
        )
    return rows // target.numel()


def _scale(loss: Any, model: nn.Module, batch: Any, residuals: Tensor) -> float:
    terms = [float(term.detach()) for term in loss(model, batch).values()]
    if not math.isclose(sum(terms), float(residuals.square().sum()), rel_tol=1e-4, abs_tol=1e-300):
        raise ValueError(
            f"the terms of {type(loss).__name__} add to {sum(terms):.3g} but its residuals have the square {float(residuals.square().sum()):.3g}; "
            "only for means of squares is the deviation of the data known: DataMisfit(mean_squared_error)."
        )
    return math.sqrt(len(terms) / len(residuals))
