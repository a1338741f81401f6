"""
Inverse Darcy flow with a Galerkin transformer
==============================================

Recovers the permeability of a medium from noisy measurements of its pressure, -div(a grad u) = 1 solved for a:

1. generate random two-phase media and their pressures at 85 x 85 nodes (stored and used again),
2. train a Galerkin transformer, which reads the pressure on 85 x 85 nodes and writes the permeability on 29 x 29, with noise of
   a given size added to every batch afresh,
3. test on unseen media at several levels of noise, those that it was not trained for too,
4. draw pressure, permeability, reconstruction and error.

Run ``python examples/darcy_inverse_galerkin.py --help`` for the options.
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
from opflow.problems import Darcy
from opflow.training import evaluate, fit, save_checkpoint

NOISE_SEED = 1


def main(
    size: int = 85,
    stride: int = 3,
    noise: float = 0.01,
    samples: int = 1000,
    test_samples: int = 100,
    epochs: int = 12,
    batch_size: int = 4,
    hidden_channels: int = 64,
    layers: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/darcy_inverse_galerkin"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train the inverse of Darcy flow; return the mean relative L2 error of unseen permeabilities at the trained noise.

    Args:
        size: nodes per axis of the pressure.
        stride: the permeability is recovered at every stride-th node.
        noise: deviation of the noise, as a share of the root mean square of all pressures.
        samples: training media; a tenth as many are drawn for validation.
        test_samples: unseen media.
        epochs: passes over the training media.
        batch_size: media a step.
        hidden_channels: width of the network.
        layers: attention layers.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; media and noise have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, grid = Darcy(), Grid((size, size))
    coarse = grid.subsampled(stride)

    # Data: the pressure is what is seen, the permeability what is asked for.
    def solved(split: str, n: int) -> FieldDataset:
        source = generate(problem, grid, data_folder / f"darcy_{size}_{n}", n, split=split, resume=True)
        return FieldDataset(source, inputs=("pressure",), targets=("permeability",)).in_memory()

    training, validation, test = (
        solved("train", samples),
        solved("validation", samples // 10),
        solved("test", test_samples),
    )
    statistics = channel_statistics(training)
    rms = float((statistics.input.mean**2 + statistics.input.std**2).sqrt())

    def measured(level: float):
        """A transform that adds noise to the pressure, and takes the permeability on the coarse grid."""

        def transform(batch: Batch, generator: torch.Generator) -> Batch:
            error = torch.randn(batch.input.shape, generator=generator, dtype=batch.input.dtype)
            return Batch(
                input=batch.input + level * rms * error,
                target=grid.subsample(batch.target, stride),
                weight=coarse.quadrature_weights(dtype=batch.input.dtype),
                index=batch.index,
            )

        return transform

    # Model: the coefficient is discontinuous, so the decoder is pointwise.
    model = Normalized(
        GalerkinTransformer.build(
            1, 1, hidden_channels, 2, heads=4, n_layers=layers, decoder="pointwise", decoder_layers=1,
            downsample=coarse.shape,
        ),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std),
    ).to(device)  # fmt: skip
    print(f"model: Galerkin transformer with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=measured(noise))
    held_out = [measured(noise)(validation.read(range(len(validation))), torch.Generator().manual_seed(NOISE_SEED))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.3)
    history: list[tuple[int, float]] = []
    for record in fit(
        model, DataMisfit(relative_l2), batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l2),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record)
        history.append((record.epoch, record.validation))
        print(record)

    # Evaluation, from the folder that training left; the constant that fits best is what a network without information would give.
    predictor = Predictor.load(out, device=device)
    results = {}
    for level in sorted({0.0, 0.01, 0.1, noise}):
        batch = measured(level)(test.read(range(len(test))), torch.Generator().manual_seed(NOISE_SEED + 1))
        found = torch.from_numpy(predictor(batch.input.numpy()))
        results[level] = float(relative_errors(found, batch.target, batch.weight).mean())
        print(f"relative L2 on {len(test)} unseen media, noise {level:g}: {results[level]:.2%}")
        if level == noise:
            shown = [
                {
                    "measured pressure": batch.input[i, 0],
                    "permeability": batch.target[i, 0],
                    "reconstruction": found[i, 0],
                }
                for i in range(3)
            ]
            mean = torch.full_like(batch.target, float(statistics.target.mean))
            results["constant"] = float(relative_errors(mean, batch.target, batch.weight).mean())
    print(f"the mean of all permeabilities instead: {results['constant']:.2%}")

    figure = plot_fields(
        shown, coarse, input="measured pressure", reference="permeability", prediction="reconstruction"
    )
    print(f"picture: {save_figure(figure, out / 'permeabilities.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L2")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_bytes(out / "results.json", json.dumps({str(k): v for k, v in results.items()}, indent=1).encode())
    return results[noise]


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
