"""Band-limited resampling and norms over the domain: one function on every grid, and what pixels do instead."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow import Grid
from opflow.fourier import resample
from opflow.layers import BandLimitedResampler, FunctionNorm


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [(12, 9), (6, 5), (7, 4), (24, 20), (11, 13), (13, 18), (1, 1)])
def test_on_periodic_axes_it_is_the_spectral_resampling(shape: tuple[int, int]) -> None:
    v = torch.randn(2, 3, 12, 9)
    torch.testing.assert_close(BandLimitedResampler(dim=2)(v, shape), resample(v, shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (9, 17), (17, 8), (16, 7), (7, 16), (6, 33)])
@pytest.mark.parametrize("layout", ["nodes", "cells"])
def test_a_cosine_series_below_both_limits_is_the_same_function(layout: str, n: int, m: int) -> None:
    def field(points: int) -> Tensor:
        x = Grid((points, 8, 5), layout=(layout, "periodic", layout)).points()
        return (1 + torch.cos(math.pi * x[..., 0]) - 0.3 * torch.cos(5 * math.pi * x[..., 0])) * torch.cos(
            math.pi * x[..., 2]
        )

    v = field(n)[None, None].expand(2, 3, -1, -1, -1)
    y = BandLimitedResampler((layout, "periodic", layout), dim=3)(v, (m, 8, 5))
    torch.testing.assert_close(y, field(m).expand_as(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_what_a_coarse_grid_cannot_hold_is_dropped_and_not_folded(layout: str) -> None:
    """The control: a mean of pixels folds half of the wave back, a maximum more."""
    x = Grid(65 if layout == "nodes" else 64, layout=layout).coordinates(0)
    wave = torch.cos(math.pi * 44 * x)[None, None]  # 44 half waves; 33 points hold 32 of them
    sampler = BandLimitedResampler(layout, dim=1)
    coarse = sampler.coarse_shape(x.shape)
    assert coarse == ((33,) if layout == "nodes" else (32,))
    assert sampler(wave, coarse).abs().max() < 1e-12
    assert F.avg_pool1d(wave, 2).square().mean() > 0.05 and F.max_pool1d(wave, 2).square().mean() > 0.05
    smooth = torch.exp(torch.cos(2 * math.pi * x))[None, None]
    torch.testing.assert_close(sampler(sampler(smooth, coarse), x.shape), smooth, rtol=1e-12, atol=1e-12)


def test_the_coarse_grid_is_never_coarser_than_twice_the_spacing() -> None:
    for layout, shape, expected in (
        ("nodes", (65, 64), (33, 33)),
        ("cells", (65, 64), (33, 32)),
        ("periodic", (7, 8), (4, 4)),
    ):
        assert BandLimitedResampler(layout, dim=2).coarse_shape(shape) == expected


def test_bad_fields_are_refused_in_a_sentence() -> None:
    sampler = BandLimitedResampler(("nodes", "periodic"), dim=2)
    for shape, coarse in (((1, 1, 8), (4, 4)), ((1, 1, 8, 8), (4,))):
        with pytest.raises(ValueError, match="expects 2 axes of each"):
            sampler(torch.zeros(shape), coarse)
    with pytest.raises(ValueError, match="axis 0 has 8 points and would get 1; a nodes axis has at least 2"):
        sampler(torch.zeros(1, 1, 8, 8), (1, 4))
    with pytest.raises(TypeError, match="int64"):
        sampler(torch.zeros(1, 1, 8, 8, dtype=torch.int64), (4, 4))


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_where_all_points_weigh_the_same_the_norm_is_torchs(groups: int) -> None:
    v = 2 + torch.randn(2, 6, 12, 9)
    expected = nn.GroupNorm(groups, 6)(v)
    torch.testing.assert_close(
        FunctionNorm(6, groups, ("cells", "periodic"), dim=2)(v), expected, rtol=1e-12, atol=1e-12
    )


def test_on_nodes_the_norm_is_of_second_order_where_a_norm_of_pixels_is_of_first() -> None:
    def changes(norm) -> list[float]:
        outputs = []
        for n, stride in ((17, 1), (33, 2), (65, 4), (129, 8)):
            x, y = Grid((n, n)).points().unbind(-1)
            outputs.append(norm(torch.stack([torch.exp(x + y), x * y])[None])[..., ::stride, ::stride])
        return [float((a - b).abs().max().detach()) for a, b in itertools.pairwise(outputs)]

    assert all(3.6 < a / b < 4.4 for a, b in itertools.pairwise(changes(FunctionNorm(2, 1, "nodes", dim=2))))
    assert all(1.7 < a / b < 2.3 for a, b in itertools.pairwise(changes(nn.GroupNorm(1, 2))))


def test_groups_that_do_not_divide_are_refused_in_a_sentence() -> None:
    for channels, groups in ((6, 4), (0, 1), (6, 0)):
        with pytest.raises(ValueError, match="as many channels each"):
            FunctionNorm(channels, groups, dim=2)
