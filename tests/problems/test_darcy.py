"""Darcy flow: its media, its solver against a sparse factorisation, and what only a conservative scheme may do."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.pde import AutogradDerivatives, CosineField, GridDerivatives
from opflow.pde.random_field import sample_generator
from opflow.problems import Darcy
from opflow.problems.sparse_factors import solve_by_factors
from opflow.solvers import FaceStencil

media = pytest.mark.parametrize("medium", ["two-phase", "log-normal"])


def on_grid(problem: Darcy, grid: Grid) -> dict[str, Tensor]:
    return {name: values[None] for name, values in problem.exact(grid.points()).items()}


def residual_by_autograd(problem: Darcy, batch: Batch) -> dict[str, Tensor]:
    derivatives = AutogradDerivatives(names=problem.unknowns)
    u = derivatives(lambda points: torch.stack([problem.exact(points)[name] for name in problem.unknowns], -1), batch)
    inputs = {
        name: u.of(values) for name, values in problem.exact(batch.coords).items() if name not in problem.unknowns
    }
    return problem.residual(u, inputs)


def test_only_conservative_schemes_differentiate_a_jump() -> None:
    problem = Darcy("two-phase")
    with pytest.raises(ValueError, match=r"a is discontinuous.*GridDerivatives on nodes or cells"):
        residual_by_autograd(problem, Batch(coords=torch.rand(5, 2, dtype=torch.float64)))
    grid = Grid((8, 8), layout="periodic")
    fields = on_grid(problem, grid)
    u = GridDerivatives(grid)(fields["pressure"][:, None], names=("pressure",))
    with pytest.raises(ValueError, match="a is discontinuous but axis x is periodic"):
        problem.residual(u, {"permeability": GridDerivatives(grid)(fields["permeability"])})


def test_a_wrong_equation_would_show() -> None:
    """-a lap u in place of -div(a grad u), a published mistake, leaves a residual of order one."""
    problem, grid = Darcy("log-normal"), Grid((65, 65))
    fields = on_grid(problem, grid)
    u = GridDerivatives(grid)(fields["pressure"])
    wrong = -fields["permeability"] * u.laplacian() - fields["forcing"]
    assert wrong.abs().max() > 1


@media
def test_residual_takes_the_constant_forcing_where_none_is_given(medium: str) -> None:
    problem, grid = Darcy(medium, forcing=2.5), Grid((9, 9))
    zero = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    u, a = (
        GridDerivatives(grid)(zero, names=problem.unknowns),
        GridDerivatives(grid)(torch.ones(1, 9, 9, dtype=torch.float64)),
    )
    (residual,) = problem.residual(u, {"permeability": a}).values()
    assert torch.equal(residual, torch.full_like(residual, -2.5))


def sparse_lu(a: np.ndarray, f: float, side: float = 1.0) -> np.ndarray:
    """Five-point finite volumes with harmonic faces, assembled entry by entry and factorised."""
    n, h = a.shape[0], side / (a.shape[0] - 1)
    inner = range(1, n - 1)
    number = {(i, j): k for k, (i, j) in enumerate((i, j) for i in inner for j in inner)}
    rows, columns, values = [], [], []
    for (i, j), row in number.items():
        total = 0.0
        for there in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            weight = 2 / (1 / a[i, j] + 1 / a[there]) / h**2
            total += weight
            if there in number:
                rows.append(row), columns.append(number[there]), values.append(-weight)
        rows.append(row), columns.append(row), values.append(total)
    matrix = sp.csc_array((values, (rows, columns)))
    u = np.zeros((n, n))
    u[1:-1, 1:-1] = scipy.sparse.linalg.splu(matrix).solve(np.full(len(number), f)).reshape(n - 2, n - 2)
    return u


@media
def test_solve_agrees_with_a_sparse_factorisation(medium: str) -> None:
    problem, grid = Darcy(medium, forcing=1.5), Grid((33, 33))
    inputs = problem.sample(3, grid, seed=5)
    found = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    for i in range(3):
        expected = sparse_lu(inputs["permeability"][i].numpy(), 1.5)
        assert np.linalg.norm(found[i].numpy() - expected) <= 1e-10 * np.linalg.norm(expected)


def decades(a: Tensor) -> Tensor:
    """log10 of the contrast of each medium."""
    return (a.amax((1, 2)) / a.amin((1, 2))).log10()


HIGH_CONTRAST = {
    "two-phase": Darcy(high=1e4, low=1.0),
    "log-normal": Darcy("log-normal", log_scale=1.3),
    "log-normal, rough": Darcy("log-normal", log_scale=1.3, alpha=1.5),
    "multiscale": Darcy("multiscale"),
}
high_contrast = pytest.mark.parametrize("problem", HIGH_CONTRAST.values(), ids=HIGH_CONTRAST)


@high_contrast
def test_high_contrasts_agree_with_a_sparse_factorisation(problem: Darcy) -> None:
    """To what the condition number leaves of a residual of 1e-12: an energy norm times the root of the contrast."""
    grid = Grid((33, 33), problem.extent)
    inputs = problem.sample(2, grid, seed=5)
    found = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    for i in range(2):
        expected = sparse_lu(inputs["permeability"][i].numpy(), 1.0, side=grid.lengths[0])
        assert np.linalg.norm(found[i].numpy() - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("n", [64, 129, 257])
@high_contrast
def test_contrasts_of_ten_thousand_are_solved(problem: Darcy, n: int) -> None:
    """The residual is 1e-10 of the right-hand side, or the rounding of its own terms: those grow with contrast and resolution."""
    grid = Grid((n, n), problem.extent)
    a = problem.sample(2, grid)["permeability"]
    low, high = {"two-phase": (4, 4), "log-normal": (2, 5), "multiscale": (3.5, 5)}[problem.medium]
    assert (decades(a) >= low - 1e-9).all() and (decades(a) <= high + 1e-9).all()
    u = problem.solve({"permeability": a}, grid)["pressure"][:, 1:-1, 1:-1]
    A = FaceStencil.from_coefficient(a, grid)
    residual = (A.apply(u) - 1).flatten(1).norm(dim=1)
    rounding = 1e-15 * (2 * A.diagonal() * u.abs()).flatten(1).norm(dim=1)
    assert (residual <= torch.maximum(torch.full_like(rounding, 1e-10 * (n - 2)), rounding)).all()
    assert (u > 0).all()


def test_which_media_are_solved_by_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of the medium and of the contrast of what is solved, not of what the problem would sample."""
    from opflow.problems import darcy

    used = []

    def spy(A: FaceStencil, b: Tensor, *, rtol: float) -> Tensor:
        used.append(A.shape)
        return solve_by_factors(A, b, rtol=rtol)

    monkeypatch.setattr(darcy, "solve_by_factors", spy)
    grid = Grid((9, 9))
    for problem, high, factors in (
        (Darcy(), 99.0, False),
        (Darcy(), 101.0, True),
        (Darcy("log-normal"), 1e3, False),
        (Darcy("log-normal"), 2e5, True),
        (Darcy("multiscale"), 2.0, True),
    ):
        a = torch.ones(2, 9, 9, dtype=torch.float64)
        a[1, 3:6, 3:6] = high
        used.clear()
        problem.solve({"permeability": a}, Grid((9, 9), problem.extent))
        assert bool(used) == factors, (problem, high)
    assert Darcy(high=1e4).solve({"permeability": torch.ones(0, 9, 9)}, grid)["pressure"].shape == (0, 9, 9)


