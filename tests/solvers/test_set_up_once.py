"""A setup that serves many solves."""

from __future__ import annotations

import copy

import torch

from opflow.solvers import ConjugateGradient, FaceStencil, Multigrid, SetUpOnce, implicit_solve


class Counting(Multigrid):
    setups = 0

    def setup(self, A: FaceStencil) -> Counting:
        Counting.setups += 1
        super().setup(A)
        return self


def box(scale: float = 1.0) -> FaceStencil:
    return FaceStencil([scale * torch.ones(1, 33, 32).double(), scale * torch.ones(1, 32, 33).double()])


def test_one_setup_serves_all_solves_and_gradients() -> None:
    A, b = box(), torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = ConjugateGradient(Multigrid()).solve(A, b)
    Counting.setups = 0
    solver = ConjugateGradient(SetUpOnce(Counting()))
    for _ in range(3):
        found = solver.solve(A, b)
        assert torch.equal(found.x, expected.x) and found.iterations == expected.iterations
    assert Counting.setups == 1
    implicit_solve(A, b.requires_grad_(), solver).sum().backward()
    assert Counting.setups == 1
    copied = copy.deepcopy(SetUpOnce(Counting()).setup(A))
    assert torch.equal(copied.apply(b.detach()[None]), Multigrid().setup(A).apply(b.detach()[None]))


def test_another_operator_costs_iterations_not_correctness() -> None:
    b = torch.ones(32, 32, dtype=torch.float64)
    solver = ConjugateGradient(SetUpOnce(Multigrid()), rtol=1e-8)
    solver.solve(box(), b)
    w = [
        torch.exp(torch.randn(1, *n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        for n in ((33, 32), (32, 33))
    ]
    other = FaceStencil(w)
    found = solver.solve(other, b)
    assert found.converged and (b - other.apply(found.x[None])[0]).norm() <= 1e-8 * b.norm()
    assert found.iterations > ConjugateGradient(Multigrid(), rtol=1e-8).solve(other, b).iterations
