"""Both providers of derivatives against analysis: orders on three grids, autograd to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.pde import AutogradDerivatives, GridDerivatives
from opflow.typing import Derivatives

TAU = 2 * torch.pi


def wave(points: Tensor) -> Tensor:
    """A function without symmetry, periodic on (0, 1) x (0, 2)."""
    x, y = points[..., 0], points[..., 1]
    return torch.exp(torch.sin(TAU * x + 0.3)) * torch.cos(TAU * y / 2 - 0.7)


def coefficient(points: Tensor) -> Tensor:
    x, y = points[..., 0], points[..., 1]
    return 2 + torch.sin(TAU * x) * torch.cos(TAU * y / 2)


def slow_wave(points: Tensor) -> Tensor:
    """Not periodic, and so smooth that finite differences reach their order on small grids."""
    x, y = points[..., 0], points[..., 1]
    return torch.exp(torch.sin(1.3 * x + 0.3)) * torch.cos(0.6 * y - 0.7)


def slow_coefficient(points: Tensor) -> Tensor:
    return 2 + torch.sin(points[..., 0] + 0.5 * points[..., 1])


def analytic(axes: str, function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The derivative by nested reverse mode, straight from torch.autograd."""
    points = points.detach().requires_grad_()
    value = function(points)
    for letter in axes:
        (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        value = gradient[..., "xy".index(letter)]
    return value.detach()


def observed_orders(layout: str, sizes: tuple[int, ...], error) -> np.ndarray:
    errors, spacings = [], []
    for n in sizes:
        grid = Grid((n, n), extent=((0.0, 1.0), (0.0, 2.0)), layout=layout)
        errors.append(float(error(grid).abs().max()))
        spacings.append(grid.spacing[0])
    return np.diff(np.log(errors)) / np.diff(np.log(spacings))


DERIVATIVES = ["x", "y", "xx", "yy", "xy", "yx", "xxy", "xxx", "yyy", "xyxy", "xxxx"]


@pytest.mark.parametrize("layout", ["nodes", "cells"])
@pytest.mark.parametrize("axes", DERIVATIVES)
def test_finite_differences_are_of_second_order_up_to_the_boundary(layout: str, axes: str) -> None:
    orders = observed_orders(
        layout,
        (80, 160, 320),
        lambda grid: GridDerivatives(grid)(slow_wave(grid.points())).d(axes) - analytic(axes, slow_wave, grid.points()),
    )
    assert np.abs(orders - 2).max() < 0.15, orders


@pytest.mark.parametrize("axes", DERIVATIVES)
@pytest.mark.parametrize("n", [32, 33])
def test_periodic_axes_are_spectral(axes: str, n: int) -> None:
    grid = Grid((n, n), extent=((0.0, 1.0), (0.0, 2.0)), layout="periodic")
    expected = analytic(axes, wave, grid.points())
    found = GridDerivatives(grid)(wave(grid.points())).d(axes)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_axes_are_differentiated_by_their_own_layout() -> None:
    grid = Grid((33, 24), extent=((0.0, 1.0), (0.0, 2.0)), layout=("nodes", "periodic"))
    u = GridDerivatives(grid)(wave(grid.points()))
    along_y = (u.d("y") - analytic("y", wave, grid.points())).abs().max()
    along_x = (u.d("x") - analytic("x", wave, grid.points())).abs().max()
    assert along_y < 1e-10 and 1e-3 < along_x < 1


@pytest.mark.parametrize("layout", ["nodes", "cells"])
def test_first_and_second_differences_are_exact_for_parabolas(layout: str) -> None:
    grid = Grid((6, 5), extent=((-1.0, 2.0), (0.0, 3.0)), layout=layout)
    x, y = grid.points().unbind(-1)
    u = GridDerivatives(grid)(1 + x - 2 * y + 3 * x**2 - y**2 + x * y)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(u.d("x"), 1 + 6 * x + y, **close)
    torch.testing.assert_close(u.d("y"), -2 - 2 * y + x, **close)
    torch.testing.assert_close(u.d("xx"), torch.full_like(x, 6.0), **close)
    torch.testing.assert_close(u.d("xy"), torch.full_like(x, 1.0), **close)
    torch.testing.assert_close(u.laplacian(), torch.full_like(x, 4.0), **close)
    assert all(torch.equal(part, u.d(axis)) for part, axis in zip(u.gradient(), "xy", strict=True))


@pytest.mark.parametrize("layout", ["nodes", "cells"])
def test_div_grad_is_of_second_order(layout: str) -> None:
    def error(grid: Grid) -> Tensor:
        points = grid.points().requires_grad_()
        u, a = slow_wave(points), slow_coefficient(points)
        (gradient,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        flux = a[..., None] * gradient
        expected = sum(torch.autograd.grad(flux[..., d].sum(), points, retain_graph=True)[0][..., d] for d in range(2))
        derivatives = GridDerivatives(grid)
        return derivatives(u.detach()).div_grad(derivatives(a.detach())) - expected

    orders = observed_orders(layout, (80, 160, 320), error)
    assert np.abs(orders - 2).max() < 0.15, orders


def test_div_grad_agrees_between_providers() -> None:
    grid = Grid((48, 50), extent=((0.0, 1.0), (0.0, 2.0)), layout="periodic")
    spectral = GridDerivatives(grid)
    on_grid = spectral(wave(grid.points())).div_grad(spectral(coefficient(grid.points())))
    u = AutogradDerivatives()(lambda p: wave(p), Batch(coords=grid.points().view(-1, 2)))
    by_autograd = u.div_grad(u.of(coefficient(u._points)))
    torch.testing.assert_close(on_grid.flatten(), by_autograd.detach(), rtol=0, atol=1e-9 * float(on_grid.abs().max()))


def test_div_grad_is_conservative_and_keeps_the_flux_across_a_jump() -> None:
    """a jumps midway between two nodes and a u' is constant: every interior divergence is zero, whatever the contrast."""
    grid = Grid(10, extent=(0.0, 9.0))
    x = grid.coordinates(0)
    a = torch.where(x < 4.5, 1.0, 1000.0).double()
    u = torch.where(x < 4.5, x, 4.5 + (x - 4.5) / 1000)
    derivatives = GridDerivatives(grid)
    assert derivatives(u).div_grad(derivatives(a), jumps=True).abs().max() < 1e-11
    pointwise = derivatives(a).d("x") * derivatives(u).d("x") + a * derivatives(u).d("xx")
    assert pointwise.abs().max() > 1, "the product rule fails there"


def test_div_grad_of_a_constant_coefficient_is_the_laplacian() -> None:
    for layout in ("nodes", "cells", "periodic"):
        grid = Grid((12, 9), layout=layout)
        derivatives = GridDerivatives(grid)
        u = derivatives(torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        found = u.div_grad(derivatives(torch.full((12, 9), 2.5, dtype=torch.float64)))
        expected = 2.5 * u.laplacian()
        if layout == "periodic":  # two first derivatives lose the unpaired frequency, which the second keeps
            spectrum = torch.fft.rfft2(expected - found)
            spectrum[:, 6] = 0
            assert spectrum.abs().max() < 1e-9
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_time_is_no_space_axis() -> None:
    grid = Grid((6, 7), axes=("t", "x"))
    t, x = grid.points().unbind(-1)
    u = GridDerivatives(grid)(t**2 * x**2)
    assert len(u.gradient()) == 1 and torch.equal(u.gradient()[0], u.d("x"))
    torch.testing.assert_close(u.laplacian(), 2 * t**2, rtol=0, atol=1e-11)
    torch.testing.assert_close(u.d("t"), 2 * t * x**2, rtol=0, atol=1e-12)
    batch = Batch(coords=torch.rand(4, 2, dtype=torch.float64))
    v = AutogradDerivatives(coordinates=("t", "x"))(lambda p: p[..., 0] ** 2 * p[..., 1] ** 2, batch)
    assert len(v.gradient()) == 1
    torch.testing.assert_close(v.laplacian(), 2 * batch.coords[..., 0] ** 2)
    torch.testing.assert_close(
        v.div_grad(v.of(batch.coords[..., 1])), (4 * batch.coords[..., 0] ** 2 * batch.coords[..., 1])
    )


def test_leading_axes_names_and_products_on_grids() -> None:
    grid = Grid((5, 8), layout=("nodes", "periodic"))
    field = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    derivatives = GridDerivatives(grid)
    u = derivatives(field, names=("velocity", "pressure"))
    assert isinstance(u, Derivatives) and torch.equal(u.value, field)
    assert torch.equal(u["pressure"].value, field[:, 1])
    torch.testing.assert_close(u["velocity"].d("xy"), u.d("xy")[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(u.d("x")[1, 1], derivatives(field[1, 1]).d("x"), rtol=0, atol=1e-13)
    square = u.of(field**2)
    torch.testing.assert_close(square.d("x"), derivatives(field**2).d("x"), rtol=0, atol=0)
    assert torch.equal(square["pressure"].value, field[:, 1] ** 2)
    with pytest.raises(KeyError, match=r"no component is called 'speed'; this function has \('velocity', 'pressure'\)"):
        u["speed"]
    with pytest.raises(KeyError, match="no named components"):
        u["pressure"]["pressure"]


def test_grid_derivatives_have_gradients() -> None:
    grid = Grid((5, 6), layout=("cells", "periodic"))
    derivatives = GridDerivatives(grid)
    u = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    a = (torch.rand(5, 6, dtype=torch.float64) + 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda u, a: derivatives(u).div_grad(derivatives(a)) + derivatives(u).d("xxy"), (u, a)
    )


def test_grids_refuse_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="order is 4; finite differences of order 2 are available"):
        GridDerivatives(Grid(9), order=4)
    with pytest.raises(ValueError, match=r"axis y has 3 points; .* at least 4"):
        GridDerivatives(Grid((9, 3)))
    u = GridDerivatives(Grid((5, 5)))(torch.zeros(5, 5))
    with pytest.raises(ValueError, match="axis x has 5 points; derivatives of order 3 along it need at least 6"):
        u.d("xxx")
    for axes in ("", "z", "xz", "xt"):
        with pytest.raises(ValueError, match=rf"d\('{axes}'\) asks for axes that the grid does not have; it has x, y"):
            u.d(axes)
    with pytest.raises(ValueError, match=r"field has shape \(5, 4\) but the grid is \(5, 5\)"):
        GridDerivatives(Grid((5, 5)))(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="the grid is"):
        u.of(torch.zeros(4, 4))
    periodic = GridDerivatives(Grid((5, 5), layout=("nodes", "periodic")))
    with pytest.raises(ValueError, match="a is discontinuous but axis y is periodic"):
        periodic(torch.zeros(5, 5)).div_grad(periodic(torch.ones(5, 5)), jumps=True)


# Collocation points


def polynomial(points: Tensor) -> Tensor:
    """Two channels: x^3 y^2 and x y^4."""
    x, y = points.unbind(-1)
    return torch.stack([x**3 * y**2, x * y**4], dim=-1)


EXACT = {
    "x": lambda x, y: (3 * x**2 * y**2, y**4),
    "y": lambda x, y: (2 * x**3 * y, 4 * x * y**3),
    "xx": lambda x, y: (6 * x * y**2, 0 * x),
    "xy": lambda x, y: (6 * x**2 * y, 4 * y**3),
    "yx": lambda x, y: (6 * x**2 * y, 4 * y**3),
    "yy": lambda x, y: (2 * x**3, 12 * x * y**2),
    "xxx": lambda x, y: (6 * y**2, 0 * x),
    "xxy": lambda x, y: (12 * x * y, 0 * x),
    "xyy": lambda x, y: (6 * x**2, 12 * y**2),
    "yyy": lambda x, y: (0 * x, 24 * x * y),
    "xxxyy": lambda x, y: (12 + 0 * x, 0 * x),
    "xxxxyyyyy": lambda x, y: (0 * x, 0 * x),
}


@pytest.mark.parametrize("axes", EXACT)
@pytest.mark.parametrize("shape", [(7, 2), (3, 4, 2)], ids=str)
def test_autograd_is_exact(axes: str, shape: tuple[int, ...]) -> None:
    batch = Batch(coords=torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    u = AutogradDerivatives(names=("a", "b"))(polynomial, batch)
    x, y = batch.coords.detach().unbind(-1)
    expected = torch.stack(EXACT[axes](x, y), dim=-1)
    torch.testing.assert_close(u.d(axes).detach(), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(u["b"].d(axes).detach(), expected[..., 1], rtol=1e-13, atol=1e-13)


def test_laplacian_gradient_div_grad_and_products_by_autograd() -> None:
    batch = Batch(coords=torch.rand(9, 2, dtype=torch.float64))
    u = AutogradDerivatives()(polynomial, batch)
    x, y = batch.coords.unbind(-1)
    assert isinstance(u, Derivatives)
    torch.testing.assert_close(u.laplacian()[:, 0], 6 * x * y**2 + 2 * x**3)
    torch.testing.assert_close(torch.stack(u.gradient()), torch.stack([u.d("x"), u.d("y")]))
    a = u.of(torch.exp(x)[:, None])
    torch.testing.assert_close(u.div_grad(a)[:, 1], torch.exp(x) * (y**4 + 12 * x * y**2))
    flux = u.of(a.value * u.d("x"))
    torch.testing.assert_close(flux.d("x") + u.of(a.value * u.d("y")).d("y"), u.div_grad(a))
    with pytest.raises(ValueError, match=r"a is discontinuous.*wrong in silence"):
        u.div_grad(a, jumps=True)


def test_what_does_not_depend_on_the_points_has_derivative_zero() -> None:
    batch = Batch(coords=torch.rand(4, 2))
    weight = torch.ones((), requires_grad=True)
    for model in (lambda p: torch.ones(4, 1), lambda p: weight * torch.ones(4, 1), lambda p: p[:, :1] * 0 + 1):
        u = AutogradDerivatives()(model, batch)
        assert not u.d("x").any() and not u.d("xy").any() and u.d("xy").shape == (4, 1)
    linear = AutogradDerivatives()(lambda p: p[:, :1], batch)
    assert (linear.d("x") == 1).all() and not linear.d("xx").any() and not linear.d("y").any()


def test_residuals_train_through_their_derivatives() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    coords = torch.rand(6, 2, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def residual(*parameters: Tensor) -> Tensor:
        u = AutogradDerivatives()(
            lambda p: torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (p,)),
            Batch(coords=coords),
        )
        return u.laplacian() + u.value * u.d("x")

    assert torch.autograd.gradcheck(residual, tuple(v.detach().requires_grad_() for v in values))


def test_under_no_grad_the_derivatives_are_the_same() -> None:
    """An evaluation runs under no_grad, where a naive derivative is zero, and the residual wrong, in silence."""
    coords = torch.rand(5, 2, dtype=torch.float64)
    expected = AutogradDerivatives()(polynomial, Batch(coords=coords.clone())).d("xxy")
    with torch.no_grad():
        u = AutogradDerivatives()(polynomial, Batch(coords=coords.clone()))
        assert torch.equal(u.d("xxy"), expected) and expected.any()
        torch.testing.assert_close(u.of(u.value**2).value, u.value**2)


def test_models_of_fields_and_coordinates() -> None:
    """An operator at its own points for every sample, and a refusal where the samples would be summed."""
    inputs, coords = torch.rand(3, 1, 4, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)

    def operator(u: Tensor, points: Tensor) -> Tensor:
        return u.mean((1, 2))[:, None, None] * points[..., :1] ** 2 * torch.ones(3, 1, 1, dtype=u.dtype)

    batch = Batch(input=inputs, coords=coords.expand(3, -1, -1).clone())
    found = AutogradDerivatives()(operator, batch).d("x")
    torch.testing.assert_close(found, 2 * inputs.mean((1, 2))[:, None, None] * batch.coords[..., :1])
    with pytest.raises(ValueError, match=r"shape \(3, 5, 1\) at points \(5, 2\).*coords.expand\(batch, -1, -1\)"):
        AutogradDerivatives()(operator, Batch(input=inputs, coords=coords))


def test_points_refuse_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="the batch has no coords"):
        AutogradDerivatives()(polynomial, Batch(input=torch.zeros(1, 1, 4)))
    with pytest.raises(ValueError, match=r"coords has 2 columns but the coordinates are named \('t', 'x', 'y'\)"):
        AutogradDerivatives(coordinates="txy")(polynomial, Batch(coords=torch.rand(4, 2)))
    u = AutogradDerivatives(names=("a", "b"))(polynomial, Batch(coords=torch.rand(4, 2)))
    for axes in ("", "z", "xt"):
        with pytest.raises(ValueError, match=rf"d\('{axes}'\) asks for coordinates that are not there; there are x, y"):
            u.d(axes)
    with pytest.raises(KeyError, match="no component is called 'c'"):
        u["c"]
    with pytest.raises(ValueError, match=r"shape \(3,\) at points \(4, 2\)"):
        u.of(torch.zeros(3))
