"""Poisson among obstacles: solids where they are said to be, pockets without a false success, sides, and orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse.linalg
import torch
from torch import Tensor

from opflow import Grid
from opflow.pde import GridDerivatives
from opflow.problems import Poisson
from opflow.problems.obstacles import Obstacle, random_obstacles
from opflow.solvers import ConjugateGradient, Multigrid, Reason

STYLES = ("spheres", "boxes", "mixed", "plates", "pockets")
CLOSED_AND_OPEN = {
    "open top": "open-top",
    "closed": "neumann",
    "open": "dirichlet",
    "periodic": "periodic",
    "channel": ("periodic", ("neumann", "dirichlet")),
    "closed duct": ("periodic", "neumann"),
    "one open side": (("dirichlet", "neumann"), "neumann"),
}
all_sides = pytest.mark.parametrize("boundary", CLOSED_AND_OPEN.values(), ids=CLOSED_AND_OPEN)
all_styles = pytest.mark.parametrize("style", STYLES)


def grid_of(problem: Poisson, shape: tuple[int, ...], extent: Any = (0.0, 1.0)) -> Grid:
    layout = tuple("periodic" if "periodic" in pair else "cells" for pair in problem.sides)
    return Grid(shape, extent, layout)


def closed_labels(problem: Poisson, fluid: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The connected parts of one sample without periodic sides, and those that touch no open side."""
    labels, number = scipy.ndimage.label(fluid)
    held: set[int] = set()
    for axis, pair in enumerate(problem.sides):
        for side, at in zip(pair, (0, -1), strict=True):
            if side == "dirichlet":
                held |= set(np.unique(labels.take(at, axis=axis)).tolist())
    return labels, [part for part in range(1, number + 1) if part not in held]


# The solids


def test_solids_are_where_their_numbers_say() -> None:
    """Centres in shares of the sides, sizes in shares of the shortest, on a box that is neither a cube nor at the origin."""
    grid = Grid((60, 90), ((1.0, 3.0), (-1.0, 2.0)), "cells")
    x, y = grid.points().unbind(-1)
    middle = {"centre": (0.5, 0.4), "side": 0.6}
    sphere = Obstacle("sphere", size=(0.4, 0.9), **middle).solid(grid)
    radius = 2.0 * (0.06 + 0.1 * 0.4)
    assert np.array_equal(sphere, ((x - 2.0) ** 2 + (y - 0.2) ** 2 < radius**2).numpy()) and sphere.sum() > 50
    box = Obstacle("box", size=(0.0, 1.0), **middle).solid(grid)
    assert np.array_equal(box, (((x - 2.0).abs() < 0.04) & ((y - 0.2).abs() < 0.4)).numpy()) and box.sum() == 2 * 24
    plate = Obstacle("plate", size=(0.5, 0.5), **middle).solid(grid)
    assert plate.sum(axis=1).max() == 1 and plate.any(1).sum() == pytest.approx(0.8 * 30, abs=1)  # side 0.6: across y
    (row,) = np.unique(plate.nonzero()[1])
    assert abs(float(grid.coordinates(1)[row]) - 0.2) <= grid.spacing[1] / 2
    upright = Obstacle("plate", (0.5, 0.4), (0.5, 0.5), 0.1).solid(grid)
    assert upright.sum(axis=0).max() == 1 and upright.any(0).sum() > 20


@pytest.mark.parametrize("dim", [2, 3])
def test_pockets_are_closed_but_for_one_cell(dim: int) -> None:
    for n in (16, 33, 64)[: 4 - dim + 1]:
        grid = Grid((n,) * dim, layout="cells")
        for side in np.linspace(0, 0.99, 2 * dim):
            solid = Obstacle("pocket", (0.5,) * dim, (0.7,) * dim, float(side)).solid(grid)
            assert scipy.ndimage.label(~solid)[1] == 1
            filled = scipy.ndimage.binary_fill_holes(solid)
            outside_holes = scipy.ndimage.binary_closing(solid, np.ones((3,) * dim)) & ~solid
            plugs = [cell for cell in np.argwhere(outside_holes) if _label_count_with(solid, cell) == 2]
            assert len(plugs) >= 1 and np.array_equal(filled, solid), side


def _label_count_with(solid: np.ndarray, cell: np.ndarray) -> int:
    plugged = solid.copy()
    plugged[tuple(cell)] = True
    return scipy.ndimage.label(~plugged)[1]


