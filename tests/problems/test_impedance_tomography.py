"""Impedance tomography on the square: exact currents, the Dirichlet-to-Neumann map, sensors, derivatives and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.data import DataError, generate
from opflow.problems import ImpedanceTomography

Function = Callable[[Tensor], Tensor]
NORMALS = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def with_voltages(*functions: Function, sensors: int = 68) -> ImpedanceTomography:
    return ImpedanceTomography(n_measurements=len(functions), sensors_per_side=sensors, boundary_functions=functions)


def measured(problem: ImpedanceTomography, a: Tensor, sensors: int | None = None) -> Tensor:
    return problem.observe({"conductivity": a}, sensors)["measurements"]


def exact_flux(a: Function, u: Function, problem: ImpedanceTomography) -> Tensor:
    """a du/dn at the sensors, by automatic differentiation."""
    points = problem.sensor_points().requires_grad_()
    (gradient,) = torch.autograd.grad(u(points).sum(), points)
    return (a(points) * (gradient * NORMALS.repeat_interleave(problem.sensors_per_side, 0)).sum(-1)).detach()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def exponential(sign: int) -> Function:
    return lambda p: torch.exp(sign * (p[..., 0] + 2 * p[..., 1]))


def harmonic(p: Tensor) -> Tensor:
    return 2 + p[..., 0] * p[..., 1]


# (conductivity, potential): the second because div(v^2 grad(w / v)) = v lap w - w lap v, which vanishes for harmonic v and w.
EXACT = {
    "exponential": (exponential(1), exponential(-1)),
    "harmonic": (lambda p: harmonic(p) ** 2, lambda p: torch.exp(p[..., 0]) * torch.cos(p[..., 1]) / harmonic(p)),
}


@pytest.mark.parametrize("name", EXACT)
def test_currents_are_of_second_order(name: str) -> None:
    """At sensors that are nodes of the second and third grid, between nodes of the first."""
    a, u = EXACT[name]
    problem = with_voltages(u)
    expected, errors = exact_flux(a, u, problem), []
    for n in (36, 70, 139):
        points = Grid((n, n)).points()
        errors.append(relative(measured(problem, a(points)[None])[0, 0, 0], expected))
    assert errors[1] < 2e-4 and 3.7 < errors[0] / errors[1] < 4.3 and 3.9 < errors[1] / errors[2] < 4.1
    grid = Grid((70, 70))
    potential = problem.forward(grid).potentials(a(grid.points())[None])[0, 0]
    assert (potential - u(grid.points())).abs().max() < 5e-6


def test_currents_of_quadratic_harmonics_are_exact() -> None:
    """In a homogeneous square the scheme is exact for them, at any number of nodes and of sensors."""
    functions = (
        lambda p: p[..., 0],
        lambda p: p[..., 0] * p[..., 1],
        lambda p: p[..., 0] ** 2 - p[..., 1] ** 2,
    )
    problem = with_voltages(*functions, sensors=9)
    for shape in ((6, 6), (11, 11), (9, 24)):
        found = measured(problem, torch.full((1, *shape), 3.0))[0, :, 0]
        expected = [exact_flux(lambda p: 3 + 0 * p[..., 0], u, problem) for u in functions]
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-11, atol=1e-11)


def test_measurements_run_counter_clockwise_from_the_origin() -> None:
    """u = x leaves through the right side only and enters through the left; so do the points of the sensors."""
    problem = with_voltages(lambda p: p[..., 0] + 2 * p[..., 1], sensors=3)
    assert measured(problem, torch.ones(1, 9, 9)).flatten().round().tolist() == [-2] * 3 + [1] * 3 + [2] * 3 + [-1] * 3
    points = problem.sensor_points()
    torch.testing.assert_close(points[:4], torch.tensor([[0.25, 0], [0.5, 0], [0.75, 0], [1, 0.25]]).double())
    torch.testing.assert_close(points[6:10], torch.tensor([[0.75, 1], [0.5, 1], [0.25, 1], [0, 0.75]]).double())
    # A conductivity that grows in x takes its currents along.
    a = torch.exp(Grid((9, 9)).points()[..., 0])[None]
    bottom = measured(with_voltages(lambda p: p[..., 1], sensors=3), a).flatten()[:3]
    assert bottom.diff().lt(0).all()


def test_the_map_from_voltages_to_currents_is_symmetric_and_forgets_constants() -> None:
    grid = Grid((70, 70))
    a = ImpedanceTomography().sample(2, grid, split="test")["conductivity"]

    def bump(k: int, side: int) -> Function:
        """A wave on one side, zero at the corners and on the other sides."""

        def function(p: Tensor) -> Tensor:
            along, across = (p[..., 0], p[..., 1]) if side % 2 == 0 else (p[..., 1], p[..., 0])
            return torch.sin(k * math.pi * along) * ((across - (0 if side in (0, 3) else 1)).abs() < 1e-9)

        return function

    functions = [bump(k, side) for k in (1, 3) for side in range(4)]
    problem = with_voltages(*functions, lambda p: 0 * p[..., 0] + 5)
    currents = measured(problem, a)[:, :, 0]  # (2, 9, 272), all at nodes
    voltages = torch.stack([function(problem.sensor_points()) for function in functions])
    power = currents[:, :-1] @ voltages.T
    torch.testing.assert_close(power, power.mT, rtol=1e-9, atol=1e-9)
    assert (torch.linalg.eigvalsh(power) > 0).all()
    assert currents[:, -1].abs().max() < 1e-10


def test_all_waves_are_different_and_their_descriptors_too() -> None:
    problem = ImpedanceTomography()
    g = problem.forward(Grid((70, 70)))._boundary.flatten(1)
    assert torch.pdist(g).min() > 1 and torch.pdist(problem.descriptors).min() > 0.1
    assert torch.linalg.matrix_rank(measured(problem, torch.ones(1, 36, 36))[0, :, 0]) == 20
    assert problem.descriptors.shape == (20, 3) and problem.descriptors.dtype == torch.float64


def test_waves_all_around_are_refused_since_half_of_them_are_equal() -> None:
    """The published angles 2 pi l / 20: l and l + 10 are one measurement."""

    def wave(l: int) -> Function:
        angle = 2 * math.pi * l / 20
        return lambda p: torch.cos(2 * math.pi * (p[..., 0] * math.cos(angle) + p[..., 1] * math.sin(angle)))

    with pytest.raises(ValueError, match="boundary functions 0 and 10 are equal on the boundary"):
        with_voltages(*(wave(l) for l in range(20)))
    with_voltages(*(wave(l) for l in range(10)))


def test_every_wave_may_have_a_frequency() -> None:
    problem = ImpedanceTomography(omega=(3.0, 4.0), n_measurements=2)
    points = Grid((6, 6)).points()
    expected = torch.stack([torch.cos(3 * points[..., 0]), torch.cos(4 * points[..., 1])])
    torch.testing.assert_close(problem.forward(Grid((6, 6)))._boundary, expected)
    torch.testing.assert_close(problem.descriptors[:, 2], torch.tensor([3.0, 4.0]).double() / (2 * math.pi))


@pytest.mark.parametrize("medium", ["trigonometric", "tensor"])
def test_samples(medium: str) -> None:
    """One function on every grid, homogeneous on the boundary; the series itself, evaluated at a point."""
    problem = ImpedanceTomography(medium)
    fine, coarse = Grid((61, 41)), Grid((31, 11))
    a = problem.sample(300, fine)["conductivity"]
    torch.testing.assert_close(a[:, ::2, ::4], problem.sample(300, coarse)["conductivity"], rtol=1e-12, atol=0)
    assert torch.equal(problem.sample([7, 3], fine)["conductivity"], a[[7, 3]])
    assert not torch.equal(problem.sample([7], fine, split="test")["conductivity"], a[[7]])
    assert (a[:, [0, -1]] - 1).abs().max() < 1e-14 and (a[..., [0, -1]] - 1).abs().max() < 1e-14
    # The coefficients again, by projection onto the sines.
    j = torch.arange(1, 6, dtype=torch.float64)
    sines = [torch.sin(math.pi * j[:, None] * fine.coordinates(axis)) for axis in (0, 1)]
    c = 4 * torch.einsum("nxy,xy,jx,ky->njk", a.log(), fine.quadrature_weights(), *sines)
    assert c[:, 4].abs().max() < 1e-12 and c[:, :, 4].abs().max() < 1e-12
    if medium == "tensor":
        bound = 2 / (j[:4, None] + j[:4])
        assert (c[:, :4, :4].abs() < bound).all() and (
            c[:, :4, :4].std(0) / (bound / math.sqrt(3)) - 1
        ).abs().max() < 0.2
    else:
        diagonal = c.diagonal(dim1=1, dim2=2)
        assert (c - torch.diag_embed(diagonal)).abs().max() < 1e-12
        numbers = (diagonal.abs() > 1e-12).sum(1)  # m = round(N(3, 1)) mod 5: mostly 2, 3 and 4
        shares = torch.bincount(numbers, minlength=5) / len(numbers)
        expected = torch.tensor([0.068, 0.061, 0.242, 0.383, 0.242])
        assert (shares - expected).abs().max() < 0.08


def test_measurements_do_not_depend_on_the_grid_but_for_the_error() -> None:
    """Between 35, 69 and 137 nodes the sensors of 68 a side lie beside the nodes."""
    problem = ImpedanceTomography("tensor")
    values = [measured(problem, problem.sample(4, Grid((n, n)))["conductivity"]) for n in (35, 69, 137)]
    coarse, fine = relative(values[0], values[2]), relative(values[1], values[2])
    assert fine < 0.015 and coarse / fine > 3
    there = measured(problem, problem.sample(1, Grid((70, 70)))["conductivity"])
    finer = measured(problem, problem.sample(1, Grid((139, 139)))["conductivity"])
    assert 5e-4 < relative(there, finer) < 0.004, "a finer solve is no inverse crime, nor another problem"


def test_another_number_of_sensors() -> None:
    """Every third of 68 sensors is one of 22; more of them than nodes are interpolated."""
    problem = ImpedanceTomography(n_measurements=4)
    a = problem.sample(1, Grid((70, 70)))["conductivity"]
    few, many = measured(problem, a, 22).view(4, 4, 22), measured(problem, a).view(4, 4, 68)
    torch.testing.assert_close(few, many[..., 2::3], rtol=1e-9, atol=1e-9)
    assert measured(problem, a, 200).shape == (1, 4, 1, 800)


def central_differences(forward: Callable[[Tensor], Tensor], a: Tensor, directions: Tensor, step: float) -> Tensor:
    ahead, behind = forward(a + step * directions), forward(a - step * directions)
    return ((ahead - behind) / (2 * step)).movedim(0, -1)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_derivatives_are_those_of_the_discrete_map(shape: tuple[int, int]) -> None:
    problem, grid = ImpedanceTomography("tensor", n_measurements=3, sensors_per_side=5), Grid(shape)
    forward, generator = problem.forward(grid), torch.Generator().manual_seed(0)
    a = problem.sample([4], grid)["conductivity"][0]
    directions = torch.randn(7, *shape, dtype=torch.float64, generator=generator)
    data, jacobian = forward.linearise(a, directions)
    assert jacobian.shape == (3, 1, 20, 7)
    torch.testing.assert_close(data, forward(a[None])[0])
    difference = central_differences(forward, a, directions, 1e-5)
    assert relative(jacobian, difference) < 1e-7
    # The adjoint gradient of a batch is the transpose of the same derivative, and no sample sees another.
    a = problem.sample([4, 5], grid)["conductivity"].requires_grad_()
    cotangent = torch.randn(2, 3, 1, 20, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(forward(a), a, cotangent)
    expected = torch.einsum("lcsk,lcs->k", jacobian, cotangent[0])
    torch.testing.assert_close(torch.einsum("xy,kxy->k", gradient[0], directions), expected, rtol=1e-9, atol=1e-9)


def test_gradcheck_and_single_precision() -> None:
    problem, grid = ImpedanceTomography("tensor", n_measurements=2, sensors_per_side=3), Grid((6, 7))
    forward = problem.forward(grid)
    a = problem.sample(2, grid)["conductivity"]
    assert torch.autograd.gradcheck(forward, (a.clone().requires_grad_(),))
    single = a.float().requires_grad_()
    forward(single).sum().backward()
    assert forward(single).dtype == torch.float64 and single.grad is not None and single.grad.dtype == torch.float32


def test_noise_is_relative_repeatable_and_additive() -> None:
    problem, grid = ImpedanceTomography(), Grid((36, 36))
    inputs = problem.sample(2, grid)
    clean, noisy, again = (problem.observe(inputs, noise=level, seed=3) for level in (0.0, 0.05, 0.05))
    assert torch.equal(noisy["measurements"], again["measurements"])
    error = (noisy["measurements"] - clean["measurements"]).flatten(1)
    size = clean["measurements"].flatten(1).square().mean(1).sqrt()
    assert (error.square().mean(1).sqrt() / size / 0.05 - 1).abs().max() < 0.05
    assert noisy["mask"].dtype == torch.bool and noisy["mask"].shape == (2, 20) and noisy["mask"].all()


@dataclass(frozen=True)
class Bump:
    """A voltage that a recipe can record."""

    x: float

    def __call__(self, p: Tensor) -> Tensor:
        return torch.exp(-9 * ((p[..., 0] - self.x) ** 2 + p[..., 1] ** 2))


def test_voltages_are_recorded_in_a_data_set_if_they_are_plain_values(tmp_path: Path) -> None:
    problem = with_voltages(Bump(0.3), Bump(0.7), sensors=4)
    source = generate(problem, Grid((8, 8)), tmp_path / "a", 3, refine=2, block=2, samples_per_file=2, progress=False)
    assert source is not None and source.read("measurements", [0]).shape == (1, 2, 1, 16)
    assert source.attributes["parameters"]["boundary_functions"][1] == {"type": "Bump", "x": 0.7}
    finer = problem.observe(problem.sample([2], Grid((15, 15))))["measurements"]
    np.testing.assert_allclose(source.read("measurements", [2]), finer, rtol=1e-6)
    with pytest.raises(DataError, match="parameter 'boundary_functions' is a function"):
        generate(with_voltages(lambda p: p[..., 0]), Grid((8, 8)), tmp_path / "b", 3, progress=False)


def test_no_samples() -> None:
    problem, grid = ImpedanceTomography(), Grid((8, 8))
    assert measured(problem, problem.sample(0, grid)["conductivity"]).shape == (0, 20, 1, 272)
    data, jacobian = problem.forward(grid).linearise(torch.ones(8, 8), torch.zeros(0, 8, 8))
    assert data.shape == (20, 1, 272) and jacobian.shape == (20, 1, 272, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"medium": "layers"}, "medium is 'layers'; choose one of trigonometric, tensor"),
        ({"omega": 0.0}, "omega is 0.0; a positive finite number"),
        ({"omega": (1.0, math.nan), "n_measurements": 2}, "omega is nan"),
        ({"omega": (1.0, 2.0)}, "omega has 2 numbers; give one for all, or one for each of 20"),
        ({"n_measurements": 0}, "n_measurements is 0"),
        ({"sensors_per_side": -1}, "sensors_per_side is -1"),
        ({"boundary_functions": (torch.sum,)}, "1 boundary functions are given but n_measurements is 20"),
        ({"boundary_functions": (lambda p: p[0],), "n_measurements": 1}, "boundary function 0 gave the shape"),
        ({"boundary_functions": (lambda p: p[..., 0] / 0,), "n_measurements": 1}, "boundary function 0 is not finite"),
        (
            {"boundary_functions": (lambda p: p[..., 0],) * 2, "n_measurements": 2},
            "boundary functions 0 and 1 are equal",
        ),
    ],
)
def test_constants_that_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImpedanceTomography(**arguments)


def test_bad_input_is_refused() -> None:
    problem, grid = ImpedanceTomography(), Grid((8, 8))
    for bad, sentence in (
        (-1.0, "of sample 1 falls to -1"),
        (0.0, "falls to 0"),
        (math.nan, "NaN or infinity in sample 1"),
    ):
        a = torch.ones(2, 8, 8)
        a[1, 3, 3] = bad
        with pytest.raises(ValueError, match=sentence):
            problem.observe({"conductivity": a})
        with pytest.raises(ValueError, match="the coefficient"):
            problem.forward(grid).linearise(a[1], torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="needs 'conductivity'"):
        problem.observe({"permeability": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match=r"conductivity has shape \(1, 1, 8, 8\)"):
        problem.observe({"conductivity": torch.ones(1, 1, 8, 8)})
    with pytest.raises(ValueError, match=r"expected \(n, \*grid\) with the grid \(8, 8\)"):
        problem.observe({"conductivity": torch.ones(1, 9, 9)}, grid=grid)
    with pytest.raises(ValueError, match="directions has shape"):
        problem.forward(grid).linearise(torch.ones(8, 8), torch.ones(1, 8, 9))
    with pytest.raises(ValueError, match="sensors is 0"):
        problem.forward(grid, 0)
    with pytest.raises(ValueError, match="noise level"):
        problem.observe({"conductivity": torch.ones(1, 8, 8)}, noise=-0.1)
    for wrong in (Grid((5, 8)), Grid((8, 8), layout="cells"), Grid((8, 8), extent=(-1.0, 1.0)), Grid(8)):
        with pytest.raises(ValueError, match="nodes of the unit square"):
            problem.sample(1, wrong)


def test_the_factors_are_the_inverse_of_the_matrix() -> None:
    """Against a dense solve of the matrix that `flow_inside` is, at a contrast of 1e6."""
    from opflow.problems.line_factors import LineFactors, flow_inside

    generator = torch.Generator().manual_seed(1)
    along_x = 10 ** (6 * torch.rand(2, 6, 6, dtype=torch.float64, generator=generator))
    along_y = 10 ** (6 * torch.rand(2, 7, 5, dtype=torch.float64, generator=generator))
    basis = torch.nn.functional.pad(torch.eye(20, dtype=torch.float64).view(20, 5, 4), (1, 1, 1, 1))
    matrix = flow_inside(along_x[:, None], along_y[:, None], basis).flatten(2).mT
    f = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    found = LineFactors(along_x, along_y).solve(f).flatten(2)
    expected = torch.linalg.solve(matrix, f.flatten(2).mT).mT
    assert np.abs((found / expected - 1).numpy()).max() < 1e-6
