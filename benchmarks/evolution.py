"""Accuracy of the evolution equations' solvers against exact solutions and published files, and the time to make their data.

The published files are found through OPFLOW_REFERENCE_DATA; without it their rows are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import Row, write_report
from opflow import Grid
from opflow.problems import AllenCahn, Burgers, KortewegDeVries, NavierStokes, Schroedinger

RTOL = 1e-10


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 over everything."""
    return float((found.cpu() - expected).norm() / expected.norm())


def on_line(problem: object, grid: Grid, t: float, *options: object) -> dict[str, Tensor]:
    """The exact solution on the points of an interval at one time, (1, n) each."""
    x = grid.coordinates(0)
    points = torch.stack([torch.full_like(x, t), x], dim=-1)
    return {name: field[None] for name, field in problem.exact(points, *options).items()}


def against_exact(device: str) -> Iterator[tuple[str, float, float]]:
    """(what, error, what is asked)"""
    burgers, grid = Burgers(), Grid(256, layout="periodic")
    u = burgers.solve({"initial": on_line(burgers, grid, 0.0)["velocity"].to(device)}, grid, rtol=RTOL)["velocity"]
    yield "Burgers, nu = 0.1, against Cole-Hopf at t = 1", relative(u, on_line(burgers, grid, 1.0)["velocity"]), 1e-8

    kdv = KortewegDeVries()
    for name, n, half, final, solitons in (
        ("one soliton", 384, 20.0, 1.0, ((2.0, -2.0),)),
        ("two solitons that pass", 512, 30.0, 4.0, ((1.6, -5.0), (0.9, 0.0))),
    ):
        grid = Grid(n, (-half, half), "periodic")
        initial = on_line(kdv, grid, 0.0, solitons)["height"].to(device)
        u = kdv.solve({"initial": initial}, grid, times=[0.0, final], rtol=RTOL)["height"][:, -1]
        error = relative(u, on_line(kdv, grid, final, solitons)["height"])
        yield f"Korteweg-de Vries, {name}, against Hirota at t = {final:g}", error, 1e-8

    flow, square = NavierStokes(forcing="none", final_time=5.0), Grid((32, 32), layout="periodic")
    x = square.points()

    def vortices(t: float) -> Tensor:
        return flow.exact(torch.cat([torch.full_like(x[..., :1], t), x], dim=-1))["vorticity"][None]

    w = flow.solve({"initial_vorticity": vortices(0.0).to(device)}, square, rtol=RTOL)["vorticity"]
    yield "Navier-Stokes, Taylor-Green at t = 5", relative(w, vortices(5.0)), 1e-12


def against_files(folder: Path, device: str) -> Iterator[tuple[str, float, float]]:
    """(what, error, what is asked)"""
    from scipy.io import loadmat

    file = loadmat(folder / "pysindy" / "burgers.mat")
    grid, u = Grid(256, (-8.0, 8.0), "periodic"), torch.from_numpy(file["usol"].real.T.copy())
    found = Burgers(viscosity=0.1).solve({"initial": u[:1].to(device)}, grid, times=file["t"].ravel(), rtol=RTOL)
    yield "Burgers, the published file", relative(found["velocity"][0], u), 1e-8

    file = loadmat(folder / "pinns" / "AC.mat")
    grid, u = Grid(512, (-1.0, 1.0), "periodic"), torch.from_numpy(file["uu"].T.copy())
    found = AllenCahn().solve({"initial": u[:1].to(device)}, grid, times=file["tt"].ravel(), rtol=RTOL)
    yield "Allen-Cahn, the published file, at its 512 modes", relative(next(iter(found.values()))[0], u), 1e-8

    file = loadmat(folder / "pinns" / "NLS.mat")
    grid, h = Grid(256, (-5.0, 5.0), "periodic"), torch.from_numpy(file["uu"].T.copy())
    initial = {"initial_real": h.real[:1].to(device), "initial_imaginary": h.imag[:1].to(device)}
    found = Schroedinger().solve(initial, grid, times=file["tt"].ravel(), rtol=RTOL)
    yield "Schroedinger, the published file", relative(torch.complex(found["real"][0], found["imaginary"][0]), h), 1e-7


def generation(device: str, rounds: int) -> tuple[float, float]:
    """Seconds for 1000 Burgers samples at 1024, as the data generator makes them; and their largest true error."""
    problem, grid = Burgers(), Grid(1024, layout="periodic")

    def made(rtol: float, n: int) -> Tensor:
        blocks = []
        for first in range(0, n, 32):
            inputs = problem.sample(range(first, min(first + 32, n)), grid)
            blocks.append(problem.solve({"initial": inputs["initial"].to(device)}, grid, rtol=rtol)["velocity"].cpu())
        return torch.cat(blocks)

    made(1e-8, 32)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        made(1e-8, 1000)
        seconds.append(time.perf_counter() - start)
    fine, ours = made(1e-12, 64), made(1e-8, 64)
    return statistics.median(seconds), float(((ours - fine).norm(dim=1) / fine.norm(dim=1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = list(against_exact(options.device))
    folder = os.environ.get("OPFLOW_REFERENCE_DATA")
    if folder:
        found += against_files(Path(folder), options.device)
    rows = [
        Row(f"{what}: relative L2 at rtol {RTOL:g}", error, "", f"<= {asked:g}", error <= asked)
        for what, error, asked in found
    ]
    seconds, error = generation(options.device, options.rounds)
    rows += [
        Row(
            "1000 Burgers samples at 1024 points, drawn and solved at rtol 1e-8", seconds, "s", "<= 30 s", seconds <= 30
        ),
        Row("their true error in time, the largest of 64 samples", error, "", "<= 1e-8", error <= 1e-8),
    ]
    write_report("evolution", rows, device=options.device, notes={"rounds": options.rounds, "files": bool(folder)})


if __name__ == "__main__":
    main()
