"""One row a problem; the row buys the shared tests: its equation, its solver, its samples and its refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.pde import AutogradDerivatives, GridDerivatives
from opflow.pde.random_field import SPLITS
from opflow.problems import (
    Advection,
    AllenCahn,
    Antiderivative,
    Burgers,
    Darcy,
    DiffusionReaction,
    FitzHughNagumo,
    Helmholtz,
    KortewegDeVries,
    KuramotoSivashinsky,
    NavierStokes,
    NonlinearODE,
    Pendulum,
    PipeFlow,
    Poisson,
    Schroedinger,
)

Problem = Any


@dataclass
class Case:
    """A problem and what is claimed of it.

    Attributes:
        make: the problem, with options over those of the row.
        grid: n -> where `sample` and `solve` live.
        sample_sizes: n of grids with points in common.
        refused_grids: that do not fit, and `lives_on`, the sentence that says so.
        refused: wrong constants with the sentence that refuses them.
        residual_grid: n -> a grid of all coordinates, time too; `grid` where that is the same.
        residual_sizes: on which the residual of `exact` falls with the order of the finite differences, 2.
        smooth: `exact` has derivatives at every point, so that autograd applies.
        rounding: the largest residual by autograd, absolute.
        solve_sizes: on which `solve` approaches `exact` with `solve_order`; where that is None, n of the last grid is enough
            for `solve_error`, relative to the largest value.
    """

    name: str
    make: Callable[..., Problem]
    grid: Callable[[int], Grid]
    sample_sizes: tuple[int, ...]
    refused_grids: tuple[Grid, ...]
    lives_on: str
    refused: Mapping[str, tuple[dict[str, Any], ...]]
    residual_grid: Callable[[int], Grid] | None = None
    residual_sizes: tuple[int, ...] = ()
    smooth: bool = True
    rounding: float = 1e-12
    solve_sizes: tuple[int, ...] = ()
    solve_order: float | None = None
    solve_error: float = 1e-9
    size: int = 24  # of the grid where no accuracy is asked for
    same_in_every_sample: tuple[str, ...] = ()  # inputs that a law does not vary, though it may
    means: tuple[str, ...] = ()  # inputs that hold means over cells, of which no two grids have the same

    @property
    def full_grid(self) -> Callable[[int], Grid]:
        return self.residual_grid or self.grid

    @property
    def evolves(self) -> bool:
        """Whether `solve` adds the axis of time to its grid."""
        return "t" in self.make().coordinates and "t" not in self.grid(self.size).axes

    @property
    def has_exact(self) -> bool:
        return hasattr(self.make(), "exact")


SQUARE = "Darcy lives on the nodes of the unit square, but the grid is .*use Grid"
NOT_SQUARES = (
    Grid(9),
    Grid((9, 9), layout="cells"),
    Grid((9, 9), layout="periodic"),
    Grid((9, 9), extent=(0.0, 2.0)),
    Grid((9, 9, 9)),
)
NOT_PERIODIC = (
    Grid(16),
    Grid(16, layout="cells"),
    Grid((16, 16), layout="periodic"),
    Grid(16, layout="periodic", axes=("t",)),
)
NOT_TIMES = (Grid(16, layout="cells"), Grid(16, layout="periodic"), Grid((16, 16)))
POSITIVE = (0.0, -1.0, float("nan"), float("inf"))
NOT_BOXES = (
    Grid(16, layout="periodic"),
    Grid((16, 16)),
    Grid((16, 16), layout=("periodic", "cells")),
    Grid((16, 16), (0.0, 2.0), "periodic"),
    Grid((16, 16), layout="periodic", axes=("y", "x")),
    Grid((8, 8, 8), layout="periodic"),
)
NOT_CELLS = (Grid((16, 16), layout="cells"), Grid((16, 16), (-1.0, 1.0)), Grid(16, (-1.0, 1.0), "cells"))


def periodic_case(
    kind: type,
    extent: tuple[float, float],
    *,
    final_time: float,
    n: int,
    residual_sizes: tuple[int, ...],
    positive: tuple[str, ...],
    finite: tuple[str, ...] = (),
    rounding: float = 1e-12,
) -> Case:
    """A row of an evolution on a periodic interval, resolved by n points."""
    name = kind.__name__
    return Case(
        name,
        kind,
        lambda m: Grid(m, extent, "periodic"),
        sample_sizes=(60, 96, 45),
        refused_grids=NOT_PERIODIC,
        lives_on=f"{name} lives on a periodic grid with axes x, but the grid is .*use Grid",
        refused={
            f"{constant} is .*; a positive finite number is expected": tuple({constant: v} for v in POSITIVE)
            for constant in positive
        }
        | {
            f"{constant} is .*; a finite number is expected": tuple({constant: v} for v in POSITIVE[2:])
            for constant in finite
        },
        residual_grid=lambda nt: Grid((nt, n), ((0.0, final_time), extent), ("nodes", "periodic"), ("t", "x")),
        residual_sizes=residual_sizes,
        rounding=rounding,
        solve_sizes=(n,),
    )


CASES = [
    Case(
        "Darcy two-phase",
        lambda **options: Darcy(**options),
        lambda n: Grid((n, n)),
        sample_sizes=(64, 85, 421),
        refused_grids=NOT_SQUARES,
        lives_on=SQUARE,
        refused={
            "medium is 'three-phase'; choose one of two-phase, log-normal, multiscale": ({"medium": "three-phase"},),
            "high=.* and low=.*; both must be positive": ({"high": 0.0}, {"low": float("nan")}),
        },
        residual_sizes=(128, 256, 512),  # the extrapolated boundary is asymptotic late
        smooth=False,
        solve_sizes=(32, 64, 128),
        solve_order=2.0,
    ),
    Case(
        "Darcy log-normal",
        lambda **options: Darcy("log-normal", **options),
        lambda n: Grid((n, n)),
        sample_sizes=(64, 85, 421),
        refused_grids=NOT_SQUARES,
        lives_on=SQUARE,
        refused={"high=.* and low=.*; both must be positive": ({"low": 0.0},)},
        residual_sizes=(33, 65, 129),
        solve_sizes=(33, 65, 129),
        solve_order=2.0,
    ),
    *(
        Case(
            f"Helmholtz {boundary}",
            lambda boundary=boundary, **options: Helmholtz(
                **{"omega": 200.0, "spread": 15.0, "boundary": boundary, "cutoff": 32} | options
            ),
            lambda n: Grid((n, n)),
            sample_sizes=(25, 49, 73),
            refused_grids=(*NOT_SQUARES, Grid((9, 5))),
            lives_on="Helmholtz lives on the nodes of the unit square, at least 6 a side, but the grid is .*use Grid",
            refused={
                "omega is .*; a positive finite number is expected": tuple({"omega": v} for v in POSITIVE),
                "background is .*; a positive finite number is expected": tuple({"background": v} for v in POSITIVE),
                "boundary_value is .*; a finite number": tuple({"boundary_value": v} for v in POSITIVE[2:]),
                "forcing is .*; a finite number": tuple({"forcing": v} for v in POSITIVE[2:]),
                "a spread from 0 to below the background": (
                    {"spread": 20.0},
                    {"spread": -1.0},
                    {"spread": float("nan")},
                ),
                "boundary is 'robin'; choose one of neumann, dirichlet": ({"boundary": "robin"},),
                "flux_interval is .*; two numbers in increasing order within": (
                    {"flux_interval": (0.5, 0.5)},
                    {"flux_interval": (0.0, 1.5)},
                    {"flux_interval": (0.1, float("nan"))},
                    {"flux_interval": (0.1,)},
                ),
                "resonance_tolerance is .*; a number from 0": (
                    {"resonance_tolerance": -1e-4},
                    {"resonance_tolerance": 1.0},
                    {"resonance_tolerance": float("nan")},
                ),
                "alpha is .*, tau .*, cutoff .*; alpha and cutoff must be positive": ({"alpha": 0.0}, {"cutoff": 0}),
            },
            residual_sizes=(65, 129, 257),
            rounding=1e-10,
            solve_sizes=(33, 49, 65),
            solve_order=solve_order,
        )
        # Values on the boundary are interpolated, order 6; what acts through integrals gains one.
        for boundary, solve_order in (("neumann", 7.0), ("dirichlet", 6.0))
    ),
    Case(
        "Darcy multiscale",
        lambda **options: Darcy("multiscale", **options),
        lambda n: Grid((n, n), (-1.0, 1.0)),
        sample_sizes=(64, 85, 127),
        refused_grids=(*NOT_SQUARES, Grid((9, 9))),
        lives_on=r"Darcy lives on the nodes of the square \(-1, 1\)\^2 in a multiscale medium, but the grid is .*use Grid",
        refused={"high=.* and low=.*; both must be positive": ({"low": 0.0},)},
        residual_sizes=(65, 129, 257),
        rounding=1e-11,
        solve_sizes=(33, 65, 129),
        solve_order=2.0,
    ),
    periodic_case(
        Burgers,
        (0.0, 1.0),
        final_time=1.0,
        n=64,
        residual_sizes=(201, 401, 801),
        positive=("viscosity", "final_time"),
        finite=("convection",),
    ),
    periodic_case(
        AllenCahn,
        (-1.0, 1.0),
        final_time=1.0,
        n=1024,
        residual_sizes=(51, 101, 201),
        positive=("diffusivity", "reaction", "final_time"),
    ),
    periodic_case(
        KortewegDeVries,
        (-30.0, 30.0),
        final_time=1.0,
        n=384,
        residual_sizes=(101, 201, 401),
        positive=("final_time",),
        finite=("convection", "dispersion"),
        rounding=1e-10,
    ),
    periodic_case(
        Schroedinger,
        (-20.0, 20.0),
        final_time=1.0,
        n=512,
        residual_sizes=(201, 401, 801),
        positive=("final_time",),
    ),
    periodic_case(
        KuramotoSivashinsky,
        (0.0, 22.0),
        final_time=1.0,
        n=64,
        residual_sizes=(),
        positive=("hyperviscosity", "final_time"),
        finite=("convection", "antidiffusion"),
    ),
    periodic_case(
        Advection,
        (0.0, 1.0),
        final_time=1.0,
        n=64,
        residual_sizes=(201, 401, 801),
        positive=("waves", "highest", "final_time"),
        finite=("speed",),
    ),
    Case(
        "NavierStokes",
        # Small and viscous, with all that it can have: a mean flow, and a forcing of each sample's own.
        lambda **options: NavierStokes(
            **{"viscosity": 1e-2, "final_time": 1.0, "forcing": "random", "mean_velocity": (0.25, -0.5)} | options
        ),
        lambda n: Grid((n, n), layout="periodic"),
        sample_sizes=(24, 36, 15),
        refused_grids=NOT_BOXES,
        lives_on="NavierStokes lives on the periodic unit square, but the grid is .*use Grid",
        refused={
            "viscosity is .*; a positive finite number is expected": tuple({"viscosity": v} for v in POSITIVE),
            "final_time is .*; a positive finite number is expected": tuple({"final_time": v} for v in POSITIVE),
            "forcing is 'wind'; choose one of paper, random, none": ({"forcing": "wind"},),
            "ic_amplitude is 'both'; choose one of code, paper": ({"ic_amplitude": "both"},),
            "mean_velocity is .*; two finite numbers are expected": (
                {"mean_velocity": (1.0,)},
                {"mean_velocity": (float("nan"), 0.0)},
            ),
        },
        residual_grid=lambda nt: Grid((nt, 8, 8), layout=("nodes", "periodic", "periodic"), axes=("t", "x", "y")),
        residual_sizes=(101, 201, 401),
        solve_sizes=(16,),
    ),
    Case(
        "DiffusionReaction",
        DiffusionReaction,
        lambda n: Grid(n),
        sample_sizes=(100, 34, 67),
        refused_grids=(*NOT_TIMES, Grid(16, (0.0, 2.0)), Grid(16, axes=("t",)), Grid(2)),
        lives_on="DiffusionReaction lives on at least three nodes of the unit interval, but the grid is .*use Grid",
        refused={
            **{
                f"{name} is .*; a positive finite number is expected": tuple({name: v} for v in POSITIVE)
                for name in ("diffusivity", "final_time", "length")
            },
            "reaction is .*; a finite number is expected": tuple({"reaction": v} for v in POSITIVE[2:]),
        },
        residual_grid=lambda n: Grid((n, n), axes=("t", "x")),
        residual_sizes=(65, 129, 257),
        solve_sizes=(17, 33, 65),
        solve_order=2.0,
    ),
    Case(
        "FitzHughNagumo",
        lambda **options: FitzHughNagumo(**{"final_time": 1.0} | options),
        lambda n: Grid((n, n), (-1.0, 1.0), "cells"),
        sample_sizes=(5, 15, 45),
        refused_grids=NOT_CELLS,
        lives_on=r"FitzHughNagumo lives on the cells of the square \(-1, 1\)\^2, but the grid is .*use Grid",
        refused={
            **{
                f"{name} is .*; a positive finite number is expected": tuple({name: v} for v in POSITIVE)
                for name in ("activator_diffusivity", "inhibitor_diffusivity", "final_time")
            },
            "threshold is .*; a finite number is expected": tuple({"threshold": v} for v in POSITIVE[2:]),
            "alpha is .*, tau .*, cutoff .*; alpha and cutoff must be positive": ({"alpha": -1.0}, {"cutoff": 0}),
        },
    ),
    *(
        Case(
            name,
            lambda defaults=defaults, **options: Poisson(**defaults | options),
            lambda n, dim=dim: Grid((n,) * dim, layout="cells"),
            sample_sizes=(15, 45, 5),
            refused_grids=(
                Grid((9,) * (5 - dim), layout="cells"),
                Grid((9,) * dim),
                Grid((9,) * dim, layout="periodic"),
                Grid((9,) * dim, layout=("periodic", *["cells"] * (dim - 1))),
            ),
            lives_on=rf"Poisson lives on the cells of a box of {dim} axes, layout 'cells', but the grid is .*use Grid",
            refused={
                "dim is 4; boxes of 2 and 3 axes are solved": ({"dim": 4},),
                "obstacles is .*; a whole number that is not negative": ({"obstacles": -1}, {"obstacles": 2.5}),
                "style is 'cows'; choose one of spheres, boxes, mixed, plates, pockets": ({"style": "cows"},),
                "boundary is 'robin'; choose one of dirichlet, neumann, periodic": ({"boundary": "robin"},),
                "give one word for all, or per axis": ({"boundary": ("neumann",) * (5 - dim)},),
            },
            residual_sizes=sizes,
            smooth="obstacles" in defaults,
            solve_sizes=sizes,
            solve_order=2.0,
            same_in_every_sample=("fluid",) if "obstacles" in defaults else (),
            means=("forcing",),
        )
        # The solid of `exact` has its surfaces between the cells of twenty an axis.
        for name, dim, defaults, sizes in (
            ("Poisson", 2, {}, (40, 80, 160)),
            (
                "Poisson without solids",
                2,
                {"obstacles": 0, "boundary": ("dirichlet", ("dirichlet", "neumann"))},
                (33, 65, 129),
            ),
            ("Poisson in three dimensions", 3, {"dim": 3, "boundary": "dirichlet"}, (40, 60, 80)),
        )
    ),
    Case(
        "PipeFlow",
        # Short, viscous and gently curved, so that coarse grids resolve it.
        lambda **options: PipeFlow(**{"viscosity": 0.1, "length": 2.0, "height": 0.25, "slope": 0.25} | options),
        lambda n: Grid((n, n), axes=("s", "n")),
        sample_sizes=(33, 65, 17),
        refused_grids=(
            Grid((9, 9)),
            Grid(9, axes=("s",)),
            Grid((9, 9), layout="cells", axes=("s", "n")),
            Grid((9, 9), (0.0, 2.0), axes=("s", "n")),
            Grid((9, 9), axes=("n", "s")),
        ),
        lives_on=r"PipeFlow lives on the nodes of the unit square of \(s, n\), .*but the grid is .*use Grid",
        refused={
            **{
                f"{name} is .*; a positive finite number is expected": tuple({name: v} for v in POSITIVE)
                for name in ("viscosity", "inflow", "length", "width")
            },
            **{
                f"{name} is .*; a finite number is expected": tuple({name: v} for v in POSITIVE[2:])
                for name in ("height", "slope")
            },
        },
        residual_sizes=(129, 257, 513),
        rounding=1e-11,
        solve_sizes=(33, 65),
        solve_order=3.0,  # of the pressure, which in such pipes is better at nodes than elsewhere; the velocity has 4
        size=25,  # odd: elements have three nodes a side
        same_in_every_sample=("x_map",),
    ),
    *(
        Case(
            Problem.__name__,
            Problem,
            lambda n: Grid(n, axes=("t",)),
            sample_sizes=(100, 34, 67),
            refused_grids=NOT_TIMES,
            lives_on=f"{Problem.__name__} lives on the nodes of a time interval, but the grid is .*use Grid",
            refused={
                f"{name} is .*; a positive finite number is expected": tuple({name: v} for v in POSITIVE)
                for name in ("final_time", "length")
            },
            residual_sizes=(65, 129, 257),
            solve_sizes=(100,),
            solve_error=1e-13,
        )
        for Problem in (Antiderivative, NonlinearODE, Pendulum)
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
cases_with_exact = pytest.mark.parametrize("case", [c for c in CASES if c.has_exact], ids=lambda case: case.name)
evolutions = pytest.mark.parametrize("case", [c for c in CASES if c.evolves], ids=lambda case: case.name)


def order(errors: list[float], spacings: list[float]) -> np.ndarray:
    """The observed orders between neighbouring grids."""
    return np.diff(np.log(errors)) / np.diff(np.log(spacings))


def inputs_of(problem: Problem, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in fields.items() if name not in problem.unknowns}


def size_of(fields: Mapping[str, Tensor]) -> float:
    return max(float(values.abs().max()) for values in fields.values())


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float) -> None:
    """Within rtol of the largest value of each field."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        scale = float(values.abs().max()) if values.numel() else 0.0
        torch.testing.assert_close(found[name], values, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


# The equation


@cases_with_exact
def test_exact_solves_the_equation_on_grids_with_the_order_of_the_differences(case: Case) -> None:
    problem, errors, spacings = case.make(), [], []
    for n in case.residual_sizes:
        grid = case.full_grid(n)
        derivatives = GridDerivatives(grid)
        fields = {name: values[None] for name, values in problem.exact(grid.points()).items()}
        u = derivatives(torch.stack([fields[name] for name in problem.unknowns], dim=1), names=problem.unknowns)
        a = {name: derivatives(values) for name, values in inputs_of(problem, fields).items()}
        errors.append(size_of(problem.residual(u, a)))
        spacings.append(grid.spacing[0])
    assert np.abs(order(errors, spacings) - 2).max() < 0.15, errors


@pytest.mark.parametrize("case", [c for c in CASES if c.has_exact and c.smooth], ids=lambda case: case.name)
def test_exact_solves_the_equation_by_autograd_to_rounding(case: Case) -> None:
    problem = case.make()
    low, high = torch.tensor(case.full_grid(case.size).extent, dtype=torch.float64).unbind(-1)
    draws = torch.rand(50, len(low), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(coords=low + (high - low) * draws)
    derivatives = AutogradDerivatives(problem.coordinates, names=problem.unknowns)
    u = derivatives(lambda points: torch.stack([problem.exact(points)[name] for name in problem.unknowns], -1), batch)
    a = {name: u.of(values) for name, values in inputs_of(problem, problem.exact(batch.coords)).items()}
    for residual in problem.residual(u, a).values():
        assert residual.shape == (50,) and residual.abs().max() < case.rounding


# The classical solver


def solved_and_exact(case: Case, n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    problem, grid = case.make(), case.grid(n)
    if not case.evolves:
        fields = {name: values[None] for name, values in problem.exact(grid.points()).items()}
        solution = problem.solve(inputs_of(problem, fields), grid, rtol=1e-12)
        return solution, {name: fields[name] for name in problem.unknowns}
    times = torch.linspace(0.0, case.full_grid(case.size).extent[0][1], 3, dtype=torch.float64)
    space = grid.points()
    time = times.view(-1, *[1] * (grid.dim + 1)).expand(-1, *grid.shape, 1)
    fields = problem.exact(torch.cat([time, space.expand(3, *space.shape)], dim=-1))
    initial = {name: values[None, 0] for name, values in inputs_of(problem, fields).items()}
    solution = problem.solve(initial, grid, times=times, rtol=1e-10)
    return solution, {name: fields[name][None] for name in problem.unknowns}


@cases_with_exact
def test_solve_approaches_exact(case: Case) -> None:
    errors, spacings = [], []
    for n in case.solve_sizes:
        solution, exact = solved_and_exact(case, n)
        assert solution.keys() == exact.keys() == set(case.make().unknowns)
        errors.append(max(float((solution[name] - exact[name]).abs().max()) for name in exact) / size_of(exact))
        spacings.append(case.grid(n).spacing[0])
    if case.solve_order is None:
        assert errors[-1] < case.solve_error
    else:
        assert np.abs(order(errors, spacings) - case.solve_order).max() < 0.15, errors


@cases
def test_a_solution_does_not_depend_on_its_batch(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    inputs = problem.sample(3, grid, seed=5)
    together = problem.solve(inputs, grid, rtol=1e-8)
    assert together.keys() == set(problem.unknowns)
    for field_ in together.values():
        assert field_.shape == (3, *grid.shape) and field_.dtype == torch.float64 and field_.isfinite().all()
    alone = problem.solve({name: values[1:2] for name, values in inputs.items()}, grid, rtol=1e-8)
    assert_close(alone, {name: values[1:2] for name, values in together.items()}, 1e-6)


@cases
def test_single_precision_is_taken_and_computed_in_double(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    inputs = {name: values.float() for name, values in problem.sample(2, grid).items()}
    found = problem.solve(inputs, grid)
    assert_close(found, problem.solve({name: values.double() for name, values in inputs.items()}, grid), 0)
    assert all(values.dtype == torch.float64 for values in found.values())


@evolutions
def test_final_time_is_the_last_of_the_times(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    inputs = problem.sample(2, grid)
    whole = problem.solve(inputs, grid, times=[0.0, problem.final_time])
    assert_close(problem.solve(inputs, grid), {name: values[:, -1] for name, values in whole.items()}, 0)
    for name, values in whole.items():
        assert values.shape == (2, 2, *grid.shape), name
    three = problem.solve(inputs, grid, times=[0.0, 0.3 * problem.final_time, problem.final_time])
    assert_close({n: v[:, [0, 2]] for n, v in three.items()}, whole, 1e-8)


@evolutions
def test_an_empty_batch_is_solved(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    inputs = problem.sample([], grid)
    assert all(values.shape == (0, *grid.shape) for values in problem.solve(inputs, grid).values())
    trajectories = problem.solve(inputs, grid, times=[0.0, 0.5, 1.0])
    assert all(values.shape == (0, 3, *grid.shape) for values in trajectories.values())


# Samples


def shared_points(fields: Mapping[str, Tensor], grid: Grid, other: Grid) -> dict[str, Tensor]:
    """The values at the points that both grids have."""
    for axis in range(grid.dim):
        apart = (grid.coordinates(axis)[:, None] - other.coordinates(axis)).abs().amin(1)
        keep = (apart < 1e-9).nonzero()[:, 0]
        fields = {name: values.index_select(axis + 1, keep) for name, values in fields.items()}
    return dict(fields)


@cases
def test_a_sample_is_one_function_on_every_grid(case: Case) -> None:
    problem = case.make()
    first, *others = case.sample_sizes
    for n in others:
        ours, theirs = (problem.sample(2, case.grid(m), seed=3) for m in (first, n))
        ours, theirs = ({k: v for k, v in one.items() if k not in case.means} for one in (ours, theirs))
        shared = shared_points(ours, case.grid(first), case.grid(n))
        assert all(values[0].numel() > 1 for values in shared.values()), "choose sizes with points in common"
        assert_close(shared, shared_points(theirs, case.grid(n), case.grid(first)), 1e-11)


@cases
def test_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    problem, grid = case.make(), case.grid(40)
    together = problem.sample(5, grid)
    assert together.keys() == set(problem.inputs)
    for values in together.values():
        assert values.shape == (5, *grid.shape) and values.dtype == torch.float64 and values.isfinite().all()
    for indices in ([4, 1], [2], np.array([3])):
        assert_close(problem.sample(indices, grid), {n: v[list(indices)] for n, v in together.items()}, 1e-12)
    assert_close(problem.sample(5, grid), together, 0)
    assert all(values.shape == (0, *grid.shape) for values in problem.sample([], grid).values())


@cases
def test_global_random_state_plays_no_part(case: Case) -> None:
    problem, grid = case.make(), case.grid(16)
    torch.manual_seed(0)
    before, state = problem.sample(1, grid), torch.get_rng_state()
    torch.manual_seed(99)
    assert_close(problem.sample(1, grid), before, 0)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@cases
def test_seeds_splits_and_indices_are_apart(case: Case) -> None:
    problem, grid = case.make(), case.grid(24)
    samples = [
        problem.sample([index], grid, seed=seed, split=split) for seed in (0, 1) for split in SPLITS for index in (0, 1)
    ]
    for name in set(problem.inputs) - set(case.same_in_every_sample):
        fields = [sample[name] for sample in samples]
        assert len(fields) == 12
        assert all(not torch.equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


@cases
def test_the_default_dtype_changes_nothing(case: Case) -> None:
    """0.1 is not 0.1 in single precision, and the default dtype of a script must not change a data set."""
    problem, grid = case.make(), case.grid(case.size)
    inputs = problem.sample(2, grid)
    solution = problem.solve(inputs, grid)
    torch.set_default_dtype(torch.float64)
    try:
        assert_close(problem.sample(2, grid), inputs, 0)
        assert_close(problem.solve(inputs, grid), solution, 0)
    finally:
        torch.set_default_dtype(torch.float32)


# Bad input


@cases
def test_wrong_grids_are_refused_in_a_sentence(case: Case) -> None:
    problem = case.make()
    for grid in case.refused_grids:
        fields = {name: torch.ones(2, *grid.shape) for name in problem.inputs}
        for call in (lambda g=grid: problem.sample(1, g), lambda g=grid, f=fields: problem.solve(f, g)):
            with pytest.raises(ValueError, match=case.lives_on):
                call()


@cases
def test_wrong_inputs_are_refused_in_a_sentence(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    good = problem.sample(2, grid)
    for name in problem.inputs:
        with pytest.raises(ValueError, match=f"needs '{name}'"):
            problem.solve({other: values for other, values in good.items() if other != name}, grid)
        with pytest.raises(ValueError, match=r"shape .*but the grid is"):
            problem.solve({**good, name: good[name][..., 1:]}, grid)
        with pytest.raises(ValueError, match=r"shape .*; expected \((n|batch), \*grid\)"):
            problem.solve({**good, name: good[name][0]}, grid)
        for bad in (float("nan"), float("inf")):
            poisoned = good[name].clone()
            poisoned[1].view(-1)[5] = bad
            with pytest.raises((ValueError, RuntimeError), match="NaN"):
                problem.solve({**good, name: poisoned}, grid)


@evolutions
def test_what_is_not_an_initial_field_or_a_time_is_refused_in_a_sentence(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    good = problem.sample(2, grid)
    poisoned = {name: values.clone() for name, values in good.items()}
    poisoned[problem.inputs[-1]][1].view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=f"{problem.inputs[-1]} holds NaN or infinity in sample 1"):
        problem.solve(poisoned, grid)
    with pytest.raises(TypeError, match=f"{problem.inputs[0]} is torch.complex128.*real"):
        problem.solve({**good, problem.inputs[0]: good[problem.inputs[0]] + 0j}, grid)
    for times, sentence in (
        ([0.1, 1.0], "the first must be 0"),
        ([0.0], "at least two times"),
        ([0.0, 1.0, 1.0], "from 1.0 to 1.0; give finite times in increasing order"),
        ([0.0, float("nan")], "give finite times in increasing order"),
    ):
        with pytest.raises(ValueError, match=sentence):
            problem.solve(good, grid, times=times)
    for rtol in (0.0, -1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"rtol is .*; a number between 0 and 1 is expected"):
            problem.solve(good, grid, rtol=rtol)


@cases
def test_wrong_samples_are_refused_in_a_sentence(case: Case) -> None:
    problem, grid = case.make(), case.grid(case.size)
    with pytest.raises(ValueError, match="split is 'dev'; choose one of train, validation, test"):
        problem.sample(1, grid, split="dev")
    with pytest.raises(ValueError, match="seed is 0 and index -1; neither may be negative"):
        problem.sample([0, -1], grid)
    with pytest.raises(ValueError, match="seed is -2"):
        problem.sample(1, grid, seed=-2)
    with pytest.raises(ValueError, match="-1 samples were asked for"):
        problem.sample(-1, grid)


@cases
def test_wrong_constants_are_refused_in_a_sentence(case: Case) -> None:
    for sentence, options in case.refused.items():
        for option in options:
            with pytest.raises(ValueError, match=sentence):
                case.make(**option)
