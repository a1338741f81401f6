"""One row a solver; the row buys every test below. The claim under test: a solver never says more than b - A x shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from torch import Tensor

from opflow import Grid
from opflow.interop.scipy_bridge import as_linear_operator, as_preconditioner
from opflow.solvers import (
    AlgebraicMultigrid,
    ConjugateDirection,
    ConjugateGradient,
    FaceStencil,
    FastPoisson,
    LinearOperator,
    Multigrid,
    Reason,
    Solution,
    SolverError,
)


@dataclass
class Case:
    name: str
    make: Callable[..., ConjugateGradient | ConjugateDirection]
    any_operator: bool = True  # takes matrices, not stencils only


class Inverse:
    """-A^-1 rounded to eight bits: not linear, not symmetric to rounding, of the wrong sign, and good."""

    linear = symmetric = deterministic = False

    def setup(self, A: LinearOperator) -> Inverse:
        matrix = torch.stack([torch.from_numpy(A.select(i).to_sparse().toarray()) for i in range(A.batch)])
        inverse = torch.linalg.pinv(matrix, hermitian=True)
        self.inverse = (inverse / inverse.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)).bfloat16()
        return self

    def apply(self, r: Tensor) -> Tensor:
        z = -(self.inverse.to(r.dtype) @ r.flatten(1)[..., None]).view_as(r)
        return z.bfloat16().to(r.dtype)

    __call__ = apply


CASES = [
    Case("ConjugateGradient", lambda **options: ConjugateGradient(**options)),
    Case(
        "ConjugateGradient+FastPoisson",
        lambda **options: ConjugateGradient(FastPoisson(), **options),
        any_operator=False,
    ),
    Case(
        "ConjugateGradient+FastPoisson(scaled)",
        lambda **options: ConjugateGradient(FastPoisson(scaled=True), **options),
        any_operator=False,
    ),
    Case(
        "ConjugateGradient+Multigrid", lambda **options: ConjugateGradient(Multigrid(), **options), any_operator=False
    ),
    Case(
        "ConjugateGradient+Multigrid(W, several grids)",
        lambda **options: ConjugateGradient(Multigrid("W", coarsest=6), **options),
        any_operator=False,
    ),
    Case("ConjugateGradient+AlgebraicMultigrid", lambda **options: ConjugateGradient(AlgebraicMultigrid(), **options)),
    Case(
        "ConjugateGradient+AlgebraicMultigrid(ruge-stueben)",
        lambda **options: ConjugateGradient(AlgebraicMultigrid("ruge-stueben"), **options),
    ),
    Case(
        "ConjugateGradient(Inverse, flexible)", lambda **options: ConjugateGradient(Inverse(), flexible=True, **options)
    ),
    Case("ConjugateDirection(Inverse)", lambda **options: ConjugateDirection(Inverse(), **options)),
    Case("ConjugateDirection(zeros)", lambda **options: ConjugateDirection(torch.zeros_like, **options)),
    Case("ConjugateDirection(NaN)", lambda **options: ConjugateDirection(lambda r: r * torch.nan, **options)),
    Case(
        "ConjugateDirection(Inverse, published)",
        lambda **options: ConjugateDirection(Inverse(), safeguard=None, **options),
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
matrix_cases = pytest.mark.parametrize("case", [c for c in CASES if c.any_operator], ids=lambda case: case.name)


class Dense(LinearOperator):
    """A dense matrix that says what it is told to say about itself."""

    def __init__(self, matrix: Tensor, symmetric: bool | None = None) -> None:
        self.matrix, self.symmetric = matrix, symmetric
        self.shape, self.dtype, self.device = (matrix.shape[0],), matrix.dtype, matrix.device

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def to_sparse(self) -> sp.csr_array:
        return sp.csr_array(self.matrix.numpy())


def stencil(
    *shape: int, batch: int = 1, layout: str = "nodes", boundary: str = "dirichlet", seed: int = 0
) -> FaceStencil:
    """A rough coefficient of contrast about 10 on a box of unequal sides."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.exp(2.3 * torch.rand(batch, *shape, generator=generator, dtype=torch.float64))
    grid = Grid(shape, extent=[(0.0, 1.0 + d) for d in range(len(shape))], layout=layout)
    return FaceStencil.from_coefficient(a, grid, boundary=boundary)


