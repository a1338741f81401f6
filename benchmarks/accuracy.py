"""The accuracy table: three seeds of every paper's problem, each row run, resumed and recorded by one command.

    python -m benchmarks.accuracy --list
    python -m benchmarks.accuracy --row burgers-fno --seed 0            # one run of the preset "cpu"
    python -m benchmarks.accuracy --row all                             # what is missing, row by row
    python -m benchmarks.accuracy --row darcy-fno --preset paper --device cuda

A run whose configuration has a result is skipped; one that was stopped goes on from its last epoch. Results are appended to
benchmarks/results/accuracy_<preset>.json, from which the documentation's table is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).with_suffix(".toml")
CATALOGUE = ROOT / "datasets" / "catalogue.toml"
RESULTS = Path(__file__).parent / "results"
PRESETS = ("cpu", "paper")


def rows() -> dict[str, dict[str, Any]]:
    """The rows by name, as `accuracy.toml` holds them."""
    return tomllib.loads(ROWS.read_text())


def settings(row: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """What a run depends on: the row's task with the preset's numbers, and the recipe of its data."""
    chosen = {key: row[key] for key in ("metric", "task", "data")} | row[preset]
    chosen.pop("differs", None)
    recipe = tomllib.loads(CATALOGUE.read_text())[chosen["data"]]
    return chosen | {"recipe": {key: value for key, value in recipe.items() if key != "about"}}


def digest(values: Mapping[str, Any]) -> str:
    """A short name of a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def result_path(preset: str, folder: Path = RESULTS) -> Path:
    """Where the results of a preset stand."""
    return folder / f"accuracy_{preset}.json"


def recorded(preset: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs on record."""
    path = result_path(preset, folder)
    return json.loads(path.read_text())["notes"]["runs"] if path.exists() else []


def record(run: dict[str, Any], preset: str, folder: Path = RESULTS) -> Path:
    """Add one run to the results, in one step, whoever else adds at the same time; an older run of the same thing gives way, and all
    of the row that had another configuration: a median is one configuration's.
    """
    from benchmarks.report import alone, versions
    from opflow.files import write_json

    with alone(result_path(preset, folder)):
        kept = [r for r in recorded(preset, folder) if r["row"] != run["row"] or _is_beside(r, run)]
        runs = [*kept, run]
        runs.sort(key=lambda r: (list(rows()).index(r["row"]) if r["row"] in rows() else -1, r["seed"]))
        report = {
            "benchmark": f"accuracy, preset {preset}",
            "command": f"python -m benchmarks.accuracy --row all --preset {preset}",
            "machine": run["machine"],
            "versions": versions(),
            "rows": summary(runs, preset),
            "notes": {"runs": runs},
        }
        write_json(result_path(preset, folder), report)
    return result_path(preset, folder)


def _is_beside(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return old["seed"] != new["seed"] and old.get("configuration") == new.get("configuration")


def summary(runs: list[dict[str, Any]], preset: str) -> list[dict[str, Any]]:
    """The lines of the table: the median over seeds with its range beside what is asked."""
    lines = []
    for name, row in rows().items():
        done = [r for r in runs if r["row"] == name]
        if not done:
            continue
        errors = [r["error"] for r in done]
        asked = limit(row.get("required" if preset == "cpu" else "target"), runs)
        median = statistics.median(errors)
        differs = row[preset].get("differs") if preset in row else None
        lines.append(
            {
                "what": f"{row['title']}{f' ({differs})' if differs else ''}: {row['metric']}, median of {len(done)} seeds "
                f"({min(errors):.3g} to {max(errors):.3g}; published {row['published']:.3g})",
                "measured": median,
                "unit": "",
                "required": "reported" if asked is None else f"<= {asked:.3g}",
                "reached": asked is None or median <= asked,
            }
        )
    return lines


def limit(asked: float | str | None, runs: Sequence[Mapping[str, Any]]) -> float | None:
    """What a row's median is not to exceed: a number, or the median of the row of this name; None where that has not run."""
    if not isinstance(asked, str):
        return asked
    errors = [run["error"] for run in runs if run["row"] == asked]
    return statistics.median(errors) if errors else None


def commit() -> str:
    """The commit that runs, with a mark if files differ from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return said.stdout.strip() or "unknown"


def made(name: str, data: Path, device: str) -> None:
    """Make the data set, or see that it is there; one that was begun on another device is finished there."""
    begun = sorted((data / name).glob("*/recipe.json"))
    if begun:
        device = json.loads(begun[0].read_text())["device"]
    command = [sys.executable, str(ROOT / "datasets" / "generate.py"), name, "--out", str(data), "--device", device]
    subprocess.run(command, check=True)


def run_once(name: str, seed: int, options: argparse.Namespace) -> None:
    """One row and seed, unless it is on record."""
    chosen = settings(rows()[name], options.preset)
    key = digest(chosen)
    if not options.again and any(
        (r["row"], r["seed"], r["configuration"]) == (name, seed, key) for r in recorded(options.preset, options.out)
    ):
        print(f"{name}, seed {seed}: on record")
        return
    from benchmarks.accuracy_classical import equal_cost
    from benchmarks.accuracy_training import run
    from benchmarks.report import machine

    made(chosen["data"], options.data, options.device)
    work = options.work / f"{name}_{options.preset}_{key}_{seed}"
    begun = commit()
    outcome = run(chosen, seed, data=options.data, work=work, device=options.device)
    path = record(
        {
            "row": name,
            "seed": seed,
            "configuration": key,
            "commit": begun,
            **outcome,
            "classical": equal_cost(chosen, outcome["error"], options.data),
            "settings": chosen,
            "machine": machine(options.device),
        },
        options.preset,
        options.out,
    )
    print(
        f"{name}, seed {seed}: {rows()[name]['metric']} {outcome['error']:.4g}, {outcome['train_seconds']:.0f} s; {path}"
    )


def measure_classical_again(name: str, options: argparse.Namespace) -> None:
    """The classical solver's side of what is on record for a row, all in one go on this machine."""
    from benchmarks.accuracy_classical import equal_cost
    from benchmarks.report import machine

    for run in recorded(options.preset, options.out):
        if run["row"] == name:
            made(run["settings"]["data"], options.data, options.device)
            classical = equal_cost(run["settings"], run["error"], options.data)
            record(run | {"classical": classical, "classical_machine": machine()}, options.preset, options.out)
            print(f"{name}, seed {run['seed']}: {classical}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="all", choices=("all", *rows()), metavar="ROW", help="a name, or all")
    parser.add_argument("--seed", type=int, default=None, help="one seed; all that the row asks for by default")
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; its own choice by default")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the folder of data sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "accuracy", help="the folder of checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--again", action="store_true", help="run also what is on record")
    parser.add_argument(
        "--classical", action="store_true", help="only measure the classical solver of recorded runs again"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and what is on record")
    options = parser.parse_args()
    if options.list:
        runs = recorded(options.preset, options.out)
        for name, row in rows().items():
            done = sorted(r["seed"] for r in runs if r["row"] == name)
            print(f"{name:28} {row['title']}; published {row['published']:.3g}; seeds on record: {done or 'none'}")
        return
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    for name in rows() if options.row == "all" else [options.row]:
        if options.classical:
            measure_classical_again(name, options)
            continue
        if options.preset not in rows()[name]:
            print(f"{name}: has no preset {options.preset}")
            continue
        for seed in range(rows()[name]["seeds"]) if options.seed is None else [options.seed]:
            run_once(name, seed, options)


if __name__ == "__main__":
    main()
