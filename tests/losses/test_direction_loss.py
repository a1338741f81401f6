"""The loss of a search direction: the algebra of one exact step, blind to sign and size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch, Once
from opflow.losses.conjugate_direction import DirectionLoss
from opflow.solvers.face_stencil import FaceStencil


class Direction(nn.Module):
    """d given, whatever r is; remembers the operator it was told."""

    def __init__(self, d: Tensor) -> None:
        super().__init__()
        self.d, self.operator = nn.Parameter(d), None

    def setup(self, A: object) -> None:
        self.operator = A

    def forward(self, r: Tensor) -> Tensor:
        return self.d


A = FaceStencil([1 + torch.rand(1, 6, 4).double(), 1 + torch.rand(1, 5, 5).double()])


def fields() -> tuple[Tensor, Tensor, Tensor]:
    """x, r = A x and some d, (3, 1, 5, 4)"""
    x, d = torch.randn(2, 3, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, A.apply(x[:, 0])[:, None], d


def dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).flatten(1).sum(1)


def test_both_norms_are_what_one_exact_step_leaves() -> None:
    x, r, d = fields()
    Ad = A.apply(d[:, 0])[:, None]
    alpha = (dot(d, r) / dot(d, Ad)).view(-1, 1, 1, 1)
    left, error = r - alpha * Ad, x - alpha * d
    energy = dot(error, A.apply(error[:, 0])[:, None]) / dot(x, r)
    residual = DirectionLoss(A)(Direction(d), Batch(input=r))["direction"]
    torch.testing.assert_close(residual, (dot(left, left) / dot(r, r)).mean())
    torch.testing.assert_close(
        DirectionLoss(A, "energy")(Direction(d), Batch(input=r, target=x))["direction"], energy.mean()
    )


@pytest.mark.parametrize("norm", ["residual", "energy"])
def test_sign_and_size_do_not_matter_and_the_solution_is_perfect(norm: str) -> None:
    x, r, d = fields()
    loss, batch = DirectionLoss(A, norm), Batch(input=r, target=x)
    value = loss(Direction(d), batch)["direction"]
    for factor in (-1.0, 1e-3, -7.0):
        torch.testing.assert_close(loss(Direction(factor * d), batch)["direction"], value)
    assert abs(loss(Direction(-x), batch)["direction"].item()) < 1e-12


def test_a_useless_direction_counts_as_no_step_and_its_gradient_is_finite() -> None:
    _, r, _ = fields()
    model = Direction(torch.zeros_like(r))
    value = DirectionLoss(A)(model, Batch(input=r))["direction"]
    value.backward()
    assert value.item() == pytest.approx(1.0) and bool(model.d.grad.isfinite().all())


@pytest.mark.parametrize("norm", ["residual", "energy"])
def test_gradients(norm: str) -> None:
    x, r, d = fields()

    def value(d: Tensor) -> Tensor:
        return DirectionLoss(A, norm)(lambda r: d, Batch(input=r, target=x))["direction"]

    assert torch.autograd.gradcheck(value, (d.requires_grad_(),))


def test_residuals_square_to_the_loss() -> None:
    _, r, d = fields()
    loss = DirectionLoss(A)
    rho = loss.residuals(Direction(d), Batch(input=r))
    torch.testing.assert_close(rho.square().sum() / 3, loss(Direction(d), Batch(input=r))["direction"])
    with pytest.raises(NotImplementedError, match="no sum of squares"):
        DirectionLoss(A, "energy").residuals(Direction(d), Batch(input=r))


def test_the_model_is_told_the_operator_of_its_batch_through_any_wrapper() -> None:
    _, r, d = fields()
    twice = FaceStencil([2 * w for w in A.weights])
    loss = DirectionLoss(lambda batch: twice if batch.parameters["double"] else A)
    for double, operator in ((True, twice), (False, A)):
        model = Direction(d)
        value = loss(Once(model), Batch(input=r, parameters={"double": double}))["direction"]
        assert model.operator is operator
        torch.testing.assert_close(value, DirectionLoss(operator)(Direction(d), Batch(input=r))["direction"])
    averaged = torch.optim.swa_utils.AveragedModel(Direction(d))
    DirectionLoss(A)(averaged, Batch(input=r))
    assert averaged.module.operator is A
    assert copy.deepcopy(loss)  # a loss is saved with its run


def test_losses_of_directions_add_and_are_named() -> None:
    x, r, d = fields()
    both = DirectionLoss(A) + 0.5 * DirectionLoss(A, "energy", name="energy")
    assert both.names == ("direction", "energy")
    assert set(both(Direction(d), Batch(input=r, target=x))) == {"direction", "energy"}


def test_float32_networks_train_on_float64_operators() -> None:
    _, r, _ = fields()
    model = nn.Conv2d(1, 1, 3, padding=1).float()
    value = DirectionLoss(A)(model, Batch(input=r.float()))["direction"]
    value.backward()
    assert value.dtype == torch.float64 and model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda r: DirectionLoss(None), TypeError, "operator is a NoneType"),
        (lambda r: DirectionLoss(A, "L2"), ValueError, "norm is 'L2'"),
        (lambda r: DirectionLoss(A)(Direction(r), Batch(input=r[:, 0])), ValueError, "give residuals"),
        (lambda r: DirectionLoss(A)(Direction(r), Batch(target=r)), ValueError, "input has shape None"),
        (lambda r: DirectionLoss(A)(Direction(r[..., 1:]), Batch(input=r)), ValueError, "a direction has the residual's shape"),
        (lambda r: DirectionLoss(A, "energy")(Direction(r), Batch(input=r)), ValueError, r"give it as Batch\(target=x\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_a_sentence(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make(fields()[1])