@all_styles
@pytest.mark.parametrize("dim", [2, 3])
def test_more_solids_begin_with_the_same_ones_and_the_same_flow(style: str, dim: int) -> None:
    few, many = (random_obstacles(np.random.default_rng(3), n, style, dim) for n in (5, 25))
    assert many[:5] == few and len(many) == 25
    grid = Grid((24,) * dim, layout="cells")
    none, five, most = (Poisson(dim, n, style).sample(2, grid, seed=4) for n in (0, 5, 25))
    assert (none["fluid"] == 1).all() and (most["fluid"] <= five["fluid"]).all()
    assert five["fluid"].mean() > most["fluid"].mean() > 0.2
    # Two cells away from any solid the forcing is that of the free flow.
    near = scipy.ndimage.binary_dilation(five["fluid"].numpy() == 0, np.ones((1, *[3] * dim)))
    torch.testing.assert_close(five["forcing"][~torch.from_numpy(near)], none["forcing"][~torch.from_numpy(near)])


def test_solids_are_the_same_at_every_resolution() -> None:
    """Away from their surfaces, by one cell of the coarser grid, the fluid of two grids agrees; solids of one cell in a cell."""
    for style in STYLES:
        problem = Poisson(obstacles=1, style=style)
        coarse, fine = (problem.sample(20, Grid((n, n), layout="cells"), seed=1)["fluid"] for n in (40, 120))
        share = torch.nn.functional.avg_pool2d(fine, 3)
        if style in ("plates", "pockets"):
            thin = (coarse == 1) & (share < 1)
            # A wall of a fine cell lies in the coarse cell of the same wall, or beside it where it runs between two.
            wide = torch.nn.functional.max_pool2d(1 - coarse, 3, 1, 1) == 1
            assert bool((wide | ~thin).all())
        else:
            away = torch.nn.functional.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
            assert bool((share[away == 1] == 1).all()) and bool((share[away == 0] == 0).all())


# The forcing


@all_sides
def test_finer_forcings_average_to_coarser_ones(boundary: Any) -> None:
    """Fluxes are exact means over faces, so that without solids the cells of two grids say the same of one flow."""
    problem = Poisson(obstacles=0, boundary=boundary)
    if "periodic" in np.ravel(problem.sides):
        pytest.skip("periodic axes have their first cell around the origin, whose thirds are no cells of a finer grid")
    coarse, fine = (grid_of(problem, shape, ((0.0, 2.0), (1.0, 2.0))) for shape in ((16, 11), (48, 33)))
    averaged = fine.subsample(problem.sample(2, fine)["forcing"], 3)
    torch.testing.assert_close(averaged, problem.sample(2, coarse)["forcing"], rtol=0, atol=1e-12)
    assert averaged.abs().max() > 1


@all_sides
@all_styles
def test_forcings_sum_to_zero_where_nothing_holds_the_pressure(boundary: Any, style: str) -> None:
    """Whatever the solids cut off, so that every sample has a solution."""
    problem = Poisson(obstacles=25, style=style, boundary=boundary)
    grid = grid_of(problem, (40, 31))
    inputs = problem.sample(4, grid, seed=2)
    A = problem.operator(inputs, grid)
    part = A.null_part(inputs["forcing"])
    assert part is not None and part.abs().max() < 1e-12 * inputs["forcing"].abs().max()
    assert not inputs["forcing"][inputs["fluid"] == 0].any()
    u = problem.solve(inputs, grid)["pressure"]
    residual = (inputs["forcing"] - A.apply(u)).flatten(1).norm(dim=1)
    assert (residual <= 1e-10 * inputs["forcing"].flatten(1).norm(dim=1)).all()
    assert not u[inputs["fluid"] == 0].any()


def test_the_corrected_flow_has_no_divergence() -> None:
    """v - grad p, v the flow of the sample face by face: what the equation is for."""
    problem, grid = Poisson(obstacles=4, style="spheres"), Grid((48, 48), layout="cells")
    inputs = problem.sample(1, grid)
    p = problem.solve(inputs, grid)["pressure"]
    A, h = problem.operator(inputs, grid), grid.spacing[0]
    divergence = -inputs["forcing"]  # of v
    for axis in (1, 2):
        padded = torch.nn.functional.pad(p, (1, 1, 0, 0) if axis == 2 else (0, 0, 1, 1))
        gradient = padded.diff(dim=axis) * A.weights[axis - 1] * h  # p = 0 lies half a cell outside the open top
        divergence = divergence - gradient.diff(dim=axis) / h
    assert divergence.abs().max() < 1e-8 * inputs["forcing"].abs().max()


# The solver


