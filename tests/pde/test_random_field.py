"""The cosine and the Fourier series of Gaussian random fields: their laws, and that each is one function on every grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from opflow import Grid
from opflow.pde import CosineField, FourierSpace, PeriodicField
from opflow.pde.random_field import SPLITS, sample_generator


def streams(n: int, seed: int = 0) -> list[np.random.Generator]:
    return [sample_generator("test", "train", i, seed) for i in range(n)]


def eigenvalue(k: tuple[int, ...], alpha: float, tau: float) -> float:
    """Of (-Laplacian + tau^2)^(-alpha) for prod cos(pi k_d x_d)."""
    return (np.pi**2 * sum(i * i for i in k) + tau**2) ** (-alpha)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("mean_mode", [False, True])
def test_variance_of_every_mode(dim: int, mean_mode: bool) -> None:
    """Within 5 standard errors of 2000 samples, each mode of [0, 3)^dim."""
    law, n = CosineField(alpha=1.5, tau=2.0, cutoff=3, mean_mode=mean_mode), 2000
    coefficients = law.coefficients(streams(n), dim)
    assert coefficients.shape == (n, *[3] * dim) and coefficients.dtype == torch.float64
    for k in itertools.product(range(3), repeat=dim):
        xi = coefficients[(slice(None), *k)]
        if not any(k) and not mean_mode:
            assert not xi.any()
            continue
        expected = eigenvalue(k, 1.5, 2.0)
        assert abs(float(xi.square().mean()) - expected) < 5 * expected * (2 / n) ** 0.5, k
        assert abs(float(xi.mean())) < 5 * (expected / n) ** 0.5, k
    flat = coefficients.flatten(1)[:, 1:]
    correlation = torch.corrcoef(flat.T) - torch.eye(flat.shape[1])
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.parametrize("mean_mode", [False, True])
def test_variance_of_the_field_equals_the_sum_of_the_series(mean_mode: bool) -> None:
    """At every point: var g(x) = sum_k lambda_k prod phi_k(x)^2; and averaged over the box, standard_deviation^2."""
    law, n, grid = CosineField(cutoff=6, mean_mode=mean_mode), 3000, Grid((5, 4), layout="cells")
    g = law.evaluate(law.coefficients(streams(n), 2), grid)
    x, y = grid.points().unbind(-1)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    total = 0.0
    for k, l in itertools.product(range(6), repeat=2):
        if (k, l) == (0, 0) and not mean_mode:
            continue
        weight = eigenvalue((k, l), 2.0, 3.0)
        total += weight
        expected += (
            weight
            * ((2 if k else 1) * torch.cos(np.pi * k * x) ** 2)
            * ((2 if l else 1) * torch.cos(np.pi * l * y) ** 2)
        )
    assert ((g.square().mean(0) - expected).abs() < 5 * expected * (2 / n) ** 0.5).all()
    assert (g.mean(0).abs() < 5 * (expected / n).sqrt()).all()
    assert law.standard_deviation(2) == pytest.approx(total**0.5, rel=1e-12)
    # The mean square over a grid fine enough to integrate the squares of all modes is the sum of the squared coefficients.
    coefficients = law.coefficients(streams(3), 2)
    fine = law.evaluate(coefficients, Grid((16, 16), layout="cells"))
    torch.testing.assert_close(fine.square().mean((1, 2)), coefficients.square().sum((1, 2)), rtol=1e-12, atol=0)


def test_evaluation_is_the_series() -> None:
    law, grid = (
        CosineField(cutoff=4, mean_mode=True),
        Grid((5, 3, 4), extent=[(0, 1), (1, 3), (-2, -1)], layout=("nodes", "cells", "periodic")),
    )
    coefficients = law.coefficients(streams(2), 3)
    field = law.evaluate(coefficients, grid)
    unit = (grid.points() - torch.tensor([0.0, 1.0, -2.0])) / torch.tensor([1.0, 2.0, 1.0])
    expected = torch.zeros(2, 5, 3, 4, dtype=torch.float64)
    for k in itertools.product(range(4), repeat=3):
        wave = torch.ones(5, 3, 4, dtype=torch.float64)
        for d, i in enumerate(k):
            wave *= (2**0.5 if i else 1.0) * torch.cos(np.pi * i * unit[..., d])
        expected += coefficients[(slice(None), *k)][:, None, None, None] * wave
    torch.testing.assert_close(field, expected, rtol=0, atol=1e-13)


def test_without_the_mean_mode_every_sample_has_mean_zero() -> None:
    grid = Grid((8, 8), layout="cells")
    for mean_mode in (False, True):
        law = CosineField(cutoff=8, mean_mode=mean_mode)
        means = law.evaluate(law.coefficients(streams(20), 2), grid).mean((1, 2))
        assert (means.abs() < 1e-15).all() != mean_mode and (means.abs() < 1e-4).all() != mean_mode


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_nested_order(dim: int) -> None:
    """Any cutoff continues the same series, and the first draw is the mean's, kept or not."""
    cutoffs = (1, 2, 3, 5)
    series = {c: CosineField(cutoff=c, mean_mode=True).coefficients(streams(2), dim) for c in cutoffs}
    for small, large in itertools.pairwise(cutoffs):
        assert torch.equal(series[small], series[large][(slice(None), *[slice(0, small)] * dim)])
    assert len(set(series[5][0].flatten().tolist())) == 5**dim
    without = CosineField(cutoff=5).coefficients(streams(2), dim)
    without[(slice(None), *[0] * dim)] = series[5][(slice(None), *[0] * dim)]
    assert torch.equal(without, series[5])


