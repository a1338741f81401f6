"""The tables of PINNs as Markdown, made from benchmarks/results/pinn_cpu.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measured import table

HEADER = ("problem", "published", "median of the seeds", "range", "required", "target", "CPU seconds a seed")
CLASSICAL = ("problem", "PINN: error", "CPU seconds", "classical solver", "its error", "CPU seconds")


def details(path: Path) -> list[dict[str, Any]]:
    """What the benchmark keeps of every number; none where it has not run."""
    return json.loads(path.read_text(encoding="utf-8"))["notes"]["details"] if path.exists() else []


def pinns(path: Path) -> str:
    """A line a number, with what was asked and whether it was reached."""
    lines = [_line(entry) for entry in details(path)]
    return table(HEADER, lines) if lines else "*Not measured yet.*"


def beside_classical(path: Path) -> str:
    """A line a number for which the example solved the same problem with a classical method."""
    lines = [
        [
            entry["title"],
            _number(entry["median"], entry["unit"]),
            _seconds(entry["seconds"]),
            entry["reference"].get("method", "-"),
            _number(entry["reference"]["error"], entry["reference"]["unit"]),
            _seconds(entry["reference"].get("seconds")),
        ]
        for entry in details(path)
        if entry["reference"]
    ]
    return table(CLASSICAL, lines) if lines else "*Not measured yet.*"


def _line(entry: Mapping[str, Any]) -> list[str]:
    unit = entry["unit"]
    low, high = entry["range"]
    return [
        f"{entry['title']} (`{entry['example']}.py`, {entry['seeds']} seed{'s' * (entry['seeds'] > 1)})",
        str(entry["published"]),
        _number(entry["median"], unit),
        f"{_number(low, unit)} to {_number(high, unit)}",
        _asked(entry["required"], entry["reached"]),
        "-" if entry["target"] is None else _asked(entry["target"], entry["target_reached"]),
        _seconds(entry["seconds"]),
    ]


def _asked(asked: str, reached: bool) -> str:
    return "-" if asked == "reported" else f"{asked}: {'reached' if reached else '**not reached**'}"


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2g} {unit}".rstrip()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"
