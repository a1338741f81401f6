"""The loss of a preconditioner: the energy that conjugate gradients leave of the error, as the solver itself leaves it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.conjugate_gradient import EnergyReduction
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil

A = FaceStencil([1 + torch.rand(1, 8, 6).double(), 1 + torch.rand(1, 7, 7).double()])


class Scaling(nn.Module):
    """M r = factor s r, with a trainable field s."""

    linear = symmetric = deterministic = True

    def __init__(self, s: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.s, self.factor = nn.Parameter(s), factor

    def setup(self, operator: object) -> Scaling:
        return self

    def apply(self, r: Tensor) -> Tensor:  # type: ignore[override]
        return self.factor * self.s * r


def itself(model: nn.Module) -> nn.Module:
    return model


def solutions(n: int = 3) -> Tensor:
    return torch.randn(n, 1, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 4])
def test_is_what_the_solver_leaves(steps: int) -> None:
    x, M = solutions(), Scaling(0.5 + torch.rand(7, 6).double())
    rates = EnergyReduction(A, itself, steps).rates(M, Batch(target=x))
    found = ConjugateGradient(M, max_steps=steps).solve(A, A.apply(x[:, 0])).x
    error, start = x[:, 0] - found, x[:, 0]
    left = (error * A.apply(error)).sum((1, 2)) / (start * A.apply(start)).sum((1, 2))
    torch.testing.assert_close(rates, left.log() / (2 * steps))
    torch.testing.assert_close(EnergyReduction(A, itself, steps)(M, Batch(target=x))["energy"], rates.mean())


def test_steps_before_leave_their_error() -> None:
    x, M = solutions(), Scaling(0.5 + torch.rand(7, 6).double())
    left = x - ConjugateGradient(M, max_steps=3).solve(A, A.apply(x[:, 0])).x[:, None]
    rates = EnergyReduction(A, itself, 2, after=lambda batch: 3).rates(M, Batch(target=x))
    torch.testing.assert_close(rates, EnergyReduction(A, itself, 2).rates(M, Batch(target=left)))
    assert rates.requires_grad


def test_the_size_of_the_preconditioner_does_not_matter() -> None:
    s, batch = 0.5 + torch.rand(7, 6).double(), Batch(target=solutions())
    loss = EnergyReduction(A, itself)
    torch.testing.assert_close(loss.rates(Scaling(s), batch), loss.rates(Scaling(s, 1e-6), batch))


def test_gradient() -> None:
    s, batch = (0.5 + torch.rand(7, 6).double()).requires_grad_(), Batch(target=solutions(1))
    loss = EnergyReduction(A, itself, steps=3)

    class Given(Scaling):
        def __init__(self, s: Tensor) -> None:
            nn.Module.__init__(self)
            self.given = s

        def apply(self, r: Tensor) -> Tensor:  # type: ignore[override]
            return self.given * r

    assert torch.autograd.gradcheck(lambda s: loss(Given(s), batch)["energy"], (s,))


def test_training_improves_the_preconditioner() -> None:
    """A badly scaled operator: gradient descent on the loss finds a scaling that needs fewer steps."""
    scale = torch.logspace(0, 3, 42, dtype=torch.float64).view(1, 7, 6)
    B = FaceStencil([torch.ones(1, 8, 6).double(), torch.ones(1, 7, 7).double()], reaction=scale)
    model = Scaling(torch.ones(7, 6).double())
    x, loss = solutions(8), EnergyReduction(B, itself)
    before = loss(model, Batch(target=x))["energy"].item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, Batch(target=x))["energy"].backward()
        optimizer.step()
    after = loss(model, Batch(target=solutions(9)[8:]))["energy"].item()
    assert after < before - 0.3


def test_a_known_solution_and_nothing_to_reduce() -> None:
    one = FaceStencil([torch.ones(1, 2, 1).double(), torch.ones(1, 1, 2).double()])
    rates = EnergyReduction(one, itself).rates(
        Scaling(torch.ones(1, 1).double()), Batch(target=torch.tensor([2.0, 0.0]).double().view(2, 1, 1, 1))
    )
    assert rates[0] < -3 and rates[1] == 0  # one step solves one unknown; zero has no error


def test_operators_by_batch_and_refusals() -> None:
    seen = []

    def operator(batch: Batch) -> FaceStencil:
        seen.append(batch)
        return A

    batch = Batch(target=solutions())
    value = EnergyReduction(operator, itself)(Scaling(torch.ones(7, 6).double()), batch)["energy"]
    assert seen == [batch] and value < 0
    with pytest.raises(ValueError, match="steps is 0"):
        EnergyReduction(A, itself, 0)
    with pytest.raises(ValueError, match="target has shape None"):
        EnergyReduction(A, itself)(Scaling(torch.ones(7, 6).double()), Batch())
