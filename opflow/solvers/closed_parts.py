"""The parts of a domain that nothing holds: there an operator annihilates constants."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opflow.kernels.stencil.stencil import Stencil

OUTSIDE = -1


def closed_parts(stencil: Stencil, mask: Tensor | None, anchored: Tensor) -> Tensor | None:
    """Labels (batch or 1, *shape): 1, 2, ... on the connected parts without an anchored point, 0 on the others, -1 outside; None if all are 0.

    Args:
        anchored: (batch or 1, *shape), where the row of A sums to more than zero.
    """
    shape = stencil.shape
    couplings = stencil.upper if stencil.corners is None else (*stencil.upper, *stencil.corners)
    sizes = [couplings[0].shape[0], anchored.shape[0], 1 if mask is None else mask.shape[0]]
    if 0 in sizes:  # no operator
        return None
    batch = max(sizes)
    if mask is None and _all_coupled(stencil):
        if bool(anchored.flatten(1).any(1).all()):
            return None
        held = anchored.flatten(1).any(1).view(-1, *[1] * len(shape))
        return (~held).long().expand(batch, *shape)
    labels = torch.zeros(batch, *shape, dtype=torch.int64)
    for i in range(batch):
        whole = np.ones(shape, dtype=bool)
        inside = whole if mask is None else mask[min(i, mask.shape[0] - 1)].cpu().numpy()
        parts, number = _connected_parts(stencil, min(i, couplings[0].shape[0] - 1), inside)
        fixed = np.unique(parts[anchored[min(i, anchored.shape[0] - 1)].cpu().numpy() & inside])
        closed = np.setdiff1d(np.arange(1, number + 1), fixed)
        renamed = np.zeros(number + 1, dtype=np.int64)
        renamed[closed] = np.arange(1, len(closed) + 1)
        labels[i] = torch.from_numpy(np.where(inside, renamed[parts], OUTSIDE))
    return labels.to(stencil.diagonal.device) if bool(labels.any()) else None


def part_means(x: Tensor, labels: Tensor, number: int) -> Tensor:
    """On every one of `number` closed parts the mean of x (batch, *shape), on the outside x itself, 0 elsewhere."""
    outside = labels == OUTSIDE
    if number == 0:
        return torch.where(outside, x, 0.0)
    flat, label = x.flatten(1), labels.expand(x.shape[0], *labels.shape[1:]).flatten(1)
    index = label.clamp(min=0)
    sums = flat.new_zeros(flat.shape[0], number + 1).scatter_add_(1, index, torch.where(label > 0, flat, 0.0))
    counts = flat.new_zeros(flat.shape[0], number + 1).scatter_add_(1, index, (label > 0).to(flat.dtype))
    means = (sums / counts.clamp(min=1)).gather(1, index).view_as(x)
    return torch.where(outside, x, torch.where(labels > 0, means, 0.0))


def _all_coupled(stencil: Stencil) -> bool:
    """Whether every pair of neighbours is coupled, so that the grid is one part."""
    for d, (w, n) in enumerate(zip(stencil.upper, stencil.shape, strict=True)):
        if n > 1 and not bool((w.narrow(d + 1, 0, n - 1) != 0).all()):
            return False
    return True


def _connected_parts(stencil: Stencil, number: int, inside: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels from 1 on of the connected parts inside, 0 outside."""
    pairs = []
    whole = True
    place = np.arange(inside.size).reshape(inside.shape)
    for d, w in enumerate(stencil.upper):
        coupled = w[number].detach().cpu().numpy() != 0
        neighbours = inside & np.roll(inside, -1, d)
        if not stencil.periodic[d]:
            neighbours[(slice(None),) * d + (-1,)] = False
        whole = whole and not stencil.periodic[d] and bool((coupled == neighbours).all())
        pairs.append((coupled, d))
    if whole and stencil.corners is None:  # then the mask alone says it, ten times faster
        from scipy.ndimage import label

        parts, count = label(inside)
        return parts.astype(np.int64), int(count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = [(place[coupled], np.roll(place, -1, d)[coupled]) for coupled, d in pairs]
    for shift, w in zip(((-1, -1), (-1, 1)), stencil.corners or (), strict=False):
        coupled = w[number].detach().cpu().numpy() != 0
        here = place if shift == (-1, -1) else np.roll(place, -1, 0)
        there = np.roll(place, (-1, -1), (0, 1)) if shift == (-1, -1) else np.roll(place, -1, 1)
        ends.append((here[coupled], there[coupled]))
    i, j = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(inside.size, inside.size))
    count, parts = connected_components(graph, directed=False)
    return np.where(inside, parts.reshape(inside.shape) + 1, 0), int(count)
