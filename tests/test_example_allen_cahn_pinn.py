"""Allen-Cahn's equation by a physics-informed network: the example keeps its promises."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

SHORT = {
    "hidden": (12, 12), "points": 600, "adam_steps": 100, "iterations": 400, "resample_every": 200, "chunk": 600, "modes": 1024,
}  # fmt: skip


def test_short_training(tmp_path: Path) -> None:
    module, out = example("allen_cahn_pinn"), tmp_path / "run"
    error = module.main(**SHORT, out=out)
    assert 0 < error < 0.1  # the lift alone has 0.15
    results = json.loads((out / "results.json").read_text())
    row = results["rows"]["Allen-Cahn"]
    assert row["error"] == error and row["seconds"] > 0 and row["iterations"] == 400
    assert error < row["largest_error"] and 0 < row["residual"] < 1
    assert 0 < results["reference"]["error"] < 1e-4 and results["settings"]["points"] == 600
    assert len(results["curves"]["error"]) == 2
    assert is_drawn(out / "fields.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_without_heat_evenness_and_causal_weights(tmp_path: Path) -> None:
    arguments = SHORT | {"iterations": 100, "resample_every": 100, "initial": "fixed", "causal": False, "even": False}
    assert 0 < example("allen_cahn_pinn").main(**arguments, out=tmp_path) < 0.54  # the initial values alone have 0.56
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert (settings["initial"], settings["causal"], settings["even"]) == ("fixed", False, False)


def test_the_series_carries_the_initial_values() -> None:
    module = example("allen_cahn_pinn")
    G = module.carried(1e-4)
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    start = torch.stack([torch.zeros_like(x), x], -1)
    difference = (G(start) - module.initial_values(start)).abs()[:, 0]
    assert float(difference[1:-1].max()) < 1e-5 and float(difference.max()) < 4 / (math.pi**2 * 1490)
    # Far from the kink, u_0 and its derivatives: G = u_0 + d t u_0'' up to (d t)^2.
    later = torch.tensor([[0.01, 0.3]], dtype=torch.float64)
    y = later[:, 1:].clone().requires_grad_()
    (slope,) = torch.autograd.grad(y**2 * torch.cos(math.pi * y), y, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, y)
    assert float(G(later)) == pytest.approx(float(module.initial_values(later) + 1e-6 * curvature), abs=1e-10)


@pytest.mark.slow
def test_full_training(tmp_path: Path) -> None:
    assert example("allen_cahn_pinn").main(out=tmp_path) < 1e-4
