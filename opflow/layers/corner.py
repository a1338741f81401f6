"""Coordinates about a corner in which the singular functions of the Laplacian are polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CornerFeatures(nn.Module):
    """(x, y) -> rho (cos phi, sin phi), rho = r^a, phi = a theta, a = pi / opening: z^a, which opens a corner to a half-plane.

    r and theta are polar coordinates about the corner, theta from its first side counterclockwise to its second at `opening`. A
    solution of -lap u = f with u = 0 on both sides behaves there like sum_k K_k r^(a k) sin(a k theta)   (Grisvard 1985,
    section 2.7): the gradient of the first term is infinite where the corner enters, opening > pi, and no smooth network of
    (x, y) has it. These terms are polynomials of the two features, the second of which is the first term itself and vanishes on both sides.
    So ``sin-feature * network(features)`` holds u = 0 on the sides, and its network's value at the corner is K_1.

    Args:
        corner: where it is.
        start: the angle of the first side to the x axis.
        opening: the angle inside, in (0, 2 pi); the features jump on the line that halves its complement.

    In the corner itself the features are zero, and their derivatives of no use where a < 1.

    >>> features = CornerFeatures(opening=1.5 * math.pi)
    >>> features(torch.tensor([[1.0, 0.0], [0.0, -1.0]])).round(decimals=6).abs().tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    def __init__(
        self, corner: Sequence[float] = (0.0, 0.0), start: float = 0.0, opening: float = 1.5 * math.pi
    ) -> None:
        super().__init__()
        if len(corner) != 2 or not all(math.isfinite(c) for c in (*corner, start)):
            raise ValueError(
                f"corner is {tuple(corner)} and start {start}; give a point (x, y) and an angle, all finite."
            )
        if not 0 < opening < 2 * math.pi:
            raise ValueError(f"opening is {opening}; give the angle inside the corner, between 0 and 2 pi.")
        self.corner, self.start, self.opening = (float(corner[0]), float(corner[1])), float(start), float(opening)

    @property
    def exponent(self) -> float:
        """a = pi / opening"""
        return math.pi / self.opening

    def forward(self, y: Tensor) -> Tensor:
        """(..., 2) -> (..., 2): r^a cos(a theta), r^a sin(a theta)"""
        if y.shape[-1] != 2:
            raise ValueError(
                f"the coordinates have shape {tuple(y.shape)} but CornerFeatures expects x and y along the last axis."
            )
        dx, dy = y[..., 0] - self.corner[0], y[..., 1] - self.corner[1]
        # From the line that halves the corner, so that the jump of the angle lies outside.
        middle = self.start + self.opening / 2
        along, across = (
            math.cos(middle) * dx + math.sin(middle) * dy,
            math.cos(middle) * dy - math.sin(middle) * dx,
        )
        radius = (along * along + across * across) ** (self.exponent / 2)
        angle = self.exponent * torch.atan2(across, along)
        return torch.stack([-radius * torch.sin(angle), radius * torch.cos(angle)], -1)

    def extra_repr(self) -> str:
        """The corner, for `print(model)`."""
        return f"{self.corner}, start={self.start:.4g}, opening={self.opening:.4g}"
