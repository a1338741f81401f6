"""One row a backend of the spectral convolution; the oracle is the definition, as a dense sum in float64.

A backend joins by its entry in `BACKENDS`; what it refuses, with a reason, is skipped.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from opflow.fourier import resample
from opflow.functional import explain_backend, spectral_conv
from opflow.kernels.spectral_conv import BACKENDS, SpectralConvCall

backends = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def kept_weight_shape(n_modes: tuple[int, ...]) -> tuple[int, ...]:
    return (*n_modes[:-1], n_modes[-1] // 2 + 1)


def arguments(
    shape: tuple[int, ...],
    n_modes: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float64,
    channels: tuple[int, int] = (2, 3),
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *shape, dtype=torch.float64).to(dtype)
    weight = torch.randn(*kept_weight_shape(n_modes), 2, *channels, dtype=torch.float64)
    return x, weight.to(dtype if dtype == torch.float64 else torch.float32)


def definition(
    x: Tensor, weight: Tensor, n_modes: tuple[int, ...], output_shape: tuple[int, ...] | None = None
) -> Tensor:
    """y(s) = Re sum_k c_k R_k xhat_k exp(2 pi i k.s), one frequency at a time, with sums in place of transforms."""
    x, weight = x.double(), weight.double()
    n, n_out = x.shape[2:], x.shape[2:] if output_shape is None else output_shape
    points = torch.stack(torch.meshgrid(*[torch.arange(i, dtype=torch.float64) / i for i in n], indexing="ij"), -1)
    targets = torch.stack(torch.meshgrid(*[torch.arange(i, dtype=torch.float64) / i for i in n_out], indexing="ij"), -1)
    y = torch.zeros(x.shape[0], weight.shape[-1], *n_out, dtype=torch.float64)
    leading = [range(-(m // 2), (m - 1) // 2 + 1) for m in n_modes[:-1]]
    for k in itertools.product(*leading, range(n_modes[-1] // 2 + 1)):
        # A grid of i points has the frequencies -(i//2) .. (i-1)//2, and on the last axis, by symmetry, 0 .. i//2.
        on_leading = all(-(i // 2) <= q <= (i - 1) // 2 for q, i in [*zip(k, n[:-1]), *zip(k, n_out[:-1])])  # noqa: B905
        if not on_leading or k[-1] > min(n[-1], n_out[-1]) // 2:
            continue
        frequency = torch.tensor(k, dtype=torch.float64)
        wave = torch.exp(-2j * math.pi * (points @ frequency))
        coefficient = (x * wave).flatten(2).mean(2)  # (batch, in)
        entry = weight[(*tuple(q + m // 2 for q, m in zip(k[:-1], n_modes[:-1], strict=True)), k[-1])]
        c = 1 if k[-1] == 0 or 2 * k[-1] == n[-1] else 2
        mixed = c * coefficient @ torch.complex(entry[0], entry[1])  # (batch, out)
        y += (mixed[(...,) + (None,) * len(n)] * torch.exp(2j * math.pi * (targets @ frequency))).real
    return y


def supported(backend, x: Tensor, weight: Tensor, n_modes, output_shape=None) -> str:
    reason = backend.refusal(SpectralConvCall.of(x, weight, n_modes, output_shape))
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")
    return backend.name


SIZES = [
    # shape, n_modes: below, at and beyond the Nyquist limit; odd, prime, non-square, size 1
    ((1,), (1,)),
    ((1,), (4,)),
    ((2,), (2,)),
    ((7,), (1,)),
    ((8,), (5,)),
    ((8,), (8,)),
    ((8,), (13,)),
    ((13,), (6,)),
    ((13,), (13,)),
    ((13,), (40,)),
    ((6, 9), (4, 4)),
    ((8, 8), (8, 8)),
    ((7, 8), (7, 8)),
    ((8, 7), (9, 12)),
    ((5, 1), (3, 2)),
    ((1, 6), (4, 6)),
    ((11, 4), (1, 1)),
    ((6, 6), (2, 5)),
    ((4, 5, 6), (4, 3, 6)),
    ((3, 1, 4), (5, 2, 2)),
    ((4, 4, 4), (6, 6, 6)),
    ((5, 3, 2), (2, 2, 1)),
]
sizes = pytest.mark.parametrize(("shape", "n_modes"), SIZES, ids=str)


@backends
@sizes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_equals_the_definition(backend, shape, n_modes, dtype, tolerance) -> None:
    x, weight = arguments(shape, n_modes, dtype=dtype)
    y = spectral_conv(x, weight, n_modes, backend=supported(backend, x, weight, n_modes))
    assert y.dtype == dtype and y.shape == (2, 3, *shape)
    expected = definition(x, weight, n_modes)
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "n_modes"), [((13,), (6,)), ((8, 7), (9, 4))], ids=str)
def test_half_precision_is_rounded_once(backend, shape, n_modes, dtype) -> None:
    """Transforms run in float32, so the only loss is that of the result."""
    x, weight = arguments(shape, n_modes, dtype=dtype)
    y = spectral_conv(x, weight, n_modes, backend=supported(backend, x, weight, n_modes))
    assert y.dtype == dtype
    expected = definition(x, weight, n_modes)
    assert (y.double() - expected).abs().max() <= 0.51 * torch.finfo(dtype).eps * expected.abs().max()


OUTPUTS = [
    ((8,), (8,), (16,)),
    ((8,), (8,), (9,)),
    ((8,), (10,), (6,)),
    ((9,), (9,), (6,)),
    ((9,), (9,), (1,)),
    ((1,), (3,), (5,)),
    ((12,), (6,), (6,)),
    ((8, 8), (8, 8), (16, 12)),
    ((8, 8), (12, 12), (4, 4)),
    ((8, 9), (9, 9), (5, 6)),
    ((7, 6), (7, 6), (9, 8)),
    ((4, 4, 4), (4, 4, 4), (6, 5, 8)),
    ((5, 4, 6), (6, 6, 6), (4, 2, 4)),
]


@backends
@pytest.mark.parametrize(("shape", "n_modes", "output_shape"), OUTPUTS, ids=str)
def test_another_output_grid_equals_the_definition(backend, shape, n_modes, output_shape) -> None:
    x, weight = arguments(shape, n_modes)
    y = spectral_conv(
        x, weight, n_modes, output_shape=output_shape, backend=supported(backend, x, weight, n_modes, output_shape)
    )
    expected = definition(x, weight, n_modes, output_shape)
    assert y.shape == expected.shape
    assert (y - expected).abs().max() <= 1e-13 * expected.abs().max()


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x in every memory layout."""
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    moved = x.movedim(1, -1).contiguous().movedim(-1, 1)
    reversed_axes = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    return {"strided": strided, "channels last": moved, "reversed": reversed_axes}


