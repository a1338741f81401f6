"""Write the measured numbers of `benchmarks/results/` into the README, between its two markers."""

from __future__ import annotations

import json
from pathlib import Path

from opflow.files import write_bytes

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- measured: written by `python -m benchmarks.readme` from benchmarks/results/ -->\n"
END = "<!-- end of measured -->"


def table() -> str:
    """One Markdown table over all result files."""
    lines = ["| what | measured | asked | where | command |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        report = json.loads(path.read_text())
        machine = report["machine"]
        where = f"{machine['cores']} cores" if machine["device"] == "cpu" else machine["device"]
        for row in report["rows"]:
            asked = row["required"] if row["reached"] else f"{row['required']}, **not reached**"
            measured = f"{row['measured']:.3g} {row['unit']}".strip()
            lines.append(f"| {row['what']} | {measured} | {asked} | {where} | `{report['command']}` |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """The README with the table between its markers."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    write_bytes(ROOT / "README.md", with_table((ROOT / "README.md").read_text()).encode())
