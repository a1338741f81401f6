"""
The coefficients of Burgers' equation from scattered values
===========================================================

u_t + c u u_x = nu u_xx: convection c = 1 and viscosity nu = 0.01 / pi are unknown, u is known at 2000 points scattered over space and
time (Raissi, Perdikaris and Karniadakis 2019, section 4.1.2). Neither initial nor boundary values are given.

1. solve the equation from u(0, x) = -sin(pi x) and scatter observations over the solution,
2. fit a network to the values and to the equation at once, with c and nu among the parameters: Adam, then self-scaled Broyden,
   with new points where the residual is large,
3. repeat it with one per cent of noise, several draws of it, each from weights of its own; a few Gauss-Newton steps at points that
   stay lead to the minimum,
4. report standard errors from the Gauss-Newton curvature, and how many draws lie within two of them,
5. compare with least squares through the solver, which finds the initial values too,
6. draw the solution that was found, the convergence of the coefficients, and their errors in units of the standard errors.

Run ``python examples/burgers_discovery.py --help`` for the options.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.losses import DataMisfit, Objective, PDEResidual, Unknown, mean_squared_error, total
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation, Interval, SpaceTime, scatter_observations
from opflow.plotting import plot_convergence, plot_fields, plot_intervals, save_figure
from opflow.problems import Burgers
from opflow.training import LevenbergMarquardt, SelfScaledBroyden, fit, gauss_newton_covariance

DOMAIN = ((0.0, 1.0), (-1.0, 1.0))  # of (t, x)


def main(
    viscosity: float = 0.01 / math.pi,
    observations: int = 2000,
    noise: float = 0.01,
    draws: int = 10,
    hidden: tuple[int, ...] = (20, 20, 20),
    points: int = 3000,
    adam_steps: int = 500,
    iterations: int = 5000,
    noisy_iterations: int = 2000,
    noisy_steps: int = 20,
    resample_every: int = 500,
    modes: int = 2048,
    seed: int = 0,
    noise_seed: int = 0,
    classical: bool = True,
    out: Path = Path("runs/burgers_discovery"),
    overwrite: bool = False,
) -> float:
    """Find c and nu; return the larger of their relative errors from values without noise.

    Args:
        viscosity: of the solution that is observed; the search begins at exp(-6), and at c = 0.
        observations: scattered points where u is known.
        noise: standard deviation of the noise over that of u.
        draws: of the noise, each fitted on its own; 0 for none.
        hidden: widths of the network's hidden layers.
        points: collocation points of the residual.
        adam_steps: of the warm-up.
        iterations: of the quasi-Newton method, without noise.
        noisy_iterations: of the quasi-Newton method, with noise.
        noisy_steps: of Levenberg and Marquardt after them, at points that stay.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        modes: of the reference, a multiple of 512; half as many again tell its error.
        seed: of weights, points and sensors.
        noise_seed: of the first draw; the next ones count on.
        classical: fit c and nu by the solver too.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    true = {"convection": 1.0, "viscosity": viscosity}
    solution, grid, times, reference = reference_solution(viscosity, modes)
    print(f"reference: {reference['method']}, error {reference['error']:.1e}, {reference['seconds']:.1f} s")
    sensors = scatter_observations({"velocity": solution}, grid, observations, times=times, seed=seed)
    everywhere = torch.cartesian_prod(times, grid.coordinates(0))

    def predicted(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(everywhere).view_as(solution)

    # Without noise.
    sizes = {
        "true": true, "hidden": hidden, "points": points, "adam_steps": adam_steps, "resample_every": resample_every,
    }  # fmt: skip
    began = time.process_time()
    clean = discover(sensors, 10.0, 0.1, iterations=iterations, seed=seed, **sizes)
    seconds = time.process_time() - began
    u, errors = predicted(clean.model), {name: abs(clean.found[name] / true[name] - 1) for name in true}
    error_u = float((u - solution).norm() / solution.norm())
    row = {"error": max(errors.values()), **errors, "error_u": error_u, "seconds": seconds}
    print("no noise: errors of " + ", ".join(f"{name} {value:.2g}" for name, value in row.items()))
    rows: dict[str, dict[str, object]] = {"Burgers discovery, clean": row}
    if classical:
        reference["fit_by_the_solver"] = fit_by_the_solver(sensors, times, true, modes // 2, rtol=1e-6)
        print("fit by the solver:", reference["fit_by_the_solver"], flush=True)

    # With noise the residual weighs more, about (deviation of the noise / size of the residual that the network leaves anyway)^2:
    # the equation holds then and averages the noise out; more weight than that changes nothing.
    deviation, fits, classical_fits, seconds = noise * float(solution.std()), [], [], 0.0
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 * (seed + 1) + noise_seed + draw)
        eps = torch.randn(sensors.target.shape, generator=generator, dtype=torch.float64)
        noisy = Batch(coords=sensors.coords, target=sensors.target + deviation * eps)
        began = time.process_time()
        fit_ = discover(
            noisy, 1.0, 1.0, iterations=noisy_iterations, steps=noisy_steps, seed=100 * (seed + 1) + draw, **sizes
        )
        fits.append(one := with_standard_errors(fit_, true))
        seconds += time.process_time() - began
        print(f"draw {draw}: " + ", ".join(f"{name} {value:.3g}" for name, value in one.items()), flush=True)
        if classical:  # the noise is far above an error of the solver of 1e-4
            classical_fits.append(fit_by_the_solver(noisy, times, true, modes // 2, rtol=1e-4))
            print(f"draw {draw}, by the solver: {classical_fits[-1]}", flush=True)
    if fits:
        within = {name: sum(abs(one[f"z_{name}"]) <= 2 for one in fits) for name in true}
        both = within_both(fits)
        print(f"within two standard errors, of {draws}: {within}, both {both}; {seconds / draws:.0f} s a draw")
        rows[f"Burgers discovery, {100 * noise:g} % noise"] = {
            "error": 1 - both / draws, "within_both": both, "within": within, "draws": fits, "seconds": seconds,
        }  # fmt: skip
    if classical_fits:
        reference["fits_by_the_solver_with_noise"] = {
            "within_both": within_both(classical_fits), "draws": classical_fits,
            "seconds": sum(one["seconds"] for one in classical_fits),
        }  # fmt: skip
        print(f"by the solver within two standard errors, of {draws}: both {within_both(classical_fits)}")
    write_json(out / "results.json", {
        "rows": rows, "reference": reference, "viscosity": viscosity, "seed": seed, "noise_seed": noise_seed, "observations": observations,
        "noise": noise, "hidden": list(hidden), "points": points, "adam_steps": adam_steps, "iterations": iterations,
        "noisy_iterations": noisy_iterations, "noisy_steps": noisy_steps, "resample_every": resample_every,
    })  # fmt: skip

    # Pictures.
    space_time = Grid(solution.shape, ((0.0, float(times[-1])), DOMAIN[1]), ("nodes", "periodic"), ("t", "x"))
    values = torch.full_like(solution, torch.nan)
    spacing = torch.tensor([float(times[1]), grid.spacing[0]], dtype=torch.float64)
    near = ((sensors.coords - torch.tensor([0.0, DOMAIN[1][0]], dtype=torch.float64)) / spacing).round().long()
    values[near[:, 0], near[:, 1]] = sensors.target[:, 0]
    figure = plot_fields(
        [{"observed": values, "solution": solution, "found": u}], space_time, input="observed", reference="solution", prediction="found"
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        clean.curves, xlabel="quasi-Newton iterations", ylabel="relative error; loss at fresh points"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    if fits:
        bars = {name: [(one[name] / true[name], one[f"error_{name}"] / true[name]) for one in fits] for name in true}
        figure = plot_intervals(bars, truth=1.0, ylabel="found over true, with two standard errors", factor=2.0)
        print(f"picture: {save_figure(figure, out / 'noise.png')}")
    return row["error"]


class Discovery(NamedTuple):
    """A network and coefficients that were found."""

    model: nn.Module
    loss: Objective
    misfit: DataMisfit
    unknowns: dict[str, Unknown]
    batch: dict[str, Batch]
    curves: dict[str, tuple[list[int], list[float]]]

    @property
    def found(self) -> dict[str, float]:
        """The coefficients."""
        return {name: unknown.value for name, unknown in self.unknowns.items()}


def discover(
    sensors: Batch,
    data_weight: float,
    residual_weight: float,
    *,
    iterations: int,
    seed: int,
    true: dict[str, float],
    hidden: tuple[int, ...],
    points: int,
    adam_steps: int,
    resample_every: int,
    steps: int = 0,
) -> Discovery:
    """Fit values and equation: Adam, self-scaled Broyden with points that move, and `steps` of Levenberg and Marquardt with points that
    stay; without these, the state with the lowest loss at points that were never trained on.
    """
    torch.manual_seed(seed)
    model = PINN.build(DOMAIN, hidden=hidden).double()
    unknowns = {"convection": Unknown(0.0), "viscosity": Unknown(math.exp(-6), positive=True)}
    misfit = DataMisfit(mean_squared_error, on="observations")
    residual = PDEResidual(Burgers(), AutogradDerivatives(method="taylor"), unknowns, on="interior")
    loss = data_weight * misfit + residual_weight * residual
    domain = SpaceTime(DOMAIN[0], Interval(*DOMAIN[1]))
    collocation = Collocation(domain, points, others={"observations": sensors}, steps=100, seed=seed)
    fresh = {"interior": Batch(coords=domain.sample(4 * points, seed=(seed, 1))), "observations": sensors}
    parameters = [*model.parameters(), *loss.parameters()]

    def resample() -> None:
        collocation.resample(lambda batch: residual.point_sizes(model, batch))

    adam = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for _ in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        resample()

    # The curvature that the quasi-Newton method gathers outlives the new points.
    broyden = SelfScaledBroyden(parameters, iterations=50)
    collocation.steps = resample_every // 50
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in (*true, "loss at fresh points")}
    best: tuple[dict[str, Tensor], ...] = ()
    epochs = max(1, iterations // resample_every)
    for record in fit(
        model, loss, collocation, broyden, epochs=epochs, validate=lambda model: float(total(loss(model, fresh)))
    ):
        errors = {name: abs(unknowns[name].value / true[name] - 1) for name in true}
        for name, value in {**errors, "loss at fresh points": record.validation}.items():
            curves[name][0].append(broyden.report.iterations)
            curves[name][1].append(value)
        said = ", ".join(f"{name} {unknown.value:.7g}" for name, unknown in unknowns.items())
        print(f"{record}, {said}; {broyden.report}", flush=True)
        if record.best:
            best = copy.deepcopy((model.state_dict(), loss.state_dict()))
        if record.epoch < epochs:
            resample()
    if steps == 0:
        model.load_state_dict(best[0])
        loss.load_state_dict(best[1])
    else:
        collocation.steps = steps
        for _ in fit(model, loss, collocation, LevenbergMarquardt(parameters, damping=1e-7), epochs=1):
            pass
    return Discovery(model, loss, misfit, unknowns, collocation.batch, curves)


def with_standard_errors(fitted: Discovery, true: dict[str, float]) -> dict[str, float]:
    """The coefficients with their standard errors, (found - true) / standard error as z, and the noise that the misfit shows."""
    raw = [unknown.raw for unknown in fitted.unknowns.values()]
    covariance = gauss_newton_covariance(fitted.model, fitted.loss, fitted.batch, raw, data=[fitted.misfit])
    one: dict[str, float] = {}
    for (name, unknown), error, rest in zip(
        fitted.unknowns.items(), covariance.standard_errors.tolist(), covariance.remaining.tolist(), strict=True
    ):
        one[name], one[f"error_{name}"] = unknown.value, error * unknown.slope()
        one[f"z_{name}"] = (one[name] - true[name]) / one[f"error_{name}"]
        one[f"remaining_{name}"] = rest / error
    return one | {"noise": covariance.noise, "effective_parameters": covariance.effective_parameters}


def within_both(fits: list[dict[str, float]]) -> int:
    """The number of fits with both coefficients within two standard errors."""
    return sum(abs(one["z_convection"]) <= 2 and abs(one["z_viscosity"]) <= 2 for one in fits)


def fit_by_the_solver(
    sensors: Batch, times: Tensor, true: dict[str, float], modes: int, *, rtol: float, harmonics: int = 8
) -> dict[str, float]:
    """c, nu and the initial values, a trigonometric polynomial, by least squares on the sensors, from where the network begins.

    It knows more than the network does: that u is periodic, and that eight harmonics hold the initial values.
    """
    from scipy.optimize import least_squares

    began = time.process_time()
    space, (t, x), target = Grid(modes, DOMAIN[1], "periodic"), sensors.coords.unbind(1), sensors.target[:, 0]
    frame, node = (t / times[1]).round().long(), ((x - DOMAIN[1][0]) / space.spacing[0]).round().long()
    k = torch.pi * torch.arange(1, harmonics + 1, dtype=torch.float64)[:, None]

    def waves(x: Tensor) -> Tensor:
        return torch.cat([torch.ones(1, len(x), dtype=torch.float64), torch.cos(k * x), torch.sin(k * x)])

    on_grid = waves(space.coordinates(0))

    def values(convection: float, log_viscosity: float, initial: Tensor) -> Tensor:
        problem = Burgers(math.exp(log_viscosity), convection)
        return problem.solve({"initial": initial}, space, times=times, rtol=rtol)["velocity"][:, frame, node]

    def misfit(z: np.ndarray) -> np.ndarray:
        return (values(z[0], z[1], torch.from_numpy(z[2:])[None] @ on_grid)[0] - target).numpy()

    def jacobian(z: np.ndarray, h: float = 1e-5) -> np.ndarray:
        u = torch.from_numpy(z[2:])[None] @ on_grid
        moved = [values(z[0] + h, z[1], u), values(z[0], z[1] + h, u), values(z[0], z[1], u + h * on_grid)]
        return ((torch.cat(moved) - values(z[0], z[1], u)) / h).T.numpy()

    early = t < 0.1
    start = torch.linalg.lstsq(waves(x[early]).T, target[early, None]).solution[:, 0]
    found = least_squares(misfit, [0.0, -6.0, *start.tolist()], jac=jacobian, x_scale="jac", xtol=1e-10)
    variance = float((found.fun**2).sum()) / (len(target) - len(found.x)) * np.linalg.inv(found.jac.T @ found.jac)
    one: dict[str, float] = {"convection": float(found.x[0]), "viscosity": math.exp(found.x[1])}
    for i, (name, slope) in enumerate(zip(true, (1.0, one["viscosity"]), strict=True)):
        one[f"{name}_error"] = abs(one[name] / true[name] - 1)
        one[f"error_{name}"] = slope * math.sqrt(variance[i, i])
        one[f"z_{name}"] = (one[name] - true[name]) / one[f"error_{name}"]
    return one | {"steps": int(found.njev), "seconds": time.process_time() - began}


def reference_solution(viscosity: float, modes: int) -> tuple[Tensor, Grid, Tensor, dict[str, object]]:
    """u (100, 256) at t = 0, 0.01 .. 0.99 on the periodic interval (-1, 1), to which the odd initial values extend."""
    times = torch.linspace(0, 0.99, 100, dtype=torch.float64)

    def solved(n: int, rtol: float) -> Tensor:
        grid = Grid(n, DOMAIN[1], "periodic")
        initial = -torch.sin(torch.pi * grid.coordinates(0))[None]
        return Burgers(viscosity).solve({"initial": initial}, grid, times=times, rtol=rtol)["velocity"][
            0, :, :: n // 256
        ]

    began = time.process_time()
    solution = solved(modes, 1e-9)
    seconds = time.process_time() - began
    error = float((solution - solved(modes * 3 // 2, 1e-10)).norm() / solution.norm())
    reference = {
        "method": f"Burgers.solve, {modes} modes, against {modes * 3 // 2}",
        "error": error,
        "seconds": seconds,
    }
    return solution, Grid(256, DOMAIN[1], "periodic"), times, reference


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
