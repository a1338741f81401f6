"""
Navier-Stokes with a Fourier neural operator
============================================

Learns the flow of two-dimensional turbulence, ten known frames of vorticity to the ten that follow:

1. solve 200 + 20 random flows on 64 x 64, store every frame at t = 0, 1, ..., 19,
2. train a Fourier neural operator as a time step, unrolled: the loss sees ten of its own steps in a row,
3. test on unseen flows, frame by frame, beside the forecast that nothing changes,
4. draw a strip of frames with their errors, and the energy spectrum of the last.

Run ``python examples/navier_stokes_fno.py --help`` for the options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.fourier import shell_spectrum
from opflow.interop import Predictor
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_errors, relative_l2
from opflow.models import FNO, Rollout
from opflow.plotting import plot_convergence, plot_frames, save_figure
from opflow.problems import NavierStokes
from opflow.training import evaluate, fit, save_checkpoint


def main(
    size: int = 64,
    stride: int = 2,
    known: int = 10,
    ahead: int = 10,
    samples: int = 200,
    test_samples: int = 20,
    viscosity: float = 1e-3,
    epochs: int = 12,
    batch_size: int = 10,
    modes: int = 12,
    hidden_channels: int = 20,
    learning_rate: float = 4e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/navier_stokes_fno"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train a Fourier neural operator on Navier-Stokes; return the mean relative L2 error of the rollout on unseen flows.

    Args:
        size: points per axis of the solver.
        stride: learn on every stride-th point.
        known: frames that the network sees, one a unit of time.
        ahead: frames that it forecasts.
        samples: training flows; a tenth as many are drawn for validation.
        test_samples: unseen flows.
        viscosity: nu.
        epochs: passes over the training flows.
        batch_size: flows a step.
        modes: Fourier modes per axis.
        hidden_channels: width of the network.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; the flows have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, fine = NavierStokes(viscosity=viscosity), Grid((size, size), layout="periodic")
    times = range(known + ahead)

    # Data: fields on the grid of (t, x, y); every frame is kept, and every stride-th point.
    def solved(split: str, n: int) -> FieldDataset:
        folder = data_folder / f"navier_stokes_{size}_{viscosity:g}_{len(times)}_{n}"
        source = generate(
            problem, fine, folder, n, split=split, times=times, rtol=1e-4, block=10, samples_per_file=20, resume=True
        )
        return FieldDataset(source, stride=(1, stride, stride)).in_memory()

    def windows(batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The frames (batch, 1, time, x, y) as those known and those ahead."""
        return Batch(input=batch.target[:, :, :known], target=batch.target[:, :, known:], index=batch.index)

    training, validation = solved("train", samples), solved("validation", max(1, samples // 10))
    test = solved("test", test_samples)
    coarse = fine.subsampled(stride)

    # Model: G from `known` frames to the next one, rolled out. One normaliser serves input and output: vorticity is both.
    step = FNO.build((modes, modes), known, 1, hidden_channels, layout="periodic", channel_mlp=None)
    statistics = channel_statistics(training).target
    scale = Normalizer(statistics.mean, statistics.std)
    model = Normalized(Rollout(step, ahead, window=known, increments=True), scale, scale).to(device)
    print(f"model: FNO with {sum(p.numel() for p in model.parameters()):,} parameters, rolled out {ahead} times")

    # Training, unrolled.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=windows)
    held_out = Batches(validation, batch_size, transform=windows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.2)
    history: list[tuple[int, float]] = []
    for record in fit(
        model, DataMisfit(relative_l2), batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l2),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record)
        history.append((record.epoch, record.validation))
        print(record)

    # Evaluation, from the folder that training left.
    predictor = Predictor.load(out, device=device, batch_size=10)
    unseen = windows(test.read(range(len(test))))
    seen, reference = unseen.input, unseen.target
    prediction = torch.from_numpy(predictor(seen.numpy()))
    error = float(relative_errors(prediction, reference).mean())
    persistence = float(relative_errors(seen[:, :, -1:].expand_as(reference), reference).mean())
    by_frame = [float(relative_errors(prediction[:, :, i], reference[:, :, i]).mean()) for i in range(ahead)]
    print(
        f"relative L2 on {test_samples} unseen flows over {ahead} frames: {error:.2%}; if nothing changed: {persistence:.2%}"
    )
    print("by frame: " + ", ".join(f"{e:.2%}" for e in by_frame))

    shown = np.linspace(0, ahead - 1, min(5, ahead)).round().astype(int)
    figure = plot_frames(
        {"reference": reference[0, 0, shown], "prediction": prediction[0, 0, shown]}, coarse,
        [float(known + i) for i in shown], reference="reference", prediction="prediction", title="vorticity",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'vorticity.png')}")
    spectra = {
        name: energy_spectrum(field[:, 0, -1].double(), problem, coarse)
        for name, field in (("reference", reference), ("prediction", prediction))
    }
    figure = plot_convergence(
        spectra, xlabel="wave number |k| / 2 pi", ylabel=f"energy at t = {known + ahead - 1}", log_x=True
    )
    print(f"picture: {save_figure(figure, out / 'spectrum.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L2")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    results = {"relative_l2": error, "relative_l2_by_frame": by_frame, "persistence": persistence}
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return error


def energy_spectrum(vorticity: Tensor, problem: NavierStokes, grid: Grid) -> tuple[Tensor, Tensor]:
    """E(k), the mean over samples of |u_k|^2 / 2 over shells of width one, u the velocity; its sum is the mean energy."""
    k, per_component = shell_spectrum(problem.velocity(vorticity, grid).flatten(0, 1))
    return k, 2 * per_component


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
