"""The classical solver at equal error: the cheapest grid and tolerance that are as good as the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opflow import Grid, problems
from opflow.data import FieldDataset
from opflow.fourier import resample

SAMPLES = 32
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def equal_cost(settings: Mapping[str, Any], error: float, data: Path) -> dict[str, Any] | None:
    """The least seconds a sample of a solve on a coarser grid, at a looser tolerance, whose error is at most `error`.

    Measured like the network: batches of test samples, the same threads, the median of three. The coarse solution is
    interpolated to the network's grid, by its Fourier series on periodic axes and linearly on nodes.

    Returns:
        {"seconds", "error", "grid", "rtol"}; None where no candidate is good enough.
    """
    recipe = settings["recipe"]
    problem = getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    test = FieldDataset(data / settings["data"] / "test", stride=settings.get("stride", 1), dtype=torch.float64)
    batch = test.read(range(min(SAMPLES, len(test))))
    inputs = {name: batch.input[:, c] for c, name in enumerate(test.input_names)}
    found: dict[str, Any] | None = None
    for grid, coarse in _coarser(inputs, test.grid):
        for rtol in TOLERANCES:
            seconds, solution = _timed(
                lambda grid=grid, coarse=coarse, rtol=rtol: problem.solve(coarse, grid, rtol=rtol)
            )
            fields = torch.stack([_interpolated(solution[name], grid, test.grid) for name in test.target_names], 1)
            ours = _error(fields, batch.target, test.grid, settings["metric"])
            if ours <= error:
                if found is None or seconds < found["seconds"]:
                    found = {"seconds": seconds, "error": ours, "grid": list(grid.shape), "rtol": rtol}
                break
    return found


def _coarser(inputs: Mapping[str, Tensor], grid: Grid) -> Iterator[tuple[Grid, dict[str, Tensor]]]:
    """The inputs on this grid and on coarser ones: their Fourier series cut on periodic axes, else every stride-th point."""
    for stride in (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 21, 32, 64):
        try:
            coarse = grid.subsampled(stride)
        except ValueError:
            continue
        periodic = set(grid.layout) == {"periodic"}
        if min(coarse.shape) >= 5:
            yield (
                coarse,
                {
                    name: resample(field, coarse.shape) if periodic else grid.subsample(field, stride)
                    for name, field in inputs.items()
                },
            )


def _timed(solve: Any) -> tuple[float, dict[str, Tensor]]:
    """The median of three, in seconds a sample."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solution = solve()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / len(next(iter(solution.values()))), solution


def _interpolated(field: Tensor, coarse: Grid, grid: Grid) -> Tensor:
    if coarse.shape == grid.shape:
        return field
    if set(grid.layout) == {"periodic"}:
        return resample(field, grid.shape)
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    return torch.nn.functional.interpolate(field[:, None], size=grid.shape, mode=modes[grid.dim], align_corners=True)[
        :, 0
    ]


def _error(prediction: Tensor, target: Tensor, grid: Grid, metric: str) -> float:
    from benchmarks.accuracy_training import METRICS

    return float(METRICS[metric](prediction, target, grid.quadrature_weights()))
