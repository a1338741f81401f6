"""Self-scaled Broyden: the update against the textbook, convergence, cost, what is refused, and its state."""

import math

import numpy as np
import pytest
import torch
from rosenbrock import closure_of, rosenbrock, start
from small_run import square
from torch import nn

from opflow.batch import Batch
from opflow.losses.misfit import DataMisfit
from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.loop import fit
from opflow.training.quasi_newton import BroydenUpdate, SelfScaledBroyden
from opflow.training.step import TrainingDiverged


class Recorded(SelfScaledBroyden):
    """Keeps every pair it learned from, with H before and after."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.history = []

    def _learn(self, s, before, after) -> None:
        old = self.inverse_hessian
        super()._learn(s, before, after)
        self.history.append(
            (old, s, after.gradient - before.gradient, after.step, before.gradient, self.inverse_hessian)
        )


def recorded_run(update: str, size: int = 8) -> Recorded:
    x = start(size)
    optimizer = Recorded([x], update=update, iterations=200, tolerance_grad=1e-9)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    assert optimizer.report.outcome == "converged"
    return optimizer


@pytest.mark.parametrize("update", ["broyden", "bfgs"])
def test_secant_equation_symmetry_and_positive_definiteness(update) -> None:
    for _, s, y, _, _, h in recorded_run(update).history:
        assert torch.linalg.norm(h @ y - s) < 1e-9 * torch.linalg.norm(s)
        assert torch.linalg.norm(h - h.T) < 1e-9 * torch.linalg.norm(h)
        assert torch.linalg.eigvalsh(h).min() > 0


@pytest.mark.parametrize("update", ["broyden", "bfgs"])
def test_the_update_is_the_papers_formula(update) -> None:
    """H+ written out term by term, with B = H^-1 solved for instead of read off the step."""
    for h, s, y, _, _, h_new in recorded_run(update, size=6).history[1:]:  # the first is plain BFGS
        hy, sy = h @ y, s @ y
        yhy, sbs = y @ hy, s @ torch.linalg.solve(h, s)
        numbers = BroydenUpdate.of(update, float(sbs), float(sy), float(yhy), len(s))
        v = s / sy - hy / yhy
        expected = (h - torch.outer(hy, hy) / yhy + numbers.phi * yhy * torch.outer(v, v)) / numbers.tau
        expected = expected + torch.outer(s, s) / sy
        assert torch.linalg.norm(h_new - expected) < 1e-6 * torch.linalg.norm(expected)


def test_without_scaling_it_is_textbook_bfgs(monkeypatch) -> None:
    """tau = 1, phi = 1: H+ = (I - s y^T / s.y) H (I - y s^T / s.y) + s s^T / s.y (Nocedal and Wright 2006, eq. 6.17)."""
    monkeypatch.setattr(BroydenUpdate, "of", staticmethod(lambda *_: BroydenUpdate(1.0, 1.0)))
    for number, (h, s, y, _, _, h_new) in enumerate(recorded_run("broyden").history):
        if number == 0:
            h = torch.eye(len(s), dtype=s.dtype) * (s @ y) / (y @ y)
        left = torch.eye(len(s), dtype=s.dtype) - torch.outer(s, y) / (s @ y)
        expected = left @ h @ left.T + torch.outer(s, s) / (s @ y)
        assert torch.linalg.norm(h_new - expected) < 1e-10 * torch.linalg.norm(expected)


@pytest.mark.parametrize("b", [0.05, 0.5, 1.0, 1.5, 30.0])
@pytest.mark.parametrize("excess", [0.0, 1e-12, 0.3, 50.0])
@pytest.mark.parametrize("update", ["broyden", "bfgs"])
def test_scaling_never_lifts_b_and_keeps_the_update_positive_definite(update, b, excess) -> None:
    """phi > -1 / (b h - 1) is what positive definiteness needs (Broyden's class in H), and 0 < tau <= 1."""
    numbers = BroydenUpdate.of(update, b, 1.0, (1.0 + excess) / b, 100)
    assert 0 < numbers.tau <= 1.0 + 1e-12
    assert numbers.phi * excess > -1
    assert math.isfinite(numbers.phi)


@pytest.mark.parametrize("update", ["broyden", "bfgs"])
def test_rosenbrock_in_fifty_dimensions_superlinearly_and_in_few_evaluations(update) -> None:
    x = start(50)
    optimizer = SelfScaledBroyden([x], update=update, iterations=5, tolerance_grad=1e-11)
    closure = closure_of(optimizer, rosenbrock, x)
    losses = []
    while optimizer.report.outcome in ("not started", "moved") and len(losses) < 200:
        losses.append(optimizer.step(closure))
    report = optimizer.report
    assert report.outcome == "converged"
    assert torch.allclose(x, torch.ones_like(x), atol=1e-10)
    assert report.evaluations < 1.55 * report.iterations  # 1 of 5 is the evaluation on entry
    below = [loss for loss in losses if loss < 1e-2]
    assert len(below) < 20  # the last dozen orders of magnitude in fewer than 100 iterations
    # Five iterations gain one digit at first, and more than two at the end, whatever the rounding of a machine.
    assert (below[-1] / below[-5]) ** 0.25 < 1e-2 < below[1] / below[0]


def test_a_quadratic_gives_the_inverse_hessian(monkeypatch) -> None:
    """Unscaled, with exact searches, H is A^-1 after n steps (Nocedal and Wright 2006, theorem 6.4)."""
    monkeypatch.setattr(BroydenUpdate, "of", staticmethod(lambda *_: BroydenUpdate(1.0, 1.0)))
    torch.manual_seed(0)
    root = torch.randn(12, 12, dtype=torch.float64)
    a = root @ root.T + torch.eye(12, dtype=torch.float64)
    x = nn.Parameter(torch.randn(12, dtype=torch.float64))
    optimizer = SelfScaledBroyden([x], iterations=400, tolerance_grad=1e-13, c2=1e-3)
    optimizer.step(closure_of(optimizer, lambda: 0.5 * x @ a @ x))
    inverse = torch.linalg.inv(a)
    assert torch.linalg.norm(optimizer.inverse_hessian - inverse) < 1e-6 * torch.linalg.norm(inverse)


def test_float32_parameters_reach_float32_accuracy() -> None:
    x = start(10, torch.float32)
    optimizer = SelfScaledBroyden([x], iterations=150)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    assert optimizer.report.outcome in ("stalled", "converged", "moved")
    assert (x - 1).abs().max() < 1e-3
    assert x.dtype == torch.float32
    assert optimizer.inverse_hessian.dtype == torch.float64


def test_the_curvature_outlives_a_change_of_the_objective() -> None:
    """The minimum moves between steps: the known curvature finds the new one in a few iterations, a new H does not."""
    torch.manual_seed(0)
    root = torch.randn(30, 30, dtype=torch.float64)
    a = root @ root.T + 0.1 * torch.eye(30, dtype=torch.float64)
    target = torch.zeros(30, dtype=torch.float64)

    def iterations_to(optimizer, x) -> int:
        before = optimizer.report.iterations
        optimizer.step(closure_of(optimizer, lambda: 0.5 * (x - target) @ a @ (x - target)))
        assert optimizer.report.outcome == "converged"
        return optimizer.report.iterations - before

    x = nn.Parameter(torch.randn(30, dtype=torch.float64))
    optimizer = SelfScaledBroyden([x], iterations=1000, tolerance_grad=1e-9)
    first = iterations_to(optimizer, x)
    target = torch.randn(30, dtype=torch.float64)
    assert iterations_to(optimizer, x) < first / 3
    assert optimizer.report.restarts == 0


def test_two_failed_searches_in_a_row_throw_the_curvature_away_and_leave_the_weights() -> None:
    x = start(4)
    optimizer = SelfScaledBroyden([x], iterations=10)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    assert optimizer.report.restarts == 0
    kept = x.detach().clone()

    calls = []

    def rises() -> float:  # higher at every call: no search can find a lower point
        closure_of(optimizer, rosenbrock, x)()
        calls.append(1)
        return float(len(calls))

    optimizer.step(rises)
    assert (optimizer.report.outcome, optimizer.report.failures, optimizer.report.restarts) == ("stalled", 1, 0)
    optimizer.step(rises)
    assert (optimizer.report.failures, optimizer.report.restarts) == (2, 1)
    assert torch.equal(x, kept)
    assert torch.equal(optimizer.inverse_hessian, torch.eye(4, dtype=torch.float64))


def test_an_exception_in_the_closure_leaves_the_last_accepted_weights() -> None:
    x = start(4)
    optimizer = SelfScaledBroyden([x], iterations=10)
    closure, calls = closure_of(optimizer, rosenbrock, x), []

    def interrupted() -> torch.Tensor:
        calls.append(x.detach().clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert torch.equal(x, calls[0])
    assert not torch.equal(calls[0], calls[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_on_entry_is_an_outcome(bad) -> None:
    x = start(4)
    optimizer = SelfScaledBroyden([x])
    kept = x.detach().clone()
    optimizer.step(closure_of(optimizer, lambda: bad * x.sum()))
    assert optimizer.report.outcome == "not finite"
    assert torch.equal(x, kept)


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 1)).to(dtype)


def regression(dtype: torch.dtype = torch.float64) -> Batch:
    x = torch.rand(60, 2, dtype=dtype, generator=torch.Generator().manual_seed(3))
    return Batch(input=x, target=torch.sin(3 * x[:, :1]) * x[:, 1:])


def test_fit_trains_a_network_far_better_than_adam_does() -> None:
    loss, batch = DataMisfit(square), regression()
    final = {}
    for name, make, epochs in (
        ("broyden", lambda p: SelfScaledBroyden(p, iterations=50), 6),
        ("adam", lambda p: torch.optim.Adam(p, lr=1e-2), 300),
    ):
        model = network()
        for _ in fit(model, loss, [batch], make(model.parameters()), epochs=epochs):
            pass
        final[name] = float(loss(model, batch)["misfit"].detach())
    assert final["broyden"] < 1e-2 * final["adam"]


def test_a_trial_that_is_not_finite_does_not_stop_fit_but_a_first_one_does() -> None:
    class Cliff(nn.Module):
        """(w - 3)^2 to the left of a cliff at w = 3.5."""

        def __init__(self, w: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

        def forward(self, x):
            return torch.where(self.w < 3.5, 1.0, math.nan) * self.w * x

    batch = Batch(input=torch.ones(4, 1, dtype=torch.float64), target=torch.full((4, 1), 3.0, dtype=torch.float64))
    model = Cliff(0.0)
    optimizer = SelfScaledBroyden(model.parameters(), lr=60.0, iterations=20, tolerance_grad=1e-10)
    (record,) = fit(model, DataMisfit(square), [batch], optimizer, epochs=1)
    assert record.loss == 9.0
    assert float(model.w.detach()) == pytest.approx(3.0, abs=1e-9)
    model = Cliff(4.0)
    with pytest.raises(TrainingDiverged, match="misfit"):
        list(fit(model, DataMisfit(square), [batch], SelfScaledBroyden(model.parameters()), epochs=1))
    assert float(model.w.detach()) == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_continues_bit_for_bit_from_a_checkpoint(tmp_path, dtype) -> None:
    loss, batch = DataMisfit(square), regression(dtype)

    def run(model, optimizer, epochs, start=None) -> list[float]:
        return [record.loss for record in fit(model, loss, [batch], optimizer, epochs=epochs, start=start)]

    whole = network(dtype=dtype)
    expected = run(whole, SelfScaledBroyden(whole.parameters(), iterations=7), 6)
    half = network(dtype=dtype)
    optimizer = SelfScaledBroyden(half.parameters(), iterations=7)
    for record in fit(half, loss, [batch], optimizer, epochs=3):
        save_checkpoint(tmp_path, half, optimizer=optimizer, record=record)
    resumed = network(seed=5, dtype=dtype)
    optimizer = SelfScaledBroyden(resumed.parameters(), iterations=7)
    began = load_checkpoint(tmp_path, resumed, optimizer=optimizer)
    assert run(resumed, optimizer, 6, began) == expected[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert optimizer.inverse_hessian.dtype == torch.float64


def test_a_loaded_state_is_a_copy() -> None:
    x = start(4)
    optimizer = SelfScaledBroyden([x], iterations=5)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    state, h = optimizer.state_dict(), optimizer.inverse_hessian
    other = SelfScaledBroyden([start(4)], iterations=5)
    other.load_state_dict(state)
    optimizer.step(closure_of(optimizer, rosenbrock, x))
    assert torch.equal(other.inverse_hessian, h)
    assert not torch.equal(optimizer.inverse_hessian, h)


def test_a_large_network_is_refused_with_its_bytes() -> None:
    with pytest.raises(ValueError, match=r"10,201 parameters.*832,483,208 bytes.*LimitedMemoryBFGS"):
        SelfScaledBroyden([nn.Parameter(torch.zeros(10_201))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"update": "dfp"}, "'broyden', 'bfgs'"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"c1": 0.5, "c2": 0.1}, "0 < c1 < c2 < 1"),
        ({"tolerance_grad": math.nan}, "tolerance_grad is nan"),
        ({"dtype": torch.int64}, "floating-point"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        SelfScaledBroyden([start(2)], **arguments)


def test_several_groups_and_nothing_to_train_are_refused() -> None:
    with pytest.raises(ValueError, match="2 parameter groups"):
        SelfScaledBroyden([{"params": [start(2)]}, {"params": [start(2)]}])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        SelfScaledBroyden([start(2).requires_grad_(False)])
    with pytest.raises(ValueError, match="clip_norm"):
        model = network()
        fit(model, DataMisfit(square), [regression()], SelfScaledBroyden(model.parameters()), epochs=1, clip_norm=1.0)


def test_the_numbers_of_the_update_at_exact_curvature() -> None:
    """b = h = 1: H already has the right curvature along s, so nothing is scaled."""
    numbers = BroydenUpdate.of("broyden", 1.0, 1.0, 1.0, 10)
    assert numbers.tau == pytest.approx(1.0)
    assert np.isfinite(numbers.phi)
