"""Collocation: a fixed objective between drawings, densities that follow the residual, runs that continue bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, qmc
from torch import nn

from opflow.batch import Batch
from opflow.losses import ConditionResidual, PDEResidual
from opflow.pde import AutogradDerivatives, Dirichlet, Initial
from opflow.pde.collocation import Collocation, boundary_batch, initial_batch
from opflow.pde.geometry import Box, Disc, Interval, LShape, SpaceTime
from opflow.training import fit, load_checkpoint, save_checkpoint

DOMAIN = SpaceTime((0, 1), Interval(-1, 1))
UNIT = Box([(0, 1), (0, 1)])


def peak(batch: Batch) -> torch.Tensor:
    return torch.exp(-((batch.coords[:, 0] - 0.5) ** 2) / 0.02)


def test_batches_are_the_same_objects_until_resampled() -> None:
    points = Collocation(DOMAIN, 64, boundary=16, initial=8, steps=3)
    passes = [[{name: id(part.coords) for name, part in batch.items()} for batch in points] for _ in range(2)]
    assert len(points) == len(passes[0]) == 3
    assert all(ids == passes[0][0] for one in passes for ids in one)
    before = points.batch
    points.resample()
    assert all(part.coords is not before[name].coords for name, part in points.batch.items())
    assert not torch.equal(points.interior.coords, before["interior"].coords)


def test_one_batch_where_there_are_interior_points_only() -> None:
    points = Collocation(LShape(), 50, dtype=torch.float32)
    (batch,) = list(points)
    assert isinstance(batch, Batch) and batch.coords.dtype == torch.float32 and batch.weight is None
    assert bool(LShape().contains(batch.coords.double()).all())


def test_a_batch_that_was_looked_at_does_not_shorten_the_pass() -> None:
    points = Collocation(LShape(), 50)
    next(iter(points))
    assert len(list(points)) == 1
    first = iter(points)
    next(first)
    list(points)
    with pytest.raises(RuntimeError, match="iterated anew"):
        next(first)


def test_boundary_and_initial_points_lie_there() -> None:
    batch = boundary_batch(DOMAIN, 40)
    assert bool((batch.coords[:, 1].abs() == 1).all())
    assert torch.equal(batch.parameters["normal"][:, 1], batch.coords[:, 1])
    assert not initial_batch(DOMAIN, 40).coords[:, 0].any()
    inlet = boundary_batch(UNIT, 10, where=lambda points, normals: normals[:, 0] < 0)
    assert not inlet.coords[:, 0].any()
    with pytest.raises(TypeError, match="has no time"):
        initial_batch(UNIT, 10)
    with pytest.raises(TypeError, match="has no time"):
        Collocation(UNIT, 10, initial=5)


def test_uniform_points_are_better_spread_than_random_ones() -> None:
    points = Collocation(UNIT, 500, seed=1)
    points.resample()
    random = np.random.default_rng(0).random((500, 2))
    assert qmc.discrepancy(points.interior.coords.numpy()) < qmc.discrepancy(random) / 10


@pytest.mark.parametrize(("exponent", "constant"), [(1.0, 1.0), (2.0, 0.0), (0.5, 2.0)])
def test_density_follows_the_residual(exponent: float, constant: float) -> None:
    # Of a large pool few are drawn, so that drawing without replacement does not flatten the density.
    points = Collocation(UNIT, 500, pool=40, exponent=exponent, constant=constant, seed=3)
    counts = np.zeros(20)
    for _ in range(8):
        points.resample(peak)
        counts += np.histogram(points.interior.coords[:, 0].numpy(), 20, (0, 1))[0]
    x = (np.arange(20000) + 0.5) / 20000
    powers = np.exp(-((x - 0.5) ** 2) / 0.02) ** exponent
    density = (powers / powers.mean() + constant).reshape(20, -1).mean(1)
    assert counts.sum() == 4000
    assert chisquare(counts, 4000 * density / density.sum()).pvalue > 1e-3
    assert chisquare(counts).pvalue < 1e-12  # uniform points would not pass


def test_points_are_drawn_without_replacement_inside_the_domain() -> None:
    plate = UNIT - Disc((0.5, 0.5), 0.25)
    points = Collocation(plate, 300, pool=2)
    points.resample(lambda batch: 100 * peak(batch))
    coords = points.interior.coords
    assert coords.shape == (300, 2) and len(coords.unique(dim=0)) == 300
    assert bool((plate.signed_distance(coords) < 0).all())


def test_several_equations_count_by_their_root_of_squares() -> None:
    def sample(residual) -> torch.Tensor:
        points = Collocation(UNIT, 200)
        points.resample(residual)
        return points.interior.coords

    both = sample(lambda batch: torch.stack([3 * peak(batch), 4 * peak(batch)]))
    assert torch.equal(both, sample(lambda batch: 5 * peak(batch)))
    assert not torch.equal(both, sample(lambda batch: 1 - peak(batch)))


def test_importance_weights_undo_the_change_of_measure() -> None:
    exact = math.sqrt(0.02 * math.pi) * math.erf(0.5 / math.sqrt(0.02))
    weighted, plain = [], []
    for seed in range(20):
        points = Collocation(UNIT, 400, pool=3, constant=0.2, importance=True, seed=seed)
        assert points.interior.weight is None
        points.resample(peak)
        values, weight = peak(points.interior), points.interior.weight
        weighted.append(float((weight * values).mean()))
        plain.append(float(values.mean()))
        assert float(weight.mean()) == pytest.approx(1, abs=0.2)
    error = np.std(weighted) / math.sqrt(20)
    assert abs(np.mean(weighted) - exact) < 4 * error + 1e-3 * exact
    assert abs(np.mean(plain) - exact) > 0.3 * exact


def test_a_residual_that_vanishes_or_overflows_leaves_a_density() -> None:
    points = Collocation(UNIT, 100, exponent=4)
    points.resample(lambda batch: torch.zeros(100))
    points.resample(lambda batch: 1e200 * peak(batch))
    assert points.interior.coords.shape == (100, 2) and points.draws == 2
    rare = Collocation(UNIT, 100, constant=0, importance=True)
    rare.resample(lambda batch: (batch.coords[:, 0] < 0.05).double())
    assert bool(rare.interior.weight.isfinite().all())


def test_a_broken_residual_changes_nothing() -> None:
    points = Collocation(UNIT, 30)
    before = points.interior
    with pytest.raises(ValueError, match="not finite at"):
        points.resample(lambda batch: torch.where(batch.coords[:, 0] > 0.5, math.nan, 1.0))
    for wrong in (lambda batch: torch.ones(60), lambda batch: torch.ones(30, 1), lambda batch: torch.ones(())):
        with pytest.raises(ValueError, match=r"expected \(30,\)"):
            points.resample(wrong)
    assert points.interior is before and points.draws == 0


def test_resampling_sees_the_names_that_the_loss_looks_at() -> None:
    points = Collocation(DOMAIN, 100, boundary=10)
    loss = PDEResidual(lambda u, a: u.d("t") - u.d("xx"), AutogradDerivatives(("t", "x")), on="interior")
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points.resample(lambda batch: loss.point_sizes(model, batch))
    assert points.draws == 1 and not points.interior.coords.requires_grad


def heat() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, Collocation]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    derivatives = AutogradDerivatives(("t", "x"))
    loss = (
        PDEResidual(lambda u, a: u.d("t") - u.d("xx"), derivatives, on="interior")
        + ConditionResidual(Dirichlet(0.0), derivatives, on="boundary", geometry=DOMAIN)
        + ConditionResidual(Initial(lambda y: (math.pi * y[:, 1]).sin()), derivatives, on="initial", geometry=DOMAIN)
    )
    points = Collocation(DOMAIN, 60, boundary=10, initial=10, steps=3, importance=True)
    return model, loss, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9), points


def test_a_run_continues_bit_for_bit(tmp_path: Path) -> None:
    def train(model, loss, optimizer, points, epochs, start=None, save=None) -> list[float]:
        losses = []
        for record in fit(model, loss, points, optimizer, epochs=epochs, start=start, every=1, progress=False):
            losses.append(record.loss)
            if record.epoch_done:
                points.resample(lambda batch: loss.losses[0].point_sizes(model, batch))
            if save == record.step:
                save_checkpoint(tmp_path, model, loss=loss, optimizer=optimizer, batches=points, record=record)
        return losses

    whole = train(*heat(), 4)
    assert train(*heat(), 2, save=5) == whole[:6]  # in the middle of a pass, after a resampling
    parts = heat()
    parts[3].resample()  # whatever these points were
    start = load_checkpoint(tmp_path, parts[0], loss=parts[1], optimizer=parts[2], batches=parts[3])
    assert train(*parts, 4, start=start) == whole[5:]


def test_a_state_of_other_points_is_refused() -> None:
    state = Collocation(UNIT, 30, boundary=4).state_dict()
    with pytest.raises(ValueError, match="n=30 but here it is 31"):
        Collocation(UNIT, 31, boundary=4).load_state_dict(state)
    with pytest.raises(ValueError, match="geometry="):
        Collocation(LShape(), 30, boundary=4).load_state_dict(state)
    with pytest.raises(ValueError, match="no 'points'"):
        Collocation(UNIT, 30, boundary=4).load_state_dict({key: state[key] for key in state if key != "points"})
    other = Collocation(UNIT, 30, boundary=4, seed=9)
    other.load_state_dict(state)
    assert torch.equal(other.interior.coords, state["points"]["interior"]["coords"]) and other.seed == 0


def test_a_weight_that_is_given_travels_with_the_state() -> None:
    points = Collocation(UNIT, 30)
    points.interior.weight = torch.linspace(0, 1, 30, dtype=torch.float64)
    again = Collocation(UNIT, 30)
    again.load_state_dict(points.state_dict())
    assert torch.equal(again.interior.weight, points.interior.weight)
    again.resample()
    assert again.interior.weight is None


def test_other_batches_stay_and_must_lie_inside() -> None:
    sensors = Batch(coords=torch.tensor([[0.5, 0.0]]), target=torch.ones(1, 1))
    points = Collocation(DOMAIN, 20, others={"observations": sensors})
    kept = points.batch["observations"].target
    points.resample()
    assert kept.dtype == torch.float64 and points.batch["observations"].target is kept
    outside = Batch(coords=torch.tensor([[0.5, 0.0], [0.5, 3.0]]))
    with pytest.raises(ValueError, match=r"point of 'inlet' 1 at \(0.5, 3\) lies outside"):
        Collocation(DOMAIN, 20, others={"inlet": outside})
    with pytest.raises(ValueError, match="draws itself"):
        Collocation(DOMAIN, 20, others={"interior": sensors})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"pool": 0}, "pool is 0"),
        ({"boundary": -1}, "boundary is -1"),
        ({"initial": 1.5}, "initial is 1.5"),
        ({"exponent": -1.0}, "exponent is -1.0"),
        ({"exponent": 0.0, "constant": 0.0}, "one must be positive"),
        ({"seed": -1}, "seed is"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Collocation(DOMAIN, **{"n": 10, **arguments})
    with pytest.raises(TypeError, match="give one of opflow"):
        Collocation([(0, 1)], 10)  # type: ignore[arg-type]
