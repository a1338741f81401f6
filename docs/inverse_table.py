"""The tables of inverse problems as Markdown, made from benchmarks/results/inverse_*.json."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measured import table

ROWS = Path(__file__).parents[1] / "benchmarks" / "inverse.toml"
ABLATED = "nio"

Run = Mapping[str, Any]


def rows() -> dict[str, Any]:
    """Problems and methods, as the benchmark's own file lists them."""
    return tomllib.loads(ROWS.read_text(encoding="utf-8"))


def runs(path: Path) -> list[dict[str, Any]]:
    """What is on record; nothing where it has not run."""
    return json.loads(path.read_text(encoding="utf-8"))["notes"]["runs"] if path.exists() else []


def problems(path: Path, norm: str = "l1") -> str:
    """A table a problem: a line a method, a column a way of measuring; medians over seeds of the test samples' median [quartiles; 90th percentile], %."""
    parts = []
    for problem, entry in rows()["problems"].items():
        done = [run for run in runs(path) if run["problem"] == problem]
        if done:
            name = "" if norm == "l1" else f", {norm.upper()}"
            parts.append(f"### {entry['title']}{name}\n\n{_setting(done)}\n\n{_table(problem, done, norm)}")
    return "\n\n".join(parts) or "*Not measured yet.*"


def cost(path: Path) -> str:
    """A line a method and problem: trained numbers, processor seconds of the fit and of one inversion."""
    header = ("problem", "method", "seeds", "parameters", "fit, s", "one inversion, s")
    lines = []
    for problem, entry in rows()["problems"].items():
        for name, method in rows()["methods"].items():
            found = [run for run in runs(path) if (run["problem"], run["method"]) == (problem, name)]
            if found:
                lines.append(
                    [
                        entry["title"],
                        method["title"],
                        len(found),
                        f"{found[0]['parameters']:,}",
                        f"{statistics.median(run['fit_seconds'] for run in found):.3g}",
                        f"{statistics.median(run['inversion_seconds'] for run in found):.2g}",
                    ]
                )
    return table(header, lines) if lines else "*Not measured yet.*"


def ablations(path: Path) -> str:
    """One change at a time to the better NIO, a table a problem: medians over seeds of the median relative L1, in per cent, and over that of
    the whole; then the tail and the steps that were made.
    """
    parts = [(entry["title"], _ablations(path, problem)) for problem, entry in rows()["problems"].items()]
    return "\n\n".join(f"### {title}\n\n{lines}" for title, lines in parts if lines) or "*Not measured yet.*"


def _ablations(path: Path, problem: str) -> str | None:
    """The table of one problem; None where nothing but the whole was measured."""
    changed = {
        n: m for n, m in rows()["methods"].items() if m.get("base") == ABLATED and problem in m.get("problems", [])
    }
    counts = rows()["problems"][problem]["counts"]
    whole = [_errors(runs(path), problem, ABLATED, {"measurements": count, "noise": 0.0}) for count in counts]
    if not changed or not all(whole):
        return None
    tail = f"90th percentile of L2, {counts[0]} measurements"
    header = ("network", "seeds", *(f"{count} measurements" for count in counts), tail, "steps")
    lines: list[list[Any]] = []
    for name, method in ({ABLATED: rows()["methods"][ABLATED]} | changed).items():
        errors = [_errors(runs(path), problem, name, {"measurements": count, "noise": 0.0}) for count in counts]
        if all(errors):
            cells = [
                f"{_per_cent(statistics.median(e))} (x {statistics.median(e) / statistics.median(w):.2f})"
                for e, w in zip(errors, whole, strict=True)
            ]
            case = {"measurements": counts[0], "noise": 0.0}
            worst = statistics.median(_errors(runs(path), problem, name, case, norm="l2", what="p90"))
            steps = [run["steps"] for run in runs(path) if (run["problem"], run["method"]) == (problem, name)]
            lines.append([method["title"], len(steps), *cells, _per_cent(worst), int(statistics.median(steps))])
    return table(header, lines)


def _setting(done: Sequence[Run]) -> str:
    first = next((run for run in done if "seconds" in run["settings"]), done[0])
    chosen, (L, channels, *sensors) = first["settings"], first["measured"]
    shape = sensors if channels == 1 else (channels, *sensors)
    said = [f"{L} measurements of {' x '.join(map(str, shape))} numbers"]
    said.append(f"coefficients on {' x '.join(map(str, first['grid']))} points")
    if "train" in chosen:
        said.append(f"{chosen['train']} training and {chosen['test']} test samples")
    if "seconds" in chosen:
        said.append(f"{chosen['seconds']:g} processor seconds of training for every network and seed")
    return "; ".join(said) + "."


def _table(problem: str, done: Sequence[Run], norm: str) -> str:
    cases = [(c["measurements"], c["noise"], c["kind"]) for c in done[0]["cases"]]
    reported = rows()["problems"][problem].get("reported", {}) if norm == "l1" else {}
    header = ("method", *(("published\\*",) if reported else ()), *(_case(*case) for case in cases))
    lines = []
    for name, method in rows()["methods"].items():
        found = [run for run in done if run["method"] == name]
        if found:
            samples = found[0]["cases"][0]["samples"]
            few = samples < max(run["cases"][0]["samples"] for run in done)
            title = method["title"] + (f" (first {samples} samples)" if few else "")
            beside = ["-" if name not in reported else _per_cent(reported[name])] if reported else []
            lines.append([title, *beside, *(_cell(found, case, norm) for case in cases)])
    return table(header, lines)


def _case(measurements: int, noise: float, kind: str) -> str:
    return f"{measurements}, {100 * noise:g} %" + (" mult." if kind == "multiplicative" else "")


def _cell(found: Sequence[Run], case: tuple[int, float, str], norm: str) -> str:
    ours = [c[norm] for run in found for c in run["cases"] if (c["measurements"], c["noise"], c["kind"]) == case]
    keys = ("median", "lower_quartile", "upper_quartile", "p90")
    median, low, high, tail = (_per_cent(statistics.median(values[key] for values in ours)) for key in keys)
    return f"{median} [{low}, {high}; {tail}]"


def _errors(
    found: Sequence[Run], problem: str, method: str, case: Mapping[str, Any], *, norm: str = "l1", what: str = "median"
) -> list[float]:
    return [
        c[norm][what]
        for run in found
        if (run["problem"], run["method"]) == (problem, method)
        for c in run["cases"]
        if c["kind"] == "additive" and all(c[key] == value for key, value in case.items())
    ]


def _per_cent(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0.1 else f"{100 * value:.2f}"