@backends
@pytest.mark.parametrize(("shape", "n_modes"), [((8,), (6,)), ((7, 8), (5, 8)), ((4, 3, 5), (3, 4, 4))], ids=str)
def test_memory_layout_does_not_matter(backend, shape, n_modes) -> None:
    x, weight = arguments(shape, n_modes)
    name = supported(backend, x, weight, n_modes)
    expected = spectral_conv(x, weight, n_modes, backend=name)
    for kind, other in layouts(x).items():
        assert not other.is_contiguous() and torch.equal(other, x), kind
        torch.testing.assert_close(
            spectral_conv(other, weight, n_modes, backend=name), expected, rtol=1e-13, atol=1e-13
        )
    expanded, constant = x[:1].expand_as(x), torch.ones((), dtype=x.dtype).expand_as(x)
    for other in (expanded, constant):
        assert 0 in other.stride()
        torch.testing.assert_close(
            spectral_conv(other, weight, n_modes, backend=name),
            spectral_conv(other.contiguous(), weight, n_modes, backend=name),
            rtol=1e-13,
            atol=1e-13,
        )
    swapped = weight.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(spectral_conv(x, swapped, n_modes, backend=name), expected, rtol=1e-13, atol=1e-13)


@backends
@pytest.mark.parametrize(
    ("shape", "n_modes", "output_shape"),
    [
        ((6,), (6,), None),
        ((5,), (8,), (8,)),
        ((4, 5), (4, 4), None),
        ((4, 4), (4, 4), (6, 3)),
        ((3, 2, 4), (3, 2, 4), None),
    ],
    ids=str,
)
def test_gradients_of_first_and_second_order(backend, shape, n_modes, output_shape) -> None:
    x, weight = (part.requires_grad_() for part in arguments(shape, n_modes, channels=(2, 1)))
    name = supported(backend, x, weight, n_modes, output_shape)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return spectral_conv(x, weight, n_modes, output_shape=output_shape, backend=name)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@backends