@all_sides
def test_solve_agrees_with_a_sparse_factorisation(boundary: Any) -> None:
    problem = Poisson(obstacles=6, style="boxes", boundary=boundary)
    grid = grid_of(problem, (24, 19), ((0.0, 1.2), (0.0, 1.0)))
    inputs = problem.sample(3, grid, seed=3)
    found = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    for i in range(3):
        one = {name: values[i : i + 1] for name, values in inputs.items()}
        A = problem.operator(one, grid)
        dense = A.to_sparse().toarray()
        expected = np.linalg.pinv(dense, rcond=1e-10, hermitian=True) @ A.gather(one["forcing"])[0].numpy()
        np.testing.assert_allclose(A.gather(found[i : i + 1])[0], expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@all_sides
@pytest.mark.parametrize("obstacles", [0, 1])
def test_solve_is_of_second_order_on_all_sides(boundary: Any, obstacles: int) -> None:
    problem, errors = Poisson(obstacles=obstacles, boundary=boundary), []
    for n in (40, 80, 160):
        grid = grid_of(problem, (n, n))
        points = grid.points()
        if obstacles and "periodic" in grid.layout:
            pytest.skip("the solid of `exact` has its surfaces between cells, periodic points lie between those")
        fields = {name: values[None] for name, values in problem.exact(points).items()}
        error = problem.solve(fields, grid)["pressure"] - fields["pressure"]
        errors.append(float(error.norm() / fields["pressure"].norm()))
    assert np.abs(np.diff(np.log2(errors)) + 2).max() < 0.1, errors


@pytest.mark.parametrize("boundary", ["neumann", "open-top"])
def test_three_dimensions_and_a_long_box(boundary: str) -> None:
    problem = Poisson(3, boundary=boundary)
    grid = Grid((20, 12, 33), ((0.0, 1.0), (0.0, 0.6), (0.0, 1.7)), "cells")
    inputs = problem.sample(2, grid)
    u = problem.solve(inputs, grid)["pressure"]
    A = problem.operator(inputs, grid)
    for i in range(2):
        matrix, f = A.select(i).to_sparse(), A.select(i).gather(inputs["forcing"][i : i + 1])[0].numpy()
        residual = f - matrix @ A.select(i).gather(u[i : i + 1])[0].numpy()
        assert np.linalg.norm(residual) <= 1e-9 * np.linalg.norm(f)
    if boundary == "neumann":
        assert (u.flatten(1).mean(1).abs() < 1e-12 * u.abs().max()).all()


def test_a_disc_is_approached_with_first_order() -> None:
    """Stairs: a smooth forcing around a disc, in the mean over common cells against 729 cells an axis."""
    problem, disc = Poisson(), Obstacle("sphere", (0.45, 0.5), (0.9, 0.9), 0.0)

    def pressure(n: int) -> tuple[Tensor, Tensor]:
        grid = Grid((n, n), layout="cells")
        x, y = grid.points().unbind(-1)
        fluid = torch.from_numpy(~disc.solid(grid)).double()[None]
        forcing = (torch.sin(3 * x) * torch.cos(5 * y))[None]
        return problem.solve({"fluid": fluid, "forcing": forcing}, grid, rtol=1e-8)["pressure"], fluid

    fine, fluid = pressure(729)
    errors = []
    for n in (27, 81, 243):
        stride = 729 // n
        kept = (..., slice(stride // 2, None, stride), slice(stride // 2, None, stride))
        u, mask = pressure(n)
        both = (mask * fluid[kept]) == 1
        errors.append(float((u - fine[kept])[both].norm() / fine[kept][both].norm()))
    orders = -np.diff(np.log(errors)) / np.log(3)
    assert 0.8 < orders.mean() < 1.6 and errors[-1] < 5e-3, (errors, orders)


def test_solutions_zero_the_residual_that_is_stated() -> None:
    """With solids inside: the flux differences of the residual are those of the operator, but for the outermost cells."""
    problem, grid = Poisson(obstacles=3, style="boxes"), Grid((40, 40), layout="cells")
    inputs = problem.sample(3, grid, seed=6)
    u = problem.solve(inputs, grid, rtol=1e-12)["pressure"]
    for dtype, atol in ((torch.float64, 1e-7), (torch.float32, 1e-1)):
        d = GridDerivatives(grid)
        fields = {name: d(values.to(dtype)) for name, values in inputs.items()}
        residual = problem.residual(d(u[:, None].to(dtype), names=("pressure",)), fields)["mass_balance"]
        assert residual.isfinite().all() and not residual[inputs["fluid"] == 0].any()
        assert residual[:, 1:-1, 1:-1].abs().max() < atol


def test_a_wrong_wall_would_show() -> None:
    """The plain Laplacian beside a solid, in place of the one with closed walls, leaves a residual of order one."""
    problem, grid = Poisson(), Grid((40, 40), layout="cells")
    fields = {name: values[None] for name, values in problem.exact(grid.points()).items()}
    u = GridDerivatives(grid)(fields["pressure"])
    wrong = fields["fluid"] * (-u.laplacian() - fields["forcing"])
    assert wrong[:, 5:-5, 5:-5].abs().max() > 100


# No false success


@pytest.mark.parametrize("style", ["plates", "pockets", "mixed"])
def test_no_false_success_among_pockets(style: str) -> None:
    """Twenty seeds of crowded boxes: what is said to be solved is, by a matrix; sums on closed parts are refused."""
    problem, cut_off = Poisson(obstacles=25, style=style), 0
    grid = Grid((32, 27), layout="cells")
    for seed in range(20):
        inputs = problem.sample(1, grid, seed=seed)
        A, fluid = problem.operator(inputs, grid), inputs["fluid"][0].numpy().astype(bool)
        labels, closed = closed_labels(problem, fluid)
        cut_off += len(closed)
        b = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, *grid.shape))) * inputs["fluid"]
        solution = ConjugateGradient(Multigrid(), rtol=1e-10).solve(A, b)
        if closed:
            assert solution.reason == [Reason.INCONSISTENT]
            with pytest.raises(
                ValueError, match="forcing of sample 0 has a sum on a part of the fluid that no open side holds"
            ):
                problem.solve({**inputs, "forcing": b}, grid)
            for part in closed:
                b[0][torch.from_numpy(labels == part)] -= b[0][torch.from_numpy(labels == part)].mean()
            solution = ConjugateGradient(Multigrid(), rtol=1e-10).solve(A, b)
        matrix, f = A.to_sparse(), A.gather(b)[0].numpy()
        residual = np.linalg.norm(f - matrix @ A.gather(solution.x)[0].numpy())
        assert solution.all_converged and residual <= 1.0001e-10 * np.linalg.norm(f), (seed, solution.message)
        u = problem.solve({**inputs, "forcing": b}, grid)["pressure"][0]
        for part in closed:
            assert abs(float(u[torch.from_numpy(labels == part)].mean())) < 1e-10 * float(u.abs().max())
    assert cut_off > (20 if style == "plates" else 2), "the seeds must have closed pockets"


