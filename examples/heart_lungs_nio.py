"""
A thorax by impedance tomography with a neural inverse operator
===============================================================

Recovers heart and lungs, as conductivities in a disc, from the map that takes voltages on the circle to currents through it (the set-up of
Molinaro, Yang, Engquist and Mishra 2023):

1. generate random thoraxes on a polar grid and measure them, on a solve twice as fine for training and three times as fine for
   validation and test: conductivities jump, and a grid moves the jumps,
2. train a neural inverse operator on a random subset of the 32 rows of the map for every sample, with noise of a random level: it
   corrects the reconstruction by kernel ridge regression, of which it sees in training what the other samples say,
3. test it on unseen thoraxes, beside kernel ridge regression, Gauss-Newton iterations under the prior that the training set suggests, and
   the constant answer,
4. draw truth, reconstructions and error, and the error against the number of measurements.

Run ``python examples/heart_lungs_nio.py --help`` for the options.
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
from opflow.problems import DiscTomography
from opflow.training import evaluate, fit, save_checkpoint

TEST_SEED = 1


def main(
    n_theta: int = 48,
    n_r: int = 32,
    samples: int = 1536,
    test_samples: int = 100,
    newton_samples: int = 8,
    modes: int = 40,
    epochs: int = 24,
    batch_size: int = 16,
    hidden_channels: int = 16,
    learning_rate: float = 1e-3,
    noise: float = 0.02,
    ridge_first: bool = True,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/heart_lungs_nio"),
    overwrite: bool = False,
) -> float:
    """Train the inverse; return the median relative L1 error of unseen thoraxes, all measurements, no noise.

    Args:
        n_theta, n_r: angles and radii of the recovered conductivity.
        samples: training samples; a sixteenth as many are drawn for validation.
        test_samples: unseen thoraxes.
        newton_samples: how many of them Gauss-Newton is asked for.
        modes: of its prior, the leading principal components of the training set.
        epochs: passes over the training samples.
        batch_size: samples a step.
        hidden_channels: width of the Fourier layers.
        learning_rate: the highest of the one-cycle schedule.
        noise: the largest relative level of the noise in training.
        ridge_first: let the network correct the kernel ridge reconstruction instead of starting from nothing, which takes it far longer.
        seed: of the weights and of the order of the data; samples and noise of the test have seeds of their own.
        data_folder: where generated data are kept.
        out: where checkpoints, results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem, grid = DiscTomography(), Grid.polar(n_theta, n_r)

    def measured(split: str, n: int, refine: int) -> FieldDataset:
        folder = data_folder / f"heart_lungs_{n_theta}_{n_r}_{n}"
        source = generate(problem, grid, folder, n, split=split, refine=refine, resume=True)
        return FieldDataset(source).in_memory()

    training = measured("train", samples, 2)
    validation, test = measured("validation", max(samples // 16, 2), 3), measured("test", test_samples, 3)
    everything = training.read(range(len(training)))
    L, channels, *sensors = everything.input.shape[1:]

    # Models. Rows of the map are coefficients of waves, not values in a line, so that no convolution reads them.
    ridge = KernelRidge.build(
        L, sensors, channels, grid, components=min(100, samples // 2), targets=min(100, samples // 2)
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
        return Batch(noisy, batch.target, None, parameters, random_subsets(n, L, generator), batch.weight, batch.index)

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

    # The classical method: the equation itself on the grid of the answer, under the prior of the training set. Its errors are noise
    # and discretisation, the latter as validation shows it.
    forward = problem.forward(grid)
    prior = GaussianPrior.from_samples(
        everything.target[:, 0].double(), min(modes, samples - 1), weight=grid.quadrature_weights()
    )
    known = validation.read(range(min(32, len(validation))))
    model_error = (forward(known.target[:, 0].double()) - known.input.double()).square().mean(0).sqrt()

    def newton(batch: Batch, level: float) -> Tensor:
        found = []
        for data, mask in zip(batch.input.double(), batch.mask, strict=True):
            deviation = (model_error.square() + level**2 * data.square().mean()).sqrt()
            found.append(gauss_newton(forward, data, prior, deviation=deviation, mask=mask, discrepancy=None).field)
        return torch.stack(found)[:, None].float()

    constant = everything.target.median(dim=0, keepdim=True).values
    methods: dict[str, Callable[[Batch, float], Tensor]] = {
        "constant answer": lambda batch, level: constant.expand_as(batch.target),
        "Gauss-Newton, learned prior": newton,
        "kernel ridge": lambda batch, level: ridge(batch.input, mask=batch.mask),
        "neural inverse operator": lambda batch, level: model(batch.input, mask=batch.mask),
    }

    # Test, asked once: medians over samples of the relative L1 error, by area.
    cases = [(L, 0.0), (L, 0.01), (L, 0.05), (L // 2, 0.0), (L // 4, 0.0), (max(L // 16, 1), 0.0)]
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
            "kernel ridge": answers["kernel ridge", L][i, 0],
            "conductivity": test.read([i]).target[0, 0],
            "neural inverse operator": answers["neural inverse operator", L][i, 0],
        }
        for i in range(min(3, test_samples))
    ]
    names = list(shown[0])
    figure = plot_fields(shown, grid, input=names[0], reference=names[1], prediction=names[2])
    print(f"picture: {save_figure(figure, out / 'thoraxes.png')}")
    counts = [count for count, level in cases if level == 0]
    curves = {name: (counts, [row[f"{count} measurements, noise 0"] for count in counts]) for name, row in rows.items()}
    figure = plot_convergence(curves, xlabel="measurements, a random subset", ylabel="median relative L1 error")
    print(f"picture: {save_figure(figure, out / 'measurements.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L1")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_json(out / "results.json", {"rows": rows, "settings": {"samples": samples, "epochs": epochs}})
    return rows["neural inverse operator"][f"{L} measurements, noise 0"]


def asked(data: FieldDataset, count: int, level: float, n: int | None = None) -> Batch:
    """The first n samples, all by default, with noise and a random subset of `count` measurements each, the same at every call."""
    batch = data.read(range(len(data) if n is None else min(n, len(data))))
    generator = torch.Generator().manual_seed(TEST_SEED)
    mask = random_subsets(batch.batch_size, batch.input.shape[1], generator, at_least=count, at_most=count)
    return Batch(add_noise(batch.input, level, generator), batch.target, mask=mask, weight=batch.weight)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
