"""One row a problem; the row buys the shared tests. Manufactured solutions with their observed orders, and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.pde import AutogradDerivatives, CosineField, GridDerivatives
from opflow.pde.random_field import SPLITS, sample_generator
from opflow.problems import Darcy


@dataclass
class Case:
    name: str
    make: Callable[..., Darcy]
    grid: Callable[[int], Grid]
    sizes: tuple[int, int, int]  # of the three grids on which the order of `solve` is measured
    residual_sizes: tuple[int, int, int]  # and that of the residual, whose extrapolated boundary is asymptotic later
    smooth: bool  # autograd and spectral derivatives apply
    binary: bool  # samples take two values only


CASES = [
    Case(
        "Darcy two-phase",
        lambda **options: Darcy(**options),
        lambda n: Grid((n, n)),
        (32, 64, 128),
        (128, 256, 512),
        smooth=False,
        binary=True,
    ),
    Case(
        "Darcy log-normal",
        lambda **options: Darcy("log-normal", **options),
        lambda n: Grid((n, n)),
        (33, 65, 129),
        (33, 65, 129),
        smooth=True,
        binary=False,
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def order(errors: list[float], spacings: list[float]) -> np.ndarray:
    """The observed orders between neighbouring grids."""
    return np.diff(np.log(errors)) / np.diff(np.log(spacings))


def on_grid(problem: Darcy, grid: Grid) -> dict[str, Tensor]:
    return {name: values[None] for name, values in problem.exact(grid.points()).items()}


# The equation


@cases
def test_exact_solves_the_equation_on_grids_to_second_order(case: Case) -> None:
    problem, errors, spacings = case.make(), [], []
    for n in case.residual_sizes:
        grid = case.grid(n)
        fields = on_grid(problem, grid)
        derivatives = GridDerivatives(grid)
        u = derivatives(torch.stack([fields[name] for name in problem.unknowns], dim=1), names=problem.unknowns)
        a = {name: derivatives(field) for name, field in fields.items() if name not in problem.unknowns}
        residuals = problem.residual(u, a)
        errors.append(max(float(r.abs().max()) for r in residuals.values()))
        spacings.append(grid.spacing[0])
    assert np.abs(order(errors, spacings) - 2).max() < 0.15, errors


def residual_by_autograd(problem: Darcy, batch: Batch) -> dict[str, Tensor]:
    derivatives = AutogradDerivatives(names=problem.unknowns)
    u = derivatives(lambda points: torch.stack([problem.exact(points)[name] for name in problem.unknowns], -1), batch)
    inputs = {
        name: u.of(values) for name, values in problem.exact(batch.coords).items() if name not in problem.unknowns
    }
    return problem.residual(u, inputs)


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=lambda case: case.name)
def test_exact_solves_the_equation_by_autograd_to_rounding(case: Case) -> None:
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for residual in residual_by_autograd(case.make(), Batch(coords=coords)).values():
        assert residual.shape == (50,) and residual.abs().max() < 1e-12
    stretched = residual_by_autograd(case.make(forcing=3.0), Batch(coords=coords.clone()))
    assert all(residual.abs().max() < 1e-12 for residual in stretched.values()), "the forcing of `exact` is its own"


@pytest.mark.parametrize("case", [c for c in CASES if not c.smooth], ids=lambda case: case.name)
def test_only_conservative_schemes_differentiate_a_jump(case: Case) -> None:
    problem = case.make()
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


@cases
def test_residual_takes_the_constant_forcing_where_none_is_given(case: Case) -> None:
    problem, grid = case.make(forcing=2.5), case.grid(9)
    zero = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    u, a = (
        GridDerivatives(grid)(zero, names=problem.unknowns),
        GridDerivatives(grid)(torch.ones(1, 9, 9, dtype=torch.float64)),
    )
    (residual,) = problem.residual(u, {"permeability": a}).values()
    assert torch.equal(residual, torch.full_like(residual, -2.5))


# The classical solver


@cases
def test_solve_converges_to_exact_with_second_order(case: Case) -> None:
    problem, errors, spacings = case.make(), [], []
    for n in case.sizes:
        grid = case.grid(n)
        fields = on_grid(problem, grid)
        solution = problem.solve(fields, grid, rtol=1e-12)
        assert set(solution) == set(problem.unknowns)
        errors.append(max(float((solution[name] - fields[name]).abs().max()) for name in problem.unknowns))
        spacings.append(grid.spacing[0])
    assert np.abs(order(errors, spacings) - 2).max() < 0.15, errors


def sparse_lu(a: np.ndarray, f: float) -> np.ndarray:
    """Five-point finite volumes with harmonic faces, assembled entry by entry and factorised."""
    n, h = a.shape[0], 1 / (a.shape[0] - 1)
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


@cases
def test_solve_agrees_with_a_sparse_factorisation(case: Case) -> None:
    problem, grid = case.make(forcing=1.5), case.grid(33)
    inputs = problem.sample(3, grid, seed=5)
    found = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    for i in range(3):
        expected = sparse_lu(inputs["permeability"][i].numpy(), 1.5)
        assert np.linalg.norm(found[i].numpy() - expected) <= 1e-10 * np.linalg.norm(expected)


@cases
def test_solve_is_what_the_equation_says(case: Case) -> None:
    """Positive inside, zero on the boundary, u(c a) = u(a) / c, linear in f, symmetric under transposition."""
    problem, grid = case.make(), case.grid(21)
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
    torch.testing.assert_close(case.make(forcing=-2.0).solve(inputs, grid)["pressure"], -2 * u, **close)
    given = torch.full((1, 21, 21), 3.0)
    torch.testing.assert_close(problem.solve({**inputs, "forcing": given}, grid)["pressure"], 3 * u, **close)
    torch.testing.assert_close(problem.solve({"permeability": a[1:]}, grid)["pressure"], u[1:], **close)
    assert not problem.solve({**inputs, "forcing": torch.zeros(1, 21, 21)}, grid)["pressure"].any()


@cases
def test_solutions_zero_the_residual_that_is_stated(case: Case) -> None:
    """The discrete solution zeroes the discrete residual inside, so that the solver and the loss are one equation."""
    problem, grid = case.make(), case.grid(25)
    inputs = problem.sample(2, grid)
    u = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    derivatives = GridDerivatives(grid)
    residual = problem.residual(
        derivatives(u[:, None], names=("pressure",)), {"permeability": derivatives(inputs["permeability"])}
    )["mass_balance"]
    assert residual[:, 1:-1, 1:-1].abs().max() < 1e-8


@pytest.mark.slow
@cases
def test_421_against_841(case: Case) -> None:
    """Both in the L2 norm of the common nodes, the measure of the published generator."""
    problem = case.make()
    fine, coarse = case.grid(841), case.grid(421)
    u = problem.solve(problem.sample(2, fine), fine)["pressure"][:, ::2, ::2]
    v = problem.solve(problem.sample(2, coarse), coarse)["pressure"]
    assert ((u - v).flatten(1).norm(dim=1) <= 1e-3 * u.flatten(1).norm(dim=1)).all()


# Samples


@cases
def test_a_sample_is_one_function_on_every_grid(case: Case) -> None:
    problem = case.make()
    fields = {n: problem.sample(2, case.grid(n), seed=3)["permeability"] for n in (64, 85, 421)}
    for n, stride, other, other_stride in ((64, 3, 421, 20), (85, 1, 421, 5), (64, 3, 85, 4)):
        ours, theirs = fields[n][:, ::stride, ::stride], fields[other][:, ::other_stride, ::other_stride]
        assert ours.shape == theirs.shape
        if case.binary:
            assert torch.equal(ours, theirs), (n, other)
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@cases
def test_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    problem, grid = case.make(), case.grid(40)
    together = problem.sample(5, grid)["permeability"]
    assert together.shape == (5, 40, 40) and together.dtype == torch.float64 and (together > 0).all()
    torch.testing.assert_close(problem.sample([4, 1], grid)["permeability"], together[[4, 1]], rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.sample([2], grid)["permeability"], together[2:3], rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.sample(np.array([3]), grid)["permeability"], together[3:4], rtol=1e-12, atol=0)
    assert torch.equal(problem.sample(5, grid)["permeability"], together)
    assert problem.sample([], grid)["permeability"].shape == (0, 40, 40)


@cases
def test_global_random_state_plays_no_part(case: Case) -> None:
    problem, grid = case.make(), case.grid(16)
    torch.manual_seed(0)
    before, state = problem.sample(1, grid)["permeability"], torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(problem.sample(1, grid)["permeability"], before)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@cases
def test_seeds_splits_and_indices_are_apart(case: Case) -> None:
    problem, grid = case.make(), case.grid(24)
    fields = [
        problem.sample([index], grid, seed=seed, split=split)["permeability"]
        for seed in (0, 1)
        for split in SPLITS
        for index in (0, 1)
    ]
    assert len(fields) == 12
    assert all(not torch.equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


def test_the_streams_are_the_documented_ones() -> None:
    """SeedSequence([seed, crc32(name), split, i]); written out, so that published data stay what they are."""
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, 0xD8B7D430, 1, 3])))
    np.testing.assert_array_equal(
        sample_generator("Darcy", "validation", 3, 7).standard_normal(4), expected.standard_normal(4)
    )


@cases
def test_a_smaller_cutoff_is_a_prefix_of_the_series(case: Case) -> None:
    kwargs = {"alpha": case.make().alpha, "tau": case.make().tau}
    coefficients = {
        cutoff: CosineField(cutoff=cutoff, **kwargs).coefficients([sample_generator("Darcy", "train", 0)], 2)
        for cutoff in (64, 128)
    }
    assert torch.equal(coefficients[64], coefficients[128][:, :64, :64]) and coefficients[64].any()


@cases
def test_constants_are_double_precision_whatever_the_default(case: Case) -> None:
    """0.1 is not 0.1 in single precision, and the default dtype of a script must not change a data set."""
    problem, grid = case.make(high=0.3, low=0.1, forcing=0.1, cutoff=8, mean_mode=True), case.grid(8)
    fields = problem.sample(2, grid)
    if case.binary:
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


# Bad input


@cases
def test_bad_input_is_refused_in_a_sentence(case: Case) -> None:
    problem, grid = case.make(), case.grid(9)
    a = torch.ones(2, 9, 9)
    wrong_grids = [
        Grid(9),
        Grid((9, 9), layout="cells"),
        Grid((9, 9), layout="periodic"),
        Grid((9, 9), extent=(0.0, 2.0)),
        Grid((9, 9, 9)),
    ]
    for wrong in wrong_grids:
        for call in (lambda g=wrong: problem.sample(1, g), lambda g=wrong: problem.solve({"permeability": a}, g)):
            with pytest.raises(
                ValueError, match=r"Darcy lives on the nodes of the unit square, but the grid is .*use Grid\(\(n, n\)\)"
            ):
                call()
    with pytest.raises(ValueError, match="needs 'permeability'"):
        problem.solve({"pressure": a}, grid)
    with pytest.raises(ValueError, match=r"permeability has shape \(2, 8, 9\) but the grid is \(9, 9\)"):
        problem.solve({"permeability": a[:, 1:]}, grid)
    with pytest.raises(ValueError, match=r"shape \(9, 9\); expected \(batch, \*grid\)"):
        problem.solve({"permeability": a[0]}, grid)
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
    with pytest.raises(ValueError, match="split is 'dev'; choose one of train, validation, test"):
        problem.sample(1, grid, split="dev")
    with pytest.raises(ValueError, match="seed is 0 and index -1; neither may be negative"):
        problem.sample([0, -1], grid)
    with pytest.raises(ValueError, match="seed is -2"):
        problem.sample(1, grid, seed=-2)
    with pytest.raises(ValueError, match="-1 samples were asked for"):
        problem.sample(-1, grid)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"medium": "three-phase"}, "medium is 'three-phase'; choose one of two-phase, log-normal"),
        ({"high": 0.0}, "high=0.0 and low=3.0; both must be positive"),
        ({"low": float("nan")}, "both must be positive"),
    ],
)
def test_wrong_constants_are_refused_in_a_sentence(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        Darcy(**options)
