"""The Galerkin transformer: the published sizes, refinement, coordinates, boundary, point sets, dropout, recipe, bad input."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn

from opflow import Grid
from opflow.layers import (
    ChannelLinear,
    DownSampler,
    GalerkinAttention,
    Normalized,
    Normalizer,
    TransformerLayer,
    UpSampler,
)
from opflow.models import GalerkinTransformer
from opflow.models.recipe import build_model

SMALL = {"heads": 2, "n_layers": 2, "decoder_channels": 6, "n_modes": 8}


def scrambled(model: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """The model in float64 with parameters away from their small start."""
    torch.manual_seed(seed)
    model = model.double()
    for parameter in model.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return model


PAPER = {
    "burgers": (
        lambda: GalerkinTransformer.build(1, 1, 96, layout="periodic"),
        (1, 1, 64), (1, 1, 64),
    ),
    "darcy": (
        lambda: GalerkinTransformer.build(
            1, 1, 128, 2, heads=4, n_layers=6, decoder_channels=32, n_modes=24, downsample=(43, 43), upsample=True,
            boundary="dirichlet", dropout=0.05, ffn_dropout=0.05, sampler_dropout=0.05,
        ),
        (1, 1, 141, 141), (1, 1, 141, 141),
    ),
    "inverse darcy": (
        lambda: GalerkinTransformer.build(
            1, 1, 192, 2, heads=4, n_layers=6, decoder="pointwise", decoder_channels=192, decoder_layers=1,
            downsample=(36, 36), dropout=0.05, ffn_dropout=0.05, sampler_dropout=0.05,
        ),
        (1, 1, 141, 141), (1, 1, 36, 36),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_sizes_of_the_paper(name: str) -> None:
    make, given, expected = PAPER[name]
    model = make().eval()
    channels, heads, n_layers, width = {
        "burgers": (96, 1, 4, 192), "darcy": (128, 4, 6, 256), "inverse darcy": (192, 4, 6, 384)
    }[name]  # fmt: skip
    assert len(model.layers) == n_layers
    for layer in model.layers:
        attention, mlp = layer.attention, layer.feed_forward
        assert type(attention) is GalerkinAttention
        assert (attention.channels, attention.heads, attention.dim) == (channels, heads, len(given) - 2)
        assert [linear.out_features for linear in mlp.linears] == [width, channels]
    with torch.no_grad():
        assert model(torch.randn(given)).shape == expected


@pytest.mark.parametrize("attention", ["galerkin", "fourier"])
@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_differences_fall_under_refinement(layout: str, attention: str) -> None:
    """The claim of resolution: one function seen at 64, 128 and 256 spacings, |128 - 256| <= 0.6 |64 - 128|."""
    model = scrambled(GalerkinTransformer.build(1, 1, 16, attention=attention, layout=layout, **SMALL))
    outputs = []
    with torch.no_grad():
        for n in (64, 128, 256):
            grid = Grid(n + (layout == "nodes"), layout=layout)
            x = grid.coordinates(0)
            u = model((torch.sin(2 * torch.pi * x) + torch.cos(6 * torch.pi * x) / 2)[None, None])
            outputs.append(u if layout != "cells" else u.unflatten(2, (32, -1)).mean(-1))
    if layout != "cells":  # the means of 32 blocks are common there
        outputs = [u[..., :: u.shape[2] // 64] for u in outputs]
    first, second = ((b - a).norm() / b.norm() for a, b in itertools.pairwise(outputs))
    assert 0 < second <= 0.6 * first, (first, second)


def test_with_quadrature_weights_the_differences_fall_at_second_order() -> None:
    model = scrambled(GalerkinTransformer.build(1, 1, 16, 2, decoder="pointwise", **SMALL))
    outputs = []
    with torch.no_grad():
        for n in (9, 17, 33):
            grid = Grid((n, n))
            x, y = grid.points().unbind(-1)
            field = (torch.sin(2 * x) * torch.exp(-y))[None, None]
            outputs.append(model(field, None, grid.quadrature_weights())[..., :: n // 8, :: n // 8])
    first, second = ((b - a).norm() for a, b in itertools.pairwise(outputs))
    assert 1.8 < math.log2(first / second) < 2.2


def points_model(**values) -> nn.Module:
    return scrambled(GalerkinTransformer.build(1, 2, 8, 2, decoder="pointwise", **{**SMALL, **values}))


def test_points_and_grid_are_one_model() -> None:
    """On the coordinates of a grid, in physical units, a set of points gives what the grid gives; a periodic one lacks its second end."""
    grid = Grid((5, 4), extent=((0.0, 2.0), (-1.0, 1.0)), layout=("nodes", "periodic"))
    model = points_model(extent=grid.extent, layout=grid.layout)
    x, coords = torch.randn(3, 1, 5, 4, dtype=torch.float64), grid.points().reshape(-1, 2)
    assert coords[:, 1].max() == 0.5, "not 1, which is the image of -1"
    on_grid = model(x)
    on_points = model(x.flatten(2), coords)
    torch.testing.assert_close(on_points, on_grid.flatten(2), rtol=1e-11, atol=1e-11)
    own = model(x.flatten(2), coords.expand(3, -1, -1))
    torch.testing.assert_close(own, on_points, rtol=1e-11, atol=1e-11)
    weights = grid.quadrature_weights()
    assert abs(float(weights.sum()) - model.measure) < 1e-12
    weighted = model(x, None, weights)
    torch.testing.assert_close(
        model(x.flatten(2), coords, weights.flatten()), weighted.flatten(2), rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(model(x, None, weights.expand(3, 5, 4)), weighted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(weighted, on_grid)


def test_points_have_no_order() -> None:
    model, order = points_model(), torch.randperm(13)
    x, coords = torch.randn(2, 1, 13).double(), torch.rand(2, 13, 2).double()
    weights = torch.rand(2, 13).double()
    weights = weights / weights.sum(-1, keepdim=True)
    shuffled = model(x[..., order], coords[:, order], weights[:, order])
    torch.testing.assert_close(shuffled, model(x, coords, weights)[..., order], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("dim", "values"),
    [
        (1, {}),
        (2, {"decoder": "pointwise"}),
        (2, {"downsample": 0.5, "upsample": True}),
        (2, {"downsample": (5, 5), "decoder_padding": 0.25}),
        (3, {"decoder": "pointwise"}),
    ],
)
def test_the_boundary_is_exactly_zero(dim: int, values) -> None:
    values = {**SMALL, **values}
    torch.manual_seed(0)
    model = GalerkinTransformer.build(1, 2, 8, dim, boundary="dirichlet", **values).double()
    x = torch.randn(2, 1, *(9, 10, 11)[:dim], dtype=torch.float64)
    u, free = model(x), GalerkinTransformer.build(1, 2, 8, dim, **values).double()
    free.load_state_dict(model.state_dict())
    inside = torch.zeros(u.shape[2:], dtype=torch.bool)
    inside[(slice(1, -1),) * dim] = True
    assert not u[..., ~inside].any()
    torch.testing.assert_close(u[..., inside], free(x)[..., inside], rtol=1e-12, atol=1e-12)


DROPOUTS = ("dropout", "ffn_dropout", "attention_dropout", "sampler_dropout")


@pytest.mark.parametrize("attention", ["galerkin", "fourier"])
@pytest.mark.parametrize("name", DROPOUTS)
def test_every_dropout_acts_in_training_only(name: str, attention: str) -> None:
    values = {**SMALL, "downsample": 0.5, "upsample": True, "attention": attention}
    torch.manual_seed(0)
    plain, noisy = (
        GalerkinTransformer.build(1, 1, 8, 2, **values),
        GalerkinTransformer.build(1, 1, 8, 2, **values, **{name: 0.5}),
    )
    noisy.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 9, 10)
    assert not torch.equal(noisy(x), noisy(x))
    noisy.eval()
    assert torch.equal(noisy(x), noisy(x)) and torch.equal(noisy(x), plain(x))


def test_nothing_drops_out_by_default() -> None:
    assert not [m for m in GalerkinTransformer.build(1, 1, 8).modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dim": 2, "heads": 2, "n_modes": (6, 8), "layout": ("nodes", "periodic"), "decoder_padding": 0.25},
        {"dim": 2, "downsample": (5, 6), "upsample": (9, 8), "boundary": "dirichlet", "dropout": 0.1},
        {"dim": 2, "downsample": 7, "decoder": "pointwise", "activation": "gelu", "ffn_activation": "silu"},
        {"dim": 2, "extent": ((0, 1), (-1, 1)), "decoder": "pointwise", "measure": 1.5, "attention": "fourier"},
        {"decoder_coordinates": False, "decoder_channels": 5, "decoder_layers": 1, "ffn_channels": 7, "eps": 1e-7},
    ],
)
def test_the_recipe_rebuilds_the_model(values) -> None:
    torch.manual_seed(0)
    model = GalerkinTransformer.build(2, 3, 8, **values)
    again = build_model(json.loads(json.dumps(model.recipe)))
    assert again.recipe == model.recipe
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, *(11, 12)[: model.dim])
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_the_output_may_have_a_grid_of_its_own() -> None:
    model = GalerkinTransformer.build(1, 1, 8, 2, downsample=(5, 5), upsample=(9, 7), **SMALL)
    assert model(torch.randn(2, 1, 21, 20)).shape == (2, 1, 9, 7)
    assert GalerkinTransformer.build(1, 1, 8, 2, downsample=7, **SMALL)(torch.randn(2, 1, 21, 20)).shape == (2, 1, 7, 7)


def test_normalised_models_take_weights_too() -> None:
    torch.manual_seed(0)
    inner = GalerkinTransformer.build(1, 1, 4, n_layers=1, decoder="pointwise", layout="nodes").double()
    model = Normalized(inner, Normalizer([1.0], [2.0]), Normalizer([3.0], [4.0])).double()
    x, grid = torch.randn(2, 1, 9, dtype=torch.float64), Grid(9)
    weights = grid.quadrature_weights()
    expected = 4 * inner((x - 1) / 2, weights=weights) + 3
    torch.testing.assert_close(model(x, weights=weights), expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(model(x, weights=weights), model(x))
    coords = grid.points()
    torch.testing.assert_close(model(x, coords, weights), expected, rtol=1e-12, atol=1e-12)


def test_weights_belong_to_the_grid_of_the_attention() -> None:
    model = GalerkinTransformer.build(1, 1, 8, 2, downsample=(5, 4), upsample=True, **SMALL)
    coarse, x = Grid((5, 4)).quadrature_weights(dtype=torch.float32), torch.randn(2, 1, 13, 12)
    assert not torch.equal(model(x, None, coarse), model(x))
    with pytest.raises(ValueError, match=r"attention layers work on \(5, 4\); expected \(5, 4\)"):
        model(x, None, torch.full((13, 12), 1 / 156))


def test_parts_of_ones_own() -> None:
    """A coarse attention between samplers and a linear decoder, put together by hand."""
    model = GalerkinTransformer(
        DownSampler(3, 6, (5, 5)),
        [TransformerLayer(GalerkinAttention(6, 2, 2, measure=None), nn.Linear(6, 6))],
        ChannelLinear(6, 1),
        ((0.0, 1.0), (0.0, 1.0)),
        layout=("nodes", "nodes"),
        upsample=UpSampler(6),
        decoder_coordinates=False,
    )
    assert model(torch.randn(2, 1, 9, 12)).shape == (2, 1, 9, 12) and model.recipe is None


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("coords", "weights", "error", "sentence"),
    [
        (torch.tensor([[0.5, 0.5]] * 4 + [[0.2, 1.5]]), None, ValueError,
         r"1 of 5 coordinates lie outside the domain .* the first at \[0.2\d*, 1.5\]"),
        (torch.full((2, 5, 2), -0.1), None, ValueError, "10 of 10 coordinates lie outside"),
        (torch.full((5, 2), torch.nan), None, ValueError, "5 of 5 coordinates lie outside"),
        (zeros(4, 2), None, ValueError, r"coords has shape \(4, 2\) but x holds 5 points; expected \(5, 2\)"),
        (zeros(5, 3), None, ValueError, r"or \(2, 5, 2\)"),
        (zeros(5, 2).long(), None, ValueError, "coords is torch.int64"),
        (zeros(5, 2), torch.ones(5), ValueError, "sum to 5 but the measure of the domain is 1"),
        (zeros(5, 2), torch.ones(4), ValueError, r"weights has shape \(4,\)"),
        (zeros(5, 2), -torch.ones(5), ValueError, "must be positive"),
        (None, None, ValueError, "GalerkinTransformer expects 4"),
    ],
)  # fmt: skip
def test_bad_points_are_refused_in_a_sentence(coords, weights, error, sentence: str) -> None:
    model = GalerkinTransformer.build(1, 2, 8, 2, decoder="pointwise", **SMALL)
    with pytest.raises(error, match=sentence):
        model(zeros(2, 1, 5), coords, weights)


@pytest.mark.parametrize("values", [{}, {"decoder": "pointwise", "downsample": 0.5}, {"boundary": "dirichlet"}])
def test_coordinates_are_refused_where_the_model_needs_a_grid(values) -> None:
    with pytest.raises(ValueError, match="coords were given, but this model has a spectral decoder, samplers or"):
        GalerkinTransformer.build(1, 1, 8, 2, **{**SMALL, **values})(zeros(1, 1, 5), zeros(5, 2))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"heads": 3}, "heads must divide|the heads"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"attention": "softmax"}, "attention is 'softmax'"),
        ({"decoder": "mlp"}, "decoder is 'mlp'"),
        ({"activation": "sine"}, "activation is 'sine'"),
        ({"downsample": 0.5}, "in 1 dimensions; the samplers work on two-dimensional fields"),
        ({"upsample": True, "dim": 3}, "in 3 dimensions"),
        ({"downsample": 0.5, "dim": 2, "layout": "periodic"}, "would not join the ends"),
        ({"downsample": 0.5, "dim": 2, "layout": ("nodes", "cells")}, "the same on both axes"),
        ({"boundary": "dirichlet", "layout": "periodic"}, "only nodes lie on the boundary"),
        ({"boundary": "neumann"}, "boundary is 'neumann'"),
        ({"layout": "grid"}, "layout is 'grid'"),
        ({"extent": (1.0, 0.0)}, "low < high"),
        ({"extent": ((0.0, 1.0), (0.0, 1.0))}, "each of the 1 coordinates"),
        ({"dim": 2, "n_modes": (4, 4, 4)}, "n_modes"),
        ({"dim": 4}, "n_modes"),
        ({"dropout": 1.5}, "dropout"),
        ({"measure": -1.0}, "measure is -1.0"),
        ({"ffn_channels": -1}, "ffn_channels is -1"),
    ],
)
def test_bad_plain_values_are_refused_in_a_sentence(values, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GalerkinTransformer.build(1, 1, 8, **values)
