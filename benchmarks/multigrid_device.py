"""Multigrid in conjugate gradients on one device: the smoke problem to 1e-6, setup and solve apart, and the memory that they take."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import side_by_side

REQUIRED_MS, REQUIRED_GB, LARGEST = 35.0, 4.0, 256


def seconds(work: Callable[[], object], rounds: int, device: str) -> float:
    """The median time of one call, after one to warm up; on CUDA the device is waited for."""
    import torch

    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, LARGEST], help="cells an axis")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=side_by_side.ROOT / "benchmarks" / "results", help="folder")
    options = parser.parse_args(arguments)

    import torch

    from benchmarks.report import write_report
    from opflow.grid import Grid
    from opflow.problems import Poisson
    from opflow.solvers import ConjugateGradient, Multigrid, SetUpOnce

    table = side_by_side.Table()
    for n in options.sizes:
        problem, grid = Poisson(dim=3), Grid((n,) * 3, layout="cells")
        inputs = {name: field.to(options.device) for name, field in problem.sample([0], grid, split="test").items()}
        A, b = problem.operator(inputs, grid), inputs["forcing"]
        del inputs
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        solver = ConjugateGradient(SetUpOnce(Multigrid()), rtol=1e-6)
        solution = solver.solve(A, b)
        true = float((b - A.apply(solution.x)).norm() / b.norm())
        if not solution.all_converged or true > 1e-6:
            raise RuntimeError(f"{n}^3: {solution.message}; recomputed {true:.1e}")
        held = n == LARGEST and options.device == "cuda"
        title = f"smoke, {n}^3"
        table.number(f"{title}: iterations to 1e-6", "", int(solution.iterations[0]))
        milliseconds = 1e3 * seconds(lambda solver=solver, A=A, b=b: solver.solve(A, b), options.rounds, options.device)
        table.number(f"{title}: solve", "", milliseconds, "ms", required=REQUIRED_MS if held else None)
        setup = 1e3 * seconds(lambda A=A: Multigrid().setup(A), options.rounds, options.device)
        table.number(f"{title}: setup", "", setup, "ms")
        if options.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 1e9
            table.number(f"{title}: peak memory", "", peak, "GB", required=REQUIRED_GB if held else None)
    write_report(
        "multigrid", table.rows, device=options.device, notes={"rounds": options.rounds, "times": "medians over rounds"},
        folder=options.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
