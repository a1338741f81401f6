"""Attention without softmax: the definition as a double sum, quadrature, symmetry, cost, initialisation, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch.utils.flop_counter import FlopCounterMode

from opflow.layers import MLP, FourierAttention, GalerkinAttention, TransformerLayer

kinds = pytest.mark.parametrize("kind", [GalerkinAttention, FourierAttention])


def scrambled(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer in float64 with parameters of order one, so that no term hides behind the small initialisation."""
    torch.manual_seed(seed)
    layer = layer.double()
    for parameter in layer.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return layer


def double_sum(layer: nn.Module, y: Tensor, coords: Tensor | None, weights: Tensor) -> Tensor:
    """z_i = sum_j w_j (q_i . k_j) v_j of every head, one pair of points at a time; weights (batch, points)."""
    batch, n, heads, width = *y.shape[:2], layer.heads, layer.channels // layer.heads
    rows = []
    for name in ("query", "key", "value"):
        x = getattr(layer, name)(y).view(batch, n, heads, width)
        if name in layer.norms:
            norm = layer.norms[name]
            x = torch.stack(
                [layer_norm(x[:, :, h], (width,), norm.weight[h], norm.bias[h], norm.eps) for h in range(heads)], 2
            )
        if coords is not None:
            x = torch.cat([coords.expand(batch, n, -1)[:, :, None].expand(-1, -1, heads, -1), x], dim=-1)
        rows.append(x)
    q, k, v = rows
    z = torch.zeros_like(v)
    for i in range(n):
        for j in range(n):
            z[:, i] += weights[:, j, None, None] * (q[:, i] * k[:, j]).sum(-1, keepdim=True) * v[:, j]
    if isinstance(layer, FourierAttention):
        z = z / math.sqrt(z.shape[-1])
    return layer.output(z.flatten(2))


@kinds
@pytest.mark.parametrize(("channels", "heads"), [(6, 1), (12, 3)])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("rule", ["equal", "shared", "own"])
def test_attention_equals_the_double_sum(kind, channels: int, heads: int, dim: int, rule: str) -> None:
    layer = scrambled(kind(channels, heads, dim, measure=2.0))
    y, coords = torch.randn(2, 7, channels).double(), torch.rand(7, dim).double() if dim else None
    weights = {"equal": None, "shared": torch.rand(7), "own": torch.rand(2, 7)}[rule]
    reference = torch.full((2, 7), 1 / 7, dtype=torch.float64)
    if weights is not None:
        weights = 2 * weights.double() / weights.double().sum(-1, keepdim=True)
        reference = weights.expand(2, 7) / 2  # a rule over the measure
    expected = double_sum(layer, y, coords, reference)
    torch.testing.assert_close(layer(y, coords, weights), expected, rtol=1e-12, atol=1e-12)
    if coords is not None:
        own = coords.expand(2, -1, -1)
        torch.testing.assert_close(layer(y, own, weights), expected, rtol=1e-12, atol=1e-12)


@kinds
def test_equal_weights_are_the_default(kind) -> None:
    layer = scrambled(kind(6, 2))
    y = torch.randn(2, 7, 6).double()
    torch.testing.assert_close(
        layer(y, None, torch.full((7,), 1 / 7, dtype=torch.float64)), layer(y), rtol=1e-12, atol=1e-12
    )


def graded(n: int) -> tuple[Tensor, Tensor]:
    """Points x = s + 0.9 sin(2 pi s) / (2 pi) of (0, 1), nineteen times denser at one place than another, and trapezoidal weights."""
    s = torch.linspace(0, 1, n, dtype=torch.float64)
    x = s + 0.9 * torch.sin(2 * torch.pi * s) / (2 * torch.pi)
    h = x.diff()
    return x, torch.cat([h[:1], h[:-1] + h[1:], h[-1:]]) / 2


