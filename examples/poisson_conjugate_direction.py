"""
Poisson's equation by deep conjugate directions
===============================================

A network that reads the geometry proposes search directions for the pressure equation among obstacles, -lap p = f:

1. draw random obstacles; take residuals from Lanczos vectors of their operators and from solves,
2. train a `DirectionNetwork` with the loss of the deep conjugate direction method, which needs no solutions,
3. solve among unseen obstacles on the training's grid and on finer ones, beside plain and multigrid conjugate gradients,
4. draw a pressure after a few steps, the residuals step by step, and the number of steps against the size.

Run ``python examples/poisson_conjugate_direction.py --help`` for the options.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.data import Batches, FieldDataset
from opflow.files import claim_folder, write_bytes
from opflow.losses import DirectionLoss
from opflow.models import DirectionNetwork
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Poisson
from opflow.solvers import ConjugateDirection, ConjugateGradient, Multigrid
from opflow.solvers.residual_samples import ResidualRecorder, ritz_pairs, ritz_residuals
from opflow.training import fit, load_checkpoint, save_checkpoint

TOLERANCES = (1e-4, 1e-6)


def main(
    dim: Literal[2, 3] = 2,
    size: int | None = None,
    doublings: int | None = None,
    variant: Literal["multilevel", "64", "128"] = "multilevel",
    geometries: int = 64,
    residuals: int = 16,
    lanczos: int = 150,
    test_samples: int = 5,
    epochs: int = 6,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
    out: Path = Path("runs/poisson_conjugate_direction"),
    resume: bool = False,
    overwrite: bool = False,
) -> float:
    """Train, then solve; return the largest ratio of the steps to 1e-4 on one grid to those on the grid of half the size.

    Args:
        dim: 2 or 3.
        size: cells per axis of the training's grid; None for 64 in two dimensions and 16 in three.
        doublings: how often the grid is doubled for the solves; None for 2 in two dimensions and 1 in three.
        variant: "multilevel", which reads every geometry, or the network published for 64 or 128 cells an axis, which does not.
        geometries: training domains.
        residuals: of each, half from Lanczos vectors and half from solves with the untrained network.
        lanczos: vectors.
        test_samples: unseen domains.
        epochs: passes over the training residuals.
        batch_size: residuals a step, each in a domain of its own.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; domains have seeds of their own.
        out: where checkpoints, results and pictures go.
        resume: continue the run in `out`, or only evaluate it if it is finished.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, resume=resume, overwrite=overwrite)
    size = size or {2: 64, 3: 16}[dim]
    sizes = [size * 2**i for i in range(1 + ({2: 2, 3: 1}[dim] if doublings is None else doublings))]
    problem, grid = Poisson(dim), Grid((size,) * dim, layout="cells")
    torch.manual_seed(seed)
    model = DirectionNetwork.build(dim, variant)
    print(f"model: DirectionNetwork with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Data.
    started = time.perf_counter()
    training = sampled(problem, grid, model, range(geometries), residuals, lanczos)
    held_out = sampled(problem, grid, model, range(geometries, geometries + batch_size), 2, lanczos)
    print(f"data: {len(training)} residuals in {geometries} domains, {time.perf_counter() - started:.0f} s")

    # Training. The loss asks the domain of every batch for its operator and shows it to the network.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=with_domain)
    validation = list(Batches(held_out, batch_size, transform=with_domain))
    loss = DirectionLoss(lambda batch: problem.operator(batch.parameters, grid))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    state = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler, "batches": batches}
    start = load_checkpoint(out / "checkpoints", model, **state) if (out / "checkpoints").exists() else None
    for record in fit(
        model, loss, batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0, start=start,
        validate=lambda model: statistics.fmean(float(loss(model, batch)["direction"]) for batch in validation),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record, **state)
        print(record)

    # Solves in unseen domains, one after another.
    torch.manual_seed(seed)
    untrained = DirectionNetwork.build(dim, variant)
    methods = {
        "conjugate gradients": lambda rtol: ConjugateGradient(rtol=rtol, max_steps=10_000),
        "multigrid": lambda rtol: ConjugateGradient(Multigrid(), rtol=rtol),
        "untrained": lambda rtol: ConjugateDirection(untrained, rtol=rtol, max_steps=1000),
        "network": lambda rtol: ConjugateDirection(model, rtol=rtol, max_steps=1000),
        "network, no safeguard": lambda rtol: ConjugateDirection(model, safeguard=None, rtol=rtol, max_steps=100),
    }
    results: dict[str, object] = {}
    counts: dict[str, list[float]] = {name: [] for name in methods}
    histories: dict[str, tuple[list[int], Tensor]] = {}
    for n in sizes:
        fine = Grid((n,) * dim, layout="cells")
        inputs = problem.sample(test_samples, fine, split="test")
        for name, make in methods.items():
            for rtol in TOLERANCES:
                row, solutions = solved(make(rtol), problem, inputs, fine)
                results[f"{name}, {n} cells, {rtol:g}"] = row
                print(
                    f"{name:22s} {n:4d} cells to {rtol:g}: {row['steps']} steps, {row['seconds']:.3g} s, {row['said']}"
                )
                if rtol == TOLERANCES[0]:
                    counts[name].append(statistics.fmean(row["steps"]))
            if n == sizes[-1]:
                history = solutions[0].history / solutions[0].history[0]
                histories[name] = (list(range(len(history))), history)
    ratios = [b / a for a, b in zip(counts["network"], counts["network"][1:], strict=False)]
    results["ratio"] = ratio = max(ratios)
    print(f"steps to {TOLERANCES[0]:g} on a grid over those on the one of half its size, at most: {ratio:.3f}")

    # Pictures.
    inputs = problem.sample(2, fine, split="test")
    pressure = problem.solve(inputs, fine)["pressure"]
    few = ConjugateDirection(model, rtol=1e-12, max_steps=3).solve(problem.operator(inputs, fine), inputs["forcing"]).x
    middle = (slice(None),) * 2 if dim == 2 else (fine.shape[0] // 2,)
    rows = [
        {"fluid": inputs["fluid"][i][middle], "pressure": pressure[i][middle], "three steps": few[i][middle]}
        for i in range(2)
    ]
    plane = Grid(fine.shape[:2], layout="cells")
    figure = plot_fields(rows, plane, input="fluid", reference="pressure", prediction="three steps")
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        {name: curve for name, curve in histories.items() if name != "conjugate gradients"},
        xlabel="steps", ylabel=f"residual over that at the start, {sizes[-1]} cells an axis",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    curves = {name: (sizes, steps) for name, steps in counts.items()}
    figure = plot_convergence(curves, xlabel="cells an axis", ylabel=f"steps to {TOLERANCES[0]:g}", log_x=True)
    print(f"picture: {save_figure(figure, out / 'sizes.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return ratio


def sampled(
    problem: Poisson, grid: Grid, model: DirectionNetwork, indices: range, residuals: int, lanczos: int, block: int = 16
) -> FieldDataset:
    """Unit residuals, each with its domain as another channel: half of them from Ritz vectors, half met in solves with the model."""
    fields = []
    for start in range(indices.start, indices.stop, block):
        inputs = problem.sample(indices[start - indices.start :][:block], grid)
        A = problem.operator(inputs, grid)
        spectral = ritz_residuals(ritz_pairs(A, lanczos, seed=start), residuals // 2, seed=start).input
        recorder = ResidualRecorder(model)
        ConjugateDirection(recorder, rtol=1e-12, max_steps=residuals // 2).solve(A, inputs["forcing"])
        met = torch.stack(recorder.seen, dim=1)
        r = torch.cat([spectral.view(len(met), -1, *grid.shape), met], dim=1)
        fluid = inputs["fluid"][:, None].expand_as(r)
        fields.append(torch.stack([fluid, r], dim=2).flatten(0, 1).float())
    pairs = torch.cat(fields)
    return FieldDataset.from_arrays(pairs, pairs[:, 1:], grid)


def with_domain(batch: Batch, generator: torch.Generator) -> Batch:
    """The residual as the input; the domain as a parameter, from which the loss makes the operator."""
    return Batch(input=batch.input[:, 1:], parameters={"fluid": batch.input[:, 0]}, index=batch.index)


def solved(solver: object, problem: Poisson, inputs: Mapping[str, Tensor], grid: Grid) -> tuple[dict, list]:
    """Every domain on its own: steps, the median of the seconds with setup, and whether all of them converged."""
    solutions, seconds = [], []
    for i in range(len(inputs["fluid"])):
        A = problem.operator({"fluid": inputs["fluid"][i : i + 1]}, grid)
        started = time.perf_counter()
        solutions.append(solver.solve(A, inputs["forcing"][i]))
        seconds.append(time.perf_counter() - started)
    failed = [solution.message for solution in solutions if not solution.all_converged]
    row = {
        "steps": [int(solution.iterations) for solution in solutions],
        "seconds": statistics.median(seconds),
        "said": failed[0] if failed else "all converged",
    }
    return row, solutions


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
