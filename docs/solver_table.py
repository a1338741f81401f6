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

CLASSICAL, SCALARS, LEARNED = "multigrid V", "five tuned scalars", "learned multigrid"
VERDICT = (
    "case", "iterations: multigrid V", "five tuned scalars", "learned", "solve time, learned / multigrid V", "fewest iterations",
    "least setup + solve, times multigrid V",
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
        fastest_first = sorted(case["methods"].items(), key=lambda entry: entry[1]["total over ours"])
        lines = [_line(name, method) for name, method in fastest_first]
        parts += [f"**{case['title']}**", table(HEADER, lines)]
    return "\n\n".join(parts)


def verdict(path: Path) -> str:
    """Per case which method takes the fewest iterations and which the least time, and what the learned cycle does beside the classical one."""
    if not path.exists():
        return "*Not measured yet.*"
    lines = []
    for case in json.loads(path.read_text(encoding="utf-8"))["notes"]["cases"].values():
        methods = case["methods"]
        fewest = min(methods, key=lambda name: methods[name]["iterations"])
        fastest = min(methods, key=lambda name: methods[name]["total over ours"])
        row = [case["title"]]
        for name in (CLASSICAL, SCALARS, LEARNED):
            row.append(f"{methods[name]['iterations']:g}" if name in methods else "-")
        row.append(f"{methods[LEARNED]['solve over ours']:.2f}" if LEARNED in methods else "-")
        row += [f"{fewest}, {methods[fewest]['iterations']:g}", f"{fastest}, {methods[fastest]['total over ours']:.2f}"]
        lines.append(row)
    return table(VERDICT, lines)


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
