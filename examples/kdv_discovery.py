"""
Coefficients of the Korteweg-de Vries equation from two snapshots
=================================================================

u_t + c u u_x + e u_xxx = 0 on (-1, 1), periodic, u(0, x) = cos(pi x), c = 1, e = 0.0025. All that is known are 199 values
of u at t = 0.2 and 201 at t = 0.8, at scattered points; c and e are to be found, with nothing known of their sign or size
(Raissi, Perdikaris and Karniadakis 2019, section 4.2.2).

1. solve the equation for the two snapshots,
2. make a network x -> (u at the q times of one Gauss-Legendre step from 0.2 to 0.8), periodic by its features,
3. warm up: the network takes the straight line between the snapshots, and c and e what fits it best; of some random
   networks the one with the lowest loss after a while goes on,
4. minimise, by self-scaled Broyden, how far the stages are from both snapshots, over the network and c and e together,
5. do it again with noise in the snapshots, with standard errors,
6. beside it, fit c and e by solving the equation again and again; draw the stages and the convergence.

The points stay, so the loss is one fixed function, and the last state is taken: there is nothing to select.

Run ``python examples/kdv_discovery.py --help`` for the options.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.fourier import periodic_interpolant
from opflow.losses import DiscreteTimeResidual, Unknown
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, gauss_legendre
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import KortewegDeVries
from opflow.training import LeastSquares, SelfScaledBroyden, fit, gauss_newton_covariance

TRUE = {"convection": 1.0, "dispersion": 0.0025}
START, END = 0.2, 0.8
SENSORS = {"start": 199, "end": 201}
MODES = 256


def main(
    stages: int = 24,
    hidden: tuple[int, ...] = (24, 24),
    harmonics: int = 2,
    warm_up: int = 200,
    starts: int = 3,
    trial: int = 400,
    iterations: int = 4000,
    noise: float = 0.01,
    noisy_iterations: int = 1000,
    classical: bool = True,
    seed: int = 0,
    out: Path = Path("runs/kdv_discovery"),
    overwrite: bool = False,
) -> float:
    """Find c and e; return the larger of their relative errors without noise.

    Args:
        stages: q of the Gauss-Legendre method; the error of the step falls like 0.6^(2 q).
        hidden: widths of the network's hidden layers.
        harmonics: of the periodic features.
        warm_up: steps of Adam towards the straight line between the snapshots.
        starts: how many random networks are tried; the one with the lowest loss is trained further.
        trial: quasi-Newton iterations after which they are compared.
        iterations: of the quasi-Newton method.
        noise: deviation of the noise of a second run, as a share of the snapshots' own; 0 for no second run.
        noisy_iterations: of the quasi-Newton method in that run.
        classical: fit c and e by the solver too.
        seed: of the weights, the sensors and the noise.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    tableau = gauss_legendre(stages)
    times = [START, *(START + (END - START) * tableau.nodes), END]
    grid, truth, reference = reference_solution(times)
    generator = np.random.default_rng(seed)
    sensors = {name: torch.from_numpy(np.sort(generator.uniform(-1, 1, n))) for name, n in SENSORS.items()}
    clean = {
        name: Batch(coords=sensors[name][:, None], target=periodic_interpolant(frame, sensors[name], (-1.0, 1.0)))
        for name, frame in (("start", truth[0]), ("end", truth[-1]))
    }
    x = grid.coordinates(0).double()
    settings = {
        "stages": stages, "hidden": hidden, "harmonics": harmonics, "warm_up": warm_up, "starts": starts, "trial": trial,
        "iterations": iterations, "noise": noise, "noisy_iterations": noisy_iterations, "seed": seed,
    }  # fmt: skip
    architecture = {"out_channels": stages, "hidden": hidden, "periodic": (harmonics,)}

    model, loss, row, curves = discovered(clean, architecture, starts, trial, iterations, warm_up, seed)
    error = max(row["convection_error"], row["dispersion_error"])
    with torch.no_grad():
        predicted = model(x[:, None]).T
    row |= {"error": error, "stages_error": relative(predicted, truth[1:-1])}
    rows = {"KdV discovery, two snapshots, clean": row}
    print(f"clean: convection {row['convection_error']:.1e}, dispersion {row['dispersion_error']:.1e} relative error")

    if noise:
        noisy = {}
        for name, batch in clean.items():
            deviation = noise * float(batch.target.std())
            wrong = torch.from_numpy(deviation * generator.standard_normal(len(batch.target)))
            noisy[name] = Batch(coords=batch.coords, target=batch.target + wrong)
        model, loss, row, _ = discovered(noisy, architecture, starts, trial, noisy_iterations, warm_up, seed)
        row |= standard_errors(model, loss, noisy)
        rows[f"KdV discovery, two snapshots, noise {noise:g}"] = row
        for name, true in TRUE.items():
            print(f"noise {noise:g}: {name} {row[name]:.6f} +- {row[name + '_standard_error']:.6f}, true {true:g}")

    if classical:
        reference["fit_by_the_solver"] = fit_by_the_solver(clean)
        print("fit by the solver:", reference["fit_by_the_solver"])

    # Pictures.
    pick = [0, stages // 2, stages - 1]
    pictures = [{"start": truth[0], "reference": truth[1 + i], "network": predicted[i]} for i in pick]
    figure = plot_fields(
        pictures, grid, input="start", reference="reference", prediction="network",
        title=f"stages at t = {', '.join(f'{times[1 + i]:.3f}' for i in pick)}",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'stages.png')}")
    steps = curves.pop("iterations")
    figure = plot_convergence(
        {name: (steps, curve) for name, curve in curves.items()},
        xlabel="quasi-Newton iterations", ylabel="loss, relative errors",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_json(
        out / "results.json",
        {"rows": rows, "reference": reference, "settings": settings, "curves": {"iterations": steps, **curves}},
    )
    return error


def discovered(
    snapshots: Mapping[str, Batch],
    architecture: Mapping[str, Any],
    starts: int,
    trial: int,
    iterations: int,
    warm_up: int,
    seed: int,
) -> tuple[nn.Module, nn.Module, dict, dict[str, list[float]]]:
    """The network and the loss after training, what was found, and the curves of convergence."""
    began = time.process_time()
    # Some weights lead to a local minimum without dispersion, whose loss is a thousand times as large.
    candidates = [Training(snapshots, architecture, warm_up, 1000 * seed + start) for start in range(starts)]
    for number, candidate in enumerate(candidates):
        candidate.proceed(trial)
        print(f"start {number}: {candidate}", flush=True)
    losses = [candidate.curves["loss"][-1] for candidate in candidates]
    chosen = candidates[losses.index(min(losses))]
    while (left := iterations - chosen.broyden.report.iterations) > 0 and chosen.proceed(min(500, left)):
        print(chosen, flush=True)
    row = {
        "seconds": time.process_time() - began, "iterations": chosen.broyden.report.iterations,
        "loss": chosen.curves["loss"][-1], "losses_of_starts": losses,
    }  # fmt: skip
    for name, unknown in chosen.unknowns.items():
        row |= {name: unknown.value, f"{name}_error": abs(unknown.value / TRUE[name] - 1)}
    return chosen.model, chosen.loss, row, chosen.curves


class Training:
    """One network with its unknown coefficients, from random weights; `proceed` trains it further."""

    def __init__(
        self, snapshots: Mapping[str, Batch], architecture: Mapping[str, Any], warm_up: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.snapshots, stages = snapshots, architecture["out_channels"]
        self.model = PINN.build(((-1.0, 1.0),), **architecture).double()
        self.unknowns = {name: Unknown(0.0) for name in TRUE}
        start, end = (
            DiscreteTimeResidual(
                KortewegDeVries(), AutogradDerivatives(method="taylor"), stages, END - START,
                snapshot=name, unknowns=self.unknowns, on=name,
            )
            for name in ("start", "end")
        )  # fmt: skip
        self.loss = start + end
        # From random weights the coefficients run away before the stages join the snapshots. A stage at the share s of the
        # step is near (1 - s) u_n + s u_(n+1), which is what these weights make of the two snapshots.
        share = torch.from_numpy(gauss_legendre(stages).nodes.copy())
        near = {"start": 1 - share, "end": share}

        def line(model: nn.Module, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
            return {
                name: (near[name] * (model(part.coords) - part.target[:, None]).square()).mean()
                for name, part in batch.items()
            }

        adam = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, warm_up)
        for _ in fit(self.model, line, [snapshots] * warm_up, adam, epochs=1, scheduler=schedule):
            pass
        SelfScaledBroyden(self.loss.parameters()).step(LeastSquares(self.model, self.loss, snapshots))
        self.broyden = SelfScaledBroyden([*self.model.parameters(), *self.loss.parameters()], iterations=50)
        self.curves: dict[str, list[float]] = {
            "iterations": [], "loss": [], **{f"error of the {name}": [] for name in TRUE},
        }  # fmt: skip

    def proceed(self, iterations: int) -> bool:
        """Train further; False where the optimiser finds nothing lower any more."""
        failures = self.broyden.report.failures
        for record in fit(self.model, self.loss, [self.snapshots], self.broyden, epochs=max(1, iterations // 50)):
            self.curves["iterations"].append(self.broyden.report.iterations)
            self.curves["loss"].append(record.loss)
            for name, unknown in self.unknowns.items():
                self.curves[f"error of the {name}"].append(abs(unknown.value / TRUE[name] - 1))
        return self.broyden.report.failures < failures + 2

    def __str__(self) -> str:
        found = ", ".join(f"{name} {unknown.value:.8g}" for name, unknown in self.unknowns.items())
        return f"loss {self.curves['loss'][-1]:.3e}, {found}; {self.broyden.report}"


def standard_errors(model: nn.Module, loss: nn.Module, snapshots: Mapping[str, Batch]) -> dict[str, float]:
    """Of c and e, from the curvature of the loss and the noise that the stages leave over."""
    unknowns = loss.losses[0].unknowns
    found = gauss_newton_covariance(
        model, loss, snapshots, [unknown.raw for unknown in unknowns.values()], data=list(loss.losses)
    )
    result = {"noise_estimated": found.noise, "effective_parameters": found.effective_parameters}
    for name, error, remaining in zip(unknowns, found.standard_errors.tolist(), found.remaining.tolist(), strict=True):
        result[f"{name}_standard_error"] = error * unknowns[name].slope()
        result[f"{name}_remaining"] = remaining * unknowns[name].slope()  # of another Gauss-Newton step
    return result


def reference_solution(times: list[float]) -> tuple[Grid, Tensor, dict]:
    """The grid, u (time, MODES) with the true coefficients, and what it cost; its error as the difference from a coarser solution."""
    problem = KortewegDeVries(**TRUE)
    frames, seconds = [], []
    for modes, rtol in ((MODES, 1e-8), (MODES // 2, 1e-6)):
        grid = Grid((modes,), (-1.0, 1.0), "periodic")
        initial = torch.cos(math.pi * grid.coordinates(0).double())
        began = time.process_time()
        solved = problem.solve({"initial": initial[None]}, grid, times=[0.0, *times], rtol=rtol)["height"]
        seconds.append(time.process_time() - began)
        frames.append(solved[0, 1:])
    fine, coarse = frames
    error = relative(coarse, fine[:, ::2])
    print(
        f"reference: {MODES} modes, {seconds[0]:.1f} s; half of them at a hundredfold tolerance differ by {error:.1e}"
    )
    method = f"integrating factor RK4 with {MODES} modes; its error as the difference from half of them at a hundredfold tolerance"
    return Grid((MODES,), (-1.0, 1.0), "periodic"), fine, {"method": method, "error": error, "seconds": seconds[0]}


def fit_by_the_solver(snapshots: Mapping[str, Batch], modes: int = 128, harmonics: int = 48) -> dict[str, float]:
    """c and e by least squares on the later snapshot, the equation solved from the trigonometric fit of the earlier one."""
    from scipy.optimize import least_squares

    def basis(x: Tensor) -> Tensor:
        angle = math.pi * x * torch.arange(1, harmonics + 1, dtype=torch.float64)
        return torch.cat([torch.ones_like(x), torch.cos(angle), torch.sin(angle)], dim=1)

    began = time.process_time()
    start, end = snapshots["start"], snapshots["end"]
    grid = Grid((modes,), (-1.0, 1.0), "periodic")
    x = grid.coordinates(0).double()[:, None]
    initial = basis(x) @ torch.linalg.lstsq(basis(start.coords), start.target[:, None]).solution
    # The solution at the grid's points as a trigonometric polynomial, and that at the sensors.
    to_sensors = basis(end.coords) @ torch.linalg.pinv(basis(x))

    def misfit(coefficients: np.ndarray) -> np.ndarray:
        c, e = coefficients.tolist()
        problem = KortewegDeVries(convection=c, dispersion=1e-2 * e, final_time=END - START)
        field = problem.solve({"initial": initial.T}, grid, rtol=1e-7)["height"][0]
        return (to_sensors @ field - end.target).numpy()

    found = least_squares(misfit, [0.5, 0.1], xtol=1e-9)
    convection, dispersion = float(found.x[0]), 1e-2 * float(found.x[1])
    return {
        "convection_error": abs(convection / TRUE["convection"] - 1),
        "dispersion_error": abs(dispersion / TRUE["dispersion"] - 1),
        "solves": int(found.nfev) + 2 * int(found.njev),
        "seconds": time.process_time() - began,
    }


def relative(u: Tensor, truth: Tensor) -> float:
    """The relative L2 error."""
    return float((u - truth).norm() / truth.norm())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
