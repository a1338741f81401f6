"""
Darcy flow with a Fourier neural operator
=========================================

Learns the map from permeability to pressure of -div(a grad u) = 1, then uses what it learned:

1. generate 1000 + 100 random media and their pressures at 64 x 64 nodes (stored and used again),
2. train a Fourier neural operator, choosing its weights on validation samples only,
3. evaluate on unseen media at 64 x 64, and at 127 x 127, a resolution that it never saw,
4. draw permeability, reference, prediction and signed error,
5. load the checkpoint and hand its prediction to SciPy as the initial guess of a conjugate-gradient solve.

Run ``python examples/darcy_fno.py --help`` for the options. Your own data go in with ``--data PATH``: a folder or file
of ``opflow.data``, or an ``.npz`` or ``.pt`` file with the arrays x and y.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from opflow import Batch, Grid
from opflow.data import Batches, FieldDataset, channel_statistics, generate
from opflow.files import claim_folder, write_bytes
from opflow.interop import Predictor, as_linear_operator, as_preconditioner
from opflow.layers import Normalized, Normalizer
from opflow.losses import DataMisfit, relative_errors, relative_l2
from opflow.models import FNO
from opflow.plotting import plot_fields, save_figure
from opflow.problems import Darcy
from opflow.solvers import FaceStencil, FastPoisson
from opflow.training import evaluate, fit, load_checkpoint, save_checkpoint


def main(
    size: int = 64,
    unseen: int = 127,
    samples: int = 1000,
    test_samples: int = 100,
    epochs: int = 10,
    batch_size: int = 10,
    modes: int = 12,
    hidden_channels: int = 24,
    learning_rate: float = 5e-3,
    seed: int = 0,
    data: Path | None = None,
    augment: bool | None = None,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/darcy_fno"),
    device: Literal["cpu", "cuda"] = "cpu",
    resume: bool = False,
    overwrite: bool = False,
) -> float:
    """Train on Darcy flow and return the mean relative L2 error on unseen media.

    Args:
        size: nodes per axis of the training grid.
        unseen: nodes per axis of a grid that only the evaluation sees; 0 to skip it.
        samples: training media, a twentieth of them kept for validation.
        test_samples: unseen media.
        epochs: passes over the training media.
        batch_size: media a step.
        modes: Fourier modes per axis.
        hidden_channels: width of the network.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the weights and of the order of the data; the media have seeds of their own.
        data: your own data set in place of generated media.
        augment: turn and mirror the training media; by default only generated ones, whose problem has the square's
            symmetries. (The published 16 x 16 set has not: its last row and column are not the boundary.)
        data_folder: where generated data are kept.
        out: where checkpoints, metrics and the picture go.
        device: where to train.
        resume: continue the run in `out`, or only evaluate it if it is finished.
        overwrite: start again in `out`.
    """
    claim_folder(out, resume=resume, overwrite=overwrite)
    torch.manual_seed(seed)

    # Data: splits come from separate random streams; validation is cut from the training split.
    problem = Darcy()
    if data is None:
        grid = Grid((size, size))
        training = FieldDataset(made(problem, grid, data_folder, samples, "train"))
        test = FieldDataset(made(problem, grid, data_folder, test_samples, "test"))
        training, validation = training.split(0.95, 0.05)
    else:
        training, validation, test = FieldDataset(data).split(0.85, 0.05, 0.1)
    training, validation, test = training.in_memory(), validation.in_memory(), test.in_memory()
    print(
        f"data: {len(training)} training, {len(validation)} validation, {len(test)} test samples on {training.grid.shape}"
    )

    # Model: normalisation is part of it, so that it takes and gives physical units.
    statistics = channel_statistics(training)
    model = Normalized(
        FNO.build((modes, modes), 1, 1, hidden_channels, padding=1 / 9, layout=training.grid.layout, channel_mlp=None),
        input=Normalizer(statistics.input.mean, statistics.input.std),
        output=Normalizer(statistics.target.mean, statistics.target.std),
    ).to(device)
    print(f"model: FNO with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training: every epoch is a checkpoint; a killed run continues with --resume, bit for bit.
    symmetric = data is None if augment is None else augment
    transform = turned if symmetric else None
    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=transform)
    held_out = Batches(validation, batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    steps = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    loss = DataMisfit(relative_l2)
    state = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler, "batches": batches}
    start = load_checkpoint(out / "checkpoints", model, **state) if (out / "checkpoints").exists() else None
    lines = kept_metrics(out / "metrics.jsonl", start.record.step if start and start.record else 0)
    for record in fit(
        model, loss, batches, optimizer, epochs=epochs, scheduler=scheduler, start=start,
        validate=lambda model: evaluate(model, held_out, relative_l2),
    ):  # fmt: skip
        save_checkpoint(out / "checkpoints", model, record=record, **state)
        lines.append(json.dumps(record.to_json()))
        write_bytes(out / "metrics.jsonl", ("\n".join(lines) + "\n").encode())
        print(record)

    # Evaluation: from here on as a user would, from the folder that training left.
    predictor = Predictor.load(out, device=device)
    error, prediction = tested(predictor, test)
    print(f"relative L2 on {len(test)} unseen samples at {test.grid.shape}: {error:.2%}")
    results = {"relative_l2": error, "samples": len(test)}
    if data is None and unseen:
        finer = FieldDataset(made(problem, Grid((unseen, unseen)), data_folder, test_samples, "test"))
        results["relative_l2_unseen_resolution"], _ = tested(predictor, finer)
        print(f"the same media at {finer.grid.shape}, never seen: {results['relative_l2_unseen_resolution']:.2%}")

    # The picture.
    few = test.read(range(3))
    rows = [
        {"permeability": few.input[i, 0], "reference": few.target[i, 0], "prediction": prediction[i, 0]}
        for i in range(3)
    ]
    figure = plot_fields(rows, test.grid, input="permeability", reference="reference", prediction="prediction")
    print(f"picture: {save_figure(figure, out / 'fields.png')}")

    # The learned solver inside a SciPy solve; foreign data need not satisfy our discretisation, so only for our own.
    if data is None:
        results["scipy"] = scipy_solve(predictor, few, test.grid)
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return error


def made(problem: Darcy, grid: Grid, folder: Path, n: int, split: str):
    """Generate a split, or open the one that is there."""
    return generate(problem, grid, folder / f"darcy_{grid.shape[0]}_{n}", n, split=split, resume=True)


def turned(batch: Batch, generator: torch.Generator) -> Batch:
    """One of the square's eight symmetries, under which this Darcy problem is invariant."""
    flip_x, flip_y, swap = torch.randint(2, (3,), generator=generator).tolist()

    def turn(field: torch.Tensor) -> torch.Tensor:
        field = field.flip([axis for axis, flip in ((2, flip_x), (3, flip_y)) if flip])
        return field.transpose(2, 3) if swap else field

    return Batch(input=turn(batch.input), target=turn(batch.target), weight=batch.weight, index=batch.index)


