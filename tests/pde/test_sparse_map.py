"""Sparse products and solves: values, and derivatives of every kind."""

from __future__ import annotations

import pytest
import torch

from opflow.pde import SparseFactors, SparseMatrix

sparse = pytest.importorskip("scipy.sparse")


def matrix(n: int = 7, *, positive: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, n, dtype=torch.float64, generator=generator) * (torch.rand(n, n, generator=generator) < 0.5)
    return a @ a.T + torch.eye(n) if positive else a + 4 * torch.eye(n)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_solves_equal_dense_ones_with_all_derivatives(positive: bool, columns: tuple[int, ...]) -> None:
    A = matrix(positive=positive)
    factors = SparseFactors(sparse.csr_array(A.numpy()), positive=positive)
    b = torch.randn(7, *columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.allclose(A @ factors.solve(b), b, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(factors.solve, (b,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(factors.solve, (b,))
    several = torch.randn(4, 7, *columns, dtype=torch.float64)
    assert torch.allclose(torch.vmap(factors.solve)(several), torch.stack([factors.solve(v) for v in several]))


def test_products_equal_dense_ones_with_all_derivatives() -> None:
    A = matrix()[:3]
    B = SparseMatrix(sparse.csr_array(A.numpy()))
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.allclose(B(x), A @ x)
    assert torch.autograd.gradcheck(B, (x,), check_forward_ad=True) and torch.autograd.gradgradcheck(B, (x,))
    several = torch.randn(2, 7, 4, dtype=torch.float64)
    assert torch.allclose(torch.vmap(B, in_dims=2)(several.movedim(1, 0)), (A @ several).movedim(-1, 0).movedim(1, -1))
    assert B(x.detach().float()).dtype == torch.float32


def test_what_cannot_be_is_said() -> None:
    singular = sparse.csr_array([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]])  # a closed box
    for positive in (False, True):
        with pytest.raises(ValueError, match="singular to rounding"):
            SparseFactors(singular, positive=positive)
    factors = SparseFactors(sparse.eye_array(3))
    with pytest.raises(ValueError, match=r"the vector has shape \(4,\) but the matrix is \(3, 3\)"):
        factors.solve(torch.ones(4))
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        SparseMatrix(sparse.eye_array(3))(torch.ones(1, 1, 3))
