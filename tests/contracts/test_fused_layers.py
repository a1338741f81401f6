"""One row a backend of the fused layers: `fourier_block` and `channel_mlp` equal their parts, with all derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from opflow.functional import channel_mlp, fourier_block, spectral_conv
from opflow.kernels.channel_mlp import BACKENDS as MLP_BACKENDS
from opflow.kernels.channel_mlp import ChannelMLPCall
from opflow.kernels.spectral_conv import BACKENDS, SpectralConvCall

blocks = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
mlps = pytest.mark.parametrize("backend", MLP_BACKENDS, ids=lambda backend: backend.name)
SHAPES = [((9,), (4,)), ((8,), (12,)), ((6, 7), (4, 5)), ((8, 8), (8, 8)), ((5, 1), (3, 2)), ((4, 3, 5), (3, 3, 4))]
shapes = pytest.mark.parametrize(("shape", "n_modes"), SHAPES, ids=str)


def block_parts(shape, n_modes, c_in=2, c_out=3, dtype=torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    kept = (*n_modes[:-1], n_modes[-1] // 2 + 1)
    sizes = ((2, c_in, *shape), (*kept, 2, c_in, c_out), (c_out, c_in), (c_out,))
    return [torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes]


def by_parts(x, weight, skip, bias, n_modes, activation) -> Tensor:
    y = spectral_conv(x, weight, n_modes, backend="reference") + torch.einsum("oi,bi...->bo...", skip, x)
    y = y + bias.view(-1, *[1] * (x.ndim - 2))
    return gelu(y) if activation else y


def block_of(backend, parts, n_modes) -> str:
    reason = backend.refusal(SpectralConvCall.of(parts[0], parts[1], n_modes, None))
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")
    return backend.name


@blocks
@shapes
@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize("channels", [(2, 3), (3, 3)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_a_block_equals_its_parts(backend, shape, n_modes, activation, channels, dtype, tolerance) -> None:
    """Value and first derivatives, against the parts in float64."""
    exact = [part.requires_grad_() for part in block_parts(shape, n_modes, *channels)]
    parts = [part.detach().to(dtype).requires_grad_() for part in exact]
    name = block_of(backend, parts, n_modes)
    y = fourier_block(parts[0], parts[1], n_modes, *parts[2:], activation=activation, backend=name)
    expected = by_parts(*exact, n_modes, activation)
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()
    g = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(y, parts, g.to(dtype)), torch.autograd.grad(expected, exact, g), strict=True
    ):
        assert (ours.double() - theirs).abs().max() <= 3 * tolerance * theirs.abs().max()
    with torch.no_grad():
        again = fourier_block(parts[0], parts[1], n_modes, *parts[2:], activation=activation, backend=name)
    assert torch.equal(again, y)


@blocks
@pytest.mark.parametrize(("shape", "n_modes"), [((5,), (4,)), ((4, 3), (4, 4)), ((2, 3, 4), (2, 3, 6))], ids=str)
@pytest.mark.parametrize("activation", ["gelu", None])
def test_a_block_has_derivatives_of_second_order(backend, shape, n_modes, activation) -> None:
    parts = [part.requires_grad_() for part in block_parts(shape, n_modes, 2, 1)]
    name = block_of(backend, parts, n_modes)

    def function(*p: Tensor) -> Tensor:
        return fourier_block(p[0], p[1], n_modes, *p[2:], activation=activation, backend=name)

    assert torch.autograd.gradcheck(function, parts)
    assert torch.autograd.gradgradcheck(function, parts)


@blocks
def test_a_block_keeps_its_input_and_survives_a_second_backward_pass(backend) -> None:
    """The backward pass works in place on memory of its own only."""
    parts = [part.requires_grad_() for part in block_parts((8, 7), (4, 4), 3, 3)]
    y = fourier_block(parts[0], parts[1], (4, 4), *parts[2:], backend=block_of(backend, parts, (4, 4)))
    before, g = [part.detach().clone() for part in parts], torch.randn_like(y)
    kept = g.clone()
    first = torch.autograd.grad(y, parts, g, retain_graph=True)
    copies = [part.clone() for part in first]
    second = torch.autograd.grad(y, parts, g)
    for a, b, c in zip(first, copies, second, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert torch.equal(g, kept) and all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


@blocks
def test_many_tiny_and_few_large_samples_take_the_same_path_to_rounding(backend) -> None:
    x, weight, skip, bias = block_parts((6, 5), (4, 4), 3, 3)
    name = block_of(backend, (x, weight), (4, 4))
    many = x.repeat(40, 1, 1, 1)
    y = fourier_block(many, weight, (4, 4), skip, bias, backend=name)
    expected = fourier_block(x, weight, (4, 4), skip, bias, backend=name).repeat(40, 1, 1, 1)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@blocks
def test_an_empty_batch_passes_a_block(backend) -> None:
    parts = block_parts((6, 5), (4, 4), 2, 3)
    parts = [parts[0][:0].requires_grad_(), *[part.requires_grad_() for part in parts[1:]]]
    y = fourier_block(parts[0], parts[1], (4, 4), *parts[2:], backend=block_of(backend, parts, (4, 4)))
    assert y.shape == (0, 3, 6, 5)
    y.sum().backward()
    assert all(part.grad is not None and not part.grad.any() for part in parts)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"skip": torch.zeros(3, 3)}, r"skip has shape \(3, 3\).*expected \(5, 3\)"),
        ({"bias": torch.zeros(3)}, r"bias \(3,\)"),
        ({"activation": "relu"}, r"activation is 'relu'; choose one of"),
        ({"backend": "cuda"}, r"backend 'cuda' is unknown"),
    ],
)
def test_a_block_refuses_in_a_sentence(change, sentence) -> None:
    given = {"skip": torch.zeros(5, 3), "bias": torch.zeros(5), **change}
    with pytest.raises(ValueError, match=sentence):
        fourier_block(torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 2, 3, 5), (4, 4), **given)
    with pytest.raises(TypeError, match=r"skip and bias are .*float64"):
        fourier_block(torch.zeros(2, 3, 8), torch.zeros(3, 2, 3, 5), (4,), torch.zeros(5, 3).double(), torch.zeros(5))


@blocks
@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize(("shape", "n_modes"), [((9,), (4,)), ((6, 7), (4, 5)), ((4, 3, 5), (3, 3, 4))], ids=str)
def test_a_block_with_a_perceptron_equals_its_parts(backend, shape, n_modes, activation) -> None:
    """Value, first and second derivatives of s(M(s(K x + W x + b)) + g x)."""
    parts = block_parts(shape, n_modes, 2, 2)
    name = block_of(backend, parts, n_modes)
    parts += [torch.randn(size, dtype=torch.float64) for size in ((3, 2), (3,), (2, 3), (2,), (2,))]
    leaves = [part.requires_grad_() for part in parts]

    def whole(x, weight, skip, bias, w1, b1, w2, b2, gate) -> Tensor:
        return fourier_block(
            x, weight, n_modes, skip, bias, activation=activation, perceptron=(w1, b1, w2, b2), gate=gate, backend=name
        )

    def in_parts(x, weight, skip, bias, w1, b1, w2, b2, gate) -> Tensor:
        return mlp_by_parts(by_parts(x, weight, skip, bias, n_modes, activation), w1, w2, b1, b2, x, gate, activation)

    y, expected = whole(*leaves), in_parts(*leaves)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(whole(*leaves), y)
    if len(shape) == 2 and name != "triton":
        assert torch.autograd.gradgradcheck(whole, leaves, fast_mode=True)


def test_a_perceptron_without_a_gate_is_refused() -> None:
    x, weight, skip, bias = block_parts((6, 5), (4, 4), 2, 2)
    mlp = tuple(torch.zeros(size, dtype=torch.float64) for size in ((3, 2), (3,), (2, 3), (2,)))
    with pytest.raises(ValueError, match="gate not given; give both"):
        fourier_block(x, weight, (4, 4), skip, bias, perceptron=mlp)
    with pytest.raises(ValueError, match=r"perceptron and gate have shapes .*expected \(hidden, 2\)"):
        fourier_block(x, weight, (4, 4), skip, bias, perceptron=(*mlp[:3], bias[:1]), gate=bias)


# --- the perceptron along the channels ------------------------------------------------------------------------------


def mlp_parts(points=(6, 5), widths=(3, 4, 2), beside=True, dtype=torch.float64) -> list[Tensor | None]:
    torch.manual_seed(0)
    c_in, hidden, c_out = widths
    sizes = ((2, c_in, *points), (hidden, c_in), (c_out, hidden), (hidden,), (c_out,))
    parts = [torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes]
    if not beside:
        return [*parts, None, None]
    return [*parts, torch.randn(2, c_out, *points, dtype=torch.float64).to(dtype), torch.randn(c_out).to(dtype)]


def mlp(parts, activation, backend=None) -> Tensor:
    x, w1, w2, b1, b2, beside, gate = parts
    return channel_mlp(x, (w1, w2), (b1, b2), beside=beside, gate=gate, activation=activation, backend=backend)


def mlp_by_parts(x, w1, w2, b1, b2, beside, gate, activation) -> Tensor:
    def column(b: Tensor) -> Tensor:
        return b.view(-1, *[1] * (x.ndim - 2))

    hidden = gelu(torch.einsum("hi,bi...->bh...", w1, x) + column(b1))
    y = torch.einsum("oh,bh...->bo...", w2, hidden) + column(b2)
    y = y if beside is None else y + column(gate) * beside
    return gelu(y) if activation else y


@mlps
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("activation", ["gelu", None])
@pytest.mark.parametrize("points", [(7,), (6, 5), (3, 2, 4), (150, 130)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=str)
def test_a_perceptron_equals_its_parts(backend, beside, activation, points, dtype, tolerance) -> None:
    """Also on a grid that is worked on piece by piece."""
    widths = (3, 4, 2) if len(points) != 2 else (16, 24, 16)
    exact = [p if p is None else p.requires_grad_() for p in mlp_parts(points, widths, beside)]
    parts = [p if p is None else p.detach().to(dtype).requires_grad_() for p in exact]
    y, expected = mlp(parts, activation, backend.name), mlp_by_parts(*exact, activation)
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()
    g = torch.randn_like(expected)
    leaves = [[p for p in ps if p is not None] for ps in (parts, exact)]
    pairs = zip(
        torch.autograd.grad(y, leaves[0], g.to(dtype)), torch.autograd.grad(expected, leaves[1], g), strict=True
    )
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


@mlps
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("activation", ["gelu", None])
def test_a_perceptron_has_derivatives_of_second_order(backend, beside, activation) -> None:
    parts = [p if p is None else p.requires_grad_() for p in mlp_parts((2, 2), (2, 3, 2), beside)]
    leaves = [p for p in parts if p is not None]

    def function(*given: Tensor) -> Tensor:
        return mlp([*given, *[None] * (7 - len(given))], activation, backend.name)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@mlps
def test_an_empty_batch_passes_a_perceptron(backend) -> None:
    parts = mlp_parts()
    parts[0], parts[5] = parts[0][:0].requires_grad_(), parts[5][:0]
    y = mlp(parts, "gelu", backend.name)
    assert y.shape == (0, 2, 6, 5)
    y.sum().backward()
    assert parts[0].grad is not None


def test_a_perceptron_says_why_a_backend_does_not_serve() -> None:
    half = [p if p is None else p.bfloat16() for p in mlp_parts()]
    with pytest.raises(ValueError, match=r"'cpu' was asked for, but x is torch.bfloat16"):
        mlp(half, None, "cpu")
    assert mlp(half, None).dtype == torch.bfloat16
    mixed = mlp_parts()
    reason = ChannelMLPCall.of(mixed[0], mixed[1].float()).only_reference
    assert reason == "the tensors have several dtypes"


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        (0, torch.zeros(2, 4, 6, 5), r"x has shape \(2, 4, 6, 5\), the weights \(4, 3\)"),
        (2, torch.zeros(2, 3), r"weights \(4, 3\) and \(2, 3\)"),
        (3, torch.zeros(2), r"biases \(2,\)"),
        (5, torch.zeros(2, 2, 6, 4), r"beside is \(2, 2, 6, 4\).*\(2, 2, 6, 5\)"),
        (6, None, r"gate None; give both"),
    ],
)
def test_a_perceptron_refuses_in_a_sentence(place, wrong, sentence) -> None:
    parts = mlp_parts(dtype=torch.float32)
    parts[place] = wrong
    with pytest.raises(ValueError, match=sentence):
        mlp(parts, None)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        mlp(mlp_parts(), "tanh")
