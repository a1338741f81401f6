"""
Wave scattering with a neural inverse operator
==============================================

Recovers the refractive index a of a square from the fluxes of waves in it, lap u + omega^2 a^2 u = 0 inside, u = g_l and du/dn measured on
the boundary for up to twenty plane waves g_l (Molinaro, Yang, Engquist and Mishra 2023):

1. generate random media of one to four nearly square inclusions and their fluxes; those of validation and test come from a grid twice as fine,
2. train a neural inverse operator on a random subset of the measurements of every sample, with noise of a random level,
3. test it on unseen media with 20, 10 and 5 measurements and with noise, beside kernel ridge regression and the constant answer,
4. draw media, reconstructions and error.

Run ``python examples/scattering_nio.py --help`` for the options.
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
from opflow.losses import DataMisfit, relative_errors, relative_l1, relative_l1_errors
from opflow.models import NIO, KernelRidge
from opflow.pde import add_noise
from opflow.plotting import plot_fields, save_figure
from opflow.problems import CavityScattering
from opflow.training import evaluate, fit, save_checkpoint

TEST_SEED = 1


def main(
    size: int = 70,
    stride: int = 3,
    samples: int = 1024,
    test_samples: int = 64,
    epochs: int = 40,
    batch_size: int = 16,
    hidden_channels: int = 16,
    learning_rate: float = 2e-3,
    noise: float = 0.05,
    ridge_first: bool = False,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/scattering_nio"),
    overwrite: bool = False,
) -> float:
    """Train the inverse of wave scattering in a cavity; return the median relative L1 error of unseen media, all measurements, no noise.

    Args:
        size: nodes per axis where the media of the training set are given.
        stride: the index is recovered at every stride-th node.
        samples: training samples; a thirty-second as many are drawn for validation.
        test_samples: unseen media.
        epochs: passes over the training samples.
        batch_size: samples a step.
        hidden_channels: width of the Fourier layers.
        learning_rate: the highest of the one-cycle schedule.
        noise: the largest relative level of the noise in training.
        ridge_first: let the network correct the kernel ridge reconstruction instead of starting from nothing.
        seed: of the weights and of the order of the data; samples and noise of the test have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, fine = CavityScattering(), Grid((size, size))
    grid = fine.subsampled(stride)

    # Data: the fluxes of a cavity near resonance are large; their signed logarithm is what the models see.
    def measured(split: str, n: int, refine: int) -> FieldDataset:
        folder = data_folder / f"cavity_{size}_{n}"
        return FieldDataset(
            generate(problem, fine, folder, n, split=split, refine=refine, resume=True), stride=stride
        ).in_memory()

    training = measured("train", samples, 1)
    validation, test = measured("validation", max(samples // 32, 2), 2), measured("test", test_samples, 2)
    everything = training.read(range(len(training)))
    L, channels, *sensors = everything.input.shape[1:]
    seen = compressed(add_noise(everything.input, 0.01, torch.Generator().manual_seed(seed)))

    # Models: kernel ridge is fitted in one go; it chooses its kernel by leave-one-out errors.
    ridge = KernelRidge.build(
        L, sensors, channels, grid, components=min(150, samples // 2), targets=min(80, samples // 2)
    ).fit(seen, everything.target)
    model = NIO.build(
        sensors, channels, grid, hidden_channels, encoder="perceptron", descriptors=problem.descriptors.float(),
        reconstruction=ridge if ridge_first else None,
    )  # fmt: skip
    model.scale.fit(seen, everything.target)
    print(f"model: neural inverse operator with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training: every sample has noise of a level and a subset of measurements of its own.
    def corrupted(batch: Batch, generator: torch.Generator) -> Batch:
        n = batch.batch_size
        level = noise * torch.rand(n, generator=generator).square().view(n, 1, 1, 1)
        noisy = batch.input + level * (add_noise(batch.input, 1.0, generator) - batch.input)
        parameters = {"held_out": batch.index} if ridge_first else None
        mask = random_subsets(n, L, generator)
        return Batch(compressed(noisy), batch.target, None, parameters, mask, batch.weight, batch.index)

    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=corrupted)
    held_out = [asked(validation, count, 0.01) for count in (L, L // 2, L // 4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * len(batches), pct_start=0.1)
    best, state, start = float("inf"), model.state_dict(), time.process_time()
    for record in fit(
        model, DataMisfit(relative_l1), batches, optimizer, epochs=epochs, scheduler=scheduler, clip_norm=1.0,
        validate=lambda model: evaluate(model, held_out, relative_l1),
    ):  # fmt: skip
        print(record)
        if record.validation < best:
            best, state = record.validation, {name: value.clone() for name, value in model.state_dict().items()}
            save_checkpoint(out / "checkpoints", model, record=record)
    model.load_state_dict(state)
    model.eval()
    print(f"trained in {time.process_time() - start:.0f} s of processor time")

    # Test, asked once: medians over samples of the relative L1 error.
    constant = everything.target.median(dim=0, keepdim=True).values
    methods: dict[str, Callable[[Batch], Tensor]] = {
        "constant answer": lambda batch: constant.expand_as(batch.target),
        "kernel ridge": lambda batch: ridge(batch.input, mask=batch.mask),
        "neural inverse operator": lambda batch: model(batch.input, mask=batch.mask),
    }
    cases = [(L, 0.0), (L, 0.01), (L, 0.05), (L // 2, 0.0), (L // 4, 0.0)]
    rows: dict[str, dict[str, float]] = {}
    answers: dict[str, Tensor] = {}
    for name, method in methods.items():
        rows[name], start = {}, time.process_time()
        for count, level in cases:
            batch = asked(test, count, level)
            with torch.no_grad():
                found = method(batch)
            errors = relative_l1_errors(found, batch.target, batch.weight)
            rows[name][f"{count} measurements, noise {level:g}"] = float(errors.median())
            if (count, level) == cases[0]:
                answers[name] = found
                rows[name]["relative L2"] = float(relative_errors(found, batch.target, batch.weight).median())
        rows[name]["seconds a sample"] = (time.process_time() - start) / (len(cases) * len(found))
        shown = [rows[name][f"{count} measurements, noise {level:g}"] for count, level in cases]
        print(f"{name:28s}" + "".join(f"{value:9.2%}" for value in shown) + f"{rows[name]['seconds a sample']:9.3f} s")
    print("columns: " + "; ".join(f"{count} measurements, noise {level:g}" for count, level in cases))

    pictures = [
        {
            "kernel ridge": answers["kernel ridge"][i, 0],
            "refractive index": test.read([i]).target[0, 0],
            "neural inverse operator": answers["neural inverse operator"][i, 0],
        }
        for i in range(min(3, test_samples))
    ]
    names = list(pictures[0])
    figure = plot_fields(pictures, grid, input=names[0], reference=names[1], prediction=names[2])
    print(f"picture: {save_figure(figure, out / 'media.png')}")
    write_json(out / "results.json", {"rows": rows, "settings": {"samples": samples, "epochs": epochs}})
    return rows["neural inverse operator"][f"{L} measurements, noise 0"]


def compressed(measurements: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)"""
    return measurements.sign() * measurements.abs().log1p()


def asked(data: FieldDataset, count: int, level: float) -> Batch:
    """All samples, with noise and a random subset of `count` measurements each, the same at every call."""
    batch = data.read(range(len(data)))
    generator = torch.Generator().manual_seed(TEST_SEED)
    mask = random_subsets(batch.batch_size, batch.input.shape[1], generator, at_least=count, at_most=count)
    return Batch(compressed(add_noise(batch.input, level, generator)), batch.target, mask=mask, weight=batch.weight)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
