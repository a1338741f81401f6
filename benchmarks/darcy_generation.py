"""Time and accuracy of generating Darcy fields.

Beside our solver stands SciPy's sparse LU, the classical solver of this problem, on the same matrices in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.report import Row, write_report
from opflow.grid import Grid
from opflow.problems import Darcy
from opflow.solvers import FaceStencil


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


def sparse_lu(problem: Darcy, grid: Grid, n: int) -> np.ndarray:
    """The same finite volumes by SciPy's sparse LU, one medium at a time."""
    import scipy.sparse as sp
    from scipy.sparse.linalg import splu

    stencil = FaceStencil.from_coefficient(problem.sample(n, grid)["permeability"], grid)
    inner = grid.shape[0] - 2
    pressures = []
    for i in range(n):
        matrix = sp.diags_array(stencil.diagonal()[i].numpy().ravel(), format="csc")
        number = np.arange(inner * inner).reshape(inner, inner)
        for axis in (0, 1):
            w = stencil.weights[axis][i].numpy()
            w = w[1:-1] if axis == 0 else w[:, 1:-1]
            left = number[:-1] if axis == 0 else number[:, :-1]
            right = number[1:] if axis == 0 else number[:, 1:]
            block = sp.coo_array((-w.ravel(), (left.ravel(), right.ravel())), shape=matrix.shape)
            matrix = matrix + block.tocsc() + block.T.tocsc()
        solution = splu(matrix.tocsc()).solve(np.ones(inner * inner)).reshape(inner, inner)
        pressures.append(np.pad(solution, 1))
    return np.stack(pressures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    problem, device = Darcy(), options.device
    solve_blocks(problem, Grid((85, 85)), 32, 32, device)  # tables, threads and the device warm up

    small = seconds(lambda: solve_blocks(problem, Grid((85, 85)), 1000, 32, device), options.rounds)
    large = seconds(lambda: solve_blocks(problem, Grid((421, 421)), 8, 8, device), options.rounds) / 8
    ratios = []
    for _ in range(options.rounds):
        ours = seconds(lambda: solve_blocks(problem, Grid((421, 421)), 4, 4, device), 1)
        ratios.append(seconds(lambda: sparse_lu(problem, Grid((421, 421)), 4), 1) / ours)

    reference = solve_blocks(problem, Grid((841, 841)), 4, 4, device)[:, ::2, ::2]
    coarse = solve_blocks(problem, Grid((421, 421)), 4, 4, device)
    gap = ((coarse - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).max().item()
    direct = torch.from_numpy(sparse_lu(problem, Grid((421, 421)), 4))
    agreement = ((coarse - direct).flatten(1).norm(dim=1) / direct.flatten(1).norm(dim=1)).max().item()

    write_report(
        "darcy_generation",
        [
            Row("1000 fields at 85 x 85, sampled and solved to 1e-10", small, "s", "<= 20 s", small <= 20),
            Row("one field at 421 x 421", large, "s", "<= 1 s", large <= 1),
            Row("421 against 841, largest relative L2 of 4 media", gap, "", "<= 1e-3", gap <= 1e-3),
            Row("agreement with sparse LU at 421, relative L2", agreement, "", "<= 1e-9", agreement <= 1e-9),
            Row(
                "sparse LU time / our time at 421, same run, A B A B", statistics.median(ratios), "x", "reported", True
            ),
        ],
        device=device,
        notes={"rounds": options.rounds, "times": "medians over rounds", "lu_ratios": ratios},
    )


if __name__ == "__main__":
    main()
