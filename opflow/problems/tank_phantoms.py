"""Random inclusions of a water tank: circles, ellipses, polygons and bars, that conduct better or worse than the water."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

KINDS = ("circle", "ellipse", "polygon", "bar")
OUTLINE = 48  # points of an outline
ATTEMPTS = 60  # to place one inclusion
REACH = 0.95  # inclusions keep to this share of the radius
APART = 0.06  # and this far from each other, in radii

Points = NDArray[np.float64]


@dataclass(frozen=True)
class TankPhantoms:
    """A law of piecewise constant conductivities in the unit disc, as ratios to the water's.

    1 to `most` inclusions, disjoint and inside of 0.95 radii, each a circle (radius 0.14 to 0.4), an ellipse (longer half-axis 0.18 to 0.5,
    ratio 0.4 to 0.85), a star-shaped polygon of 3 to 6 corners (0.18 to 0.5 from its centre) or a bar (half-length 0.28 to 0.75, half-width
    0.07 to 0.17). Each is resistive or conductive with probability 1/2, its ratio log-uniform in `resistive` or `conductive`.

    Attributes:
        most: inclusions of one phantom.
        resistive, conductive: intervals of ratios, below and above 1.

    >>> import numpy as np
    >>> law = TankPhantoms()
    >>> inclusions = law.draw(np.random.default_rng(0))
    >>> bool((law.ratio(inclusions, np.array([[0.99, 0.0]])) == 1).all())  # water at the wall
    True
    """

    most: int = 3
    resistive: tuple[float, float] = (0.001, 0.1)
    conductive: tuple[float, float] = (10.0, 500.0)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}; a phantom has at least one inclusion.")
        for name, (low, high), fits in (
            ("resistive", self.resistive, self.resistive[1] < 1),
            ("conductive", self.conductive, self.conductive[0] > 1),
        ):
            if not (0 < low <= high and fits):
                raise ValueError(
                    f"{name} is ({low}, {high}); expected an increasing interval of positive ratios, resistive below 1 and conductive above."
                )

    def draw(self, generator: np.random.Generator) -> list[Inclusion]:
        """The inclusions of one phantom; one that finds no room is left out."""
        found: list[Inclusion] = []
        for _ in range(int(generator.integers(1, self.most + 1))):
            low, high = self.resistive if generator.random() < 0.5 else self.conductive
            ratio = float(np.exp(generator.uniform(np.log(low), np.log(high))))
            for _ in range(ATTEMPTS):
                shape = _shape(KINDS[generator.integers(len(KINDS))], generator)
                centre = np.sqrt(generator.random()) * REACH * _direction(generator.uniform(0, 2 * np.pi))
                new = Inclusion(centre + shape, ratio)
                if np.hypot(*new.outline.T).max() <= REACH and not any(_too_near(new, other) for other in found):
                    found.append(new)
                    break
        return found

    def ratio(self, inclusions: Sequence[Inclusion], points: Points) -> NDArray[np.float64]:
        """The conductivity over the water's at points (n, 2) of the unit disc, (n,)."""
        values = np.ones(len(points))
        for inclusion in inclusions:
            values[inclusion.contains(points)] = inclusion.ratio
        return values

    def mean_ratio(self, inclusions: Sequence[Inclusion], triangles: Points) -> NDArray[np.float64]:
        """Its geometric mean over triangles (n, 3, 2), (n,): by sixteen points where an outline passes between corners and centre."""
        logarithm, seen = np.zeros(len(triangles)), np.concatenate([triangles, triangles.mean(1, keepdims=True)], 1)
        for inclusion in inclusions:
            inside = inclusion.contains(seen.reshape(-1, 2)).reshape(-1, 4)
            share = inside.all(1).astype(float)
            cut = np.flatnonzero(inside.any(1) & ~inside.all(1))
            share[cut] = inclusion.contains(inner_points(triangles[cut]).reshape(-1, 2)).reshape(-1, 16).mean(1)
            logarithm += share * np.log(inclusion.ratio)
        return np.exp(logarithm)


@dataclass(frozen=True, eq=False)
class Inclusion:
    """The inside of a closed polygon, its corners (n, 2) in order, of one conductivity ratio."""

    corners: Points
    ratio: float

    @cached_property
    def outline(self) -> Points:
        """At least OUTLINE / 2 points of the sides, the corners among them."""
        count = max(1, OUTLINE // len(self.corners))
        share = np.linspace(0, 1, count, endpoint=False)[:, None]
        return np.concatenate([a + share * (b - a) for a, b in pairwise([*self.corners, self.corners[0]])])

    def contains(self, points: Points) -> NDArray[np.bool_]:
        """Whether points (n, 2) lie inside: a ray to the right crosses the outline an odd number of times."""
        inside = np.zeros(len(points), dtype=bool)
        near = np.flatnonzero(
            ((points >= self.corners.min(0)) & (points <= self.corners.max(0))).all(1)  # most points are elsewhere
        )
        x, y = points[near, :1], points[near, 1:]
        (ax, ay), (bx, by) = self.corners.T, np.roll(self.corners, -1, 0).T
        crosses = (ay <= y) != (by <= y)
        at = ax + (y - ay) * (bx - ax) / np.where(by == ay, 1.0, by - ay)
        inside[near] = (crosses & (x < at)).sum(1) % 2 == 1
        return inside


def inner_points(triangles: Points) -> Points:
    """The centres of the sixteen equal parts of triangles (n, 3, 2), (n, 16, 2)."""
    parts = triangles[:, None]
    for _ in range(2):  # each is cut at the middles of its sides into four
        middles = (parts + np.roll(parts, -1, 2)) / 2
        at_corners = np.stack([parts, middles, np.roll(middles, 1, 2)], -2)
        parts = np.concatenate([middles[:, :, None], at_corners], 2).reshape(len(triangles), 4 * parts.shape[1], 3, 2)
    return parts.mean(2)


def _direction(angle: float | NDArray[np.float64]) -> Points:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _shape(kind: str, generator: np.random.Generator) -> Points:
    """The corners of an outline about the origin."""
    turn = generator.uniform(0, 2 * np.pi)
    if kind in ("circle", "ellipse"):
        size = generator.uniform(0.14, 0.4) if kind == "circle" else generator.uniform(0.18, 0.5)
        half_axes = size * np.array([1.0, 1.0 if kind == "circle" else generator.uniform(0.4, 0.85)])
        corners = half_axes * _direction(np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False))
    elif kind == "polygon":
        count = int(generator.integers(3, 7))
        angles = 2 * np.pi / count * (np.arange(count) + generator.uniform(-0.25, 0.25, count))
        distances = generator.uniform(0.18, 0.5) * generator.uniform(0.65, 1.0, (count, 1))
        corners = distances * _direction(angles)
    else:
        half = np.array([generator.uniform(0.28, 0.75), generator.uniform(0.07, 0.17)])
        corners = half * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    cosine, sine = np.cos(turn), np.sin(turn)
    return corners @ np.array([[cosine, sine], [-sine, cosine]])


def _too_near(a: Inclusion, b: Inclusion) -> bool:
    """Whether two inclusions meet, or nearly."""
    distances = np.linalg.norm(a.outline[:, None] - b.outline, axis=-1)
    return bool(distances.min() < APART or a.contains(b.outline).any() or b.contains(a.outline).any())
