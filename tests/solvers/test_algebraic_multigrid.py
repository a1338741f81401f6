"""PyAMG's hierarchy as a preconditioner: symmetric, repeatable, honest about what it cannot take."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from opflow import Grid
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, LinearOperator

pyamg = pytest.importorskip("pyamg")
methods = pytest.mark.parametrize("method", ["smoothed-aggregation", "ruge-stueben"])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(batch: int = 1, boundary: str = "dirichlet") -> FaceStencil:
    """Rough media with a wall of obstacles of its own in each, on 24 x 20 cells."""
    mask = torch.ones(batch, 24, 20, dtype=torch.bool)
    for i in range(batch):
        mask[i, 4 + i : 9, 3:15] = False
        mask[i, 15, 2 + i :] = False
    a = torch.exp(2 * torch.rand(batch, 24, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return FaceStencil.from_coefficient(a, Grid((24, 20), layout="cells"), boundary=boundary, mask=mask)


@methods
def test_symmetric_and_positive(method: str) -> None:
    M = AlgebraicMultigrid(method).setup(masked())
    u, v = randn(1, 24, 20), randn(1, 24, 20, seed=1)
    uMv, vMu = (u * M.apply(v)).sum(), (v * M.apply(u)).sum()
    assert (uMv - vMu).abs() <= 1e-13 * (u.norm() * M.apply(v).norm())
    for seed in range(20):
        r = randn(1, 24, 20, seed=seed) * masked().mask
        assert (r * M.apply(r)).sum() > 0
    torch.testing.assert_close(M.apply(u) + 2 * M.apply(v), M.apply(u + 2 * v), rtol=1e-10, atol=1e-12)


@methods
@pytest.mark.parametrize("boundary", ["dirichlet", "neumann"])
def test_solves_around_obstacles(method: str, boundary: str) -> None:
    """A batch of domains, one hierarchy each, against each domain alone; closed ones are singular."""
    A = masked(3, boundary)
    b = A.apply(randn(3, 24, 20))
    plain = ConjugateGradient(rtol=1e-10).solve(A, b)
    solution = ConjugateGradient(AlgebraicMultigrid(method), rtol=1e-10).solve(A, b)
    assert solution.all_converged and (solution.iterations * 4 < plain.iterations).all()
    assert solution.x[~A.mask].abs().max() == 0
    for i in range(3):
        alone = ConjugateGradient(AlgebraicMultigrid(method), rtol=1e-10).solve(A.select(i), b[i])
        assert alone.iterations == solution.iterations[i]
        torch.testing.assert_close(alone.x, solution.x[i], rtol=1e-9, atol=1e-9)


@methods
def test_every_column_gets_its_own_cycle(method: str) -> None:
    M, r = AlgebraicMultigrid(method).setup(masked()), randn(4, 24, 20)
    together = M.apply(r)
    for i in range(4):
        assert torch.equal(M.apply(r[i : i + 1])[0], together[i])
    assert M.apply(r[:0]).shape == (0, 24, 20)


@methods
def test_repeatable_and_leaves_numpys_stream_alone(method: str) -> None:
    """PyAMG estimates spectral radii from random vectors of NumPy's global stream."""
    r = randn(1, 24, 20)
    np.random.seed(1)  # noqa: NPY002
    first = AlgebraicMultigrid(method).setup(masked()).apply(r)
    next_number = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.rand() == next_number  # noqa: NPY002
    assert torch.equal(AlgebraicMultigrid(method).setup(masked()).apply(r), first)


@methods
@pytest.mark.parametrize("change", ["unsorted", "duplicates", "int64", "float32", "coo", "explicit zeros"])
def test_the_callers_matrix_in_any_form_is_left_as_it_was(method: str, change: str) -> None:
    matrix = sp.csr_array(pyamg.gallery.poisson((15, 15), format="csr"))
    expected = AlgebraicMultigrid(method).setup(matrix.copy()).apply(randn(1, 225))
    form = matrix.copy()
    if change == "unsorted":
        form.indices, form.data = form.indices.copy(), form.data.copy()
        for row in range(225):
            part = slice(form.indptr[row], form.indptr[row + 1])
            form.indices[part], form.data[part] = form.indices[part][::-1].copy(), form.data[part][::-1].copy()
        form.has_sorted_indices = False
    elif change == "duplicates":
        coo = matrix.tocoo()
        form = sp.csr_array(
            (np.repeat(matrix.data / 2, 2), np.repeat(matrix.indices, 2), 2 * matrix.indptr), shape=coo.shape
        )
    elif change == "int64":
        form.indices, form.indptr = form.indices.astype(np.int64), form.indptr.astype(np.int64)
    elif change == "float32":
        form = form.astype(np.float32)
    elif change == "coo":
        form = form.tocoo()
    else:
        form = sp.csr_array(matrix + sp.csr_array(([0.0, 0.0], ([0, 200], [200, 0])), shape=(225, 225)))
        form.data[form.data == 0] = 0.0
    if form.format == "csr":
        kept = [np.array(part) for part in (form.data, form.indices, form.indptr)]
    found = AlgebraicMultigrid(method).setup(form).apply(randn(1, 225))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not hasattr(form, "symmetry")
    if form.format == "csr":
        for before, after in zip(kept, (form.data, form.indices, form.indptr), strict=True):
            np.testing.assert_array_equal(before, after)


