"""Grids: coordinates, quadrature and restriction by layout."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opflow import Grid

LAYOUTS = ("nodes", "cells", "periodic")


def test_coordinates_by_layout() -> None:
    assert Grid(5, extent=(1.0, 3.0)).coordinates(0).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert Grid(4, extent=(1.0, 3.0), layout="cells").coordinates(0).tolist() == [1.25, 1.75, 2.25, 2.75]
    assert Grid(4, extent=(1.0, 3.0), layout="periodic").coordinates(0).tolist() == [1.0, 1.5, 2.0, 2.5]
    mixed = Grid(
        (3, 2, 5), extent=[(0, 1), (0, 2), (-1, 0)], layout=("nodes", "cells", "periodic"), axes=("t", "x", "y")
    )
    assert mixed.spacing == (0.5, 1.0, 0.2) and mixed.lengths == (1.0, 2.0, 1.0) and mixed.dim == 3
    points = mixed.points()
    assert points.shape == (3, 2, 5, 3)
    assert points[2, 1, 4].tolist() == pytest.approx([1.0, 1.5, -0.2])
    assert points[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0], "the first axis of the array is the first coordinate"


def test_coordinates_take_dtype_and_device() -> None:
    grid = Grid((3, 3))
    assert grid.coordinates(0).dtype == grid.points().dtype == grid.quadrature_weights().dtype == torch.float64
    for make in (lambda **to: grid.coordinates(0, **to), grid.points, grid.quadrature_weights):
        assert make(dtype=torch.float32).dtype == torch.float32 and make(device="meta").device.type == "meta"


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(deadline=None)
@given(n=st.integers(2, 40), a=st.floats(-10, 10), length=st.floats(0.1, 10))
def test_neighbours_are_one_spacing_apart_and_inside(layout: str, n: int, a: float, length: float) -> None:
    grid = Grid(n, extent=(a, a + length), layout=layout)
    x = grid.coordinates(0)
    assert x.shape == (n,) and (x.diff() - grid.spacing[0]).abs().max() < 1e-12
    assert x[0] >= a and x[-1] <= a + length + 1e-12
    assert float(grid.quadrature_weights().sum()) == pytest.approx(length, rel=1e-13)


def test_quadrature_is_exact_where_it_says_so() -> None:
    """The trapezoidal rule for linear, the midpoint rule for linear, the periodic rule for kept modes; order 2 beyond."""
    for layout in ("nodes", "cells"):
        errors = []
        for n in (8, 16, 32):
            grid = Grid((n, n), extent=((0.0, 1.0), (0.0, 2.0)), layout=layout)
            x, y = grid.points().unbind(-1)
            w = grid.quadrature_weights()
            assert float((w * (1 + x) * (2 - y)).sum()) == pytest.approx(1.5 * 2.0, rel=1e-13)
            errors.append((abs(float((w * torch.exp(x)).sum()) - 2 * (np.e - 1)), grid.spacing[0]))
        e, h = np.log(np.array(errors)).T
        assert np.abs(np.diff(e) / np.diff(h) - 2).max() < 0.02
    grid = Grid(9, extent=(0.0, 3.0), layout="periodic")
    x = grid.coordinates(0)
    for k in range(1, 9):
        assert abs(float((grid.quadrature_weights() * torch.cos(2 * torch.pi * k * x / 3)).sum())) < 1e-13


def test_polar_grids() -> None:
    """Integrals over the disc: exact for what is linear in r^2, of order 2 in r, spectral in theta."""
    grid = Grid.polar(8, 5, 2.0)
    assert grid.shape == (8, 5) and grid.axes == ("theta", "r") and grid.layout == ("periodic", "cells")
    assert grid.kind == "polar" and Grid((8, 5)).kind == "cartesian"
    assert grid.coordinates(1).tolist() == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])
    assert grid.coordinates(0)[[0, 4]].tolist() == pytest.approx([0.0, math.pi])
    x, y = grid.cartesian_points().unbind(-1)
    assert x[2, 3].item() == pytest.approx(0.0, abs=1e-15) and y[2, 3].item() == pytest.approx(1.4)
    assert torch.equal(Grid((3, 4)).cartesian_points(), Grid((3, 4)).points())
    assert grid.box == ((-2.0, 2.0), (-2.0, 2.0)) and Grid((3, 4), (0, 3)).box == ((0.0, 3.0), (0.0, 3.0))
    assert grid.cartesian_points(dtype=torch.float32).dtype == torch.float32
    assert float(grid.quadrature_weights().sum()) == pytest.approx(4 * math.pi, rel=1e-14)
    assert abs(float((grid.quadrature_weights() * x).sum())) < 1e-14
    errors = []
    for n in (8, 16, 32):
        fine = Grid.polar(8, n, 2.0)
        x, y = fine.cartesian_points().unbind(-1)
        errors.append(abs(float((fine.quadrature_weights() * (x + 2 * y) ** 2).sum()) - 20 * math.pi))  # 5 pi R^4 / 4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01) and errors[1] / errors[2] == pytest.approx(4, rel=0.01)


def test_polar_grids_stay_polar() -> None:
    grid = Grid.polar(8, 6)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid != Grid.polar(8, 6, 2.0)
    assert pickle.loads(pickle.dumps(grid)).kind == "polar"
    assert grid.subsampled(2) == Grid.polar(4, 3) and grid.with_shape((16, 12)) == Grid.polar(16, 12)
    with pytest.raises(ValueError, match="a radius is not negative"):
        Grid((4, 4), extent=((0, 1), (-1, 1)), axes=("theta", "r"))


def test_subsampling_keeps_the_domain() -> None:
    nodes = Grid((9, 13))
    field = torch.arange(117.0).view(1, 9, 13)
    assert nodes.subsampled(4) == Grid((3, 4))
    assert torch.equal(nodes.subsample(field, 4), field[:, ::4, ::4])
    assert torch.equal(nodes.subsample(nodes.points().movedim(-1, 0), 2), Grid((5, 7)).points().movedim(-1, 0))
    cells = Grid((4, 6), layout="cells")
    coarse = cells.subsample(cells.points().movedim(-1, 0), 2)
    torch.testing.assert_close(coarse, Grid((2, 3), layout="cells").points().movedim(-1, 0), rtol=1e-15, atol=0)
    values = torch.rand(2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(cells.subsample(values, 2)[1, 1, 2], values[1, 2:4, 4:6].mean())
    assert cells.subsampled(2).shape == (2, 3) and Grid(4, layout="cells").subsampled(4).shape == (1,)
    periodic = Grid(6, layout="periodic")
    assert torch.equal(periodic.subsample(torch.arange(6.0), 3), torch.tensor([0.0, 3.0]))
    assert periodic.subsampled(3).spacing[0] == pytest.approx(3 * periodic.spacing[0])
    mixed = Grid((5, 4), layout=("nodes", "cells"))
    assert mixed.subsample(torch.zeros(2, 1, 5, 4), 2).shape == (2, 1, 3, 2)
    assert nodes.subsample(field, 1) is field


@settings(deadline=None)
@given(n=st.integers(2, 60), stride=st.integers(1, 60), layout=st.sampled_from(LAYOUTS))
def test_a_stride_divides_or_is_refused_with_those_that_do(n: int, stride: int, layout: str) -> None:
    grid = Grid(n, layout=layout)
    intervals = n - 1 if layout == "nodes" else n
    if intervals % stride == 0:
        coarse = grid.subsampled(stride)
        assert coarse.extent == grid.extent and coarse.spacing[0] == pytest.approx(stride * grid.spacing[0])
        assert grid.subsample(torch.zeros(n), stride).shape == coarse.shape
    else:
        with pytest.raises(
            ValueError, match=rf"stride {stride} does not divide axis x with .*; use one of \["
        ) as caught:
            grid.subsampled(stride)
        offered = json.loads(str(caught.value).split("one of ")[1].rstrip("."))
        assert all(grid.subsampled(s) for s in offered)


def test_every_axis_may_have_a_stride_of_its_own() -> None:
    grid = Grid((5, 8, 6), layout=("nodes", "periodic", "cells"), axes=("t", "x", "y"))
    field = torch.arange(240.0).view(5, 8, 6)
    coarse = grid.subsampled((1, 2, 3))
    assert coarse.shape == (5, 4, 2) and coarse.axes == grid.axes and coarse.extent == grid.extent
    expected = field[:, ::2].reshape(5, 4, 2, 3).mean(-1)
    torch.testing.assert_close(grid.subsample(field, (1, 2, 3)), expected)
    for strides in ((1, 2), (1, 0, 2)):
        with pytest.raises(ValueError, match="one for each of the 3 axes"):
            grid.subsampled(strides)


def test_a_stride_below_one_is_refused() -> None:
    for stride in (0, -2):
        with pytest.raises(ValueError, match=f"stride is {stride}; give a positive"):
            Grid(9).subsampled(stride)


def test_grids_are_values() -> None:
    grid = Grid((4, 5), extent=((0, 1), (2, 3)), layout=("nodes", "periodic"), axes=("t", "x"))
    assert grid == Grid([4, 5], extent=[[0.0, 1.0], [2.0, 3.0]], layout=["nodes", "periodic"], axes=["t", "x"])
    assert grid in {grid} and hash(grid) == hash(copy.deepcopy(grid))
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert grid.with_shape((8, 9)) == Grid((8, 9), grid.extent, grid.layout, grid.axes)
    assert Grid((4, 4)).with_shape(7) == Grid((7, 7)) != Grid((7, 7), layout="cells")
    with pytest.raises(AttributeError):
        grid.shape = (1, 2)
    line = Grid(4, layout="cells")
    assert Grid.from_json(json.loads(json.dumps(line.to_json()))) == line


def test_numbers_of_other_libraries_are_numbers() -> None:
    expected = Grid((4, 6), extent=(0.0, 2.0))
    assert Grid(np.array([4, 6]), extent=np.array([0.0, 2.0])) == expected
    assert Grid(torch.zeros(4, 6).shape, extent=(np.float32(0), np.int64(2))) == expected
    assert Grid((np.int64(4), np.int32(6)), extent=np.array([[0.0, 2.0], [0.0, 2.0]])) == expected
    assert Grid(np.int64(4)) == Grid(4) == Grid((4,)) and type(Grid(np.int64(4)).shape[0]) is int


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"shape": ()}, ValueError, "shape is empty"),
        ({"shape": (4, 1)}, ValueError, "axis y has 1 points; a nodes axis needs at least 2"),
        ({"shape": 0, "layout": "cells"}, ValueError, "axis x has 0 points; a cells axis needs at least 1"),
        ({"shape": (4, -3), "layout": "periodic"}, ValueError, "axis y has -3 points"),
        ({"shape": (4.7, 4)}, TypeError, "float"),
        (
            {"shape": (4, 4), "layout": "faces"},
            ValueError,
            "layout 'faces' of axis x is unknown; choose one of nodes, cells",
        ),
        ({"shape": (4, 4), "layout": ("nodes",)}, ValueError, r"layout has 1 entries but shape \(4, 4\) has 2 axes"),
        ({"shape": (4,), "extent": ((0, 1), (0, 1))}, ValueError, "extent has 2 entries but shape .* has 1 axes"),
        (
            {"shape": (4, 4), "extent": (1.0, 0.0)},
            ValueError,
            r"extent of axis x is \(1.0, 0.0\); give two finite numbers in incr",
        ),
        ({"shape": 4, "extent": (0.0, float("nan"))}, ValueError, "two finite numbers"),
        ({"shape": 4, "extent": (0.0, float("inf"))}, ValueError, "two finite numbers"),
        ({"shape": 4, "extent": ((0.0, 1.0, 2.0),)}, ValueError, r"give one pair \(a, b\) per axis"),
        ({"shape": (4, 4), "extent": ((0.0, 1.0), 2.0)}, ValueError, r"give one pair \(a, b\) per axis"),
        ({"shape": (4, 4), "axes": ("x",)}, ValueError, "axes has 1 entries"),
        ({"shape": (4, 4), "axes": ("x", "x")}, ValueError, "names one axis twice"),
        ({"shape": (4,) * 4}, ValueError, "axes has 3 entries but shape .* has 4 axes"),
    ],
)
def test_a_grid_that_is_none_is_refused_in_a_sentence(arguments, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        Grid(**arguments)


def test_check_names_the_field() -> None:
    grid = Grid((4, 5))
    grid.check(torch.zeros(4, 5))
    grid.check(torch.zeros(2, 3, 4, 5))
    for shape in ((5, 4), (4, 5, 1), (5,), ()):
        with pytest.raises(
            ValueError, match=r"the target has shape .* but the grid is \(4, 5\); its last 2 axes must be the grid"
        ):
            grid.check(torch.zeros(shape), "the target")
    with pytest.raises(ValueError, match="field has shape"):
        grid.subsample(torch.zeros(3, 3), 1)
