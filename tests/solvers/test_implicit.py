"""Gradients through a solve: right to 1e-6, one solve more, and never from a solve that failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck

from opflow import Grid
from opflow.solvers import (
    AlgebraicMultigrid,
    ConjugateGradient,
    FaceStencil,
    FastPoisson,
    LinearOperator,
    Multigrid,
    SolverError,
    implicit_solve,
)
from opflow.solvers.linear_operator import DenseOperator


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tight(preconditioner: Any = None, **options: Any) -> ConjugateGradient:
    return ConjugateGradient(preconditioner, rtol=1e-13, max_steps=2000, **options)


def checked(function: Any, *inputs: Tensor, along_random_directions: bool = False) -> bool:
    leaves = tuple(t.requires_grad_() for t in inputs)
    return gradcheck(function, leaves, eps=1e-6, atol=1e-6, rtol=1e-6, fast_mode=along_random_directions)


def spd(root: Tensor) -> Tensor:
    return root @ root.mT + torch.eye(root.shape[-1], dtype=root.dtype)


# The right gradient


def test_right_hand_side_and_dense_matrix() -> None:
    """The matrix through a symmetric parametrisation, on one right-hand side and on a batch."""
    for b in (randn(5, seed=1), randn(3, 5, seed=1)):
        assert checked(lambda root, b: implicit_solve(spd(root), b, tight()), randn(5, 5), b)


def test_equals_the_gradient_through_a_dense_factorisation() -> None:
    root, b, target = randn(9, 9).requires_grad_(), randn(4, 9, seed=1).requires_grad_(), randn(4, 9, seed=2)
    found = torch.autograd.grad((implicit_solve(spd(root), b, tight()) - target).square().sum(), (root, b))
    direct = torch.linalg.solve(spd(root), b.mT).mT
    expected = torch.autograd.grad((direct - target).square().sum(), (root, b))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "layout", "boundary"),
    [
        ((5,), "nodes", "dirichlet"),
        ((4, 5), "nodes", "dirichlet"),
        ((3, 4), "cells", "dirichlet"),
        ((4, 3, 4), "nodes", "dirichlet"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "preconditioner",
    [None, FastPoisson(), Multigrid(coarsest=4), AlgebraicMultigrid()],
    ids=["plain", "FastPoisson", "Multigrid", "AlgebraicMultigrid"],
)
def test_coefficient(shape: tuple[int, ...], layout: str, boundary: str, preconditioner: Any) -> None:
    """Through the harmonic means of `from_coefficient`, a batch of two media."""
    grid = Grid(shape, layout=layout)
    inner = FaceStencil.from_coefficient(torch.ones(1, *shape).double(), grid, boundary=boundary).shape

    def solve(log_a: Tensor, b: Tensor) -> Tensor:
        A = FaceStencil.from_coefficient(log_a.exp(), grid, boundary=boundary)
        return implicit_solve(A, b, tight(preconditioner))

    whole = preconditioner is None  # the gradient is the same; only how it is computed differs
    assert checked(solve, 0.5 * randn(2, *shape), randn(2, *inner, seed=1), along_random_directions=not whole)


def test_face_weights_and_reaction() -> None:
    weights = [1 + 0.5 * torch.rand(1, 4, 4).double(), 1 + 0.5 * torch.rand(1, 3, 5).double()]

    def solve(first: Tensor, second: Tensor, c: Tensor, b: Tensor) -> Tensor:
        return implicit_solve(FaceStencil([first, second], reaction=c), b, tight())

    assert checked(solve, *weights, torch.rand(1, 3, 4).double(), randn(2, 3, 4))


@pytest.mark.parametrize("obstacles", ["neumann", "dirichlet"])
def test_masks(obstacles: str) -> None:
    """Numbers inside an obstacle get no gradient, and neither does b there."""
    grid, mask = Grid((5, 4), layout="cells"), torch.ones(1, 5, 4, dtype=torch.bool)
    mask[0, 1:3, 1] = False

    def solve(log_a: Tensor, b: Tensor) -> Tensor:
        A = FaceStencil.from_coefficient(log_a.exp(), grid, mask=mask, obstacles=obstacles)
        return implicit_solve(A, b * mask, tight())

    assert checked(solve, 0.5 * randn(1, 5, 4), randn(1, 5, 4, seed=1))


def test_closed_box() -> None:
    """Singular: b without mean in, x without mean out, and gradients without mean back."""
    grid = Grid((4, 5), layout="cells")

    def solve(log_a: Tensor, b: Tensor) -> Tensor:
        A = FaceStencil.from_coefficient(log_a.exp(), grid, boundary="neumann")
        return implicit_solve(A, b - b.mean(), tight())

    log_a, b = 0.5 * randn(1, 4, 5), randn(1, 4, 5, seed=1)
    assert checked(solve, log_a, b)
    assert solve(log_a, b).mean().abs() < 1e-14
    A = FaceStencil.from_coefficient(log_a.detach().exp(), grid, boundary="neumann")
    free = (b - b.mean()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        implicit_solve(A, free, tight()).sum() + implicit_solve(A, free, tight())[0, 0, 0], free
    )
    assert gradient.mean().abs() < 1e-14 and gradient.abs().max() > 1e-3
    with pytest.raises(SolverError, match=r"the forward solve failed: .*singular"):
        implicit_solve(A, b.detach(), tight())


def test_one_operator_serves_many_right_hand_sides() -> None:
    """Its gradient is the sum over them."""
    root, b = randn(6, 6).requires_grad_(), randn(3, 6, seed=1)
    (together,) = torch.autograd.grad(implicit_solve(spd(root), b, tight()).square().sum(), root)
    alone = [torch.autograd.grad(implicit_solve(spd(root), row, tight()).square().sum(), root)[0] for row in b]
    torch.testing.assert_close(together, sum(alone), rtol=1e-9, atol=1e-9)


def test_a_sparse_matrix_gives_the_gradient_of_b() -> None:
    matrix, b = sp.csr_array(spd(randn(7, 7)).numpy()), randn(7, seed=1)
    assert checked(lambda b: implicit_solve(matrix, b, tight()), b)


def test_default_solver_in_both_precisions() -> None:
    for dtype, accuracy in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        root, b = randn(8, 8).to(dtype), randn(8, seed=1).to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(implicit_solve(spd(root), b).sum(), b)
        expected = torch.linalg.solve(spd(root), torch.ones(8, dtype=dtype))
        assert found.dtype == dtype and (found - expected).norm() <= accuracy * expected.norm()


def test_default_solver_of_a_stencil_is_multigrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty applications of A for both solves; plain conjugate gradients take hundreds."""
    grid, calls, original = Grid((65, 65)), [], FaceStencil.apply
    a, b = torch.exp(0.5 * randn(1, 65, 65)).requires_grad_(), randn(1, 63, 63, seed=1)
    x = implicit_solve(FaceStencil.from_coefficient(a, grid), b, tight(FastPoisson()))
    expected = torch.autograd.grad(x.square().sum(), a)[0]
    monkeypatch.setattr(FaceStencil, "apply", lambda self, x: calls.append(1) or original(self, x))
    x = implicit_solve(FaceStencil.from_coefficient(a, grid), b)
    found = torch.autograd.grad(x.square().sum(), a)[0]
    assert (found - expected).norm() <= 1e-7 * expected.norm() and 10 < len(calls) <= 40


