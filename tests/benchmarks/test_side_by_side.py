"""The machinery of the side-by-side benchmarks, with a clock that does not tick by itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from benchmarks import picture, side_by_side
from benchmarks import spectral_conv as layers
from benchmarks import train_step as models
from benchmarks.side_by_side import MODES, Table

ROOT = Path(__file__).parents[2]


class Clock:
    """Time that passes only while an arm works."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def arm(self, name: str, seconds: float):
        def call() -> None:
            self.now += seconds
            self.calls.append(name)

        return call

    def __call__(self) -> float:
        return self.now


def test_arms_are_interleaved_and_timed_per_call() -> None:
    clock = Clock()
    times = side_by_side.interleave(
        {"peer": clock.arm("a", 0.0625), "ours": clock.arm("b", 0.03125)}, 3, seconds=0.125, clock=clock
    )
    assert times["peer"] == [0.0625] * 3 and times["ours"] == [0.03125] * 3
    assert "".join(clock.calls) == "aabb" + 3 * ("aa" + "bbbb")
    assert side_by_side.ratios(times, "peer", "ours") == [2.0] * 3


def test_a_disturbed_round_does_not_move_the_median() -> None:
    table = Table()
    seconds = {"peer": [2.0, 2.0, 20.0, 2.0, 2.0], "ours": [1.0, 1.0, 1.0, 8.0, 1.0]}
    table.ratio("step", "default allocator", seconds, required=1.9, ambitious=2.1)
    (row,), (detail,) = table.rows, table.details
    assert (row.measured, row.required, row.reached, row.column) == (2.0, ">= 1.9x", True, "default allocator")
    assert detail["range"] == [0.25, 20.0] and detail["quartiles"] == [2.0, 2.0]
    assert detail["ambitious_reached"] is False and detail["seconds"]["ours"] == seconds["ours"]


def test_rows_say_what_is_asked() -> None:
    table = Table()
    table.number("memory", "", 0.5, "x", required=0.45)
    table.number("error", "", 1e-7, required=5e-7)
    table.number("off", "", 3.0, "%", required=5)
    table.number("bandwidth", "", 3.0, "TB/s", sign=">=")
    assert [row.required for row in table.rows] == ["<= 0.45x", "<= 5e-07", "<= 5 %", "reported"]
    assert [row.reached for row in table.rows] == [False, True, True, True]


def test_one_round_has_a_spread() -> None:
    assert side_by_side.spread([2.0]) == {"median": 2.0, "quartiles": [2.0, 2.0], "range": [2.0, 2.0]}


