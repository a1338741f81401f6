"""A DeepONet for diffusion and reaction, trained on the equation alone."""

import json
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

from opflow import Grid

pytest.importorskip("matplotlib")

SHORT = {
    "sensors": 30, "samples": 40, "test_samples": 8, "points": 100, "basis": 20, "hidden": (20, 20), "adam_steps": 200,
    "iterations": 500,
}  # fmt: skip


def test_short_training(tmp_path: Path) -> None:
    module, out = example("diffusion_reaction_deeponet"), tmp_path / "run"
    error = module.main(**SHORT, out=out)
    assert 0 < error < 0.25
    results = json.loads((out / "results.json").read_text())
    row, reference = results["rows"]["physics-informed DeepONet"], results["reference"]
    assert row["error"] == error <= row["largest error"] and row["seconds"] > 0 and row["solutions seen"] == 0
    assert 0 < reference["error"] < reference["error on 30 nodes"] < 1e-2 and reference["seconds"] > 0
    assert is_drawn(out / "concentrations.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_the_sources_are_known_at_the_shared_points() -> None:
    module = example("diffusion_reaction_deeponet")
    x = Grid(30).coordinates(0)
    points = module.SharedPoints(torch.stack([x**2, torch.sin(x)]), 50, seed=0)
    (before,) = points
    torch.testing.assert_close(before.parameters["source"][0], before.coords[:, 1] ** 2)
    torch.testing.assert_close(before.parameters["source"][1], before.coords[:, 1].sin())
    assert float(before.coords[:, 1].min()) > 0 and float(before.coords[:, 1].max()) < 1
    (again,) = points
    assert again.coords is before.coords  # the same points until they are drawn anew
    points.draw()
    (after,) = points
    assert not torch.equal(after.coords, before.coords)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_setting_keeps_its_promise(tmp_path: Path) -> None:
    assert example("diffusion_reaction_deeponet").main(out=tmp_path / "run") < 0.02
