"""Kernel ridge regression on principal components: against the dense formulas, and on maps that it must find."""

from __future__ import annotations

import pytest
import torch

from opflow import Grid
from opflow.losses import relative_l2
from opflow.models import KernelRidge
from opflow.models.kernel_ridge import principal_components

GRID = Grid(12)


def samples(n: int, *, seed: int = 0, parameters: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Nonlinear measurements (n, 4, 1, 10) of fields (n, 1, 12) with few parameters."""
    draw = torch.Generator().manual_seed(seed)
    z = 2 * torch.rand(n, parameters, generator=draw, dtype=torch.float64) - 1
    x = GRID.coordinates(0)
    fields = torch.exp(sum(z[:, k : k + 1] * torch.sin((k + 1) * torch.pi * x) for k in range(parameters)))
    sensors = torch.linspace(0, 1, 10, dtype=torch.float64)
    y = torch.stack([torch.sin((z @ torch.full((parameters, 1), 0.3 + 0.2 * l, dtype=torch.float64)) + sensors) + z.prod(1, keepdim=True)
                     * sensors + z[:, l % parameters, None] * sensors.square() for l in range(4)], 1)  # fmt: skip
    return y[:, :, None], fields[:, None]


def fitted(n: int = 60, **options) -> tuple[KernelRidge, torch.Tensor, torch.Tensor]:
    y, a = samples(n)
    options = {"components": 8, "targets": 3} | options
    return KernelRidge.build(4, (10,), 1, GRID, **options).double().fit(y, a), y, a


def test_predictions_are_those_of_the_dense_formula() -> None:
    y, a = samples(60)
    a = a * torch.exp(0.05 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    model = (
        KernelRidge.build(4, (10,), 1, GRID, components=8, targets=3, kernel="gaussian", whitening=1.0)
        .double()
        .fit(y, a)
    )
    t = (a[:, 0].log() - a[:, 0].log().mean(0)) @ model.target_modes.T
    flat = y.flatten(1)
    values, vectors = torch.linalg.eigh((flat - flat.mean(0)).T @ (flat - flat.mean(0)) / 60)
    s = (flat - flat.mean(0)) @ vectors.flip(1)[:, :8] / values.flip(0)[:8].sqrt()
    s = s / (1 + model._residual_variance / values.flip(0)[:8])
    K = torch.exp(-torch.cdist(s, s).square() / (2 * model.length**2))
    ridge = float(torch.linalg.inv(model.inverse)[0, 0] - 1)
    c = torch.linalg.solve(K + ridge * torch.eye(60, dtype=K.dtype), t)
    expected = (a[:, 0].log().mean(0) + K @ c @ model.target_modes).exp()[:, None]
    torch.testing.assert_close(model(y), expected, rtol=1e-5, atol=1e-5)


def test_it_finds_a_smooth_map_and_better_from_more_samples() -> None:
    y, a = samples(100, seed=5)
    errors = [float(relative_l2(fitted(n)[0](y), a)) for n in (50, 200, 800)]
    constant = float(relative_l2(a.log().mean(0, keepdim=True).exp().expand_as(a), a))
    assert errors[2] < 0.02 * constant and errors[2] < errors[1] / 2 < errors[0] / 4, errors


def test_leaving_a_sample_out_is_fitting_without_it() -> None:
    model, y, _ = fitted()
    i, rest = 7, torch.arange(60) != 7
    K = model._kappa(torch.cdist(model.support, model.support) / model.length)
    ridge = torch.linalg.inv(model.inverse) - K  # a multiple of the identity
    t = torch.linalg.inv(model.inverse) @ model.coefficients
    c = torch.linalg.solve((K + ridge)[rest][:, rest], t[rest])
    expected = (model.target_mean + K[i, rest] @ c @ model.target_modes).exp()
    found = model(y[i : i + 1], held_out=torch.tensor([i]))
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(model(y[:3], held_out=torch.full((3,), -1)), model(y[:3]))
    assert not torch.allclose(found, model(y[i : i + 1]), rtol=1e-6, atol=1e-7), "it does help with its own prediction"


def test_left_out_measurements_are_estimated_from_the_others() -> None:
    model, _, _ = fitted(200, noise=1e-4)
    y, a = samples(50, seed=3)
    whole, constant = float(relative_l2(model(y), a)), float(relative_l2(torch.ones_like(a), a))
    masks = torch.ones(50, 4, dtype=torch.bool)
    torch.testing.assert_close(model.scores(y, masks), model.scores(y))
    masks[:, 2] = False
    y[:, 2] = torch.nan
    assert whole <= float(relative_l2(model(y, mask=masks), a)) < 0.3 * constant


def test_fields_of_any_sign_and_points() -> None:
    y, a = samples(80)
    model = KernelRidge.build(4, (10,), 1, GRID, components=8, targets=8, positive=False).double().fit(y, a - 1)
    assert float(relative_l2(model(y), a - 1)) < 0.05
    at = model(y[:2], torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(at[..., 0], model(y[:2])[:, 0, [0, -1]])


def test_the_fit_travels_with_the_state() -> None:
    model, y, _ = fitted()
    again = KernelRidge.build(**{k: v for k, v in model.recipe.items() if k != "model"}).double()
    assert not again.is_fitted and again.recipe["samples"] == 60
    again.load_state_dict(model.state_dict())
    assert again.is_fitted and torch.equal(again(y), model(y))


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_principal_components(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    mean, modes, deviation = principal_components(x, 6)
    _, values, vectors = torch.linalg.svd(x - mean, full_matrices=False)
    torch.testing.assert_close(deviation, values[:6] / shape[0] ** 0.5)
    torch.testing.assert_close((modes @ vectors[:6].T).abs(), torch.eye(6, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    *_, deviation = principal_components(x[:4], 6)
    assert deviation.shape == (6,) and bool((deviation > 0).all())


def test_what_does_not_fit_is_refused() -> None:
    y, a = samples(40)
    model = KernelRidge.build(4, (10,), 1, GRID, components=8, targets=3).double()
    with pytest.raises(ValueError, match="fewer measurements are given with a mask"):
        model(y[:, :2])
    with pytest.raises(ValueError, match="not positive everywhere"):
        model.fit(y, -a)
    with pytest.raises(ValueError, match="more than the 8 components"):
        model.fit(y[:5], a[:5])
    with pytest.raises(ValueError, match="hold NaN"):
        model.fit(torch.where(y > 0, y, torch.nan), a)
    with pytest.raises(ValueError, match="fields have shape"):
        model.fit(y, a[:, 0])
    with pytest.raises(ValueError, match="kernel is 'spline'"):
        KernelRidge.build(4, (10,), 1, GRID, kernel="spline")


def test_single_precision_outside_is_double_precision_inside() -> None:
    model, y, _ = fitted()
    expected = model(y)
    single = model.float()
    assert single.coefficients.dtype == torch.float64
    found = single(y.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="int64"):
        single(y.long())
    with pytest.raises(ValueError, match="move one of them"):
        single(y.to("meta"))
