"""Priors: coordinates, links, principal components, intervals."""

from __future__ import annotations

import pytest
import torch

from opflow.grid import Grid
from opflow.inversion import GaussianPrior

GRID = Grid((17, 13), ((0.0, 2.0), (-1.0, 1.0)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("link", ["exp", "identity"])
def test_coefficients_invert_the_field(link: str) -> None:
    prior = GaussianPrior.cosine(GRID, (4, 3), 0.7, 1.5, mean=0.2, link=link)
    z = torch.randn(2, 5, 12, generator=generator(), dtype=torch.float64)
    assert prior.field(z).shape == (2, 5, 17, 13)
    torch.testing.assert_close(prior.coefficients(prior.field(z)), z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prior.coefficients(prior.field(z[0, 0])), z[0, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("link", ["exp", "identity"])
def test_directions_are_the_derivative(link: str) -> None:
    prior = GaussianPrior.cosine(GRID, 3, 0.7, 1.5, link=link)
    z = torch.randn(9, generator=generator(), dtype=torch.float64)
    jacobian = torch.func.jacfwd(prior.field)(z).movedim(-1, 0)
    torch.testing.assert_close(prior.directions(z), jacobian, rtol=1e-12, atol=1e-12)


def test_cosines_have_the_deviation_asked_for() -> None:
    prior = GaussianPrior.cosine(GRID, 5, 0.7, 1.5, link="identity")
    variance = prior.modes.square().sum(0)
    average = (variance * GRID.quadrature_weights()).sum() / GRID.quadrature_weights().sum()
    assert abs(float(average) - 0.49) < 1e-12
    energies = prior.modes.square().flatten(1).mean(1)
    assert bool((energies[1:] <= energies[:-1] * 2.1).all())  # falling, up to the factor of the constant in one axis


def test_principal_components_recover_a_gaussian_field_of_their_rank() -> None:
    truth = GaussianPrior.cosine(GRID, 2, 0.5, 1.0, mean=-0.4)
    fields = truth.sample(20000, generator=generator())
    learned = GaussianPrior.from_samples(fields, 4, weight=GRID.quadrature_weights())
    covariance = torch.einsum("kxy,kuv->xyuv", truth.modes, truth.modes)
    found = torch.einsum("kxy,kuv->xyuv", learned.modes, learned.modes)
    assert (found - covariance).norm() < 0.03 * covariance.norm()
    assert (learned.mean + 0.4).abs().max() < 0.03
    assert learned.explained == pytest.approx(1.0)
    fresh = truth.sample(10, generator=generator(1))
    torch.testing.assert_close(learned.field(learned.coefficients(fresh)), fresh, rtol=1e-8, atol=1e-8)


def test_components_are_orthogonal_in_the_weighted_product_and_the_best_there() -> None:
    weight = torch.linspace(0.1, 3.0, 40, dtype=torch.float64)
    g = torch.randn(60, 40, generator=generator(), dtype=torch.float64).cumsum(1)
    prior = GaussianPrior.from_samples(g, 5, link="identity", weight=weight)
    gram = torch.einsum("jx,x,kx->jk", prior.modes, weight, prior.modes)
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-10, rtol=0)
    plain = GaussianPrior.from_samples(g, 5, link="identity")

    def rest(p: GaussianPrior) -> float:
        A = (weight.sqrt() * p.modes).T
        b = (weight.sqrt() * (g - g.mean(0))).T
        return float((b - A @ torch.linalg.lstsq(A, b).solution).square().sum())

    assert rest(prior) < rest(plain)
    total = (weight * (g - g.mean(0)).square()).sum()
    assert prior.explained == pytest.approx(1 - rest(prior) / float(total), rel=1e-9)


def test_intervals_hold_their_share_of_draws() -> None:
    prior = GaussianPrior.cosine(GRID, 3, 0.8, 1.0)
    root = torch.randn(9, 9, generator=generator(3), dtype=torch.float64) / 3
    centre = torch.randn(9, generator=generator(4), dtype=torch.float64)
    lower, upper = prior.interval(centre, root @ root.T, 0.8)
    draws = prior.field(centre + torch.randn(20000, 9, generator=generator(5), dtype=torch.float64) @ root.T)
    inside = ((lower <= draws) & (draws <= upper)).double().mean(0)
    assert (inside - 0.8).abs().max() < 0.02 and bool((lower > 0).all())


def test_samples_have_the_prior_s_moments() -> None:
    prior = GaussianPrior.cosine(Grid(5), 3, 0.5, 1.0, mean=1.0, link="identity")
    fields = prior.sample(40000, generator=generator())
    assert (fields.mean(0) - 1).abs().max() < 0.02
    assert (fields.var(0) - prior.modes.square().sum(0)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GaussianPrior(torch.zeros(3), torch.ones(2, 4)), r"modes have shape \(2, 4\)"),
        (lambda: GaussianPrior(torch.zeros(3), torch.ones(2, 3), link="log"), "link is 'log'"),
        (lambda: GaussianPrior(torch.zeros(3), torch.full((1, 3), torch.nan)), "modes holds NaN"),
        (lambda: GaussianPrior(torch.zeros(3), torch.ones(1, 3), weight=torch.zeros(3)), "positive quadrature weights"),
        (lambda: GaussianPrior.from_samples(torch.ones(5, 3), 2), "span fewer than 2 directions"),
        (lambda: GaussianPrior.from_samples(torch.ones(2, 3), 2), "more of them than modes"),
        (lambda: GaussianPrior.from_samples(torch.randn(9, 3), 2), "expects positive ones"),
        (lambda: GaussianPrior.cosine(Grid(5), 3, scale=0.0), "give positive numbers"),
        (lambda: GaussianPrior.cosine(Grid(5), 3).field(torch.zeros(4)), "the prior has 3 modes"),
        (lambda: GaussianPrior.cosine(Grid(5), 3).coefficients(torch.ones(4)), r"lives on \(5,\)"),
        (lambda: GaussianPrior.cosine(Grid(5), 3).coefficients(torch.full((5,), torch.nan)), "NaN or infinity"),
        (lambda: GaussianPrior.cosine(Grid(5), 3).interval(torch.zeros(3), torch.eye(3).double(), 90), "level is 90"),
    ],
)  # fmt: skip
def test_what_makes_no_prior_is_refused_in_a_sentence(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
