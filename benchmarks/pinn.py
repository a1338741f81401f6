"""The table of PINNs: every row is an example script, run with three seeds, beside the classical solver that made its reference.

    python -m benchmarks.pinn --list
    python -m benchmarks.pinn                         # what is missing or out of date, two runs at a time on one thread each
    python -m benchmarks.pinn --rows burgers --seeds 0

A run is known by the text of its example and its arguments; when these change it is made again. Results are added to
benchmarks/results/pinn_cpu.json, from which the documentation's table is made.
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
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).with_suffix(".toml")
RESULTS = Path(__file__).parent / "results" / "pinn_cpu.json"
SCRATCH = ROOT / "runs" / "pinn"
SEEDS = (0, 1, 2)


def runs() -> dict[str, dict[str, Any]]:
    """The runs by name as `pinn.toml` holds them: an example, its arguments, and the numbers that are read from it."""
    return tomllib.loads(ROWS.read_text())


def digest(run: Mapping[str, Any]) -> str:
    """A short name of what a run does: the example's text with the arguments."""
    text = (ROOT / "examples" / f"{run['example']}.py").read_text()
    said = text + json.dumps(run.get("arguments", {}), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def recorded(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs on record."""
    return json.loads(path.read_text())["notes"]["runs"] if path.exists() else []


def current(path: Path = RESULTS) -> set[tuple[str, int]]:
    """The runs and seeds on record as they would be made now."""
    digests = {name: digest(run) for name, run in runs().items()}
    return {(r["run"], r["seed"]) for r in recorded(path) if r["digest"] == digests.get(r["run"])}


def missing(names: Sequence[str], seeds: Sequence[int], path: Path = RESULTS) -> list[tuple[str, int]]:
    """The runs that are not on record as they would be made now."""
    known = current(path)
    wanted = [(n, s) for n in names for s in seeds if s in runs()[n].get("seeds", SEEDS)]
    return [entry for entry in wanted if entry not in known]


def perform(name: str, seed: int) -> dict[str, Any]:
    """One run in a process of its own, on one thread."""
    from benchmarks.report import machine

    out, what = SCRATCH / f"{name}-{seed}", digest(runs()[name])  # before: the example may be edited meanwhile
    command = [sys.executable, "-m", "benchmarks.pinn", "--child", name, "--seeds", str(seed)]
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} with seed {seed} failed:\n{done.stderr[-2000:]}")
    return {
        "run": name,
        "seed": seed,
        "digest": what,
        "processor": machine()["processor"],
        "wall_seconds": round(time.perf_counter() - started, 1),
        "results": json.loads((out / "results.json").read_text()),
    }


def child(name: str, seed: int) -> None:
    """In a process of its own: call the example's main."""
    run = runs()[name]
    path = ROOT / "examples" / f"{run['example']}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up by its name
    spec.loader.exec_module(module)
    arguments = {key: Path(v) if key.endswith("folder") else v for key, v in run.get("arguments", {}).items()}
    module.main(seed=seed, out=SCRATCH / f"{name}-{seed}", overwrite=True, **arguments)


def record(result: dict[str, Any], path: Path = RESULTS) -> None:
    """Add one run to the file in one step; older runs of the same row that were made otherwise give way."""
    from benchmarks.report import alone, machine, versions
    from opflow.files import write_json

    with alone(path):
        kept = [
            r
            for r in recorded(path)
            if r["run"] in runs()
            and (r["run"] != result["run"] or (r["seed"] != result["seed"] and r["digest"] == result["digest"]))
        ]
        kept = sorted([*kept, result], key=lambda r: (list(runs()).index(r["run"]), r["seed"]))
        lines, details = summary(kept)
        processors = sorted({r["processor"] for r in kept})  # the runs may come from several machines
        report = {
            "benchmark": "pinn",
            "command": "python -m benchmarks.pinn",
            "machine": machine() | {"threads": 1, "processor": ", ".join(processors)},
            "versions": versions(),
            "rows": lines,
            "notes": {"details": details, "runs": kept},
        }
        write_json(path, report)


def at(results: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The entry of nested results under these keys, one after another."""
    value: Any = results
    for key in path:
        value = value[key]
    return value


def summary(done: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the table, median over seeds, and beside each what the documentation shows besides."""
    lines, details = [], []
    for name, run in runs().items():
        results = [r["results"] for r in done if r["run"] == name]
        if not results:
            continue
        for number in run["numbers"]:
            values = [float(at(r, number["path"])) * number.get("scale", 1.0) for r in results]
            median, sign, asked = statistics.median(values), number.get("sign", "<="), number.get("required")
            reached = asked is None or (median <= asked if sign == "<=" else median >= asked)
            unit = number.get("unit", "")
            spread = f"{min(values):.2g} to {max(values):.2g}"
            published = f"; published {number['published']}" if "published" in number else ""
            what = f"{number['title']}, median of {len(values)} seed{'s' * (len(values) > 1)} ({spread}{published})"
            required = _asked(sign, asked, unit) or "reported"
            lines.append(
                {
                    "what": what, "measured": float(f"{median:.4g}"), "unit": unit, "required": required, "reached": reached,
                }
            )  # fmt: skip
            seconds = [float(at(r, number["seconds"])) for r in results if "seconds" in number]
            target = number.get("target")
            details.append(
                {
                    "title": number["title"], "example": run["example"], "unit": unit, "seeds": len(values), "median": median,
                    "range": [min(values), max(values)], "published": number.get("published", "-"),
                    "required": required, "reached": reached, "target": _asked(sign, target, unit),
                    "target_reached": None if target is None else (median <= target if sign == "<=" else median >= target),
                    "seconds": statistics.median(seconds) if seconds else None,
                    "reference": _reference(results, number),
                }
            )  # fmt: skip
    return lines, details


def _reference(results: Sequence[Mapping[str, Any]], number: Mapping[str, Any]) -> dict[str, Any] | None:
    """The classical method with its error and seconds: of the solver that made the reference, or of one that the row names itself."""
    if "reference" not in number:
        return None
    found = [at(r, number["reference"]) for r in results]
    errors = [
        float(entry[number.get("reference_error", "error")])
        for entry in found
        if "error" in entry or "reference_error" in number
    ]
    return {
        "method": number.get("reference_method", found[0].get("method", "-")),
        "error": statistics.median(errors) * number.get("scale", 1.0) if errors else None,
        "unit": number.get("unit", "") if "reference_error" in number else "",
        "seconds": statistics.median(float(entry["seconds"]) for entry in found),
    }


def _asked(sign: str, limit: float | None, unit: str) -> str | None:
    return None if limit is None else f"{sign} {limit:g} {unit}".rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--list", action="store_true", help="the rows, and what is on record")
    parser.add_argument("--rows", nargs="+", choices=list(runs()), default=list(runs()), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.seeds[0])
        return
    wanted = missing(options.rows, options.seeds)
    if options.list:
        known = current()
        for name in options.rows:
            seeds = sorted(seed for run, seed in known if run == name)
            print(f"{name}: examples/{runs()[name]['example']}.py, on record: seeds {seeds or 'none'}")
        return

    def one(entry: tuple[str, int]) -> None:
        name, seed = entry
        print(f"{name}, seed {seed} ...", flush=True)
        result = perform(name, seed)
        record(result)
        values = {n["title"]: at(result["results"], n["path"]) for n in runs()[name]["numbers"]}
        print(f"{name}, seed {seed}: {values}, {result['wall_seconds']} s", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        failures = [f.exception() for f in [pool.submit(one, entry) for entry in wanted]]
    for failure in filter(None, failures):
        print(failure, file=sys.stderr)
    if any(failures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