def kept_metrics(path: Path, step: int) -> list[str]:
    """The metrics up to the step that a resumed run starts from."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if json.loads(line)["step"] <= step]


def tested(predictor: Predictor, dataset: FieldDataset) -> tuple[float, np.ndarray]:
    """The mean relative L2 error, and the predictions."""
    batch = dataset.read(range(len(dataset)))
    prediction = predictor(batch.input.numpy())
    return float(relative_errors(torch.from_numpy(prediction), batch.target, batch.weight).mean()), prediction


def scipy_solve(predictor: Predictor, batch: Batch, grid: Grid, rtol: float = 1e-6) -> dict[str, dict[str, float]]:
    """Solve one medium with SciPy's conjugate gradients, from zero and from the network's prediction."""
    from scipy.sparse.linalg import cg

    permeability = batch.input[:1].numpy()
    stencil = FaceStencil.from_coefficient(torch.from_numpy(permeability[:, 0]).double(), grid)
    A = as_linear_operator(stencil)
    b = np.ones(A.shape[0])
    guess = predictor(permeability)[0, 0, 1:-1, 1:-1].astype(np.float64).ravel()
    results: dict[str, dict[str, float]] = {}
    for name, M in (("plain", None), ("with a fast Poisson preconditioner", as_preconditioner(FastPoisson(), stencil))):
        counts = []
        for x0 in (np.zeros_like(b), guess):
            iterates: list[float] = []
            x, _ = cg(A, b, x0=x0, rtol=rtol, maxiter=5000, M=M, callback=lambda x, seen=iterates: seen.append(0.0))
            counts.append((len(iterates), np.linalg.norm(b - A @ x) / np.linalg.norm(b)))
        (cold, _), (warm, residual) = counts
        results[name] = {"iterations_from_zero": cold, "iterations_from_prediction": warm, "true_residual": residual}
        print(
            f"SciPy cg {name}, rtol {rtol:.0e}: {cold} iterations from zero, {warm} from the network's prediction "
            f"({cold - warm} saved), true residual {residual:.1e}"
        )
    return results


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
