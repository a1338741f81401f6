"""Relative errors of fields: quadrature-weighted, per sample and channel, then averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.derivatives.grid import GridDerivatives
from opflow.typing import Field, Scalar


def relative_l2(prediction: Field, target: Field, weight: Tensor | None = None) -> Scalar:
    """mean over samples and channels of ||p - t|| / ||t||, with ||v||^2 = sum_j w_j v_j^2.

    Args:
        prediction, target: (batch, channel, *grid), of one shape.
        weight: quadrature weights (*grid); None weighs all points alike.

    >>> relative_l2(torch.tensor([[[1.0, 1.1]]]), torch.tensor([[[1.0, 1.0]]])).item()  # doctest: +ELLIPSIS
    0.0707...
    """
    return relative_errors(prediction, target, weight).mean()


def relative_errors(prediction: Field, target: Field, weight: Tensor | None = None) -> Tensor:
    """||p - t|| / ||t|| of each sample and channel, (batch, channel); see `relative_l2`."""
    _check(prediction, target)
    error, size = _norm([prediction - target], weight), _norm([target], weight)
    return error / size.clamp(min=torch.finfo(size.dtype).tiny)


def relative_l1(prediction: Field, target: Field, weight: Tensor | None = None) -> Scalar:
    """mean over samples and channels of ||p - t||_1 / ||t||_1, with ||v||_1 = sum_j w_j |v_j|.

    Args:
        prediction, target: (batch, channel, *grid), of one shape.
        weight: quadrature weights (*grid); None weighs all points alike.

    >>> round(relative_l1(torch.tensor([[[1.0, 1.1]]]), torch.tensor([[[1.0, 1.0]]])).item(), 6)
    0.05
    """
    return relative_l1_errors(prediction, target, weight).mean()


def relative_l1_errors(prediction: Field, target: Field, weight: Tensor | None = None) -> Tensor:
    """||p - t||_1 / ||t||_1 of each sample and channel, (batch, channel); see `relative_l1`."""
    _check(prediction, target)
    error, size = (
        (v.abs() if weight is None else v.abs() * weight).flatten(2).sum(2) for v in (prediction - target, target)
    )
    return error / size.clamp(min=torch.finfo(size.dtype).tiny)


def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Scalar:
    """mean over samples and channels of sum_j w_j (p_j - t_j)^2 / sum_j w_j, the error of values at points or of fields.

    Args:
        prediction, target: (batch, channel, *grid) or (batch, points, channel), of one shape.
        weight: quadrature weights, (*grid); None weighs all points alike.

    >>> mean_squared_error(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[1.0, 1.0]]])).item()
    2.0
    """
    _check(prediction, target)
    squares = (prediction - target).square()
    return squares.mean() if weight is None else (squares * (weight / weight.mean())).mean()


def relative_h1(prediction: Field, target: Field, weight: Tensor | None = None, *, grid: Grid) -> Scalar:
    """mean over samples and channels of |p - t|_1 / |t|_1, with |v|_1^2 = ||v||^2 + ||grad v||^2.

    Gradients are spectral, with the wavenumbers of the grid's physical lengths, on its periodic axes and finite
    differences of second order on the others: an error norm of a non-periodic field must not differentiate across the
    jump between its two ends.

    Args:
        prediction, target: (batch, channel, *grid).
        weight: quadrature weights (*grid); None takes the grid's own.
        grid: extent and layout; its shape must be that of the fields.
    """
    _check(prediction, target)
    grid.check(target, "the target")
    if weight is None:
        weight = grid.quadrature_weights(dtype=target.dtype, device=target.device)
    derivatives = GridDerivatives(grid)
    difference = derivatives(prediction - target)
    reference = derivatives(target)
    error = _norm([difference.value, *difference.gradient()], weight)
    size = _norm([reference.value, *reference.gradient()], weight)
    return (error / size.clamp(min=torch.finfo(size.dtype).tiny)).mean()


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"the prediction has shape {tuple(prediction.shape)} but the target {tuple(target.shape)}; they must agree, "
            "since broadcasting would average over the wrong pairs."
        )


def _norm(parts: list[Tensor], weight: Tensor | None) -> Tensor:
    # vector_norm has the gradient 0 at 0, where the root of a sum of squares has none.
    values = torch.stack(parts, dim=-1)
    if weight is not None:
        values = values * weight.sqrt()[..., None]
    return torch.linalg.vector_norm(values.flatten(2), dim=2)