@kinds
def test_quadrature_weights_give_one_function_of_the_domain_on_any_points(kind) -> None:
    """On graded points the trapezoidal rule converges at second order, to the values of equidistant points."""
    layer = scrambled(kind(12, 2, 1))
    project = torch.randn(3, 12, dtype=torch.float64)

    def values(x: Tensor) -> Tensor:
        return torch.stack([torch.sin(3 * x), torch.exp(-x), x**2], dim=-1)[None] @ project

    def on_coarse_points(n: int) -> Tensor:
        x, weights = graded(n)
        return layer(values(x), x[:, None], weights)[:, :: (n - 1) // 16]

    fine = torch.linspace(0, 1, 4097, dtype=torch.float64)
    trapezoid = torch.full((4097,), 1 / 4096, dtype=torch.float64)
    trapezoid[[0, -1]] /= 2
    x, _ = graded(17)
    # The values at the coarse graded points, the integral on the fine equidistant ones: these 17 count with no weight.
    both = torch.cat([x, fine])
    weights = torch.cat([torch.full((17,), 1e-300, dtype=torch.float64), trapezoid])
    exact = layer(values(both), both[:, None], weights)[:, :17]
    with torch.no_grad():
        errors = [float((on_coarse_points(n) - exact).norm() / exact.norm()) for n in (65, 129, 257)]
        orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert all(1.8 < order < 2.2 for order in orders), (errors, orders)
        x, _ = graded(257)
        unweighted = layer(values(x), x[:, None])[:, ::16]
    assert (unweighted - exact).norm() > 1000 * errors[-1] * exact.norm(), "equal weights see the density of the points"


@kinds
def test_points_have_no_order(kind) -> None:
    layer = scrambled(TransformerLayer(kind(6, 2, 2), MLP((6, 9, 6), activation=nn.ReLU())))
    y, coords, weights = torch.randn(3, 11, 6).double(), torch.rand(3, 11, 2).double(), torch.rand(3, 11).double()
    weights /= weights.sum(-1, keepdim=True)
    order = torch.randperm(11)
    shuffled = layer(y[:, order], coords[:, order], weights[:, order])
    torch.testing.assert_close(shuffled, layer(y, coords, weights)[:, order], rtol=1e-12, atol=1e-12)


def flops(layer: nn.Module, n: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        layer(torch.randn(2, n, 8), torch.rand(n, 1))
    return counter.get_total_flops()


@kinds
def test_the_cost_is_linear_in_the_points(kind) -> None:
    """Counted: the same number of operations for every point that is added."""
    counts = [flops(kind(8, 2, 1), n) for n in (256, 512, 1024, 2048)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) and counts[3] - counts[2] == 4 * (counts[1] - counts[0])


def test_galerkin_attention_visits_the_points_less_often_than_its_definition() -> None:
    """Key and value, K^T V and the affine map from y: 4 n d^2 multiplications with one head, 6 n d^2 by the definition."""
    added = flops(GalerkinAttention(8, 1, 1), 512) - flops(GalerkinAttention(8, 1, 1), 256)
    assert added == 2 * 2 * 256 * (2 * 8 * 8 + 9 * 9 + 8 * 8 + 8)  # batch, a product and a sum, points


@kinds
def test_the_initialisation_is_dominated_by_its_diagonal(kind) -> None:
    torch.manual_seed(0)
    layer, gain, delta = kind(96, 4), 1e-2 if kind is GalerkinAttention else 1e-3, 1e-2
    bound = gain * math.sqrt(6 / (96 + 96))
    for linear in (layer.query, layer.key, layer.value):
        rest = linear.weight - delta * torch.eye(96)
        assert rest.abs().max() <= bound * (1 + 1e-5) and rest.std() > 0.5 * bound
        assert linear.weight.diagonal().min() > linear.weight[~torch.eye(96, dtype=torch.bool)].abs().max()
        assert not linear.bias.any()
    for norm in layer.norms.values():
        assert norm.weight.shape == (4, 24) and bool((norm.weight == 1).all()) and not norm.bias.any()
    assert set(kind(4, gain=0.0, diagonal=0.0).query.weight.unique().tolist()) == {0.0}


@kinds
def test_dropout_acts_in_training_only(kind) -> None:
    plain, noisy = kind(6, 2, 1), kind(6, 2, 1, dropout=0.5)
    noisy.load_state_dict(plain.state_dict())
    y, coords = torch.randn(2, 9, 6), torch.rand(9, 1)
    assert not torch.equal(noisy(y, coords), noisy(y, coords))
    noisy.eval()
    assert torch.equal(noisy(y, coords), plain(y, coords)) and torch.equal(noisy(y, coords), noisy(y, coords))


def test_fourier_attention_with_dropout_is_the_same_sum_in_the_paper_order() -> None:
    layer = scrambled(FourierAttention(6, 2, 1, dropout=0.5))
    y, coords = torch.randn(2, 7, 6).double(), torch.rand(7, 1).double()
    for weights in (None, torch.full((2, 7), 1 / 7, dtype=torch.float64)):
        expected = layer.eval()(y, coords, weights)
        layer.train().dropout.p = 0.0
        torch.testing.assert_close(layer(y, coords, weights), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_is_two_residual_steps() -> None:
    attention, perceptron = GalerkinAttention(6), MLP((6, 9, 6), activation=nn.ReLU())
    layer = TransformerLayer(attention, perceptron, dropout=0.3).eval()
    y = torch.randn(2, 7, 6)
    v = y + attention(y)
    assert torch.equal(layer(y), v + perceptron(v))
    assert not torch.equal(layer.train()(y), layer(y))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@kinds
@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((ones(2, 7, 5),), ValueError, r"\(2, 7, 5\) but \w+ expects \(batch, points, 6\)"),
        ((ones(7, 6),), ValueError, r"expects \(batch, points, 6\)"),
        ((ones(2, 7, 6).double(), ones(7, 1)), TypeError, "y is torch.float64"),
        ((ones(2, 7, 6),), ValueError, "coords were not given but .* dim=1"),
        ((ones(2, 7, 6), ones(7, 2)), ValueError, r"coords has shape \(7, 2\); expected \(7, 1\)"),
        ((ones(2, 7, 6), ones(3, 7, 1)), ValueError, r"or \(2, 7, 1\)"),
        ((ones(2, 7, 6), ones(7, 1), ones(6)), ValueError, r"weights has shape \(6,\); expected \(7,\)"),
        ((ones(2, 7, 6), ones(7, 1), ones(7)), ValueError, "sum to 7 but the measure of the domain is 1"),
        ((ones(2, 7, 6), ones(7, 1), ones(7) / 7 - ones(7) * 2e-4), ValueError, "sum to 0.9986"),
        ((ones(2, 7, 6), ones(7, 1), torch.tensor([2.0, -1, 0, 0, 0, 0, 0])), ValueError, "go down to -1"),
        ((ones(2, 7, 6), ones(7, 1), ones(7) * torch.nan), ValueError, "must be positive"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(kind, arguments, error, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        kind(6, 2, 1)(*arguments)


def test_coordinates_without_dim_are_refused() -> None:
    with pytest.raises(ValueError, match="coords were given but GalerkinAttention has dim=0"):
        GalerkinAttention(6)(ones(2, 7, 6), ones(7, 1))


@kinds
@pytest.mark.parametrize("values", [{"heads": 4}, {"heads": 0}, {"dim": -1}, {"measure": 0.0}])
def test_impossible_sizes_are_refused(kind, values) -> None:
    with pytest.raises(ValueError, match=r"must divide|positive measure"):
        kind(6, **values)


def test_unchecked_weights_are_taken_as_they_are() -> None:
    layer = scrambled(GalerkinAttention(6, measure=None))
    y = torch.randn(2, 7, 6).double()
    offset = layer.output.bias
    torch.testing.assert_close(
        layer(y, None, 3 * torch.ones(7).double() / 7) - offset, 3 * (layer(y) - offset), rtol=1e-12, atol=1e-12
    )
