"""
One spectral convolution, several backends
==========================================

A spectral convolution keeps a few frequencies of a field, so it need not compute the rest. This example

1. runs one layer at even, odd and prime sizes through each backend that this machine has, and measures the error of each
   in float32 against the reference in float64;
2. times the backends side by side, turn by turn, against the share of the frequencies that the layer keeps;
3. prints why a backend serves a call or not.

It takes seconds. Run ``python examples/spectral_backends.py --help`` for the options.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from opflow.files import claim_folder
from opflow.functional import explain_backend, spectral_conv
from opflow.kernels.spectral_conv import BACKENDS, SpectralConvCall
from opflow.plotting import plot_convergence, save_figure


def main(
    sizes: tuple[int, ...] = (64, 85, 128, 241),
    modes: tuple[int, ...] = (8, 16, 32, 64, 128),
    grid: int = 128,
    channels: int = 8,
    rounds: int = 5,
    device: str = "cpu",
    out: Path = Path("runs/spectral_backends"),
    overwrite: bool = False,
) -> float:
    """Compare the backends and return the largest relative L2 error of the chosen one in float32.

    Args:
        sizes: points per axis at which errors are measured, with 24 modes.
        modes: modes per axis at which backends are timed, on `grid` points per axis.
        grid: points per axis of the timings.
        channels: channels in and out.
        rounds: rounds of one call of each backend in turn; medians are drawn.
        device: "cpu" or "cuda".
        out: where the picture goes.
        overwrite: empty `out` first if it holds files.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(0)

    worst = 0.0
    for n in sizes:
        x, weight = field_and_weight(n, 24, channels, device)
        with torch.no_grad():
            exact = spectral_conv(x.double(), weight.double(), (24, 24), backend="reference")
            outputs = {name: spectral_conv(x, weight, (24, 24), backend=name) for name in serving(x, weight, (24, 24))}
            errors = {name: float((y.double() - exact).norm() / exact.norm()) for name, y in outputs.items()}
        worst = max(worst, next(iter(errors.values())))  # the first is the one that is chosen
        print(f"{n:4d} x {n}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    print(f"{sizes[-1]} x {sizes[-1]}: {explain_backend(x, weight, (24, 24))}")

    curves: dict[str, tuple[list[float], list[float]]] = {}
    for m in modes:
        x, weight = field_and_weight(grid, m, channels, device)
        names = serving(x, weight, (m, m))
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name in names:
                elapsed = seconds_of_a_step(x, weight, (m, m), name)
                if turn:  # the first turn warms up
                    times[name].append(elapsed)
        for name, values in times.items():
            kept, elapsed = curves.setdefault(name, ([], []))
            kept.append(m / grid)
            elapsed.append(1e3 * statistics.median(values))
        print(f"{m:4d} modes: " + ", ".join(f"{name} {curves[name][1][-1]:.2f} ms a step" for name in names))
    labels = {"xlabel": "share of the frequencies kept, per axis", "ylabel": f"ms a step, {grid} x {grid}"}
    print(f"picture: {save_figure(plot_convergence(curves, **labels, log_x=True), out / 'backends.png')}")
    return worst


def field_and_weight(n: int, m: int, channels: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A random field (4, channels, n, n) and a weight of m x m modes, both asking for gradients."""
    x = torch.randn(4, channels, n, n).to(device).requires_grad_()
    weight = torch.randn(m, m // 2 + 1, 2, channels, channels).to(device).requires_grad_()
    return x, weight


def serving(x: torch.Tensor, weight: torch.Tensor, n_modes: tuple[int, int]) -> list[str]:
    """The backends that serve a call, the preferred one first."""
    call = SpectralConvCall.of(x, weight, n_modes, None)
    return [backend.name for backend in BACKENDS if backend.refusal(call) is None]


def seconds_of_a_step(x: torch.Tensor, weight: torch.Tensor, n_modes: tuple[int, int], backend: str) -> float:
    """One forward and backward pass."""
    start = time.perf_counter()
    y = spectral_conv(x, weight, n_modes, backend=backend)
    torch.autograd.grad(y, (x, weight), y.detach())
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
