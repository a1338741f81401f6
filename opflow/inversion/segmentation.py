"""Images of a conductivity cut into water, resistive and conductive inclusions."""

from __future__ import annotations

import torch
from torch import Tensor


def otsu_thresholds(values: Tensor, *, bins: int = 256) -> tuple[float, float]:
    """The two thresholds that cut values into three classes of the largest variance between classes   (Otsu 1979).

    Between the thresholds t_1 < t_2, sum_c w_c (mu_c - mu)^2 is largest over all pairs of bins' edges, w_c the shares and mu_c the means.

    Args:
        values: any shape, finite, not all equal.
        bins: of the histogram.

    >>> lower, upper = otsu_thresholds(torch.tensor([0.0, 0.1, 5.0, 5.1, 9.0, 9.1]))
    >>> 0.1 < lower < 5.0 and 5.1 < upper < 9.0
    True
    """
    values = values.detach().flatten().double().cpu()
    if not len(values) or not bool(values.isfinite().all()) or bool(values.min() == values.max()):
        raise ValueError(
            f"{len(values)} values are empty, not finite or all equal; three classes cannot be told apart."
        )
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, bins, low, high)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    share = torch.cat([torch.zeros(1), counts.cumsum(0)])  # up to an edge
    first = torch.cat([torch.zeros(1), (counts * (middle - values.mean())).cumsum(0)])

    def between(weight: Tensor, moment: Tensor) -> Tensor:
        return torch.where(weight > 0, moment.square() / weight.clamp(min=1), torch.zeros_like(weight))

    inner_share, inner_moment = share - share[:, None], first - first[:, None]  # from edge i to edge j
    total = (
        between(share, first)[:, None]
        + between(inner_share, inner_moment)
        + between(share[-1] - share, first[-1] - first)
    )
    allowed = (share[:, None] > 0) & (inner_share > 0) & (share < share[-1])
    best = int(torch.where(allowed, total, -torch.inf).argmax())
    i, j = divmod(best, bins + 1)
    return float(edges[i]), float(edges[j])


def segment_conductivity(image: Tensor, inside: Tensor | None = None) -> Tensor:
    """0 water, 1 resistive, 2 conductive, as an image (height, width) of a conductivity's change says by Otsu's thresholds.

    The most frequent class is water; a class below it is resistive, one above it conductive. Three classes are always found, so that
    an image of one inclusion is given a second one: see the docs for what that costs.

    Args:
        image: (height, width).
        inside: the pixels that count, bool; the others are water. None for all.

    >>> segment_conductivity(torch.tensor([[0.0, 0.01, 0.02, -1.0, 2.0]])).tolist()
    [[0, 0, 0, 1, 2]]
    """
    inside = torch.ones_like(image, dtype=torch.bool) if inside is None else inside
    if inside.shape != image.shape:
        raise ValueError(f"the image has shape {tuple(image.shape)} and inside {tuple(inside.shape)}; they must agree.")
    lower, upper = otsu_thresholds(image[inside])
    level = (image > lower).long() + (image > upper)
    water = int(torch.bincount(level[inside], minlength=3).argmax())
    classes = torch.where(level < water, 1, torch.where(level > water, 2, 0))
    return torch.where(inside, classes, torch.zeros_like(classes))
