"""Causal weights, balances of terms, and the selection of a state."""

import math

import pytest
import torch
from torch import nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.losses.norms import mean_squared_error
from opflow.losses.objective import total
from opflow.losses.residual import PDEResidual
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.training.loop import fit
from opflow.training.weighting import CausalWeights, GradientNormBalance, StateSelection, TangentKernelBalance


def points(n: int) -> Batch:
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return Batch(coords=torch.stack([2 * t, torch.zeros_like(t)], 1))


def test_causal_weights_are_the_formula() -> None:
    batch = points(12)  # three in each of four slabs of (0, 2)
    sizes = torch.linspace(0.3, 1.2, 12, dtype=torch.float64)
    causal = CausalWeights((0.0, 2.0), slabs=4, epsilon=0.7)
    weights = causal.weigh(batch, sizes)
    means = sizes.square().reshape(4, 3).mean(1)
    expected = torch.tensor([math.exp(-0.7 * float(means[:i].sum())) for i in range(4)], dtype=torch.float64)
    assert torch.allclose(weights, expected.repeat_interleave(3))
    assert batch.weight is weights
    assert causal.epsilon == 0.7


def test_causal_weights_of_several_equations_sum_the_squares_and_time_may_come_last() -> None:
    batch = points(12)
    one = CausalWeights((0.0, 2.0), slabs=4).weigh(batch, torch.full((12,), math.sqrt(2.0)))
    turned = Batch(coords=batch.coords.flip(1))
    two = CausalWeights((0.0, 2.0), slabs=4, axis=1).weigh(turned, torch.ones(2, 12))
    assert torch.allclose(one, two)


def test_epsilon_follows_the_residual() -> None:
    """As the residual falls, epsilon rises by threes; where it jumps, epsilon falls until the slabs' weights add to two."""
    causal, batch = CausalWeights((0.0, 2.0), slabs=10, epsilon=1.0), points(100)
    causal.weigh(batch, torch.full((100,), 0.1))
    assert causal.epsilon == 3.0
    for _ in range(3):
        causal.weigh(batch, torch.full((100,), 0.1))
    assert causal.epsilon == 9.0  # exp(-9 * 0.09) < 1/2: no more
    weights = causal.weigh(batch, torch.full((100,), 100.0))
    assert 0.2 <= float(weights.mean()) < 0.4
    assert causal.epsilon < 1e-3


def test_solved_slabs_let_the_next_ones_in() -> None:
    batch, sizes = points(40), torch.ones(40)
    causal = CausalWeights((0.0, 2.0), slabs=4, epsilon=5.0)
    unsolved = causal.weigh(batch, sizes).clone()
    sizes[:10] = 1e-6
    solved = CausalWeights((0.0, 2.0), slabs=4, epsilon=5.0).weigh(batch, sizes)
    assert unsolved[15] < 0.6
    assert solved[15] > 0.99
    assert solved[25] < 0.01


def test_an_empty_slab_and_a_solved_problem() -> None:
    batch = Batch(coords=torch.tensor([[0.05], [0.95]]))
    causal = CausalWeights((0.0, 1.0), slabs=5, epsilon=1.0)
    assert torch.allclose(causal.weigh(batch, torch.tensor([1.0, 9.0])), torch.tensor([1.0, math.exp(-1.0)]))
    assert torch.equal(causal.weigh(batch, torch.zeros(2)), torch.ones(2))
    assert causal.epsilon == 1.0  # nothing was learned from zeros


