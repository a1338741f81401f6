"""The wave scattering example does what it promises."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("matplotlib")
TINY = {"size": 25, "samples": 24, "test_samples": 4, "epochs": 2, "batch_size": 8, "hidden_channels": 8}


def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "scattering_nio.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scattering_nio_end_to_end(tmp_path: Path) -> None:
    main, data = example().main, tmp_path / "data"
    error = main(**TINY, data_folder=data, out=tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert set(rows) == {"constant answer", "kernel ridge", "neural inverse operator"}
    assert rows["neural inverse operator"]["20 measurements, noise 0"] == error and 0 < error < 0.3
    constant = [rows["constant answer"][f"{count} measurements, noise 0"] for count in (20, 10, 5)]
    assert constant[0] == constant[1] == constant[2] > 0.01
    assert (tmp_path / "run" / "media.png").stat().st_size > 10_000
    with pytest.raises(FileExistsError, match="overwrite"):
        main(**TINY, data_folder=data, out=tmp_path / "run")


def test_compressed_measurements_keep_their_order_and_sign() -> None:
    x = torch.linspace(-200, 200, 41)
    y = example().compressed(x)
    assert bool((y.diff() > 0).all()) and torch.equal(y.sign(), x.sign()) and float(y.abs().max()) < 6


@pytest.mark.slow
def test_scattering_nio_beats_the_constant_answer(tmp_path: Path) -> None:
    error = example().main(data_folder=tmp_path / "data", out=tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert error < 0.6 * rows["constant answer"]["20 measurements, noise 0"]
    assert error <= 1.05 * rows["kernel ridge"]["20 measurements, noise 0"]
