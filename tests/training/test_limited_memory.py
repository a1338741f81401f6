"""Limited-memory self-scaled BFGS: equal to the dense one while all pairs are kept, convergence, change of points, state."""

import pytest
import torch
from rosenbrock import closure_of, rosenbrock, start
from small_run import square
from torch import nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.limited_memory import LimitedMemoryBFGS
from opflow.training.loop import fit
from opflow.training.quasi_newton import SelfScaledBroyden


def test_the_direction_is_the_product_of_the_updates() -> None:
    """-H g with H built as a matrix, update by update, from the pairs that are kept."""
    x = start(12)
    optimizer = LimitedMemoryBFGS([x], history=7, iterations=30)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    memory, identity = optimizer._memory, torch.eye(12, dtype=torch.float64)
    s, y = memory["steps"][-1], memory["gradient_changes"][-1]
    h = identity * (s @ y) / (y @ y)
    assert min(memory["taus"]) < 0.9
    for s, y, tau in zip(memory["steps"], memory["gradient_changes"], memory["taus"], strict=True):
        v = identity - torch.outer(y, s) / (s @ y)
        h = v.T @ h @ v / tau + torch.outer(s, s) / (s @ y)
    g = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(optimizer._direction(g), -h @ g, rtol=1e-8)
    assert torch.linalg.norm(h @ y - s) < 1e-10 * torch.linalg.norm(s)


@pytest.mark.parametrize("history", [5, 30])
def test_rosenbrock_in_many_dimensions(history) -> None:
    x = start(100)
    optimizer = LimitedMemoryBFGS([x], history=history, iterations=3000, tolerance_grad=1e-8)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    report = optimizer.report
    assert report.outcome == "converged"
    assert torch.allclose(x, torch.ones_like(x), atol=1e-6)
    assert report.iterations < 700
    assert report.evaluations < 1.25 * report.iterations
    assert len(optimizer._memory["steps"]) == history


def test_pairs_outlive_a_change_of_the_objective() -> None:
    torch.manual_seed(0)
    scale = torch.logspace(0, 3, 20, dtype=torch.float64)
    target = torch.zeros(20, dtype=torch.float64)
    x = nn.Parameter(torch.randn(20, dtype=torch.float64))
    optimizer = LimitedMemoryBFGS([x], iterations=500, tolerance_grad=1e-8)
    closure = closure_of(optimizer, lambda x: 0.5 * (scale * (x - target).square()).sum(), x)
    optimizer.step(closure)
    first = optimizer.report.iterations
    target = torch.randn(20, dtype=torch.float64)
    optimizer.step(closure)
    assert optimizer.report.outcome == "converged"
    assert optimizer.report.iterations - first < first / 2


def test_more_parameters_than_a_dense_method_takes_and_a_checkpoint_bit_for_bit(tmp_path) -> None:
    x = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    batch, loss = Batch(input=x, target=x.prod(1, keepdim=True)), DataMisfit(square)

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 110), nn.Tanh(), nn.Linear(110, 110), nn.Tanh(), nn.Linear(110, 1))

    def optimizer_of(model: nn.Module) -> LimitedMemoryBFGS:
        return LimitedMemoryBFGS(model.parameters(), history=6, iterations=5)

    whole = network(0)
    with pytest.raises(ValueError, match="LimitedMemoryBFGS"):
        SelfScaledBroyden(whole.parameters())
    expected = [r.loss for r in fit(whole, loss, [batch], optimizer_of(whole), epochs=6)]
    assert expected[-1] < 0.05 * expected[0]
    half = network(0)
    optimizer = optimizer_of(half)
    for record in fit(half, loss, [batch], optimizer, epochs=3):
        save_checkpoint(tmp_path, half, optimizer=optimizer, record=record)
    resumed = network(4)
    optimizer = optimizer_of(resumed)
    began = load_checkpoint(tmp_path, resumed, optimizer=optimizer)
    assert [r.loss for r in fit(resumed, loss, [batch], optimizer, epochs=6, start=began)] == expected[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_fit_takes_muon_for_matrices() -> None:
    """torch.optim.Muon takes matrices only: layers without biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    x = torch.rand(40, 2)
    batch = Batch(input=x, target=torch.cat([x, x.square()], 1))
    losses = [
        r.loss
        for r in fit(model, DataMisfit(square), [batch], torch.optim.Muon(model.parameters(), lr=0.02), epochs=60)
    ]
    assert losses[-1] < 0.5 * losses[0]