def test_laws_share_their_draws() -> None:
    """Another alpha or tau rescales the same sample, so that a study over them compares like with like."""
    smooth, rough = (CosineField(alpha=a, cutoff=4, mean_mode=True).coefficients(streams(1), 1)[0] for a in (3.0, 1.0))
    k2 = np.pi**2 * torch.arange(4, dtype=torch.float64) ** 2 + 9.0
    torch.testing.assert_close(smooth * k2**1.5, rough * k2**0.5, rtol=1e-13, atol=0)


def test_streams_depend_on_every_part_of_their_name() -> None:
    draws = [
        tuple(sample_generator(name, split, index, seed).standard_normal(3))
        for name in ("Darcy", "Poisson")
        for split in SPLITS
        for index in (0, 1, 2**40)
        for seed in (0, 1, 2**70)
    ]
    assert len(set(draws)) == len(draws) == 54
    assert tuple(sample_generator("Darcy", "train", 0).standard_normal(3)) == draws[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cutoff": 0}, "cutoff 0; alpha and cutoff must be positive"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"tau": -1.0}, "tau -1.0"),
        ({"tau": float("nan")}, "tau nan"),
        ({"tau": 0.0, "mean_mode": True}, "mean mode has infinite variance for tau = 0"),
    ],
)
def test_laws_that_are_none_are_refused_in_a_sentence(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        CosineField(**options)


def test_tau_zero_has_no_mean_and_is_finite() -> None:
    coefficients = CosineField(tau=0.0, cutoff=4).coefficients(streams(1), 2)
    assert coefficients.isfinite().all() and coefficients[0, 0, 0] == 0


def test_unknown_splits_and_negative_numbers_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="split is 'valid'; choose one of train, validation, test"):
        sample_generator("Darcy", "valid", 0)
    for index, seed in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"seed is {seed} and index {index}; neither may be negative"):
            sample_generator("Darcy", "train", index, seed)


# Periodic fields


def waves(dim: int, cutoff: int) -> list[tuple[int, ...]]:
    """One k of every pair (k, -k), k = 0 left out: the one whose last number that is not 0 is positive."""
    numbers = itertools.product(range(-cutoff, cutoff + 1), repeat=dim)
    return [k for k in numbers if any(k) and [i for i in k if i][-1] > 0]


def periodic_variance(k: tuple[int, ...], law: PeriodicField) -> float:
    """Of (-Laplacian + tau^2)^(-alpha) for exp(2 pi i k.x), times sigma^2."""
    return law.sigma**2 * (4 * np.pi**2 * sum(i * i for i in k) + law.tau**2) ** (-law.alpha)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("mean_mode", [False, True])
