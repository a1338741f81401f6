"""
Impedance tomography of a real water tank
=========================================

Finds what lies in a tank of water from voltages between electrodes on its wall, div(sigma grad u) = 0 solved for sigma:

1. calibrate the model on a measurement of the water alone: conductivity, contact impedances, offsets of the voltmeters,
2. simulate tanks with random inclusions, and disturb their voltages as far as the model is known to be wrong,
3. train a small U-Net to read the classes water, resistive, conductive from two linearised images of unlike regularisation,
   and a neural inverse operator to read them from the voltages, as a correction of kernel ridge,
4. test both beside the classical answer, the linearised image cut by Otsu's thresholds, on simulated tanks of a finer mesh,
5. meet the measured tanks, if a folder of them is given, with a map of the uncertainty.

Nothing measured is trained on but the tank without inclusions. The data are those of the Kuopio Tomography Challenge 2023 (Zenodo); without
``--tank`` a simulated round tank takes their place. Run ``python examples/tank_impedance_tomography.py --help`` for the options.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow import Grid
from opflow.data import TankMeasurement, read_ktc
from opflow.files import claim_folder, write_bytes
from opflow.inversion import LinearisedReconstruction, segment_conductivity, smoothness_penalty
from opflow.losses import challenge_score, dice
from opflow.models import NIO, KernelRidge
from opflow.plotting import plot_images, save_figure
from opflow.problems import ElectrodeTomography, calibrate

RADIUS = 0.115  # of the challenge's tank, m
PICTURE = 256  # pixels of an answer, as the challenge asks for
# What is wrong between model and tank, of which every training tank draws its own: factor of all differences, gain of every current and of
# every voltmeter, drift of the water, offsets and noise as shares of the voltages' root mean square.
FACTOR, GAIN, DRIFT, OFFSET, NOISE = (0.9, 1.6), 0.06, 0.03, 0.005, 0.005
CLASSES = {"water": 0, "resistive": 1, "conductive": 2}


def main(
    tank: Path | None = None,
    samples: int = 2000,
    held_out: int = 40,
    size: int = 48,
    levels: tuple[float, ...] = (0.003, 0.1),
    classical_levels: tuple[float, ...] = (0.3, 0.1, 0.03),
    smoothness: float = 2.0,
    classical_smoothness: float = 10.0,
    hidden_channels: int = 32,
    steps: int = 600,
    nio_steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    kernel_samples: int = 1000,
    copies: int = 16,
    seed: int = 0,
    out: Path = Path("runs/tank_impedance_tomography"),
    overwrite: bool = False,
) -> float:
    """Train on simulated tanks; return the U-Net's mean challenge score on measured tanks, or on unseen simulated ones.

    Args:
        tank: the folder of measured files: a reference, whose name holds "ref", and targets, each with its truth inside or, for data1.mat, in
            true1.mat beside it.
        samples: simulated tanks to train on.
        held_out: of validation, and of the test.
        size: pixels an axis of the images between.
        levels: of the two linearised images that the U-Net reads.
        classical_levels: of which the classical answer takes the best on validation.
        smoothness, classical_smoothness: of the linearised images that the U-Net reads and of those that are cut, in pixels of 1/48 of the tank.
        hidden_channels: of the U-Net's finest level.
        steps, nio_steps: of training.
        batch_size: tanks a step.
        learning_rate: the highest, of both networks.
        kernel_samples: of the simulated tanks, for kernel ridge.
        copies: disturbed copies of a measurement, for the uncertainty.
        seed: of weights, order and disturbances.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    # 1. The tank without inclusions.
    reference, targets = read_folder(tank) if tank else (simulated_reference(), {})
    problem = as_problem(reference)
    calibration = calibrate(problem, reference.voltages, reference.mask)
    problem = calibration.problem
    print(f"calibration: {calibration.message}; water {problem.background:.3g}")
    empty = reference.voltages.flatten()
    seen = torch.stack([reference.mask, *(target.mask for target in targets.values())]).all(0).flatten()
    rms = float(empty[seen].square().mean().sqrt())
    deviation = torch.where(seen, 0.01 * empty.abs() + 0.01 * rms, torch.inf)
    extent = problem.mesh.points.abs().max().item()
    picture = Grid((PICTURE, PICTURE), (-extent, extent), layout="cells")
    pixels = picture.with_shape(size)
    in_tank = picture.points().norm(dim=-1) <= extent

    # The linear step: what the voltages say about every pixel, to first order about the water.
    inside, shares = problem.indicators(pixels)
    water = torch.full((len(problem.mesh.cells),), problem.background, dtype=torch.float64)
    _, jacobian = problem.forward().linearise(water, problem.background * shares)

    def linearised(some: tuple[float, ...], scale: float) -> LinearisedReconstruction:
        penalty = smoothness_penalty(inside, scale * size / 48)
        J = torch.where(seen[:, None], jacobian.flatten(0, 2), 0.0)
        return LinearisedReconstruction(J, deviation, some, penalty=penalty, nuisance=empty[None]).to(torch.float32)

    step, classical = linearised(levels, smoothness), linearised(classical_levels, classical_smoothness)

    def images(differences: Tensor, step: LinearisedReconstruction) -> Tensor:
        """(n, voltages) -> (n, levels, size, size)"""
        flat = differences.new_zeros(len(differences), len(step.levels), size * size, dtype=torch.float32)
        flat[..., inside.flatten()] = step(differences)
        return flat.unflatten(-1, (size, size))

    # 2. Simulated tanks; those of validation and test on a finer mesh, and disturbed too.
    def simulate(of: ElectrodeTomography, n: int, split: str, grid: Grid) -> tuple[Tensor, Tensor]:
        voltages, labels, forward = [], [], of.forward()
        base = forward(torch.full((1, len(of.mesh.cells)), of.background, dtype=torch.float64))
        for block in torch.arange(n).split(50):
            sigma = of.sample(block.tolist(), split=split)["conductivity"]
            voltages.append((forward(sigma) - base).flatten(1))
            on_pixels = of.sample(block.tolist(), grid, split=split)["conductivity"] / of.background
            labels.append((on_pixels < 0.9).byte() + 2 * (on_pixels > 1.1).byte())
        return torch.cat(voltages), torch.cat(labels)

    def disturbed(differences: Tensor) -> Tensor:
        L, K = reference.voltages.shape
        n, d = len(differences), differences.unflatten(1, (L, K))

        def normal(*shape: int) -> Tensor:
            return torch.randn(n, *shape, generator=generator, dtype=d.dtype)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, 1, 1, generator=generator, dtype=d.dtype)

        d = d * uniform(*FACTOR) * (1 + GAIN * normal(L, 1)) * (1 + GAIN * normal(1, K))
        d = d + rms * (uniform(0, OFFSET) * normal(1, K) + uniform(0, NOISE) * normal(L, K))
        return (d + DRIFT * normal(1, 1) * reference.voltages.nan_to_num()).flatten(1)

    clock = time.process_time()
    training, labels = simulate(problem, samples, "train", pixels.with_shape(2 * size))
    fine = problem.refined()
    validation, test = (simulate(fine, held_out, split, picture) for split in ("validation", "test"))
    validation, test = ((disturbed(d), truth) for d, truth in (validation, test))
    print(f"{samples} + 2 x {held_out} tanks in {time.process_time() - clock:.0f} s")
    one_hot = torch.stack([F.avg_pool2d((labels == kind).float(), 2) for kind in CLASSES.values()], 1)

    # 3. The networks.
    unet = SmallUNet(len(levels), hidden_channels)
    spread = images(disturbed(training[:300]), step).square().mean((0, 2, 3), keepdim=True).sqrt()

    def read(differences: Tensor) -> Tensor:
        return images(differences, step) / spread

    def unet_loss(differences: Tensor, target: Tensor, at: Tensor) -> Tensor:
        x, k = read(differences), int(torch.randint(8, (), generator=generator))
        x, target = (turned(field, k) for field in (x, target))  # a turned or mirrored tank is a tank
        logits = unet(x)
        p = logits.softmax(1)
        overlap = (2 * (p * target).sum((2, 3)) + 5) / ((p + target).sum((2, 3)) + 5)
        return -(target * logits.log_softmax(1)).sum(1).mean() + 0.5 * (1 - overlap[:, 1:].mean())

    distinct = first_of_each(problem.currents.T)

    def measurements(differences: Tensor) -> Tensor:
        """Weighted voltages without the drift, (n, L, 1, K), of distinct currents; a logarithm, as they span decades."""
        y = step.prepared(differences).view(len(differences), *reference.voltages.shape)[:, distinct, None].float()
        return y.sign() * y.abs().log1p()

    # From the voltages alone: kernel ridge, and a neural inverse operator that corrects it. -1 is resistive, 1 conductive.
    fitted = min(samples, kernel_samples)
    parts = min(100, fitted // 2)
    clock = time.process_time()
    kernel = KernelRidge.build(
        len(distinct),
        problem.pattern.shape[1:],
        1,
        pixels,
        components=parts,
        targets=min(60, parts),
        positive=False,
        noise=0.05,
    )
    kernel.fit(measurements(disturbed(training[:fitted])), signed(one_hot[:fitted]))
    seconds = {"kernel ridge": round(time.process_time() - clock, 1)}
    nio = NIO.build(
        problem.pattern.shape[1:], 1, pixels, 16, encoder="perceptron", positive=False, n_modes=16,
        descriptors=problem.descriptors[distinct].tolist(), reconstruction=kernel, latent=None,
        pooling=("mean", "deviation", "attention"), linear_paths=False, difference=False,
    )  # fmt: skip
    nio.scale.fit(measurements(disturbed(training[:300])), signed(one_hot[:300]))

    def nio_loss(differences: Tensor, target: Tensor, at: Tensor) -> Tensor:
        own = torch.where(at < fitted, at, -1)  # kernel ridge must not know the answer already
        return (nio(measurements(differences), held_out=own) - signed(target)).square().mean()

    for name, model, loss, n in (("U-Net", unet, unet_loss, steps), ("NIO", nio, nio_loss, nio_steps)):
        clock = time.process_time()
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, max(n, 2), pct_start=0.1)
        mean = 0.0
        for i in range(n):
            at = torch.randint(samples, (batch_size,), generator=generator)
            value = loss(disturbed(training[at]), one_hot[at], at)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean = value.item() if i == 0 else 0.98 * mean + 0.02 * value.item()
            if (i + 1) % max(1, n // 10) == 0:
                print(f"{name}: step {i + 1} of {n}, loss {mean:.4f}, {time.process_time() - clock:.0f} s")
        seconds[name] = round(time.process_time() - clock, 1)
        model.eval()
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in (("U-Net", unet), ("NIO", nio))}

    # 4. Answers, (n, 256, 256); the classical level and NIO's threshold are those that do best on validation.
    @torch.no_grad()
    def probabilities(differences: Tensor) -> Tensor:
        """(n, 3, 256, 256): the mean over the eight symmetries of the tank."""
        x = read(differences)
        p = torch.stack([turned(unet(turned(x, k)).softmax(1), k, back=True) for k in range(8)]).mean(0)
        return enlarged(p) * in_tank + F.one_hot(torch.tensor(0), 3).view(3, 1, 1) * ~in_tank

    @torch.no_grad()
    def cut(model: nn.Module, differences: Tensor, threshold: float) -> Tensor:
        s = enlarged(model(measurements(differences)))[:, 0] * in_tank
        return (s < -threshold).byte() + 2 * (s > threshold).byte()

    def by_otsu(differences: Tensor, j: int) -> Tensor:
        return torch.stack([segment_conductivity(im, in_tank) for im in enlarged(images(differences, classical))[:, j]])

    def scores(answer: Tensor, truth: Tensor) -> tuple[float, float]:
        return float(challenge_score(answer, truth).mean()), float(dice(answer, truth).mean())

    few = slice(0, 30)
    by_level = [scores(by_otsu(validation[0][few], j), validation[1][few])[0] for j in range(len(classical_levels))]
    best = max(range(len(by_level)), key=by_level.__getitem__)
    thresholds = {
        name: max(
            (0.2, 0.3, 0.4, 0.5),
            key=lambda t, model=model: scores(cut(model, validation[0][few], t), validation[1][few])[0],
        )
        for name, model in (("NIO", nio), ("kernel ridge", kernel))
    }
    print(f"on validation: Otsu at level {classical_levels[best]:g}, cuts at {thresholds}")

    def answers(differences: Tensor) -> dict[str, Tensor]:
        return {
            "U-Net": probabilities(differences).argmax(1),
            "NIO": cut(nio, differences, thresholds["NIO"]),
            "kernel ridge": cut(kernel, differences, thresholds["kernel ridge"]),
            "linearised + Otsu": by_otsu(differences, best),
            "empty": torch.zeros(len(differences), PICTURE, PICTURE),
        }

    results: dict[str, dict[str, list[float]]] = {}

    def report(where: str, found: dict[str, Tensor], truth: Tensor) -> None:
        results[where] = {name: [round(value, 4) for value in scores(answer, truth)] for name, answer in found.items()}
        for name, (score, overlap) in results[where].items():
            print(f"{where:22} {name:18} score {score:.3f}   Dice {overlap:.3f}")

    report(f"{held_out} test tanks", answers(test[0]), test[1])
    sure, right = reliability(probabilities(test[0]), test[1], in_tank)
    print(f"U-Net, pixels that are not said to be water: {sure:.1%} probable on average, {right:.1%} right")

    # 5. The measured tanks, or two of the test.
    rows: dict[str, dict[str, Tensor]] = {}
    shown = {name: ((t.voltages.flatten() - empty)[None], t.truth) for name, t in targets.items()} or {
        f"simulated tank {i}": (test[0][[i]], test[1][i]) for i in range(min(2, held_out))
    }
    for name, (differences, truth) in shown.items():
        found = answers(differences)
        if truth is not None and targets:
            report(name, found, truth[None])
        noise = rms * NOISE * torch.randn(copies, differences.shape[1], generator=generator, dtype=differences.dtype)
        gains = 1 + GAIN * torch.randn(
            copies, *reference.voltages.shape[:1], 1, generator=generator, dtype=differences.dtype
        )
        several = (differences.unflatten(1, reference.voltages.shape) * gains).flatten(1) + noise
        several_p = probabilities(several)
        p = several_p.mean(0)
        rows[name] = {
            "truth": torch.zeros(PICTURE, PICTURE) if truth is None else truth,
            **{method: found[method][0] for method in ("U-Net", "NIO", "kernel ridge", "linearised + Otsu")},
        }
        rows[f"{name}, probability"] = {
            "resistive": p[1],
            "conductive": p[2],
            "not water": 1 - p[0],
            "not the answer": 1 - p.amax(0),
            "deviation": several_p.std(0).sum(0) / 2,
        }
    print(f"picture: {save_figure(plot_images(rows, picture), out / 'tanks.png')}")
    settings = {
        "samples": samples, "size": size, "levels": levels, "classical_level": classical_levels[best], "smoothness": smoothness, "classical_smoothness": classical_smoothness,
        "hidden_channels": hidden_channels, "steps": steps, "nio_steps": nio_steps, "batch_size": batch_size,
        "learning_rate": learning_rate, "seed": seed, "kernel_samples": kernel_samples, "thresholds": thresholds,
    }  # fmt: skip
    record = {
        "calibration_misfit": calibration.misfit, "settings": settings, "parameters": sizes, "training_cpu_seconds": seconds,
        "score_and_dice": results, "probability_and_right": [sure, right],
    }  # fmt: skip
    write_bytes(out / "results.json", json.dumps(record, indent=1).encode())
    judged = [results[name]["U-Net"][0] for name in targets if name in results] or [
        results[f"{held_out} test tanks"]["U-Net"][0]
    ]
    return sum(judged) / len(judged)