@pytest.mark.parametrize("shape", [(5,), (8,), (6, 7), (3, 4, 5)], ids=str)
def test_identity_weights_reproduce_and_resample_band_limited_fields(backend, shape) -> None:
    """R = 1 on every mode: the field itself, at every resolution."""
    coarse = tuple((n - 1) // 2 * 2 + 1 for n in shape)  # odd: no unpaired frequency
    n_modes = tuple(n + 1 for n in coarse)
    weight = torch.zeros(*kept_weight_shape(n_modes), 2, 2, 2, dtype=torch.float64)
    weight[..., 0, :, :] = torch.eye(2)
    torch.manual_seed(0)
    x = resample(torch.randn(2, 2, *coarse, dtype=torch.float64), shape)
    name = supported(backend, x, weight, n_modes)
    torch.testing.assert_close(spectral_conv(x, weight, n_modes, backend=name), x, rtol=0, atol=1e-13)
    for output_shape in (tuple(2 * n for n in shape), tuple(n + 3 for n in shape), tuple(max(n - 2, 1) for n in shape)):
        y = spectral_conv(x, weight, n_modes, output_shape=output_shape, backend=name)
        if any(m % 2 == 0 and m < n for m, n in zip(output_shape, coarse, strict=True)):
            continue  # a coarser even grid has an unpaired frequency, which a product over axes treats otherwise
        torch.testing.assert_close(y, resample(x, output_shape), rtol=0, atol=1e-13)


@backends
def test_autocast_leaves_the_transforms_in_single_precision(backend) -> None:
    x, weight = arguments((8, 9), (6, 6), dtype=torch.float32)
    name = supported(backend, x, weight, (6, 6))
    expected = spectral_conv(x, weight, (6, 6), backend=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = spectral_conv(x, weight, (6, 6), backend=name)
        low = spectral_conv(x.bfloat16(), weight, (6, 6), backend=name)
    assert torch.equal(y, expected)
    assert low.dtype == torch.bfloat16


@backends
@pytest.mark.parametrize(("shape", "n_modes"), [((8,), (8,)), ((4, 6), (4, 6)), ((2, 4, 4), (2, 4, 4))], ids=str)
def test_an_imaginary_part_where_the_spectrum_must_be_real_is_ignored(backend, shape, n_modes) -> None:
    """Weights that break the Hermitian symmetry at k = 0 and n/2 still give the real part, not a library's accident."""
    x, weight = arguments(shape, n_modes)
    name = supported(backend, x, weight, n_modes)
    y = spectral_conv(x, weight, n_modes, backend=name)
    only = torch.zeros_like(weight)
    only[(*tuple(m // 2 for m in n_modes[:-1]), 0, 1)] = 1.0  # k = 0, imaginary: Re(i * mean) = 0
    assert not y.is_complex()
    assert spectral_conv(x, only, n_modes, backend=name).abs().max() < 1e-15


@backends
def test_empty_batch_has_zero_gradients(backend) -> None:
    x, weight = arguments((6, 5), (4, 4))
    x, weight = x[:0].requires_grad_(), weight.requires_grad_()
    y = spectral_conv(x, weight, (4, 4), output_shape=(8, 8), backend=supported(backend, x, weight, (4, 4), (8, 8)))
    assert y.shape == (0, 3, 8, 8) and y.dtype == torch.float64
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and not weight.grad.any()


@backends
def test_samples_of_a_batch_do_not_mix(backend) -> None:
    x, weight = arguments((8, 7), (5, 6))
    name = supported(backend, x, weight, (5, 6))
    y = spectral_conv(x, weight, (5, 6), backend=name)
    torch.testing.assert_close(spectral_conv(x[1:], weight, (5, 6), backend=name), y[1:], rtol=1e-13, atol=1e-13)
    poisoned = x.clone()
    poisoned[0] = torch.nan
    torch.testing.assert_close(spectral_conv(poisoned, weight, (5, 6), backend=name)[1:], y[1:], rtol=1e-13, atol=1e-13)


def test_the_backend_without_a_name_is_the_first_that_supports_the_call() -> None:
    x, weight = arguments((8,), (4,))
    call = SpectralConvCall.of(x, weight, (4,), None)
    chosen = next(backend for backend in BACKENDS if backend.refusal(call) is None)
    assert f"{chosen.name}: chosen" in explain_backend(x, weight, (4,))
    assert torch.equal(spectral_conv(x, weight, (4,)), spectral_conv(x, weight, (4,), backend=chosen.name))
    assert BACKENDS[-1].name == "reference" and BACKENDS[-1].refusal(call) is None
    assert all(f"{backend.name}: " in explain_backend(x, weight, (4,)) for backend in BACKENDS)


X, W = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 2, 3, 5)
REFUSED = {
    "rank": ({"x": X[0]}, ValueError, r"x has shape \(3, 8, 8\) with 3 axes, but n_modes \(4, 4\) expects 4"),
    "channels": ({"x": X[:, :2]}, ValueError, r"x has 2 channels but the weight expects 3"),
    "weight modes": (
        {"weight": W[:3]},
        ValueError,
        r"weight has shape \(3, 3, 2, 3, 5\) but n_modes \(4, 4\) expects \(4, 3, 2,",
    ),
    "weight pairs": (
        {"weight": W[:, :, :1]},
        ValueError,
        r"weight has shape \(4, 3, 1, 3, 5\).*real and imaginary part",
    ),
    "weight rank": ({"weight": W[0]}, ValueError, r"weight has shape \(3, 2, 3, 5\)"),
    "complex weight": ({"weight": torch.complex(W, W)}, TypeError, r"complex64; both must be real"),
    "complex x": ({"x": torch.complex(X, X)}, TypeError, r"x is torch.complex64"),
    "integers": ({"x": X.long()}, TypeError, r"x is torch.int64 .*\.float\(\)"),
    "double x": ({"x": X.double()}, TypeError, r"x is torch.float64 but weight is torch.float32; .*\.double\(\)"),
    "double weight": ({"weight": W.double()}, TypeError, r"x is torch.float32 but weight is torch.float64"),
    "device": ({"x": X.to("meta")}, ValueError, r"x is on meta and weight on cpu; move one"),
    "no modes": ({"n_modes": (4, 0)}, ValueError, r"n_modes is \(4, 0\); every entry must be a positive"),
    "negative modes": ({"n_modes": (-4, 4)}, ValueError, r"n_modes is \(-4, 4\); every entry must be a positive"),
    "four dimensions": ({"n_modes": (4,) * 4}, ValueError, r"names 4 dimensions; .* 1, 2 or 3"),
    "no dimension": ({"n_modes": ()}, ValueError, r"names 0 dimensions"),
    "output rank": (
        {"output_shape": (8,)},
        ValueError,
        r"output_shape \(8,\) has 1 entries, but the field has 2 grid axes",
    ),
    "empty output": ({"output_shape": (8, 0)}, ValueError, r"every axis needs at least one point"),
    "empty grid": ({"x": X[..., :0]}, ValueError, r"the grid is \(8, 0\) .*at least one point"),
    "backend": ({"backend": "cuda"}, ValueError, r"backend 'cuda' is unknown here; choose one of .*'reference'"),
}


@pytest.mark.parametrize(("change", "error", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_arguments_are_refused_in_a_sentence(change, error, sentence) -> None:
    given = {"x": X, "weight": W, "n_modes": (4, 4), **change}
    with pytest.raises(error, match=sentence):
        spectral_conv(**given)
    if "backend" not in change:
        with pytest.raises(error, match=sentence):
            explain_backend(**given)


def test_dispatch_gives_the_reason_of_a_refusal() -> None:
    from opflow.kernels.backend import choose, explain

    class Stub:
        def __init__(self, name: str, reason: str | None) -> None:
            self.name, self._reason = name, reason

        def refusal(self, call: object) -> str | None:
            return self._reason

    fast, slow, spare = Stub("fast", "x is on cpu"), Stub("slow", None), Stub("spare", None)
    assert choose((fast, slow, spare), None) is slow
    assert choose((fast, slow, spare), None, "spare") is spare
    assert (
        explain((fast, slow, spare), None)
        == "fast: x is on cpu; slow: chosen; spare: supported, but an earlier one is chosen"
    )
    with pytest.raises(ValueError, match="'fast' was asked for, but x is on cpu; pass backend=None"):
        choose((fast, slow), None, "fast")
    with pytest.raises(ValueError, match="no backend supports this call: fast: x is on cpu"):
        choose((fast,), None)
