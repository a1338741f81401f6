"""Impedance tomography of a thorax: a short run, and the full one with its bounds."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")


def test_a_short_run(tmp_path: Path) -> None:
    main = example("heart_lungs_nio").main
    tiny = {
        "n_theta": 36, "n_r": 10, "samples": 48, "test_samples": 4, "newton_samples": 1, "modes": 8, "epochs": 1,
        "batch_size": 8, "hidden_channels": 4, "data_folder": tmp_path / "data", "out": tmp_path / "out",
    }  # fmt: skip
    error = main(**tiny)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    complete = {name: row["32 measurements, noise 0"] for name, row in results["rows"].items()}
    assert 0 < error == complete["neural inverse operator"] < 0.5
    assert complete["kernel ridge"] < complete["constant answer"]
    assert error < 2 * complete["kernel ridge"], "it starts from the reconstruction: from nothing an epoch ends above 3"
    for name in ("thoraxes.png", "measurements.png", "convergence.png"):
        assert is_drawn(tmp_path / "out" / name)
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**tiny)


@pytest.mark.slow
def test_the_full_run(tmp_path: Path) -> None:
    error = example("heart_lungs_nio").main(data_folder=tmp_path / "data", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    complete = {name: row["32 measurements, noise 0"] for name, row in rows.items()}
    assert error < 1.1 * complete["kernel ridge"] and error < complete["constant answer"] / 1.5
    nio = rows["neural inverse operator"]
    for case in ("8 measurements, noise 0", "32 measurements, noise 0.01"):
        assert nio[case] < 1.1 * rows["kernel ridge"][case], case
