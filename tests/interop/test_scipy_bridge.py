"""SciPy as the host: masks and free unknowns, blocks of columns, flexible methods, and the same iterations as in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from opflow import Grid
from opflow.interop import as_linear_operator, as_preconditioner
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, FastPoisson, Multigrid


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_obstacles(n: int = 24) -> FaceStencil:
    mask = torch.ones(1, n, n + 3, dtype=torch.bool)
    mask[0, 4 : n // 2, 3 : n // 2] = False
    mask[0, n - 6, 5:] = False
    a = torch.exp(randn(1, n, n + 3))
    return FaceStencil.from_coefficient(a, Grid((n, n + 3), layout="cells"), mask=mask)


def test_vectors_hold_the_unknowns_inside_the_domain() -> None:
    A = with_obstacles()
    operator, matrix = as_linear_operator(A), A.to_sparse()
    n = int(A.mask.sum())
    assert operator.shape == matrix.shape == (n, n)
    v, V = randn(n).numpy(), randn(n, 3).numpy()
    np.testing.assert_allclose(operator @ v, matrix @ v, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator @ V, matrix @ V, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator.T @ V, matrix @ V, rtol=1e-12, atol=1e-9)


def test_the_rows_of_another_program_keep_their_order() -> None:
    """A permuted matrix comes back as a stencil through its free dofs, and speaks in its rows."""
    n = 9
    order = np.random.default_rng(0).permutation(n * n)
    matrix = FaceStencil.from_coefficient(torch.exp(randn(1, n, n)), Grid((n, n), layout="cells")).to_sparse()
    matrix = matrix[order][:, order]
    A = FaceStencil.from_sparse(matrix, Grid((n, n), layout="cells"), free_dofs=order)
    v = randn(n * n, seed=1).numpy()
    np.testing.assert_allclose(as_linear_operator(A) @ v, matrix @ v, rtol=1e-12, atol=1e-9)
    x, info = scipy.sparse.linalg.cg(matrix, v, rtol=1e-10, M=as_preconditioner(Multigrid(), A))
    assert info == 0 and np.linalg.norm(v - matrix @ x) <= 2e-10 * np.linalg.norm(v)


def test_a_block_of_columns_is_one_call() -> None:
    class Counted(FastPoisson):
        sizes: list[int] = []  # noqa: RUF012

        def apply(self, r: Tensor) -> Tensor:
            self.sizes.append(len(r))
            return super().apply(r)

    A = FaceStencil.from_coefficient(torch.ones(1, 9, 9).double(), Grid((9, 9)))
    M = as_preconditioner(Counted(), A)
    V = randn(49, 5).numpy()
    together = M @ V
    assert Counted.sizes == [5]
    for j in range(5):
        np.testing.assert_allclose(together[:, j], M @ V[:, j], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("make", [FastPoisson, Multigrid, AlgebraicMultigrid], ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_the_same_iterations_in_torch_and_scipy(make: Any, seed: int) -> None:
    A = FaceStencil.from_coefficient(torch.exp(0.5 * randn(1, 33, 29, seed=seed)), Grid((33, 29)))
    b = randn(31, 27, seed=seed + 10)
    steps: list[int] = []
    _, info = scipy.sparse.linalg.cg(
        A.to_sparse(), b.numpy().ravel(), rtol=1e-8, M=as_preconditioner(make(), A), callback=lambda _: steps.append(1)
    )
    ours = ConjugateGradient(make(), rtol=1e-8).solve(A, b)
    assert info == 0 and ours.converged and len(steps) == ours.iterations > 4


# What is not linear goes to flexible methods


class Direction(nn.Module):
    """A network that is neither linear nor homogeneous: a good direction for unit residuals only, bent by a cube."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []
        self.poisson = FastPoisson()

    def setup(self, A: FaceStencil) -> None:
        self.poisson.setup(A)

    def forward(self, r: Tensor) -> Tensor:
        self.norms.append(float(r.norm()))
        z = self.poisson.apply(r + 0.5 * r**3)
        return z + 0.01 * z.norm() * torch.tanh(r)


def test_a_network_direction_inside_gcrotmk() -> None:
    A = FaceStencil.from_coefficient(torch.exp(randn(1, 33, 33)), Grid((33, 33)))
    b, matrix, network = randn(31 * 31, seed=1).numpy(), A.to_sparse(), Direction()
    inner: list[int] = []

    def solve(M: Any) -> tuple[np.ndarray, int]:
        inner.clear()
        counted = scipy.sparse.linalg.LinearOperator(
            matrix.shape, matvec=lambda v: inner.append(1) or matrix @ v, dtype=float
        )
        x, info = scipy.sparse.linalg.gcrotmk(counted, b, rtol=1e-8, M=M, maxiter=2000)
        assert info == 0 and np.linalg.norm(b - matrix @ x) <= 1.1e-8 * np.linalg.norm(b)
        return x, len(inner)

    _, plain = solve(None)
    _, directed = solve(as_linear_operator(network, A))
    assert directed * 3 < plain
    np.testing.assert_allclose(network.norms, 1.0, rtol=1e-12)
    M = as_linear_operator(network, A)
    np.testing.assert_allclose(M @ (1e-6 * b), 1e-6 * (M @ b), rtol=1e-10)
    assert not (M @ np.zeros_like(b)).any()
    with pytest.raises(NotImplementedError):
        M.T @ b


def test_plain_cg_refuses_it_and_says_where_to_go() -> None:
    A = FaceStencil.from_coefficient(torch.ones(1, 9, 9).double(), Grid((9, 9)))
    with pytest.raises(ValueError, match=r"Direction declares linear=None.*as_linear_operator\(M, A\).*gcrotmk"):
        as_preconditioner(Direction(), A)
    with pytest.raises(TypeError, match=r"str is neither a preconditioner .* nor a callable"):
        as_linear_operator("network", A)


def test_directions_that_are_not_finite_cost_steps_not_the_solve() -> None:
    A = FaceStencil.from_coefficient(torch.exp(randn(1, 17, 17)), Grid((17, 17)))
    b, matrix, calls = randn(225, seed=1).numpy(), A.to_sparse(), [0]

    def sometimes(r: Tensor) -> Tensor:
        calls[0] += 1
        return torch.full_like(r, torch.nan) if calls[0] % 3 else r

    x, info = scipy.sparse.linalg.gcrotmk(matrix, b, rtol=1e-8, M=as_linear_operator(sometimes, A), maxiter=2000)
    assert info == 0 and np.linalg.norm(b - matrix @ x) <= 1.1e-8 * np.linalg.norm(b) and calls[0] > 10
