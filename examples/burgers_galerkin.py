"""
Burgers' equation with a Galerkin transformer
=============================================

Learns the map from an initial velocity to the velocity at t = 1 of u_t + u u_x = nu u_xx on a circle:

1. draw 1000 + 100 random initial velocities and solve them spectrally (stored and used again),
2. train a Galerkin transformer, attention of linear cost without softmax, on random shifts of the circle,
3. test on 200 unseen velocities, at the trained resolution and at twice that, which it never saw,
4. draw velocities with their errors, and how the error fell.

Run ``python examples/burgers_galerkin.py --help`` for the options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from opflow import Batch, Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.interop import Predictor
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_errors, relative_l2
from opflow.models import GalerkinTransformer
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Burgers
from opflow.training import evaluate, fit, save_checkpoint


def main(
    size: int = 256,
    samples: int = 1000,
    test_samples: int = 200,
    viscosity: float = 0.1,
    epochs: int = 10,
    batch_size: int = 8,
    hidden_channels: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/burgers_galerkin"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train a Galerkin transformer on Burgers' equation; return the mean relative L2 error on unseen initial velocities.

    Args:
        size: points of the circle in training; the data are solved at four times as many.
        samples: training velocities; a tenth as many are drawn for validation.
        test_samples: unseen velocities.
        viscosity: nu.
        epochs: passes over the training velocities.
        batch_size: velocities a step.
        hidden_channels: width of the network.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; the velocities have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, fine = Burgers(viscosity=viscosity), Grid(4 * size, layout="periodic")

    # Data: solved on a fine grid, learned on every fourth point.
    def solved(split: str, n: int, stride: int = 4) -> FieldDataset:
        folder = data_folder / f"burgers_{fine.shape[0]}_{viscosity:g}_{n}"
        source = generate(problem, fine, folder, n, split=split, rtol=1e-8, resume=True)
        return FieldDataset(source, stride=stride).in_memory()

    training, validation, test = (
        solved("train", samples),
        solved("validation", samples // 10),
        solved("test", test_samples),
    )

    # Model: physical units in and out; "periodic" coordinates do not hold the same point twice.
    statistics = channel_statistics(training)
    model = Normalized(
        GalerkinTransformer.build(1, 1, hidden_channels, layout="periodic", decoder_channels=32, n_modes=32),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std),
    ).to(device)
    print(f"model: Galerkin transformer with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training: the equation does not know where the circle begins, so every batch is turned.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=turned)
    held_out = Batches(validation, 50)
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
    predictor = Predictor.load(out, device=device)
    results = {}
    for name, dataset in (("relative_l2", test), ("relative_l2_unseen_resolution", solved("test", test_samples, 2))):
        batch = dataset.read(range(len(dataset)))
        prediction = torch.from_numpy(predictor(batch.input.numpy()))
        results[name] = float(relative_errors(prediction, batch.target, batch.weight).mean())
        print(f"relative L2 on {len(dataset)} unseen velocities at {dataset.grid.shape[0]} points: {results[name]:.3%}")

    few = test.read(range(3))
    prediction = predictor(few.input.numpy())
    rows = [
        {"initial velocity": few.input[i, 0], "velocity at t = 1": few.target[i, 0], "prediction": prediction[i, 0]}
        for i in range(3)
    ]
    figure = plot_fields(
        rows, test.grid, input="initial velocity", reference="velocity at t = 1", prediction="prediction"
    )
    print(f"picture: {save_figure(figure, out / 'velocities.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L2")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return results["relative_l2"]


def turned(batch: Batch, generator: torch.Generator) -> Batch:
    """The batch on a circle turned by a random angle."""
    shift = int(torch.randint(batch.input.shape[-1], (), generator=generator))
    return Batch(
        input=batch.input.roll(shift, -1), target=batch.target.roll(shift, -1), weight=batch.weight, index=batch.index
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
