"""
Allen-Cahn's equation by a physics-informed network
===================================================

u_t = d u_xx + r (u - u^3), periodic on (-1, 1), u(0, x) = x^2 cos(pi x), d = 1e-4, r = 5: two phases that separate within
walls of width 0.006 (Raissi, Perdikaris and Karniadakis 2019, section 3.2.1). Continued periodically the initial values have
a kink at x = 1, and small errors at early times grow as exp(r t); plain training fails.

1. compute the reference with Fourier modes, and its error with half of them,
2. build u = G + t N(t, cos pi x, .., cos 3 pi x), periodic and even as the solution is, with G the initial values carried along by the
   heat equation, so that no kink is left to N,
3. minimise the mean square of the residual, weighted so that early times come first: Adam, then self-scaled Broyden, with new
   points where the residual is large,
4. keep the state with the smallest residual at points that were never trained on,
5. draw the solution, its error, and the convergence.

Run ``python examples/allen_cahn_pinn.py --help`` for the options.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.layers import HardConstraint, HeatSeries
from opflow.losses import PDEResidual
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation
from opflow.pde.geometry import Interval, SpaceTime
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import AllenCahn
from opflow.training import CausalWeights, SelfScaledBroyden, fit

FRAMES, NODES = 101, 512  # t = 0, 0.01, .., 1 and x = -1, -1 + 1/256, ..


def main(
    hidden: tuple[int, ...] = (30, 30, 30),
    harmonics: int = 3,
    even: bool = True,
    initial: Literal["heat", "fixed"] = "heat",
    causal: bool = True,
    points: int = 5000,
    adam_steps: int = 500,
    iterations: int = 10_000,
    resample_every: int = 500,
    chunk: int | None = 2000,
    modes: int = 8192,
    seed: int = 0,
    out: Path = Path("runs/allen_cahn_pinn"),
    overwrite: bool = False,
) -> float:
    """Train and compare; return the relative L2 error on the whole space-time grid.

    Args:
        hidden: widths of the network's hidden layers.
        harmonics: cosines of x that the network sees.
        even: the solution is even because its initial values are: train on half of the interval; False adds the sines and the rest.
        initial: "heat" carries the initial values along by the heat equation; "fixed" leaves them, and their kink, where they are.
        causal: weight the residual so that early times come first.
        points: collocation points.
        adam_steps: of the warm-up, new points every hundred.
        iterations: of the quasi-Newton method.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        chunk: points that are differentiated at a time; None for all at once.
        modes: of the reference, a multiple of 1024; its error is measured against half of them.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    problem = AllenCahn()
    t, x = torch.linspace(0, 1, FRAMES, dtype=torch.float64), 2 * torch.arange(NODES, dtype=torch.float64) / NODES - 1
    truth, reference = reference_solution(problem, t, modes)

    # The network, and the residual as the loss.
    torch.manual_seed(seed)
    model = HardConstraint(
        PINN.build(((0.0, 1.0), (-1.0, 1.0)), hidden=hidden, periodic=(0, harmonics), even=(False, even)),
        lift=carried(problem.diffusivity) if initial == "heat" else initial_values,
        distance=lambda y: y[..., :1],
        conditions=("initial", "periodic"),
    ).double()
    loss = PDEResidual(problem, AutogradDerivatives(method="taylor"), chunk=chunk)
    domain = SpaceTime((0, 1), Interval(0 if even else -1, 1))
    collocation = Collocation(domain, points, steps=min(100, adam_steps), seed=seed, pool=4)
    fresh = Batch(coords=domain.sample(4 * points, seed=(seed, 1)))
    everywhere = Batch(coords=torch.cartesian_prod(t, x))
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {points} points")

    def residual(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    # The weights change with the points only, so that the objective stays the same in between.
    weights = CausalWeights((0.0, 1.0))

    def redraw() -> None:
        collocation.resample(residual)
        if causal:
            weights.weigh(collocation.interior, residual(collocation.interior))

    def predicted() -> Tensor:
        with torch.no_grad():
            return model(everywhere.coords).view(FRAMES, NODES)

    # Adam finds the basin; the curvature that the quasi-Newton method gathers afterwards outlives the new points.
    began, steps, curves = time.process_time(), [], {"residual at fresh points": [], "error": []}
    redraw()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for _ in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        redraw()
    broyden = SelfScaledBroyden(model.parameters(), iterations=50)
    collocation.steps = max(1, resample_every // 50)
    best: dict[str, Tensor] = {}
    for record in fit(
        model, loss, collocation, broyden, epochs=max(1, iterations // resample_every),
        validate=lambda model: float(residual(fresh).square().mean().sqrt()),
    ):  # fmt: skip
        # The error is printed and drawn; which state is kept, the residual alone decides.
        error = relative(predicted(), truth)
        print(f"{record}, error {error:.2e}, {time.process_time() - began:.0f} s; {broyden.report}", flush=True)
        if record.best:
            best = copy.deepcopy(model.state_dict())
        steps.append(broyden.report.iterations)
        curves["residual at fresh points"].append(record.validation)
        curves["error"].append(error)
        redraw()
    model.load_state_dict(best)
    seconds = time.process_time() - began

    # What came out.
    u = predicted()
    error = relative(u, truth)
    print(f"relative L2 error {error:.2e} in {seconds:.0f} s of CPU")
    sizes = residual(everywhere).view(FRAMES, NODES)
    fields = {
        "log10 |residual|": sizes.clamp(min=1e-4 * float(sizes.max())).log10(),
        "reference": truth,
        "network": u,
    }
    grid = Grid((FRAMES, NODES), ((0.0, 1.0), (-1.0, 1.0)), ("nodes", "periodic"), axes=("t", "x"))
    figure = plot_fields([fields], grid, input="log10 |residual|", reference="reference", prediction="network")
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        {name: (steps, curve) for name, curve in curves.items()},
        xlabel="quasi-Newton iterations", ylabel="root mean square residual, relative L2 error",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    row = {
        "error": error, "largest_error": float((u - truth).abs().max()), "seconds": seconds,
        "residual": min(curves["residual at fresh points"]), "iterations": broyden.report.iterations,
    }  # fmt: skip
    settings = {
        "hidden": hidden, "harmonics": harmonics, "even": even, "initial": initial, "causal": causal, "points": points, "adam_steps": adam_steps,
        "iterations": iterations, "resample_every": resample_every, "modes": modes, "seed": seed,
    }  # fmt: skip
    write_json(
        out / "results.json",
        {"rows": {"Allen-Cahn": row}, "reference": reference, "settings": settings, "curves": {"iterations": steps, **curves}},
    )  # fmt: skip
    return error


def initial_values(y: Tensor) -> Tensor:
    """x^2 cos(pi x)"""
    x = y[..., 1:]
    return x**2 * torch.cos(math.pi * x)


def carried(diffusivity: float, modes: int = 1500) -> HeatSeries:
    """The heat equation's solution from x^2 cos(pi x), by its cosine series.

    a_k = (c_(k-1) + c_(k+1)) / 2 and a_0 = c_1 / 2 with c_m = int x^2 cos(m pi x) dx = 4 (-1)^m / (m pi)^2, c_0 = 2/3.
    """
    m = torch.arange(1, modes + 2, dtype=torch.float64)
    c = torch.cat([torch.tensor([2 / 3], dtype=torch.float64), 4 * (-1) ** m / (math.pi * m) ** 2])
    cosine = torch.cat([c[1:2] / 2, (c[:-2] + c[2:]) / 2])
    return HeatSeries(cosine, period=2.0, diffusivity=diffusivity)


def reference_solution(problem: AllenCahn, t: Tensor, modes: int) -> tuple[Tensor, dict]:
    """u (time, NODES), with what it cost and its error: the change from half of the modes."""
    if modes % (2 * NODES):
        raise ValueError(f"modes is {modes}; give a multiple of {2 * NODES}, so that all grids share their points.")
    solutions, seconds = [], 0.0
    for n in (modes // 2, modes):
        began = time.process_time()
        grid = Grid((n,), (-1.0, 1.0), "periodic")
        x = grid.coordinates(0).double()
        found = problem.solve({"initial": (x**2 * torch.cos(math.pi * x))[None]}, grid, times=t, rtol=1e-9)["phase"]
        solutions.append(found[0, :, :: n // NODES])
        seconds = time.process_time() - began
    coarse, fine = solutions
    error = relative(coarse, fine)
    print(f"reference: {modes} modes, {seconds:.1f} s; half of them differ by {error:.1e}")
    method = f"exponential Runge-Kutta with {modes} Fourier modes; its error as the difference from half of them"
    return fine, {"method": method, "error": error, "seconds": seconds}


def relative(u: Tensor, truth: Tensor) -> float:
    """The relative L2 error."""
    return float((u - truth).norm() / truth.norm())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
