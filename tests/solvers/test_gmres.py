"""GMRES: agreement with dense solves, real and complex, and outcomes that say what b - A x shows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from opflow.solvers import GMRES, LinearOperator, Reason, Solution, SolverError

DTYPES = [torch.float64, torch.complex128]


def numbers(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unsymmetric(n: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    """Eigenvalues on both sides of the imaginary axis: neither symmetric nor definite."""
    return (
        torch.diag(torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)).to(dtype)
        + 0.4 * numbers(n, n, dtype=dtype, seed=seed) / n**0.5
    )


def honest(solution: Solution, A: Tensor, b: Tensor, rtol: float) -> None:
    true = (b - solution.x @ A.T).norm(dim=1)
    torch.testing.assert_close(solution.residual_norm, true, rtol=1e-3, atol=1e-14)
    for column, reason in enumerate(solution.reason):
        assert solution.converged[column] == reason.converged
        assert not reason.converged or true[column] <= rtol * (1 + 1e-12) * b[column].norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("restart", [5, 100])
def test_agrees_with_a_dense_solve(dtype: torch.dtype, restart: int) -> None:
    A, b = unsymmetric(30, dtype), numbers(3, 30, dtype=dtype, seed=1)
    solution = GMRES(rtol=1e-11, restart=restart, max_steps=3000).solve(A, b)
    expected = torch.linalg.solve(A, b.T).T
    assert solution.reason == [Reason.RTOL] * 3 and solution.x.dtype == dtype
    assert (solution.x - expected).norm() <= 1e-9 * expected.norm()
    honest(solution, A, b, 1e-11)
    if restart > 30:
        assert int(solution.iterations.max()) <= 30, "n steps are enough in exact arithmetic"


def test_the_residual_is_the_least_of_the_krylov_space() -> None:
    A, b = unsymmetric(20), numbers(1, 20, seed=1)
    solution = GMRES(rtol=1e-14, max_steps=8).solve(A, b)
    assert solution.reason == [Reason.MAX_STEPS] and solution.history.shape == (9, 1)
    space = [b[0]]
    for step in range(1, 9):
        images = torch.stack([A @ v for v in space], dim=1)
        y = torch.linalg.lstsq(images, b[0][:, None]).solution
        least = (b[0] - (images @ y)[:, 0]).norm()
        torch.testing.assert_close(solution.history[step, 0], least, rtol=1e-7, atol=0)
        space.append(A @ space[-1] / (A @ space[-1]).norm())


def test_batched_equals_one_by_one_and_columns_freeze() -> None:
    A, b = unsymmetric(25), numbers(4, 25, seed=2)
    x0 = torch.zeros_like(b)
    b[1], b[2, 3] = 0, torch.nan
    x0[3] = torch.linalg.solve(A, b[3])
    solution = GMRES(rtol=1e-9).solve(A, b, x0=x0)
    assert solution.reason == [Reason.RTOL, Reason.RTOL, Reason.NAN_OR_INF, Reason.RTOL]
    assert solution.iterations[1:].tolist() == [0, 0, 0] and not solution.x[1].any()
    assert torch.equal(solution.x[3], x0[3])
    alone = GMRES(rtol=1e-9).solve(A, b[0])
    assert alone.reason is Reason.RTOL and alone.iterations == solution.iterations[0]
    torch.testing.assert_close(alone.x, solution.x[0], rtol=1e-10, atol=1e-12)
    assert "1 of 4 columns did not converge; column 2" in solution.message


def test_a_batch_of_operators() -> None:
    class Diagonals(LinearOperator):
        shape, dtype, device, batch = (6,), torch.complex128, torch.device("cpu"), 3
        d = numbers(3, 6, seed=5) + 3

        def apply(self, x: Tensor) -> Tensor:
            return self.d * x

    b = numbers(3, 6, seed=6)
    solution = GMRES(rtol=1e-12).solve(Diagonals(), b)
    assert solution.all_converged
    torch.testing.assert_close(solution.x, b / Diagonals.d)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_numpy_and_scipy_come_back_as_numpy(form) -> None:
    A, b = unsymmetric(12).numpy(), numbers(12, seed=1).numpy()
    solution = GMRES().solve(form(A), b)
    assert isinstance(solution.x, np.ndarray) and solution.x.dtype == np.complex128 and solution.x.shape == (12,)
    assert solution.reason is Reason.RTOL and isinstance(solution.residual_norm, float)
    np.testing.assert_allclose(A @ solution.x, b, atol=1e-7)
    real = GMRES().solve(form(A.real), b.real)
    assert real.x.dtype == np.float64 and real.converged


def test_a_tiny_right_hand_side_scales_exactly() -> None:
    A, b = unsymmetric(12), numbers(12, seed=1)
    usual, tiny = GMRES().solve(A, b), GMRES().solve(A, b * 2.0**-900)
    assert tiny.reason is Reason.RTOL and torch.equal(tiny.x, usual.x * 2.0**-900)


class Diagonal:
    linear = symmetric = deterministic = False

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def setup(self, A: LinearOperator) -> Diagonal:
        self.diagonal = torch.diagonal(A.matrix)
        return self

    def apply(self, r: Tensor) -> Tensor:
        return r * torch.nan if self.broken else r / self.diagonal * (1 + 0.1 * torch.rand(r.shape[-1]))


def test_a_preconditioner_that_changes_saves_steps_and_one_that_breaks_costs_nothing_but_steps() -> None:
    torch.manual_seed(0)
    A = torch.diag(torch.logspace(0, 4, 60, dtype=torch.float64)).to(torch.complex128) + 0.3 * unsymmetric(60)
    b = numbers(2, 60, seed=1)
    plain = GMRES(max_steps=2000).solve(A, b)
    helped = GMRES(Diagonal(), max_steps=2000).solve(A, b)
    assert helped.all_converged and (helped.iterations < 0.6 * plain.iterations).all()
    honest(helped, A, b, 1e-8)
    broken = GMRES(Diagonal(broken=True), max_steps=2000).solve(A, b)
    assert torch.equal(broken.x, plain.x) and broken.fallbacks > 0
    with pytest.raises(ValueError, match="returned"):
        GMRES(_Truncating()).solve(A, b)


class _Truncating(Diagonal):
    def apply(self, r: Tensor) -> Tensor:
        return r[:, :-1]


def test_outcomes_that_are_not_success() -> None:
    shift = torch.roll(torch.eye(16, dtype=torch.float64), 1, 0)
    e = torch.zeros(16, dtype=torch.float64)
    e[0] = 1
    # Restarted GMRES makes no progress on a shift; the complete one needs all n steps.
    assert GMRES(restart=5).solve(shift, e).reason is Reason.STAGNATED
    assert GMRES(restart=16).solve(shift, e).reason is Reason.RTOL
    singular = torch.diag(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    lost = GMRES().solve(singular, torch.ones(3, dtype=torch.float64))
    assert lost.reason is Reason.INCONSISTENT and not lost.converged
    assert GMRES().solve(singular, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)).converged
    zero = GMRES().solve(torch.zeros(4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert zero.reason is Reason.INCONSISTENT
    A, b = unsymmetric(20), numbers(1, 20, seed=1)
    single = GMRES(rtol=1e-12, max_steps=2000).solve(A.to(torch.complex64), b.to(torch.complex64))
    assert single.reason == [Reason.STAGNATED] and single.residual_norm < 1e-5 * b.norm()
    A[2, 3] = torch.nan
    assert GMRES().solve(A, b).reason == [Reason.NAN_OR_INF]
    with pytest.raises(SolverError, match="after 2 steps"):
        GMRES(max_steps=2, raise_on_failure=True).solve(unsymmetric(20), b)


def test_callback_history_and_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    A, b = unsymmetric(12), numbers(2, 12, seed=1)
    solution = GMRES(callback=lambda step, norms: seen.append(norms)).solve(A, b)
    assert torch.equal(torch.stack(seen), solution.history[1:]) and len(seen) == int(solution.iterations.max())
    assert solution.matvecs == len(seen) + 3  # the first residual, that of the cycle, and that of what is returned
    empty = GMRES().solve(A, b[:0])
    assert empty.x.shape == (0, 12) and empty.all_converged


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"restart": 0}, "restart is 0"), ({"rtol": -1.0}, "rtol is -1"), ({"max_steps": 0}, "max_steps")],
)
def test_bad_options_are_refused(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        GMRES(**options)
    with pytest.raises(TypeError, match=r"b is int64; expected .* real or complex"):
        GMRES().solve(unsymmetric(4), np.ones(4, dtype=np.int64))
