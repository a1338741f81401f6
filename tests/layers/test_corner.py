"""Features about a corner: conformal, zero on both sides, and the singular functions are polynomials of them."""

import math

import pytest
import torch

from opflow import Batch
from opflow.layers import CornerFeatures
from opflow.pde import AutogradDerivatives

CORNERS = [((0.0, 0.0), 0.0, 1.5 * math.pi), ((0.3, -1.0), 0.7, 1.9 * math.pi), ((2.0, 1.0), -2.0, math.pi / 2)]


def inside(corner: tuple[float, float], start: float, opening: float, n: int = 200) -> tuple[torch.Tensor, ...]:
    """Points of the sector, with their polar coordinates."""
    u = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r, theta = 0.1 + u[:, 0], opening * (0.01 + 0.98 * u[:, 1])
    points = torch.stack([corner[0] + r * (theta + start).cos(), corner[1] + r * (theta + start).sin()], -1)
    return points, r, theta


@pytest.mark.parametrize("corner", CORNERS)
def test_features_are_a_power_of_the_complex_coordinate(corner: tuple) -> None:
    features = CornerFeatures(*corner)
    points, r, theta = inside(*corner)
    a = math.pi / corner[2]
    expected = torch.stack([r**a * (a * theta).cos(), r**a * (a * theta).sin()], -1)
    torch.testing.assert_close(features(points), expected, rtol=1e-12, atol=1e-12)
    assert bool((features(points)[:, 1] > 0).all())
    assert features(points.float()).dtype == torch.float32


@pytest.mark.parametrize("corner", CORNERS)
def test_the_sine_vanishes_on_both_sides_and_in_the_corner(corner: tuple) -> None:
    place, start, opening = corner
    r = torch.linspace(0, 1, 11, dtype=torch.float64)
    for angle in (start, start + opening):
        side = torch.stack([place[0] + r * math.cos(angle), place[1] + r * math.sin(angle)], -1)
        assert float(CornerFeatures(*corner)(side)[:, 1].abs().max()) < 1e-8  # 1e-16 to the power a = 1/2


@pytest.mark.parametrize("method", ["taylor", "reverse"])
@pytest.mark.parametrize("corner", CORNERS)
def test_singular_functions_are_harmonic_polynomials_of_the_features(corner: tuple, method: str) -> None:
    features = CornerFeatures(*corner)
    points, r, theta = inside(*corner)
    a = features.exponent

    def second(y: torch.Tensor) -> torch.Tensor:  # Im z^(2 a) = 2 Re z^a Im z^a
        p, q = features(y)[..., :1], features(y)[..., 1:]
        return 2 * p * q

    u = AutogradDerivatives(("x", "y"), method=method)(second, Batch(coords=points))
    torch.testing.assert_close(u.value[:, 0].detach(), r ** (2 * a) * (2 * a * theta).sin(), rtol=1e-11, atol=1e-12)
    scale = float(u.d("xx").detach().abs().max())
    assert float(u.laplacian().detach().abs().max()) < 1e-12 * scale


def test_the_corner_itself_has_finite_features() -> None:
    assert CornerFeatures()(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("wrong", [{"opening": 7.0}, {"opening": 0.0}, {"corner": (0.0,)}, {"start": math.nan}])
def test_refusals(wrong: dict) -> None:
    with pytest.raises(ValueError, match="give"):
        CornerFeatures(**wrong)
    with pytest.raises(ValueError, match="expects x and y"):
        CornerFeatures()(torch.zeros(4, 3))
