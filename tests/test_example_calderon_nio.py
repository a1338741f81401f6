"""Impedance tomography on the square: a short run, and the full one with its bounds."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

TINY = {
    "size": 22, "samples": 48, "test_samples": 3, "newton_samples": 1, "epochs": 2, "batch_size": 8, "hidden_channels": 4,
}  # fmt: skip


def test_a_short_run(tmp_path: Path) -> None:
    main = example("calderon_nio").main
    error = main(**TINY, ridge_first=True, data_folder=tmp_path / "data", out=tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    complete = {name: row["20 measurements, noise 0"] for name, row in results["rows"].items()}
    assert 0 < error == complete["neural inverse operator"] < 1
    assert complete["Gauss-Newton, learned prior"] < 0.05 < complete["constant answer"]
    assert complete["kernel ridge"] < complete["constant answer"] / 2
    assert error < complete["constant answer"] / 2, "two epochs teach nothing, but do not spoil the reconstruction"
    noisy = results["rows"]["Gauss-Newton, learned prior"]
    assert noisy["20 measurements, noise 0.05"] != noisy["20 measurements, noise 0"] != noisy["2 measurements, noise 0"]
    for name in ("conductivities.png", "measurements.png", "convergence.png"):
        assert is_drawn(tmp_path / "out" / name)
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**TINY, data_folder=tmp_path / "data", out=tmp_path / "out")


@pytest.mark.slow
def test_the_full_run(tmp_path: Path) -> None:
    error = example("calderon_nio").main(data_folder=tmp_path / "data", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert error < 0.015 < rows["constant answer"]["20 measurements, noise 0"]
    nio = rows["neural inverse operator"]
    assert nio["5 measurements, noise 0"] < 0.015 and nio["20 measurements, noise 0.05"] < 0.015
    assert rows["Gauss-Newton, learned prior"]["20 measurements, noise 0"] < 0.01
    assert rows["kernel ridge"]["20 measurements, noise 0"] < 0.02
