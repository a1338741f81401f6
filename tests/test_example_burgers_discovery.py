"""The coefficients of Burgers' equation from scattered values: the example keeps its promises."""

import json
import math
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

SHORT = {
    "hidden": (12, 12), "points": 500, "observations": 500, "adam_steps": 200, "iterations": 500, "noisy_iterations": 300,
    "noisy_steps": 30, "resample_every": 250, "modes": 512,
}  # fmt: skip


def test_short_training(tmp_path: Path) -> None:
    # At thirty times the viscosity there is no front.
    module, out, viscosity = example("burgers_discovery"), tmp_path / "run", 0.3 / math.pi
    error = module.main(viscosity=viscosity, noise=0.05, draws=2, **SHORT, out=out)
    assert 0 < error < 5e-3
    results = json.loads((out / "results.json").read_text())
    clean, noisy = (results["rows"][f"Burgers discovery, {name}"] for name in ("clean", "5 % noise"))
    assert clean["error"] == error == max(clean["convection"], clean["viscosity"]) and clean["seconds"] > 0
    classical = results["reference"]["fit_by_the_solver"]
    assert max(classical["convection_error"], classical["viscosity_error"]) < 1e-4 and classical["steps"] > 2
    noisy_classical = results["reference"]["fits_by_the_solver_with_noise"]["draws"]
    assert len(noisy_classical) == 2 and all(abs(one["z_viscosity"]) < 4 for one in noisy_classical)
    assert all(1e-4 < one["viscosity_error"] < 0.05 for one in noisy_classical), "noise moves what is found"
    assert clean["error_u"] < 2e-3 and results["reference"]["error"] < 1e-9 and results["points"] == 500
    assert len(noisy["draws"]) == 2 and noisy["error"] == 1 - noisy["within_both"] / 2
    for draw in noisy["draws"]:
        assert abs(draw["z_convection"]) < 4 and abs(draw["z_viscosity"]) < 4
        assert 0 < draw["error_viscosity"] < 0.05 * viscosity and 0 < draw["error_convection"] < 0.05
        assert 10 < draw["effective_parameters"] < 60, "the equation leaves the network no more freedom"
        assert 0.02 < draw["noise"] < 0.028, "five per cent of a deviation of 0.48"
    for name in ("fields", "convergence", "noise"):
        assert is_drawn(out / f"{name}.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_no_noise_at_all(tmp_path: Path) -> None:
    short = SHORT | {"draws": 0, "iterations": 100, "resample_every": 100, "points": 200}
    example("burgers_discovery").main(viscosity=0.3 / math.pi, classical=False, **short, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == ["Burgers discovery, clean"] and "fit_by_the_solver" not in results["reference"]
    assert not (tmp_path / "noise.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_setting_reaches_what_the_table_requires(tmp_path: Path) -> None:
    assert example("burgers_discovery").main(out=tmp_path) < 1e-3
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert rows["Burgers discovery, clean"]["convection"] < 1e-4
    assert rows["Burgers discovery, 1 % noise"]["within_both"] >= 8
    classical = results["reference"]["fit_by_the_solver"]
    assert max(classical["convection_error"], classical["viscosity_error"]) < 1e-5
