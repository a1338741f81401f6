"""Burgers' equation by a physics-informed network: the example keeps its promises."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

SHORT = {"hidden": (16, 16), "points": 1000, "adam_steps": 200, "iterations": 600, "resample_every": 200, "chunk": 1000}


def test_short_training(tmp_path: Path) -> None:
    # At ten times the viscosity the front is ten times as wide.
    module, out = example("burgers_pinn"), tmp_path / "run"
    error = module.main(viscosity=0.1 / math.pi, **SHORT, out=out)
    assert 0 < error < 2e-3
    results = json.loads((out / "results.json").read_text())
    row = results["rows"]["Burgers forward, float64"]
    assert row["error"] == error and row["seconds"] > 0 and row["iterations"] == 600
    assert error < row["largest_error"] and row["residual"] < 0.1
    assert results["reference"]["error"] < 1e-14 and results["reference"]["spectral"]["error"] < 1e-6
    assert results["settings"]["points"] == 1000 and len(results["curves"]["error"]) == 3
    assert is_drawn(out / "fields.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_single_precision(tmp_path: Path) -> None:
    arguments = SHORT | {"iterations": 200, "dtype": "float32", "viscosity": 0.1 / math.pi}
    error = example("burgers_pinn").main(**arguments, out=tmp_path)
    assert 0 < error < 0.05
    assert list(json.loads((tmp_path / "results.json").read_text())["rows"]) == ["Burgers forward, float32"]


def test_the_formula_of_cole_and_hopf_meets_another_solution() -> None:
    # u = -2 nu phi_x / phi also holds for the quotient at one point by a much wider and finer sum.
    module = example("burgers_pinn")
    t, x = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64), torch.tensor([-0.4, 0.002, 1.0], dtype=torch.float64)
    nu = 0.01 / math.pi
    u = module.cole_hopf(t, x, nu)
    assert torch.equal(u[0], -torch.sin(math.pi * x))
    y = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    for i, moment in enumerate(t[1:].tolist(), start=1):
        for j, place in enumerate(x.tolist()):
            weight = torch.softmax(
                -((place - y) ** 2) / (4 * nu * moment) - torch.cos(math.pi * y) / (2 * math.pi * nu), 0
            )
            # The velocity is also the mean of (x - y) / t: the other form of the quotient, after integration by parts.
            mean = float((weight * (place - y)).sum()) / moment
            assert float(u[i, j]) == pytest.approx(mean, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 2e-5), ("float32", 5e-4)])
def test_full_training(tmp_path: Path, dtype: str, bound: float) -> None:
    assert example("burgers_pinn").main(dtype=dtype, out=tmp_path) < bound