def right_hand_side(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_matrix(A: LinearOperator) -> Tensor:
    """Every column A e_j, (batch, n, n)."""
    n = int(np.prod(A.shape))
    columns = [A.apply(e.view(1, *A.shape)).flatten(1) for e in torch.eye(n, dtype=A.dtype)]
    return torch.stack(columns, dim=-1)


def spd(n: int, condition: float = 100.0, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(right_hand_side(n, n, seed=seed))[0]
    return q @ torch.diag(torch.logspace(0, float(np.log10(condition)), n, dtype=torch.float64)) @ q.T


def honest(solution: Solution, A: LinearOperator, b: Tensor, rtol: float) -> None:
    """What is said equals what is there, recomputed in float64."""
    true = torch.linalg.vector_norm((b - A.apply(solution.x)).flatten(1), dim=1)
    size = torch.linalg.vector_norm(b.flatten(1), dim=1)
    torch.testing.assert_close(
        solution.residual_norm, true, rtol=1e-3, atol=1e-14 * float(size.nan_to_num().max()), equal_nan=True
    )
    for column, reason in enumerate(solution.reason):
        assert solution.converged[column] == reason.converged
        assert not reason.converged or true[column] <= rtol * (1 + 1e-12) * size[column]


# Agreement with a dense solve


@cases
@pytest.mark.parametrize("shape", [(9,), (6, 8), (3, 3), (5, 6, 4)], ids=str)
def test_agrees_with_a_dense_solve(case: Case, shape: tuple[int, ...]) -> None:
    A = stencil(*shape, batch=2)
    b = right_hand_side(2, *A.shape)
    solution = case.make(rtol=1e-12).solve(A, b)
    expected = torch.linalg.solve(dense_matrix(A), b.flatten(1)).view_as(b)
    assert solution.reason == [Reason.RTOL] * 2 and solution.all_converged and bool(solution.converged.all())
    assert (solution.x - expected).norm() <= 1e-10 * expected.norm()
    honest(solution, A, b, 1e-12)


@cases
def test_batched_equals_one_by_one(case: Case) -> None:
    A, b = stencil(7, 9, batch=3), right_hand_side(3, 5, 7)
    together = case.make(rtol=1e-10).solve(A, b)
    for i in range(3):
        one = FaceStencil([w[i : i + 1] for w in A.weights])
        alone = case.make(rtol=1e-10).solve(one, b[i])
        assert alone.reason is Reason.RTOL and alone.iterations == together.iterations[i]
        assert alone.x.shape == (5, 7)
        torch.testing.assert_close(alone.x, together.x[i], rtol=1e-12, atol=1e-12 * float(b.abs().max()))


@cases
def test_one_operator_serves_many_right_hand_sides(case: Case) -> None:
    A, b = stencil(7, 6), right_hand_side(3, 5, 4)
    solution = case.make().solve(A, b)
    expected = torch.linalg.solve(dense_matrix(A), b.flatten(1)[..., None])[..., 0].view_as(b)
    assert solution.all_converged and (solution.x - expected).norm() <= 1e-6 * expected.norm()


@matrix_cases
@pytest.mark.parametrize(
    "form", [sp.csr_array, sp.csr_matrix, sp.coo_array, sp.coo_matrix, sp.csc_array, np.asarray, torch.as_tensor]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_takes_scipy_numpy_and_torch_matrices(case: Case, form, dtype) -> None:
    matrix = spd(12).numpy().astype(dtype)
    b = right_hand_side(2, 12).numpy().astype(dtype)
    rtol = 1e-10 if dtype == np.float64 else 1e-5
    solution = case.make(rtol=rtol).solve(form(matrix), b)
    assert isinstance(solution.x, np.ndarray) and solution.x.dtype == dtype and solution.x.shape == b.shape
    assert isinstance(solution.residual_norm, np.ndarray) and isinstance(solution.history, np.ndarray)
    assert solution.all_converged
    true = np.linalg.norm(b - solution.x @ matrix.T, axis=1)
    assert (true <= 1.1 * rtol * np.linalg.norm(b, axis=1)).all()
    single = case.make(rtol=rtol).solve(form(matrix), b[0])
    assert single.x.shape == (12,) and single.reason is Reason.RTOL and isinstance(single.residual_norm, float)
    assert isinstance(case.make(rtol=rtol).solve(form(matrix), torch.from_numpy(b)).x, Tensor)


@matrix_cases
def test_numpy_arrays_in_any_layout(case: Case) -> None:
    """Read-only, reversed and strided arrays come from memory maps and slices of a host program."""
    matrix, b = spd(8).numpy(), right_hand_side(8).numpy()
    expected = case.make().solve(matrix, b).x
    read_only, read_only_matrix = b.copy(), matrix.copy()
    read_only.setflags(write=False)
    read_only_matrix.setflags(write=False)
    for other_b in (read_only, b[::-1].copy()[::-1], np.repeat(b, 2)[::2]):
        solution = case.make().solve(read_only_matrix, other_b, x0=np.zeros(8)[::-1])
        np.testing.assert_array_equal(solution.x, expected)


@cases
def test_neither_b_nor_x0_is_changed(case: Case) -> None:
    A, b, x0 = stencil(7, 6), right_hand_side(2, 5, 4), right_hand_side(2, 5, 4, seed=2)
    x0[0] = 0
    b[1] = 0
    kept_b, kept_x0 = b.clone(), x0.clone()
    solution = case.make().solve(A, b, x0=x0)
    assert torch.equal(b, kept_b) and torch.equal(x0, kept_x0)
    solution.x.fill_(7.0)
    assert torch.equal(b, kept_b) and torch.equal(x0, kept_x0)
    numpy_b = kept_b.numpy().copy()
    returned = case.make().solve(A, numpy_b, x0=numpy_b).x
    returned[:] = 7.0
    np.testing.assert_array_equal(numpy_b, kept_b.numpy())


# The edges of the domain


@cases
def test_zero_right_hand_side_gives_zero_at_once(case: Case) -> None:
    A, b = stencil(7, 6), torch.zeros(2, 5, 4, dtype=torch.float64)
    for x0 in (None, right_hand_side(2, 5, 4)):
        solution = case.make().solve(A, b, x0=x0)
        assert solution.all_converged and not solution.x.any() and not solution.iterations.any()


@cases
def test_exact_initial_guess_takes_no_step(case: Case) -> None:
    A, x = stencil(7, 6), right_hand_side(1, 5, 4)
    solution = case.make().solve(A, A.apply(x), x0=x)
    assert solution.reason == [Reason.RTOL] and int(solution.iterations) == 0
    assert torch.equal(solution.x, x)


@cases
def test_a_good_initial_guess_saves_steps(case: Case) -> None:
    A, x = stencil(19, 21), right_hand_side(1, 17, 19)
    b = A.apply(x)
    cold = case.make().solve(A, b)
    warm = case.make().solve(A, b, x0=x + 1e-4 * right_hand_side(1, 17, 19, seed=3))
    assert cold.all_converged and warm.all_converged and warm.iterations < cold.iterations


@cases
def test_one_unknown(case: Case) -> None:
    A = stencil(3, 3)
    solution = case.make().solve(A, torch.full((1, 1, 1), 3.0, dtype=torch.float64))
    assert solution.all_converged and int(solution.iterations) == 1
    assert solution.x.item() == pytest.approx(3.0 / A.diagonal().item(), rel=1e-15)


@cases
def test_an_empty_batch_is_no_error(case: Case) -> None:
    solution = case.make(raise_on_failure=True).solve(stencil(7, 6), torch.zeros(0, 5, 4, dtype=torch.float64))
    assert solution.x.shape == (0, 5, 4) and solution.reason == [] and solution.all_converged
    assert "empty" in solution.message and solution.converged.dtype == torch.bool


@cases
@pytest.mark.parametrize("exponent", [-300, -160, 160, 300])
def test_tiny_and_huge_right_hand_sides_scale_exactly(case: Case, exponent: int) -> None:
    """Squares of such numbers under- or overflow; a solver that forms them takes a tiny b for zero and says RTOL."""
    A, b = stencil(7, 6), right_hand_side(1, 5, 4)
    scale = 2.0 ** (exponent * 3)
    usual = case.make().solve(A, b)
    solution = case.make().solve(A, b * scale)
    assert solution.reason == [Reason.RTOL] and solution.x.any()
    assert torch.equal(solution.x, usual.x * scale)
    assert torch.equal(solution.history, usual.history * scale) and torch.equal(
        solution.residual_norm, usual.residual_norm * scale
    )


@matrix_cases
def test_a_solution_that_leaves_the_dtype_is_no_success(case: Case) -> None:
    A = 1e200 * torch.eye(3, dtype=torch.float64)
    solution = case.make().solve(A, torch.full((3,), 1e-200, dtype=torch.float64))  # x = 1e-400 is 0 in float64
    assert not solution.converged and solution.reason is Reason.STAGNATED and not solution.x.any()
    tiny = case.make().solve(1e-200 * spd(6), right_hand_side(6))
    assert tiny.reason is Reason.RTOL


@cases
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["b", "A", "x0"])
def test_nan_and_infinity_are_named_before_the_first_step(case: Case, bad: float, where: str) -> None:
    A, b, x0 = stencil(7, 6), right_hand_side(1, 5, 4), torch.zeros(1, 5, 4, dtype=torch.float64)
    if where == "A":
        weights = [w.clone() for w in A.weights]
        weights[0][0, 2, 1] = bad
        A = FaceStencil(weights)
    else:
        {"b": b, "x0": x0}[where][0, 1, 2] = bad
    solution = case.make().solve(A, b, x0=x0)
    assert solution.reason == [Reason.NAN_OR_INF] and int(solution.iterations) == 0
    assert not solution.converged.any() and "NaN" in solution.message


@matrix_cases
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_matrix(case: Case, bad: float) -> None:
    matrix = spd(8)
    matrix[3, 3] = bad
    for A in (matrix, sp.csr_array(matrix.numpy())):
        solution = case.make().solve(A, right_hand_side(8))
        assert solution.reason is Reason.NAN_OR_INF and solution.iterations == 0


@cases
def test_columns_freeze_one_by_one(case: Case) -> None:
    """One column NaN, one zero, one solved from the start, two at work: none disturbs another."""
    A = stencil(9, 8)
    b, x0 = right_hand_side(5, 7, 6), torch.zeros(5, 7, 6, dtype=torch.float64)
    b[0, 3, 3] = torch.nan
    b[1] = 0
    x0[2] = case.make(rtol=1e-14, max_steps=2000).solve(A, b[2]).x
    x0[0] = 3.0
    solution = case.make(rtol=1e-9).solve(A, b, x0=x0)
    assert solution.reason == [Reason.NAN_OR_INF, *[Reason.RTOL] * 4]
    assert solution.converged.tolist() == [False, True, True, True, True] and not solution.all_converged
    assert solution.iterations[:3].tolist() == [0, 0, 0] and (solution.iterations[3:] > 0).all()
    assert torch.equal(solution.x[0], x0[0]), "a refused column keeps its guess"
    assert not solution.x[1].any() and torch.equal(solution.x[2], x0[2])
    for i in (3, 4):
        torch.testing.assert_close(solution.x[i], case.make(rtol=1e-9).solve(A, b[i]).x, rtol=1e-11, atol=1e-13)
    honest(solution, A, b, 1e-9)
    assert "1 of 5 columns did not converge; column 0" in solution.message
    assert solution.history.shape == (int(solution.iterations.max()) + 1, 5)


# Outcomes that are not success


@cases
def test_says_so_when_the_steps_run_out(case: Case) -> None:
    A, b = stencil(19, 21), right_hand_side(1, 17, 19)
    solution = case.make(rtol=1e-10, max_steps=2).solve(A, b)
    assert solution.reason == [Reason.MAX_STEPS] and int(solution.iterations) == 2 and solution.history.shape == (3, 1)
    assert "after 2 steps" in solution.message and "raise max_steps" in solution.message
    honest(solution, A, b, 1e-10)


@cases
def test_single_precision_cannot_claim_twelve_digits(case: Case) -> None:
    """The recursive residual of CG falls to any level; the true one stops at rounding."""
    A = stencil(12, 14)
    single = FaceStencil([w.float() for w in A.weights])
    b = right_hand_side(2, 10, 12).float()
    solution = case.make(rtol=1e-12, max_steps=5000).solve(single, b)
    assert solution.reason == [Reason.STAGNATED] * 2 and not solution.converged.any()
    true = (b.double() - A.apply(solution.x.double())).flatten(1).norm(dim=1)
    assert (solution.residual_norm.double() <= 10 * true).all() and (true < 1e-3 * b.flatten(1).norm(dim=1)).all()
    assert "float64" in solution.message


@cases
def test_a_recursion_that_drifted_restarts_from_the_true_residual(case: Case) -> None:
    """From a guess 1e6 times too large the recursive residual loses touch; restarts reach the tolerance all the same."""
    A = FaceStencil([w.float() for w in stencil(12, 14).weights])
    b = right_hand_side(1, 10, 12).float()
    x0 = 1e6 * right_hand_side(1, 10, 12, seed=2).float()
    solution = case.make(rtol=1e-4, max_steps=2000).solve(A, b, x0=x0)
    assert solution.reason == [Reason.RTOL]
    assert solution.residual_norm <= 1e-4 * b.norm()


@matrix_cases
def test_condition_1e14(case: Case) -> None:
    A, b = Dense(spd(40, condition=1e14)), right_hand_side(1, 40)
    solution = case.make(rtol=1e-13, max_steps=3000).solve(A, b)
    assert solution.reason[0] in (Reason.STAGNATED, Reason.MAX_STEPS, Reason.RTOL, Reason.INDEFINITE)
    honest(solution, A, b, 1e-13)


@matrix_cases
def test_an_operator_that_drifts_is_never_believed(case: Case) -> None:
    """Every third application is wrong by 1e-4: the recursion falls for it, the recomputed residual does not."""

    class Drifting(Dense):
        calls = 0

        def apply(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().apply(x) * (1 + 1e-4 * (self.calls % 3 == 0))

    b = right_hand_side(1, 20)
    solution = case.make(rtol=1e-10, max_steps=300).solve(Drifting(spd(20), symmetric=True), b)
    if "Inverse" in case.name and solution.converged:  # so few steps that the drift may not have mattered
        honest(solution, Dense(spd(20)), b, 1e-10)
    else:
        assert solution.reason[0] in (Reason.STAGNATED, Reason.MAX_STEPS) and not solution.converged.any()


@cases
def test_atol_is_named_when_only_atol_is_met(case: Case) -> None:
    A, b = stencil(9, 8), right_hand_side(1, 7, 6)
    loose = case.make(rtol=1e-12, atol=1e-2 * float(b.norm())).solve(A, b)
    assert loose.reason == [Reason.ATOL] and loose.residual_norm <= 1e-2 * b.norm()
    assert loose.residual_norm > 1e-12 * b.norm()
    only = case.make(rtol=0.0, atol=1e-6).solve(A, b)
    assert only.reason == [Reason.ATOL] and only.residual_norm <= 1e-6
    assert case.make(rtol=1e-8, atol=1e-30).solve(A, b).reason == [Reason.RTOL]


@matrix_cases
def test_indefinite(case: Case) -> None:
    T = torch.diag(torch.full((20,), 2.0)) - torch.diag(torch.ones(19), 1) - torch.diag(torch.ones(19), -1)
    solution = case.make().solve((T - torch.eye(20)).double(), torch.ones(20, dtype=torch.float64))
    assert solution.reason is Reason.INDEFINITE and "positive definite" in solution.message
    assert case.make().solve(-spd(5), right_hand_side(5)).reason is Reason.INDEFINITE


@matrix_cases
def test_nonsymmetric(case: Case) -> None:
    """A convection term: u_x beside -u_xx."""
    T = (torch.diag(torch.full((20,), 2.0)) - torch.diag(torch.ones(19), 1) - torch.diag(torch.ones(19), -1)).double()
    convection = 0.1 * (torch.diag(torch.ones(19), 1) - torch.diag(torch.ones(19), -1)).double()
    for A in (T + convection, sp.csr_array((T + convection).numpy())):
        solution = case.make().solve(A, torch.ones(20, dtype=torch.float64))
        assert solution.reason is Reason.NONSYMMETRIC and solution.iterations == 0
        assert "symmetric" in solution.message and "GMRES" in solution.message
    assert case.make().solve(T, torch.ones(20, dtype=torch.float64)).reason is Reason.RTOL
    assert case.make(rtol=1e-5).solve(T.float(), torch.ones(20)).reason is Reason.RTOL, "rounding is no asymmetry"


@cases
@pytest.mark.parametrize("shape", [(8,), (6, 7), (4, 3, 5)], ids=str)
def test_closed_box(case: Case, shape: tuple[int, ...]) -> None:
    """Neumann cells: constants are the null space; b must have no mean, x is determined up to its own."""
    A = stencil(*shape, layout="cells", boundary="neumann")
    b = right_hand_side(2, *shape)
    solution = case.make().solve(A, b)
    assert solution.reason == [Reason.INCONSISTENT] * 2 and not solution.iterations.any()
    b = b - b.flatten(1).mean(1).view(-1, *[1] * len(shape))
    solution = case.make(rtol=1e-10).solve(A, b)
    assert solution.reason == [Reason.RTOL] * 2
    honest(solution, A, b, 1e-10)
    expected = (torch.linalg.pinv(dense_matrix(A)) @ b.flatten(1)[..., None])[..., 0]
    centred = solution.x.flatten(1) - solution.x.flatten(1).mean(1, keepdim=True)
    assert (centred - expected).norm() <= 1e-7 * expected.norm()


@cases
@pytest.mark.parametrize(("share", "reason"), [(0.5, Reason.RTOL), (0.999, Reason.RTOL), (1.01, Reason.INCONSISTENT)])
def test_closed_box_counts_the_mean_of_b_as_residual(case: Case, share: float, reason: Reason) -> None:
    """A null component of `share` of the tolerance stays in b - A x whatever x is."""
    A, rtol = stencil(6, 7, layout="cells", boundary="neumann"), 1e-3
    b = right_hand_side(1, 6, 7)
    b -= b.mean()
    b = b / b.norm() + share * rtol * torch.ones_like(b) / 42**0.5
    solution = case.make(rtol=rtol).solve(A, b)
    assert solution.reason == [reason]
    honest(solution, A, b, rtol)


@matrix_cases
def test_dense_singular_is_never_a_false_success(case: Case) -> None:
    q = torch.linalg.qr(right_hand_side(12, 12))[0]
    values = torch.linspace(0, 3, 12, dtype=torch.float64)  # the first is zero
    A = Dense(q @ torch.diag(values) @ q.T)
    consistent, inconsistent = A.apply(right_hand_side(1, 12, seed=4)), right_hand_side(1, 12, seed=5)
    solution = case.make().solve(A, torch.cat([consistent, inconsistent]))
    assert solution.reason[0] is Reason.RTOL and not solution.converged[1]
    honest(solution, A, torch.cat([consistent, inconsistent]), 1e-8)
    zero = case.make().solve(torch.zeros(4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert zero.reason is Reason.INCONSISTENT or (zero.reason is Reason.STAGNATED and "published" in case.name)


@cases
def test_failure_raises_with_the_iterate_inside(case: Case) -> None:
    A, b = stencil(19, 21), right_hand_side(1, 17, 19)
    with pytest.raises(SolverError, match="after 2 steps") as caught:
        case.make(rtol=1e-10, max_steps=2, raise_on_failure=True).solve(A, b)
    assert torch.equal(caught.value.solution.x, case.make(rtol=1e-10, max_steps=2).solve(A, b).x)
    assert isinstance(caught.value, RuntimeError) and str(caught.value) == caught.value.solution.message
    assert case.make(raise_on_failure=True).solve(A, b).all_converged


def test_every_reason_is_a_sentence_and_two_claim_success() -> None:
    assert {reason.name for reason in Reason if reason.converged} == {"RTOL", "ATOL"}
    assert all(len(reason.value.split()) > 5 and reason.value[0].islower() for reason in Reason)


# What the caller sees


@cases
def test_callback_and_history_agree(case: Case) -> None:
    seen: list[tuple[int, Tensor]] = []
    A, b = stencil(9, 8), right_hand_side(2, 7, 6)
    solution = case.make(callback=lambda step, norms: seen.append((step, norms))).solve(A, b)
    assert [step for step, _ in seen] == list(range(1, int(solution.iterations.max()) + 1))
    torch.testing.assert_close(torch.stack([norms for _, norms in seen]), solution.history[1:], rtol=0, atol=0)
    torch.testing.assert_close(solution.history[0], b.flatten(1).norm(dim=1), rtol=1e-14, atol=0)


@cases
def test_matvecs_are_counted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    A, b, calls = stencil(9, 8), right_hand_side(2, 7, 6), []
    original = A.apply
    monkeypatch.setattr(A, "apply", lambda x: calls.append(1) or original(x))
    assert case.make().solve(A, b).matvecs == len(calls) > 2


class Diagonal:
    """1 / diagonal, or what `answer` makes of it at a given call."""

    linear = symmetric = deterministic = True

    def __init__(self, answer: Callable[[int, Tensor, Tensor], Tensor] = lambda call, r, z: z) -> None:
        self.answer, self.calls = answer, 0

    def setup(self, A: Dense) -> Diagonal:
        self.diagonal = torch.diagonal(A.matrix)
        return self

    def apply(self, r: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(self.calls, r, r / self.diagonal)


def ill_scaled() -> tuple[Dense, Tensor]:
    matrix = torch.diag(torch.logspace(0, 4, 50, dtype=torch.float64)) + 0.3 * spd(50, condition=3)
    return Dense(matrix), right_hand_side(2, 50)


@pytest.mark.parametrize("name", ["linear", "symmetric"])
def test_a_preconditioner_of_the_wrong_kind_is_refused(name: str) -> None:
    M = Diagonal()
    setattr(M, name, False)
    with pytest.raises(ValueError, match=rf"Diagonal declares .*{name}=False.*flexible method"):
        ConjugateGradient(M)
    with pytest.raises(ValueError, match=rf"Diagonal declares .*{name}=False.*flexible"):
        as_preconditioner(M, spd(4))


@pytest.mark.parametrize("period", [1, 2, 3, 5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_preconditioner_that_breaks_costs_steps_not_correctness(period: int, bad: float) -> None:
    """NaN at every call, every second, third, fifth: at worst the steps so far and those of plain CG."""
    A, b = ill_scaled()
    plain = ConjugateGradient().solve(A, b)
    M = Diagonal(lambda call, r, z: z if call % period else torch.full_like(z, bad))
    solution = ConjugateGradient(M).solve(A, b)
    assert solution.all_converged and solution.fallbacks == 2, "one for each column"
    assert (solution.iterations <= period + 1.1 * plain.iterations).all()
    honest(solution, A, b, 1e-8)


def test_a_preconditioner_that_breaks_in_one_column_serves_the_other() -> None:
    A, b = ill_scaled()

    def first_column_breaks(call: int, r: Tensor, z: Tensor) -> Tensor:
        z[0, 7] = torch.nan
        return z

    solution = ConjugateGradient(Diagonal(first_column_breaks)).solve(A, b)
    good = ConjugateGradient(Diagonal()).solve(A, b)
    assert solution.all_converged and solution.fallbacks == 1
    assert solution.iterations[1] == good.iterations[1] < solution.iterations[0]
    torch.testing.assert_close(solution.x[1], good.x[1], rtol=1e-12, atol=0)


STUBS = {
    "zero": lambda call, r, z: torch.zeros_like(z),
    "negative": lambda call, r, z: -z,
    "huge": lambda call, r, z: 1e300 * z,
    "tiny": lambda call, r, z: 1e-300 * z,
    "noise": lambda call, r, z: torch.randn(z.shape, generator=torch.Generator().manual_seed(call), dtype=z.dtype),
    "adversarial": lambda call, r, z: r * (1 + torch.arange(r.shape[1], dtype=r.dtype) * (call % 2)),
}


@pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS.keys())
def test_no_preconditioner_makes_a_solver_lie(stub) -> None:
    A, b = ill_scaled()
    solution = ConjugateGradient(Diagonal(stub), max_steps=400).solve(A, b)
    honest(solution, A, b, 1e-8)
    assert solution.x.isfinite().all()


def test_a_preconditioner_of_another_shape_is_an_error() -> None:
    A, b = ill_scaled()
    with pytest.raises((ValueError, RuntimeError)):
        ConjugateGradient(Diagonal(lambda call, r, z: z[:, :-1])).solve(A, b)


REFUSED = {
    "integers": (np.ones(4, dtype=np.int64), None, TypeError, r"b is int64; expected .* real floating-point"),
    "complex": (np.ones(4, dtype=complex), None, TypeError, r"b is complex128; expected"),
    "list": ([1.0] * 4, None, TypeError, r"b is list; expected a NumPy array or a tensor"),
    "single precision": (torch.ones(4), None, TypeError, r"b is torch.float32 on cpu but A is torch.float64"),
    "device": (torch.ones(4, dtype=torch.float64, device="meta"), None, TypeError, r"on meta but A is .* on cpu"),
    "shape": (torch.ones(5, dtype=torch.float64), None, ValueError, r"b has shape \(5,\) but A acts on \(4,\)"),
    "x0": (torch.ones(4, dtype=torch.float64), torch.ones(2, 4), ValueError, r"x0 has shape \(2, 4\) but b has \(4,\)"),
}


@pytest.mark.parametrize(("b", "x0", "error", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_right_hand_side_is_refused_in_a_sentence(b, x0, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        ConjugateGradient().solve(spd(4), b, x0=x0)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_operators_wants_as_many_right_hand_sides(batch: int) -> None:
    A = stencil(6, 7, batch=3)
    with pytest.raises(
        ValueError, match=r"A is a batch of 3 operators on \(4, 5\); give one right-hand side for each: \(3, 4, 5\)"
    ):
        ConjugateGradient().solve(A, right_hand_side(batch, 4, 5))
    with pytest.raises(ValueError, match="batch of 3 operators"):
        ConjugateGradient().solve(A, right_hand_side(4, 5))


@pytest.mark.parametrize(
    ("A", "error", "sentence"),
    [
        ("matrix", TypeError, "A is a str; expected an opflow LinearOperator, a SciPy sparse matrix"),
        (scipy.sparse.linalg.aslinearoperator(np.eye(4)), TypeError, "expected an opflow LinearOperator"),
        (np.ones((4, 5)), ValueError, r"shape \(4, 5\); expected a square matrix"),
        (np.eye(4, dtype=complex), ValueError, "complex128 .*real floating-point"),
        (np.eye(4, dtype=int), ValueError, "int64 .*real floating-point"),
        (sp.csr_array(np.ones((4, 5))), ValueError, r"\(4, 5\); expected a square matrix"),
        (sp.csr_array(np.eye(4, dtype=int)), ValueError, "int64 .*float32 or float64"),
        (sp.csr_array(np.eye(4, dtype=complex)), ValueError, "complex128 .*float32 or float64"),
    ],
    ids=["string", "scipy operator", "rectangle", "complex", "int", "sparse rectangle", "sparse int", "sparse complex"],
)
def test_a_wrong_operator_is_refused_in_a_sentence(A, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        ConjugateGradient().solve(A, np.ones(4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rtol": -1.0}, "rtol is -1.0"),
        ({"rtol": float("nan")}, "rtol is nan"),
        ({"rtol": 0.0}, "one must be positive"),
        ({"atol": -1e-3}, "atol -0.001"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        ConjugateGradient(**options)


def test_an_operator_without_apply_says_so() -> None:
    with pytest.raises(TypeError, match=r"LinearOperator does not define apply\(x\)"):
        LinearOperator().apply(torch.ones(1, 2))


# FaceStencil


def assembled(a: np.ndarray, spacing: tuple[float, ...], layout: str, boundary: str) -> np.ndarray:
    """-div(a grad u) row by row, from the finite-volume balance of every unknown."""
    dim = a.ndim
    lowest, shape = (1, tuple(n - 2 for n in a.shape)) if layout == "nodes" else (0, a.shape)
    matrix = np.zeros((int(np.prod(shape)),) * 2)
    for index in itertools.product(*[range(n) for n in shape]):
        row = int(np.ravel_multi_index(index, shape))
        here = tuple(i + lowest for i in index)
        for d, side in itertools.product(range(dim), (-1, 1)):
            there = tuple(i + side * (d == axis) for axis, i in enumerate(here))
            if 0 <= there[d] < a.shape[d]:
                weight = 2 / (1 / a[here] + 1 / a[there]) / spacing[d] ** 2
            else:
                weight = 2 * a[here] / spacing[d] ** 2 if boundary == "dirichlet" else 0.0
            matrix[row, row] += weight
            neighbour = tuple(i - lowest for i in there)
            if all(0 <= i < n for i, n in zip(neighbour, shape, strict=True)):
                matrix[row, int(np.ravel_multi_index(neighbour, shape))] -= weight
    return matrix


KINDS = [("nodes", "dirichlet"), ("cells", "dirichlet"), ("cells", "neumann")]
kinds = pytest.mark.parametrize(("layout", "boundary"), KINDS, ids=lambda k: k)


@kinds
@pytest.mark.parametrize("shape", [(6,), (4, 5), (3, 5, 4)], ids=str)
def test_stencil_equals_an_assembled_matrix(layout: str, boundary: str, shape: tuple[int, ...]) -> None:
    a = torch.exp(right_hand_side(2, *shape))
    grid = Grid(shape, extent=[(-1.0, 1.0 + d) for d in range(len(shape))], layout=layout)
    A = FaceStencil.from_coefficient(a, grid, boundary=boundary)
    dense = dense_matrix(A)
    for i in range(2):
        np.testing.assert_allclose(
            dense[i].numpy(), assembled(a[i].numpy(), grid.spacing, layout, boundary), rtol=1e-13, atol=1e-13
        )
    assert torch.equal(dense, dense.mT) and A.symmetric
    assert torch.equal(A.diagonal().flatten(1), torch.diagonal(dense, dim1=1, dim2=2))
    smallest = torch.linalg.eigvalsh(dense)[:, :2]
    null = A.null_space()
    if boundary == "neumann":
        assert null is not None and abs(float(null.norm()) - 1) < 1e-14 and A.apply(null[None]).abs().max() < 1e-13
        assert (smallest[:, 0].abs() < 1e-12).all() and (smallest[:, 1] > 1e-3).all()
    else:
        assert null is None and (smallest[:, 0] > 0).all()


@kinds
def test_stencil_is_of_second_order(layout: str, boundary: str) -> None:
    """-div(a grad u) = f with a smooth and u = sin or cos of unequal wavelengths on a box with sides 1 and 2."""
    errors, spacings = [], []
    wave = torch.cos if boundary == "neumann" else torch.sin
    for n in (16, 32, 64):
        shape = (n + 1, n + 1) if layout == "nodes" else (n, n)
        grid = Grid(shape, extent=((0.0, 1.0), (0.0, 2.0)), layout=layout)
        points = grid.points().requires_grad_()
        x, y = points.unbind(-1)
        a = 1.5 + torch.sin(x + y)
        u = wave(torch.pi * x) * wave(torch.pi * y)
        (gradient,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        flux = a[..., None] * gradient
        f = -sum(torch.autograd.grad(flux[..., d].sum(), points, retain_graph=True)[0][..., d] for d in range(2))
        inner = (slice(1, -1),) * 2 if layout == "nodes" else (slice(None),) * 2
        A = FaceStencil.from_coefficient(a.detach()[None], grid, boundary=boundary)
        b = f.detach()[inner]
        b = b - b.mean() if boundary == "neumann" else b
        found = ConjugateGradient(FastPoisson(), rtol=1e-11).solve(A, b).x
        error = found - u.detach()[inner]
        error = error - error.mean() if boundary == "neumann" else error
        errors.append(float(error.abs().max()))
        spacings.append(grid.spacing[0])
    orders = np.diff(np.log(errors)) / np.diff(np.log(spacings))
    assert np.abs(orders - 2).max() < 0.15, orders


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((torch.ones(5, 5), Grid((5, 5))), r"shape \(5, 5\); expected \(batch, \*grid\)"),
        ((torch.ones(1, 5, 6), Grid((5, 5))), r"the coefficient has shape \(1, 5, 6\) but the grid is \(5, 5\)"),
        ((-torch.ones(1, 5, 5), Grid((5, 5))), "must be positive"),
        ((torch.zeros(1, 5, 5), Grid((5, 5))), "must be positive"),
        ((torch.full((1, 5, 5), torch.nan), Grid((5, 5))), "not NaN"),
        ((torch.full((1, 5, 5), torch.inf), Grid((5, 5))), "finite"),
        ((torch.ones(1, 2, 5), Grid((2, 5))), "no interior node; use at least 3"),
        ((torch.ones(1, 5, 5), Grid((5, 5), layout="periodic")), "is not discretised here"),
    ],
)
def test_a_stencil_refuses_what_it_does_not_discretise(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        FaceStencil.from_coefficient(*arguments)


def test_a_stencil_refuses_unknown_boundaries_and_odd_weights() -> None:
    with pytest.raises(ValueError, match="boundary is 'robin'; choose one of dirichlet, neumann, periodic"):
        FaceStencil.from_coefficient(torch.ones(1, 5), Grid(5), boundary="robin")
    with pytest.raises(ValueError, match="axis x has layout 'nodes' with a neumann boundary, which is not discretised"):
        FaceStencil.from_coefficient(torch.ones(1, 5), Grid(5), boundary="neumann")
    with pytest.raises(ValueError, match=r"shapes \[\(1, 4, 4\), \(1, 4, 4\)\]; expected one tensor per axis"):
        FaceStencil([torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
    with pytest.raises(ValueError, match="expected one tensor per axis"):
        FaceStencil([torch.ones(4)])
    with pytest.raises(ValueError, match=r"batches of \[2, 3\] operators"):
        FaceStencil([torch.ones(2, 4, 3), torch.ones(3, 3, 4)])


def test_a_stencil_can_be_differentiated() -> None:
    A, x = stencil(5, 6), right_hand_side(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(A.apply, (x,))


# FastPoisson


# Scaling by the diagonal is the identity on nodes only: at the outer faces of cells a constant operator has another diagonal.
@pytest.mark.parametrize(
    ("layout", "boundary", "scaled"), [*((*kind, False) for kind in KINDS), ("nodes", "dirichlet", True)]
)
@pytest.mark.parametrize("shape", [(7,), (1,), (5, 8), (3, 3), (1, 6), (4, 6, 5)], ids=str)
def test_fast_poisson_inverts_a_constant_coefficient(
    layout: str, boundary: str, scaled: bool, shape: tuple[int, ...]
) -> None:
    grid = Grid(
        [n + 2 * (layout == "nodes") for n in shape], extent=[(0.0, 1.0 + d) for d in range(len(shape))], layout=layout
    )
    A = FaceStencil.from_coefficient(
        torch.tensor([0.5, 3.0]).double().view(2, *[1] * len(shape)).expand(2, *grid.shape), grid, boundary=boundary
    )
    x = right_hand_side(2, *A.shape)
    if boundary == "neumann":
        x = x - x.flatten(1).mean(1).view(-1, *[1] * len(shape))
    found = FastPoisson(scaled=scaled).setup(A).apply(A.apply(x))
    assert (found - x).abs().max() <= 1e-12


@kinds
@pytest.mark.parametrize("scaled", [False, True])
def test_fast_poisson_is_symmetric_positive_and_bounds_the_condition(layout: str, boundary: str, scaled: bool) -> None:
    A = stencil(6, 7, layout=layout, boundary=boundary)
    M = FastPoisson(scaled=scaled).setup(A)
    inverse = torch.stack(
        [M.apply(e.view(1, *A.shape)).flatten() for e in torch.eye(int(np.prod(A.shape)), dtype=A.dtype)]
    )
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-12, atol=1e-14)
    values = torch.linalg.eigvalsh(inverse)
    assert values[1 if boundary == "neumann" else 0] > 0 and values[0] > -1e-14
    if not scaled:
        spectrum = torch.linalg.eigvals(inverse @ dense_matrix(A)[0]).real.sort().values
        spectrum = spectrum[1:] if boundary == "neumann" else spectrum
        assert spectrum[-1] / spectrum[0] < 10.0, "the contrast of the coefficient"


def test_fast_poisson_refuses_what_has_no_grid_and_what_is_not_set_up() -> None:
    with pytest.raises(TypeError, match=r"FastPoisson needs a FaceStencil .* but A is a Dense"):
        FastPoisson().setup(Dense(spd(4)))
    with pytest.raises(TypeError, match="FastPoisson needs a FaceStencil"):
        ConjugateGradient(FastPoisson()).solve(spd(4), right_hand_side(4))
    with pytest.raises(RuntimeError, match=r"called before setup\(A\)"):
        FastPoisson().apply(torch.ones(1, 3))


def test_fast_poisson_set_up_in_inference_mode_serves_training_later() -> None:
    A, b = stencil(13, 17), right_hand_side(1, 11, 15)  # sizes of its own: the transforms are cached
    with torch.inference_mode():
        assert ConjugateGradient(FastPoisson()).solve(A, b).all_converged
    r = b.clone().requires_grad_()
    FastPoisson().setup(A).apply(r).sum().backward()
    assert r.grad is not None and r.grad.any()


# The SciPy bridge


def test_scipy_solves_with_our_operator_and_preconditioner() -> None:
    A, b = stencil(17, 19), right_hand_side(15, 17)
    operator, M = as_linear_operator(A), as_preconditioner(FastPoisson(), A)
    assert operator.shape == (255, 255) and operator.dtype == np.float64
    steps: list[int] = []
    x, info = scipy.sparse.linalg.cg(operator, b.numpy().ravel(), rtol=1e-10, M=M, callback=lambda _: steps.append(1))
    assert info == 0
    ours = ConjugateGradient(FastPoisson(), rtol=1e-10).solve(A, b)
    np.testing.assert_allclose(x, ours.x.numpy().ravel(), rtol=1e-8, atol=1e-10 * float(ours.x.abs().max()))
    assert abs(len(steps) - ours.iterations) <= 1
    v, w = right_hand_side(255, seed=2).numpy(), right_hand_side(255, 2, seed=3).numpy()
    dense = dense_matrix(A)[0].numpy()
    np.testing.assert_allclose(operator @ v, dense @ v, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator @ w, dense @ w, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator.T @ v, dense.T @ v, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator @ v[:, None], (dense @ v)[:, None], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(operator @ (v + 2j * v), dense @ (v + 2j * v), rtol=1e-12, atol=1e-9)


def test_the_bridge_leaves_the_host_arrays_alone() -> None:
    class Identity(Diagonal):
        def setup(self, A: LinearOperator) -> Identity:
            return self

        def apply(self, r: Tensor) -> Tensor:
            return r

    v = np.arange(3.0)
    v.setflags(write=False)
    result = as_preconditioner(Identity(), spd(3)) @ v
    np.testing.assert_array_equal(result, v)
    assert not np.shares_memory(result, v)
    assert (as_linear_operator(spd(3)) @ v[::-1]).shape == (3,)


def test_the_bridge_takes_matrices_and_refuses_batches() -> None:
    matrix = spd(5).numpy()
    for A in (matrix, sp.csr_array(matrix), torch.from_numpy(matrix)):
        np.testing.assert_allclose(as_linear_operator(A) @ np.ones(5), matrix @ np.ones(5), rtol=1e-14)
    assert as_linear_operator(matrix.astype(np.float32)).dtype == np.float32
    for wrap in (as_linear_operator, lambda A: as_preconditioner(FastPoisson(), A)):
        with pytest.raises(ValueError, match="A holds a batch of 3 operators, but the host solves with one"):
            wrap(stencil(5, 6, batch=3))
