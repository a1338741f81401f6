"""Credible intervals of impedance tomography, and whether they hold what they promise."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

SHORT = {
    "size": 9, "n_measurements": 3, "sensors": 5, "modes": 2, "problems": 8, "solver_problems": 3, "training": 60, "components": 8,
    "hidden": 16, "training_steps": 60, "chains": 2, "sampling_steps": 60,
}  # fmt: skip


def test_short_sampling(tmp_path: Path) -> None:
    module, out = example("posterior_sampling"), tmp_path / "run"
    share = module.main(**SHORT, out=out)
    results = json.loads((out / "results.json").read_text())
    assert share == results["coverage"]["sampled"][0] and 0.4 < share <= 1 and results["n"] == 8
    assert results["coverage"]["Laplace"][0] > 0.6
    assert results["errors"]["most probable"] < results["errors"]["prior mean"]
    assert is_drawn(out / "coverage.png") and is_drawn(out / "posteriors.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


@pytest.mark.slow
def test_full_sampling(tmp_path: Path) -> None:
    share = example("posterior_sampling").main(out=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0.85 <= share <= 0.95 and 0.85 <= results["coverage"]["Laplace"][0] <= 0.95
    assert results["coverage"]["Laplace, solver's error ignored"][0] < results["coverage"]["Laplace"][0]
    assert results["r_hat"] < 1.2
