"""A neural operator for Burgers' equation from data, from the residual, and from both."""

import json
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

from opflow import Grid
from opflow.problems import Burgers

pytest.importorskip("matplotlib")

SHORT = {
    "size": 32, "times": 17, "solved": 4, "unsolved": 16, "test_samples": 4, "viscosity": 0.05, "steps": 80, "batch_size": 4,
    "hidden_channels": 8, "modes": 8,
}  # fmt: skip
NAMES = {"data only", "data and residual", "residual only"}


def test_short_training(tmp_path: Path) -> None:
    module, out = example("burgers_pino"), tmp_path / "run"
    error = module.main(**SHORT, out=out)
    results = json.loads((out / "results.json").read_text())
    rows, reference = results["rows"], results["reference"]
    assert rows.keys() == NAMES and rows["residual only"]["error"] == error < 0.6
    assert all(0 < row["error"] <= row["largest error"] and row["seconds"] > 0 for row in rows.values())
    assert {name: row["solutions seen"] for name, row in rows.items()} == dict.fromkeys(NAMES, 4) | {"residual only": 0}
    assert 0 < reference["error"] < 1e-3 and reference["at a tolerance of 1e-3"]["error"] < 1e-3
    assert 0 < results["error of the derivatives"] < 0.05
    assert is_drawn(out / "velocities.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_the_error_of_the_derivatives_is_of_second_order_in_time() -> None:
    module, errors = example("burgers_pino"), []
    problem = Burgers(viscosity=0.05)
    for times in (17, 33, 65):
        grid = Grid((times, 32), layout=("nodes", "periodic"), axes=("t", "x"))
        truth = problem.exact(grid.points())["velocity"]
        made = module.discrete_solution(problem, grid, truth)
        assert torch.equal(made[0], truth[0])
        errors.append(float((made - truth).norm() / truth.norm()))
    assert 3 < errors[0] / errors[1] < 6 and 3 < errors[1] / errors[2] < 6


def test_every_velocity_comes_once_before_any_comes_again() -> None:
    module, drawn = example("burgers_pino"), torch.arange(6.0).view(6, 1, 1)
    data = module.Batch(input=drawn[:3], target=drawn[:3])
    pairs = module.Pairs(data, drawn, torch.ones(1), 2, steps=3, seed=0)
    steps = list(pairs)
    assert len(pairs) == len(steps) == 3
    assert sorted(float(v) for step in steps for v in step["unsolved"].input.flatten()) == [0, 1, 2, 3, 4, 5]
    assert sorted(float(v) for step in steps for v in step["solved"].input.flatten()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_equation_is_worth_more_than_few_solutions(tmp_path: Path) -> None:
    assert example("burgers_pino").main(out=tmp_path / "run") < 0.06
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert rows["data and residual"]["error"] < 0.7 * rows["data only"]["error"]
