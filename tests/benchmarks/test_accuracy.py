"""The accuracy table: its rows can be built, a run is recorded once, resumed where it stopped and summed up honestly."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import accuracy
from benchmarks.accuracy_tasks import SYMMETRIES, TASKS
from benchmarks.accuracy_training import METRICS, _plain, run
from opflow import Batch, Grid, problems
from opflow.data import generate
from opflow.models.recipe import build_model
from opflow.problems import Burgers

ROWS = accuracy.rows()
SETTINGS = [(name, preset) for name, row in ROWS.items() for preset in accuracy.PRESETS if preset in row]


@pytest.mark.parametrize(("name", "preset"), SETTINGS)
def test_rows_name_what_there_is(name: str, preset: str) -> None:
    settings = accuracy.settings(ROWS[name], preset)
    assert settings["task"] in TASKS and settings["metric"] in METRICS
    assert settings["training"].get("augment", "none") in SYMMETRIES
    recipe = settings["recipe"]
    assert set(recipe["splits"]) == {"train", "validation", "test"}
    getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    Grid(**recipe["grid"]).subsampled(settings.get("stride", 1))
    assert build_model(_plain(settings["model"])) is not None
    compared = {row.get("required") for row in ROWS.values()}
    assert ROWS[name]["seeds"] == (3 if "required" in ROWS[name] or name in compared else 1)
    asked = ROWS[name].get("required")
    assert asked is None or isinstance(asked, float) or asked in ROWS


def settings_of(epochs: int = 2, **changes: Any) -> dict[str, Any]:
    return {
        "metric": "relative L2", "task": "fields", "data": "tiny", "stride": 1,
        "recipe": {"problem": "Burgers", "parameters": {}, "grid": {"shape": [32], "layout": "periodic"}},
        "model": {"model": "FNO", "n_modes": [8], "in_channels": 1, "out_channels": 1, "hidden_channels": 4, "channel_mlp": "none"},
        "training": {"epochs": epochs, "batch_size": 4, "learning_rate": 1e-2, "augment": "circle"},
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "validation", "test"):
        generate(Burgers(cutoff=8), Grid(32, layout="periodic"), folder / "tiny", 8, split=split, rtol=1e-6)
    return folder


def test_a_stopped_run_goes_on_to_the_same_result(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(settings_of(3), 0, data=data, work=tmp_path / "whole", device="cpu")
    from benchmarks import accuracy_training

    kept = accuracy_training.save_checkpoint

    def stops(folder, model, *, record, **state):
        kept(folder, model, record=record, **state)
        if record.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(accuracy_training, "save_checkpoint", stops)
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(3), 0, data=data, work=tmp_path / "cut", device="cpu")
    monkeypatch.setattr(accuracy_training, "save_checkpoint", kept)
    again = run(settings_of(3), 0, data=data, work=tmp_path / "cut", device="cpu")
    same = ("error", "worst", "validation", "best_epoch", "epochs", "parameters")
    assert {key: again[key] for key in same} == {key: whole[key] for key in same}
    assert again["epochs"] == 3
    other = run(settings_of(3), 1, data=data, work=tmp_path / "other", device="cpu")
    assert other["error"] != whole["error"]


def test_a_run_is_recorded_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"title": "Tiny", "metric": "relative L2", "published": 0.5, "required": 1e-9, "seeds": 1}
    monkeypatch.setattr(accuracy, "rows", lambda: {"tiny": row})
    monkeypatch.setattr(accuracy, "settings", lambda row, preset: settings_of())
    monkeypatch.setattr(accuracy, "made", lambda *arguments: None)
    options = argparse.Namespace(
        preset="cpu", out=tmp_path / "results", data=data, work=tmp_path / "work", device="cpu", threads=0, again=False
    )
    accuracy.run_once("tiny", 0, options)
    path = accuracy.result_path("cpu", tmp_path / "results")
    first = path.read_bytes()
    report = json.loads(first)
    (line,), (record,) = report["rows"], report["notes"]["runs"]
    assert line["measured"] == record["error"] and not line["reached"] and "1 seed" in line["what"]
    assert record["classical"]["error"] <= record["error"] and record["commit"]
    accuracy.run_once("tiny", 0, options)
    assert path.read_bytes() == first, "what is on record is not run again"
    monkeypatch.setattr(accuracy, "settings", lambda row, preset: settings_of(epochs=1))
    accuracy.run_once("tiny", 0, options)
    (record,) = accuracy.recorded("cpu", tmp_path / "results")
    assert record["epochs"] == 1, "another configuration takes the old one's place"
    accuracy.record(record | {"seed": 1}, "cpu", tmp_path / "results")
    assert [r["seed"] for r in accuracy.recorded("cpu", tmp_path / "results")] == [0, 1]
    accuracy.record(record | {"seed": 2, "configuration": "other"}, "cpu", tmp_path / "results")
    assert [r["seed"] for r in accuracy.recorded("cpu", tmp_path / "results")] == [2], "and that of its other seeds"


def test_runs_that_end_together_are_all_recorded(tmp_path: Path) -> None:
    name = next(iter(ROWS))

    def end(seed: int) -> None:
        accuracy.record({"row": name, "seed": seed, "error": 0.1 * (seed + 1), "machine": {}}, "cpu", tmp_path)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(end, range(5)))
    assert [r["seed"] for r in accuracy.recorded("cpu", tmp_path)] == list(range(5))
    (line,) = accuracy.summary(accuracy.recorded("cpu", tmp_path), "cpu")
    assert line["measured"] == pytest.approx(0.3) and "0.1 to 0.5" in line["what"]


def test_a_row_may_be_asked_to_beat_another(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"title": "T", "metric": "relative L2", "published": 0.5, "seeds": 3}
    monkeypatch.setattr(accuracy, "rows", lambda: {"old": base, "new": base | {"required": "old"}})
    runs = [{"row": "old", "error": e} for e in (0.1, 0.3, 0.2)] + [{"row": "new", "error": 0.25}]
    lines = accuracy.summary(runs, "cpu")
    assert [(line["required"], line["reached"]) for line in lines] == [("reported", True), ("<= 0.2", False)]
    assert accuracy.limit("new", runs[:3]) is None and accuracy.limit(0.5, []) == 0.5


def test_a_configuration_has_a_name_of_its_own() -> None:
    settings = accuracy.settings(ROWS["darcy-fno"], "cpu")
    assert accuracy.digest(settings) == accuracy.digest(json.loads(json.dumps(settings)))
    changed = json.loads(json.dumps(settings))
    changed["recipe"]["rtol"] = 1e-3
    assert accuracy.digest(changed) != accuracy.digest(settings)


@pytest.mark.parametrize(("name", "shape"), [("square", (2, 1, 5, 5)), ("circle", (2, 1, 8))])
def test_symmetries_keep_input_and_target_together(name: str, shape: tuple[int, ...]) -> None:
    symmetry = SYMMETRIES[name]
    assert symmetry is not None
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seen = set()
    for seed in range(64):
        turned = symmetry(Batch(x, 2 * x), torch.Generator().manual_seed(seed))
        assert torch.equal(turned.target, 2 * turned.input)
        assert torch.equal(turned.input.abs().flatten(1).sort().values, x.abs().flatten(1).sort().values)
        seen.add(turned.input.numpy().tobytes())
    assert len(seen) == (8 if name == "square" else 16)


def test_the_circle_is_a_symmetry_of_the_equation() -> None:
    grid, symmetry = Grid(64, layout="periodic"), SYMMETRIES["circle"]
    assert symmetry is not None
    u = Burgers(cutoff=16).sample(3, grid)["initial"][:, None]
    turned = symmetry(Batch(u, u), torch.Generator().manual_seed(3)).input

    def solved(u: torch.Tensor) -> torch.Tensor:
        return Burgers().solve({"initial": u[:, 0]}, grid, rtol=1e-8)["velocity"][:, None]

    expected = symmetry(Batch(solved(u), solved(u)), torch.Generator().manual_seed(3)).input
    torch.testing.assert_close(solved(turned), expected, rtol=1e-7, atol=1e-9)
