"""Losses add, scale, pick their batch, and refuse what would go wrong silently."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.losses.objective import Objective, Sum, total


def square(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return (prediction - target).square().mean()


class Parameter(Objective):
    """|theta|^2 / 2 of its own unknown, to see that parameters of a loss are found."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, model, batch):
        return {"prior": self.theta.square().sum() / 2}

    def residuals(self, model, batch):
        return self.theta


BATCH = Batch(input=torch.full((2, 1, 3), 2.0), target=torch.zeros(2, 1, 3))


def test_terms_merge_and_scale():
    loss = DataMisfit(square) + 0.1 * Parameter() + 2 * DataMisfit(square, name="again")
    terms = loss(nn.Identity(), BATCH)
    values = {name: term.item() for name, term in terms.items()}
    assert values == pytest.approx({"misfit": 4.0, "prior": 1.25, "again": 8.0})
    assert total(terms).item() == pytest.approx(13.25)
    assert loss.names == ("misfit", "again")
    assert len(list(loss.parameters())) == 1


def test_sum_is_flat_and_python_sum_works():
    parts = [DataMisfit(square, name=name) for name in "abc"]
    loss = sum(parts)
    assert isinstance(loss, Sum) and list(loss.losses) == parts
    assert sum([parts[0]]) is parts[0]


def test_residuals_concatenate_with_square_roots_of_the_weights():
    loss = DataMisfit(square) + 4 * Parameter()
    r = loss.residuals(nn.Identity(), BATCH)
    assert torch.equal(r, torch.tensor([2.0] * 6 + [6.0, 8.0]))
    # |r|^2 / 2 of a scaled loss is the scaled loss.
    part = 0.3 * Parameter()
    half_square = part.residuals(nn.Identity(), BATCH).square().sum() / 2
    assert half_square.item() == pytest.approx(total(part(nn.Identity(), BATCH)).item())


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1, 1)])
def test_residuals_carry_the_quadrature_weight(shape):
    batch = Batch(input=BATCH.input, target=BATCH.target, weight=torch.full(shape, 0.25))
    r = DataMisfit(square).residuals(nn.Identity(), batch)
    assert torch.equal(r, torch.full((6,), 1.0))


def test_residual_weight_of_points_lacks_the_channel_axis():
    batch = Batch(input=torch.ones(2, 5, 3), target=torch.zeros(2, 5, 3), weight=torch.arange(5.0))
    r = DataMisfit(square).residuals(nn.Identity(), batch).view(2, 5, 3)
    assert torch.equal(r[0, :, 0], torch.arange(5.0).sqrt())
    with pytest.raises(ValueError, match="fits neither the grid nor the points"):
        bad = Batch(input=batch.input, target=batch.target, weight=torch.ones(4))
        DataMisfit(square).residuals(nn.Identity(), bad)


def test_added_losses_look_at_one_prediction():
    """Twice as fast, and of a stochastic model they judge the same outcome."""
    calls = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, mask=None):
            calls.append(mask)
            return self.weight * x + torch.rand(())

    batch = Batch(torch.ones(2, 1, 4), torch.zeros(2, 1, 4), mask=torch.ones(2, 4))
    model = Model()
    loss = DataMisfit(square) + 0.5 * (DataMisfit(square, name="same") + DataMisfit(square, name="again"))
    terms = loss(model, batch)
    assert len(calls) == 1 and calls[0] is batch.mask
    assert terms["same"] == terms["again"] == 0.5 * terms["misfit"]
    sum(terms.values()).backward()
    assert model.weight.grad > 0
    assert loss(model, batch)["misfit"] != terms["misfit"], "the next evaluation calls the model again"
    loss.residuals(model, batch)
    assert len(calls) == 3
    # Another batch of the step is another prediction.
    both = DataMisfit(square, on="a") + DataMisfit(square, name="b", on="b")
    both(model, {"a": batch, "b": Batch(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))})
    assert len(calls) == 5


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match="both called 'misfit'"):
        DataMisfit(square) + 0.5 * DataMisfit(square)
    with pytest.raises(ValueError, match="both called 'prior'"):  # names not declared: seen at the first call
        (Parameter() + Parameter())(nn.Identity(), BATCH)


def test_on_picks_one_of_a_dict():
    step = {"interior": BATCH, "data": Batch(input=torch.ones(1, 1, 3), target=torch.zeros(1, 1, 3))}
    assert float(DataMisfit(square, on="data")(nn.Identity(), step)["misfit"]) == 1.0
    with pytest.raises(ValueError, match="interior, data; say with on="):
        DataMisfit(square)(nn.Identity(), step)
    with pytest.raises(ValueError, match="looks at on='boundary'"):
        DataMisfit(square, on="boundary")(nn.Identity(), step)
    with pytest.raises(ValueError, match="one unnamed Batch"):
        DataMisfit(square, on="data")(nn.Identity(), BATCH)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), True])
def test_weights_are_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="finite number >= 0"):
        weight * DataMisfit(square)


def test_only_numbers_scale_and_only_losses_add():
    with pytest.raises(TypeError):
        DataMisfit(square) * "2"
    with pytest.raises(TypeError):
        DataMisfit(square) + 1


def test_misfit_refuses_what_would_broadcast_or_is_missing():
    with pytest.raises(ValueError, match="no target"):
        DataMisfit(square)(nn.Identity(), Batch(input=torch.ones(1, 1, 2)))
    with pytest.raises(ValueError, match="must be equal"):
        DataMisfit(square)(nn.Identity(), Batch(input=torch.ones(2, 1, 3), target=torch.ones(2, 3)))
    with pytest.raises(TypeError, match="a function misfit"):
        DataMisfit("relative_l2")


def test_an_objective_without_residuals_says_so():
    with pytest.raises(NotImplementedError, match="no sum of squares"):
        Objective().residuals(nn.Identity(), BATCH)
    with pytest.raises(NotImplementedError, match="states no forward"):
        Objective()(nn.Identity(), BATCH)


def test_total_wants_named_scalars():
    assert float(total({"one": torch.tensor(1.0)})) == 1.0
    with pytest.raises(ValueError, match="no terms"):
        total({})
    with pytest.raises(ValueError, match=r"'one' of the loss is shape \(2,\)"):
        total({"one": torch.ones(2)})
    with pytest.raises(TypeError, match="returned Tensor"):
        total(torch.ones(()))
