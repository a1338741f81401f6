"""The Triton kernels in Triton's interpreter; `test_triton_interpreter.py` runs this file in a process of its own.

The oracle is the reference backend in float64; in the interpreter the kernels run in float64 too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opflow.files import write_json
from opflow.functional import explain_backend, fourier_block, spectral_conv
from opflow.kernels.spectral_conv import triton_operators
from opflow.kernels.spectral_conv.call import SpectralConvCall, weight_grid
from opflow.kernels.spectral_conv.triton_backend import Triton
from opflow.kernels.spectral_conv.triton_queue import INTERPRETED, Queue, precision
from opflow.kernels.spectral_conv.triton_tables import tables

CASES = [
    # shape, n_modes: 1D to 3D; odd, prime, size 1; modes below, at and beyond the Nyquist limit
    ((9,), (6,)),
    ((8, 6), (8, 6)),
    ((7, 5), (4, 9)),
    ((1, 8), (3, 4)),
    ((3, 4, 5), (2, 4, 4)),
]
cases = pytest.mark.parametrize(("shape", "n_modes"), CASES, ids=str)
slow_cases = pytest.mark.parametrize(
    ("shape", "n_modes", "channels", "batch"),
    [
        ((40, 37), (12, 16), (3, 4), 2),
        ((37, 40), (36, 34), (2, 3), 1),
        ((80, 70), (66, 68), (1, 2), 1),
        ((19, 18), (6, 8), (70, 35), 1),
        ((5, 6), (3, 4), (35, 70), 2),
        ((600,), (24,), (3, 2), 2),
        ((17, 12, 20), (8, 6, 10), (2, 3), 2),
    ],
    ids=str,
)


def arguments(
    shape: tuple[int, ...],
    n_modes: tuple[int, ...],
    channels: tuple[int, int] = (2, 3),
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """x, weight, skip and bias."""
    torch.manual_seed(0)
    c_in, c_out = channels
    sizes = ((batch, c_in, *shape), (*weight_grid(n_modes), 2, c_in, c_out), (c_out, c_in), (c_out,))
    x, *parameters = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return [x.to(dtype), *(p.to(torch.promote_types(dtype, torch.float32)) for p in parameters)]


def values_and_gradients(backend: str, parts: list[Tensor], n_modes, activation: str | None) -> list[Tensor]:
    """A block, or a convolution where there is no skip, with the gradients of a fixed functional."""
    leaves = [part.detach().requires_grad_() for part in parts]
    x, weight, *rest = leaves
    if rest:
        y = fourier_block(x, weight, n_modes, *rest, activation=activation, backend=backend)
    else:
        y = spectral_conv(x, weight, n_modes, backend=backend)
    g = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, g)]


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def test_the_interpreter_is_on() -> None:
    assert INTERPRETED and "triton: chosen" in explain_backend(*arguments((8,), (4,))[:2], (4,))


@cases
@pytest.mark.parametrize("activation", ["gelu", None])
def test_a_block_and_its_gradients_equal_the_reference(shape, n_modes, activation) -> None:
    parts = arguments(shape, n_modes)
    expected = values_and_gradients("reference", parts, n_modes, activation)
    for found, wanted in zip(values_and_gradients("triton", parts, n_modes, activation), expected, strict=True):
        assert relative(found, wanted) < 1e-13


@cases
def test_float32_errors_are_those_of_float32(shape, n_modes) -> None:
    parts = arguments(shape, n_modes, dtype=torch.float32)
    for chosen in (parts[:2], parts):
        expected = values_and_gradients("reference", [part.double() for part in chosen], n_modes, "gelu")
        for found, wanted in zip(values_and_gradients("triton", chosen, n_modes, "gelu"), expected, strict=True):
            assert found.dtype == torch.float32 and relative(found, wanted) < 1e-6


@pytest.mark.slow
@slow_cases
def test_larger_sizes_equal_the_reference(shape, n_modes, channels, batch) -> None:
    """Several tiles an axis, wider tables, more channels than one tile, chunks of a sum."""
    parts = arguments(shape, n_modes, channels, batch)
    for chosen in (parts[:2], parts):
        expected = values_and_gradients("reference", chosen, n_modes, "gelu")
        for found, wanted in zip(values_and_gradients("triton", chosen, n_modes, "gelu"), expected, strict=True):
            assert relative(found, wanted) < 1e-12


def test_long_lines_are_summed_in_chunks() -> None:
    parts = arguments((600,), (8,), (1, 1), 1)
    expected = values_and_gradients("reference", parts, (8,), "gelu")
    for found, wanted in zip(values_and_gradients("triton", parts, (8,), "gelu"), expected, strict=True):
        assert relative(found, wanted) < 1e-13


def test_many_channels_take_several_tiles() -> None:
    parts = arguments((3, 4), (1, 2), (70, 67), 1)
    expected = values_and_gradients("reference", parts, (1, 2), "gelu")
    for found, wanted in zip(values_and_gradients("triton", parts, (1, 2), "gelu"), expected, strict=True):
        assert relative(found, wanted) < 1e-13


@pytest.mark.parametrize(("shape", "n_modes", "activation"), [((5,), (4,), None), ((4, 3), (2, 4), "gelu")], ids=str)
def test_first_and_second_derivatives_of_a_block(shape, n_modes, activation) -> None:
    parts = [part.requires_grad_() for part in arguments(shape, n_modes, (1, 2), 1)]

    def function(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor) -> Tensor:
        return fourier_block(x, weight, n_modes, skip, bias, activation=activation, backend="triton")

    assert torch.autograd.gradcheck(function, parts, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, parts, fast_mode=True)


def test_first_and_second_derivatives_of_a_convolution() -> None:
    x, weight = (part.requires_grad_() for part in arguments((2, 3, 4), (2, 1, 2), (1, 2), 1)[:2])

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return spectral_conv(x, weight, (2, 1, 2), output_shape=(3, 2, 5), backend="triton")

    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


def test_only_the_wanted_gradients_are_made() -> None:
    x, weight, skip, bias = arguments((6, 5), (4, 4))
    for leaf in (x, weight, skip, bias):
        leaf.requires_grad_()
        y = fourier_block(x, weight, (4, 4), skip, bias, backend="triton")
        (first,) = torch.autograd.grad(y.sum(), leaf)
        y = fourier_block(x, weight, (4, 4), skip, bias, backend="triton")
        (second,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        assert relative(first, second) < 1e-13
        leaf.requires_grad_(False)


@pytest.mark.parametrize("activation", ["gelu", None])
def test_an_empty_batch_has_zero_gradients(activation) -> None:
    x, weight, skip, bias = arguments((6, 5), (4, 4))
    found = values_and_gradients("triton", [x[:0], weight, skip, bias], (4, 4), activation)
    assert found[0].shape == (0, 3, 6, 5) and found[1].shape == (0, 2, 6, 5)
    assert all(
        gradient.shape == part.shape and not gradient.any()
        for gradient, part in zip(found[2:], (weight, skip, bias), strict=True)
    )


def test_bfloat16_fields_are_rounded_at_the_end() -> None:
    """The interpreter cuts to bfloat16 where a device rounds, hence one unit and not half."""
    x, weight, skip, bias = arguments((8, 7), (9, 4), dtype=torch.bfloat16)
    y = fourier_block(x, weight, (9, 4), skip, bias, backend="triton")
    expected = fourier_block(x.double(), weight.double(), (9, 4), skip.double(), bias.double(), backend="reference")
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).abs().max() <= 1.01 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
    found = values_and_gradients("triton", [x, weight, skip, bias], (9, 4), "gelu")
    wanted = values_and_gradients("reference", [p.double() for p in (x, weight, skip, bias)], (9, 4), "gelu")
    assert [part.dtype for part in found] == [torch.bfloat16] * 2 + [torch.float32] * 3
    assert all(relative(a, b) < 0.02 for a, b in zip(found, wanted, strict=True))


def test_precision_follows_torch() -> None:
    assert precision(torch.float32) == "tf32x3" and precision(torch.bfloat16) == "tf32"
    torch.set_float32_matmul_precision("high")
    try:
        assert precision(torch.float32) == "tf32" and precision(torch.float64) == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_equal_inputs_give_equal_bits() -> None:
    parts = arguments((9, 8), (6, 6), dtype=torch.float32)
    first, second = (values_and_gradients("triton", parts, (6, 6), "gelu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_vmap_over_samples_and_over_weights() -> None:
    """The rules of the operators; `torch.func` goes through the reference."""
    x, weight, skip, bias = arguments((4, 5), (4, 4))
    xs, weights = torch.stack([x, 2 * x, x + 1]), torch.stack([weight, weight - 1, -weight])
    call, backend = SpectralConvCall.of(x, weight, (4, 4), None), Triton()

    def conv(x: Tensor, weight: Tensor) -> Tensor:
        return backend(x, weight, call)

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return backend.block(x, weight, call, skip, bias, "gelu")

    def weight_gradient(X: Tensor, G: Tensor) -> Tensor:
        return triton_operators.multiply(X.flatten(0, 1), G.flatten(0, 1), "left")

    for function in (conv, layer, weight_gradient):
        for in_dims in ((0, None), (None, 0), (0, 0)):
            values = (weights, weights[..., :2]) if function is weight_gradient else (xs, weights)
            inputs = [a if dim == 0 else a[0] for a, dim in zip(values, in_dims, strict=True)]
            expected = torch.stack(
                [function(*(a[i] if dim == 0 else a for a, dim in zip(inputs, in_dims, strict=True))) for i in range(3)]
            )
            torch.testing.assert_close(torch.vmap(function, in_dims)(*inputs), expected)


def operator_calls() -> dict[str, tuple[object, tuple[object, ...]]]:
    x, weight, skip, bias = arguments((6, 5), (4, 4))
    call = SpectralConvCall.of(x, weight, (4, 4), None)
    kept = [bound for axis in (0, 1) for bound in call.kept(axis)]
    analysis, synthesis = (tables(dft, x.dtype, x.device) for dft in (call.analysis(), call.synthesis()))
    R = weight.flatten(0, 1)
    X = triton_operators.analyse(x, kept, analysis).detach()
    y = torch.randn(2, 3, 6, 5, dtype=x.dtype)
    leaves = [part.requires_grad_() for part in (x, R, skip, bias)]
    return {
        "analyse": (triton_operators.analyse, (x, kept, analysis)),
        "synthesise": (
            triton_operators.synthesise,
            (X.clone().requires_grad_(), [7, 4], kept, synthesis, torch.float64),
        ),
        "multiply": (triton_operators.multiply, (X.clone().requires_grad_(), R, "")),
        "block": (triton_operators.block, (*leaves, kept, analysis, synthesis, True)),
        "block_backward": (
            triton_operators.block_backward,
            (y, *(part.detach() for part in (x, X, R, skip, bias)), kept, analysis, synthesis, True),
        ),
    }


@pytest.mark.parametrize("name", ["analyse", "synthesise", "multiply", "block", "block_backward"])
def test_operators_are_registered_as_torch_expects(name: str) -> None:
    operator, inputs = operator_calls()[name]
    torch.library.opcheck(operator, inputs)


def test_compile_without_a_break_and_with_tables_as_constants() -> None:
    weight, skip, bias = arguments((6, 5), (4, 4))[1:]

    def two_layers(x: Tensor, weight: Tensor) -> Tensor:
        y = fourier_block(x, weight, (4, 4), skip[:2], bias[:2], backend="triton")
        return spectral_conv(y, weight, (4, 4), output_shape=(8, 4), backend="triton")

    weight = weight[..., :2]
    compiled = torch.compile(two_layers, fullgraph=True, backend="aot_eager")
    for shape in ((6, 5), (6, 5), (7, 5), (6, 8)):
        leaves = [torch.randn(2, 2, *shape, dtype=torch.float64).requires_grad_(), weight.clone().requires_grad_()]
        y, expected = compiled(*leaves), two_layers(*leaves)
        torch.testing.assert_close(y, expected)
        for found, wanted in zip(
            torch.autograd.grad(y.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)


def test_too_many_modes_are_refused_in_words() -> None:
    x, weight = arguments((300,), (200,), (1, 1), 1)[:2]
    reason = Triton().refusal(SpectralConvCall.of(x, weight, (200,), None))
    assert reason == "it keeps 101 frequencies on one axis, and the kernels hold 64 at most"


def test_a_kernel_without_a_configuration_says_so() -> None:
    with pytest.raises(ValueError, match=r"no_such_kernel has no configuration .*triton_configurations\.json"):
        Queue(("default",), "ieee").configuration("no_such_kernel", K=16)


def test_a_table_of_ones_own_goes_first(tmp_path, monkeypatch) -> None:
    from benchmarks import triton_tune
    from opflow.kernels.spectral_conv import triton_queue

    parts = arguments((4, 5), (4, 4))
    call = SpectralConvCall.of(parts[0], parts[1], (4, 4), None)
    monkeypatch.setattr(triton_tune, "candidates", lambda kernel: [
        {"TILE1": tile, "TILE2": 16, "num_warps": 4, "num_stages": 1} for tile in (16, 32, 64)
    ])  # fmt: skip
    times = iter([3.0, 1.0, 2.0])
    best = triton_tune.tune(tuple(parts), call, lambda launch: next(times), ("analyse_planes",))
    row = {"max_K1": 16, "max_K2": 16, "TILE1": 32, "TILE2": 16, "num_warps": 4, "num_stages": 1}
    assert best == {"analyse_planes": [row]}

    path = tmp_path / "own.json"
    write_json(path, {"default": best})
    monkeypatch.setenv("OPFLOW_TRITON_CONFIGURATIONS", str(path))
    try:
        for read in (triton_queue.configurations, triton_queue.configuration):
            read.cache_clear()
        assert Queue(("default",), "ieee").configuration("analyse_planes", K1=16, K2=16)["TILE1"] == 32
        assert Queue(("default",), "ieee").configuration("analyse_planes", K1=32, K2=16)["TILE1"] != 32
        path.write_text("{")
        triton_queue.configurations.cache_clear()
        with pytest.raises(ValueError, match=r"own\.json, which is no table of configurations"):
            triton_queue.configurations()
    finally:
        for read in (triton_queue.configurations, triton_queue.configuration):
            read.cache_clear()
