"""Time and accuracy of generating Darcy fields.

Beside our solver stands SciPy's sparse LU, the classical solver of this problem, on the same matrices in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from benchmarks.report import Row, write_report
from opflow.grid import Grid
from opflow.problems import Darcy
from opflow.solvers import ConjugateGradient, FaceStencil, FastPoisson


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of one call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def solve_blocks(problem: Darcy, grid: Grid, n: int, block: int, device: str) -> torch.Tensor:
    """Sample and solve as the data generator does, block after block."""
    pressures = []
    for first in range(0, n, block):
        media = problem.sample(range(first, first + block), grid)
        media = {name: field.to(device) for name, field in media.items()}
        pressures.append(problem.solve(media, grid)["pressure"].cpu())
    return torch.cat(pressures)[:n]


def assembled(stencil: FaceStencil) -> list[sp.csc_array]:
    """The matrices of a batch of five-point stencils."""
    return [stencil.select(i).to_sparse().tocsc() for i in range(stencil.batch)]


def sparse_lu(matrices: list[sp.csc_array]) -> np.ndarray:
    """Factor and solve, one matrix after the other: SciPy's SuperLU."""
    return np.stack([splu(matrix).solve(np.ones(matrix.shape[0])) for matrix in matrices])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    problem, device = Darcy(), options.device
    solve_blocks(problem, Grid((85, 85)), 32, 32, device)  # tables, threads and the device warm up

    small = seconds(lambda: solve_blocks(problem, Grid((85, 85)), 1000, 32, device), options.rounds)
    large = seconds(lambda: solve_blocks(problem, Grid((421, 421)), 8, 8, device), options.rounds) / 8

    # Both sides start from a ready operator; ours still sets its preconditioner up inside the solve.
    grid = Grid((421, 421))
    stencil = FaceStencil.from_coefficient(problem.sample(4, grid)["permeability"].to(device), grid)
    b = torch.ones(4, *stencil.shape, dtype=torch.float64, device=device)
    solver = ConjugateGradient(FastPoisson(), rtol=1e-10)
    matrices = assembled(FaceStencil.from_coefficient(problem.sample(4, grid)["permeability"], grid))
    ratios = []
    for _ in range(options.rounds):
        ours = seconds(lambda: solver.solve(stencil, b).x.cpu(), 1)
        ratios.append(seconds(lambda: sparse_lu(matrices), 1) / ours)

    reference = solve_blocks(problem, Grid((841, 841)), 4, 4, device)[:, ::2, ::2]
    coarse = solve_blocks(problem, Grid((421, 421)), 4, 4, device)
    gap = ((coarse - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).max().item()
    inner = coarse[:, 1:-1, 1:-1].flatten(1)
    direct = torch.from_numpy(sparse_lu(matrices))
    agreement = ((inner - direct).norm(dim=1) / direct.norm(dim=1)).max().item()

    write_report(
        "darcy_generation",
        [
            Row("1000 fields at 85 x 85, sampled and solved to 1e-10", small, "s", "<= 20 s", small <= 20),
            Row("one field at 421 x 421", large, "s", "<= 1 s", large <= 1),
            Row("421 against 841, largest relative L2 of 4 media", gap, "", "<= 1e-3", gap <= 1e-3),
            Row("agreement with sparse LU at 421, relative L2", agreement, "", "<= 1e-9", agreement <= 1e-9),
            Row(
                "sparse LU time / our time to solve 4 media at 421, operators ready, A B A B",
                statistics.median(ratios),
                "x",
                "reported",
                True,
            ),
        ],
        device=device,
        notes={"rounds": options.rounds, "times": "medians over rounds", "lu_ratios": ratios},
    )


if __name__ == "__main__":
    main()
