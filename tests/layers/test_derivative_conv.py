"""DerivativeConv: the exact derivatives at the stated order, what a stencil of pixels does instead, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.layers import DerivativeConv

EXTENT = ((0.0, 1.0), (1.0, 3.0))


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def function(grid: Grid) -> tuple[Tensor, list[Tensor]]:
    """exp(sin 2 pi x) sin pi y with its derivatives d_x, d_y, d_xx, d_yy, each (*grid)."""
    x, y = grid.points().unbind(-1)
    w = 2 * math.pi
    f = torch.exp(torch.sin(w * x)) * torch.sin(math.pi * y)
    d_x, d_y = w * torch.cos(w * x) * f, math.pi * torch.exp(torch.sin(w * x)) * torch.cos(math.pi * y)
    return f, [d_x, d_y, w**2 * (torch.cos(w * x) ** 2 - torch.sin(w * x)) * f, -(math.pi**2) * f]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("accuracy", [2, 4])
@pytest.mark.parametrize("layout", ["periodic", "nodes", "cells"])
def test_it_tends_to_the_exact_derivatives_at_its_order(layout: str, accuracy: int, second: bool) -> None:
    layer = DerivativeConv(1, 1, 0.5, dim=2, accuracy=accuracy, second=second, layout=layout, extent=EXTENT)
    lengths = torch.tensor([0.5, 0.5, 0.25, 0.25])
    errors = []
    for n in (96, 192, 384):
        f, derivatives = function(Grid((n, n), EXTENT, layout))
        expected = sum(w * l * d for w, l, d in zip(layer.weight[0, 0], lengths, derivatives, strict=False))
        errors.append(float((layer(f[None, None])[0, 0] - expected).abs().max().detach()))
    assert all(math.log2(a / b) > accuracy - 0.3 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize(("accuracy", "degree"), [(2, 2), (4, 4)])
def test_polynomials_are_differentiated_exactly_up_to_the_boundary(accuracy: int, degree: int) -> None:
    layer = DerivativeConv(1, 1, dim=1, accuracy=accuracy, layout="nodes", extent=(0.0, 2.0))
    x = Grid(9, (0.0, 2.0)).coordinates(0)
    torch.testing.assert_close(
        layer((x**degree)[None, None])[0, 0],
        layer.weight.squeeze() * degree * x ** (degree - 1),
        rtol=1e-11,
        atol=1e-11,
    )
    laplace = DerivativeConv(1, 1, dim=1, accuracy=accuracy, second=True, layout="cells", extent=(0.0, 2.0))
    laplace.weight.data.copy_(torch.tensor([[[0.0, 1.0]]]))
    x = Grid(9, (0.0, 2.0), "cells").coordinates(0)
    power = degree + 1  # one more than the order: the polynomial beyond the boundary has it
    expected = power * (power - 1) * x ** (power - 2)
    torch.testing.assert_close(laplace((x**power)[None, None])[0, 0], expected, rtol=1e-10, atol=1e-10)


def test_constants_go_to_zero() -> None:
    layer = DerivativeConv(2, 3, dim=2, accuracy=4, second=True, layout=("nodes", "periodic"))
    assert layer(torch.full((1, 2, 9, 8), 3.0)).abs().max() < 1e-10


def test_a_stencil_of_pixels_that_sums_to_zero_is_no_operator() -> None:
    """The control: undivided, it vanishes with h; divided by h, what its even part adds is gone on finer grids."""
    stencil = torch.tensor([0.2, -0.9, 0.7])  # odd part 0.25 (-1, 0, 1), even part 0.45 (1, -2, 1)

    def applied(n: int) -> tuple[Tensor, Tensor]:
        x = torch.arange(n) / n
        f = torch.exp(torch.sin(2 * math.pi * x))
        slope = 2 * math.pi * torch.cos(2 * math.pi * x) * f
        return sum(w * f.roll(1 - j) for j, w in enumerate(stencil)), slope

    undivided, divided = [], []
    for n in (32, 64, 128, 256):
        y, slope = applied(n)
        undivided.append(float(y.abs().max()))
        divided.append(float((y * n - 0.5 * slope).abs().max()))
    assert all(1.8 < a / b < 2.2 for a, b in itertools.pairwise(undivided))
    assert all(1.8 < a / b < 2.3 for a, b in itertools.pairwise(divided))  # the limit is right, of first order only


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((1, 0), {}, "both must be positive"),
        ((1, 1, 0.0), {}, "positive length"),
        ((1, 1, float("inf")), {}, "positive length"),
        ((1, 1), {"accuracy": 3}, "accuracy is 3; give 2"),
        ((1, 1), {"dim": 0}, "one to three axes"),
        ((1, 1), {"layout": ("nodes",)}, "one per axis"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DerivativeConv(*arguments, **{"dim": 2, **options})


@pytest.mark.parametrize(("layout", "least"), [("periodic", 5), ("nodes", 6)])
def test_a_grid_smaller_than_the_stencil_is_refused_in_a_sentence(layout: str, least: int) -> None:
    layer = DerivativeConv(1, 1, dim=1, accuracy=4, second=True, layout=layout)
    layer(torch.zeros(1, 1, least))
    with pytest.raises(ValueError, match=f"{least - 1} points, but differences of order 4 need {least}"):
        layer(torch.zeros(1, 1, least - 1))
