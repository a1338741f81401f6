"""
Darcy flow with a multigrid neural operator
===========================================

From the permeability of a two-phase medium to its pressure, -div(a grad u) = 1, u = 0 on the boundary:

1. generate media and pressures on 64 x 64 nodes (stored and used again),
2. train an MgNO, whose layers are learned multigrid cycles, and for the same number of epochs an FNO,
3. test both on unseen media: the error of the pressure and of its gradient, and the values on the boundary,
4. draw fields with their errors, and the error against the seconds of training.

Run ``python examples/darcy_mgno.py --help`` for the options.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from opflow import Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.interop import Predictor
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_h1, relative_l2
from opflow.models import FNO, MgNO
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Darcy
from opflow.training import evaluate, fit, save_checkpoint


def main(
    size: int = 64,
    samples: int = 1000,
    test_samples: int = 100,
    epochs: int = 20,
    batch_size: int = 4,
    hidden_channels: int = 24,
    levels: int = 6,
    cycle: Literal["backslash", "V"] = "backslash",
    learning_rate: float = 1e-3,
    fno: bool = True,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/darcy_mgno"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train both models; return the mean relative L2 error of MgNO's pressures in unseen media.

    Args:
        size: nodes per axis.
        samples: training media; a tenth as many are drawn for validation.
        test_samples: unseen media.
        epochs: passes over the training media, for each model.
        batch_size: media a step.
        hidden_channels: width of MgNO.
        levels: grids of every cycle.
        cycle: "backslash", as published, or "V", which restricts residuals.
        learning_rate: the highest of the one-cycle schedule.
        fno: train the FNO too.
        seed: of the weights and of the order of the data; media have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    problem, grid = Darcy(), Grid((size, size))

    # Data.
    def solved(split: str, n: int) -> FieldDataset:
        return FieldDataset(
            generate(problem, grid, data_folder / f"darcy_{size}_{n}", n, split=split, resume=True)
        ).in_memory()

    training, validation, test = (
        solved("train", samples),
        solved("validation", samples // 10),
        solved("test", test_samples),
    )
    statistics = channel_statistics(training)
    held_out = list(Batches(validation, 50, device=device))
    unseen = test.read(range(len(test)))

    # Models. The output's scale has no offset, so that the zeros that MgNO puts on the boundary stay zeros.
    scale = (statistics.target.mean.square() + statistics.target.std.square()).sqrt()
    makers = {"MgNO": lambda: MgNO.build(1, 1, hidden_channels, n_levels=levels, cycle=cycle, boundary="dirichlet")}
    if fno:
        modes = min(24, size // 2)
        makers["FNO"] = lambda: FNO.build((modes, modes), 1, 1, 32, padding=1 / 9, channel_mlp=None)

    results: dict[str, float] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    predictions = {}
    for name, make in makers.items():
        torch.manual_seed(seed)
        model: nn.Module = Normalized(
            make(),
            input=Normalizer(statistics.input.mean, statistics.input.std),
            output=Normalizer(torch.zeros_like(scale), scale),
        ).to(device)
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")

        # Training. The loss weighs the pressure and its gradient alike.
        batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, device=device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.3)
        loss = DataMisfit(relative_l2) + DataMisfit(partial(relative_h1, grid=grid), name="h1")
        curves[name] = []
        for record in fit(
            model, loss, batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
            validate=lambda model: evaluate(model, held_out, relative_l2),
        ):  # fmt: skip
            save_checkpoint(out / name, model, record=record)
            curves[name].append((record.seconds, record.validation))
            print(record)

        # Evaluation, from the folder that training left.
        found = torch.from_numpy(Predictor.load(out / name, device=device)(unseen.input.numpy()))
        ends = torch.cat([found[..., [0, -1], :].flatten(), found[..., :, [0, -1]].flatten()])
        on_boundary = float(ends.abs().max() / unseen.target.abs().max())
        results[f"{name}: relative L2"] = l2 = float(relative_l2(found, unseen.target))
        results[f"{name}: relative H1"] = h1 = float(relative_h1(found, unseen.target, grid=grid))
        predictions[name] = found
        print(
            f"{name} on {len(test)} unseen media: relative L2 {l2:.3%}, H1 {h1:.3%}, "
            f"largest value on the boundary {on_boundary:.1e} of the largest pressure"
        )

    shown = [
        {"permeability": unseen.input[i, 0], "pressure": unseen.target[i, 0], "MgNO": predictions["MgNO"][i, 0]}
        for i in range(3)
    ]
    figure = plot_fields(shown, grid, input="permeability", reference="pressure", prediction="MgNO")
    print(f"picture: {save_figure(figure, out / 'fields.png')}")
    lines = {name: tuple(zip(*points, strict=True)) for name, points in curves.items()}
    figure = plot_convergence(lines, xlabel="seconds of training", ylabel="relative L2 on the validation media")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return results["MgNO: relative L2"]


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
