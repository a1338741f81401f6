"""LocalFNO: one operator on every grid, its parts, its recipe, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.fourier import resample
from opflow.layers import SpectralConv
from opflow.models import FNO, LocalFNO
from opflow.models.recipe import build_model


def change_under_refinement(model: nn.Module, seed: Tensor, sizes: tuple[int, ...]) -> list[float]:
    """||u_n - u_2n|| / ||u_n|| for one band-limited function seen on grids of n and 2 n points."""
    with torch.no_grad():
        outputs = [model(resample(seed, (n,) * (seed.ndim - 2))) for n in sizes]
    coarse = (slice(None), slice(None), *[slice(None, None, 2)] * (seed.ndim - 2))
    return [float((a - b[coarse]).norm() / a.norm()) for a, b in itertools.pairwise(outputs)]


@pytest.mark.parametrize(
    ("options", "factor"), [({}, 10), ({"derivatives": False}, 10), ({"norm": "group", "channel_mlp": None}, 5)]
)
def test_it_is_one_operator_under_refinement(options: dict[str, object], factor: float) -> None:
    """The differences of the derivatives and the quadrature of the splines are of fourth order; norms make the fields less smooth."""
    torch.manual_seed(0)
    model = LocalFNO.build((8, 8), 1, 1, 8, radius=3 / 32, coordinates=False, **options).double()
    seed = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    first, second = change_under_refinement(model, seed, (32, 64, 128))
    assert second < first / factor, (first, second)


class Pixels(nn.Module):
    """The control: the same branches with 3 x 3 pixels in the place of integrals and derivatives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise, self.conv = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, bias=False)

    def forward(self, v: Tensor) -> Tensor:
        return self.pointwise(v) + self.conv(F.pad(v, (1, 1, 1, 1), mode="circular"))


def test_with_pixels_in_their_place_it_is_not() -> None:
    """A stencil of pixels on half the spacing is another operator: the change does not fall with the fourth power."""
    torch.manual_seed(0)
    model = FNO.build((8, 8), 1, 1, 8, coordinates=False, skip=None)
    for block in model.blocks:
        block.skip = Pixels(8)
    seed = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    first, second = change_under_refinement(model.double(), seed, (32, 64, 128))
    assert second > first / 4, (first, second)


def test_a_layer_is_the_sum_of_its_four_branches() -> None:
    model = LocalFNO.build((6, 6), 1, 1, 4, radius=0.25, n_layers=2, channel_mlp=None).double()
    layer, v = model.blocks[0], torch.randn(2, 4, 16, 15, dtype=torch.float64)
    skip = layer.skip
    expected = F.gelu(layer.conv(v) + skip.pointwise(v) + skip.local(v) + skip.derivative(v))
    torch.testing.assert_close(layer(v), expected, rtol=1e-12, atol=1e-12)


def test_a_padded_convolution_does_not_join_the_ends() -> None:
    conv = LocalFNO.build((8,), 1, 1, 4, radius=1 / 8, padding=0.5).double().blocks[0].conv
    v = torch.randn(2, 4, 33, dtype=torch.float64)
    long = SpectralConv.forward(conv, conv.padding.pad(v))
    assert long.shape[2] == 48
    torch.testing.assert_close(conv(v), long[..., :33], rtol=1e-12, atol=1e-12)
    assert conv(v, output_shape=(65,)).shape == (2, 4, 65)
    with pytest.raises(ValueError, match="axes"):
        conv(v[0])


def test_on_nodes_of_a_domain_with_ends() -> None:
    torch.manual_seed(0)
    model = LocalFNO.build((8, 8), 1, 1, 6, radius=3 / 32, padding=0.125, norm="group").double()
    line = torch.linspace(0, 1, 129, dtype=torch.float64)
    field = torch.exp(line)[:, None] * torch.cos(2 * line)
    with torch.no_grad():
        u33, u65, u129 = (model(field[None, None, ::s, ::s]) for s in (4, 2, 1))
    first = (u33 - u65[..., ::2, ::2]).norm() / u33.norm()
    second = (u65 - u129[..., ::2, ::2]).norm() / u65.norm()
    assert second < 0.6 * first


def test_a_recipe_builds_the_same_model() -> None:
    model = LocalFNO.build(
        (6, 5), 2, 1, 4, radius=0.3, n_layers=2, n_splines=2, derivatives=False, padding=(0.25, 0.0), extent=((0, 1), (-1, 1)),
        norm="instance", activation="silu",
    )  # fmt: skip
    twin = build_model(model.recipe)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 13, 18)
    assert torch.equal(twin(x), model(x)) and twin.recipe == model.recipe


def test_too_coarse_a_grid_is_refused_in_a_sentence() -> None:
    model = LocalFNO.build((8, 8), 1, 1, 4, radius=3 / 64)
    with pytest.raises(
        ValueError, match=r"has 32 points, but the 3 splines within the radius .*give at least 64 points"
    ):
        model(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"radius": 0.0}, "radius is 0"),
        ({"radius": 0.75}, "radius is 0.75"),
        ({"radius": 0.1, "norm": "batch"}, "norm is 'batch'"),
        ({"radius": 0.1, "activation": "sine"}, "activation is 'sine'"),
        ({"radius": 0.1, "n_splines": 0}, "n_splines is 0"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LocalFNO.build((8, 8), 1, 1, 4, **options)