# Its price


class Counting(DenseOperator):
    """Counts its applications, over all copies."""

    calls: list[int]

    def with_tensors(self, tensors: Any) -> Counting:
        other = Counting(*tensors)
        other.calls = self.calls
        return other

    def apply(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return super().apply(x)


def test_the_adjoint_costs_one_solve() -> None:
    ratios = []
    for seed in range(10):
        A = Counting(spd(randn(60, 60, seed=seed)).requires_grad_())
        A.calls = []
        x = implicit_solve(
            A, randn(60, seed=seed + 100).requires_grad_(), ConjugateGradient(rtol=1e-10, max_steps=2000)
        )
        forward = len(A.calls)
        x.backward(randn(60, seed=seed + 200))
        ratios.append((len(A.calls) - forward) / forward)
        assert forward > 30
    assert max(ratios) <= 1.2, ratios


@pytest.mark.parametrize("rtol", [1e-2, 1e-12])
def test_memory_is_independent_of_the_iterations(rtol: float) -> None:
    """What autograd keeps is x, b and the matrix, at two steps as at hundreds."""
    A, b, steps, kept = spd(randn(80, 80)).requires_grad_(), randn(80, seed=1).requires_grad_(), [], []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    solver = ConjugateGradient(rtol=rtol, max_steps=2000, callback=lambda step, norms: steps.append(step))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        implicit_solve(A, b, solver)
    assert kept == [80, 80, 80 * 80]
    assert (len(steps) > 80) == (rtol == 1e-12)


class CountedSetup(FastPoisson):
    setups = 0

    def setup(self, A: Any) -> FastPoisson:
        type(self).setups += 1
        return super().setup(A)


def test_the_preconditioner_is_set_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedSetup, "setups", 0)
    grid = Grid((9, 9))
    a = torch.exp(randn(1, 9, 9)).requires_grad_()
    implicit_solve(FaceStencil.from_coefficient(a, grid), randn(1, 7, 7), tight(CountedSetup())).sum().backward()
    assert CountedSetup.setups == 1 and a.grad is not None


