"""Point sets: their coordinates in a box, and their quadrature weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opflow.layers.coordinates import check_inside, is_symbolic
from opflow.typing import Points


def unit_points(coords: Points, domain: Sequence[Sequence[float]]) -> Points:
    """(y_j - low_j) / (high_j - low_j): the box to the unit box, refusing what lies outside by more than rounding.

    Args:
        coords: (..., dim).
        domain: one pair (low, high) per coordinate.

    >>> unit_points(torch.tensor([[0.0], [3.0]]), [(-1.0, 3.0)]).tolist()
    [[0.25], [1.0]]
    """
    check_inside(coords, domain, "coordinates", "build the model for your domain, or leave these points out.")
    low, high = torch.tensor(domain, dtype=coords.dtype, device=coords.device).unbind(-1)
    return (coords - low) / (high - low)


def checked_weights(weights: Tensor, shape: Sequence[int], measure: float | None, like: Tensor) -> Tensor:
    """Quadrature weights (batch or 1, points) over the measure, which they must sum to within 1e-3 of it.

    Args:
        weights: (points,) or (batch or 1, points).
        shape: (batch, points).
        measure: of the domain; None returns the weights as they are.
        like: whose dtype and device the weights take.
    """
    batch, points = shape
    if weights.shape not in ((points,), (1, points), (batch, points)):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; expected {(points,)}, one rule for the whole batch, or {(batch, points)}."
        )
    if measure is not None:
        if not is_symbolic(weights):
            total = weights.sum(-1, dtype=torch.promote_types(weights.dtype, torch.float32))
            if not bool((weights > 0).all()):
                raise ValueError(f"weights go down to {float(weights.min())}; quadrature weights must be positive.")
            if not bool(((total - measure).abs() <= 1e-3 * measure).all()):
                worst = total.flatten()[(total - measure).abs().argmax()]
                raise ValueError(
                    f"the quadrature weights sum to {float(worst):.6g} but the measure of the domain is {measure:.6g}; "
                    "scale them to it, or build with measure= that of your domain."
                )
        weights = weights / measure
    return weights.view(-1, points).to(like)
