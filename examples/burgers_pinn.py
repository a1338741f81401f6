"""
Burgers' equation by a physics-informed network
===============================================

u_t + u u_x = nu u_xx on (-1, 1), u(0, x) = -sin(pi x), u = 0 at both ends, nu = 0.01 / pi: a wave that steepens to a
front of width 0.01 (Raissi, Perdikaris and Karniadakis 2019, section 2.1.1). No datum of the solution is used.

1. compute the reference by the transformation of Cole and Hopf, and beside it a spectral solution,
2. build u = -sin(pi x) + t (1 - x^2) N(t, x), which satisfies the initial and boundary conditions whatever N is,
3. minimise the mean square of the residual: Adam, then self-scaled Broyden, with new points where the residual is large,
4. keep the state with the smallest residual at points that were never trained on,
5. draw the solution, its error, and the convergence.

Run ``python examples/burgers_pinn.py --help`` for the options.
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
from opflow.layers import HardConstraint
from opflow.losses import PDEResidual
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation
from opflow.pde.geometry import Interval, SpaceTime
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Burgers
from opflow.training import SelfScaledBroyden, fit

FRAMES, NODES = 100, 256  # t = 0, 0.01, .., 0.99 and x from -1 to 1: where the published errors are measured


def main(
    dtype: Literal["float64", "float32"] = "float64",
    viscosity: float = 0.01 / math.pi,
    hidden: tuple[int, ...] = (24, 24, 24),
    points: int = 10_000,
    adam_steps: int = 500,
    iterations: int | None = None,
    resample_every: int = 500,
    chunk: int | None = 2000,
    seed: int = 0,
    out: Path = Path("runs/burgers_pinn"),
    overwrite: bool = False,
) -> float:
    """Train and compare; return the relative L2 error on the whole space-time grid.

    Args:
        dtype: of the network and of its derivatives.
        viscosity: nu.
        hidden: widths of the network's hidden layers.
        points: collocation points.
        adam_steps: of the warm-up, new points every hundred.
        iterations: of the quasi-Newton method; None for 12,000 in float64 and 3,000 in float32, where rounding ends the descent.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        chunk: points that are differentiated at a time; None for all at once.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    iterations = iterations or {"float64": 12_000, "float32": 3000}[dtype]
    problem, real = Burgers(viscosity=viscosity), getattr(torch, dtype)
    t, x = torch.arange(FRAMES, dtype=torch.float64) / FRAMES, torch.linspace(-1, 1, NODES, dtype=torch.float64)
    truth, reference = reference_solution(problem, t, x)

    # The network, and the residual as the loss.
    torch.manual_seed(seed)
    model = HardConstraint(
        PINN.build(((0.0, 1.0), (-1.0, 1.0)), hidden=hidden),
        lift=lambda y: -torch.sin(math.pi * y[..., 1:]),
        distance=lambda y: y[..., :1] * (1 - y[..., 1:] ** 2),
        conditions=("initial", "dirichlet"),
    ).to(real)
    loss = PDEResidual(problem, AutogradDerivatives(method="taylor"), chunk=chunk)
    domain = SpaceTime((0, 1), Interval(-1, 1))
    collocation = Collocation(domain, points, steps=min(100, adam_steps), seed=seed, dtype=real)
    fresh = Batch(coords=domain.sample(4 * points, seed=(seed, 1), dtype=real))
    everywhere = Batch(coords=torch.cartesian_prod(t, x).to(real))
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {points} points, {dtype}")

    def residual(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    def predicted() -> Tensor:
        with torch.no_grad():
            return model(everywhere.coords).double().view(FRAMES, NODES)

    # Adam finds the basin; the curvature that the quasi-Newton method gathers afterwards outlives the new points.
    began, steps, curves = time.process_time(), [], {"residual at fresh points": [], "error": []}
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for _ in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        collocation.resample(residual)
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
        collocation.resample(residual)
    model.load_state_dict(best)
    seconds = time.process_time() - began

    # What came out.
    u = predicted()
    error = relative(u, truth)
    print(f"relative L2 error {error:.2e} in {seconds:.0f} s of CPU")
    sizes = residual(everywhere).double().view(FRAMES, NODES)
    fields = {
        "log10 |residual|": sizes.clamp(min=1e-4 * float(sizes.max())).log10(),
        "reference": truth,
        "network": u,
    }
    grid = Grid((FRAMES, NODES), ((0.0, float(t[-1])), (-1.0, 1.0)), axes=("t", "x"))
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
        "dtype": dtype, "viscosity": viscosity, "hidden": hidden, "points": points, "adam_steps": adam_steps,
        "iterations": iterations, "resample_every": resample_every, "seed": seed,
    }  # fmt: skip
    write_json(
        out / "results.json",
        {"rows": {f"Burgers forward, {dtype}": row}, "reference": reference, "settings": settings, "curves": {"iterations": steps, **curves}},
    )  # fmt: skip
    return error


def reference_solution(problem: Burgers, t: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """u (time, NODES), and what it cost: Cole and Hopf's formula with its error, and beside it a spectral solution with its own."""
    began = time.process_time()
    truth = cole_hopf(t, x, float(problem.viscosity))
    seconds = time.process_time() - began
    error = relative(truth, cole_hopf(t, x, float(problem.viscosity), spacing=0.05))

    # The initial values are odd, so their periodic continuation keeps u = 0 at both ends.
    began = time.process_time()
    grid = Grid((8 * (NODES - 1),), (-1.0, 1.0), "periodic")
    initial = -torch.sin(math.pi * grid.coordinates(0).double())
    found = problem.solve({"initial": initial[None]}, grid, times=t, rtol=1e-6)["velocity"][0, :, ::8]
    spectral = relative(torch.cat([found, found[:, :1]], dim=1), truth)
    spectral_seconds = time.process_time() - began
    print(
        f"reference: Cole-Hopf, error {error:.1e}, {seconds:.2f} s; spectral, error {spectral:.1e}, {spectral_seconds:.1f} s"
    )
    return truth, {
        "method": "Cole-Hopf formula by the trapezoidal rule; its error as the difference from half the spacing",
        "error": error,
        "seconds": seconds,
        "spectral": {"modes": grid.shape[0], "rtol": 1e-6, "error": spectral, "seconds": spectral_seconds},
    }


def cole_hopf(t: Tensor, x: Tensor, nu: float, *, spacing: float = 0.1) -> Tensor:
    """u = -int sin(pi y) w dy / int w dy, w = exp(-cos(pi y) / (2 pi nu) - (x - y)^2 / (4 nu t))   (Cole 1951, Hopf 1950).

    The trapezoidal rule in z = (x - y) / sqrt(4 nu t) converges exponentially; the weight is one of a Gaussian that |u| <= 1 moves by
    t at most.
    """
    frames = [-torch.sin(math.pi * x)]
    for moment in t[1:].tolist():
        width = math.sqrt(4 * nu * moment)
        half = math.ceil((moment / width + 7) / spacing)
        z = spacing * torch.arange(-half, half + 1, dtype=torch.float64)
        y = x[:, None] - width * z
        weight = torch.softmax(-(z**2) - torch.cos(math.pi * y) / (2 * math.pi * nu), dim=1)
        frames.append(-(weight * torch.sin(math.pi * y)).sum(1))
    return torch.stack(frames)


def relative(u: Tensor, truth: Tensor) -> float:
    """The relative L2 error."""
    return float((u - truth).norm() / truth.norm())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
