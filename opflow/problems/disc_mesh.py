"""Meshes of a disc with electrodes on its wall."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opflow.mesh import Mesh


def disc_mesh(
    n_electrodes: int, *, radius: float = 1.0, coverage: float = 0.5, start: float = 0.0, sides: int = 2
) -> tuple[Mesh, list[Tensor]]:
    """A disc of rings of points, graded towards the wall, and the sides of its electrodes, the first about the angle `start`."""
    if n_electrodes < 2 or not 0 < coverage < 1 or not radius > 0 or sides < 1:
        raise ValueError(
            f"n_electrodes={n_electrodes}, radius={radius}, coverage={coverage}, sides={sides}; expected at least two electrodes of at least one "
            "side on a share of the wall between 0 and 1."
        )
    from scipy.spatial import Delaunay

    steps = np.linspace(0, 1, sides, endpoint=False)
    pitch = 2 * np.pi / n_electrodes
    places = np.concatenate([coverage * (steps - 0.5), coverage / 2 + (1 - coverage) * steps])
    angles = start + (pitch * (np.arange(n_electrodes)[:, None] + places)).ravel()
    count, spacing, distance = len(angles), 2 * np.pi / len(angles), 1.0
    rings, turn = [np.stack([np.cos(angles), np.sin(angles)], 1)], 0.0
    while True:
        spacing = min(1.25 * spacing, 0.3 * max(coverage, 1 - coverage) * pitch * max(1.0, 4 / sides))
        distance -= 0.9 * spacing
        if distance < 0.6 * spacing:
            break
        around = max(6, round(2 * np.pi * distance / spacing))
        turn += 0.5 + 0.1 / around  # no two rings are aligned
        at = 2 * np.pi * (np.arange(around) + turn) / around
        rings.append(distance * np.stack([np.cos(at), np.sin(at)], 1))
    points = radius * np.concatenate([*rings, np.zeros((1, 2))])
    triangles = torch.from_numpy(Delaunay(points).simplices.astype(np.int64))
    first = torch.arange(sides)
    electrodes = [
        torch.stack([first, first + 1], 1) + 2 * sides * e for e in range(n_electrodes)
    ]  # counter-clockwise; the last electrode ends before the first begins
    return Mesh(torch.from_numpy(points), triangles), [one % count for one in electrodes]
