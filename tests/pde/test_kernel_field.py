"""The Gaussian process of a kernel: its law, its rate of convergence, and that a sample is one function on every grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from opflow import Grid
from opflow.pde import SquaredExponentialField
from opflow.pde.random_field import sample_generator


def streams(n: int, seed: int = 0) -> list[np.random.Generator]:
    return [sample_generator("test", "train", i, seed) for i in range(n)]


def kernel(x: torch.Tensor, length: float) -> torch.Tensor:
    return torch.exp(-((x[:, None] - x).square()) / (2 * length**2))


@pytest.mark.parametrize(
    ("length", "extent"),
    [(0.2, (0.0, 1.0)), (0.2, (0.0, 5.0)), (3.0, (-1.0, 1.0)), (0.05, (2.0, 5.2)), (1e3, (0.0, 1.0))],
)
def test_the_series_is_the_kernel(length: float, extent: tuple[float, float]) -> None:
    """sum_n psi_n(x) psi_n(y) = k(x, y) to rounding, with the functions that the default cutoff keeps."""
    grid, law = Grid(61, extent), SquaredExponentialField(length)
    functions = law.functions(grid)
    assert functions.shape == (61, law.n_functions(grid))
    error = (functions @ functions.mT - kernel(grid.coordinates(0), length)).abs().max()
    assert error < 1e-13, error


def test_what_is_left_out_is_the_tail_of_a_poisson_law() -> None:
    """1 - sum_(n < N) psi_n(s)^2 = P(Poisson(s^2) >= N), largest at the ends, and below 1e-16 at the default cutoff."""
    grid = Grid(11)
    s2 = ((grid.coordinates(0) - 0.5) / 0.2).square().numpy()
    for cutoff in (1, 5, 12, 25):
        left_out = 1 - SquaredExponentialField(0.2, cutoff=cutoff).functions(grid).square().sum(-1).numpy()
        np.testing.assert_allclose(left_out, stats.poisson.sf(cutoff - 1, s2), rtol=1e-8, atol=1e-15)
    for lengths in (0.1, 1.0, 5.0, 25.0, 64.0):
        n = SquaredExponentialField(1.0).n_functions(Grid(11, (0.0, lengths)))
        assert stats.poisson.sf(n - 1, lengths**2 / 4) < 1e-16
        assert stats.poisson.sf(0.6 * n - 8, lengths**2 / 4) > 1e-16, "far more functions than are needed"


def test_covariance_of_samples() -> None:
    """Within 5 standard errors of 4000 samples at every pair of points, and mean zero."""
    n, grid, law = 4000, Grid(9), SquaredExponentialField(0.2)
    g = law.evaluate(law.coefficients(streams(n), grid), grid)
    assert g.shape == (n, 9) and g.dtype == torch.float64
    k = kernel(grid.coordinates(0), 0.2)
    deviation = ((1 + k.square()) / n).sqrt()  # of a product of two normals with unit variance and correlation k
    assert ((g.mT @ g / n - k).abs() < 5 * deviation).all()
    assert (g.mean(0).abs() < 5 / n**0.5).all()


def test_derivatives_have_the_variance_of_the_kernel() -> None:
    """Var g' = 1 / length^2: the law is right beyond its values at a few points."""
    grid = Grid(2001)
    functions = SquaredExponentialField(0.2).functions(grid).numpy()
    slope = np.gradient(functions, grid.spacing[0], axis=0, edge_order=2)
    np.testing.assert_allclose((slope**2).sum(1), 25.0, rtol=1e-4)


@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_a_sample_is_one_function_on_every_grid(layout: str) -> None:
    law, fine = SquaredExponentialField(0.3), Grid(901, (0.0, 2.0))
    coefficients = law.coefficients(streams(3), fine)
    grid = Grid(31 if layout == "nodes" else 30, (0.0, 2.0), layout)
    assert torch.equal(law.coefficients(streams(3), grid), coefficients)
    index = (grid.coordinates(0) / fine.spacing[0]).round().long()
    torch.testing.assert_close(fine.coordinates(0)[index], grid.coordinates(0), rtol=0, atol=1e-12)
    found, expected = law.evaluate(coefficients, grid), law.evaluate(coefficients, fine)[:, index]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_smaller_cutoff_is_a_prefix_of_the_series() -> None:
    grid = Grid(20)
    small, large = (SquaredExponentialField(cutoff=c).coefficients(streams(2), grid) for c in (8, 30))
    assert torch.equal(small, large[:, :8])
    assert torch.equal(large[0, :4], torch.from_numpy(streams(1)[0].standard_normal(4)))


def test_it_is_in_double_precision_and_takes_no_sample() -> None:
    grid, law = Grid(20), SquaredExponentialField()
    assert law.evaluate(law.coefficients([], grid), grid).shape == (0, 20)
    assert law.evaluate(law.coefficients(streams(2), grid).float(), grid).dtype == torch.float64


def test_laws_that_are_none_are_refused_in_a_sentence() -> None:
    for options in ({"length": 0.0}, {"length": math.nan}, {"length": -1.0}, {"cutoff": 0}):
        with pytest.raises(ValueError, match=r"length is .* and cutoff .*give positive numbers"):
            SquaredExponentialField(**options)
    with pytest.raises(ValueError, match="100 correlation lengths long, but the series reaches 64"):
        SquaredExponentialField(0.01).n_functions(Grid(20))
    with pytest.raises(ValueError, match="the grid has 2 axes"):
        SquaredExponentialField().n_functions(Grid((4, 4)))
