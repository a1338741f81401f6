"""
Waves in a cavity with a multigrid neural operator
==================================================

From the speed of waves in a medium to the field that a transducer on its top side drives, -lap u - (omega / c)^2 u = 0 with
du/dn = 1 on a part of the top and du/dn = 0 elsewhere:

1. generate media and fields on 65 x 65 nodes (stored and used again),
2. train an MgNO with mirrored ghost values, the discrete form of du/dn = 0,
3. test on unseen media, beside what the mean of all fields would give,
4. draw speeds, fields and errors, and the error against the seconds of training.

Run ``python examples/helmholtz_mgno.py --help`` for the options.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from opflow import Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.interop import Predictor
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_h1, relative_l2
from opflow.models import MgNO
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Helmholtz
from opflow.training import evaluate, fit, save_checkpoint


def main(
    size: int = 65,
    omega: float = 500.0,
    samples: int = 1000,
    test_samples: int = 100,
    epochs: int = 20,
    batch_size: int = 8,
    hidden_channels: int = 24,
    layers: int = 4,
    levels: int = 6,
    learning_rate: float = 1e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/helmholtz_mgno"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train the map from media to fields; return the mean relative L2 error in unseen media.

    Args:
        size: nodes per axis.
        omega: angular frequency; with speeds near 20 a wave is 40 pi / omega long, the side of the square being 1.
        samples: training media; a tenth as many are drawn for validation.
        test_samples: unseen media.
        epochs: passes over the training media.
        batch_size: media a step.
        hidden_channels: width of the network.
        layers: cycles, one after another.
        levels: grids of every cycle.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; media have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, grid = Helmholtz(omega=omega), Grid((size, size))

    # Data.
    def solved(split: str, n: int) -> FieldDataset:
        folder = data_folder / f"helmholtz_{size}_{omega:g}_{n}"
        return FieldDataset(generate(problem, grid, folder, n, split=split, resume=True)).in_memory()

    training, validation, test = (
        solved("train", samples),
        solved("validation", samples // 10),
        solved("test", test_samples),
    )
    statistics = channel_statistics(training)

    # Model. The top side has its own condition, so that the output imposes none.
    model = Normalized(
        MgNO.build(1, 1, hidden_channels, layers, n_levels=levels, boundary="neumann", impose=False),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std),
    ).to(device)
    print(f"model: MgNO with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training. The loss weighs the field and its gradient alike.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, device=device)
    held_out = list(Batches(validation, 50, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.3)
    loss = DataMisfit(relative_l2) + DataMisfit(partial(relative_h1, grid=grid), name="h1")
    curve: list[tuple[float, float]] = []
    for record in fit(
        model, loss, batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l2),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record)
        curve.append((record.seconds, record.validation))
        print(record)

    # Evaluation, from the folder that training left; the mean field is what a network without information would give.
    unseen = test.read(range(len(test)))
    found = torch.from_numpy(Predictor.load(out, device=device)(unseen.input.numpy()))
    mean = training.read(range(len(training))).target.mean(0, keepdim=True).expand_as(unseen.target)
    results = {
        "relative L2": float(relative_l2(found, unseen.target)),
        "relative H1": float(relative_h1(found, unseen.target, grid=grid)),
        "relative L2 of the mean field": float(relative_l2(mean, unseen.target)),
    }
    for name, value in results.items():
        print(f"{name} on {len(test)} unseen media: {value:.2%}")

    shown = [
        {"wave speed": unseen.input[i, 0], "field": unseen.target[i, 0], "prediction": found[i, 0]} for i in range(3)
    ]
    figure = plot_fields(shown, grid, input="wave speed", reference="field", prediction="prediction")
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    figure = plot_convergence(
        {"validation": tuple(zip(*curve, strict=True))}, xlabel="seconds of training", ylabel="relative L2"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return results["relative L2"]


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
