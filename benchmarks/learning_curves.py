"""Error on the validation split against seconds of training, of runs on record: a picture out of the accuracy results.

python -m benchmarks.learning_curves darcy64-fno darcy64-mgno darcy64-mgno-v --seeds 0 --out docs/images/darcy64_curves.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import PRESETS, RESULTS, recorded


def curves(names: Sequence[str], runs: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """One curve a run, by the row's name and the seed.

    Raises:
        ValueError: a row has no run with a curve on record.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name in names:
        done = [run for run in runs if run["row"] == name and run.get("curve")]
        if not done:
            raise ValueError(
                f"{name} has no run with a curve on record; run python -m benchmarks.accuracy --row {name}."
            )
        for run in done:
            _, seconds, errors = zip(*run["curve"], strict=True)
            found[f"{name}, seed {run['seed']}"] = (list(seconds), list(errors))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="names of the accuracy table")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the runs; all by default")
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG file")
    options = parser.parse_args(arguments)
    from opflow.plotting import plot_convergence, save_figure

    runs = recorded(options.preset, options.results)
    if options.seeds:
        runs = [run for run in runs if run["seed"] in options.seeds]
    figure = plot_convergence(
        curves(options.rows, runs),
        xlabel="seconds of training",
        ylabel="relative L2 on the validation split",
    )
    print(save_figure(figure, options.out))


if __name__ == "__main__":
    main()
