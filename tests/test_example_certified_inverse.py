"""A reconstruction with a certified stability bound."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

SHORT = {
    "size": 13, "n_measurements": 3, "sensors": 5, "samples": 60, "test_samples": 6, "components": 8, "steps": 25, "hidden": 12,
    "factors": (0.1, 1.0),
}  # fmt: skip


def check(out: Path, ratio: float) -> dict:
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert ratio == rows[results["chosen"]]["ratio"] and results["chosen"].startswith("L = ")
    for name, row in rows.items():
        # No noise is passed on by more than what is certified, and sampling finds no more either.
        assert row["moved"] <= row["certified"] * (1 + 1e-9) and row["sampled"] <= row["certified"] * (1 + 1e-9), name
    unit = rows["ridge regression"]["certified"]
    for name in rows:
        if name.startswith("L = "):
            assert rows[name]["certified"] == pytest.approx(float(name[4:]) * unit)
    assert is_drawn(out / "trade_off.png") and is_drawn(out / "reconstructions.png")
    return rows


def test_short_training(tmp_path: Path) -> None:
    module, out = example("certified_inverse"), tmp_path / "run"
    ratio = module.main(**SHORT, out=out)
    rows = check(out, ratio)
    assert 1 <= ratio < 10
    assert rows["L = 1"]["error"] < rows["constant"]["error"]
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


@pytest.mark.slow
def test_full_training(tmp_path: Path) -> None:
    ratio = example("certified_inverse").main(out=tmp_path / "run")
    rows = check(tmp_path / "run", ratio)
    assert ratio <= 3
    assert min(row["error"] for name, row in rows.items() if name.startswith("L = ")) < 0.5 * rows["constant"]["error"]
