"""Initial data carried along by the heat equation."""

import math

import pytest
import torch
from torch import Tensor

from opflow import Batch
from opflow.layers import HardConstraint
from opflow.layers.heat_series import HeatSeries
from opflow.pde.derivatives.autograd import AutogradDerivatives

A, B = [0.3, -1.0, 0.0, 0.5], [7.0, 0.2, -0.4, 0.0]


def points(n: int = 50, dtype: torch.dtype = torch.float64) -> Tensor:
    y = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (y * torch.tensor([1.0, 3.0]) - torch.tensor([0.0, 1.0])).to(dtype)


def closed_form(y: Tensor, d: float, period: float) -> Tensor:
    t, x = y.unbind(-1)
    total = torch.zeros_like(t)
    for k, (a, b) in enumerate(zip(A, B, strict=True)):
        w = 2 * math.pi * k / period
        total = total + torch.exp(-d * w**2 * t) * (a * torch.cos(w * x) + b * torch.sin(w * x))
    return total[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_series(dtype: torch.dtype) -> None:
    y = points(3000, dtype)  # more than a chunk
    G = HeatSeries(A, B, period=3.0, diffusivity=0.2)
    assert G(y).dtype == dtype
    torch.testing.assert_close(
        G(y), closed_form(y, 0.2, 3.0), rtol=1e-5, atol=1e-6 if dtype == torch.float32 else 1e-13
    )
    torch.testing.assert_close(G(y.view(3, 1000, 2)), G(y).view(3, 1000, 1))


def test_the_coefficients_stay_in_double_precision() -> None:
    model = HeatSeries([1.0 / 3], period=2.0, diffusivity=0.0).double()
    assert float(model(torch.zeros(1, 2, dtype=torch.float64))) == 1.0 / 3


@pytest.mark.parametrize("sine", [None, B])
def test_taylor_coefficients_are_those_of_reverse_mode(sine: list[float] | None) -> None:
    asked = ["t", "x", "tt", "tx", "xx", "xxx", "xxxx", "txx"]
    model = HardConstraint(
        torch.nn.Linear(2, 1).double(),
        HeatSeries(A, sine, period=2.0, diffusivity=0.1),
        lambda y: y[..., :1],
        conditions=("initial",),
    )
    taylor = AutogradDerivatives(("t", "x"), method="taylor")(model, Batch(coords=points()), asked=asked)
    reverse = AutogradDerivatives(("t", "x"), method="reverse")(model, Batch(coords=points()))
    torch.testing.assert_close(taylor.value, reverse.value, rtol=1e-12, atol=1e-12)
    for axes in asked:
        torch.testing.assert_close(taylor.d(axes), reverse.d(axes), rtol=1e-10, atol=1e-9)


def test_solves_the_heat_equation_from_data_with_a_kink() -> None:
    # |x| on (-1, 1): 1/2 - 4 / pi^2 sum over odd k of cos(k pi x) / k^2.
    k = torch.arange(1, 4000, dtype=torch.float64)
    cosine = torch.cat([torch.tensor([0.5], dtype=torch.float64), -4 / math.pi**2 * (k % 2) / k**2])
    G = HeatSeries(cosine, period=2.0, diffusivity=1e-3)
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    start = G(torch.stack([torch.zeros_like(x), x], -1))[:, 0]
    torch.testing.assert_close(start, x.abs(), rtol=0, atol=2e-4)
    # In the middle the kink of the whole line: sqrt(4 d t / pi).
    middle = G(torch.tensor([[0.5, 0.0]], dtype=torch.float64))
    assert float(middle) == pytest.approx(math.sqrt(4 * 1e-3 * 0.5 / math.pi), rel=1e-7)
    u = AutogradDerivatives(("t", "x"), method="taylor")(G, Batch(coords=points()), asked=["t", "xx"])
    torch.testing.assert_close(u.d("t"), 1e-3 * u.d("xx"), rtol=1e-12, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one coefficient a wave number"):
        HeatSeries([1.0, 2.0], [1.0], period=2.0, diffusivity=1.0)
    with pytest.raises(ValueError, match="diffusivity -1"):
        HeatSeries([1.0], period=2.0, diffusivity=-1.0)
    G = HeatSeries([1.0], period=2.0, diffusivity=1.0)
    with pytest.raises(ValueError, match=r"\(t, x\) along the last axis"):
        G(torch.zeros(5, 3))
    scaled = AutogradDerivatives(("t", "x"), method="taylor")(lambda y: G(2 * y), Batch(coords=points()), asked=["x"])
    with pytest.raises(NotImplementedError, match="not functions of them"):
        _ = scaled.value
