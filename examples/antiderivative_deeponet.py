"""
The antiderivative with a DeepONet
==================================

Learns the first operator of the DeepONet paper, u -> s with s' = u and s(0) = 0, for random functions u:

1. draw 1000 Gaussian processes of correlation length 0.2 at 100 sensors, with their integrals,
2. train a DeepONet on Cartesian batches: the trunk sees the 100 coordinates once for all functions,
3. test on 1000 unseen functions: the mean squared error over all values, none left out,
4. ask for the integral at 1000 coordinates that training never saw,
5. draw functions, integrals and errors, and how the error fell.

Run ``python examples/antiderivative_deeponet.py --help`` for the options.
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
from opflow.losses import DataMisfit, mean_squared_error
from opflow.models import DeepONet
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Antiderivative
from opflow.training import evaluate, fit, save_checkpoint


def main(
    sensors: int = 100,
    samples: int = 1000,
    test_samples: int = 1000,
    epochs: int = 1000,
    batch_size: int = 100,
    basis: int = 40,
    learning_rate: float = 5e-3,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/antiderivative_deeponet"),
    device: Literal["cpu", "cuda"] = "cpu",
    overwrite: bool = False,
) -> float:
    """Train a DeepONet on the antiderivative and return the mean squared error on unseen functions.

    Args:
        sensors: nodes of (0, 1) where the branch sees u, and where the integrals are compared.
        samples: training functions; a tenth as many are drawn for validation.
        test_samples: unseen functions.
        epochs: passes over the training functions.
        batch_size: functions a step.
        basis: number of terms of the sum over branch and trunk.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; the functions have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        device: where to train.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, grid = Antiderivative(), Grid(sensors, axes=("t",))
    coords = grid.points(dtype=torch.float32)  # (points, 1)

    # Data: sample i is the same function at any number of sensors.
    def drawn(split: str, n: int) -> FieldDataset:
        folder = data_folder / f"antiderivative_{sensors}_{n}"
        return FieldDataset(generate(problem, grid, folder, n, split=split, resume=True)).in_memory()

    training, validation, test = (
        drawn("train", samples),
        drawn("validation", samples // 10),
        drawn("test", test_samples),
    )

    def at_points(batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The targets (batch, 1, points) as values at coordinates (batch, points, 1)."""
        return Batch(input=batch.input, target=batch.target.mT, coords=coords, index=batch.index)

    # Model: physical units in and out. The trunk sees random waves of the coordinate: of the bare one it learns slow functions first.
    statistics = channel_statistics(training)
    model = Normalized(
        DeepONet.build(
            sensors,
            1,
            basis=basis,
            branch=(40,),
            trunk=(40, 40),
            domain=((0.0, 1.0),),
            trunk_features=8,
            fourier_scale=0.5,
        ),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std, points=True),
    ).to(device)
    print(f"model: DeepONet with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training.
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=at_points)
    held_out = Batches(validation, len(validation), transform=at_points)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.1)
    loss = DataMisfit(mean_squared_error)
    history: list[tuple[int, float]] = []
    for record in fit(
        model, loss, batches, optimizer, epochs=epochs, scheduler=scheduler,
        validate=lambda model: evaluate(model, held_out, mean_squared_error),
    ):  # fmt: skip
        history.append((record.epoch, record.validation))
        if record.epoch % max(1, epochs // 20) == 0 or record.epoch == epochs:
            save_checkpoint(out / "checkpoints", model, record=record)
            print(record)

    # Evaluation, from the folder that training left.
    predictor = Predictor.load(out, device=device)
    unseen = at_points(test.read(range(len(test))))
    prediction = torch.from_numpy(predictor(unseen.input.numpy(), coords.numpy(), batch_size=1000))
    error = float(mean_squared_error(prediction, unseen.target))
    print(f"mean squared error on {len(test)} unseen functions, over all {prediction.numel()} values: {error:.2e}")

    # The trunk takes any coordinate: a grid ten times finer, which training never saw.
    fine = Grid(10 * (sensors - 1) + 1, axes=("t",))
    some = min(100, test_samples)
    exact = problem.solve(problem.sample(some, fine, split="test"), fine)["integral"].float()
    finer = predictor(unseen.input[:some].numpy(), fine.points().numpy(), batch_size=1000)[..., 0]
    error_between = float(mean_squared_error(torch.from_numpy(finer), exact))
    print(f"the same at {fine.shape[0]} coordinates, never seen: {error_between:.2e}")

    rows = [
        {"u": unseen.input[i, 0], "integral": unseen.target[i, :, 0], "prediction": prediction[i, :, 0]}
        for i in range(3)
    ]
    figure = plot_fields(rows, grid, input="u", reference="integral", prediction="prediction")
    print(f"picture: {save_figure(figure, out / 'functions.png')}")
    figure = plot_convergence(
        {"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="mean squared error"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    results = {"mean_squared_error": error, "mean_squared_error_between_sensors": error_between}
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return error


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
