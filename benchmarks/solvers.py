"""Linear solvers side by side: iterations, setup and solve time, true residual and memory on the same systems in one process.

Beside ours stand PyAMG's two hierarchies and IC(0) in SciPy's conjugate gradients. Every case and method is a line of the table
with the median and the worst of its seeds. Times are ratios to ours on the same system, A B C A B C over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import side_by_side
from benchmarks.side_by_side import rounded

if TYPE_CHECKING:
    from benchmarks.solver_methods import Method
    from benchmarks.solver_tasks import Case, System

RTOL = 1e-6
SMOKE_LIMITS = {1e-4: 6, 1e-6: 8, 1e-10: 12}
SMOKE_SEEDS, ANISOTROPY_LIMIT, ADJOINT_LIMIT = 5, 12, 1.2
OURS = "multigrid V"
PYAMG = ("Ruge-Stueben (PyAMG)", "smoothed aggregation (PyAMG)")
# The names of cases are known before anything heavy is imported, so that --help answers at once.
NAMES = (
    "smoke-2d-128", "smoke-2d-256", "smoke-2d-512", "smoke-3d-32", "smoke-3d-64", "smoke-3d-128", "contrast-10-256",
    "contrast-1e4-128", "contrast-1e4-256", "contrast-1e4-512", "contrast-1e4-3d-32", "contrast-1e4-3d-64",
    "anisotropy-256", "rotated-256", "plates-192",
)  # fmt: skip


def measure(method: Method, system: System, seed: int) -> dict[str, Any]:
    """One solve to `RTOL`, setup and solve timed apart; the residual is recomputed here, whatever the method says."""
    import time

    from benchmarks.solver_methods import bytes_held

    matrix, vector = system.matrix, system.vector
    system = system.fresh()
    system.matrix, system.vector = matrix, vector  # assembled already, like the stencil
    start = time.perf_counter()
    state = method.setup(system)
    ready = time.perf_counter()
    run = method.solve(state, system, RTOL)
    end = time.perf_counter()
    return {
        "seed": seed,
        "setup": rounded(ready - start),
        "solve": rounded(end - ready),
        "iterations": run.iterations,
        "matvecs": run.matvecs,
        "residual": rounded(system.true_residual(run.x)),
        "bytes": rounded(bytes_held(method.name, state, system)),
    }


def measured(case: Case, seeds: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """{method: a record a seed}; the first seed is solved once before, unrecorded, so that kernels are compiled and caches filled."""
    from benchmarks.solver_methods import methods

    arms = [method for method in methods(case) if method.refusal(case) is None]
    number = seeds or case.seeds
    records: dict[str, list[dict[str, Any]]] = {method.name: [] for method in arms}
    for seed in range(number):
        system = case.make(seed)
        _ = system.matrix, system.vector  # what PyAMG starts from is not timed
        for method in arms:
            few = method.slow or (method.hierarchy and case.few_hierarchies)
            if few and seed >= case.few:
                continue
            if seed == 0 and not few:
                measure(method, system, seed)
            records[method.name].append(measure(method, system, seed))
    return records


def summary(records: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst over the seeds, and the ratios to ours, seed by seed."""
    own = {record["seed"]: record for record in ours}
    totals, solves = [], []
    for record in records:
        mine = own[record["seed"]]
        totals.append((record["setup"] + record["solve"]) / (mine["setup"] + mine["solve"]))
        solves.append(record["solve"] / mine["solve"])
    iterations = [record["iterations"] for record in records]
    return {
        "seeds": len(records),
        "iterations": statistics.median(iterations),
        "worst": max(iterations),
        "matvecs": statistics.median(record["matvecs"] for record in records),
        "setup": statistics.median(record["setup"] for record in records),
        "solve": statistics.median(record["solve"] for record in records),
        "total over ours": statistics.median(totals),
        "solve over ours": statistics.median(solves),
        "residual": max(record["residual"] for record in records),
        "bytes": statistics.median(record["bytes"] for record in records),
    }


def smoke_iterations(case: Case, seeds: int) -> dict[float, int]:
    """The most iterations of ours over the seeds, to each tolerance that something is required at."""
    from opflow.solvers import ConjugateGradient, Multigrid

    most = dict.fromkeys(SMOKE_LIMITS, 0)
    for seed in range(seeds):
        system = case.make(seed)
        for rtol in most:
            solution = ConjugateGradient(Multigrid(), rtol=rtol).solve(system.A, system.b)
            if not solution.all_converged:
                raise RuntimeError(f"{case.title}, seed {seed}, rtol {rtol:g}: {solution.message}")
            most[rtol] = max(most[rtol], int(solution.iterations[0]))
    return most


