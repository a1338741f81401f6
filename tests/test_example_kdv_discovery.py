"""The coefficients of the KdV equation from two snapshots: a short run, and the full one with the required bound."""

import json
from pathlib import Path

import pytest
from test_examples import example, is_drawn

pytest.importorskip("matplotlib")

ROW = "KdV discovery, two snapshots, clean"
NOISY = "KdV discovery, two snapshots, noise 0.01"


def test_a_short_run_finds_both_coefficients(tmp_path: Path) -> None:
    main = example("kdv_discovery").main
    short = {
        "stages": 12, "hidden": (20, 20), "warm_up": 150, "starts": 2, "trial": 150, "iterations": 300,
        "noise": 0.0, "classical": False,
    }  # fmt: skip
    error = main(**short, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    row = results["rows"][ROW]
    assert 0 < error < 0.05 and row["error"] == error == max(row["convection_error"], row["dispersion_error"])
    assert row["seconds"] > 0 and row["stages_error"] < 0.1 and len(row["losses_of_starts"]) == 2
    assert abs(row["convection"] - 1) == row["convection_error"]
    assert results["reference"]["error"] < 1e-6 and results["reference"]["seconds"] > 0
    assert results["settings"]["stages"] == 12 and list(results["rows"]) == [ROW]
    assert is_drawn(tmp_path / "stages.png") and is_drawn(tmp_path / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**short, out=tmp_path)


def test_noise_comes_with_standard_errors(tmp_path: Path) -> None:
    tiny = {
        "stages": 4,
        "hidden": (8,),
        "warm_up": 20,
        "starts": 1,
        "trial": 50,
        "iterations": 50,
        "noisy_iterations": 50,
    }
    example("kdv_discovery").main(**tiny, classical=False, out=tmp_path)
    row = json.loads((tmp_path / "results.json").read_text())["rows"][NOISY]
    for name in ("convection", "dispersion"):
        assert row[f"{name}_standard_error"] > 0 and f"{name}_remaining" in row
    assert row["noise_estimated"] > 0 and 0 < row["effective_parameters"] < 400


@pytest.mark.slow
def test_the_full_run_reaches_what_the_table_requires(tmp_path: Path) -> None:
    error = example("kdv_discovery").main(out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert error < 6e-5
    fit = results["reference"]["fit_by_the_solver"]
    assert max(fit["convection_error"], fit["dispersion_error"]) < 1e-3