def test_factors_take_one_operator_for_many_and_say_when_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from opflow.problems import sparse_factors

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 12, 9, generator=generator, dtype=torch.float64) + 0.1
    A = FaceStencil.from_coefficient(a, Grid((12, 9)))
    x = torch.randn(3, *A.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(solve_by_factors(A, A.apply(x), rtol=1e-12), x, rtol=1e-10, atol=1e-10)
    matrix = sparse_factors.as_csc(A)
    np.testing.assert_allclose(matrix @ x[0].flatten().numpy(), A.apply(x)[0].flatten().numpy(), rtol=1e-13)
    assert abs(matrix - matrix.T).max() == 0
    with pytest.raises(RuntimeError, match="right-hand side of sample 1 holds NaN"):
        solve_by_factors(A, torch.where(torch.arange(3).view(-1, 1, 1) == 1, torch.nan, x), rtol=1e-10)
    monkeypatch.setattr(sparse_factors, "ROUNDING", 0.0)
    with pytest.raises(RuntimeError, match=r"sample 0 leave a residual of .* more than rtol=1e-30"):
        solve_by_factors(A, x, rtol=1e-30)


def test_multiscale_media_are_the_stated_product() -> None:
    """Point by point, with the six wave numbers of each sample drawn in order from its own stream."""
    grid = Grid((7, 5), (-1.0, 1.0))
    found = Darcy("multiscale").sample([0, 4], grid, seed=2, split="test")["permeability"]
    for number, index in enumerate([0, 4]):
        octaves = sample_generator("Darcy", "test", index, 2).uniform(1.0, 1.5, 6)
        for (i, j), value in np.ndenumerate(found[number].numpy()):
            x, y = -1 + i / 3, -1 + j / 2
            expected = 1.0
            for k, octave in enumerate(octaves):
                wave = 2**k * octave * np.pi
                expected *= (1 + 0.5 * np.cos(wave * (x + y))) * (1 + 0.5 * np.sin(wave * (y - 3 * x)))
            assert value == pytest.approx(expected, rel=1e-11)


REFINED = {
    # Relative L2 error at the common nodes against 1009 nodes, the mean of two media: docs/problems/darcy.md.
    "two-phase": (Darcy(), {64: 5.9e-3, 127: 2.6e-3, 253: 1.1e-3, 505: 3.6e-4}),
    "rough": (Darcy(tau=5.0, low=2.0), {64: 7.9e-3, 127: 4.2e-3, 253: 1.5e-3, 505: 5.6e-4}),
    "log-normal, rough": (HIGH_CONTRAST["log-normal, rough"], {64: 1.1e-2, 127: 3.6e-3, 253: 9.4e-4, 505: 1.9e-4}),
    "multiscale": (Darcy("multiscale"), {64: 2.1e-1, 127: 1.0e-1, 253: 4.0e-2, 505: 9.2e-3}),
}
refined = pytest.mark.parametrize(("problem", "errors"), REFINED.values(), ids=REFINED)


def errors_against(problem: Darcy, reference: int, sizes: list[int]) -> list[float]:
    def pressure(n: int) -> Tensor:
        grid = Grid((n, n), problem.extent)
        return problem.solve(problem.sample(2, grid), grid, rtol=1e-8)["pressure"]

    fine, found = pressure(reference), []
    for n in sizes:
        stride = (reference - 1) // (n - 1)
        kept = fine[:, ::stride, ::stride]
        difference = (pressure(n) - kept).flatten(1).norm(dim=1) / kept.flatten(1).norm(dim=1)
        found.append(float(difference.mean()))
    return found


@refined
def test_pressures_converge_in_rough_media(problem: Darcy, errors: dict[int, float]) -> None:
    """127 against 253 nodes, as far as the documented errors against 1009 let expect."""
    coarse, middle = errors_against(problem, 253, [64, 127])
    assert middle < coarse and 0.3 * errors[127] < middle < 1.6 * errors[127]


@pytest.mark.slow
@refined
def test_the_documented_errors_of_rough_media(problem: Darcy, errors: dict[int, float]) -> None:
    found = errors_against(problem, 1009, list(errors))
    print({n: f"{error:.2e}" for n, error in zip(errors, found, strict=True)})
    assert all(0.8 * error < value < 1.25 * error for error, value in zip(errors.values(), found, strict=True)), found


@media
def test_solve_is_what_the_equation_says(medium: str) -> None:
    """Positive inside, zero on the boundary, u(c a) = u(a) / c, linear in f, symmetric under transposition."""
    problem, grid = Darcy(medium), Grid((21, 21))
    inputs = problem.sample(2, grid, seed=1)
    a = inputs["permeability"]
    u = problem.solve(inputs, grid)["pressure"]
    assert u.shape == (2, 21, 21) and u.dtype == torch.float64
    boundary = torch.ones(21, 21, dtype=torch.bool)
    boundary[1:-1, 1:-1] = False
    assert not u[:, boundary].any() and (u[:, ~boundary] > 0).all()
    close = {"rtol": 1e-8, "atol": 1e-10 * float(u.max())}
    torch.testing.assert_close(problem.solve({"permeability": 7 * a}, grid)["pressure"], u / 7, **close)
    torch.testing.assert_close(problem.solve({"permeability": a.mT}, grid)["pressure"], u.mT, **close)
    torch.testing.assert_close(problem.solve({"permeability": a.flip(-1)}, grid)["pressure"], u.flip(-1), **close)
    torch.testing.assert_close(Darcy(medium, forcing=-2.0).solve(inputs, grid)["pressure"], -2 * u, **close)
    given = torch.full((1, 21, 21), 3.0)
    torch.testing.assert_close(problem.solve({**inputs, "forcing": given}, grid)["pressure"], 3 * u, **close)
    torch.testing.assert_close(problem.solve({"permeability": a[1:]}, grid)["pressure"], u[1:], **close)
    assert not problem.solve({**inputs, "forcing": torch.zeros(1, 21, 21)}, grid)["pressure"].any()


@media
def test_solutions_zero_the_residual_that_is_stated(medium: str) -> None:
    """The discrete solution zeroes the discrete residual inside, so that the solver and the loss are one equation."""
    problem, grid = Darcy(medium), Grid((25, 25))
    inputs = problem.sample(2, grid)
    u = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    derivatives = GridDerivatives(grid)
    residual = problem.residual(
        derivatives(u[:, None], names=("pressure",)), {"permeability": derivatives(inputs["permeability"])}
    )["mass_balance"]
    assert residual[:, 1:-1, 1:-1].abs().max() < 1e-8


@pytest.mark.slow
@media
def test_421_against_841(medium: str) -> None:
    """Both in the L2 norm of the common nodes, the measure of the published generator."""
    problem = Darcy(medium)
    fine, coarse = Grid((841, 841)), Grid((421, 421))
    u = problem.solve(problem.sample(2, fine), fine)["pressure"][:, ::2, ::2]
    v = problem.solve(problem.sample(2, coarse), coarse)["pressure"]
    assert ((u - v).flatten(1).norm(dim=1) <= 1e-3 * u.flatten(1).norm(dim=1)).all()


def test_the_streams_are_the_documented_ones() -> None:
    """SeedSequence([seed, crc32(name), split, i]); written out, so that published data stay what they are."""
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, 0xD8B7D430, 1, 3])))
    np.testing.assert_array_equal(
        sample_generator("Darcy", "validation", 3, 7).standard_normal(4), expected.standard_normal(4)
    )


