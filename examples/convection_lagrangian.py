"""
Waves along their characteristics
=================================

w_t + c(w) w_x = nu w_xx on (0, 2 pi), periodic, w(0, x) = sin x. In Eulerian coordinates a fast wave is what physics-informed networks
fail at: from c = 30 on they find w = 0 (Krishnapriyan et al. 2021). Along the characteristics it is a constant.

1. convection, c = 50: a `LagrangianPINN` finds where particles go and what they carry, x = xi + t N_x, w = sin xi + t N_w,
2. the same in Eulerian coordinates: ten networks in ten windows of time, each beginning with the Fourier modes of the last one's end,
3. viscous Burgers, c = w, nu = 0.01, until t = 0.9, shortly before a shock without viscosity would form at t = 1,
4. the same without viscosity until t = 1.2: the crossing of the characteristics is found, and said,
5. draw the solutions, their errors, the characteristics and the convergence.

Every network knows the equation and w(0, x) only. Run ``python examples/convection_lagrangian.py --help`` for the options.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.layers import HardConstraint
from opflow.losses import LagrangianResidual, PDEResidual
from opflow.models import PINN, Crossing, LagrangianPINN
from opflow.pde import AutogradDerivatives, Collocation
from opflow.pde.geometry import Interval, SpaceTime
from opflow.plotting import plot_convergence, plot_curves, plot_fields, save_figure
from opflow.problems import Advection, Burgers
from opflow.training import SelfScaledBroyden, fit

PERIOD, FRAMES, NODES = 2 * math.pi, 101, 256


def main(
    speed: float = 50.0,
    viscosity: float = 0.01,
    burgers_end: float = 0.9,
    hidden: tuple[int, ...] = (20, 20),
    points: int = 500,
    iterations: int = 3000,
    burgers_harmonics: int = 4,
    burgers_points: int = 1500,
    burgers_iterations: int = 4000,
    windows: int = 10,
    window_hidden: tuple[int, ...] = (20, 20),
    window_points: int = 1000,
    window_iterations: int = 3000,
    adam_steps: int = 500,
    seed: int = 0,
    out: Path = Path("runs/convection_lagrangian"),
    overwrite: bool = False,
) -> float:
    """Train and compare; return the relative L2 error of convection along characteristics, on the whole space-time grid.

    Args:
        speed: c of the convection. It is in the equation only, in no network.
        viscosity, burgers_end: nu and the last time of Burgers' equation.
        hidden: widths of each branch of the Lagrangian networks.
        points, iterations: collocation points and quasi-Newton iterations of convection along characteristics.
        burgers_harmonics, burgers_points, burgers_iterations: the same of Burgers' equation, and the waves of the label that it sees.
        windows: of time, in Eulerian coordinates; 0 leaves this part out.
        window_hidden, window_points, window_iterations: of the network of each window.
        adam_steps: of each network's warm-up.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    space = Interval(0, PERIOD)
    x = Grid((NODES,), (0.0, PERIOD), "periodic").coordinates(0).double()
    rows: dict[str, dict] = {}
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}

    # 1. Convection along characteristics.
    t = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    everywhere = torch.cartesian_prod(t, x)
    exact = torch.sin(everywhere[:, 1] - speed * everywhere[:, 0])
    began = time.process_time()
    inputs, grid = {"initial": torch.sin(x)[None]}, Grid((NODES,), (0.0, PERIOD), "periodic")
    solved = Advection(speed=speed).solve(inputs, grid, times=t)["density"].flatten()
    reference = {
        "convection": {
            "method": "exact; Fourier series",
            "error": relative(solved, exact),
            "seconds": time.process_time() - began,
        }
    }
    torch.manual_seed(seed)
    model = LagrangianPINN.build(((0.0, 1.0), (0.0, PERIOD)), torch.sin, hidden, hidden).double()
    loss = LagrangianResidual(speed)
    trained = train(model, loss, Collocation(SpaceTime((0, 1), space), points, seed=seed), adam_steps, iterations)
    convection = model.at(everywhere).detach().flatten()
    name = f"Convection c={speed:g}, Lagrangian"
    rows[name] = {"error": relative(convection, exact), **trained.report}
    curves[name] = trained.curve
    print(f"{name}: relative L2 error {rows[name]['error']:.2e} in {trained.seconds:.0f} s of CPU")

    # 2. In Eulerian coordinates, window by window.
    if windows:
        name = f"Convection c={speed:g}, Eulerian"
        eulerian, rows[name], curves[name] = in_windows(
            speed, x, t, windows, window_hidden, window_points, adam_steps, window_iterations, seed
        )
        rows[name]["error"] = relative(eulerian.flatten(), exact)
        print(f"{name}: relative L2 error {rows[name]['error']:.2e} in {rows[name]['seconds']:.0f} s of CPU")
    plane = Grid((FRAMES, NODES), ((0.0, 1.0), (0.0, PERIOD)), ("nodes", "periodic"), ("t", "x"))
    with torch.no_grad():
        carried = model(everywhere)[:, 1]
    fields = {"along characteristics": carried, "exact": exact, "Lagrangian network": convection}
    draw(fields, plane, out / "convection.png")
    if windows:
        fields = {
            "initial values": torch.sin(everywhere[:, 1]),
            "exact": exact,
            "Eulerian networks": eulerian.flatten(),
        }
        draw(fields, plane, out / "eulerian.png")

    # 3. Burgers' equation along its characteristics. The branches first learn it without viscosity, whose term is singular where
    # the characteristics of an untrained network cross.
    t = torch.linspace(0, burgers_end, FRAMES, dtype=torch.float64)
    everywhere = torch.cartesian_prod(t, x)
    truth, reference["Burgers"] = burgers_reference(viscosity, t)
    torch.manual_seed(seed)
    domain = ((0.0, burgers_end), (0.0, PERIOD))
    model = LagrangianPINN.build(domain, torch.sin, hidden, hidden, harmonics=burgers_harmonics).double()
    collocation = Collocation(SpaceTime((0, burgers_end), space), burgers_points, seed=seed)
    trained = train(
        model, LagrangianResidual(velocity, viscosity), collocation, adam_steps, burgers_iterations,
        warm_up=LagrangianResidual(velocity),
    )  # fmt: skip
    burgers = model.at(everywhere).detach().view(FRAMES, NODES)
    name = "Viscous Burgers before the shock, Lagrangian"
    rows[name] = {"error": relative(burgers, truth), **trained.report, "crossing": said(model.first_crossing(t))}
    curves[name] = trained.curve
    print(f"{name}: relative L2 error {rows[name]['error']:.2e} in {trained.seconds:.0f} s of CPU")
    plane = Grid((FRAMES, NODES), (domain[0], domain[1]), ("nodes", "periodic"), ("t", "x"))
    labels = torch.cartesian_prod(t, x)
    with torch.no_grad():
        carried = model(labels)[:, 1].view(FRAMES, NODES)
        paths = model(torch.cartesian_prod(t, x[::8]))[:, 0].view(FRAMES, -1)
    fields = {"along characteristics": carried, "reference": truth, "Lagrangian network": burgers}
    draw(fields, plane, out / "burgers.png")
    figure = plot_curves(
        {"characteristics": [(path, t) for path in paths.T]},
        xlabel="x",
        ylabel="t",
        title="characteristics of viscous Burgers",
    )
    print(f"picture: {save_figure(figure, out / 'characteristics.png')}")

    # 4. Without viscosity, beyond the shock: the characteristics go on, but w is no function of x.
    torch.manual_seed(seed)
    model = LagrangianPINN.build(((0.0, 1.2), (0.0, PERIOD)), torch.sin, hidden, hidden).double()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        collocation = Collocation(SpaceTime((0, 1.2), space), points, seed=seed)
        train(model, LagrangianResidual(velocity), collocation, adam_steps, max(50, iterations // 3))
    crossing = model.first_crossing(torch.linspace(0.01, 1.2, 120))
    rows["Inviscid Burgers beyond the shock"] = {
        "said": said(crossing),
        "time": crossing and crossing.time,
        "warnings": len(heard),
    }
    print(f"inviscid Burgers, shock at t = 1, x = pi: {said(crossing)}")

    figure = plot_convergence(curves, xlabel="iterations", ylabel="root mean square of the residual, fresh points")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    settings = {
        "speed": speed, "viscosity": viscosity, "burgers_end": burgers_end, "hidden": hidden, "points": points, "iterations": iterations,
        "burgers_harmonics": burgers_harmonics, "burgers_points": burgers_points, "burgers_iterations": burgers_iterations,
        "windows": windows, "window_hidden": window_hidden, "window_points": window_points,
        "window_iterations": window_iterations, "adam_steps": adam_steps, "seed": seed,
    }  # fmt: skip
    write_json(out / "results.json", {"rows": rows, "reference": reference, "settings": settings})
    return rows[f"Convection c={speed:g}, Lagrangian"]["error"]


class Trained:
    """What a training was: its seconds of CPU, and the residual at fresh points iteration by iteration."""

    def __init__(self) -> None:
        self.began, self.seconds = time.process_time(), 0.0
        self.curve: tuple[list[int], list[float]] = ([], [])

    @property
    def report(self) -> dict:
        """For the results."""
        return {"seconds": self.seconds, "residual": min(self.curve[1]), "iterations": self.curve[0][-1]}


def train(
    model: nn.Module, loss: PDEResidual, collocation: Collocation, adam_steps: int, iterations: int, *,
    warm_up: PDEResidual | None = None, resample_every: int = 500,
) -> Trained:  # fmt: skip
    """Adam, then self-scaled Broyden with new points where the residual is large; the best state at fresh points is kept."""
    trained = Trained()
    fresh = Batch(coords=collocation.geometry.sample(4 * collocation.n, seed=(collocation.seed, 1)))

    def residual(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    collocation.steps = adam_steps
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    for _ in fit(model, warm_up or loss, collocation, adam, epochs=1, scheduler=schedule):
        collocation.resample()
    per_epoch = min(resample_every, iterations)
    collocation.steps = max(1, per_epoch // 50)
    broyden, best = SelfScaledBroyden(model.parameters(), iterations=min(50, per_epoch)), {}
    for record in fit(
        model, loss, collocation, broyden, epochs=max(1, iterations // per_epoch),
        validate=lambda model: float(residual(fresh).square().mean().sqrt()),
    ):  # fmt: skip
        if record.best:
            best = copy.deepcopy(model.state_dict())
        trained.curve[0].append(broyden.report.iterations)
        trained.curve[1].append(record.validation)
        collocation.resample(residual)
    model.load_state_dict(best)
    trained.seconds = time.process_time() - trained.began
    return trained


def in_windows(
    speed: float, x: Tensor, t: Tensor, windows: int, hidden: Sequence[int], points: int, adam_steps: int, iterations: int, seed: int
) -> tuple[Tensor, dict, tuple[list[int], list[float]]]:  # fmt: skip
    """w at every t and x: one network a window, w = g(x) + (t - t_k) N(t, x), g sixteen Fourier modes of the end of the one before."""
    ends = torch.linspace(0, float(t[-1]), windows + 1, dtype=torch.float64).tolist()
    initial: Callable[[Tensor], Tensor] = torch.sin
    found, seconds, curve = torch.zeros(len(t), len(x), dtype=torch.float64), 0.0, ([], [])
    residuals = []
    for k, (start, end) in enumerate(itertools.pairwise(ends)):
        torch.manual_seed(1000 * seed + k)
        model = HardConstraint(
            PINN.build(((start, end), (0.0, PERIOD)), hidden=hidden, periodic=(0, 1)),
            lift=lambda y, initial=initial: initial(y[..., 1:]), distance=lambda y, start=start: y[..., :1] - start,
            conditions=("initial", "periodic"),
        ).double()  # fmt: skip
        loss = PDEResidual(lambda u, a: u.d("t") + speed * u.d("x"), AutogradDerivatives(("t", "x"), method="taylor"))
        domain = SpaceTime((start, end), Interval(0, PERIOD))
        trained = train(model, loss, Collocation(domain, points, seed=1000 * seed + k), adam_steps, iterations)
        inside = (t >= start - 1e-12) & (t <= end + 1e-12)
        with torch.no_grad():
            found[inside] = model(torch.cartesian_prod(t[inside], x)).view(-1, len(x))
            last = model(torch.cartesian_prod(torch.tensor([end], dtype=torch.float64), x)).flatten()
        initial = FourierModes(last, 16)
        seconds += trained.seconds
        residuals.append(min(trained.curve[1]))
        base = curve[0][-1] if curve[0] else 0
        curve[0].extend(base + n for n in trained.curve[0])
        curve[1].extend(trained.curve[1])
    return found, {"seconds": seconds, "residual": max(residuals), "iterations": curve[0][-1]}, curve


class FourierModes(nn.Module):
    """The first Fourier modes of values on the periodic grid, as a function of x."""

    def __init__(self, values: Tensor, modes: int) -> None:
        super().__init__()
        c = torch.fft.rfft(values, norm="forward")[: modes + 1]
        self.register_buffer("wavenumbers", torch.arange(1.0, modes + 1, dtype=values.dtype))
        self.register_buffer("cosines", 2 * c[1:].real[:, None])
        self.register_buffer("sines", -2 * c[1:].imag[:, None])
        self.mean = float(c[0].real)

    def forward(self, x: Tensor) -> Tensor:
        """(..., 1) -> (..., 1)"""
        angle = x * self.wavenumbers
        return torch.cos(angle) @ self.cosines + torch.sin(angle) @ self.sines + self.mean


def velocity(w: Tensor) -> Tensor:
    """c(w) = w: Burgers' equation"""
    return w


def burgers_reference(viscosity: float, t: Tensor, modes: int = 512) -> tuple[Tensor, dict]:
    """w (time, NODES) of a spectral solver, and its error: the difference from half as many modes and a hundredth of the accuracy."""
    solutions = []
    for n, rtol in ((modes // 2, 1e-8), (modes, 1e-10)):
        grid = Grid((n,), (0.0, PERIOD), "periodic")
        began = time.process_time()
        initial = torch.sin(grid.coordinates(0).double())[None]
        w = Burgers(viscosity=viscosity).solve({"initial": initial}, grid, times=t, rtol=rtol)["velocity"]
        seconds = time.process_time() - began
        solutions.append(w[0, :, :: n // NODES])
    coarse, fine = solutions
    return fine, {
        "method": f"exponential Runge-Kutta, {modes} Fourier modes",
        "error": relative(coarse, fine),
        "seconds": seconds,
    }


def draw(fields: dict[str, Tensor], grid: Grid, path: Path) -> None:
    """Three fields, named for input, reference and prediction, and the error."""
    names = dict(zip(("input", "reference", "prediction"), fields, strict=True))
    figure = plot_fields([{name: field.reshape(grid.shape) for name, field in fields.items()}], grid, **names)
    print(f"picture: {save_figure(figure, path)}")


def said(crossing: Crossing | None) -> str:
    """A crossing in words."""
    return crossing.message if crossing is not None else "no crossing"


def relative(u: Tensor, truth: Tensor) -> float:
    """|u - truth| / |truth|"""
    return float((u - truth).norm() / truth.norm())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
