"""
Impedance tomography with a neural inverse operator
===================================================

Recovers the conductivity a of a square from currents through its boundary, -div(a grad u) = 0 inside, u = g_l and a du/dn measured on the
boundary for up to twenty voltages g_l (Calderon's problem; Molinaro, Yang, Engquist and Mishra 2023):

1. generate random conductivities and their currents; those of validation and test come from a solve twice as fine,
2. train a neural inverse operator, which knows the voltage of each measurement, on a random subset of the measurements of every
   sample, with noise of a random level,
3. test it on unseen conductivities with 20, 10 and 5 measurements and with noise, beside kernel ridge regression, Gauss-Newton
   iterations under the prior that the training set suggests, and the constant answer,
4. draw truth, reconstructions and error, and the error against the number of measurements.

The published family has four parameters, and the two classical methods know that: they win on it. What the network has to show is
that it needs neither the equation nor a complete set of measurements.

Run ``python examples/calderon_nio.py --help`` for the options.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.data import Batches, FieldDataset, generate, random_subsets
from opflow.files import claim_folder, write_json
from opflow.inversion import GaussianPrior, gauss_newton
from opflow.losses import DataMisfit, relative_l1, relative_l1_errors
from opflow.models import NIO, KernelRidge
from opflow.pde import add_noise
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import ImpedanceTomography
from opflow.training import evaluate, fit, save_checkpoint

TEST_SEED = 1


def main(
    medium: str = "trigonometric",
    size: int = 70,
    stride: int = 3,
    samples: int = 1536,
    test_samples: int = 100,
    newton_samples: int = 16,
    modes: int = 4,
    epochs: int = 24,
    batch_size: int = 16,
    hidden_channels: int = 16,
    learning_rate: float = 4e-3,
    noise: float = 0.05,
    complete: float = 0.3,
    ridge_first: bool = False,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/calderon_nio"),
    overwrite: bool = False,
) -> float:
    """Train the inverse of Calderon's problem; return the median relative L1 error of unseen conductivities, all measurements, no noise.

    Args:
        medium: "trigonometric", at most four parameters, or "tensor", sixteen.
        size: nodes per axis of the training set's solve, and where Gauss-Newton solves.
        stride: the conductivity is recovered at every stride-th node.
        samples: training samples; a sixteenth as many are drawn for validation.
        test_samples: unseen conductivities.
        newton_samples: how many of them Gauss-Newton is asked for.
        modes: of its prior, the leading principal components of the training set.
        epochs: passes over the training samples.
        batch_size: samples a step.
        hidden_channels: width of the Fourier layers.
        learning_rate: the highest of the one-cycle schedule.
        noise: the largest relative level of the noise in training.
        complete: share of the training samples that keep all their measurements; the others keep a random number.
        ridge_first: let the network correct the kernel ridge reconstruction instead of starting from nothing: needed for "tensor".
        seed: of the weights and of the order of the data; samples and noise of the test have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, fine = ImpedanceTomography(medium), Grid((size, size))
    grid = fine.subsampled(stride)

    # Data: measured at the same 68 points of each side, whatever the solve.
    def measured(split: str, n: int, refine: int) -> FieldDataset:
        folder = data_folder / f"calderon_{medium}_{size}_{n}"
        return FieldDataset(
            generate(problem, fine, folder, n, split=split, refine=refine, resume=True), stride=stride
        ).in_memory()

    training = measured("train", samples, 1)
    validation, test = measured("validation", max(samples // 16, 2), 2), measured("test", test_samples, 2)
    everything = training.read(range(len(training)))
    L, channels, *sensors = everything.input.shape[1:]

    # Models: kernel ridge is fitted in one go; it chooses its kernel by leave-one-out errors.
    ridge = KernelRidge.build(
        L, sensors, channels, grid, components=min(100, samples // 2), targets=min(40, samples // 2)
    )
    ridge.fit(add_noise(everything.input, 0.01, torch.Generator().manual_seed(seed)), everything.target)
    model = NIO.build(
        sensors, channels, grid, hidden_channels, encoder="perceptron", descriptors=problem.descriptors.float(),
        reconstruction=ridge if ridge_first else None,
    )  # fmt: skip
    model.scale.fit(everything.input, everything.target)
    print(f"model: neural inverse operator with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training: every sample has noise of a level and a subset of measurements of its own.
    def corrupted(batch: Batch, generator: torch.Generator) -> Batch:
        n = batch.batch_size
        level = noise * torch.rand(n, generator=generator).square().view(n, 1, 1, 1)
        noisy = batch.input + level * (add_noise(batch.input, 1.0, generator) - batch.input)
        parameters = {"held_out": batch.index} if ridge_first else None
        mask = random_subsets(n, L, generator) | (torch.rand(n, 1, generator=generator) < complete)
        return Batch(noisy, batch.target, None, parameters, mask, batch.weight, batch.index)

    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=corrupted)
    held_out = [asked(validation, count, 0.01) for count in (L, L // 2, L // 4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.1)
    history: list[tuple[int, float]] = []
    best, state, start = float("inf"), model.state_dict(), time.process_time()
    for record in fit(
        model, DataMisfit(relative_l1), batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l1),
    ):  # fmt: skip
        history.append((record.epoch, record.validation))
        print(record)
        if record.validation < best:
            best, state = record.validation, {name: value.clone() for name, value in model.state_dict().items()}
            save_checkpoint(out / "checkpoints", model, record=record)
    model.load_state_dict(state)
    model.eval()
    print(f"trained in {time.process_time() - start:.0f} s of processor time")

    # The classical method: the true equation, under the prior of the training set. Its errors are noise and discretisation, the
    # latter as validation shows it.
    fields, forward = _fields(training.source, fine), problem.forward(fine)
    prior = GaussianPrior.from_samples(fields, min(modes, samples - 1))
    known = range(min(16, len(validation)))
    observed = validation.read(known).input.double()
    model_error = (forward(_fields(validation.source, fine)[known]) - observed).square().mean(0).sqrt()

    def newton(batch: Batch, level: float) -> Tensor:
        found = []
        for data, mask in zip(batch.input.double(), batch.mask, strict=True):
            deviation = (model_error.square() + level**2 * data.square().mean()).sqrt()
            found.append(gauss_newton(forward, data, prior, deviation=deviation, mask=mask, discrepancy=None).field)
        return fine.subsample(torch.stack(found)[:, None], stride).float()

    constant = everything.target.median(dim=0, keepdim=True).values
    methods: dict[str, Callable[[Batch, float], Tensor]] = {
        "constant answer": lambda batch, level: constant.expand_as(batch.target),
        "Gauss-Newton, learned prior": newton,
        "kernel ridge": lambda batch, level: ridge(batch.input, mask=batch.mask),
        "neural inverse operator": lambda batch, level: model(batch.input, mask=batch.mask),
    }

    # Test, asked once: medians over samples of the relative L1 error.
    cases = [(L, 0.0), (L, 0.01), (L, 0.05), (L // 2, 0.0), (L // 4, 0.0), (max(L // 10, 1), 0.0)]
    rows: dict[str, dict[str, float]] = {}
    answers: dict[tuple[str, int], Tensor] = {}
    for name, method in methods.items():
        rows[name], start = {}, time.process_time()
        for count, level in cases:
            batch = asked(test, count, level, newton_samples if method is newton else None)
            with torch.no_grad():
                found = method(batch, level)
            errors = relative_l1_errors(found, batch.target, batch.weight)
            rows[name][f"{count} measurements, noise {level:g}"] = float(errors.median())
            answers[name, count] = found if level == 0 else answers[name, count]
        seconds = (time.process_time() - start) / (len(cases) * len(found))
        rows[name]["seconds a sample"] = seconds
        print(f"{name:28s}" + "".join(f"{rows[name][key]:9.2%}" for key in list(rows[name])[:-1]) + f"{seconds:9.3f} s")
    print("columns: " + "; ".join(f"{count} measurements, noise {level:g}" for count, level in cases))

    shown = [
        {
            f"from {L // 4} measurements": answers["neural inverse operator", L // 4][i, 0],
            "conductivity": test.read([i]).target[0, 0],
            f"from {L} measurements": answers["neural inverse operator", L][i, 0],
        }
        for i in range(min(3, test_samples))
    ]
    names = list(shown[0])
    figure = plot_fields(shown, grid, input=names[0], reference=names[1], prediction=names[2])
    print(f"picture: {save_figure(figure, out / 'conductivities.png')}")
    counts = [count for count, level in cases if level == 0]
    curves = {name: (counts, [row[f"{count} measurements, noise 0"] for count in counts]) for name, row in rows.items()}
    figure = plot_convergence(curves, xlabel="measurements, a random subset", ylabel="median relative L1 error")
    print(f"picture: {save_figure(figure, out / 'measurements.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L1")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_json(
        out / "results.json", {"rows": rows, "settings": {"medium": medium, "samples": samples, "epochs": epochs}}
    )
    return rows["neural inverse operator"][f"{L} measurements, noise 0"]


def asked(data: FieldDataset, count: int, level: float, n: int | None = None) -> Batch:
    """The first n samples, all by default, with noise and a random subset of `count` measurements each, the same at every call."""
    batch = data.read(range(len(data) if n is None else min(n, len(data))))
    generator = torch.Generator().manual_seed(TEST_SEED)
    mask = random_subsets(batch.batch_size, batch.input.shape[1], generator, at_least=count, at_most=count)
    return Batch(add_noise(batch.input, level, generator), batch.target, mask=mask, weight=batch.weight)


def _fields(source, grid: Grid) -> Tensor:
    """All conductivities of a source (n, *grid), float64."""
    values = torch.from_numpy(source.read("conductivity", range(len(source)))).double()
    grid.check(values)
    return values


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
