"""Radiative transport: a short run, and the full one with its bounds."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

TINY = {
    "size": 24, "samples": 96, "test_samples": 4, "newton_samples": 2, "modes": 6, "epochs": 2, "batch_size": 8,
    "hidden_channels": 4,
}  # fmt: skip
WHOLE = "32 measurements, noise 0"


def test_a_short_run(tmp_path: Path) -> None:
    main = example("transport_nio").main
    error = main(**TINY, ridge_first=True, data_folder=tmp_path / "data", out=tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    complete = {name: row[WHOLE] for name, row in results["rows"].items()}
    assert 0 < error == complete["neural inverse operator"] < 1
    assert complete["kernel ridge"] < complete["constant answer"] / 2
    assert error < complete["constant answer"] / 2, "two epochs teach nothing, but do not spoil the reconstruction"
    noisy = results["rows"]["kernel ridge"]
    assert noisy["32 measurements, noise 0.05"] != noisy[WHOLE] != noisy["8 measurements, noise 0"]
    for name in ("media.png", "measurements.png", "convergence.png"):
        assert is_drawn(tmp_path / "out" / name)
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**TINY, data_folder=tmp_path / "data", out=tmp_path / "out")


@pytest.mark.slow
def test_the_full_run(tmp_path: Path) -> None:
    error = example("transport_nio").main(data_folder=tmp_path / "data", out=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    nio = rows["neural inverse operator"]
    assert error < 0.25 * rows["constant answer"][WHOLE]
    for case in ("8 measurements, noise 0", "32 measurements, noise 0.05"):
        assert nio[case] < 0.5 * rows["kernel ridge"][case], case
    assert rows["kernel ridge"][WHOLE] < 0.5 * rows["constant answer"][WHOLE]