def adjoint_over_forward(case: Case, rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of a forward solve, and of the backward pass of `implicit_solve` on it, with a gradient as hard as the right-hand side."""
    import time

    from opflow.solvers import ConjugateGradient, Multigrid, implicit_solve

    system = case.make(0)
    A = system.A.with_tensors([t.requires_grad_() for t in system.A.tensors()])
    times: dict[str, list[float]] = {"forward": [], "adjoint": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        x = implicit_solve(A, system.b.requires_grad_(), ConjugateGradient(Multigrid(), rtol=RTOL))
        middle = time.perf_counter()
        x.backward(system.b.detach())
        times["forward"].append(middle - start)
        times["adjoint"].append(time.perf_counter() - middle)
    return {name: values[1:] for name, values in times.items()}  # the first round compiles


def recorded(name: str, seeds: int | None) -> dict[str, Any]:
    """All that is measured of a case: every method on every seed, and what only some cases are asked for."""
    from benchmarks.solver_tasks import CASES

    case = CASES[name]
    record: dict[str, Any] = {"methods": measured(case, seeds)}
    if case.family == "smoke in 3D":
        record["most iterations"] = smoke_iterations(case, min(SMOKE_SEEDS, seeds or SMOKE_SEEDS))
    if name == "smoke-3d-64":
        record["adjoint"] = adjoint_over_forward(case)
    return record


def summaries(record: dict[str, Any]) -> dict[str, Any]:
    """{method: its summary}"""
    return {name: summary(values, record["methods"][OURS]) for name, values in record["methods"].items()}


def add_rows(title: str, name: str, record: dict[str, Any], table: side_by_side.Table) -> None:
    """The lines of a case, with what is required of it."""
    lines = summaries(record)
    for method, line in lines.items():
        what = f"{title}: {method}"
        limit = ANISOTROPY_LIMIT if name == "anisotropy-256" and method == OURS else None
        table.number(what, "iterations, median", line["iterations"])
        table.number(what, "worst", line["worst"], required=limit)
        if method != OURS:
            table.number(what, "setup + solve / multigrid V", line["total over ours"], "x")
            table.number(what, "solve / multigrid V", line["solve over ours"], "x")
        table.number(what, "bytes an unknown", line["bytes"])
    for rtol, found in record.get("most iterations", {}).items():
        what = f"{title}: multigrid V, most iterations of {SMOKE_SEEDS} seeds to {float(rtol):g}"
        table.number(what, "", found, required=SMOKE_LIMITS[float(rtol)])
    if name == "smoke-3d-128":
        for key, limit, how in (("total over ours", 8, "with setup"), ("solve over ours", 4, "without setup")):
            better = min(lines[one][key] for one in PYAMG)
            what = f"{title}: the better of PyAMG's two / multigrid V, {how}"
            table.number(what, "", better, "x", required=limit, sign=">=")
    if "adjoint" in record:
        what = f"{title}: adjoint solve / forward solve, multigrid V"
        ratio = statistics.median(side_by_side.ratios(record["adjoint"], "adjoint", "forward"))
        table.number(what, "", ratio, "x", required=ADJOINT_LIMIT)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=list(NAMES), metavar="CASE", help=", ".join(NAMES))
    parser.add_argument(
        "--seeds", type=int, default=None, help="fewer seeds than the cases ask for: does everything work?"
    )
    parser.add_argument("--update", action="store_true", help="keep the cases on record that are not measured now")
    parser.add_argument("--out", type=Path, default=None, help="folder; a part of the cases goes to runs/benchmarks")
    options = parser.parse_args(arguments)
    whole = options.seeds is None and (options.update or set(options.cases) == set(NAMES))
    options.out = options.out or (side_by_side.ROOT / "benchmarks" / "results" if whole else side_by_side.SCRATCH)
    options.out.mkdir(parents=True, exist_ok=True)

    from tqdm import tqdm

    from benchmarks.report import write_report
    from benchmarks.solver_tasks import CASES

    if set(CASES) != set(NAMES):
        raise RuntimeError(
            "benchmarks.solvers.NAMES and benchmarks.solver_tasks.CASES differ; name the same cases in both."
        )
    side_by_side.pin(1)
    file = options.out / "solvers_cpu.json"
    records = json.loads(file.read_text(encoding="utf-8"))["notes"]["records"] if options.update else {}
    for name in tqdm(options.cases, desc="cases"):
        records[name] = recorded(name, options.seeds)
    records = {name: records[name] for name in NAMES if name in records}
    table = side_by_side.Table()
    for name, record in records.items():
        add_rows(CASES[name].title, name, record, table)
    write_report(
        "solvers",
        table.rows,
        device="cpu",
        conditions={"threads": "1, pinned to one core"},
        notes={
            "rtol": RTOL,
            "protocol": "every method solves a seed's system in turn, then the next seed's; a ratio is the median over the seeds of the "
            "ratio on one system; each method first solves one system unrecorded (not the slow ones)",
            "iterations": "to |b - A x| <= 1e-6 |b| as the method sees it; the true residual is recomputed in double precision",
            "cases": {
                name: {
                    "title": CASES[name].title,
                    "family": CASES[name].family,
                    "shape": list(CASES[name].shape),
                    "methods": summaries(record),
                }
                for name, record in records.items()
            },
            "records": records,
        },
        folder=options.out,
    )


if __name__ == "__main__":
    main()
