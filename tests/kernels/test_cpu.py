"""What only the CPU kernels have: two forms of the transform, operators that PyTorch checks, memory of their own."""

from __future__ import annotations

import json

import pytest
import torch

from opflow.functional import fourier_block, spectral_conv
from opflow.kernels import cpu_products
from opflow.kernels.channel_mlp import cpu_kernel
from opflow.kernels.spectral_conv import SpectralConvCall, cpu_cost, cpu_transform
from opflow.kernels.spectral_conv.cpu_operators import dft_arguments
from opflow.kernels.spectral_conv.cpu_transform import FftTransform, MatrixTransform, analyse, synthesise
from opflow.layers import ChannelLinear, ChannelMLP, FourierLayer, SoftGate, SpectralConv

GRIDS = [
    ((9,), (6,)),
    ((320,), (6,)),
    ((326,), (320,)),
    ((3, 480), (2, 6)),
    ((8,), (8,)),
    ((6, 7), (4, 5)),
    ((8, 8), (8, 8)),
    ((7, 6), (9, 12)),
    ((4, 5, 6), (4, 3, 6)),
]
grids = pytest.mark.parametrize(("shape", "n_modes"), GRIDS, ids=str)


def call_of(shape, n_modes, dtype=torch.float64) -> SpectralConvCall:
    x, weight = torch.empty(1, 1, *shape, dtype=dtype), torch.empty(*n_modes[:-1], n_modes[-1] // 2 + 1, 2, 1, 1)
    return SpectralConvCall.of(x, weight.to(dtype), n_modes, None)


@grids
def test_both_forms_of_the_transform_agree(shape, n_modes) -> None:
    torch.manual_seed(0)
    call = call_of(shape, n_modes)
    for dft in (call.analysis(), call.synthesis()):
        x, spectrum = torch.randn(3, *shape, dtype=torch.float64), torch.randn(*dft.modes, 2, 3, dtype=torch.float64)
        matrix, fft = MatrixTransform(dft, torch.float64), FftTransform(dft)
        torch.testing.assert_close(matrix.analyse(x), fft.analyse(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(matrix.synthesise(spectrum), fft.synthesise(spectrum), rtol=1e-12, atol=1e-12)


@grids
@pytest.mark.parametrize("form", ["matrix", "fft"])
def test_analysis_and_synthesis_are_adjoint(shape, n_modes, form, monkeypatch) -> None:
    """<analyse x, Y> = <x, synthesise Y>: what makes every gradient exact."""
    monkeypatch.setattr(cpu_transform, "prefers_fft", lambda dft, dtype: form == "fft")
    cpu_transform.transform.cache_clear()
    torch.manual_seed(0)
    for dft in (call_of(shape, n_modes).analysis(), call_of(shape, n_modes).synthesis()):
        x, y = torch.randn(5, *shape, dtype=torch.float64), torch.randn(*dft.modes, 2, 5, dtype=torch.float64)
        assert abs((analyse(x, dft) * y).sum() - (x * synthesise(y, dft)).sum()) < 1e-12 * x.norm() * y.norm()
    cpu_transform.transform.cache_clear()


def test_chunks_change_nothing(monkeypatch) -> None:
    torch.manual_seed(0)
    dft = call_of((6, 7), (4, 4)).analysis()
    x, y = torch.randn(11, 6, 7, dtype=torch.float64), torch.randn(*dft.modes, 2, 11, dtype=torch.float64)
    whole = analyse(x, dft), synthesise(y, dft)
    monkeypatch.setattr(cpu_transform, "CHUNK_BYTES", 1000)
    for part, expected in zip((analyse(x, dft), synthesise(y, dft)), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-13, atol=1e-13)


def test_float32_errors_are_those_of_a_float32_fft() -> None:
    """At most 5e-7 relative to float64, forward and all gradients, also at sizes that FFTs dislike."""
    torch.manual_seed(0)
    for shape, n_modes in (((64, 64), (24, 24)), ((85, 85), (24, 24)), ((1000,), (32,)), ((16, 18, 20), (8, 8, 8))):
        kept = (*n_modes[:-1], n_modes[-1] // 2 + 1)
        exact = [torch.randn(2, 4, *shape).double(), torch.randn(*kept, 2, 4, 4).double()]
        g = torch.randn(2, 4, *shape)
        results = []
        for dtype, backend in ((torch.float64, "reference"), (torch.float32, "cpu")):
            parts = [part.to(dtype).requires_grad_() for part in exact]
            y = spectral_conv(*parts, n_modes, backend=backend)
            results.append([y, *torch.autograd.grad(y, parts, g.to(dtype))])
        for ours, truth in zip(results[1], results[0], strict=True):
            assert (ours.double() - truth).norm() <= 5e-7 * truth.norm(), shape


@pytest.mark.filterwarnings("ignore")  # opcheck runs the compiler's tracer, which warns of its own parts
def test_operators_pass_pytorchs_own_checks() -> None:
    torch.manual_seed(0)
    call, f64 = call_of((6, 5), (4, 4)), torch.float64
    x, spectrum = torch.randn(2, 3, 6, 5, dtype=f64), torch.randn(4, 3, 2, 2, 3, dtype=f64)
    ops, arguments = torch.ops.opflow, dft_arguments(call.analysis())
    torch.library.opcheck(ops.truncated_dft.default, (x.requires_grad_(), *arguments))
    torch.library.opcheck(ops.truncated_dft_adjoint.default, (spectrum.requires_grad_(), [6, 5], *arguments))
    weight, skip, bias = (torch.randn(s, dtype=f64, requires_grad=True) for s in ((4, 3, 2, 3, 3), (3, 3), (3,)))
    w1, b1, w2, b2 = (torch.randn(s, dtype=f64, requires_grad=True) for s in ((4, 3), (4,), (3, 4), (3,)))
    gate, nothing = bias.detach().clone().requires_grad_(), (None,) * 5
    for skip_and_bias, perceptron, gelu in (
        ((None, None), nothing, False), ((skip, bias), nothing, True),
        ((skip, bias), (w1, b1, w2, b2, gate), True), ((skip, bias), (w1, b1, w2, b2, gate), False),
    ):  # fmt: skip
        layer = (x, weight, *skip_and_bias, *perceptron, [4, 4], [6, 5], [6, 5], gelu, True)
        torch.library.opcheck(ops.fourier_layer.default, layer)
    points = torch.randn(2, 3, 30, dtype=f64, requires_grad=True)
    for given in ((points.detach().clone().requires_grad_(), bias), (None, None)):
        torch.library.opcheck(ops.channel_mlp.default, (points, w1, b1, w2, b2, *given, True))


def test_function_transforms() -> None:
    """The transforms of torch.func differentiate plain operations, which the dispatch chooses for them."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 2, 6, dtype=torch.float64), torch.randn(3, 2, 2, 3, dtype=torch.float64)
    direction = torch.randn_like(x)
    y, tangent = torch.func.jvp(lambda x: spectral_conv(x, weight, (4,)), (x,), (direction,))
    torch.testing.assert_close(tangent, spectral_conv(direction, weight, (4,), backend="reference"))
    torch.testing.assert_close(y, spectral_conv(x, weight, (4,), backend="reference"))

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return fourier_block(x[None], weight, (4,), torch.ones(3, 2).double(), torch.zeros(3).double()).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    weight = weight.requires_grad_()
    for sample, gradient in zip(x, per_sample, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(weight, sample), weight)[0])


def test_compiled_function_transforms() -> None:
    """The dispatch sees the transform inside a compiled function too."""
    layer, x = SpectralConv(2, 3, (4, 4)).double(), torch.randn(4, 2, 2, 8, 8, dtype=torch.float64)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(torch.vmap(layer), backend="eager")(x), torch.vmap(layer)(x))


def test_many_gradients_at_once() -> None:
    """is_grads_batched maps the backward pass, which the dispatch never sees."""
    torch.manual_seed(0)
    layer = FourierLayer(
        SpectralConv(3, 3, (4, 4)), ChannelLinear(3, 3), channel_mlp=ChannelMLP(3, 3), channel_mlp_skip=SoftGate(3)
    )
    for module in (layer.double(), SpectralConv(3, 3, (4, 4)).double(), ChannelMLP(3, 3).double()):
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
        leaves, y = [x, *module.parameters()], module(x)
        directions = torch.randn(4, *y.shape, dtype=torch.float64)
        together = torch.autograd.grad(y, leaves, directions, is_grads_batched=True, retain_graph=True)
        for i, direction in enumerate(directions):
            for many, one in zip(together, torch.autograd.grad(y, leaves, direction, retain_graph=True), strict=True):
                torch.testing.assert_close(many[i], one, rtol=1e-11, atol=1e-11)


def test_a_layer_does_not_keep_its_input_without_a_skip() -> None:
    """Between the passes only the truncated spectrum lives: the field itself is free to go."""
    weight = torch.randn(4, 3, 2, 3, 3, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        spectral_conv(torch.randn(2, 3, 64, 64, requires_grad=True), weight, (4, 4))
    assert sum(t.numel() for t in saved) < 2 * 3 * 64 * 64 / 4


def test_the_cost_table_is_complete_and_decides_by_shapes_alone() -> None:
    table = cpu_cost.cost_table()
    assert set(table) == {"float32", "float64"}
    assert all(set(row) == {"matrix", "smooth", "rough"} and min(row.values()) > 0 for row in table.values())
    few, many = call_of((8192,), (16,)).analysis(), call_of((8192,), (8192,)).analysis()
    assert not cpu_cost.prefers_fft(few, torch.float32) and cpu_cost.prefers_fft(many, torch.float32)
    prime = call_of((241, 241), (24, 24)).analysis()
    assert not cpu_cost.prefers_fft(prime, torch.float32)
    # 2 rows of real and imaginary part, 2 operations an entry: what a dense product of the last axis costs.
    assert cpu_cost.matrix_work(call_of((10,), (4,)).analysis()) == 2 * (2 * 3) * 10
    assert json.loads(json.dumps(table)) == table


def test_products_of_any_strides() -> None:
    torch.manual_seed(0)
    wide = torch.randn(6, 40)
    for weight in (wide, wide[:, ::2], wide[:, 3:20], wide.t(), wide[:, 3:20].t(), wide[1:3, ::3].t()):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(5, weight.shape[1], dtype=dtype)
            expected = x.double() @ weight.double().t()
            torch.testing.assert_close(
                cpu_products.product(x, weight.to(dtype)).double(), expected, rtol=1e-5, atol=1e-5
            )
    assert cpu_products.product(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_products_without_onednn(monkeypatch) -> None:
    monkeypatch.setattr(cpu_products, "_onednn_linear", lambda: None)
    x, weight = torch.randn(5, 7), torch.randn(3, 7)
    assert torch.equal(cpu_products.product(x, weight), torch.mm(x, weight.t()))


def test_pieces_cover_the_field_once() -> None:
    for shape in ((1, 3, 5), (40, 3, 5), (3, 64, 100_000), (2, 3, 0), (0, 3, 8)):
        counts, unused = torch.zeros(shape), torch.empty(0)
        perceptron = cpu_kernel.Perceptron(torch.empty(64, shape[1]), unused, torch.empty(3, 64), unused, None)
        for piece in cpu_kernel._pieces(counts, perceptron):
            counts[piece] += 1
        assert (counts == 1).all()


@pytest.mark.parametrize("watched", ["conv", "skip", "activation", "channel_mlp", "channel_mlp_skip"])
def test_a_hook_is_called_though_the_layer_is_fused(watched) -> None:
    torch.manual_seed(0)
    layer = FourierLayer(
        SpectralConv(3, 3, (4, 4)), ChannelLinear(3, 3), channel_mlp=ChannelMLP(3, 3), channel_mlp_skip=SoftGate(3)
    )
    x, seen = torch.randn(2, 3, 8, 8), []
    expected = layer(x)
    getattr(layer, watched).register_forward_hook(lambda module, given, result: seen.append(result))
    torch.testing.assert_close(layer(x), expected)
    assert seen


def test_parts_of_another_kind_run_one_by_one() -> None:
    """ReLU, a norm, tanh-GELU, a perceptron of three maps: the same layer by parts, to rounding where it can be compared."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)

    def layer(**kinds) -> FourierLayer:
        torch.manual_seed(1)
        return FourierLayer(SpectralConv(3, 3, (4, 4)), ChannelLinear(3, 3), **kinds)

    for kinds in (
        {"activation": torch.nn.ReLU()},
        {"norm": torch.nn.GroupNorm(1, 3)},
        {"activation": torch.nn.GELU("tanh")},
    ):
        made = layer(**kinds)
        y = made.conv(x) + made.skip(x)
        y = y if made.norm is None else made.norm(y)
        assert torch.equal(made(x), made.activation(y))
    deep = layer(channel_mlp=ChannelMLP(3, 3, n_layers=3), channel_mlp_skip=SoftGate(3))
    u = deep.activation(deep.conv(x) + deep.skip(x))
    torch.testing.assert_close(deep(x), deep.activation(deep.channel_mlp(u) + deep.channel_mlp_skip(x)))