@media
def test_a_smaller_cutoff_is_a_prefix_of_the_series(medium: str) -> None:
    kwargs = {"alpha": Darcy(medium).alpha, "tau": Darcy(medium).tau}
    coefficients = {
        cutoff: CosineField(cutoff=cutoff, **kwargs).coefficients([sample_generator("Darcy", "train", 0)], 2)
        for cutoff in (64, 128)
    }
    assert torch.equal(coefficients[64], coefficients[128][:, :64, :64]) and coefficients[64].any()


@media
def test_constants_are_double_precision_whatever_the_default(medium: str) -> None:
    """0.1 is not 0.1 in single precision, and the default dtype of a script must not change a data set."""
    problem, grid = Darcy(medium, high=0.3, low=0.1, forcing=0.1, cutoff=8, mean_mode=True), Grid((8, 8))
    fields = problem.sample(2, grid)
    if medium == "two-phase":
        assert set(fields["permeability"].unique().tolist()) == {0.1, 0.3}
    u = problem.solve(fields, grid, rtol=1e-13)["pressure"]
    scaled = problem.solve({**fields, "forcing": torch.ones(1, *grid.shape)}, grid, rtol=1e-13)["pressure"]
    torch.testing.assert_close(u, 0.1 * scaled, rtol=1e-11, atol=0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(problem.sample(2, grid)["permeability"], fields["permeability"])
        assert torch.equal(problem.solve(fields, grid, rtol=1e-13)["pressure"], u)
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_phases_take_their_two_values_and_both() -> None:
    values = Darcy(high=5.0, low=2.0).sample(4, Grid((32, 32)))["permeability"]
    assert set(values.unique().tolist()) == {2.0, 5.0}
    share = (values == 5.0).double().mean((1, 2))
    assert ((share > 0.1) & (share < 0.9)).all()


def test_log_normal_has_the_stated_scale() -> None:
    """log a = log_scale g / std(g): its variance over the square and over samples is log_scale^2."""
    for scale in (0.5, 2.0):
        logs = (
            Darcy("log-normal", log_scale=scale, cutoff=16)
            .sample(400, Grid((9, 9), layout="nodes"))["permeability"]
            .log()
        )
        weights = Grid((9, 9)).quadrature_weights()
        # The trapezoidal rule on 9 nodes integrates the squares of the first modes, which hold nearly all the variance.
        assert float((logs.square() * weights).sum((1, 2)).mean()) == pytest.approx(scale**2, rel=0.15)


@pytest.mark.parametrize("forcing", [1.0, 3.0])
def test_the_forcing_of_exact_is_its_own(forcing: float) -> None:
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for residual in residual_by_autograd(Darcy("log-normal", forcing=forcing), Batch(coords=coords)).values():
        assert residual.shape == (50,) and residual.abs().max() < 1e-12


@media
def test_samples_are_positive(medium: str) -> None:
    assert (Darcy(medium).sample(5, Grid((40, 40)))["permeability"] > 0).all()


@media
def test_bad_input_is_refused_in_a_sentence(medium: str) -> None:
    problem, grid = Darcy(medium), Grid((9, 9))
    a = torch.ones(2, 9, 9)
    with pytest.raises(ValueError, match=r"permeability has shape \(2, 8, 9\) but the grid is \(9, 9\)"):
        problem.solve({"permeability": a[:, 1:]}, grid)
    with pytest.raises(ValueError, match=r"forcing has shape \(1, 9, 8\) but the grid is \(9, 9\)"):
        problem.solve({"permeability": a, "forcing": a[:1, :, :8]}, grid)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        poisoned = a.clone()
        poisoned[1, 4, 4] = bad
        with pytest.raises(ValueError, match="positive and finite everywhere and not NaN"):
            problem.solve({"permeability": poisoned}, grid)
    poisoned = a.clone()
    poisoned[1, 4, 4] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        problem.solve({"permeability": a, "forcing": poisoned}, grid)
