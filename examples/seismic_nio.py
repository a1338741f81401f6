"""
Seismic inversion with a neural inverse operator
================================================

Recovers the speed of sound in the ground from shots that are heard at its surface, u_tt / c^2 - lap u = s (acoustic full-waveform
inversion; the set-up of OpenFWI, Deng et al. 2022, at half its resolution):

1. generate grounds of curved layers and their records; those of validation and test come from a solve twice as fine,
2. train a neural inverse operator on the records of all shots or some of them, with noise of a random level,
3. test it on unseen grounds with all shots and with one, and with noise, beside kernel ridge regression, classical inversion by L-BFGS
   through the wave equation, and the constant answer,
4. draw speed, reconstruction and error.

The grounds are like those of OpenFWI's CurveVel, and are not these data.

Run ``python examples/seismic_nio.py --help`` for the options.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from opflow import Batch
from opflow.data import Batches, FieldDataset, generate, random_subsets
from opflow.files import claim_folder, write_json
from opflow.losses import DataMisfit, relative_l1, relative_l1_errors
from opflow.models import NIO, KernelRidge
from opflow.pde import add_noise
from opflow.plotting import plot_convergence, plot_images, save_figure
from opflow.problems import AcousticWaveform
from opflow.training import evaluate, fit, save_checkpoint

TEST_SEED = 1


def main(
    size: int = 35,
    spacing: float = 20.0,
    n_times: int = 500,
    samples: int = 1024,
    test_samples: int = 64,
    waveform_samples: int = 4,
    waveform_steps: int = 40,
    epochs: int = 24,
    batch_size: int = 16,
    hidden_channels: int = 24,
    learning_rate: float = 1e-3,
    noise: float = 0.05,
    ridge_first: bool = True,
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/seismic_nio"),
    overwrite: bool = False,
) -> float:
    """Train seismic inversion in curved layers; return the median relative L1 error of unseen grounds, all shots, no noise.

    Args:
        size: nodes per axis.
        spacing: of the nodes, in metres.
        n_times: time steps of 2 ms.
        samples: training samples; a thirty-second as many are drawn for validation.
        test_samples: unseen grounds.
        waveform_samples: how many of them classical inversion is asked for.
        waveform_steps: its iterations.
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
    problem = AcousticWaveform(
        spacing=spacing, time_step=2e-3, n_times=n_times, record_every=4, n_shots=3, frequency=8.0
    )
    grid = problem.usual_grid((size, size))

    # Data: shots and receivers are at the same places, whatever the solve.
    def measured(split: str, n: int, refine: int) -> FieldDataset:
        folder = data_folder / f"seismic_{size}_{spacing:g}_{n_times}_{n}"
        source = generate(
            problem, grid, folder, n, split=split, refine=refine, resume=True, block=8, samples_per_file=64
        )
        return FieldDataset(source).in_memory()

    start = time.process_time()
    training = measured("train", samples, 1)
    validation, test = measured("validation", max(samples // 32, 2), 2), measured("test", test_samples, 2)
    print(f"data in {time.process_time() - start:.0f} s of processor time")
    everything = training.read(range(len(training)))
    L, channels, *sensors = everything.input.shape[1:]

    # Models: kernel ridge is fitted in one go; it chooses its kernel by leave-one-out errors.
    ridge = KernelRidge.build(
        L, sensors, channels, grid, components=min(200, samples // 2), targets=min(80, samples // 2)
    )
    ridge.fit(add_noise(everything.input, 0.01, torch.Generator().manual_seed(seed)), everything.target)
    model = NIO.build(
        sensors, channels, grid, hidden_channels, encoder="image", descriptors=problem.descriptors.float(),
        reconstruction=ridge if ridge_first else None,
    )  # fmt: skip
    model.scale.fit(everything.input, everything.target)
    print(f"model: neural inverse operator with {sum(p.numel() for p in model.parameters()):,} parameters")

    # Training: every sample has noise of a level and a subset of shots of its own.
    def corrupted(batch: Batch, generator: torch.Generator) -> Batch:
        n = batch.batch_size
        level = noise * torch.rand(n, generator=generator).square().view(n, 1, 1, 1, 1)
        noisy = batch.input + level * (add_noise(batch.input, 1.0, generator) - batch.input)
        parameters = {"held_out": batch.index} if ridge_first else None
        return Batch(noisy, batch.target, None, parameters, random_subsets(n, L, generator), batch.weight, batch.index)

    batches = Batches(training, batch_size, shuffle=True, drop_last=True, seed=seed, transform=corrupted)
    held_out = [asked(validation, count, 0.01) for count in (L, 1)]
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

    # The classical method: the wave equation itself, from the mean ground or from what the network says, no prior but where it starts
    # and how far it goes.
    forward, mean = problem.forward(grid), everything.target.mean(0, keepdim=True)
    slow, fast = problem.speeds

    def waveform_inversion(batch: Batch, start: Tensor) -> Tensor:
        data, kept = batch.input, batch.mask[..., None, None, None]
        share = ((start[:, 0] - slow) / (fast - slow)).clamp(0.01, 0.99).logit().requires_grad_()

        def ground() -> Tensor:
            return slow + (fast - slow) * share.sigmoid()

        optimizer = torch.optim.LBFGS([share], max_iter=waveform_steps, history_size=10, line_search_fn="strong_wolfe")

        def misfit() -> Tensor:
            optimizer.zero_grad()
            loss = ((forward(ground()) - data) * kept).square().sum() / (data * kept).square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(misfit)
        return ground().detach()[:, None]

    def one_by_one(batch: Batch, start: Tensor) -> Tensor:
        found = [
            waveform_inversion(Batch(batch.input[i : i + 1], mask=batch.mask[i : i + 1]), start[i : i + 1])
            for i in range(batch.batch_size)
        ]
        return torch.cat(found)

    constant = everything.target.median(dim=0, keepdim=True).values
    methods: dict[str, Callable[[Batch], Tensor]] = {
        "constant answer": lambda batch: constant.expand_as(batch.target),
        "kernel ridge": lambda batch: ridge(batch.input, mask=batch.mask),
        "neural inverse operator": lambda batch: model(batch.input, mask=batch.mask),
        "L-BFGS from the mean": lambda batch: one_by_one(batch, mean.expand_as(batch.target)),
        "L-BFGS from the network": lambda batch: one_by_one(batch, model(batch.input, mask=batch.mask)),
    }

    # Test, asked once: medians over samples of the relative L1 error, of all methods on the grounds that L-BFGS is asked for, too.
    cases = [(L, 0.0), (L, 0.01), (L, 0.05), (1, 0.0)]
    rows: dict[str, dict[str, float]] = {}
    answers: dict[str, Tensor] = {}
    for name, method in methods.items():
        classical = name.startswith("L-BFGS")
        rows[name], start = {}, time.process_time()
        asked_for = cases[:2] if classical else cases
        for count, level in asked_for:
            batch = asked(test, count, level, waveform_samples if classical else None)
            with torch.no_grad():
                found = method(batch)
            errors = relative_l1_errors(found, batch.target, batch.weight)
            rows[name][f"{count} shots, noise {level:g}"] = float(errors.median())
            rows[name][f"{count} shots, noise {level:g}, few"] = float(errors[:waveform_samples].median())
            answers[name] = found if (count, level) == cases[0] else answers[name]
        seconds = (time.process_time() - start) / (len(asked_for) * len(found))
        rows[name]["seconds a sample"] = seconds
        print(f"{name:25s}" + "".join(f"{v:9.2%}" for v in list(rows[name].values())[:-1]) + f"{seconds:9.3f} s")
    print("columns: " + "; ".join(f"{c} shots, noise {n:g}: all, first {waveform_samples}" for c, n in cases))

    pictures: dict[str, dict[str, Tensor]] = {}
    for i in range(min(3, waveform_samples, test_samples)):
        truth = test.read([i]).target[0, 0]
        found = {"truth": truth} | {name: answer[min(i, len(answer) - 1), 0] for name, answer in answers.items()}
        pictures[f"speed {i + 1}, m/s"] = {name: upright(field) for name, field in found.items()}
        pictures[f"error {i + 1}, m/s"] = {
            f"{name}\n{float(relative_l1(field[None, None], truth[None, None])):.1%}": upright(field - truth)
            for name, field in found.items()
        }
    errors_of = [name for name in pictures if name.startswith("error")]
    figure = plot_images(pictures, grid, signed=errors_of, title="depth downwards; relative L1 errors")
    print(f"picture: {save_figure(figure, out / 'grounds.png')}")
    figure = plot_convergence({"validation": tuple(zip(*history, strict=True))}, xlabel="epoch", ylabel="relative L1")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_json(out / "results.json", {"rows": rows, "settings": {"samples": samples, "epochs": epochs, "size": size}})
    return rows["neural inverse operator"][f"{L} shots, noise 0"]


def upright(field: Tensor) -> Tensor:
    """(z, x) -> (x, upwards), as pictures of the ground are drawn."""
    return field.T.flip(1)


def asked(data: FieldDataset, count: int, level: float, n: int | None = None) -> Batch:
    """The first n samples, all by default, with noise and a random subset of `count` shots each, the same at every call."""
    batch = data.read(range(len(data) if n is None else min(n, len(data))))
    generator = torch.Generator().manual_seed(TEST_SEED)
    mask = random_subsets(batch.batch_size, batch.input.shape[1], generator, at_least=count, at_most=count)
    return Batch(add_noise(batch.input, level, generator), batch.target, mask=mask, weight=batch.weight)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
