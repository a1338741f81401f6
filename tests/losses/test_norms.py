"""Relative norms: by hand, against analysis, and where a common shortcut gives another number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.losses.norms import mean_squared_error, relative_errors, relative_h1, relative_l2


def test_by_hand() -> None:
    target = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 5.0]]], dtype=torch.float64)
    prediction = torch.tensor([[[3.0, 5.0], [1.0, 2.0]], [[4.0, 4.0], [0.0, 5.0]]], dtype=torch.float64)
    errors = relative_errors(prediction, target)
    torch.testing.assert_close(errors, torch.tensor([[1 / 5, 1 / 2], [5.0, 0.0]], dtype=torch.float64))
    assert float(relative_l2(prediction, target)) == pytest.approx((1 / 5 + 1 / 2 + 5 + 0) / 4, rel=1e-15)


def test_a_mean_of_ratios_is_no_ratio_of_sums() -> None:
    """Each sample and channel counts alike, however large: pressure in pascals does not drown a saturation."""
    target = torch.stack([torch.full((2, 8), 1e5), torch.full((2, 8), 0.1)], dim=1).double()
    prediction = target * torch.tensor([1.1, 1.3], dtype=torch.float64)[None, :, None]
    assert float(relative_l2(prediction, target)) == pytest.approx(0.2, rel=1e-12)
    pooled = (prediction - target).norm() / target.norm()
    assert abs(float(pooled) - 0.2) > 0.05
    alone = torch.stack([relative_l2(prediction[i : i + 1], target[i : i + 1]) for i in range(2)]).mean()
    assert float(relative_l2(prediction, target)) == pytest.approx(float(alone), rel=1e-15)


@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_quadrature_weights_make_it_an_integral(layout: str) -> None:
    """||x||_{L2} / ||1||_{L2} = 1/sqrt(3) on [0, 1], to the order of the rule; unweighted, nodes are off by O(h)."""
    errors = []
    for n in (16, 32, 64):
        grid = Grid((n, n), layout="nodes" if layout == "nodes" else "cells")
        x = grid.points()[..., 0]
        one = torch.ones(1, 1, n, n, dtype=torch.float64)
        found = relative_l2(one + x, one, grid.quadrature_weights())
        errors.append((abs(float(found) - 3**-0.5), grid.spacing[0]))
    e, h = np.log(np.array(errors)).T
    assert np.abs(np.diff(e) / np.diff(h) - 2).max() < 0.02
    if layout == "nodes":
        assert abs(float(relative_l2(one + x, one)) - 3**-0.5) > 10 * errors[-1][0]


def test_weights_select_and_scale_out() -> None:
    target = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    prediction = target + torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    kept = weight.bool()
    torch.testing.assert_close(
        relative_errors(prediction, target, weight), relative_errors(prediction[..., kept], target[..., kept])
    )
    torch.testing.assert_close(
        relative_errors(prediction, target, 7 * weight), relative_errors(prediction, target, weight)
    )
    assert relative_errors(prediction.float(), target.float(), weight.float()).dtype == torch.float32
    poisoned = prediction.clone()
    poisoned[..., 2] += 1e6
    assert torch.equal(relative_l2(poisoned, target, weight), relative_l2(prediction, target, weight))


@pytest.mark.parametrize(("n", "m"), [(16, 16), (17, 15), (16, 21)])
@pytest.mark.parametrize("lengths", [(1.0, 1.0), (2.0, 0.5)])
def test_h1_is_exact_on_periodic_grids(n: int, m: int, lengths: tuple[float, float]) -> None:
    """For sin(w x) cos(v y) on lengths other than one: |e|_1^2 = (1 + w^2 + v^2) |e|^2."""
    grid = Grid((n, m), extent=[(0.0, length) for length in lengths], layout="periodic")
    x, y = grid.points().unbind(-1)

    def mode(k: int, l: int) -> tuple[torch.Tensor, float]:
        w, v = 2 * np.pi * k / lengths[0], 2 * np.pi * l / lengths[1]
        return torch.sin(w * x) * torch.cos(v * y), 1 + w**2 + v**2

    (target, size), (error, amount) = mode(1, 2), mode(3, 1)
    found = relative_h1((target + 0.1 * error)[None, None], target[None, None], grid=grid)
    assert float(found) == pytest.approx(0.1 * (amount / size) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("layout", ["nodes", "cells"])
def test_h1_converges_on_grids_that_are_not_periodic(layout: str) -> None:
    """t = x, e = x^2 y on (0, 2) x (0, 1): no wrap-around jump between x = 0 and x = 2 enters."""
    errors = []
    # |t|^2 + |grad t|^2 = 8/3 + 2;  e = x^2 y: (32/5)/3 + grad: 4 x^2 y^2 -> 4 (8/3)/3, x^4 -> 32/5
    expected = ((32 / 15 + 32 / 9 + 32 / 5) / (8 / 3 + 2)) ** 0.5
    for n in (20, 40, 80):
        grid = Grid((n, n), extent=((0.0, 2.0), (0.0, 1.0)), layout=layout)
        x, y = grid.points().unbind(-1)
        found = relative_h1((x + x**2 * y)[None, None], x[None, None], grid=grid)
        errors.append((abs(float(found) - expected), grid.spacing[0]))
    e, h = np.log(np.array(errors)).T
    assert np.abs(np.diff(e) / np.diff(h) - 2).max() < 0.15


def test_h1_averages_over_samples_and_channels_and_takes_weights() -> None:
    grid = Grid((8, 9), layout="nodes")
    target = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = target + torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = [
        relative_h1(prediction[i : i + 1, c : c + 1], target[i : i + 1, c : c + 1], grid=grid)
        for i in range(2)
        for c in range(3)
    ]
    torch.testing.assert_close(relative_h1(prediction, target, grid=grid), torch.stack(parts).mean())
    given = relative_h1(prediction, target, grid.quadrature_weights(), grid=grid)
    assert torch.equal(given, relative_h1(prediction, target, grid=grid))
    assert not torch.isclose(
        relative_h1(prediction, target, torch.ones(8, 9, dtype=torch.float64), grid=grid), given, rtol=1e-6
    )
    assert relative_h1(prediction.float(), target.float(), grid=grid).dtype == torch.float32


NORMS = [
    pytest.param(relative_l2, id="l2"),
    pytest.param(lambda p, t: relative_l2(p, t, Grid((5, 6)).quadrature_weights(dtype=p.dtype)), id="l2 weighted"),
    pytest.param(lambda p, t: relative_h1(p, t, grid=Grid((5, 6))), id="h1 nodes"),
    pytest.param(lambda p, t: relative_h1(p, t, grid=Grid((5, 6), layout="periodic")), id="h1 periodic"),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_perfect_prediction_has_loss_and_gradient_zero(norm, dtype) -> None:
    target = torch.rand(2, 1, 5, 6, dtype=dtype)
    prediction = target.clone().requires_grad_()
    loss = norm(prediction, target)
    loss.backward()
    assert loss == 0 and prediction.grad is not None and not prediction.grad.any(), "zero, not NaN"


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 2, 5, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(norm, (prediction.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("norm", NORMS)
def test_a_target_of_zeros_gives_no_nan(norm) -> None:
    zero = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
    assert norm(zero, zero) == 0
    assert norm(zero + 1e-3, zero) > 1e100, "any error is infinitely large beside nothing"


def test_shapes_that_would_broadcast_are_refused_in_a_sentence() -> None:
    grid = Grid((5, 6))
    for shape in ((2, 1, 5, 6), (1, 3, 5, 6), (2, 3, 5, 1), (2, 5, 6)):
        for norm in (relative_l2, relative_errors, lambda p, t: relative_h1(p, t, grid=grid)):
            with pytest.raises(
                ValueError, match=r"the prediction has shape .* but the target \(2, 3, 5, 6\); they must agree"
            ):
                norm(torch.zeros(shape), torch.zeros(2, 3, 5, 6))
    with pytest.raises(ValueError, match=r"the target has shape \(2, 3, 6, 5\) but the grid is \(5, 6\)"):
        relative_h1(torch.zeros(2, 3, 6, 5), torch.zeros(2, 3, 6, 5), grid=grid)


def test_mean_squared_error_weighs_by_the_quadrature() -> None:
    p, t = torch.randn(2, 3, 4, 5, dtype=torch.float64).unbind(0)
    assert mean_squared_error(p, t).item() == pytest.approx(float(((p - t) ** 2).mean()))
    grid = Grid((4, 5), extent=((0.0, 2.0), (0.0, 3.0)))
    weights = grid.quadrature_weights()
    p, t = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64).unbind(0)
    expected = ((p - t) ** 2 * weights).sum((-2, -1)).mean() / 6.0  # the measure of the domain
    assert mean_squared_error(p, t, weights).item() == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="they must agree"):
        mean_squared_error(p, t[:, :1])
