"""
Coefficients and pressure of a flow from scattered velocities
=============================================================

u_t + c (u u_x + v u_y) = -p_x + nu lap u, and the same for v, with div (u, v) = 0: convection c = 1, viscosity nu and the
pressure p are unknown, velocities are known at scattered points (Raissi, Perdikaris and Karniadakis 2019, section 4.1.1).

1. compute a flow of several decaying vortices on a periodic square, and scatter observations of its velocity over space and time,
2. let a network give a stream function psi and p, so that (u, v) = (psi_y, -psi_x) has no divergence whatever the weights are,
3. fit the velocities and the momentum equations together: Adam, then self-scaled Broyden, with new points now and then,
4. report c and nu with standard errors from the Gauss-Newton curvature,
5. compare the pressure, which nobody observed, with that of the flow; it is determined up to a function of time.

One Taylor-Green vortex would not do: its u . grad u is a gradient, which the pressure balances for every c. Here c is found
because u . grad w, w the vorticity, is no multiple of w_t or lap w; the standard errors say how well.

Run ``python examples/navier_stokes_discovery.py --help`` for the options.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.losses import ObservationMisfit, PDEResidual, Unknown, total
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Box, Collocation, FourierSpace, SpaceTime, scatter_observations
from opflow.plotting import plot_convergence, plot_frames, save_figure
from opflow.problems import NavierStokes
from opflow.training import SelfScaledBroyden, fit, gauss_newton_covariance
from opflow.typing import Derivatives


class Momentum:
    """u_t + c (u u_x + v u_y) + p_x - nu lap u = 0, and the same for v, with (u, v) = (psi_y, -psi_x)."""

    coordinates, unknowns = ("t", "x", "y"), ("stream_function", "pressure")
    convection, viscosity = 1.0, 0.01  # training puts what it finds in their place

    def residual(self, w: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum_x", "momentum_y"}"""
        psi, p, c, nu = w["stream_function"], w["pressure"], self.convection, self.viscosity
        u, v = psi.d("y"), -psi.d("x")
        u_x, u_y, v_x, v_y = psi.d("xy"), psi.d("yy"), -psi.d("xx"), -psi.d("xy")
        lap_u, lap_v = psi.d("xxy") + psi.d("yyy"), -psi.d("xxx") - psi.d("xyy")
        return {
            "momentum_x": psi.d("ty") + c * (u * u_x + v * u_y) + p.d("x") - nu * lap_u,
            "momentum_y": -psi.d("tx") + c * (u * v_x + v * v_y) + p.d("y") - nu * lap_v,
        }


def velocity(w: Derivatives) -> dict[str, Tensor]:
    """(u, v) = (psi_y, -psi_x), what the sensors observe"""
    psi = w["stream_function"]
    return {"velocity_x": psi.d("y"), "velocity_y": -psi.d("x")}


def pressure(velocity: Tensor, grid: Grid) -> Tensor:
    """p of zero mean with -lap p = u_x^2 + 2 u_y v_x + v_y^2, (time, 2, *grid) -> (time, *grid)"""
    space = FourierSpace(grid)
    u, v = space.coefficients(velocity).unbind(1)
    (u_x, u_y), (v_x, v_y) = ([space.field(d * c) for d in space.gradient] for c in (u, v))
    square = -space.laplacian
    square[0, 0] = math.inf
    return space.field(space.coefficients(u_x**2 + 2 * u_y * v_x + v_y**2) / square)