@methods
def test_rows_without_entries_pass_unchanged(method: str) -> None:
    matrix = sp.block_diag([pyamg.gallery.poisson((12, 12), format="csr"), sp.csr_array((9, 9))], format="csr")
    M, r = AlgebraicMultigrid(method).setup(matrix), randn(1, 153)
    assert torch.equal(M.apply(r)[:, 144:], r[:, 144:]) and not torch.equal(M.apply(r)[:, :144], r[:, :144])
    nothing = AlgebraicMultigrid(method).setup(sp.csr_array((5, 5)))
    assert torch.equal(nothing.apply(r[:, :5]), r[:, :5])


@methods
def test_what_does_not_coarsen_is_not_made_dense(method: str) -> None:
    """5000 unknowns without coupling stay on one level; a dense inverse of them would take 200 MB."""
    diagonal = 1 + np.arange(5000.0)
    M = AlgebraicMultigrid(method).setup(sp.csr_array(sp.diags_array(diagonal)))
    r = randn(1, 5000)
    torch.testing.assert_close(M.apply(r), r / torch.from_numpy(diagonal), rtol=1e-12, atol=0)
    assert M.nbytes < 1_000_000


def test_elasticity_wants_its_rigid_body_modes() -> None:
    A, B = pyamg.gallery.linear_elasticity((30, 30), format="csr")
    b = np.random.default_rng(0).standard_normal(A.shape[0])
    scalar = ConjugateGradient(AlgebraicMultigrid()).solve(A, b)
    modes = ConjugateGradient(AlgebraicMultigrid(near_null_space=B, block=2)).solve(A, b)
    assert scalar.converged and modes.converged and modes.iterations * 2 < scalar.iterations
    with pytest.raises(ValueError, match=r"A has 1800 rows.*shape \(1799, 3\); expected \(n, k\)"):
        AlgebraicMultigrid(near_null_space=B[1:], block=2).setup(A)
    with pytest.raises(ValueError, match="n a multiple of block"):
        AlgebraicMultigrid(block=7).setup(A)


def test_memory_counts_every_level() -> None:
    A = sp.csr_array(pyamg.gallery.poisson((60, 60), format="csr"))
    finest = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    nbytes = AlgebraicMultigrid().setup(A).nbytes
    assert 1.3 * finest < nbytes < 4 * finest
    two = FaceStencil.from_coefficient(torch.ones(2, 17, 17).double(), Grid((17, 17)))
    assert AlgebraicMultigrid().setup(two).nbytes == 2 * AlgebraicMultigrid().setup(two.select(0)).nbytes


# What it refuses


class Opaque(LinearOperator):
    shape, dtype, device, symmetric = (4,), torch.float64, torch.device("cpu"), True

    def apply(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("A", "error", "sentence"),
    [
        (Opaque(), TypeError, r"Opaque does not define to_sparse\(\); give a FaceStencil, a SciPy sparse"),
        (
            sp.csr_array(np.array([[2.0, 1.0], [0.5, 2.0]])),
            ValueError,
            r"A is not symmetric: .* by up to 2e-01 .*GMRES",
        ),
        (sp.csr_array(np.diag([1.0, np.nan])), ValueError, "NaN or infinite"),
        (sp.csr_array(np.diag([1.0, np.inf])), ValueError, "NaN or infinite"),
        (
            sp.csr_array(np.eye(3, dtype=complex)),
            ValueError,
            "complex128.*expected a square matrix in float32 or float64",
        ),
        ("matrix", TypeError, "A is a str; expected an opflow LinearOperator"),
    ],
    ids=["no matrix", "unsymmetric", "NaN", "inf", "complex", "string"],
)
@methods
def test_refuses_in_a_sentence(method: str, A, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        AlgebraicMultigrid(method).setup(A)


def test_wrong_options_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="method is 'sa'; choose one of smoothed-aggregation, ruge-stueben"):
        AlgebraicMultigrid("sa")
    with pytest.raises(ValueError, match="block is 0"):
        AlgebraicMultigrid(block=0)
    with pytest.raises(ValueError, match="ruge-stueben treats scalar problems"):
        AlgebraicMultigrid("ruge-stueben", block=2)
    with pytest.raises(RuntimeError, match=r"before setup\(A\)"):
        AlgebraicMultigrid().apply(randn(1, 4))


def test_without_pyamg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyamg", None)
    with pytest.raises(ImportError, match=r"pip install 'opflow\[amg\]'"):
        AlgebraicMultigrid()
