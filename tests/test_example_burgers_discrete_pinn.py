"""Burgers' equation in one step of time: a short run, and the full one with the required bound."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

ROW = "Burgers, discrete time, one step 0.1 to 0.9"


def test_a_short_run_makes_the_step_of_a_thicker_front(tmp_path: Path) -> None:
    main = example("burgers_discrete_pinn").main
    short = {
        "stages": 12, "viscosity": 0.05, "hidden": (16, 16), "points": 60, "adam_steps": 200, "iterations": 400,
        "resample_every": 200, "modes": 500,
    }  # fmt: skip
    error = main(**short, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    row = results["rows"][ROW]
    assert 0 < error < 5e-3 and row["error"] == error
    assert row["seconds"] > 0 and 0 < row["stages_error"] < 5e-3 and row["residual"] > 0
    assert results["reference"]["error"] < 1e-6 and results["reference"]["seconds"] > 0
    assert results["settings"]["stages"] == 12 and results["settings"]["snapshot"] == 250
    assert is_drawn(tmp_path / "fields.png") and is_drawn(tmp_path / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**short, out=tmp_path)


@pytest.mark.slow
def test_the_full_run_reaches_what_the_table_requires(tmp_path: Path) -> None:
    assert example("burgers_discrete_pinn").main(out=tmp_path) < 5e-4
