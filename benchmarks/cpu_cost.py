"""Measure what matrix products and pruned FFTs cost on this CPU, and rewrite the table that chooses between them.

The table is `opflow/kernels/spectral_conv/cpu_cost.json`; the report, with every case, goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = (
    (64, 64),
    (128, 128),
    (256, 256),
    (512, 512),
    (85, 85),
    (241, 241),
    (1024,),
    (8192,),
    (32, 32, 32),
    (64, 64, 40),
)
FRACTIONS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
PLANES_BYTES = 2 << 20


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(shape: tuple[int, ...], fraction: float, dtype_name: str, rounds: int) -> dict[str, object]:
    """One transform and its adjoint in both forms: times, and the work that each form counts."""
    import torch

    from opflow.kernels.spectral_conv.call import SpectralConvCall
    from opflow.kernels.spectral_conv.cpu_cost import fft_work, matrix_work
    from opflow.kernels.spectral_conv.cpu_transform import FftTransform, MatrixTransform

    dtype = getattr(torch, dtype_name)
    n_modes = tuple(max(2, int(n * fraction)) for n in shape)
    planes = max(1, PLANES_BYTES // (math.prod(shape) * dtype.itemsize))
    x = torch.randn(planes, 1, *shape, dtype=dtype)
    weight = x.new_empty(*n_modes[:-1], n_modes[-1] // 2 + 1, 2, 1, 1)
    dft = SpectralConvCall.of(x, weight, n_modes, None).analysis()
    x = x[:, 0]
    spectrum, back = x.new_empty(*dft.modes, 2, planes), torch.empty_like(x)
    times = {}
    for name, form in (("matrix", MatrixTransform(dft, dtype)), ("fft", FftTransform(dft))):

        def both(form: MatrixTransform | FftTransform = form) -> None:
            spectrum.copy_(form.analyse(x))
            back.copy_(form.synthesise(spectrum))

        times[name] = milliseconds(both, rounds)
    work = {"matrix": 2 * planes * matrix_work(dft)} | {k: 2 * planes * w for k, w in fft_work(dft).items()}
    return {"shape": shape, "n_modes": n_modes, "dtype": dtype_name, "milliseconds": times, "work": work}


def prices(cases: list[dict]) -> dict[str, float]:
    """Median nanoseconds per unit of work of each form."""
    matrix = [1e6 * case["milliseconds"]["matrix"] / case["work"]["matrix"] for case in cases]
    table = {"matrix": statistics.median(matrix)}
    for kind, other in (("smooth", "rough"), ("rough", "smooth")):
        pure = [c for c in cases if c["work"][kind] and not c["work"][other]]
        table[kind] = statistics.median(1e6 * c["milliseconds"]["fft"] / c["work"][kind] for c in pure)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="measure and report, but leave the package's table as it is")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    from benchmarks.report import Row, write_report
    from opflow.files import write_json
    from opflow.kernels.spectral_conv import cpu_cost

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    # A matrix form of more than 2^26 entries is no candidate.
    grids = [(s, f) for s in SHAPES for f in FRACTIONS if max(s) ** 2 * f <= 1 << 26]
    table, cases = {}, []
    for dtype in ("float32", "float64"):
        measured = [measure(shape, fraction, dtype, options.rounds) for shape, fraction in grids]
        table[dtype] = prices(measured)
        cases += measured
    if not options.dry:
        write_json(Path(cpu_cost.__file__).with_name(cpu_cost.TABLE), {"nanoseconds": table})

    def chosen(case: dict) -> str:
        price = table[case["dtype"]]
        by_fft = sum(price[kind] * case["work"][kind] for kind in ("smooth", "rough"))
        return "fft" if by_fft < price["matrix"] * case["work"]["matrix"] else "matrix"

    losses = [c["milliseconds"][chosen(c)] / min(c["milliseconds"].values()) for c in cases]
    right = sum(loss <= 1.1 for loss in losses) / len(losses)
    write_report(
        "cpu_cost",
        [
            Row("transforms for which the table takes the faster form, or one within 10 %", 100 * right, "%", "reported", True),
            Row("time of the form taken / of the faster one, mean", statistics.fmean(losses), "x", "reported", True),
            Row("the same, worst case", max(losses), "x", "reported", True),
        ],
        device="cpu",
        notes={"nanoseconds": table, "cases": [case | {"chosen": chosen(case)} for case in cases]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
