"""Seismic inversion in curved layers: a short run, and the full one with its bounds."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

TINY = {
    "size": 13, "n_times": 160, "samples": 32, "test_samples": 2, "waveform_samples": 1, "waveform_steps": 5, "epochs": 1,
    "batch_size": 8, "hidden_channels": 4,
}  # fmt: skip
WHOLE = "3 shots, noise 0"


def test_a_short_run(tmp_path: Path) -> None:
    main = example("seismic_nio").main
    error = main(**TINY, data_folder=tmp_path / "data", out=tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    complete = {name: row[WHOLE] for name, row in results["rows"].items()}
    assert 0 < error == complete["neural inverse operator"] < 0.5
    assert complete["kernel ridge"] < complete["constant answer"]
    assert len(set(complete.values())) == len(complete) == 5
    assert all(row["seconds a sample"] >= 0 for row in results["rows"].values())
    for name in ("grounds.png", "convergence.png"):
        assert is_drawn(tmp_path / "out" / name)
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**TINY, data_folder=tmp_path / "data", out=tmp_path / "out")


@pytest.mark.slow
def test_the_full_run(tmp_path: Path) -> None:
    error = example("seismic_nio").main(data_folder=tmp_path / "data", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert error < 0.5 * rows["constant answer"][WHOLE]
    assert error <= 1.1 * rows["kernel ridge"][WHOLE]
    assert rows["neural inverse operator"]["seconds a sample"] < 0.01 * rows["L-BFGS from the mean"]["seconds a sample"]
