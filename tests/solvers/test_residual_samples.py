"""Residuals with a stated spectrum: against dense eigenvectors, and exact solutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.linear_operator import DenseOperator
from opflow.solvers.residual_samples import ResidualRecorder, ritz_pairs, ritz_residuals, transform_residuals

SIDES = ["dirichlet", "neumann", ("neumann", "dirichlet")]


def box(shape: tuple[int, ...] = (6, 5), sides: object = "dirichlet", mask: Tensor | None = None) -> FaceStencil:
    grid = Grid(shape, layout="cells")
    boundary = sides if isinstance(sides, str) else [sides] * len(shape)
    return FaceStencil.from_coefficient(torch.ones(1, *shape, dtype=torch.float64), grid, boundary=boundary, mask=mask)


def dense(A: FaceStencil, one: int = 0) -> Tensor:
    n = A.shape[0] * A.shape[1]
    columns = torch.eye(n, dtype=A.dtype).view(n, *A.shape)
    return torch.stack([A.apply(column.expand(A.batch, *A.shape))[one].flatten() for column in columns], dim=1)


def obstacles() -> Tensor:
    mask = torch.ones(2, 6, 5, dtype=torch.bool)
    mask[0, 2:4, 1:3] = False
    mask[1, :2, 3:] = False
    mask[1, 4, 1] = False
    return mask


def test_ritz_pairs_of_a_masked_operator_are_its_eigenpairs() -> None:
    A = box(mask=obstacles())
    pairs = ritz_pairs(A, 30, seed=1)
    for one in range(2):
        values, vectors = torch.linalg.eigh(dense(A, one))
        inside = values > 1e-8 * values.max()
        there = pairs.spans[one]
        distinct = pairs.values[one, there]
        assert there.sum() == inside.sum()  # no eigenvalue of these domains is repeated
        torch.testing.assert_close(distinct, values[inside], rtol=1e-9, atol=0)
        overlap = pairs.vectors[one, there].flatten(1) @ vectors[:, inside]
        torch.testing.assert_close(overlap.abs(), torch.eye(len(overlap), dtype=A.dtype), rtol=0, atol=1e-6)
        assert not pairs.vectors[one, there][:, ~A.mask[one]].any()


def test_few_lanczos_steps_find_the_ends_of_the_spectrum_and_stay_orthonormal() -> None:
    A = box((24, 20), mask=None)
    pairs = ritz_pairs(A, 60)
    exact = torch.linalg.eigvalsh(dense(A))
    assert pairs.values.shape == (1, 60) and bool(pairs.spans.all())
    assert abs(pairs.values[0, -1] / exact[-1] - 1) < 1e-4
    assert exact[0] * 0.999 < pairs.values[0, 0] < 1.3 * exact[0]
    q = pairs.vectors[0].flatten(1)
    torch.testing.assert_close(q @ q.T, torch.eye(60, dtype=A.dtype), rtol=0, atol=1e-12)


def test_ritz_residuals_have_the_stated_spectrum() -> None:
    A = box(mask=obstacles())
    pairs = ritz_pairs(A, 30)
    r = ritz_residuals(pairs, 4000, boost=9.0, theta=3).input
    assert r.shape == (8000, 1, 6, 5)
    torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.ones(8000, dtype=A.dtype))
    for one, part in enumerate(r.view(2, 4000, -1)):
        there = pairs.spans[one]
        spread = (part @ pairs.vectors[one, there].flatten(1).T).std(0)
        low = int(there.sum()) // 2 + 3
        assert 7.5 < spread[:low].mean() / spread[low:].mean() < 10.5
        assert spread[:low].min() > 5 * spread[low:].max()
        assert not part[:, ~A.mask[one].flatten()].any()


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_transform_samples_solve_exactly_and_have_the_stated_spectrum(sides: object) -> None:
    A = box((8, 7), sides)
    batch = transform_residuals(A, 3000, seed=2)
    r, x = batch.input[:, 0], batch.target[:, 0]
    torch.testing.assert_close(A.apply(x), r, rtol=0, atol=1e-14)
    torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.ones(3000, dtype=A.dtype))
    values, vectors = torch.linalg.eigh(dense(A))
    spread = (r.flatten(1) @ vectors).square().mean(0)  # equal within a repeated eigenvalue
    median = values.median()
    kept = values > 1e-10 * values.max()
    low, high = spread[kept & (values < median * (1 - 1e-9))], spread[values > median * (1 + 1e-9)]
    assert 70 < low.mean() / high.mean() < 95 and low.min() > 40 * high.max()
    if sides == "neumann":
        assert spread[0] < 1e-25


def test_samples_repeat_with_their_seed_only() -> None:
    A = box()
    assert torch.equal(transform_residuals(A, 2, seed=3).input, transform_residuals(A, 2, seed=3).input)
    assert not torch.equal(transform_residuals(A, 2, seed=3).input, transform_residuals(A, 2, seed=4).input)


def test_what_is_no_box_is_refused() -> None:
    with pytest.raises(ValueError, match="Use ritz_residuals"):
        transform_residuals(box(mask=obstacles()), 2)
    varying = FaceStencil.from_coefficient(1 + torch.rand(1, 6, 5).double(), Grid((6, 5), layout="cells"))
    with pytest.raises(ValueError, match="not constant"):
        transform_residuals(varying, 2)
    with pytest.raises(ValueError, match="m is 0"):
        ritz_pairs(box(), 0)


def test_a_matrix_has_ritz_pairs_too() -> None:
    matrix = torch.diag(torch.tensor([0.0, 1.0, 3.0, 4.0], dtype=torch.float64))
    pairs = ritz_pairs(DenseOperator(matrix), 10)
    assert pairs.values.shape == (1, 4)
    torch.testing.assert_close(pairs.values[pairs.spans], torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64))


def test_a_recorder_answers_as_its_direction_and_keeps_what_it_saw() -> None:
    class Direction:
        operator: object = None

        def setup(self, A: object) -> None:
            self.operator = A

        def __call__(self, r: Tensor) -> Tensor:
            return 2 * r

    direction, A = Direction(), box()
    recorder = ResidualRecorder(direction).setup(A)
    r = torch.randn(2, 6, 5, dtype=torch.float64)
    assert torch.equal(recorder(r), 2 * r) and direction.operator is A
    kept = recorder.seen[0].clone()
    r.zero_()
    assert torch.equal(recorder.seen[0], kept) and bool(kept.any())
    assert ConjugateGradient().solve(A, kept).all_converged  # they are right-hand sides as any other
