"""Levenberg-Marquardt: known answers, dense and matrix-free alike, in fit, refusals and its state."""

import itertools
import math

import pytest
import torch
from small_run import square
from torch import nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.losses.objective import Objective
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.jacobian import LeastSquares
from opflow.training.levenberg_marquardt import LevenbergMarquardt
from opflow.training.loop import fit
from opflow.training.quasi_newton import SelfScaledBroyden


class Decay(nn.Module):
    """a exp(-b t), the textbook curve fit."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, t):
        return self.p[0] * torch.exp(-self.p[1] * t)


def decay_batch() -> Batch:
    t = torch.linspace(0, 4, 30, dtype=torch.float64)[:, None]
    return Batch(coords=t, target=2.5 * torch.exp(-1.3 * t))


class Residuals(Objective):
    """r(p) of a plain function, |r|^2 as the loss."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def residuals(self, model, batch):
        return self.function(model.p)

    def forward(self, model, batch):
        return {"squares": self.residuals(model, batch).square().sum()}


@pytest.mark.parametrize("dense", [4000, 1], ids=["dense", "matrix-free"])
def test_a_curve_fit_converges_quadratically(dense) -> None:
    model = Decay(1.0, 0.2)
    optimizer = LevenbergMarquardt(model.parameters(), dense=dense, tolerance_grad=1e-12, cg_rtol=1e-8)
    problem, losses = LeastSquares(model, DataMisfit(square), decay_batch()), []
    while optimizer.report.outcome != "converged" and len(losses) < 40:
        losses.append(optimizer.step(problem))
    assert torch.allclose(model.p, torch.tensor([2.5, 1.3], dtype=torch.float64), atol=1e-10)
    assert all(b <= a for a, b in itertools.pairwise(losses))
    late = [loss for loss in losses if 1e-20 < loss < 1e-4]
    assert all(b < 1e-2 * a for a, b in itertools.pairwise(late))


def test_one_step_is_the_normal_equations() -> None:
    """(J^T J + mu I) p = -J^T r with mu = damping max diag(J^T J), for more rows than columns and fewer."""
    for rows in (9, 3):
        torch.manual_seed(0)
        a, b = torch.randn(rows, 5, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
        model = nn.Module()
        model.p = nn.Parameter(torch.zeros(5, dtype=torch.float64))
        optimizer = LevenbergMarquardt(model.parameters(), damping=0.05)
        optimizer.step(LeastSquares(model, Residuals(lambda p, a=a, b=b: a @ p - b), Batch()))
        mu = 0.05 * a.square().sum(0).max()
        expected = torch.linalg.solve(a.T @ a + mu * torch.eye(5, dtype=torch.float64), a.T @ b)
        assert torch.allclose(model.p, expected, atol=1e-12)


def test_the_matrix_free_step_is_the_dense_one() -> None:
    batch = Batch(coords=torch.rand(40, 2, dtype=torch.float64), target=torch.ones(40, 1, dtype=torch.float64))
    found = []
    for dense in (4000, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        optimizer = LevenbergMarquardt(model.parameters(), dense=dense, cg_rtol=1e-10)
        optimizer._memory["mu"] = 0.01
        optimizer.step(LeastSquares(model, DataMisfit(square), batch))
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-8)


def test_rosenbrock_as_least_squares_never_rises() -> None:
    model = nn.Module()
    model.p = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    loss = Residuals(lambda p: torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]]))
    optimizer, losses = LevenbergMarquardt(model.parameters(), tolerance_grad=1e-12), []
    while optimizer.report.outcome != "converged" and len(losses) < 60:
        losses.append(optimizer.step(LeastSquares(model, loss, Batch())))
    assert optimizer.report.outcome == "converged"
    assert torch.allclose(model.p, torch.ones(2, dtype=torch.float64), atol=1e-9)
    assert all(b <= a for a, b in itertools.pairwise(losses))


def test_a_trial_that_is_not_finite_raises_the_damping() -> None:
    """log(p) - 2 from p = 100: the undamped step leaves the domain of the logarithm."""
    model = nn.Module()
    model.p = nn.Parameter(torch.tensor([100.0], dtype=torch.float64))
    optimizer = LevenbergMarquardt(model.parameters(), damping=1e-8, tolerance_grad=1e-10)
    problem = LeastSquares(model, Residuals(lambda p: torch.log(p) - 2), Batch())
    for _ in range(80):
        optimizer.step(problem)
    assert optimizer.report.outcome == "converged"
    assert float(model.p.detach()) == pytest.approx(math.exp(2.0), rel=1e-9)


def test_where_nothing_lower_exists_it_stalls_with_the_weights_kept() -> None:
    model = nn.Module()
    model.p = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    calls = []

    def rises(p):  # higher at every look
        calls.append(1)
        return p * 0 + len(calls) + p - p.detach()

    optimizer = LevenbergMarquardt(model.parameters(), max_trials=4)
    optimizer.step(LeastSquares(model, Residuals(rises), Batch()))
    assert (optimizer.report.outcome, optimizer.report.failures) == ("stalled", 1)
    assert float(model.p.detach()) == 0.3


def test_fit_and_a_checkpoint_bit_for_bit(tmp_path) -> None:
    loss, batch = DataMisfit(square), decay_batch()
    whole = Decay(1.0, 0.2)
    expected = [r.loss for r in fit(whole, loss, [batch], LevenbergMarquardt(whole.parameters()), epochs=6)]
    assert expected[-1] < 1e-6 * expected[0]
    half = Decay(1.0, 0.2)
    optimizer = LevenbergMarquardt(half.parameters())
    for record in fit(half, loss, [batch], optimizer, epochs=3):
        save_checkpoint(tmp_path, half, optimizer=optimizer, record=record)
    resumed = Decay(0.0, 0.0)
    optimizer = LevenbergMarquardt(resumed.parameters())
    start = load_checkpoint(tmp_path, resumed, optimizer=optimizer)
    assert [r.loss for r in fit(resumed, loss, [batch], optimizer, epochs=6, start=start)] == expected[3:]
    assert torch.equal(whole.p, resumed.p)


def test_fewer_steps_than_quasi_newton_on_a_network() -> None:
    x = torch.rand(80, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(coords=x, target=torch.sin(3 * x[:, :1]) * x[:, 1:])
    final = {}
    for make in (LevenbergMarquardt, lambda p: SelfScaledBroyden(p, iterations=1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        optimizer = make(model.parameters())
        for record in fit(model, DataMisfit(square), [batch], optimizer, epochs=40):
            final[type(optimizer).__name__] = record.loss
    assert final["LevenbergMarquardt"] < 1e-3 * final["SelfScaledBroyden"]


def test_what_does_not_fit_is_refused() -> None:
    model = Decay(1.0, 1.0)
    optimizer = LevenbergMarquardt(model.parameters())
    with pytest.raises(TypeError, match="needs the residuals"):
        optimizer.step(lambda: 1.0)
    with pytest.raises(TypeError, match=r"needs loss\.residuals"):
        fit(model, lambda model, batch: {"a": model.p.sum()}, [decay_batch()], optimizer, epochs=1)
    with pytest.raises(ValueError, match="autocast"):
        fit(model, DataMisfit(square), [decay_batch()], optimizer, epochs=1, autocast=torch.bfloat16)
    for arguments, message in (
        ({"damping": 0.0}, "damping is 0.0"),
        ({"max_trials": 0}, "max_trials is 0"),
        ({"tolerance_grad": -1.0}, "tolerance_grad is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LevenbergMarquardt(model.parameters(), **arguments)