def main(
    viscosity: float = 0.01,
    noise: float = 0.0,
    observations: int = 5000,
    hidden: tuple[int, ...] = (30, 30, 30),
    points: int = 3000,
    adam_steps: int = 500,
    iterations: int = 2000,
    resample_every: int = 500,
    residual_weight: float | None = None,
    seed: int = 0,
    out: Path = Path("runs/navier_stokes_discovery"),
    overwrite: bool = False,
) -> float:
    """Find c and nu; return the larger of their relative errors.

    Args:
        viscosity: of the flow that is observed; the search begins at five times it.
        noise: standard deviation of the noise over that of each velocity component.
        observations: scattered points where u and v are known.
        hidden: widths of the network's hidden layers.
        points: collocation points of the momentum equations.
        adam_steps: of the warm-up.
        iterations: of the quasi-Newton method.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        residual_weight: of the mean square of the momentum equations, beside that of the misfit; None for 0.01 without noise and
            1 with noise, which the equations then average out.
        seed: of weights, points, sensors and noise.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    flow, grid, times, reference = reference_flow(viscosity)
    print(f"reference: {reference['method']}, error {reference['error']:.1e}, {reference['seconds']:.1f} s")
    names, nodes = ("velocity_x", "velocity_y"), grid.points().view(-1, 2)
    seen = dict(zip(names, flow["velocity"].unbind(1), strict=True))
    sensors = scatter_observations(seen, grid, observations, times=times, noise=noise, seed=seed)

    # The box is periodic, and the network knows it; initial values are unknown.
    torch.manual_seed(seed)
    box = ((0.0, float(times[-1])), (0.0, 1.0), (0.0, 1.0))
    model = PINN.build(box, out_channels=2, hidden=hidden, periodic=(0, 1, 1)).double()
    true = {"convection": 1.0, "viscosity": viscosity}
    unknowns = {"convection": Unknown(0.0), "viscosity": Unknown(5 * viscosity, positive=True)}
    taylor = AutogradDerivatives(Momentum.coordinates, Momentum.unknowns, "taylor")
    momentum = PDEResidual(Momentum(), taylor, unknowns, on="interior", chunk=1000)
    misfit = ObservationMisfit(velocity, taylor, name="velocity", on="observations")
    if residual_weight is None:
        residual_weight = 1.0 if noise else 0.01
    loss = misfit + residual_weight * momentum
    domain = SpaceTime(box[0], Box(box[1:]))
    collocation = Collocation(domain, points, others={"observations": sensors}, steps=100, seed=seed)
    fresh = {"interior": Batch(coords=domain.sample(points, seed=(seed, 1))), "observations": sensors}
    parameters = [*model.parameters(), *loss.parameters()]
    print(f"model: {sum(p.numel() for p in parameters)} parameters; {observations} observations, {points} points")

    began = time.process_time()
    adam = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for record in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        print(record, flush=True)
    broyden = SelfScaledBroyden(parameters, iterations=50)
    collocation.steps = resample_every // 50
    best: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in (*unknowns, "loss at fresh points")}
    for record in fit(
        model, loss, collocation, broyden, epochs=max(1, iterations // resample_every),
        validate=lambda model: float(total(loss(model, fresh))),
    ):  # fmt: skip
        found = {name: unknown.value for name, unknown in unknowns.items()}
        errors = {name: abs(found[name] / true[name] - 1) for name in true}
        for name, value in {**errors, "loss at fresh points": record.validation}.items():
            curves[name][0].append(broyden.report.iterations)
            curves[name][1].append(value)
        print(
            f"{record}, c = {found['convection']:.5f}, nu = {found['viscosity']:.6f}, {time.process_time() - began:.0f} s",
            flush=True,
        )
        if record.best:
            best = copy.deepcopy((model.state_dict(), loss.state_dict()))
        collocation.resample(lambda batch: momentum.point_sizes(model, batch))
    model.load_state_dict(best[0])
    loss.load_state_dict(best[1])
    seconds = time.process_time() - began
    found = {name: unknown.value for name, unknown in unknowns.items()}
    errors = {name: abs(found[name] / true[name] - 1) for name in true}

    # Standard errors, at the points of validation: noise in the data, or without it the misfit that training leaves.
    raw = [unknown.raw for unknown in unknowns.values()]
    covariance = gauss_newton_covariance(model, loss, fresh, raw, data=[misfit])
    standard = {
        name: error * unknown.slope()
        for (name, unknown), error in zip(unknowns.items(), covariance.standard_errors.tolist(), strict=True)
    }

    # Pressure: determined up to a function of time.
    with torch.no_grad():
        instants = [torch.cat([t.expand(len(nodes), 1), nodes], 1) for t in times]
        p = torch.stack([model(y)[:, 1].view(grid.shape) for y in instants])
    p = p - p.mean((-2, -1), keepdim=True)
    error_p = float((p - flow["pressure"]).norm() / flow["pressure"].norm())
    for name in true:
        print(f"{name}: {found[name]:.6g} +- {standard[name]:.2g}, relative error {errors[name]:.2g}")
    print(f"pressure: relative L2 error {error_p:.2g}; {seconds:.0f} s of CPU")
    row = {
        "error": max(errors.values()), "error_convection": errors["convection"], "error_viscosity": errors["viscosity"],
        "found": found, "standard_errors": standard, "error_pressure": error_p, "noise": covariance.noise, "seconds": seconds,
    }  # fmt: skip
    write_json(out / "results.json", {
        "rows": {f"Navier-Stokes discovery, {f'{100 * noise:g} % noise' if noise else 'clean'}": row}, "reference": reference,
        "seed": seed, "observations": observations, "points": points, "hidden": list(hidden), "adam_steps": adam_steps,
        "iterations": iterations, "residual_weight": residual_weight, "viscosity": viscosity,
    })  # fmt: skip

    # Pictures.
    shown = range(0, len(times), max(1, (len(times) - 1) // 4))
    frames = {"reference": flow["pressure"][list(shown)], "found": p[list(shown)]}
    title = "pressure from velocities, mean removed"
    figure = plot_frames(
        frames, grid, [round(float(times[i]), 3) for i in shown], reference="reference", prediction="found", title=title
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'pressure.png')}")
    figure = plot_convergence(curves, xlabel="quasi-Newton iterations", ylabel="relative error; loss at fresh points")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    return row["error"]


def reference_flow(viscosity: float, size: int = 48, frames: int = 21):
    """Vortices of wave numbers up to two, root mean square velocity 0.5 at first, over one unit of time."""
    problem = NavierStokes(viscosity=viscosity, final_time=1.0, forcing="none", cutoff=2)
    times = torch.linspace(0.0, 1.0, frames, dtype=torch.float64)

    def solved(n: int) -> tuple[dict[str, Tensor], Grid]:
        grid = Grid((n, n), layout="periodic")
        w = problem.sample(1, grid)["initial_vorticity"]
        w = w * (0.5 / problem.velocity(w, grid).square().sum(-3).mean().sqrt())
        vorticity = problem.solve({"initial_vorticity": w}, grid, times=times, rtol=1e-9)["vorticity"][0]
        velocity = problem.velocity(vorticity, grid)
        return {"vorticity": vorticity, "velocity": velocity, "pressure": pressure(velocity, grid)}, grid

    began = time.process_time()
    flow, grid = solved(size)
    seconds = time.process_time() - began
    finer = solved(2 * size)[0]["velocity"][..., ::2, ::2]
    error = float((flow["velocity"] - finer).norm() / finer.norm())
    return (
        flow,
        grid,
        times,
        {"method": f"NavierStokes.solve, {size} x {size} modes", "error": error, "seconds": seconds},
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
