"""Iterations and seconds of linear solvers against the number of unknowns, drawn from the JSON file of `benchmarks.solvers`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLES = {
    "multigrid V": ("#1b4965", "o-"), "multigrid W": ("#1b4965", "s:"), "learned multigrid": ("#d1495b", "o-"),
    "five tuned scalars": ("#d1495b", "s:"), "fast Poisson (transforms)": ("#62b6cb", "^-"), "Ruge-Stueben (PyAMG)": ("#e09f3e", "D-"),
    "smoothed aggregation (PyAMG)": ("#9e2a2b", "v-"), "IC(0) (ilupp)": ("#8d99ae", "x-"), "no preconditioner": ("#333333", "+-"),
    "deep conjugate directions": ("#6a4c93", "P-"),
}  # fmt: skip


def curves(report: dict[str, Any]) -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """{family: {method: (unknowns of the grid, iterations, seconds of setup and solve), smallest grid first}}: what converged, on families of two grids or more."""
    families: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for case in report["notes"]["cases"].values():
        for name, line in case["methods"].items():
            if line["residual"] > 2 * report["notes"]["rtol"]:  # it ran out of steps
                continue
            point = (math.prod(case["shape"]), line["iterations"], line["setup"] + line["solve"])
            families.setdefault(case["family"], {}).setdefault(name, []).append(point)
    found = {family: {name: sorted(points) for name, points in lines.items()} for family, lines in families.items()}
    return {family: lines for family, lines in found.items() if any(len(points) > 1 for points in lines.values())}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw one column a family to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    families = curves(report)
    figure = Figure(figsize=(3.3 * len(families), 6.4), layout="constrained")
    axes = figure.subplots(2, len(families), squeeze=False, sharex="col")
    for column, (family, lines) in enumerate(families.items()):
        for name, points in lines.items():
            colour, style = STYLES[name]
            unknowns, iterations, seconds = zip(*points, strict=True)
            for row, values in enumerate((iterations, seconds)):
                axes[row, column].loglog(unknowns, values, style, color=colour, label=name, lw=1.3, ms=4)
        axes[0, column].set_title(family, fontsize=10)
        axes[1, column].set_xlabel("grid points")
        for row in range(2):
            axes[row, column].grid(alpha=0.3, lw=0.5)
            axes[row, column].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("iterations to 1e-6")
    axes[1, 0].set_ylabel("setup + solve, s")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).parents[1]
    parser.add_argument("--report", type=Path, default=root / "benchmarks" / "results" / "solvers_cpu.json")
    parser.add_argument("--out", type=Path, default=root / "docs" / "images" / "solvers.png")
    options = parser.parse_args(arguments)
    draw(json.loads(options.report.read_text(encoding="utf-8")), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
