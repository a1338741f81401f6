"""The U-Net as an operator: the change under refinement falls, sizes, recipe, bad input."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.fourier import resample
from opflow.layers import BandLimitedResampler, ChannelLinear, LocalConv
from opflow.models import UNet
from opflow.models.recipe import build_model


def test_it_is_one_operator_under_refinement() -> None:
    torch.manual_seed(0)
    model = UNet.build(1, 1, 6, 2, radius=3 / 32, n_levels=3).double()
    seed = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        u32, u64, u128 = (model(resample(seed, (n, n))) for n in (32, 64, 128))
    first = (u32 - u64[..., ::2, ::2]).norm() / u32.norm()
    second = (u64 - u128[..., ::2, ::2]).norm() / u64.norm()
    assert second < first / 4, (first, second)


class Pixels(nn.Module):
    """The control: the weights of a LocalConv on 3 x 3 pixels of a periodic grid."""

    def __init__(self, conv: LocalConv) -> None:
        super().__init__()
        self.weight = conv.weight

    def forward(self, v: Tensor) -> Tensor:
        return F.conv2d(F.pad(v, (1, 1, 1, 1), mode="circular"), self.weight)


class PixelResampler(nn.Module):
    """Means of 2 x 2 pixels down, and bilinear interpolation up."""

    def coarse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(n // 2 for n in shape)

    def forward(self, v: Tensor, shape: Sequence[int]) -> Tensor:
        return F.avg_pool2d(v, 2) if shape[0] < v.shape[2] else F.interpolate(v, tuple(shape), mode="bilinear")


def test_of_pixels_it_is_another_map_on_another_grid() -> None:
    """The same weights in a U-Net as it is usually written: each refinement changes its output by a large part."""
    torch.manual_seed(1)
    model = UNet.build(1, 1, 8, 2, radius=3 / 32, n_levels=3).double()
    pixels = copy.deepcopy(model)
    pixels.resampler = PixelResampler()
    for block in (*pixels.encoder, *pixels.decoder):
        block.conv1, block.conv2 = Pixels(block.conv1), Pixels(block.conv2)
    seed = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    ours, theirs = [], []
    for kind, found in ((model, ours), (pixels, theirs)):
        with torch.no_grad():
            outputs = [kind(resample(seed, (n, n))) for n in (32, 64, 128)]
        found += [float((a - b[..., ::2, ::2]).norm() / a.norm()) for a, b in pairwise(outputs)]
    assert min(theirs) > 0.1 and ours[1] < 0.01 * theirs[1], (ours, theirs)


def test_radius_and_channels_double_from_level_to_level_and_grids_halve() -> None:
    model = UNet.build(1, 2, 4, 2, radius=1 / 16, n_levels=3, layout=("nodes", "cells"), n_splines=2)
    levels = [(block.conv1.radius, block.conv1.out_channels) for block in model.encoder]
    assert levels == [(1 / 16, 4), (1 / 8, 8), (1 / 4, 16)]
    assert [block.conv1.radius for block in model.decoder] == [1 / 8, 1 / 16]
    shapes: list[tuple[int, ...]] = []
    for block in (*model.encoder, *model.decoder):
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert model(torch.randn(1, 1, 65, 62)).shape == (1, 2, 65, 62)
    assert shapes == [(4, 65, 62), (8, 33, 31), (16, 17, 16), (8, 33, 31), (4, 65, 62)]


def test_on_nodes_the_change_falls_with_the_second_order() -> None:
    torch.manual_seed(1)
    model = UNet.build(1, 1, 8, 2, radius=1 / 16, n_levels=3, layout="nodes").double()
    line = torch.linspace(0, 1, 253, dtype=torch.float64)
    field = (torch.exp(line)[:, None] * torch.cos(2 * line))[None, None]
    with torch.no_grad():
        outputs = [model(field[..., ::s, ::s]) for s in (4, 2, 1)]
    first, second = ((a - b[..., ::2, ::2]).norm() / a.norm() for a, b in pairwise(outputs))
    assert second < first / 3, (first, second)


@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_every_size_comes_back(layout: str) -> None:
    model = UNet.build(2, 3, 4, 2, radius=0.1, n_levels=3, layout=layout)
    for shape in ((40, 41), (64, 47)):
        assert model(torch.randn(1, 2, *shape)).shape == (1, 3, *shape)


def test_a_recipe_builds_the_same_model() -> None:
    model = UNet.build(
        1, 2, 3, 2, radius=0.2, n_levels=2, n_splines=2, growth=1.5, layout=("nodes", "periodic"), extent=((0, 1), (0, 2)),
        coordinates=True, norm=None, activation="relu",
    )  # fmt: skip
    twin = build_model(model.recipe)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 17, 28)
    assert torch.equal(twin(x), model(x)) and twin.recipe == model.recipe


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"radius": 0.2, "n_levels": 3}, "that of the coarsest of 3 levels is 0.8, but it is positive and at most 0.5"),
        ({"radius": 0.1, "norm": "batch"}, "norm is 'batch'"),
        ({"radius": 0.1, "growth": 0.0}, "growth is 0"),
        ({"radius": 0.1, "n_levels": 0}, "n_levels is 0"),
        ({"radius": 0.1, "activation": "sine"}, "activation is 'sine'"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UNet.build(1, 1, 4, 2, **({"n_levels": 2} | options))


def test_too_coarse_a_grid_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="give at least 64 points, a larger radius or fewer splines"):
        UNet.build(1, 1, 4, 2, radius=3 / 64, n_levels=2)(torch.zeros(1, 1, 64, 32))


def test_parts_that_do_not_fit_are_refused_in_a_sentence() -> None:
    part = ChannelLinear(1, 1)
    with pytest.raises(ValueError, match="the encoder has 2 levels and the decoder 2; the decoder has one less"):
        UNet(part, [part, part], [part, part], part, resampler=BandLimitedResampler(dim=2))
