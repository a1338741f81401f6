"""The cycle against dense algebra, and the iterations that it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.kernels.stencil.couplings import Couplings
from opflow.kernels.stencil.reference import Reference
from opflow.pde.random_field import CosineField, sample_generators
from opflow.problems import Poisson
from opflow.solvers import ConjugateGradient, FaceStencil, Multigrid, Reason


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(apply, shape: tuple[int, ...], batch: int = 1, number: int = 0) -> np.ndarray:
    unit = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, 1, *shape).expand(-1, batch, *shape)
    return torch.stack([apply(e.contiguous())[number].flatten() for e in unit], dim=-1).numpy()


def medium(
    *shape: int, contrast: float = 1.0, anisotropy: float = 1.0, layout: str = "cells", batch: int = 1, seed: int = 0, **options
) -> FaceStencil:  # fmt: skip
    """Two phases cut from a smooth random field, the first axis weaker than the others."""
    grid = Grid(shape, layout=layout)
    law = CosineField(alpha=2.0, tau=5.0, cutoff=16)
    g = law.evaluate(
        law.coefficients(sample_generators("medium", batch, seed, "test"), grid.dim), Grid(shape, layout="nodes")
    )
    a = torch.where(g > 0, contrast**0.5, contrast**-0.5).double()
    return FaceStencil.from_coefficient([a * anisotropy, *[a] * (grid.dim - 1)], grid, **options)


def rotated(n: int, theta: float = 45.0, epsilon: float = 0.01) -> FaceStencil:
    c, s = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    k = torch.tensor([c * c + epsilon * s * s, s * s + epsilon * c * c, (1 - epsilon) * c * s]).double()
    return FaceStencil.from_tensor(k.view(1, 3, 1, 1).expand(1, 3, n, n), Grid((n, n)))


def iterations(A: FaceStencil, M: Multigrid, rtol: float = 1e-6, b: Tensor | None = None) -> int:
    b = torch.ones(A.batch, *A.shape, dtype=torch.float64) + 0.1 * normal(A.batch, *A.shape) if b is None else b
    solution = ConjugateGradient(M, rtol=rtol).solve(A, b)
    assert solution.all_converged, solution.message
    assert (b - A.apply(solution.x)).norm() <= rtol * b.norm() * (1 + 1e-10)
    return int(solution.iterations.max())


def smoke(dim: int, n: int, index: int) -> tuple[FaceStencil, Tensor]:
    problem, grid = Poisson(dim=dim), Grid((n,) * dim, layout="cells")
    inputs = problem.sample([index], grid, split="test")
    return problem.operator(inputs, grid), inputs["forcing"]


OPERATORS = {
    "line": lambda: medium(37, contrast=10),
    "plane": lambda: medium(12, 15, contrast=100),
    "box": lambda: medium(5, 6, 7, contrast=10),
    "nodes": lambda: medium(13, 12, layout="nodes"),
    "weak axis": lambda: medium(16, 14, anisotropy=0.01),
    "contrast 1e7": lambda: medium(16, 16, contrast=1e7),
    "even ring": lambda: medium(12, 16, layout="periodic", boundary="periodic"),
    "odd ring": lambda: medium(13, 9, layout="periodic", boundary="periodic"),
    "closed": lambda: medium(11, 12, boundary="neumann"),
    "reaction": lambda: medium(11, 12, boundary="neumann", reaction=normal(1, 11, 12).square()),
    "obstacles": lambda: smoke(2, 15, 3)[0],
    "obstacles held": lambda: medium(12, 13, mask=normal(1, 12, 13) > -0.8, obstacles="dirichlet"),
    "pockets": lambda: medium(9, 10, boundary="neumann", mask=normal(1, 9, 10) > 0),
    "nine points": lambda: rotated(14),
}
CYCLES = {
    "V": lambda **o: Multigrid(**o),
    "W": lambda **o: Multigrid("W", **o),
    "Jacobi": lambda **o: Multigrid(smoother="jacobi", **o),
    "one sweep": lambda **o: Multigrid(sweeps=1, coarsening="full", **o),
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


@pytest.mark.parametrize(
    ("operator", "cycle"),
    [
        pytest.param(operator, cycle, id=f"{name}, {kind}")
        for name, operator in OPERATORS.items()
        for kind, cycle in CYCLES.items()
        if kind in ("V", "one sweep") or name in ("plane", "weak axis", "odd ring", "pockets")
    ],
)
def test_the_cycle_is_symmetric_and_positive_on_what_the_operator_does_not_annihilate(operator, cycle) -> None:
    A = operator()
    M = cycle(coarsest=8, dtype=torch.float64).setup(A)
    assert len(M.levels) >= 2
    inverse, matrix = dense(M.apply, A.shape), dense(A.apply, A.shape)
    np.testing.assert_allclose(inverse, inverse.T, rtol=0, atol=1e-12 * np.abs(inverse).max())
    values, vectors = np.linalg.eigh(matrix)
    kept = vectors[:, values > 1e-10 * values[-1]]
    assert np.linalg.eigvalsh(kept.T @ inverse @ kept)[0] > 0
    # Where the cycle converges on its own, I - M A contracts in energy; M A has no eigenvalue beyond 2 then.
    spectrum = np.linalg.eigvals(inverse @ matrix).real
    assert spectrum.max() < 2.0 and spectrum.min() > -1e-10


@operators
def test_above_the_coarsest_size_it_is_the_inverse(operator) -> None:
    A = operator()
    M = Multigrid(coarsest=1000, dtype=torch.float64).setup(A)
    assert not M.levels
    matrix, found = dense(A.apply, A.shape), dense(M.apply, A.shape)
    scale = np.abs(np.diag(matrix)).max()
    np.testing.assert_allclose(matrix @ found @ matrix, matrix, rtol=0, atol=1e-9 * scale)


def test_one_cycle_is_the_textbooks() -> None:
    """Two grids, all in dense matrices: sweeps, restriction of the residual, exact coarse solve, correction, mirrored sweeps."""
    A = medium(6, 5, contrast=10)
    M = Multigrid(coarsest=9, dtype=torch.float64).setup(A)
    assert len(M.levels) == 1
    matrix = dense(A.apply, A.shape)
    place = np.arange(30).reshape(6, 5)
    P = np.zeros((30, 9))
    for i, j in itertools.product(range(6), range(5)):
        P[place[i, j], 3 * (i // 2) + j // 2] = 1
    coarse = P.T @ matrix @ P
    width = [2, 2, 1]  # the second axis has five points
    for p, q in itertools.product(range(9), repeat=2):
        (pi, pj), (qi, qj) = divmod(p, 3), divmod(q, 3)
        if abs(pi - qi) + abs(pj - qj) == 1:  # distances between the centres of blocks, in fine spacings
            distance = 2.0 if pj == qj else (2 + width[max(pj, qj)]) / 2
            coarse[p, q] /= distance
    outer = np.zeros(9)
    for d, anchor in enumerate(A.anchors):
        assert anchor is not None
        sums = P.T @ anchor[0].flatten().numpy()
        block = np.array([[2, 2, 2], width][d])
        # The wall is half a spacing from the first point and as far as the block is wide from the block's centre.
        outer += sums / (np.repeat(block, 3) if d == 0 else np.tile(block, 3))
    np.fill_diagonal(coarse, 0)
    np.fill_diagonal(coarse, outer - coarse.sum(1))
    red = (np.indices((6, 5)).sum(0) % 2 == 0).ravel()
    f = normal(30).numpy()
    u = np.zeros(30)

    def sweep(points: np.ndarray) -> None:
        u[points] += ((f - matrix @ u) / np.diag(matrix))[points]

    for points in (red, ~red, red, ~red):
        sweep(points)
    u += P @ np.linalg.solve(coarse, P.T @ (f - matrix @ u))
    for points in (~red, red, ~red, red):
        sweep(points)
    np.testing.assert_allclose(M.apply(torch.from_numpy(f).view(1, 6, 5)).flatten().numpy(), u, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sides", ["dirichlet", "neumann", ("neumann", "dirichlet"), "periodic"], ids=str)
@pytest.mark.parametrize("shape", [(16,), (8, 12), (4, 8, 6)], ids=str)
def test_coarse_grids_are_the_finite_volumes_of_the_equation(sides, shape: tuple[int, ...]) -> None:
    """With a constant coefficient the coarse stencil is that of a grid of half the points, times the points of a block."""
    layout = "periodic" if sides == "periodic" else "cells"
    boundary = sides if isinstance(sides, str) else [sides] * len(shape)
    fine, coarse = (
        FaceStencil.from_coefficient(torch.ones(1, *n, dtype=torch.float64), Grid(n, layout=layout), boundary=boundary)
        for n in (shape, tuple(n // 2 for n in shape))
    )
    found = Couplings.of(fine).coarse((2,) * len(shape)).stencil()
    x = normal(1, *coarse.shape)
    torch.testing.assert_close(Reference().apply(found, x), coarse.apply(x) * 2 ** len(shape), rtol=1e-12, atol=1e-9)


@operators
def test_linear_and_exact_in_units(operator) -> None:
    A = operator()
    M = Multigrid(coarsest=8, dtype=torch.float64).setup(A)
    r, q = normal(2, *A.shape), normal(2, *A.shape, seed=1)
    torch.testing.assert_close(M.apply(2 * r - 3 * q), 2 * M.apply(r) - 3 * M.apply(q), rtol=1e-10, atol=1e-12 * float(M.apply(r).abs().max()))  # fmt: skip
    scaled = A.with_tensors([t * 2.0**300 for t in A.tensors()])
    assert torch.equal(Multigrid(coarsest=8, dtype=torch.float64).setup(scaled).apply(r), M.apply(r) * 2.0**-300)
    single = Multigrid(coarsest=8, dtype=torch.float32).setup(A)
    assert torch.equal(single.apply(r * 2.0**-400), single.apply(r) * 2.0**-400), "squares would underflow"
    assert single.apply(r).dtype == torch.float64


def test_a_batch_of_operators_equals_one_by_one() -> None:
    A = medium(12, 15, contrast=10, batch=3, mask=normal(3, 12, 15) > -1.0)
    r = normal(3, 12, 15)
    together = Multigrid(coarsest=8).setup(A).apply(r)
    for i in range(3):
        alone = Multigrid(coarsest=8).setup(A.select(i)).apply(r[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-7)


# Iterations


@pytest.mark.parametrize(("dim", "n"), [(2, 64), (2, 128), (3, 32)])
def test_smoke_takes_6_8_12_iterations(dim: int, n: int) -> None:
    """The required 6 / 8 / 12 to 1e-4 / 1e-6 / 1e-10, five seeds; 64^3 and 128^3 are slow tests."""
    for index in range(5):
        A, b = smoke(dim, n, index)
        M = Multigrid()
        for rtol, most in ((1e-4, 6), (1e-6, 8), (1e-10, 12)):
            assert iterations(A, M, rtol, b) <= most


@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 128])
def test_smoke_in_large_boxes(n: int) -> None:
    for index in range(5):
        A, b = smoke(3, n, index)
        for rtol, most in ((1e-4, 6), (1e-6, 8), (1e-10, 12)):
            assert iterations(A, Multigrid(), rtol, b) <= most


def test_iterations_do_not_grow_with_the_grid() -> None:
    counts = [iterations(medium(n, n), Multigrid()) for n in (32, 64, 128, 256)]
    assert max(counts) <= counts[0] + 1 and max(counts) <= 7


@pytest.mark.parametrize("shape", [(65, 64), (65, 65), (97, 51), (255,), (17, 18, 19)], ids=str)
@pytest.mark.parametrize("layout", ["cells", "nodes"])
def test_odd_sizes_cost_at_most_two_iterations(shape: tuple[int, ...], layout: str) -> None:
    even = tuple(n - n % 2 for n in shape)
    assert iterations(medium(*shape, layout=layout), Multigrid()) <= iterations(medium(*even), Multigrid()) + 2


@pytest.mark.parametrize("anisotropy", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("axis", [0, 1])
def test_semi_coarsening_cures_a_weak_axis(anisotropy: float, axis: int) -> None:
    """Required: at most 12 iterations at 0.01 and 256 x 256; halving every axis takes several times as many."""
    a = torch.ones(1, 256, 256, dtype=torch.float64)
    fields = [a, a]
    fields[axis] = anisotropy * a
    A = FaceStencil.from_coefficient(fields, Grid((256, 256), layout="cells"))
    M = Multigrid().setup(A)
    assert M.levels[0].transfer.factors == ((1, 2) if axis == 0 else (2, 1))
    found = iterations(A, M)
    assert found <= 12
    if anisotropy == 0.01:
        assert iterations(A, Multigrid(coarsening="full")) > 3 * found


def test_high_contrast_and_what_the_w_cycle_is_for() -> None:
    A = medium(128, 128, contrast=1e4)
    assert Multigrid().setup(A)._work == torch.float64 and Multigrid().setup(medium(16, 16))._work == torch.float32
    assert iterations(A, Multigrid("W")) <= iterations(A, Multigrid()) <= 16


def test_single_precision_costs_no_iteration_on_poisson() -> None:
    A, b = smoke(2, 64, 1)
    for rtol in (1e-6, 1e-10):
        counts = {iterations(A, Multigrid(dtype=dtype), rtol, b) for dtype in (torch.float32, torch.float64)}
        assert len(counts) == 1


def test_rotated_anisotropy_converges_and_the_w_cycle_halves_it() -> None:
    A = rotated(130)
    assert iterations(A, Multigrid("W")) <= 0.7 * iterations(A, Multigrid())


@pytest.mark.parametrize(("style", "most"), [("boxes", 14), ("plates", 40), ("pockets", 40)])
def test_walls_one_cell_thick_cost_iterations(style: str, most: int) -> None:
    """On coarse grids a block lies on both sides of such a wall; conjugate gradients alone take 800 and more."""
    problem, grid = Poisson(obstacles=25, style=style), Grid((96, 96), layout="cells")
    inputs = problem.sample([0], grid, split="test")
    A, b = problem.operator(inputs, grid), inputs["forcing"]
    assert iterations(A, Multigrid("W"), 1e-8, b) <= iterations(A, Multigrid(), 1e-8, b) <= most


# What it refuses


def test_what_is_no_stencil_is_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"needs the grid .* but A is a Tensor; use FaceStencil.from_coefficient"):
        Multigrid().setup(torch.eye(4))
    with pytest.raises(TypeError, match=r"or AlgebraicMultigrid"):
        ConjugateGradient(Multigrid()).solve(torch.eye(4), torch.ones(4))
    with pytest.raises(RuntimeError, match=r"called before setup\(A\)"):
        Multigrid().apply(torch.ones(1, 4))
    for bad in (torch.nan, torch.inf, -5.0):
        w = torch.ones(1, 9)
        w[0, 3] = bad
        with pytest.raises(ValueError, match="NaN, infinity or a negative number"):
            Multigrid().setup(FaceStencil([w]))
    w = torch.ones(1, 9).double()
    w[0, 3] = torch.nan
    solution = ConjugateGradient(Multigrid()).solve(FaceStencil([w]), torch.ones(8).double())
    assert solution.reason is Reason.NAN_OR_INF and solution.iterations == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cycle": "F"}, "cycle is 'F'; choose one of V, W"),
        ({"smoother": "sor"}, "smoother is 'sor'; choose one of red-black, jacobi"),
        ({"coarsening": "none"}, "coarsening is 'none'; choose one of auto, full"),
        ({"sweeps": 0}, "sweeps is 0"),
        ({"coarsest": 0}, "coarsest 0"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Multigrid(**options)


@pytest.mark.parametrize("sides", ["neumann", "periodic"])
def test_a_closed_box_in_single_precision_takes_no_more_iterations(sides: str) -> None:
    """Rounded row sums on the coarsest grid would turn its null space into a huge correction."""
    layout = "periodic" if sides == "periodic" else "cells"
    ones = torch.ones(1, 24, 19, dtype=torch.float64)
    A = FaceStencil.from_coefficient(ones, Grid((24, 19), layout=layout), boundary=sides)
    b = normal(1, 24, 19)
    b -= b.mean()
    counts = [iterations(A, Multigrid(dtype=dtype), 1e-10, b) for dtype in (torch.float32, torch.float64)]
    assert counts[0] <= counts[1] + 1 <= 16