def test_one_solver_serves_two_operators_before_either_goes_backward() -> None:
    """Each solve keeps its own preconditioner: the second set-up must not change what the first one's adjoint uses."""
    grid, solver = Grid((9, 11)), tight(FastPoisson())
    media = [torch.exp(randn(1, 9, 11, seed=seed)).requires_grad_() for seed in (0, 1)]
    media[1] = (1e4 * media[1]).detach().requires_grad_()
    b = randn(1, 7, 9, seed=2)
    both = [implicit_solve(FaceStencil.from_coefficient(a, grid), b, solver) for a in media]
    together = torch.autograd.grad(both[0].sum() + both[1].sum(), media)
    for a, gradient in zip(media, together, strict=True):
        (alone,) = torch.autograd.grad(
            implicit_solve(FaceStencil.from_coefficient(a, grid), b, tight(FastPoisson())).sum(), a
        )
        torch.testing.assert_close(gradient, alone, rtol=1e-10, atol=0)


# Never from a solve that failed


def test_a_forward_solve_that_fails_raises() -> None:
    with pytest.raises(SolverError, match=r"the forward solve failed: .*after 2 steps") as caught:
        implicit_solve(spd(randn(30, 30)), randn(30, seed=1), ConjugateGradient(max_steps=2))
    assert caught.value.solution.x.shape == (30,)


@pytest.mark.parametrize("raise_on_failure", [False, True])
def test_an_adjoint_solve_that_fails_raises(raise_on_failure: bool) -> None:
    """b is an eigenvector, solved in a step; the gradient that comes back is not."""
    values, vectors = torch.linalg.eigh(spd(randn(30, 30)))
    A, b = (vectors * values) @ vectors.mT, vectors[:, 0].clone().requires_grad_()
    x = implicit_solve(A, b, ConjugateGradient(rtol=1e-8, max_steps=3, raise_on_failure=raise_on_failure))
    with pytest.raises(SolverError, match=r"the adjoint solve, of the backward pass, failed: .*after 3 steps"):
        x.backward(randn(30, seed=2))
    assert b.grad is None


def test_a_gradient_that_is_nan_raises() -> None:
    b = randn(5).requires_grad_()
    with pytest.raises(SolverError, match=r"adjoint solve.*NaN"):
        implicit_solve(spd(randn(5, 5)), b, tight()).backward(torch.full((5,), torch.nan).double())


def test_an_absolute_tolerance_means_the_same_for_a_small_gradient() -> None:
    """atol was chosen for b of size 1; a gradient of size 1e-9 must not pass for solved by zero."""
    A, b = spd(randn(20, 20)), randn(2, 20, seed=1).requires_grad_()
    small = 1e-9 * randn(2, 20, seed=2)
    (found,) = torch.autograd.grad(implicit_solve(A, b, ConjugateGradient(rtol=0.0, atol=1e-9)), b, small)
    expected = torch.linalg.solve(A, small.mT).mT
    assert (found - expected).norm() <= 1e-7 * expected.norm()


class GMRES:
    """A solver for any matrix: its x is right for an unsymmetric A, and a gradient from A itself would not be."""

    def solve(self, A: LinearOperator, b: Tensor) -> Any:
        matrix = A.matrix.detach().numpy()
        x = torch.from_numpy(
            np.stack([scipy.sparse.linalg.gmres(matrix, row, rtol=1e-12)[0] for row in b.detach().numpy()])
        )
        solution = ConjugateGradient().solve(torch.eye(len(matrix)).double(), x)
        return type(solution)(**{**vars(solution), "x": x, "residual_norm": (b - A.apply(x)).norm(dim=1)})


def test_an_unsymmetric_matrix_is_refused() -> None:
    unsymmetric, b = torch.eye(6).double() + 0.1 * randn(6, 6), randn(2, 6, seed=1)
    with pytest.raises(SolverError, match="not symmetric"):
        implicit_solve(unsymmetric, b)
    x = implicit_solve(unsymmetric, b.requires_grad_(), GMRES())
    torch.testing.assert_close(x @ unsymmetric.mT, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"A is not symmetric: .*g.x differs from lambda.b"):
        x.sum().backward()
    symmetric = implicit_solve(unsymmetric + unsymmetric.mT, b, GMRES())
    symmetric.sum().backward()
    declared = DenseOperator(unsymmetric)
    declared.symmetric = False
    with pytest.raises(ValueError, match="declares itself not symmetric"):
        implicit_solve(declared, b)


def test_numbers_changed_in_place_are_noticed() -> None:
    A, b = spd(randn(5, 5)).requires_grad_(), randn(5, seed=1)
    x = implicit_solve(A, b, tight())
    with torch.no_grad():
        A.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_second_derivatives_are_refused() -> None:
    b = randn(5).requires_grad_()
    (gradient,) = torch.autograd.grad(implicit_solve(spd(randn(5, 5)), b, tight()).square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_numpy_right_hand_sides_are_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"b is a ndarray; gradients need a tensor.*from_numpy"):
        implicit_solve(np.eye(3), np.ones(3))  # type: ignore[arg-type]
