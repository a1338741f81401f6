"""The accuracy table as Markdown, made from benchmarks/results/accuracy_<preset>.json and the rows in benchmarks/accuracy.toml."""

from __future__ import annotations

import json
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measured import table

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.accuracy import limit

HEADER = (
    "problem and model", "paper*", "ours: median", "range", "seeds", "asked", "reached",
    "parameters", "training", "one sample", "classical solver, equal error",
)  # fmt: skip


def accuracy(rows: Path, results: Path) -> str:
    """One table a preset that has results, with the command and the machine.

    Args:
        rows: `benchmarks/accuracy.toml`.
        results: the folder `benchmarks/results/`.
    """
    known = tomllib.loads(rows.read_text(encoding="utf-8"))
    parts = []
    for preset, asked in (("cpu", "required"), ("paper", "target")):
        path = results / f"accuracy_{preset}.json"
        if not path.exists():
            parts.append(f"## Preset `{preset}`\n\n*No run of this preset is on record.*")
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        runs = report["notes"]["runs"]
        lines = [
            _line(row, done, limit(row.get(asked), runs), row.get(preset, {}).get("differs"))
            for name, row in known.items()
            if (done := [run for run in runs if run["row"] == name])
        ]
        machine = runs[-1]["machine"]
        missing = [row["title"] for name, row in known.items() if not any(run["row"] == name for run in runs)]
        parts += [
            f"## Preset `{preset}`",
            f"```text\n{report['command']}\n```",
            f"Device {machine['device']}, {machine['processor']}; commits {_commits(runs)}; torch {report['versions']['torch']}.",
            table(HEADER, lines),
            *([f"Not run: {'; '.join(missing)}."] if missing else []),
        ]
    return "\n\n".join(parts)


def comparison(rows: Path, results: Path, names: Sequence[str]) -> str:
    """The table of some rows of the preset cpu, side by side on another page."""
    known = tomllib.loads(rows.read_text(encoding="utf-8"))
    path = results / "accuracy_cpu.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["notes"]["runs"] if path.exists() else []
    lines = [
        _line(known[name], done, limit(known[name].get("required"), runs), None)
        for name in names
        if (done := [run for run in runs if run["row"] == name])
    ]
    return table(HEADER, lines) if lines else "*Not on record yet.*"


def _line(
    row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], asked: float | None, differs: str | None
) -> list[str]:
    errors = [run["error"] for run in runs]
    median = statistics.median(errors)
    classical = [run["classical"] for run in runs if run.get("classical")]
    equal = "-"
    if classical:
        cheapest = statistics.median(c["seconds"] for c in classical)
        equal = (
            f"{_seconds(cheapest)} on {' x '.join(map(str, classical[0]['grid']))}, error {classical[0]['error']:.2g}"
        )
    threads = sorted({run["machine"]["threads"] for run in runs})
    return [
        row["title"] + (f"; {differs}" if differs else ""),
        f"{row['published']:.3g}",
        f"**{median:.3g}**",
        f"{min(errors):.3g} to {max(errors):.3g}",
        str(len(runs)),
        "reported" if asked is None else f"<= {asked:.2g}",
        "-" if asked is None else "yes" if median <= asked else "**no**",
        f"{runs[0]['parameters']:,}",
        f"{statistics.median(run['train_seconds'] for run in runs):.0f} s on {' or '.join(map(str, threads))} thread(s)",
        _seconds(statistics.median(run["predict_seconds"] for run in runs)),
        equal,
    ]


def _seconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value >= 1e-4 else f"{1e6 * value:.3g} us"


def _commits(runs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(run["commit"] for run in runs))
