"""Iterations of the learned multigrid cycles that opflow ships, beside five tuned numbers, classical cycles and PyAMG."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import Row, write_report
from opflow.models import MultigridNetwork, TunedCycle
from opflow.problems.elliptic_operators import FAMILIES, EllipticOperators
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid

SIZES = {2: (64, 128, 256, 512), 3: (32, 64)}
# Fixed contrast, beyond the mixture of the training families: where classical cycles are weak, and where none was trained.
MORE = {
    "two-phase, contrast 1e4": EllipticOperators("two-phase", contrast=(1e4, 1e4)),
    "two-phase, contrast 1e7 (not trained)": EllipticOperators("two-phase", contrast=(1e7, 1e7)),
}
NETWORK, TUNED = "network V", "tuned V"
RTOL = 1e-6
GROWTH = 1.3
MOONSHOT = 15  # iterations at contrast 1e4 on 64^3


def methods(dim: int) -> dict[str, Any]:
    """Every preconditioner by its column."""
    network, tuned = (cls.from_pretrained(f"elliptic-{dim}d") for cls in (MultigridNetwork, TunedCycle))
    return {
        "red-black V": Multigrid(),
        "red-black W": Multigrid("W"),
        TUNED: Multigrid(coefficients=tuned),
        NETWORK: Multigrid(coefficients=network),
        "Ruge-Stueben": AlgebraicMultigrid("ruge-stueben"),
    }


def right_side(A: FaceStencil, seed: int) -> Tensor:
    """A constant and a tenth of noise, without what a closed part of the domain cannot produce."""
    noise = torch.randn(1, *A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    b = 1 + 0.1 * noise
    null = A.null_part(b)
    return b if null is None else b - null


def iterations(A: FaceStencil, M: Any, seed: int) -> int:
    """Steps of conjugate gradients, or 500 where that many are not enough."""
    return int(ConjugateGradient(M, rtol=RTOL, max_steps=500).solve(A, right_side(A, seed)).iterations)


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The median of a few."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def counts(
    dim: int, sizes: Sequence[int], seeds: int, seeds_largest: int, hierarchies: int
) -> list[tuple[str, int, dict[str, list[int]]]]:
    """(family, size, {method: iterations by seed}), the same operators for every method; PyAMG gets `hierarchies` of them."""
    found = []
    solvers = methods(dim)
    cases = [(family, size) for family in (*FAMILIES, *MORE) for size in sizes]
    number = {size: seeds_largest if size == SIZES[dim][-1] else seeds for size in sizes}
    bar = tqdm(total=sum(number[size] for _, size in cases), unit="operator", desc=f"{dim}d")
    for family, size in cases:
        source = (FAMILIES | MORE)[family]
        by_method: dict[str, list[int]] = {name: [] for name in solvers}
        for seed in range(number[size]):
            A = source.sample([seed], source.grid(size, dim), split="test")
            for name, M in solvers.items():
                if name != "Ruge-Stueben" or seed < hierarchies:
                    by_method[name].append(iterations(A, M, seed))
            bar.update()
        found.append((family, size, by_method))
        bar.write(f"{family} {size}^{dim}: " + ", ".join(f"{m} {statistics.median(n):g}" for m, n in by_method.items()))
    bar.close()
    return found


def rows(dim: int, found: Sequence[tuple[str, int, dict[str, list[int]]]]) -> list[Row]:
    """Median and worst by method, and what is asked of the network."""
    table = []
    for family, size, by_method in found:
        never_worse = all(a <= b for a, b in zip(by_method[NETWORK], by_method[TUNED], strict=True))
        asked = family in FAMILIES
        for what, pick in (("median", statistics.median), ("worst", max)):
            for name, numbers in by_method.items():
                required = "<= tuned, every operator" if asked and name == NETWORK and what == "median" else "reported"
                reached = never_worse if required != "reported" else True
                line = f"{family}, {' x '.join([str(size)] * dim)}: {what} of {len(by_method[NETWORK])}"
                table.append(Row(line, float(pick(numbers)), "", required, reached, name))
    for family in dict.fromkeys(family for family, _, _ in found):
        ends = [by_method for name, _, by_method in found if name == family]
        growths = {
            name: sum(ends[-1][name]) / sum(ends[0][name][: len(ends[-1][name])]) for name in ends[0]
        }  # the same media
        sizes = [size for name, size, _ in found if name == family]
        for name, growth in growths.items():
            asked = family in FAMILIES and name == NETWORK
            line = f"{family}: growth of the mean from {sizes[0]} to {sizes[-1]} points an axis in {dim}d"
            required = "<= red-black V" if asked else "reported"
            table.append(Row(line, growth, "x", required, not asked or growth <= growths["red-black V"], name))
    return table


def setup_rows(dim: int, size: int) -> list[Row]:
    """What reading an operator costs, beside one cycle."""
    source = FAMILIES["two-phase"]
    A = source.sample([0], source.grid(size, dim), split="test")
    r, table = right_side(A, 0), []
    where = " x ".join([str(size)] * dim)
    for name, M in methods(dim).items():
        if name in ("red-black V", TUNED, NETWORK):
            with torch.no_grad():
                table += [
                    Row(f"setup, {where}", 1e3 * seconds(lambda M=M: M.setup(A)), "ms", "reported", True, name),
                    Row(f"one cycle, {where}", 1e3 * seconds(lambda M=M: M.apply(r)), "ms", "reported", True, name),
                ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seeds-largest", type=int, default=20, help="on the largest size")
    parser.add_argument("--hierarchies", type=int, default=5, help="of those, how many PyAMG gets")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--largest", type=int, default=512, help="points an axis")
    options = parser.parse_args()
    table, notes = [], {}
    for dim in options.dims:
        sizes = [size for size in SIZES[dim] if size <= options.largest]
        found = counts(dim, sizes, options.seeds, options.seeds_largest, options.hierarchies)
        table += rows(dim, found)
        if dim == 2 and {128, 512} <= set(sizes):
            means = [
                statistics.mean(m[NETWORK])
                for family, size, m in found
                if size in (128, 512) and family.endswith("contrast 1e4")
            ]
            growth = means[1] / means[0]
            table.append(
                Row(
                    "contrast 1e4: growth of the mean from 128 to 512 points an axis",
                    growth,
                    "x",
                    f"<= {GROWTH} (moonshot)",
                    growth <= GROWTH,
                    NETWORK,
                )
            )
        if dim == 3 and 64 in sizes:
            hard = next(m[NETWORK] for family, size, m in found if size == 64 and family.endswith("contrast 1e4"))
            median = statistics.median(hard)
            table.append(
                Row(
                    "contrast 1e4, 64 x 64 x 64: median",
                    median,
                    "",
                    f"<= {MOONSHOT} (moonshot)",
                    median <= MOONSHOT,
                    NETWORK,
                )
            )
        notes[f"{dim}d"] = [
            {"family": family, "size": size, "iterations": by_method} for family, size, by_method in found
        ]
        for size in sizes[-2:] if dim == 2 else sizes[-1:]:
            table += setup_rows(dim, size)
    write_report("learned_multigrid", table, device="cpu", notes={"rtol": RTOL, **notes})


if __name__ == "__main__":
    main()