def test_single_precision_leaves_no_sum_and_a_source_does() -> None:
    """A forcing from a file in float32 sums to rounding, which is removed; 1e-4 of the norm is a source, and refused."""
    problem, grid = Poisson(boundary="neumann"), Grid((64, 64), layout="cells")
    inputs = problem.sample(2, grid)
    u = problem.solve(inputs, grid)["pressure"]
    stored = {name: values.float() for name, values in inputs.items()}
    assert stored["forcing"].double().sum((1, 2)).abs().max() > 1e-9
    torch.testing.assert_close(problem.solve(stored, grid)["pressure"], u, rtol=1e-5, atol=1e-5 * float(u.abs().max()))
    shifted = inputs["forcing"].clone()
    shifted[1] += 1e-4 * shifted[1].norm() / 64 * inputs["fluid"][1]
    with pytest.raises(ValueError, match=r"forcing of sample 1 has a sum .* Subtract the mean there, or open a side"):
        problem.solve({**inputs, "forcing": shifted}, grid)


# Bad input


def test_what_is_no_fluid_is_refused_in_a_sentence() -> None:
    problem, grid = Poisson(), Grid((8, 8), layout="cells")
    inputs = problem.sample(2, grid)
    with pytest.raises(ValueError, match="fluid holds other numbers than 1, in the fluid, and 0, in the solids"):
        problem.solve({**inputs, "fluid": inputs["fluid"] * 0.5}, grid)
    with pytest.raises(ValueError, match="fluid has 2 samples and forcing 1"):
        problem.solve({**inputs, "forcing": inputs["forcing"][:1]}, grid)
    with pytest.raises(ValueError, match="forcing holds NaN or infinity in sample 1"):
        bad = inputs["forcing"].clone()
        bad[1, 0, 0] = torch.inf
        problem.solve({**inputs, "forcing": bad}, grid)
    with pytest.raises(ValueError, match="if one end is periodic the other is too"):
        Poisson(boundary=("neumann", ("neumann", "periodic")))


def test_extreme_inputs_are_solved() -> None:
    problem, grid = Poisson(), Grid((8, 8), layout="cells")
    solid = {"fluid": torch.zeros(1, 8, 8), "forcing": torch.ones(1, 8, 8)}
    assert not problem.solve(solid, grid)["pressure"].any()
    assert problem.solve(problem.sample([], grid), grid)["pressure"].shape == (0, 8, 8)
    for n in (1, 2, 3):
        tiny = Grid((n, n), layout="cells")
        u = problem.solve({"fluid": torch.ones(1, n, n), "forcing": torch.ones(1, n, n)}, tiny)["pressure"]
        assert u.isfinite().all() and (u > 0).all()
    for scale in (1e-150, 1e150):
        inputs = problem.sample(1, grid)
        scaled = problem.solve({**inputs, "forcing": scale * inputs["forcing"]}, grid)["pressure"]
        torch.testing.assert_close(scaled / scale, problem.solve(inputs, grid)["pressure"], rtol=1e-8, atol=1e-10)