def test_a_child_starts_in_its_allocator_mode(monkeypatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    default, equal = (side_by_side.environment(mode.environment) for mode in MODES)
    assert not [key for key in default if key.startswith(("MALLOC_", "THP_MEM_"))]
    assert equal["MALLOC_MMAP_MAX_"] == "0" and equal["MALLOC_TRIM_THRESHOLD_"] == "100000000000"


@pytest.mark.parametrize("module", ["spectral_conv", "train_step"])
def test_help_answers_at_once(module: str) -> None:
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"benchmarks.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0 and "--rounds" in child.stdout and "--measure" not in child.stdout
    assert "torch" not in child.stderr and time.perf_counter() - start < 10


def options(**changes: object) -> argparse.Namespace:
    parsed = side_by_side.parser("", list(layers.CASES)).parse_args([])
    return argparse.Namespace(**{**vars(parsed), **changes})


def test_a_part_of_the_cases_stays_out_of_the_results(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(side_by_side, "ROOT", tmp_path)
    monkeypatch.setattr(side_by_side, "SCRATCH", tmp_path / "scratch")
    names = list(layers.CASES)
    assert side_by_side.completed(options(), names).out == tmp_path / "benchmarks" / "results"
    assert side_by_side.completed(options(cases=["2d_64"]), names).out == tmp_path / "scratch"
    quick = side_by_side.completed(options(quick=True), names)
    assert (quick.out, quick.rounds, quick.cases) == (tmp_path / "scratch", 2, ["2d_64"])
    with pytest.raises(SystemExit, match="at least one round"):
        side_by_side.completed(options(rounds=0), names)


def measured_layers() -> dict[str, dict[str, dict[str, object]]]:
    """What children would hand back: the peer takes twice our time everywhere."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    for mode in MODES:
        for key, case in layers.CASES.items():
            times = {"peer": [2.0, 2.0], "ours": [1.0, 1.0]}
            result: dict[str, object] = {"errors": {"ours": {"y": 1e-7}, "peer": {"y": 1.4}}, "step": dict(times)}
            result["forward only"] = dict(times)
            result |= {extra: dict(times) for extra in ("channels last", "two threads") if extra in case.extras}
            if "transcription" in case.extras:
                result["step"]["transcription"] = [2.02, 2.02]
            found.setdefault(mode.key, {})[key] = result
    return found


def test_rows_of_the_layer_and_their_picture(tmp_path) -> None:
    table = Table()
    layers.fill(table, measured_layers())
    asked = {(row.what, row.column): row for row in table.rows}
    row = asked["layer 2D 64x64, C=32, B=20, 24x24 modes: step, peer time / ours", "equal allocator"]
    assert (row.measured, row.required, row.reached) == (2.0, ">= 2x", True)
    row = asked["layer 3D 64x64x40, C=20, B=4, 16x16x16 modes: step, peer time / ours", "default allocator"]
    assert (row.required, row.reached) == (">= 4.5x", False)
    off = [row for row in table.rows if "transcription" in row.what]
    assert off and all(row.measured == pytest.approx(1.0) and row.required == "<= 5 %" for row in off)

    report = {"rows": [vars(row) for row in table.rows], "notes": {"peer": "a peer", "details": table.details}}
    bars = picture.bars(json.loads(json.dumps(report)))
    assert len(bars) == 2 * len(layers.CASES)
    assert bars[0]["required"] == 2.5 and bars[0]["ambitious"] == 4
    picture.draw(report, tmp_path / "bars.png")
    assert 0 < (tmp_path / "bars.png").stat().st_size < 300_000


def test_rows_of_the_models() -> None:
    found: dict[str, dict[str, dict[str, object]]] = {}
    for mode, key in ((mode, key) for mode in MODES for key in models.CASES):
        times = {"peer": [3.0], "ours": [1.0]}
        errors = {"output, ours and float64": 1e-7, "output, ours and the peer": 2e-7}
        result = {"errors": errors, "parameters": 5, "step": times, "forward only": times}
        found.setdefault(mode.key, {})[key] = result
    table = Table()
    models.fill(table, found)
    required = [row for row in table.rows if row.required != "reported"]
    assert all(row.reached for row in required)
    steps = [row.required for row in required if "step" in row.what]
    assert steps == [">= 1.7x", ">= 1.5x", ">= 2.5x", ">= 2.2x"]
    equal = {row.what: row.measured for row in required if "largest difference" in row.what}
    assert [("peer" in what, value) for what, value in equal.items()] == [(True, 2e-7), (False, 1e-7)] * 2


class Unequal:
    """Sides of which one has another size, or another output."""

    def __init__(self, counts: tuple[int, int], difference: float) -> None:
        self.counts, self.difference = counts, difference

    def parameter_counts(self) -> dict[str, int]:
        return dict(zip(("peer", "ours"), self.counts, strict=True))

    def errors(self) -> dict[str, float]:
        return {"output, ours and float64": 1e-7, "output, ours and the peer": self.difference}


def test_models_that_are_not_equal_are_not_timed() -> None:
    even, odd = models.CASES["2d_64"], models.CASES["2d_85"]
    with pytest.raises(AssertionError, match="numbers of parameters differ"):
        models.checked(Unequal((4, 5), 0.0), even)
    for difference in (1e-3, float("nan")):
        with pytest.raises(AssertionError, match="ours and the peer differ"):
            models.checked(Unequal((4, 4), difference), even)
    assert models.checked(Unequal((4, 4), 1e-3), odd)["output, ours and the peer"] == 1e-3


def test_peak_memory_of_a_child_is_in_units_of_x(tmp_path, monkeypatch) -> None:
    from benchmarks import peak_memory

    if not Path("/proc/self/status").exists():
        pytest.skip("the peak memory is measured on Linux only")
    monkeypatch.setattr(side_by_side, "pin", lambda threads: True)
    monkeypatch.setitem(layers.CASES, "small", layers.Case((64, 64), 8, (8, 8), (1, 1), (1, 1), batch=8))
    peak_memory.main(["small", "peer", "--result", str(tmp_path / "result.json")])
    assert 0 <= json.loads((tmp_path / "result.json").read_text()) < 100


def test_a_real_child_measures_one_case(tmp_path) -> None:
    """The parent's call of a child, with a case that is small enough for a test."""
    code = (
        "import sys; from benchmarks import spectral_conv as s; "
        "s.CASES = {'small': s.Case((12, 10), 4, (6, 6), (1, 1), (2, 2), batch=2, extras=('channels last', 'transcription'))}; "
        "s.main(sys.argv[1:])"
    )
    result = tmp_path / "result.json"
    arguments = ["--rounds", "2", "--measure", "equal", "--result", str(result)]
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=side_by_side.environment(MODES[1].environment), check=True, capture_output=True,
    )  # fmt: skip
    child = json.loads(result.read_text())
    assert child["allocator"] == "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000"
    case = child["cases"]["small"]
    assert set(case) == {"errors", "step", "forward only", "channels last"}
    assert set(case["step"]) == {"peer", "ours", "transcription"}
    assert all(t > 0 for t in chain(*case["step"].values())) and len(case["step"]["ours"]) == 2
