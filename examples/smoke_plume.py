"""
A smoke plume past a moving obstacle
====================================

Warm smoke rises in a box that is open at the top while a ball sweeps through it: an incompressible flow on staggered cells, in plain torch,
whose pressure comes from opflow in every step. The ball moves, so every step has another operator, and nothing that is prepared
for one serves the next. A step of dt seconds:

1. advect velocity and smoke along the flow (semi-Lagrangian, midpoint rule), add the buoyancy of the smoke,
2. give the faces on the ball the velocity of the ball, on the closed sides zero,
3. solve -lap p = -div u / dt in the fluid, p = 0 above the open top, with multigrid inside conjugate gradients, from the last p,
4. correct u by -dt grad p, and check: the divergence that is left is recomputed, and must be rtol of what was there.

At the end systems of a few steps are solved again by others, in the same run and in turn: algebraic multigrid, which has its setup to
do in every step, and conjugate gradients alone.

It takes a minute. Run ``python examples/smoke_plume.py --help`` for the options.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from opflow import Grid
from opflow.files import claim_folder, write_bytes
from opflow.plotting import plot_convergence, plot_images, save_figure
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid

BUOYANCY = 2.0  # m/s^2 in undiluted smoke: 60 K in air of 300 K
BALL, SWEEP, HEIGHT, PERIOD = 0.12, 0.24, 0.75, 2.5  # radius, amplitude and height in m of the ball, its period in s
SOURCE, AT = 0.08, 0.12  # radius and height of the source in m


def main(
    size: int = 128,
    dim: Literal[2, 3] = 2,
    steps: int = 350,
    dt: float = 0.01,
    rtol: float = 1e-6,
    compared: int = 3,
    rounds: int = 3,
    out: Path = Path("runs/smoke_plume"),
    overwrite: bool = False,
) -> float:
    """Simulate the plume; return the largest divergence that a step left, relative to the one before its projection.

    Args:
        size: cells along the width of 1 m; there are half as many more along the height of 1.5 m.
        dim: axes of the box.
        steps: how many.
        dt: seconds of a step.
        rtol: of the pressure solve.
        compared: steps whose systems other solvers solve too.
        rounds: how often each of them does, in turn.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    grid = Grid((*[size] * (dim - 1), 3 * size // 2), (*[(0.0, 1.0)] * (dim - 1), (0.0, 1.5)), "cells")
    h = grid.spacing[0]
    cells = grid.points()
    faces = [face_points(grid, axis) for axis in range(dim)]
    smoke = torch.zeros(grid.shape, dtype=torch.float64)
    velocity = [torch.zeros(points.shape[:-1], dtype=torch.float64) for points in faces]
    pressure = torch.zeros_like(smoke)
    source = (cells - torch.tensor([*[0.5] * (dim - 1), AT])).norm(dim=-1) < SOURCE

    divergences, iterations, seconds = [], [], []
    systems: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    shown: dict[str, dict[str, Tensor]] = {"smoke": {}, "log10 |div u|, 1/s": {}}
    frames = {round(steps * (i + 1) / 4): i % 2 == 1 for i in range(4)}
    for step in tqdm(range(1, steps + 1), desc="steps"):
        # Advection and buoyancy.
        before = [departure(points, velocity, grid, dt) for points in faces]
        smoke = interpolated(smoke, departure(cells, velocity, grid, dt), cells, h)
        velocity = [interpolated(u, points, where, h) for u, points, where in zip(velocity, before, faces, strict=True)]
        smoke[source] = 1.0
        lift = dt * BUOYANCY * (smoke.narrow(-1, 1, grid.shape[-1] - 1) + smoke.narrow(-1, 0, grid.shape[-1] - 1)) / 2
        velocity[-1][..., 1:-1] += lift

        # The ball, and the operator of this step.
        fluid, ball_velocity = ball(step * dt, cells)
        smoke[~fluid] = 0.0
        A = laplacian(grid, fluid)
        for u, weights, v in zip(velocity, A.weights, ball_velocity, strict=True):
            u[weights[0] == 0] = v
        close_sides(velocity)

        # Projection.
        divergence = div(velocity, h) * fluid
        rhs = -divergence / dt
        if step % max(1, steps // (compared + 1)) == 0 and len(systems) < compared:
            systems[step] = (fluid, rhs, pressure)
        start = time.perf_counter()
        solver = ConjugateGradient(Multigrid(), rtol=rtol, raise_on_failure=True)
        solution = solver.solve(A, rhs, pressure * fluid)
        seconds.append(time.perf_counter() - start)
        iterations.append(solution.iterations)
        pressure = solution.x
        for axis in range(dim):
            velocity[axis] -= dt * gradient(pressure, A, axis, h)

        left = div(velocity, h) * fluid
        divergences.append(float(left.norm() / divergence.norm()))
        if divergences[-1] > 1.01 * rtol:
            raise RuntimeError(f"step {step} left {divergences[-1]:.1e} of its divergence, more than rtol={rtol:g}.")
        if step in frames:
            shown["smoke"][f"t = {step * dt:g} s"] = slice_of(torch.where(fluid, smoke, math.nan))
        if frames.get(step):
            for name, field in (("before", divergence), ("after", left)):
                size_of = torch.where(fluid, field.abs().clamp(min=1e-9).log10(), math.nan)
                shown["log10 |div u|, 1/s"][f"{name}, t = {step * dt:g} s"] = slice_of(size_of)

    print(
        f"{grid.shape} cells, {steps} steps of {dt:g} s, largest divergence left: {max(divergences):.1e} of that before"
    )
    print(
        f"iterations a step: median {median(iterations)}, at most {max(iterations)}; seconds: median {median(seconds):.3f}"
    )
    times, others = compare(grid, systems, rtol, rounds)
    plane = Grid((size, 3 * size // 2), (grid.extent[0], grid.extent[-1]), "cells")
    print(f"picture: {save_figure(plot_images(shown, plane), out / 'plume.png')}")
    figure = plot_convergence(
        {"multigrid, every step": (range(1, steps + 1), iterations), **others},
        xlabel="step", ylabel=f"iterations of conjugate gradients to {rtol:g}",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'iterations.png')}")
    results = {
        "largest_divergence": max(divergences), "iterations": {"median": median(iterations), "most": max(iterations)},
        "seconds_a_step": times,
    }  # fmt: skip
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return max(divergences)


def ball(t: float, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where the fluid is at time t, and the velocity of the ball in m/s."""
    phase = 2 * math.pi * t / PERIOD
    centre = torch.full((points.shape[-1],), 0.5, dtype=points.dtype)
    centre[0] += SWEEP * math.sin(phase)
    centre[-1] = HEIGHT
    velocity = torch.zeros_like(centre)
    velocity[0] = SWEEP * 2 * math.pi / PERIOD * math.cos(phase)
    return (points - centre).norm(dim=-1) >= BALL, velocity


def laplacian(grid: Grid, fluid: Tensor) -> FaceStencil:
    """-lap in the fluid, in 1/m^2: closed walls, an open top."""
    sides = (*["neumann"] * (grid.dim - 1), ("neumann", "dirichlet"))
    ones = torch.ones(1, *grid.shape, dtype=torch.float64)
    return FaceStencil.from_coefficient(ones, grid, boundary=sides, mask=fluid[None])


def div(velocity: list[Tensor], h: float) -> Tensor:
    """The divergence in 1/s of the velocity on the faces of every cell."""
    return sum((u.diff(dim=axis) / h for axis, u in enumerate(velocity)), torch.zeros(()))


def gradient(p: Tensor, A: FaceStencil, axis: int, h: float) -> Tensor:
    """dp/dx on the faces across an axis; none on closed ones, and p = 0 half a cell above the open top, as A has it."""
    pad = [0, 0] * p.ndim
    last = 2 * (p.ndim - 1 - axis)  # F.pad counts axes from the last
    pad[last : last + 2] = [1, 1]
    return F.pad(p, pad).diff(dim=axis) * A.weights[axis][0] * h


def close_sides(velocity: list[Tensor]) -> None:
    """Zero through the closed sides, all but the upper end of the last axis."""
    for axis, u in enumerate(velocity):
        u.select(axis, 0).zero_()
        if axis < len(velocity) - 1:
            u.select(axis, -1).zero_()


def face_points(grid: Grid, axis: int) -> Tensor:
    """The centres of the faces across an axis, (*faces, dim), in m."""
    lines = [grid.coordinates(d) for d in range(grid.dim)]
    lines[axis] = torch.linspace(*grid.extent[axis], grid.shape[axis] + 1, dtype=torch.float64)
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def interpolated(field: Tensor, points: Tensor, where: Tensor, h: float) -> Tensor:
    """A field that lives at `where` (*shape, dim), linearly interpolated at points (..., dim); beyond its ends as there."""
    steps = torch.tensor([n - 1 for n in field.shape], dtype=points.dtype)
    places = 2 * (points - where.reshape(-1, points.shape[-1])[0]) / (h * steps) - 1
    found = F.grid_sample(
        field[None, None], places.flip(-1)[None], padding_mode="border", align_corners=True
    )  # last axis first
    return found[0, 0]


def departure(points: Tensor, velocity: list[Tensor], grid: Grid, dt: float) -> Tensor:
    """Where what is at these points was dt seconds ago, by the midpoint rule."""

    def flow(at: Tensor) -> Tensor:
        h = grid.spacing[0]
        return torch.stack([interpolated(u, at, face_points(grid, axis), h) for axis, u in enumerate(velocity)], dim=-1)

    return points - dt * flow(points - dt / 2 * flow(points))


def slice_of(field: Tensor) -> Tensor:
    """The field in the plane through the middle that the ball moves in."""
    return field if field.ndim == 2 else field[:, field.shape[1] // 2]


def compare(
    grid: Grid, systems: dict[int, tuple[Tensor, Tensor, Tensor]], rtol: float, rounds: int
) -> tuple[dict[str, float], dict[str, tuple[list[int], list[int]]]]:
    """Median seconds of a step's pressure, operator and setup included, by several solvers in turn; and steps with their iterations."""
    methods = {"multigrid": Multigrid, "no preconditioner": lambda: None}
    try:
        AlgebraicMultigrid()
        methods["smoothed aggregation"] = AlgebraicMultigrid
        methods["Ruge-Stueben"] = lambda: AlgebraicMultigrid("ruge-stueben")
    except ImportError as missing:
        print(f"not compared with algebraic multigrid: {missing}")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    iterations: dict[str, list[int]] = {name: [] for name in methods}
    for turn in tqdm(range(rounds), desc="rounds of comparison"):
        for fluid, rhs, guess in systems.values():
            for name, make in methods.items():
                start = time.perf_counter()
                solver = ConjugateGradient(make(), rtol=rtol, max_steps=10_000, raise_on_failure=True)
                solution = solver.solve(laplacian(grid, fluid), rhs, guess * fluid)
                seconds[name].append(time.perf_counter() - start)
                if turn == 0:
                    iterations[name].append(solution.iterations)
    medians = {name: median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        times_ours = value / medians["multigrid"]
        print(
            f"{name}: {median(iterations[name]):g} iterations, {value:.3f} s a step, {times_ours:.1f} times multigrid's"
        )
    return medians, {name: (list(systems), iterations[name]) for name in methods if name != "multigrid"}


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