def test_causal_weights_refuse_what_does_not_fit() -> None:
    causal = CausalWeights((0.0, 1.0))
    with pytest.raises(ValueError, match="beyond the interval"):
        causal.weigh(points(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"\(4, 2\) and the sizes \(3,\)"):
        causal.weigh(points(4), torch.ones(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        CausalWeights((0.0, 2.0)).weigh(points(2), torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="beginning < end"):
        CausalWeights((1.0, 1.0))
    causal.load_state_dict({"epsilon": 81.0})
    assert causal.state_dict() == {"epsilon": 81.0}


def test_residual_losses_take_the_weights() -> None:
    model, batch = nn.Linear(2, 1).double(), points(6)
    loss = PDEResidual(lambda u, a: u.d("t") + u.value**2, AutogradDerivatives(("t", "x")), name="r")
    sizes = loss.point_sizes(model, batch)
    weights = CausalWeights((0.0, 2.0), slabs=3).weigh(batch, sizes)
    assert torch.allclose(loss(model, batch)["r"], (weights * sizes.square()).mean())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def terms_of(scale: float):
    """A residual, and data in units that make their term `scale`^2 times as large."""
    residual = PDEResidual(lambda u, a: u.d("t") + u.d("x"), AutogradDerivatives(("t", "x")), name="r", on="interior")
    misfit = DataMisfit(lambda p, t, w: scale**2 * mean_squared_error(p, t, w), on="data")
    return {"residual": 1.0 * residual, "data": 1.0 * misfit}


def two_batches() -> dict[str, Batch]:
    x = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"interior": Batch(coords=x), "data": Batch(coords=x[:7], target=torch.ones(7, 1, dtype=torch.float64))}


def test_gradient_norms_are_balanced_whatever_the_units() -> None:
    """Once updated without memory, the weighted mean gradient of each term is the reference's largest."""
    model, batch = network(), two_batches()
    for scale in (1.0, 1e-3):
        terms = terms_of(scale)
        weights = GradientNormBalance(terms, "residual", decay=0.0).update(model, batch)
        gradients = {
            name: torch.cat(
                [
                    g.reshape(-1)
                    for g in torch.autograd.grad(total(term(model, batch)), list(model.parameters()), allow_unused=True)
                    if g is not None
                ]
            )
            for name, term in terms.items()
        }
        assert weights["residual"] == 1.0
        assert float(gradients["data"].abs().mean()) == pytest.approx(float(gradients["residual"].abs().max()))


def test_the_average_forgets_slowly() -> None:
    model, batch, terms = network(), two_batches(), terms_of(1.0)
    aim = GradientNormBalance(terms_of(1.0), "residual", decay=0.0).update(model, batch)["data"]
    balance = GradientNormBalance(terms, "residual", decay=0.75)
    assert balance.update(model, batch)["data"] == pytest.approx(0.75 + 0.25 * aim)
    assert terms["data"].weight == balance.weights["data"]


def test_tangent_kernels_are_balanced() -> None:
    """lambda_i tr K_ii is the same for all terms, and the traces are those of the kernel built row by row."""
    model, batch = network(), two_batches()
    terms = {"residual": terms_of(1.0)["residual"], "data": 1.0 * DataMisfit(mean_squared_error, on="data")}
    parameters, traces = list(model.parameters()), {}
    for name, term in terms.items():
        rows = term.residuals(model, batch)
        traces[name] = sum(
            float(
                sum(
                    g.square().sum()
                    for g in torch.autograd.grad(r, parameters, retain_graph=True, allow_unused=True)
                    if g is not None
                )
            )
            for r in rows
        )
    weights = TangentKernelBalance(terms, decay=0.0).update(model, batch)
    for name, trace in traces.items():
        assert weights[name] * trace == pytest.approx(sum(traces.values()))


def test_a_balance_keeps_its_weights_in_a_state_and_refuses_what_it_cannot_balance() -> None:
    terms = terms_of(1.0)
    balance = GradientNormBalance(terms, "residual")
    terms["data"].weight = 7.0
    state = balance.state_dict()
    other = GradientNormBalance(terms_of(1.0), "residual")
    other.load_state_dict(state)
    assert other.weights == {"residual": 1.0, "data": 7.0}
    with pytest.raises(ValueError, match="the terms a, data"):
        other.load_state_dict({"a": 1.0, "data": 2.0})
    with pytest.raises(ValueError, match="scaled losses"):
        GradientNormBalance({"residual": terms["residual"].loss, "data": terms["data"]}, "residual")
    with pytest.raises(ValueError, match="reference is 'pde'"):
        GradientNormBalance(terms, "pde")
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        TangentKernelBalance(terms, decay=1.0)


def test_a_term_without_a_gradient_keeps_its_weight() -> None:
    model, batch, terms = network(), two_batches(), terms_of(0.0)
    weights = GradientNormBalance(terms, "residual", decay=0.0).update(model, batch)
    assert weights == {"residual": 1.0, "data": 1.0}


def test_the_best_state_is_kept_not_the_last() -> None:
    model, batch = (
        network(),
        Batch(input=torch.rand(9, 2, dtype=torch.float64), target=torch.ones(9, 1, dtype=torch.float64)),
    )
    loss, selection, seen = DataMisfit(mean_squared_error), StateSelection(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9)  # too large: the loss jumps

    def validate(model: nn.Module) -> float:
        return float(total(loss(model, batch)).detach())

    for record in fit(model, loss, [batch], optimizer, epochs=25, validate=validate):
        seen.append(record.validation)
        assert selection.offer(record.validation) == record.best
    assert seen[-1] > min(seen)
    selection.restore()
    assert validate(model) == pytest.approx(min(seen), rel=1e-12)
    assert selection.value == min(seen)


def test_no_state_without_a_finite_value() -> None:
    selection = StateSelection(network())
    assert not selection.offer(math.nan)
    assert not selection.offer(None)
    with pytest.raises(RuntimeError, match="no state was kept"):
        selection.restore()
    with pytest.raises(ValueError, match="no module"):
        StateSelection()
