"""LocalConv: its equation, its order under refinement, its start, bad input; a convolution of pixels as the control."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opflow import Grid
from opflow.layers import LocalConv
from opflow.layers.local_conv import cubic_spline


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def waves(*shape: int, extent: tuple[float, float] = (0.0, 1.0), layout: str = "periodic") -> Tensor:
    """A smooth function of period 1 in each coordinate, (1, 1, *shape)."""
    field = torch.ones(())
    for axis in range(len(shape)):
        x = Grid(shape, extent, layout).coordinates(axis)
        field = field[..., None] * torch.exp(torch.sin(2 * math.pi * (x - 0.1 * axis)))
    return field[None, None]


@torch.no_grad()
def falls(layer, sizes: tuple[int, ...], layout: str) -> list[float]:
    """The largest change of the output on the first grid by each refinement, in two dimensions."""
    outputs = []
    for n in sizes:
        y = layer(waves(n, n, layout=layout))
        stride = (n - 1) // (sizes[0] - 1) if layout == "nodes" else n // sizes[0]
        outputs.append(y[..., ::stride, ::stride])
    return [float((a - b).abs().max()) for a, b in itertools.pairwise(outputs)]


def test_the_spline_is_a_partition_of_one_with_two_derivatives() -> None:
    u = torch.linspace(-0.5, 0.5, 101)
    assert (sum(cubic_spline(u - k) for k in range(-3, 4)) - 1).abs().max() < 1e-15
    knots = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    for shift in (-1e-7, 1e-7):  # from both sides of every knot
        u = (knots + shift).requires_grad_()
        value = cubic_spline(u)
        (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), u)
        for got, expected in (
            (value, [0, 1 / 6, 2 / 3, 1 / 6, 0]),
            (slope, [0, 0.5, 0, -0.5, 0]),
            (curvature, [0, 1, -2, 1, 0]),
        ):
            assert (got - torch.tensor(expected)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dim", "layout", "extent", "shape"),
    [
        (1, "periodic", ((0.0, 2.0),), (15,)),
        (1, "nodes", ((-1.0, 1.0),), (21,)),
        (2, ("nodes", "cells"), ((0.0, 1.0), (1.0, 3.0)), (9, 16)),
        (2, "periodic", ((0.0, 1.0), (0.0, 2.0)), (9, 15)),
        (3, ("cells", "periodic", "nodes"), ((0.0, 1.0),) * 3, (7, 8, 9)),
    ],
)
def test_the_layer_is_the_quadrature_of_its_kernel(dim, layout, extent, shape) -> None:
    layer = LocalConv(2, 3, 0.45, dim=dim, layout=layout, extent=extent)
    grid = Grid(shape, extent, layout)
    points = grid.points().reshape(-1, dim)
    offsets = points[:, None] - points
    for axis, (kind, length) in enumerate(zip(grid.layout, grid.lengths, strict=True)):
        if kind == "periodic":
            offsets[..., axis] -= length * torch.round(offsets[..., axis] / length)
    kernel = layer.kernel(offsets.reshape(-1, dim)).unflatten(-1, offsets.shape[:2])
    assert not kernel[:, :, (offsets.abs() >= 0.45).any(-1)].any()
    x = torch.randn(2, 2, *shape)
    weights = grid.quadrature_weights().flatten()
    expected = torch.einsum("ocxy,y,bcy->box", kernel, weights, x.flatten(2)) + layer.bias[:, None]
    torch.testing.assert_close(layer(x).flatten(2), expected, rtol=1e-12, atol=1e-12)


def test_on_a_periodic_grid_the_order_is_four() -> None:
    layer = LocalConv(1, 1, 0.25, dim=2)  # splines of 1/12, which 4/3, 8/3 and 16/3 spacings make
    first, second, third = falls(layer, (16, 32, 64, 128), "periodic")
    assert 12 < first / second < 20 and 12 < second / third < 20
    assert first < 1e-2


def test_constants_are_exact_where_the_splines_are_whole_spacings() -> None:
    layer = LocalConv(1, 2, 3 / 16, dim=2, bias=False)
    for n in (16, 32, 48):
        expected = layer.weight.sum((-2, -1))[:, 0, None, None].expand(1, 2, n, n)
        torch.testing.assert_close(layer(torch.ones(1, 1, n, n)), expected, rtol=1e-13, atol=1e-13)


def test_on_nodes_where_the_field_is_cut_off_the_order_is_two() -> None:
    first, second, third = falls(LocalConv(1, 1, 0.25, dim=2, layout="nodes"), (25, 49, 97, 193), "nodes")
    assert 3.5 < first / second < 4.5 and 3.5 < second / third < 4.5


def test_on_cells_the_boundary_has_order_two() -> None:
    layer = LocalConv(1, 1, 0.25, dim=2, layout="cells")
    # Cells of three grids share centres where each has three times as many as the last.
    outputs = [layer(waves(n, n, layout="cells"))[..., k::s, k::s] for n, k, s in ((16, 0, 1), (48, 1, 3), (144, 4, 9))]
    first, second = ((a - b).abs().max() for a, b in itertools.pairwise(outputs))
    assert 7 < first / second < 11


@torch.no_grad()
def test_a_convolution_of_pixels_is_no_operator() -> None:
    """The control: 3 x 3 pixels see half as far on twice as fine a grid, and tend to a multiple of the identity."""
    layer = LocalConv(1, 1, 3 / 8, dim=2, bias=False)

    def pixels(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), layer.weight)

    sizes = (16, 32, 64, 128)
    assert falls(pixels, sizes, "periodic")[0] > 100 * falls(layer, sizes, "periodic")[0]
    x = waves(256, 256)
    identity = layer.weight.sum() * x
    scale = x.norm() * layer.weight.norm()
    assert (pixels(x) - identity).norm() < 0.05 * scale < 0.2 * scale < (layer(x) - identity).norm()


def test_the_output_grid_can_be_another() -> None:
    layer = LocalConv(2, 3, 0.25, dim=2, layout=("nodes", "periodic"))
    x = torch.randn(2, 2, 33, 32)
    fine, coarse = layer(x), layer(x, output_shape=(17, 16))
    torch.testing.assert_close(coarse, fine[..., ::2, ::2], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="one number of points for each of 2 axes"):
        layer(x, output_shape=(17,))


@torch.no_grad()
def test_the_variance_of_the_start_does_not_depend_on_the_grid() -> None:
    torch.manual_seed(1)
    layer = LocalConv(32, 256, 1 / 8, dim=2, bias=False)
    seed = torch.randn(1, 32, 3, 3)
    spread = []
    for n in (32, 64):
        k = torch.arange(n) * (2 * math.pi / n)
        e = torch.stack([torch.ones(n), math.sqrt(2) * k.cos(), math.sqrt(2) * k.sin()])
        x = torch.einsum("bcij,ix,jy->bcxy", seed, e, e)  # waves eight radii long
        spread.append(float(layer(x).var() / x.var()))
    assert all(0.2 < s < 0.4 for s in spread) and abs(spread[0] - spread[1]) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((0, 1, 0.1), {}, "both must be positive"),
        ((1, 1, 0.0), {}, "positive radius of at most 0.5"),
        ((1, 1, 0.6), {}, "axis 0 is periodic and 1 long"),
        ((1, 1, 1.1), {"layout": "cells"}, "positive radius of at most 1"),
        ((1, 1, float("nan")), {}, "positive radius"),
        ((1, 1, 0.1), {"n_splines": 0}, "at least one spline"),
        ((1, 1, 0.1), {"dim": 4}, "one to three axes"),
        ((1, 1, 0.1), {"layout": "grid"}, "layout is 'grid'"),
        ((1, 1, 0.1), {"extent": ((0, 1),) * 3}, "3 entries"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LocalConv(*arguments, **{"dim": 2, **options})


@pytest.mark.parametrize(("layout", "least"), [("periodic", 60), ("nodes", 61)])
def test_a_grid_too_coarse_for_the_radius_is_refused_in_a_sentence(layout: str, least: int) -> None:
    layer = LocalConv(1, 1, 0.05, dim=2, layout=layout)
    layer(torch.zeros(1, 1, least, least))
    with pytest.raises(ValueError, match=f"axis 1 has {least - 1} points.*at least {least} points, a larger radius"):
        layer(torch.zeros(1, 1, least, least - 1))
