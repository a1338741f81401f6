"""The table of PINNs says what its runs say, and knows which of them are out of date."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pinn

DOCS = Path(__file__).parents[2] / "docs"


def a_run(name: str, seed: int, error: float) -> dict[str, Any]:
    number = pinn.runs()[name]["numbers"][0]
    results: dict[str, Any] = {}
    for path, value in ((number["path"], error), (number["seconds"], 10.0 * (seed + 1))):
        inner = results
        *parents, last = path
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    results["reference"] = {"method": "Cole-Hopf", "error": 1e-12, "seconds": 0.5}
    return {
        "run": name,
        "seed": seed,
        "digest": pinn.digest(pinn.runs()[name]),
        "processor": f"processor {seed % 2}",
        "wall_seconds": 1.0,
        "results": results,
    }


def test_every_run_names_an_example_and_its_numbers() -> None:
    titles = []
    for run in pinn.runs().values():
        assert (pinn.ROOT / "examples" / f"{run['example']}.py").exists()
        for number in run["numbers"]:
            assert {"title", "path"} <= number.keys()
            titles.append(number["title"])
    assert len(titles) == len(set(titles))


def test_medians_ranges_and_verdicts() -> None:
    lines, details = pinn.summary([a_run("burgers", seed, e) for seed, e in enumerate((3e-5, 1e-6, 9e-6))])
    assert len(lines) == 1 and lines[0]["measured"] == 9e-6 and lines[0]["reached"]
    assert "median of 3 seeds (1e-06 to 3e-05; published 6.7e-4)" in lines[0]["what"]
    assert details[0]["range"] == [1e-6, 3e-5] and details[0]["seconds"] == 20.0
    assert details[0]["target"] == "<= 1e-06" and details[0]["target_reached"] is False
    lines, _ = pinn.summary([a_run("burgers", 0, 3e-5)])
    assert lines[0]["required"] == "<= 2e-05" and not lines[0]["reached"]


def test_runs_are_kept_by_seed_and_give_way_when_their_example_changes(tmp_path: Path) -> None:
    path = tmp_path / "pinn_cpu.json"
    for seed in (0, 1):
        pinn.record(a_run("burgers", seed, 1e-6), path)
    assert pinn.missing(["burgers"], [0, 1, 2], path) == [("burgers", 2)]
    assert (
        json.loads(path.read_text())["machine"]["processor"] == "processor 0, processor 1"
    )  # all that runs were made on
    pinn.record(a_run("burgers", 1, 2e-6), path)
    assert [r["results"]["rows"]["Burgers forward, float64"]["error"] for r in pinn.recorded(path)] == [1e-6, 2e-6]
    changed = a_run("burgers", 2, 5e-6) | {"digest": "another text"}
    pinn.record(changed, path)
    assert [r["seed"] for r in pinn.recorded(path)] == [2]  # a median is one configuration's
    assert pinn.missing(["burgers"], [2], path) == [("burgers", 2)] and pinn.current(path) == set()
    assert json.loads(path.read_text())["command"] == "python -m benchmarks.pinn"


def test_the_list_names_what_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pinn_cpu.json"
    pinn.record(a_run("burgers", 1, 1e-6), path)
    monkeypatch.setattr(pinn, "current", lambda *_, known=pinn.current: known(path))
    pinn.main(["--list", "--rows", "burgers", "burgers-discovery-noise"])
    burgers, noise = capsys.readouterr().out.splitlines()
    assert burgers == "burgers: examples/burgers_pinn.py, on record: seeds [1]"
    assert noise.endswith("on record: seeds none")  # seeds that the row does not ask for are none


def test_the_site_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    spec = importlib.util.spec_from_file_location("pinn_table", DOCS / "pinn_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    path = tmp_path / "pinn_cpu.json"
    assert table.pinns(path) == table.beside_classical(path) == "*Not measured yet.*"
    pinn.record(a_run("burgers", 0, 3e-5), path)
    assert "<= 2e-05: **not reached**" in table.pinns(path)
    assert "Cole-Hopf" in table.beside_classical(path)


def test_a_failing_example_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(name: str, seed: int) -> dict[str, Any]:
        raise RuntimeError(f"{name} with seed {seed} failed")

    monkeypatch.setattr(pinn, "perform", fails)
    monkeypatch.setattr(pinn, "missing", lambda names, seeds: [(n, s) for n in names for s in seeds])
    with pytest.raises(SystemExit):
        pinn.main(["--rows", "burgers", "--seeds", "0"])
    assert "burgers with seed 0 failed" in capsys.readouterr().err
