"""
One operator on every grid: an FNO with local branches
======================================================

From the initial vorticity and the forcing of a flow to its vorticity some time later. The network has integrals over a fixed radius
and derivatives beside its spectral convolutions; it learns on 64 x 64 and is then used on 256 x 256, which it has never seen:

1. generate flows of Navier-Stokes with random forcing on 256 x 256, and keep every fourth point for training,
2. train a LocalFNO,
3. test it on unseen flows at 64, 128 and 256 points an axis, the same flows on every grid,
4. draw a flow on the unseen grid, and the enstrophy spectrum.

Run ``python examples/local_fno.py --help`` for the options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from opflow import Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.fourier import shell_spectrum
from opflow.interop import Predictor
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_l2
from opflow.models import LocalFNO
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import NavierStokes
from opflow.training import evaluate, fit, save_checkpoint


def main(
    size: int = 256,
    stride: int = 4,
    viscosity: float = 1e-3,
    time: float = 3.0,
    samples: int = 500,
    test_samples: int = 50,
    epochs: int = 15,
    batch_size: int = 10,
    modes: int = 24,
    hidden_channels: int = 24,
    layers: int = 4,
    learning_rate: float = 2e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/local_fno"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train on the coarse grid; return the relative L2 error on the fine one over that on the coarse one.

    Args:
        size: points per axis of the fine grid, on which flows are solved; at least 64 for the default viscosity.
        stride: learn on every stride-th point.
        viscosity: nu.
        time: when the vorticity is asked for.
        samples: training flows; a tenth as many are drawn for validation.
        test_samples: unseen flows.
        epochs: passes over the training flows.
        batch_size: flows a step.
        modes: Fourier modes per axis.
        hidden_channels: width of the network.
        layers: of it.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; the flows have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    # Wave numbers up to 16 at the start: the coarsest grid holds all of the input.
    problem = NavierStokes(viscosity=viscosity, forcing="random", cutoff=min(16, size // stride // 4), final_time=time)
    fine = Grid((size, size), layout="periodic")

    # Data: one set of flows; a grid is a stride of it.
    def solved(split: str, n: int, step: int) -> FieldDataset:
        folder = data_folder / f"navier_stokes_forced_{size}_{viscosity:g}_{time:g}_{n}"
        source = generate(problem, fine, folder, n, split=split, rtol=1e-4, block=10, samples_per_file=50, resume=True)
        return FieldDataset(source, stride=step).in_memory()

    training, validation = solved("train", samples, stride), solved("validation", max(1, samples // 10), stride)
    statistics = channel_statistics(training)

    # Model: three spacings of the training grid are the radius, so that the branches see what 3 x 3 pixels would there.
    model = Normalized(
        LocalFNO.build(
            (modes, modes), 2, 1, hidden_channels, radius=3 * stride / size, n_layers=layers, coordinates=False, channel_mlp=None
        ),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std),
    ).to(device)  # fmt: skip
    print(f"model: LocalFNO with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training, on the coarse grid only.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, device=device)
    held_out = list(Batches(validation, batch_size, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.3)
    for record in fit(
        model, DataMisfit(relative_l2), batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l2),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record)
        print(record)

    # Evaluation, from the folder that training left: the same flows on every grid.
    predictor = Predictor.load(out, device=device, batch_size=5)
    results = {}
    steps = [step for step in (stride, stride // 2, 1) if step]
    for step in dict.fromkeys(steps):
        unseen = solved("test", test_samples, step)
        batch = unseen.read(range(len(unseen)))
        found = torch.from_numpy(predictor(batch.input.numpy()))
        n = size // step
        results[f"relative L2 at {n}"] = error = float(relative_l2(found, batch.target))
        print(
            f"relative L2 on {len(unseen)} unseen flows, {n} x {n}{' (trained)' if step == stride else ''}: {error:.3%}"
        )
    ratio = error / results[f"relative L2 at {size // stride}"]
    results["ratio"] = ratio
    print(f"error on {size} x {size}, never seen, over that on the training's grid: {ratio:.3f}")

    shown = [
        {"initial vorticity": batch.input[i, 0], "vorticity": batch.target[i, 0], "LocalFNO": found[i, 0]}
        for i in range(min(3, len(unseen)))
    ]
    figure = plot_fields(shown, fine, input="initial vorticity", reference="vorticity", prediction="LocalFNO")
    print(f"picture: {save_figure(figure, out / 'vorticity.png')}")
    spectra = {name: shell_spectrum(field[:, 0]) for name, field in (("reference", batch.target), ("LocalFNO", found))}
    figure = plot_convergence(spectra, xlabel="wave number", ylabel="enstrophy", log_x=True)
    print(f"picture: {save_figure(figure, out / 'spectrum.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return ratio


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
