"""The classical solver at equal error: the cheapest grid and tolerance that are as good as the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy_training import METRICS
from opflow import Grid, problems
from opflow.data import open_dataset
from opflow.fourier import resample

SAMPLES = 32
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Question:
    """What the network was asked, as a solver hears it: inputs (n, *grid) and what should come out, (n, channel, ...)."""

    inputs: dict[str, Tensor]
    target: Tensor
    grid: Grid
    times: list[float] | None = None


def equal_cost(settings: Mapping[str, Any], error: float, data: Path) -> dict[str, Any] | None:
    """The least seconds a sample of a solve on a coarser grid, at a looser tolerance, whose error is at most `error`.

    Measured like the network: batches of test samples, the same threads, the median of three. The coarse solution is
    interpolated to the network's grid, by its Fourier series on periodic axes and linearly on nodes.

    Returns:
        {"seconds", "error", "grid", "rtol"}; None where no candidate is good enough, for inverse problems, whose classical
        solvers are not a forward solve, and for ratios of errors.
    """
    if settings["task"] == "inverse" or "unseen_stride" in settings:
        return None
    recipe = settings["recipe"]
    problem = getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    question = _question(settings, problem, data)
    found: dict[str, Any] | None = None
    for grid, coarse in _coarser(question.inputs, question.grid):
        before = float("inf")
        for rtol in TOLERANCES:
            options = {"rtol": rtol} | ({} if question.times is None else {"times": question.times})
            seconds, solution = _timed(partial(problem.solve, coarse, grid, **options))
            fields = torch.stack([_interpolated(solution[name], grid, question.grid) for name in problem.unknowns], 1)
            if question.times is not None:
                fields = fields[:, :, 1:]
            ours = float(METRICS[settings["metric"]](fields, question.target))
            if ours <= error:
                if found is None or seconds < found["seconds"]:
                    found = {"seconds": seconds, "error": ours, "grid": list(grid.shape), "rtol": rtol}
                break
            if ours > 0.9 * before:  # the grid's own error: no tolerance will help
                break
            before = ours
    return found


def _question(settings: Mapping[str, Any], problem: Any, data: Path) -> Question:
    stride = settings.get("stride", 1)
    source = open_dataset(data / settings["data"] / "test")
    n = range(min(SAMPLES, len(source)))
    space = Grid(**settings["recipe"]["grid"])

    def read(name: str) -> Tensor:
        return space.subsample(torch.from_numpy(source.read(name, n)).double(), stride)

    if settings["task"] == "forecast":
        window, frames = settings["window"], settings["frames"]
        (spacing, *_) = source.grid.spacing
        fields = torch.stack([read(name) for name in problem.unknowns], 1)
        last = {problem.inputs[0]: fields[:, 0, window - 1]}
        times = [i * spacing for i in range(frames - window + 1)]
        return Question(last, fields[:, :, window:frames], space.subsampled(stride), times)
    target = torch.stack([read(name) for name in problem.unknowns], 1)
    return Question({name: read(name) for name in problem.inputs}, target, space.subsampled(stride))


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
