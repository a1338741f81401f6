"""The tables of linear solvers as Markdown, made from benchmarks/results/solvers_cpu.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measured import table

HEADER = (
    "method", "iterations: median", "worst", "seeds", "setup + solve, times multigrid V", "solve, times multigrid V",
    "bytes an unknown", "true residual, worst",
)  # fmt: skip


def solvers(path: Path) -> str:
    """One table a case, with the command and the machine."""
    if not path.exists():
        return "*Not measured yet.*"
    report = json.loads(path.read_text(encoding="utf-8"))
    machine = report["machine"]
    parts = [
        f"```text\n{report['command']}\n```",
        f"{machine['processor']}, {machine['threads']}; allocator: {machine['allocator']}; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name in ("torch", "numpy", "scipy", "pyamg", "numba"))
        + f". {report['notes']['iterations'][0].upper()}{report['notes']['iterations'][1:]}.",
    ]  # fmt: skip
    for case in report["notes"]["cases"].values():
        lines = [_line(name, method) for name, method in case["methods"].items()]
        parts += [f"**{case['title']}**", table(HEADER, lines)]
    return "\n\n".join(parts)


def _line(name: str, method: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{method['iterations']:g}",
        f"{method['worst']:g}",
        f"{method['seeds']}",
        f"{method['total over ours']:.3g}",
        f"{method['solve over ours']:.3g}",
        f"{method['bytes']:.0f}",
        f"{method['residual']:.1e}",
    ]
