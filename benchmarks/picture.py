"""Bars of the ratios of a side-by-side benchmark, with what is required and what would be ambitious: from its JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {"default allocator": "#2a6f97", "equal allocator": "#89c2d9"}
SUFFIX = ": step, peer time / ours"


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The required ratios: {"title", "column", "ratio", "quartiles", "required", "ambitious"} each."""
    found = []
    for row, detail in zip(report["rows"], report["notes"]["details"], strict=True):
        if row["what"].endswith(SUFFIX) and row["column"] in COLOURS and "quartiles" in detail:
            required = None if row["required"] == "reported" else float(row["required"].strip(">= x"))
            found.append(
                {
                    "title": row["what"].removesuffix(SUFFIX),
                    "column": row["column"],
                    "ratio": row["measured"],
                    "quartiles": detail["quartiles"],
                    "required": required,
                    "ambitious": detail.get("ambitious"),
                }
            )
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the ratios of a report to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    found = bars(report)
    titles = list(dict.fromkeys(bar["title"] for bar in found))
    figure = Figure(figsize=(8, 0.9 + 0.62 * len(titles)), layout="constrained")
    axes = figure.subplots()
    for bar in found:
        number = list(COLOURS).index(bar["column"])
        y = titles.index(bar["title"]) + 0.38 * (number - 0.5)
        low, high = bar["quartiles"]
        error = [[max(0, bar["ratio"] - low)], [max(0, high - bar["ratio"])]]
        axes.barh(y, bar["ratio"], 0.36, color=COLOURS[bar["column"]], xerr=error, error_kw={"lw": 0.8}, zorder=2)
        for goal, style in ((bar["required"], "-"), (bar["ambitious"], ":")):
            if goal is not None:
                axes.plot([goal, goal], [y - 0.18, y + 0.18], style, color="#d1495b", lw=2, zorder=3)
    for column, colour in COLOURS.items():
        axes.barh(0, 0, color=colour, label=column)
    axes.plot([], [], "-", color="#d1495b", lw=2, label="required")
    axes.plot([], [], ":", color="#d1495b", lw=2, label="ambitious")
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(titles)), [title.replace(", ", "\n", 1) for title in titles], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of {report['notes']['peer']} / time of opflow, a step, 1 core")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    draw(json.loads(options.report.read_text()), options.picture)


if __name__ == "__main__":
    main()
