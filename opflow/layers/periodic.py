"""Coordinates of a box as features that are periodic where the solution is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.layers.coordinates import as_box


class PeriodicFeatures(nn.Module):
    """y_j -> (cos 2 pi k s_j, sin 2 pi k s_j), k = 1..K_j, s_j = (y_j - low_j) / (high_j - low_j); y_j scaled to [-1, 1] where K_j = 0.

    A function of these features is periodic with all its derivatives   (Dong and Ni 2021, "A method for representing periodic functions").

    Args:
        domain: (low, high) per coordinate.
        harmonics: K_j per coordinate; 0 where the solution is not periodic.

    >>> PeriodicFeatures(((0.0, 1.0), (-1.0, 1.0)), (0, 2))(torch.zeros(5, 2)).shape
    torch.Size([5, 5])
    """

    def __init__(self, domain: Sequence[Sequence[float]], harmonics: Sequence[int]) -> None:
        super().__init__()
        self.domain = as_box(domain, len(domain))
        self.harmonics = tuple(harmonics)
        if len(self.harmonics) != len(self.domain) or any(not isinstance(k, int) or k < 0 for k in self.harmonics):
            raise ValueError(
                f"harmonics is {tuple(harmonics)}; give a whole number >= 0 for each of the {len(self.domain)} coordinates."
            )
        self.out_features = sum(2 * k if k else 1 for k in self.harmonics)

    @property
    def conditions(self) -> tuple[str, ...]:
        """ "periodic" where a coordinate is."""
        return ("periodic",) if any(self.harmonics) else ()

    def forward(self, y: Tensor) -> Tensor:
        """(..., dim) -> (..., out_features)"""
        if y.shape[-1] != len(self.domain):
            raise ValueError(
                f"the coordinates have shape {tuple(y.shape)} but PeriodicFeatures expects {len(self.domain)} along the last axis."
            )
        features = []
        for c, (low, high), count in zip(y.unbind(-1), self.domain, self.harmonics, strict=True):
            if count == 0:
                features.append((2 * c - (low + high)) / (high - low))
            for k in range(1, count + 1):
                angle = (2 * torch.pi * k / (high - low)) * (c - low)
                features += [torch.cos(angle), torch.sin(angle)]
        return torch.stack(features, -1)

    def extra_repr(self) -> str:
        """Box and harmonics, for `print(model)`."""
        return f"{self.domain}, {self.harmonics}"
