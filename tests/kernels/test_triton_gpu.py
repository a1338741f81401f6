"""The Triton kernels on a CUDA device: errors against float64, gradients, graphs, compilation, equal bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from opflow.functional import explain_backend, fourier_block, spectral_conv
from opflow.kernels.spectral_conv.call import weight_grid
from opflow.models import FNO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CASES = [
    # shape, n_modes, channels
    ((128, 128), (24, 24), (64, 64)),
    ((85, 85), (24, 24), (32, 32)),
    ((241, 60), (32, 16), (20, 130)),
    ((16, 18), (16, 18), (3, 5)),
    ((140, 150), (126, 126), (4, 4)),
    ((8192,), (32,), (64, 64)),
    ((1021,), (64,), (3, 70)),
    ((13,), (40,), (2, 3)),
    ((64, 64, 40), (16, 16, 16), (20, 20)),
    ((7, 9, 5), (40, 4, 6), (2, 3)),
]
cases = pytest.mark.parametrize(("shape", "n_modes", "channels"), CASES, ids=str)


def arguments(shape, n_modes, channels, batch: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, skip and bias, after filling free memory with NaN: what a kernel leaves unwritten shows."""
    torch.manual_seed(0)
    c_in, c_out = channels
    sizes = ((batch, c_in, *shape), (*weight_grid(n_modes), 2, c_in, c_out), (c_out, c_in), (c_out,))
    x, weight, skip, bias = (torch.randn(size, device="cuda") for size in sizes)
    poison = [torch.full((1 << 24,), torch.nan, device="cuda") for _ in range(8)]
    del poison
    return [x.to(dtype), weight / c_in**0.5, skip / c_in**0.5, bias]


def values_and_gradients(backend: str, parts: list[Tensor], n_modes, activation: str | None = "gelu") -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in parts]
    x, weight, *rest = leaves
    if rest:
        y = fourier_block(x, weight, n_modes, *rest, activation=activation, backend=backend)
    else:
        y = spectral_conv(x, weight, n_modes, backend=backend)
    # Not of mean zero: the gradient of the bias is its sum, and should not be what is left of a cancellation.
    g = 0.5 + torch.cos(torch.arange(y.numel(), device="cuda", dtype=torch.float64)).view_as(y)
    g = g.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(autouse=True)
def default_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9 warns of a default that will change."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture
def tf32() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@cases
@pytest.mark.parametrize("activation", ["convolution", "gelu", None])
def test_equals_the_float64_reference(shape, n_modes, channels, activation) -> None:
    parts = arguments(shape, n_modes, channels)
    parts = parts[:2] if activation == "convolution" else parts
    expected = values_and_gradients("reference", [part.double() for part in parts], n_modes, activation)
    found = values_and_gradients("triton", parts, n_modes, activation)
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= 1e-6, errors


@cases
def test_tf32_is_opt_in(shape, n_modes, channels, tf32) -> None:
    parts = arguments(shape, n_modes, channels)
    expected = values_and_gradients("reference", [part.double() for part in parts], n_modes)
    errors = [relative(a, b) for a, b in zip(values_and_gradients("triton", parts, n_modes), expected, strict=True)]
    assert max(errors) <= 3e-3, errors


@cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_fields(shape, n_modes, channels, dtype) -> None:
    parts = arguments(shape, n_modes, channels, dtype=dtype)
    expected = values_and_gradients("reference", [part.double() for part in parts], n_modes)
    found = values_and_gradients("triton", parts, n_modes)
    assert found[0].dtype == found[1].dtype == dtype and found[2].dtype == torch.float32
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= 2 * torch.finfo(dtype).eps, errors


@cases
def test_two_runs_give_equal_bits(shape, n_modes, channels) -> None:
    parts = arguments(shape, n_modes, channels)
    first, second = (values_and_gradients("triton", parts, n_modes) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_memory_layout_and_alignment_do_not_matter() -> None:
    x, weight, skip, bias = arguments((33, 31), (12, 12), (5, 6))
    expected = fourier_block(x, weight, (12, 12), skip, bias, backend="triton")
    channels_last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    assert shifted.data_ptr() % 16
    for other in (channels_last, shifted, x.expand(2, *x.shape)[1]):
        torch.testing.assert_close(fourier_block(other, weight, (12, 12), skip, bias, backend="triton"), expected)


def test_another_output_grid() -> None:
    x, weight = arguments((64, 63), (24, 24), (8, 8))[:2]
    for output_shape in ((128, 127), (31, 40), (1, 5)):
        y = spectral_conv(x, weight, (24, 24), output_shape=output_shape, backend="triton")
        expected = spectral_conv(x.double(), weight.double(), (24, 24), output_shape=output_shape, backend="reference")
        assert relative(y, expected) <= 1e-6


def test_second_derivatives_equal_the_reference() -> None:
    parts = arguments((20, 21), (8, 8), (3, 4))
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [part.detach().to(dtype).requires_grad_() for part in parts]
        y = fourier_block(leaves[0], leaves[1], (8, 8), *leaves[2:], backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    assert max(relative(a, b) for a, b in zip(*results, strict=True)) < 1e-5


def test_a_captured_graph_replays_forward_and_backward() -> None:
    parts = [part.requires_grad_() for part in arguments((64, 64), (16, 16), (16, 16))]

    def step() -> list[Tensor]:
        y = fourier_block(parts[0], parts[1], (16, 16), *parts[2:], backend="triton")
        return [y, *torch.autograd.grad(y.square().sum(), parts)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled and tables made before the capture
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            parts[0].copy_(torch.randn_like(parts[0]))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile_without_a_break(mode) -> None:
    weight, skip, bias = arguments((64, 64), (16, 16), (8, 8))[1:]

    def two_layers(x: Tensor, weight: Tensor) -> Tensor:
        y = fourier_block(x, weight, (16, 16), skip, bias, backend="triton")
        return spectral_conv(y.sin(), weight, (16, 16), backend="triton")

    compiled = torch.compile(two_layers, fullgraph=True, mode=mode)
    for shape in ((64, 64), (64, 64), (48, 64)):
        leaves = [torch.randn(3, 8, *shape, device="cuda").requires_grad_(), weight.clone().requires_grad_()]
        expected = two_layers(*leaves)
        wanted = torch.autograd.grad(expected.square().sum(), leaves)
        for _ in range(4):
            y = compiled(*leaves)
            found = torch.autograd.grad(y.square().sum(), leaves)
            assert relative(y, expected) < 1e-6
            assert max(relative(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-6


def test_a_model_takes_the_kernels_and_trains_as_the_reference() -> None:
    torch.manual_seed(0)
    model = FNO.build((12, 12), 2, 1, 16).cuda()
    x = torch.randn(4, 2, 48, 50, device="cuda")
    assert "triton: chosen" in explain_backend(x[:, :1], torch.randn(12, 7, 2, 1, 1, device="cuda"), (12, 12))
    y = model(x)
    y.square().mean().backward()
    wanted = model.double()(x.double())
    assert relative(y, wanted) < 1e-5


def test_float64_is_left_to_the_reference_and_refused_by_name() -> None:
    x, weight = (part.double() for part in arguments((9,), (4,), (1, 1))[:2])
    assert "reference: chosen" in explain_backend(x, weight, (4,))
    with pytest.raises(ValueError, match=r"'triton' was asked for, but x is torch\.float64"):
        spectral_conv(x, weight, (4,), backend="triton")
