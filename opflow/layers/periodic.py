"""Coordinates of a box as features that are periodic where the solution is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.layers.coordinates import as_box


class PeriodicFeatures(nn.Module):
    """y_j -> (cos 2 pi k s_j, sin 2 pi k s_j), k = 1..K_j, s_j = (y_j - low_j) / (high_j - low_j); y_j scaled to [-1, 1] where K_j = 0.

    A function of these features is periodic with all its derivatives   (Dong and Ni 2021, "A method for representing periodic functions").
    Without the sines it is even too, about both ends of the interval and its middle, so that half of it is enough to train on.

    Args:
        domain: (low, high) per coordinate, a whole period.
        harmonics: K_j per coordinate; 0 where the solution is not periodic.
        even: per coordinate, leave out the sines; None for nowhere.

    >>> PeriodicFeatures(((0.0, 1.0), (-1.0, 1.0)), (0, 2))(torch.zeros(5, 2)).shape
    torch.Size([5, 5])
    """

    def __init__(
        self, domain: Sequence[Sequence[float]], harmonics: Sequence[int], *, even: Sequence[bool] | None = None
    ) -> None:
        super().__init__()
        self.domain = as_box(domain, len(domain))
        self.harmonics = tuple(harmonics)
        if len(self.harmonics) != len(self.domain) or any(not isinstance(k, int) or k < 0 for k in self.harmonics):
            raise ValueError(
                f"harmonics is {tuple(harmonics)}; give a whole number >= 0 for each of the {len(self.domain)} coordinates."
            )
        self.even = (False,) * len(self.domain) if even is None else tuple(bool(part) for part in even)
        if len(self.even) != len(self.domain) or any(
            e and not k for e, k in zip(self.even, self.harmonics, strict=True)
        ):
            raise ValueError(
                f"even is {self.even} with harmonics {self.harmonics}; give True or False for each of the {len(self.domain)} "
                "coordinates, True only where there are harmonics."
            )
        self.out_features = sum((k if e else 2 * k) if k else 1 for k, e in zip(self.harmonics, self.even, strict=True))

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
        for c, (low, high), count, even in zip(y.unbind(-1), self.domain, self.harmonics, self.even, strict=True):
            if count == 0:
                features.append((2 * c - (low + high)) / (high - low))
            for k in range(1, count + 1):
                angle = (2 * torch.pi * k / (high - low)) * (c - low)
                features += [torch.cos(angle)] if even else [torch.cos(angle), torch.sin(angle)]
        return torch.stack(features, -1)

    def extra_repr(self) -> str:
        """Box and harmonics, for `print(model)`."""
        return f"{self.domain}, {self.harmonics}" + (f", even={self.even}" if any(self.even) else "")
