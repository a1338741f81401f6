"""The U-Net as an operator: the change under refinement falls, sizes, recipe, bad input."""

from __future__ import annotations

import pytest
import torch

from opflow.fourier import resample
from opflow.layers import BandLimitedResampler, ChannelLinear
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