def test_variance_of_every_periodic_mode(dim: int, mean_mode: bool) -> None:
    """Cosine and sine of each wave, within 5 standard errors of 2000 samples, uncorrelated."""
    law, n = PeriodicField(alpha=1.5, tau=2.0, sigma=3.0, cutoff=2, mean_mode=mean_mode), 2000
    c = law.coefficients(streams(n), dim)
    assert c.shape == (n, *[5] * (dim - 1), 3) and c.dtype == torch.complex128
    parts = []
    for k in waves(dim, 2):
        values = c[(slice(None), *[i + 2 for i in k[:-1]], k[-1])]
        for part in (values.real, values.imag):  # g = sum Re(c_k) cos - Im(c_k) sin, each sqrt(2) of a unit wave
            expected = 2 * periodic_variance(k, law)
            assert abs(float(part.square().mean()) - expected) < 5 * expected * (2 / n) ** 0.5, k
            parts.append(part / expected**0.5)
    mean = c[(slice(None), *[2] * (dim - 1), 0)]
    assert not mean.imag.any()
    if mean_mode:
        expected = periodic_variance((0,) * dim, law)
        assert abs(float(mean.real.square().mean()) - expected) < 5 * expected * (2 / n) ** 0.5
        parts.append(mean.real / expected**0.5)
    else:
        assert not mean.any()
    assert sum(int(row.any()) for row in c.flatten(1).T) == len(waves(dim, 2)) + mean_mode, "one mode of each pair"
    correlation = torch.corrcoef(torch.stack(parts)) - torch.eye(len(parts))
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.parametrize("dim", [1, 2])
def test_covariance_of_a_periodic_field(dim: int) -> None:
    """E g(x) g(y) = sum_k lambda_k cos(2 pi k.(x - y)) over all k: it depends on the distance only, on the torus."""
    law, n = PeriodicField(alpha=2.0, tau=3.0, sigma=5.0, cutoff=4, mean_mode=True), 3000
    grid = Grid((8,) * dim, layout="periodic")
    g = law.evaluate(law.coefficients(streams(n), dim), grid).flatten(1)
    points = grid.points().reshape(-1, dim)
    distance = points[:, None] - points
    expected = torch.full(distance.shape[:-1], periodic_variance((0,) * dim, law), dtype=torch.float64)
    for k in waves(dim, 4):
        phase = (distance * torch.tensor(k, dtype=torch.float64)).sum(-1)
        expected += 2 * periodic_variance(k, law) * torch.cos(2 * torch.pi * phase)
    found = g.T @ g / n
    variance = float(expected[0, 0])
    assert law.standard_deviation(dim) == pytest.approx(variance**0.5, rel=1e-12)
    assert ((found - expected).abs() < 6 * variance * (2 / n) ** 0.5).all()
    assert (g.mean(0).abs() < 5 * (variance / n) ** 0.5).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_a_periodic_field_is_its_series_on_every_grid(dim: int) -> None:
    law = PeriodicField(alpha=1.5, tau=2.0, cutoff=3, mean_mode=True)
    c = law.coefficients(streams(2), dim)
    for shape, extent, layout in (
        ((16, 9)[:dim], [(0.0, 1.0)] * dim, "periodic"),
        ((5, 4)[:dim], [(1.0, 3.0), (-2.0, -1.0)][:dim], ("nodes", "cells")[:dim]),
    ):
        grid = Grid(shape, extent, layout)
        unit = (grid.points() - torch.tensor([a for a, _ in grid.extent])) / torch.tensor(grid.lengths)
        expected = torch.zeros(2, *shape, dtype=torch.float64)
        for k in ((0,) * dim, *waves(dim, 3)):
            value = c[(slice(None), *[i + 3 for i in k[:-1]], k[-1])].view(-1, *[1] * dim)
            angle = 2 * torch.pi * (unit * torch.tensor(k, dtype=torch.float64)).sum(-1)
            expected += value.real * torch.cos(angle) - value.imag * torch.sin(angle)
        found = law.evaluate(c, grid)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    fine = Grid((12,) * dim, layout="periodic")
    resolved = FourierSpace(fine).coefficients(law.evaluate(c, fine))
    assert resolved[..., 4:].abs().max() < 1e-15, "the cutoff is sharp"


@pytest.mark.parametrize("dim", [1, 2])
def test_nested_order_of_periodic_modes(dim: int) -> None:
    """Any cutoff continues the same series, and the first draws are the mean's, kept or not."""
    cutoffs = (1, 2, 5)
    series = {
        c: PeriodicField(alpha=2.0, tau=3.0, cutoff=c, mean_mode=True).coefficients(streams(2), dim) for c in cutoffs
    }
    for small, large in itertools.pairwise(cutoffs):
        inner = slice(large - small, large + small + 1)
        assert torch.equal(series[small], series[large][(slice(None), *[inner] * (dim - 1), slice(0, small + 1))])
    without = PeriodicField(alpha=2.0, tau=3.0, cutoff=5).coefficients(streams(2), dim)
    mean = (slice(None), *[5] * (dim - 1), 0)
    assert not without[mean].any() and series[5][mean].real.all()
    without[mean] = series[5][mean]
    assert torch.equal(without, series[5])


def test_sigma_scales_the_field_and_not_its_variance() -> None:
    one, three = (PeriodicField(alpha=2.0, tau=1.0, sigma=s, cutoff=4) for s in (1.0, 3.0))
    torch.testing.assert_close(
        three.coefficients(streams(1), 2), 3 * one.coefficients(streams(1), 2), rtol=1e-15, atol=0
    )
    assert three.standard_deviation(2) == pytest.approx(3 * one.standard_deviation(2), rel=1e-14)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cutoff": 0}, "cutoff 0; alpha, sigma and cutoff must be positive"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"sigma": -1.0}, "sigma -1.0"),
        ({"sigma": float("nan")}, "sigma nan"),
        ({"tau": -1.0}, "tau -1.0"),
        ({"tau": 0.0, "mean_mode": True}, "mean mode has infinite variance for tau = 0"),
    ],
)
def test_periodic_laws_that_are_none_are_refused_in_a_sentence(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        PeriodicField(**({"alpha": 2.0, "tau": 3.0} | options))


def test_a_periodic_field_with_tau_zero_is_finite() -> None:
    law = PeriodicField(alpha=2.0, tau=0.0, cutoff=4)
    assert law.coefficients(streams(1), 2).isfinite().all() and np.isfinite(law.standard_deviation(2))
