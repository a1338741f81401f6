"""
The nonlinear Schroedinger equation by a physics-informed network
=================================================================

``i h_t + 1/2 h_xx + |h|^2 h = 0`` on (-5, 5), periodic, h(0, x) = 2 sech x, until t = pi / 2: a packet that focuses to twice its height
and opens again (Raissi, Perdikaris and Karniadakis 2019, section 3.1). No datum of the solution is used.

1. compute the reference with a spectral solver at two resolutions,
2. build h = G(t, x) + t N(t, x), N a periodic network with two outputs. 2 sech x has a kink of slope 0.05 where the period closes, and
   this equation smooths nothing: as h(0, x) + t N it would stay there for ever. So G lets the kink's waves go their way,
3. minimise the mean square of the residual: Adam, then self-scaled Broyden, with new points where the residual is large,
4. keep the state with the smallest residual at points that were never trained on,
5. draw the modulus of h, its error, and the convergence.

h(t, -x) = h(t, x), as the equation and the initial values are even: the network's features are cosines, and the points lie in (0, 5).

Run ``python examples/schroedinger_pinn.py --help`` for the options.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.layers import MLP, HardConstraint
from opflow.losses import PDEResidual
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation
from opflow.pde.geometry import Interval, SpaceTime
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Schroedinger
from opflow.training import SelfScaledBroyden, fit

END, HALF = math.pi / 2, 5.0
FRAMES, NODES = 201, 256  # t = 0 .. pi / 2 and x = -5 .. 5, the grid of the published reference


def main(
    hidden: tuple[int, ...] = (24, 24, 24),
    harmonics: int = 4,
    waves: int = 20,
    kink_modes: int = 256,
    points: int = 5000,
    adam_steps: int = 1000,
    iterations: int = 8000,
    resample_every: int = 500,
    chunk: int | None = 1000,
    modes: int = 1024,
    rtol: float = 1e-7,
    seed: int = 0,
    out: Path = Path("runs/schroedinger_pinn"),
    overwrite: bool = False,
) -> float:
    """Train and compare; return the relative L2 error of |h| on the whole space-time grid.

    Args:
        hidden: widths of the network's hidden layers.
        harmonics: cosines of x that the network sees.
        waves: travelling waves that it sees besides.
        kink_modes: waves of the kink that are carried along; 0 leaves it where it is.
        points: collocation points.
        adam_steps: of the warm-up, new points every hundred.
        iterations: of the quasi-Newton method.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        chunk: points that are differentiated at a time; None for all at once.
        modes: of the reference, a multiple of 512; its error is measured against half of them.
        rtol: of the reference's time steps.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    t = torch.linspace(0, END, FRAMES, dtype=torch.float64)
    truth, reference = reference_solution(t, modes, rtol)
    print(f"reference: {reference['method']}, error {reference['error']:.1e}, {reference['seconds']:.1f} s")

    # The network, and the residual as the loss.
    torch.manual_seed(seed)
    features = Features(harmonics, waves)
    network = PINN(features, MLP((features.out_features, *hidden, 2), activation=nn.Tanh()))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    model = HardConstraint(network, Lift(kink_modes), distance=lambda y: y[..., :1], conditions=("initial", "periodic"))
    model = model.double()
    loss = PDEResidual(Schroedinger(), AutogradDerivatives(method="taylor"), chunk=chunk)
    domain = SpaceTime((0, END), Interval(0, HALF))
    collocation = Collocation(domain, points, steps=100, seed=seed)
    fresh = Batch(coords=domain.sample(2 * points, seed=(seed, 1)))
    x = Grid((NODES,), (-HALF, HALF), "periodic").coordinates(0).double()
    everywhere = torch.cartesian_prod(t, x)
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {points} points")

    def residual(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    def predicted() -> Tensor:
        with torch.no_grad():
            return torch.complex(*model(everywhere).unbind(-1)).view(FRAMES, NODES)

    # Adam finds the basin; the curvature that the quasi-Newton method gathers afterwards outlives the new points.
    began, steps, curves = time.process_time(), [], {"residual, fresh points": [], "error of |h|": []}
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
        error = relative(predicted().abs(), truth.abs())
        print(f"{record}, error {error:.2e}, {time.process_time() - began:.0f} s; {broyden.report}", flush=True)
        if record.best:
            best = copy.deepcopy(model.state_dict())
        steps.append(broyden.report.iterations)
        curves["residual, fresh points"].append(record.validation)
        curves["error of |h|"].append(error)
        collocation.resample(residual)
    model.load_state_dict(best)
    seconds = time.process_time() - began

    # What came out.
    h = predicted()
    error, complex_error = relative(h.abs(), truth.abs()), relative(h, truth)
    print(f"relative L2 error of |h| {error:.2e}, of h {complex_error:.2e}, in {seconds:.0f} s of CPU")
    figure = plot_fields(
        [{"real part": h.real, "|h|, reference": truth.abs(), "|h|, network": h.abs()}],
        Grid((FRAMES, NODES), ((0.0, END), (-HALF, HALF)), ("nodes", "periodic"), ("t", "x")),
        input="real part", reference="|h|, reference", prediction="|h|, network",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        {name: (steps, curve) for name, curve in curves.items()}, xlabel="iterations", ylabel="root mean square"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    row = {
        "error": error, "error_of_h": complex_error, "largest_error": float((h - truth).abs().max()), "seconds": seconds,
        "residual": min(curves["residual, fresh points"]), "iterations": broyden.report.iterations,
    }  # fmt: skip
    settings = {
        "hidden": hidden, "harmonics": harmonics, "waves": waves, "kink_modes": kink_modes, "points": points, "adam_steps": adam_steps,
        "iterations": iterations, "resample_every": resample_every, "modes": modes, "rtol": rtol, "seed": seed,
    }  # fmt: skip
    write_json(out / "results.json", {"rows": {"Schroedinger": row}, "reference": reference, "settings": settings})
    return error


class Features(nn.Module):
    """(t, x) -> t scaled to [-1, 1], cos(k_n x) for n = 1..harmonics, and cos(k_n x) times cos(w_n t) and sin(w_n t) for n = 1..waves.

    Even in x and of period 10, k_n = pi n / 5; the last are short waves as they go through a field of mean square m, see `Lift`.
    """

    def __init__(self, harmonics: int, waves: int) -> None:
        super().__init__()
        self.harmonics, self.waves = harmonics, waves
        self.out_features = 1 + harmonics + 2 * waves
        k, w = dispersion(max(harmonics, waves))
        self.register_buffer("wavenumbers", k)
        self.register_buffer("frequencies", w[:waves])

    def forward(self, y: Tensor) -> Tensor:
        """(..., 2) -> (..., out_features)"""
        t, x = y[..., :1], y[..., 1:]
        cosines, angles = torch.cos(x * self.wavenumbers), t * self.frequencies
        parts = [2 / END * t - 1, cosines[..., : self.harmonics]]
        if self.waves:
            short = cosines[..., : self.waves]
            parts += [short * torch.cos(angles), short * torch.sin(angles)]
        return torch.cat(parts, -1)


def dispersion(waves: int) -> tuple[Tensor, Tensor]:
    """k_n = pi n / 5, and w_n of exp(i w t): 2 m - k_n^2 / 2, m = 4 tanh(5) / 5 the mean of |h(0, x)|^2, which is conserved."""
    k = torch.pi / HALF * torch.arange(1.0, waves + 1, dtype=torch.float64)
    return k, 8 * math.tanh(HALF) / HALF - k**2 / 2


class Lift(nn.Module):
    """G = 2 sech x + K(t, x) - K(0, x), K(t, x) = sum_n a_n cos(k_n (x - 5)) exp(i (2 m - k_n^2 / 2) t): real and imaginary part.

    K has the jump J of the slope of 2 sech x where the period closes, so a_n = -2 J / (10 k_n^2) and K(0, x) = J (5 / 12 - x^2 / 20),
    in closed form, since a cut series would have a narrow source there instead of a kink. Each wave goes as the equation says of a
    short one in a field whose mean square is m, i a_t = (k^2 / 2 - 2 m) a; m is conserved, and known at t = 0.
    """

    def __init__(self, waves: int) -> None:
        super().__init__()
        self.jump = 4 * math.tanh(HALF) / math.cosh(HALF)
        k, w = dispersion(waves)
        self.register_buffer("wavenumbers", k)
        self.register_buffer("frequencies", w)
        self.register_buffer("amplitudes", (-self.jump / (HALF * k**2))[:, None])

    def forward(self, y: Tensor) -> Tensor:
        """(..., 2) -> (..., 2)"""
        t, x = y[..., :1], y[..., 1:]
        decay = torch.exp(-x)
        packet = 4 * decay / (1 + decay * decay)
        if not len(self.wavenumbers):
            return torch.cat([packet, 0 * packet], -1)
        wave, angle = torch.cos((x - HALF) * self.wavenumbers), t * self.frequencies
        real, imaginary = (wave * torch.cos(angle)) @ self.amplitudes, (wave * torch.sin(angle)) @ self.amplitudes
        return torch.cat([packet + real + self.jump * (x * x / 20 - 5 / 12), imaginary], -1)


def reference_solution(t: Tensor, modes: int, rtol: float = 1e-7) -> tuple[Tensor, dict]:
    """h (time, NODES) with `modes` and with half of them; their difference bounds the error of the finer one."""
    if modes % (2 * NODES):
        raise ValueError(f"modes is {modes}; give a multiple of {2 * NODES}, so that the grids share their points.")
    solutions, seconds = [], 0.0
    for n in (modes // 2, modes):
        grid = Grid((n,), (-HALF, HALF), "periodic")
        began = time.process_time()
        initial = 2 / torch.cosh(grid.coordinates(0).double())[None]
        inputs = {"initial_real": initial, "initial_imaginary": torch.zeros_like(initial)}
        found = Schroedinger().solve(inputs, grid, times=t, rtol=rtol)
        seconds = time.process_time() - began
        solutions.append(torch.complex(found["real"], found["imaginary"])[0, :, :: n // NODES])
    coarse, fine = solutions
    method = f"exponential Runge-Kutta, {modes} Fourier modes; its error as the difference from {modes // 2}"
    return fine, {"method": method, "error": relative(coarse, fine), "seconds": seconds}


def relative(u: Tensor, truth: Tensor) -> float:
    """|u - truth| / |truth|"""
    return float((u - truth).abs().square().sum().sqrt() / truth.abs().square().sum().sqrt())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
