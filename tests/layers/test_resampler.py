"""Down- and up-sampling: the equations with dense interpolation matrices, shapes, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu, silu

from opflow.layers import DownSampler, UpSampler
from opflow.layers.resampler import interpolate


def hats(n: int, m: int, layout: str) -> Tensor:
    """Linear interpolation from n points to m, (m, n): the hat functions of the n points, constant beyond the outermost."""
    i = torch.arange(m, dtype=torch.float64)
    place = i * (n - 1) / (m - 1) if layout == "nodes" else ((i + 0.5) * n / m - 0.5).clamp(0, n - 1)
    return (1 - (place[:, None] - torch.arange(n, dtype=torch.float64)).abs()).clamp(min=0)


def by_matrices(v: Tensor, shape: tuple[int, int], layout: str) -> Tensor:
    left, right = (hats(n, m, layout) for n, m in zip(v.shape[2:], shape, strict=True))
    return torch.einsum("ai,bj,...ij->...ab", left, right, v)


layouts = pytest.mark.parametrize("layout", ["nodes", "cells"])


@layouts
@pytest.mark.parametrize("shape", [(5, 9), (17, 6)])
def test_interpolation_is_linear_along_each_axis(layout: str, shape: tuple[int, int]) -> None:
    v = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(interpolate(v, shape, layout), by_matrices(v, shape, layout), rtol=1e-12, atol=1e-12)


def test_a_bilinear_function_is_the_same_on_every_grid_of_nodes() -> None:
    def field(n: int, m: int) -> Tensor:
        x, y = torch.linspace(0, 1, n, dtype=torch.float64)[:, None], torch.linspace(0, 1, m, dtype=torch.float64)
        return (1 + 2 * x - y + 3 * x * y)[None, None]

    torch.testing.assert_close(interpolate(field(7, 5), (12, 3), "nodes"), field(12, 3), rtol=1e-13, atol=1e-13)


@layouts
def test_a_down_sampler_is_its_equation(layout: str) -> None:
    sampler = DownSampler(2, 8, (5, 4), layout=layout).double().eval()
    v = torch.randn(3, 2, 17, 16, dtype=torch.float64)
    first, *groups = [conv.weight for conv in (sampler.first, *sampler.groups)]
    assert [w.shape[:2] for w in groups] == [(2, 8), (2, 2), (4, 2)]
    u = by_matrices(relu(conv2d(v, first, padding=1)), (9, 8), layout)  # sqrt(17 * 5) = 9.2, sqrt(16 * 4) = 8
    parts = []
    for weight in groups:
        u = conv2d(u, weight, padding=1)
        parts.append(u)
    expected = silu(by_matrices(torch.cat(parts, 1), (5, 4), layout))
    torch.testing.assert_close(sampler(v), expected, rtol=1e-12, atol=1e-12)


@layouts
def test_an_up_sampler_is_its_equation(layout: str) -> None:
    sampler = UpSampler(3, layout=layout, dropout=0.5).double().eval()
    v = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    u = conv2d(by_matrices(v, (9, 8), layout), sampler.conv.weight, sampler.conv.bias, padding=1)
    torch.testing.assert_close(sampler(v, (17, 16)), by_matrices(silu(u), (17, 16), layout), rtol=1e-12, atol=1e-12)
    assert not torch.equal(sampler.train()(v, (17, 16)), sampler(v, (17, 16)))


@pytest.mark.parametrize(
    ("coarse", "layout", "shape", "expected"),
    [
        (1 / 3, "nodes", (421, 211), (141, 71)),
        (0.5, "nodes", (141, 64), (71, 33)),
        (0.5, "cells", (64, 63), (32, 32)),
        (1.0, "nodes", (9, 8), (9, 8)),
        ((43, 29), "nodes", (141, 200), (43, 29)),
    ],
)
def test_the_coarse_grid(coarse, layout: str, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    sampler = DownSampler(1, 3, coarse, layout=layout)
    assert sampler.coarse_shape(shape) == expected
    assert sampler(torch.zeros(1, 1, *shape)).shape == (1, 3, *expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1, 2, (5, 5)), "three groups"),
        ((1, 3, (5,)), "two-dimensional"),
        ((1, 3, (5, 5, 5)), "two-dimensional"),
        ((1, 3, (5, 1)), "two numbers of points"),
        ((1, 3, 1.5), r"factor lies in \(0, 1\]"),
        ((1, 3, 0.0), r"factor lies in \(0, 1\]"),
    ],
)
def test_bad_sizes_are_refused_in_a_sentence(arguments, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DownSampler(*arguments)


def test_bad_layouts_and_fields_are_refused_in_a_sentence() -> None:
    for make in (lambda: DownSampler(1, 3, 0.5, layout="periodic"), lambda: UpSampler(3, layout="grid")):
        with pytest.raises(ValueError, match="interpolate on 'nodes' or 'cells'"):
            make()
    with pytest.raises(ValueError, match="DownSampler expects 4"):
        DownSampler(1, 3, 0.5)(torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match="UpSampler expects 3"):
        UpSampler(3)(torch.zeros(1, 2, 9, 9), (17, 17))