class SmallUNet(nn.Module):
    """Images (n, levels, size, size) -> logits (n, 3, size, size): a U-Net of three levels on squares of 2 x 2 pixels."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 3 * channels)
        self.down = nn.ModuleList([_two(4 * levels, widths[0]), _two(widths[0], widths[1]), _two(widths[1], widths[2])])
        self.up = nn.ModuleList([_two(widths[1] + widths[2], widths[1]), _two(widths[0] + widths[1], widths[0])])
        self.last = nn.Conv2d(channels, 4 * len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """The classes' logits."""
        v, seen = F.pixel_unshuffle(x, 2), []
        for i, block in enumerate(self.down):
            v = block(F.avg_pool2d(v, 2) if i else v)
            seen.append(v)
        for block, beside in zip(self.up, seen[-2::-1], strict=True):
            v = block(torch.cat([F.interpolate(v, beside.shape[2:], mode="bilinear"), beside], 1))
        return F.pixel_shuffle(self.last(v), 2)


def _two(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions of 3 x 3 pixels."""
    return nn.Sequential(*[
        layer for n in (inputs, outputs) for layer in (nn.Conv2d(n, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU())
    ])  # fmt: skip


def turned(field: Tensor, k: int, *, back: bool = False) -> Tensor:
    """(..., size, size) by symmetry k of the square, 0 to 7, or by its inverse."""
    if back:
        return (field.flip(-1) if k >= 4 else field).rot90(-k, (-2, -1))
    field = field.rot90(k, (-2, -1))
    return field.flip(-1) if k >= 4 else field


def signed(one_hot: Tensor) -> Tensor:
    """-1 resistive, 1 conductive: (n, 3, ...) -> (n, 1, ...)"""
    return one_hot[:, 2:3] - one_hot[:, 1:2]


def enlarged(fields: Tensor) -> Tensor:
    """(n, channel, size, size) -> (n, channel, 256, 256)"""
    return F.interpolate(fields, size=(PICTURE, PICTURE), mode="bilinear", align_corners=False)


def reliability(p: Tensor, truth: Tensor, in_tank: Tensor) -> tuple[float, float]:
    """The mean probability of the answer, and the share that is right, over the pixels that are said to be no water."""
    probability, answer = p.max(1)
    chosen = (answer > 0) & in_tank
    count = max(1, int(chosen.sum()))
    return float((probability * chosen).sum()) / count, float(((answer == truth) & chosen).sum()) / count


def first_of_each(rows: Tensor) -> Tensor:
    """The first of equal rows: a current that is driven twice tells a network nothing new."""
    return torch.tensor([i for i, row in enumerate(rows) if not any(torch.allclose(row, other) for other in rows[:i])])


def as_problem(reference: TankMeasurement) -> ElectrodeTomography:
    """The tank's own mesh, or one of a disc with the first electrode at the top."""
    if reference.mesh is not None and reference.electrodes is not None:
        return ElectrodeTomography(reference.mesh, reference.electrodes, 1e-4, reference.currents, reference.pattern)
    disc = ElectrodeTomography.disc(len(reference.currents), radius=RADIUS, start=torch.pi / 2)
    return replace(disc, currents=reference.currents, pattern=reference.pattern)


def simulated_reference() -> TankMeasurement:
    """A tank of 16 electrodes without inclusions, with contacts that nobody told the calibration."""
    disc = ElectrodeTomography.disc(16, radius=RADIUS, background=0.75, start=torch.pi / 2)
    contacts = 4e-4 * torch.exp(0.3 * torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    true = replace(disc, impedances=contacts).refined()
    water = {"conductivity": torch.full((1, len(true.mesh.cells)), true.background, dtype=torch.float64)}
    voltages = true.observe(water, noise=0.002)["measurements"][0, :, 0]
    mask = torch.ones_like(voltages, dtype=torch.bool)
    return TankMeasurement(disc.currents, disc.pattern, voltages, mask, None, disc.mesh, tuple(disc.electrodes))


def read_folder(folder: Path) -> tuple[TankMeasurement, dict[str, TankMeasurement]]:
    """The reference and the targets of a folder; a measurement that comes twice is taken once, with its truth."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".mat"))
    references = [path for path in files if "ref" in path.stem]
    if len(references) != 1:
        raise ValueError(
            f"{folder} has {len(references)} files with 'ref' in their name; one measurement without inclusions is expected."
        )
    reference, targets = read_ktc(references[0]), {}
    for path in sorted(files, key=lambda path: path.suffix == ".mat"):
        if path == references[0] or path.stem.startswith(("true", "Mesh")):
            continue
        truth = path.with_name(path.name.replace("data", "true"))
        target = read_ktc(path, truth=truth if truth != path and truth.exists() else None)
        if target.voltages.shape != reference.voltages.shape or not torch.allclose(
            target.currents, reference.currents, rtol=1e-3
        ):
            raise ValueError(f"{path} was measured with other currents than {references[0]}; give targets of one tank.")
        if not any(torch.equal(target.voltages.nan_to_num(), one.voltages.nan_to_num()) for one in targets.values()):
            targets[path.stem] = target
    return reference, targets


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
