"""The transcription of the peer computes what the definition says at even sizes, and what the peer does wherever that is."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from benchmarks import definition, peer
from benchmarks.layer_sides import BlockSides, LayerSides, as_pairs, channels_last, must_be_right
from benchmarks.model_sides import ModelSides, apart, double_reference
from opflow.functional import spectral_conv
from opflow.interop import from_neuraloperator

needs_peer = pytest.mark.skipif(
    peer.neuraloperator() is None, reason="neuraloperator, the peer to compare with, is not installed (extra: bench)"
)
# (n_modes, grid) with even leading axes, and with odd ones, where the released peer misplaces frequencies.
EVEN = [((8,), (16,)), ((8,), (17,)), ((6, 8), (16, 12)), ((5, 7), (12, 9)), ((6, 8), (6, 8)), ((4, 6, 5), (8, 10, 6))]
ODD = [((6, 8), (15, 12)), ((4, 6, 5), (7, 10, 6))]


@pytest.mark.parametrize(("n_modes", "grid"), [*EVEN, *ODD])
def test_the_definition_is_the_function_of_opflow(n_modes, grid) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    weight = torch.randn(*n_modes[:-1], n_modes[-1] // 2 + 1, 2, 3, 4, dtype=torch.float64)
    expected = spectral_conv(x, weight, n_modes, backend="reference")
    assert (definition.spectral_conv(x, weight, n_modes) - expected).abs().max() < 1e-12


def test_the_definition_refuses_grids_that_are_too_coarse() -> None:
    with pytest.raises(ValueError, match="fewer points than modes"):
        definition.spectral_conv(torch.zeros(1, 1, 4), torch.zeros(5, 2, 1, 1), (8,))


@pytest.mark.parametrize(("n_modes", "grid"), EVEN)
def test_both_layers_are_the_definition(n_modes, grid) -> None:
    """Also their gradients; the peer, where it is not installed, is its transcription."""
    for last in (False, True):
        sides = LayerSides(grid, 4, 2, n_modes, last=last)
        errors = sides.errors("ours", "peer", "transcription")
        for side, found in errors.items():
            must_be_right(found, side)
            assert max(found.values()) < 1e-6, (side, found)


@pytest.mark.parametrize(("n_modes", "grid"), ODD)
def test_odd_leading_axes_are_wrong_as_released(n_modes, grid) -> None:
    errors = LayerSides(grid, 4, 2, n_modes).errors("ours", "peer", "transcription")
    assert max(errors["ours"].values()) < 1e-6
    assert errors["transcription"]["y"] > 0.1
    assert errors["transcription"]["y"] == pytest.approx(errors["peer"]["y"], rel=1e-4)
    with pytest.raises(AssertionError, match="a wrong answer is not timed"):
        must_be_right(errors["peer"], "the peer")


def test_a_channels_last_field_is_the_same_field() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(channels_last(x), x) and channels_last(x).stride(1) == 1


@pytest.mark.parametrize(("n_modes", "grid"), [((8,), (16,)), ((6, 6), (12, 10))])
def test_a_whole_fourier_layer(n_modes, grid) -> None:
    errors = BlockSides(grid, 4, 2, n_modes).errors()
    assert max(errors["ours"].values()) < 1e-6 and errors["peer"]["y"] < 1e-6


@pytest.mark.parametrize("channel_mlp", [True, False])
@pytest.mark.parametrize(
    ("n_modes", "grid"), [((6,), (16,)), ((6, 8), (12, 10)), ((6, 8), (11, 9)), ((4, 4, 4), (6, 6, 6))]
)
def test_models_have_equal_sizes_and_outputs(n_modes, grid, channel_mlp) -> None:
    sides = ModelSides(grid, 4, 2, n_modes, channel_mlp=channel_mlp)
    assert len(set(sides.parameter_counts().values())) == 1
    errors = sides.errors()
    assert errors["output, ours and float64"] < 1e-5 and errors["gradients, ours and float64"] < 1e-5
    if not any(n % 2 for n in grid[:-1]):
        assert errors["output, ours and the peer"] < 1e-5


def test_the_float64_reference_of_a_model_takes_the_reference_backend() -> None:
    sides = ModelSides((8, 8), 4, 1, (4, 4))
    exact = double_reference(sides.models["ours"])
    assert {p.dtype for p in exact.parameters()} == {torch.float64}
    assert {block.conv.backend for block in exact.blocks} == {"reference"}
    assert {block.conv.backend for block in sides.models["ours"].blocks} == {None}


def test_weights_of_the_transcription_convert() -> None:
    torch.manual_seed(0)
    transcription = peer.fno((6, 6), 4, transcribed=True)
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        assert apart(from_neuraloperator(transcription.state_dict())(x), transcription(x)) < 1e-5


@needs_peer
@pytest.mark.parametrize(("n_modes", "grid"), [*EVEN, *ODD])
@pytest.mark.parametrize("bias", [True, False])
def test_the_transcribed_layer_equals_the_peers_bit_for_bit(n_modes, grid, bias) -> None:
    torch.manual_seed(0)
    theirs, ours = (peer.spectral_conv(4, n_modes, bias=bias, transcribed=t) for t in (False, True))
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if isinstance(v, Tensor)})
    x = torch.randn(2, 4, *grid, requires_grad=True)
    g = torch.randn(2, 4, *grid)
    results = [[y, *torch.autograd.grad(y, [x, *m.parameters()], g)] for m in (theirs, ours) for y in [m(x)]]
    by_name = [
        dict(zip(["y", "x", *dict(m.named_parameters())], r, strict=True))
        for m, r in zip((theirs, ours), results, strict=True)
    ]
    for name, value in by_name[0].items():
        assert torch.equal(value, by_name[1][name]), name


@needs_peer
@pytest.mark.parametrize("channel_mlp", [True, False])
@pytest.mark.parametrize(
    ("n_modes", "grid"), [((6,), (16,)), ((6, 8), (12, 10)), ((6, 8), (11, 9)), ((4, 4, 4), (6, 6, 6))]
)
def test_the_transcribed_model_equals_the_peers(n_modes, grid, channel_mlp) -> None:
    sides = ModelSides(grid, 4, 2, n_modes, channel_mlp=channel_mlp)
    assert sides.errors()["output, the transcription and the peer"] < 1e-6
    names = [sorted(dict(sides.models[side].named_parameters())) for side in ("peer", "transcription")]
    assert names[0] == names[1]
    gradients = [
        dict(zip(dict(sides.models[s].named_parameters()), sides.step(s)[1:], strict=True))
        for s in ("peer", "transcription")
    ]
    for name in names[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-4, atol=1e-5)


@needs_peer
@pytest.mark.slow
def test_the_transcription_takes_the_peers_time() -> None:
    """Loosely, since other programs run beside tests; `benchmarks.spectral_conv` measures it to 5 % on a quiet machine."""
    sides = LayerSides((64, 64), 32, 20, (24, 24))
    fastest = {}
    for side in ("peer", "transcription"):
        times = []
        for _ in range(10):
            start = time.perf_counter()
            sides.step(side)
            times.append(time.perf_counter() - start)
        fastest[side] = min(times)
    assert 0.7 < fastest["transcription"] / fastest["peer"] < 1.4


def test_complex_weights_as_pairs() -> None:
    weight = torch.randn(2, 3, 5, 4, dtype=torch.cfloat)
    pairs = as_pairs(weight)
    assert pairs.shape == (5, 4, 2, 2, 3) and pairs[1, 2, 1, 0, 2] == weight[0, 2, 1, 2].imag
