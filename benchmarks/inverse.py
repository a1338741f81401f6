"""The table of inverse problems: every method on every problem, on equal terms, each run made once and recorded.

    python -m benchmarks.inverse --list
    python -m benchmarks.inverse --jobs 2                                # what is missing, two runs at a time on one thread each
    python -m benchmarks.inverse --rows calderon/nio transport --seeds 0 # a method on a problem, or a whole problem
    python -m benchmarks.inverse --preset paper --device cuda

A run whose configuration has a result is skipped. Results are added to benchmarks/results/inverse_<preset>.json, from which the
documentation's table is made; benchmarks/inverse.toml holds the rows and their rules.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).with_suffix(".toml")
CATALOGUE = ROOT / "datasets" / "catalogue.toml"
RESULTS = Path(__file__).parent / "results"
PRESETS = ("cpu", "paper")
SPLITS = ("train", "validation", "test")

Run = tuple[str, str, int]


@cache
def parsed(path: Path) -> dict[str, Any]:
    """A TOML file."""
    return tomllib.loads(path.read_text())


def table() -> dict[str, Any]:
    """What `inverse.toml` holds."""
    return parsed(ROWS)


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings one over the other, nested ones too."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def methods_of(problem: str) -> list[str]:
    """The methods that a problem is given to."""
    priors = table()["problems"][problem]["newton"]
    return [
        name
        for name, method in table()["methods"].items()
        if problem in method.get("problems", [problem]) and method.get("newton") in (None, *priors)
    ]


def settings(problem: str, method: str, preset: str) -> dict[str, Any]:
    """What a run depends on: problem, method and preset put together, and the recipe of the data."""
    rows = table()
    of_problem, of_method = rows["problems"][problem], rows["methods"][method]
    if "base" in of_method:
        of_method = merged(rows["methods"][of_method["base"]], of_method)
    of_method = merged(of_method, of_problem.get("methods", {}).get(method, {}))
    common = {key: rows[key] for key in ("noise", "few", "training")}
    kept = {
        key: value
        for key, value in of_problem.items()
        if key not in ("title", "methods", "newton", "reported", *PRESETS)
    }
    chosen = merged(common, kept, of_problem[preset], of_method)
    encoder, is_square = chosen.pop("encoder"), chosen.pop("published")
    if "newton" in of_method:
        chosen["newton"] = of_problem["newton"][of_method["newton"]]
    elif chosen["kind"] == "network":
        chosen["model"] = _model(chosen["model"], encoder, is_square)
    for key in ("title", "base", "problems", "seeds"):
        chosen.pop(key, None)
    if chosen["kind"] != "network":
        del chosen["training"], chosen["seconds"]
    recipe = parsed(CATALOGUE)[chosen["data"]]
    return chosen | {"recipe": {key: value for key, value in recipe.items() if key != "about"}}


def _model(model: Mapping[str, Any], encoder: str, is_square: bool) -> dict[str, Any]:
    """The model with the encoder that the problem's measurements need.

    Where they do not lie on four sides, the published form has the same encoder as the better one.
    """
    model = dict(model)
    if model.get("encoder") == "problem":
        model["encoder"] = encoder
    if model["build"] == "NIO.published" and not is_square:
        basis = model.pop("basis", 50)
        model.pop("width", None)
        model = {"positive": False, "lifting": "frozen"} | model
        model |= {
            "build": "NIO",
            "encoder": encoder,
            "features": basis,
            "basis": basis,
            "pooling": ["mean"],
            "fields": 1,
            "mixer": "none",
            "skip": False,
            "whitening": 0.0,
            "trunk_features": "none",
        }
    return model


def digest(values: Mapping[str, Any]) -> str:
    """A short name of a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def every_run(preset: str, rows: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Iterator[Run]:
    """All runs of a preset in the order of the table, or those of some rows, problem or problem/method, and seeds."""
    whole = table()
    for problem, entry in whole["problems"].items():
        for method in methods_of(problem) if preset in entry else []:
            if rows and not {problem, f"{problem}/{method}"} & set(rows):
                continue
            count = whole["methods"][method].get("seeds", whole["seeds"])
            yield from ((problem, method, seed) for seed in range(count) if seeds is None or seed in seeds)


def result_path(preset: str, folder: Path = RESULTS) -> Path:
    """Where the results of a preset stand."""
    return folder / f"inverse_{preset}.json"


def recorded(preset: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs on record."""
    path = result_path(preset, folder)
    return json.loads(path.read_text())["notes"]["runs"] if path.exists() else []


def current(preset: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs on record that would be made so now."""
    known = {(p, m): digest(settings(p, m, preset)) for p, m, _ in every_run(preset)}
    return [
        run for run in recorded(preset, folder) if run["configuration"] == known.get((run["problem"], run["method"]))
    ]


def missing(
    preset: str, rows: Sequence[str] = (), seeds: Sequence[int] | None = None, folder: Path = RESULTS
) -> list[Run]:
    """The runs that are not on record as they would be made now."""
    done = {(run["problem"], run["method"], run["seed"]) for run in current(preset, folder)}
    return [run for run in every_run(preset, rows, seeds) if run not in done]


def record(run: dict[str, Any], preset: str, folder: Path = RESULTS) -> Path:
    """Add one run to the results in one step; runs of the same row that had another configuration give way."""
    from benchmarks.report import alone, machine, versions
    from opflow.files import write_json

    row = (run["problem"], run["method"])
    with alone(result_path(preset, folder)):
        kept = [
            r
            for r in recorded(preset, folder)
            if (r["problem"], r["method"]) != row
            or (r["seed"] != run["seed"] and r["configuration"] == run["configuration"])
        ]
        order = {key: i for i, key in enumerate(every_run(preset))}
        runs = sorted([*kept, run], key=lambda r: order.get((r["problem"], r["method"], r["seed"]), -1))
        report = {
            "benchmark": f"inverse problems, preset {preset}",
            "command": "python -m benchmarks.inverse" + (f" --preset {preset}" if preset != "cpu" else ""),
            "machine": machine() | {"threads": run["threads"], "device": run["machine"]["device"]},
            "versions": versions(),
            "rows": summary(runs),
            "notes": {"runs": runs},
        }
        write_json(result_path(preset, folder), report)
    return result_path(preset, folder)


def median_error(
    runs: Sequence[Mapping[str, Any]], problem: str, method: str, case: Mapping[str, Any], norm: str = "l1"
) -> float | None:
    """The median over seeds of the median over test samples; None where it has not run."""
    wanted = {"kind": "additive"} | case
    errors = [
        found[norm]["median"]
        for run in runs
        if (run["problem"], run["method"]) == (problem, method)
        for found in run["cases"]
        if all(found[key] == value for key, value in wanted.items())
    ]
    return statistics.median(errors) if errors else None


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of which something is asked."""
    rows, lines = table(), []
    for asked in rows.get("required", []):
        found = median_error(runs, asked["problem"], asked["method"], asked["case"])
        if found is not None:
            lines.append(_line(asked["what"], found, asked["most"]))
    for asked in rows.get("better", []):
        for problem in asked["problems"]:
            for count, most in zip(rows["problems"][problem]["counts"], asked["most"], strict=True):
                case = {"measurements": count, "noise": 0.0}
                ours = median_error(runs, problem, asked["method"], case)
                others = [median_error(runs, problem, name, case) for name in asked["of"]]
                if ours is not None and None not in others:
                    title = f"{rows['problems'][problem]['title']}, {count} measurements: {asked['what']}, ratio of relative L1"
                    lines.append(_line(title, ours / min(o for o in others if o is not None), most))
    return lines


def _line(what: str, measured: float, most: float) -> dict[str, Any]:
    return {
        "what": what, "measured": float(f"{measured:.4g}"), "unit": "", "required": f"<= {most:g}", "reached": measured <= most,
    }  # fmt: skip


def made(chosen: Mapping[str, Any], data: Path) -> None:
    """Make the data set, or see that it is there; one that is larger than the catalogue's has a folder of its own."""
    from benchmarks.inverse_questions import folder_of

    path = ROOT / "datasets" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_datasets", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sizes = chosen["recipe"]["splits"]
    if folder_of(chosen) != chosen["data"]:
        sizes = {split: chosen[split] for split in SPLITS}
    for split in SPLITS:
        script.make(chosen["recipe"] | {"splits": sizes}, data / folder_of(chosen), split)


def perform(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own, on the threads that the options name."""
    from benchmarks.accuracy import commit

    problem, method, seed = run
    chosen = settings(problem, method, options.preset)
    begun, started = commit(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.inverse", "--child", json.dumps(chosen), str(seed), str(out)]
        command += ["--data", str(options.data), "--device", options.device]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{problem}/{method}, seed {seed} failed:\n{done.stderr[-3000:]}")
        result = json.loads(out.read_text())
    return {
        "problem": problem,
        "method": method,
        "seed": seed,
        "configuration": digest(chosen),
        "commit": begun,
        "threads": options.threads,
        "wall_seconds": round(time.perf_counter() - started, 1),
        **result,
        "settings": chosen,
    }


def child(chosen: Mapping[str, Any], seed: int, out: Path, options: argparse.Namespace) -> None:
    """In a process of its own: fit and ask."""
    from benchmarks.inverse_methods import run
    from benchmarks.report import machine
    from opflow.files import write_json

    write_json(out, run(chosen, seed, data=options.data, device=options.device) | {"machine": machine(options.device)})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the rows, and what is on record")
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="a problem, or problem/method; all by default"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="all that a row asks for by default")
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the folder of data sets")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        chosen, seed, out = options.child
        child(json.loads(chosen), int(seed), Path(out), options)
        return
    known = {name for p, m, _ in every_run(options.preset) for name in (p, f"{p}/{m}")}
    if unknown := [row for row in options.rows if row not in known]:
        parser.error(f"row {unknown[0]!r} is unknown; --list names them")
    wanted = missing(options.preset, options.rows, options.seeds, options.out)
    if options.list:
        _list(options)
        return
    for problem in dict.fromkeys(problem for problem, _, _ in wanted):
        chosen = settings(problem, methods_of(problem)[0], options.preset)
        made(chosen, options.data)

    def one(run: Run) -> None:
        print(f"{run[0]}/{run[1]}, seed {run[2]} ...", flush=True)
        result = perform(run, options)
        record(result, options.preset, options.out)
        first = result["cases"][0]
        print(
            f"{run[0]}/{run[1]}, seed {run[2]}: median relative L1 {first['l1']['median']:.4g}, L2 {first['l2']['median']:.4g}; "
            f"fit {result['fit_seconds']:.0f} s, inversion {result['inversion_seconds']:.3g} s",
            flush=True,
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        failures = [f.exception() for f in [pool.submit(one, run) for run in wanted]]
    for failure in filter(None, failures):
        print(failure, file=sys.stderr)
    if any(failures):
        raise SystemExit(1)


def _list(options: argparse.Namespace) -> None:
    done = current(options.preset, options.out)
    rows = dict.fromkeys((p, m) for p, m, _ in every_run(options.preset, options.rows))
    titles = table()
    for problem, method in rows:
        seeds = sorted(r["seed"] for r in done if (r["problem"], r["method"]) == (problem, method))
        print(f"{problem}/{method}: {titles['methods'][method]['title']}; seeds on record: {seeds or 'none'}")


if __name__ == "__main__":
    main()
