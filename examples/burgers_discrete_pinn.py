"""
Burgers' equation in one step of time
=====================================

u_t + u u_x = nu u_xx on (-1, 1), u = 0 at both ends, nu = 0.01 / pi, which starts from -sin(pi x) at t = 0. Known are 250
values at t = 0.1, where the wave is smooth; one step of an implicit Runge-Kutta method of many stages leads to t = 0.9, past
the formation of a front of width 0.01 (Raissi, Perdikaris and Karniadakis 2019, section 3.2.1).

1. solve the equation for the reference and for the snapshot at t = 0.1,
2. make a network x -> (u at the q times of the step, and at its end), with u = 0 at both ends whatever the network is,
3. minimise how far the relations of the Gauss-Legendre method are from the snapshot: Adam, then self-scaled Broyden,
   with new points where the relations are missed; between its 250 points the snapshot is their trigonometric interpolant,
4. keep the state that misses them least at points that were never trained on,
5. draw the end of the step, its error, and the convergence.

Run ``python examples/burgers_discrete_pinn.py --help`` for the options.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.fourier import periodic_interpolant
from opflow.layers import HardConstraint
from opflow.losses import DiscreteTimeResidual
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation, Interval, gauss_legendre
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Burgers
from opflow.training import SelfScaledBroyden, fit

START, END = 0.1, 0.9
SNAPSHOT = 250


def main(
    stages: int = 48,
    viscosity: float = 0.01 / math.pi,
    hidden: tuple[int, ...] = (24, 24, 24),
    points: int = 500,
    adam_steps: int = 500,
    iterations: int = 8000,
    resample_every: int = 500,
    modes: int = 2000,
    seed: int = 0,
    out: Path = Path("runs/burgers_discrete_pinn"),
    overwrite: bool = False,
) -> float:
    """Make the step; return the relative L2 error of its end.

    Args:
        stages: q of the Gauss-Legendre method, of order 2 q.
        viscosity: nu.
        hidden: widths of the network's hidden layers.
        points: collocation points.
        adam_steps: of the warm-up, new points every hundred.
        iterations: of the quasi-Newton method.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        modes: of the reference solution, a multiple of 250.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    problem, step = Burgers(viscosity=viscosity), END - START
    tableau = gauss_legendre(stages)
    times = [START, *(START + step * tableau.nodes), END]
    grid, truth, reference = reference_solution(problem, times, modes)
    snapshot = truth[0, :: modes // SNAPSHOT]
    print(f"{stages} stages: the reference itself misses the end by {defect(problem, grid, truth, stages, step):.1e}")

    # The network, and the relations of the step as the loss.
    torch.manual_seed(seed)
    model = HardConstraint(
        PINN.build(((-1.0, 1.0),), stages + 1, hidden),
        lift=lambda x: -torch.sin(math.pi * x),
        distance=lambda x: 1 - x**2,
        conditions=("dirichlet",),
    ).double()
    loss = DiscreteTimeResidual(
        problem,
        AutogradDerivatives(method="taylor"),
        tableau,
        step,
        values=lambda x: periodic_interpolant(snapshot, x[..., 0], (-1.0, 1.0)),
    )
    domain = Interval(-1, 1)
    collocation = Collocation(domain, points, steps=min(100, adam_steps), seed=seed, pool=10)
    fresh = Batch(coords=domain.sample(4 * points, seed=(seed, 1)))
    everywhere = Batch(coords=grid.points())
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {points} points, {stages} stages")

    def missed(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    def predicted() -> Tensor:
        with torch.no_grad():
            return model(everywhere.coords)

    # Adam finds the basin; the curvature that the quasi-Newton method gathers afterwards outlives the new points.
    began, steps, curves = time.process_time(), [], {"relations missed at fresh points": [], "error": []}
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for _ in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        collocation.resample(missed)
    broyden = SelfScaledBroyden(model.parameters(), iterations=50)
    collocation.steps = max(1, resample_every // 50)
    best: dict[str, Tensor] = {}
    for record in fit(
        model, loss, collocation, broyden, epochs=max(1, iterations // resample_every),
        validate=lambda model: float(missed(fresh).square().mean().div(stages + 1).sqrt()),
    ):  # fmt: skip
        # The error is printed and drawn; which state is kept, the relations alone decide.
        error = relative(predicted()[:, -1], truth[-1])
        print(f"{record}, error {error:.2e}, {time.process_time() - began:.0f} s; {broyden.report}", flush=True)
        if record.best:
            best = copy.deepcopy(model.state_dict())
        steps.append(broyden.report.iterations)
        curves["relations missed at fresh points"].append(record.validation)
        curves["error"].append(error)
        collocation.resample(missed)
    model.load_state_dict(best)
    seconds = time.process_time() - began

    # What came out.
    u = predicted().T
    error = relative(u[-1], truth[-1])
    print(f"relative L2 error {error:.2e} in {seconds:.0f} s of CPU")
    rows = [
        {"start": truth[0], "reference": truth[frame], "network": u[frame - 1]}
        for frame in (1 + stages // 4, 1 + stages // 2, stages + 1)
    ]
    figure = plot_fields(
        rows, grid, input="start", reference="reference", prediction="network",
        title=f"t = {times[1 + stages // 4]:.3f}, {times[1 + stages // 2]:.3f}, {END}",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        {name: (steps, curve) for name, curve in curves.items()},
        xlabel="quasi-Newton iterations", ylabel="root mean square, relative L2 error",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    row = {
        "error": error, "largest_error": float((u[-1] - truth[-1]).abs().max()), "seconds": seconds,
        "stages_error": relative(u, truth[1:]), "residual": min(curves["relations missed at fresh points"]),
        "iterations": broyden.report.iterations,
    }  # fmt: skip
    settings = {
        "stages": stages, "viscosity": viscosity, "hidden": hidden, "points": points, "snapshot": SNAPSHOT,
        "adam_steps": adam_steps, "iterations": iterations, "resample_every": resample_every, "seed": seed,
    }  # fmt: skip
    write_json(
        out / "results.json",
        {"rows": {"Burgers, discrete time, one step 0.1 to 0.9": row}, "reference": reference, "settings": settings, "curves": {"iterations": steps, **curves}},
    )  # fmt: skip
    return error


def reference_solution(problem: Burgers, times: list[float], modes: int) -> tuple[Grid, Tensor, dict]:
    """The grid, u (time, modes), and what it cost; its error as the difference from half the modes and a larger tolerance.

    The initial values are odd, so their periodic continuation keeps u = 0 at both ends.
    """
    frames, seconds = [], []
    for n, rtol in ((modes, 1e-9), (modes // 2, 1e-7)):
        grid = Grid((n,), (-1.0, 1.0), "periodic")
        initial = -torch.sin(math.pi * grid.coordinates(0).double())
        began = time.process_time()
        solved = problem.solve({"initial": initial[None]}, grid, times=[0.0, *times], rtol=rtol)["velocity"]
        seconds.append(time.process_time() - began)
        frames.append(solved[0, 1:])
    fine, coarse = frames
    error = relative(coarse[-1], fine[-1, ::2])
    print(
        f"reference: {modes} modes, {seconds[0]:.1f} s; half of them at a hundredfold tolerance differ by {error:.1e}"
    )
    method = f"ETDRK4 with {modes} modes; its error as the difference from half of them at a hundredfold tolerance"
    half = {"modes": modes // 2, "error": error, "seconds": seconds[1]}
    found = {"method": method, "error": error, "seconds": seconds[0], "half": half}
    return Grid((modes,), (-1.0, 1.0), "periodic"), fine, found


def defect(problem: Burgers, grid: Grid, truth: Tensor, stages: int, step: float) -> float:
    """max |u_(n+1) + h sum_j b_j N[U_j] - u_n| of the reference: what the quadrature in time leaves, whatever the network."""
    c = torch.fft.rfft(truth[1:-1])
    k = 1j * math.pi * torch.arange(c.shape[-1])
    u_x, u_xx = (torch.fft.irfft(k**m * c, n=grid.shape[0]) for m in (1, 2))
    rate = truth[1:-1] * u_x - problem.viscosity * u_xx
    weights = torch.from_numpy(gauss_legendre(stages).weights.copy())
    return float((truth[-1] + step * weights @ rate - truth[0]).abs().max())


def relative(u: Tensor, truth: Tensor) -> float:
    """The relative L2 error."""
    return float((u - truth).norm() / truth.norm())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
