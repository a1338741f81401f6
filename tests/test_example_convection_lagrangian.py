"""Waves along their characteristics: the example at small sizes, and the rows' bounds at full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

TINY = {
    "hidden": (10,), "points": 100, "iterations": 150, "burgers_points": 250, "burgers_iterations": 150, "burgers_harmonics": 2,
    "speed": 5.0, "windows": 1, "window_hidden": (10,), "window_points": 200, "window_iterations": 300, "adam_steps": 300,
}  # fmt: skip


def test_convection_and_burgers_along_characteristics(tmp_path: Path) -> None:
    main = example("convection_lagrangian").main
    out = tmp_path / "run"
    error = main(**TINY, out=out)
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert rows["Convection c=5, Lagrangian"]["error"] == error and 0 < error < 1e-4
    assert rows["Convection c=5, Eulerian"]["error"] < 3e-2
    burgers = rows["Viscous Burgers before the shock, Lagrangian"]
    assert burgers["error"] < 3e-2 and burgers["crossing"] == "no crossing"
    shock = rows["Inviscid Burgers beyond the shock"]
    assert shock["time"] == pytest.approx(1.0, abs=0.05) and "cross at t = " in shock["said"] and shock["warnings"] > 0
    assert all(row["seconds"] > 0 and row["residual"] > 0 for name, row in rows.items() if "Inviscid" not in name)
    assert all(part["error"] < 1e-6 and part["method"] for part in results["reference"].values())
    assert results["settings"]["seed"] == 0
    for name in ("convection", "eulerian", "burgers", "characteristics", "convergence"):
        assert is_drawn(out / f"{name}.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**TINY, out=out)


@pytest.mark.slow
def test_the_full_setting_reaches_what_is_required(tmp_path: Path) -> None:
    assert example("convection_lagrangian").main(out=tmp_path / "run") < 1e-6
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert rows["Convection c=50, Eulerian"]["error"] < 2e-4
    assert rows["Viscous Burgers before the shock, Lagrangian"]["error"] < 1e-3
