"""
A measured scattering target: learned and classical reconstruction
==================================================================

Recovers the permittivity of cylinders from the microwaves that they scatter, lap u + k^2 (1 + q) u = 0 solved for q, at several frequencies:

1. simulate random targets of a foam cylinder with rods inside and outside, seen by 8 or 18 line sources and receivers on a circle of 1.67 m,
2. invert the data linearly (Born's approximation, two regularisations a frequency), and train an ensemble of U-Nets, which read these images
   and write q, on simulated targets with random errors of gain, phase and noise,
3. choose the classical method's prior on simulated targets too: Gauss-Newton steps from the lowest frequency up (frequency hopping),
4. test both on unseen simulated targets, solved on a grid twice as fine,
5. with ``--target FILE``, a file of the Institut Fresnel's database (FoamDielIntTM, FoamDielExtTM or FoamTwinDielTM, ``.exp`` or ``.npz``):
   calibrate it, one complex factor a frequency from the field without target, and reconstruct what was measured,
6. draw truth, learned, classical and the uncertainty side by side.

Where the files are and how to cite them: ``docs/problems/open_scattering.md``. Options: ``python examples/fresnel_scattering.py --help``.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opflow import Grid
from opflow.data import ScatteringMeasurement, read_fresnel
from opflow.files import claim_folder, read_tensors, write_json, write_tensors
from opflow.inversion import GaussianPrior, gauss_newton
from opflow.losses import relative_errors
from opflow.plotting import plot_images, save_figure
from opflow.problems import OpenScattering
from opflow.problems.scattering_map import ScatteringMap
from opflow.problems.scattering_targets import Ellipse, paint
from opflow.solvers.lippmann_schwinger import free_space_green

HALF_WIDTH, RADIUS, LIGHT = 0.085, 1.67, 299_792_458.0  # m, m, m/s
RECEIVERS, BLIND = 72, math.radians(59.5)  # every 5 degrees, and none that near to the source
VIEWS = (8, 18)  # of the targets of the database
DAMPINGS = (1.0, 0.03)  # of the linear images, in units of the mean diagonal of the Gram matrix
GAIN, PHASE, VIEW_ERROR, NOISE = 0.08, 0.08, 0.04, 0.06  # relative errors that training and simulated tests suffer
NINETY = 1.645  # deviations of a normal law to each side hold nine tenths
ON_AXIS = math.radians(5.5)  # receivers that face the source, from which the calibration is read
PRIOR_SCALE, PRIOR_DECAY, PRIOR_MODES = 0.8, 1.0, 14  # of Gauss-Newton, chosen on simulated targets
FOAM, INNER = Ellipse(0, 0, (0.04, 0.04), 0, 0.45), Ellipse(-0.005, 0, (0.0155, 0.0155), 0, 2.0)
OUTER = Ellipse(-0.0555, 0, (0.0155, 0.0155), 0, 2.0)
KNOWN = {"FoamDielInt": [FOAM, INNER], "FoamDielExt": [FOAM, OUTER], "FoamTwinDiel": [FOAM, INNER, OUTER]}


def main(
    target: Path | None = None,
    frequencies: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0),
    size: int = 48,
    scenes: int = 150,
    test_scenes: int = 4,
    newton_scenes: int = 1,
    steps: int = 400,
    members: int = 2,
    batch_size: int = 16,
    width: int = 16,
    name: str = "",
    seed: int = 0,
    data_folder: Path = Path("data"),
    out: Path = Path("runs/fresnel_scattering"),
    overwrite: bool = False,
) -> float:
    """Reconstruct a measured target, or simulated ones; return the learned over the classical relative L2 error of the contrast.

    Args:
        target: a file of the database; without it the simulated test alone is made.
        frequencies: in GHz, lowest first.
        size: cells per axis of the reconstruction, 3.5 mm wide for 48; divisible by 4.
        scenes: simulated training targets for each of the two numbers of views.
        test_scenes: unseen simulated targets for each, solved with half the spacing.
        newton_scenes: how many of these Gauss-Newton is asked for.
        steps: of the training of each member.
        members: of the ensemble.
        batch_size: targets a step.
        width: channels of the finest level of the networks.
        name: FoamDielInt, FoamDielExt or FoamTwinDiel, whose geometry is known; by default what the file says.
        seed: of the weights and of the order of the data; targets and their errors have seeds of their own.
        data_folder: where simulated scans are kept.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    grid = problem(frequencies, VIEWS[0]).grid(size)
    measured = None if target is None else calibrated(read_fresnel(target), frequencies)

    # Simulated targets, their linear images, and errors that a calibration leaves.
    errors = torch.Generator().manual_seed(1)
    images, contrasts, held_out, tests = [], [], [], []
    for views in VIEWS:
        first = 10_000 * views
        q, scan = simulated("train", range(first, first + scenes), views, frequencies, grid, data_folder)
        linear = LinearImages(frequencies, scan, grid)
        images.append(linear(corrupted(scan.waves, errors)))
        contrasts.append(q)
        q, scan = simulated("validation", range(first, first + test_scenes), views, frequencies, grid, data_folder)
        held_out.append((q, linear(corrupted(scan.waves, torch.Generator().manual_seed(2)))))
        q, scan = simulated("test", range(first, first + test_scenes), views, frequencies, grid, data_folder, refine=2)
        tests.append((q, scan._replace(waves=corrupted(scan.waves, errors)), linear))

    ensemble = []
    for member in range(members):
        print(f"member {member + 1} of {members}:")
        start = time.process_time()
        ensemble.append(
            train(torch.cat(images), torch.cat(contrasts)[:, None].float(), steps, batch_size, width, seed + member)
        )
        print(f"  {time.process_time() - start:.0f} s of processor time")
    # An ensemble is too sure of itself; what its deviations have to be multiplied by shows on simulated targets of their own.
    shares = []
    for q, seen in held_out:
        found, deviation = learned(ensemble, seen)
        shares.append(((found - q).abs() / deviation)[q > 0])
    factor = float(torch.cat(shares).quantile(0.9)) / NINETY
    print(
        f"deviations of the ensemble times {factor:.2f}: then nine tenths of the targets' cells lie within {NINETY} of them"
    )
    prior = GaussianPrior.cosine(grid, PRIOR_MODES, PRIOR_SCALE, PRIOR_DECAY)

    # Unseen simulated targets.
    results: dict[str, object] = {}
    coverage: list[float] = []
    both: dict[str, list[float]] = {"learned": [], "classical": []}
    for q, scan, linear in tests:
        found, deviation = learned(ensemble, linear(scan.waves))
        said = _errors(found, q)
        share = float(((found - q).abs() <= NINETY * factor * deviation)[q > 0].double().mean())
        coverage.append(share)
        print(
            f"{len(scan.sources)} views: learned {said.mean():.3f} (worst {said.max():.3f}) on {len(q)} simulated targets; ",
            end="",
        )
        print(f"{share:.0%} of their cells lie in the 90 % intervals")
        for i in range(min(newton_scenes, len(q))):
            field, _ = classical(frequencies, scan._replace(waves=scan.waves[i : i + 1]), grid, prior)
            both["learned"].append(float(said[i]))
            both["classical"].append(float(_errors(field[None], q[i : i + 1])))
            print(f"  target {i}: learned {both['learned'][-1]:.3f}, Gauss-Newton {both['classical'][-1]:.3f}")
    results |= {"simulated": both, "coverage of 90 % intervals": coverage}
    ratio = sum(both["learned"]) / max(sum(both["classical"]), 1e-12)
    shown_scan, truth, known = tests[0][1]._replace(waves=tests[0][1].waves[:1]), tests[0][0][0], "simulated target"

    if measured is not None:
        shown_scan, known = measured, name or read_fresnel(target).name
        shapes = next((shapes for key, shapes in KNOWN.items() if known.lower().startswith(key.lower())), None)
        truth = None if shapes is None else paint(shapes, grid)

    # One reconstruction by both, with times; setting up depends on the positions of sources and receivers only.
    start = time.process_time()
    linear = LinearImages(frequencies, shown_scan, grid)
    set_up, start = time.process_time() - start, time.process_time()
    found, deviation = learned(ensemble, linear(shown_scan.waves))
    seconds, start = {"learned": time.process_time() - start, "set-up of the images": set_up}, time.process_time()
    field, spread = classical(frequencies, shown_scan, grid, prior)
    seconds["classical"] = time.process_time() - start
    answers = {"learned": found[0], "Gauss-Newton": field}
    print(
        f"{known}: learned in {seconds['learned']:.2f} s (set-up {set_up:.1f} s), Gauss-Newton in {seconds['classical']:.1f} s of processor time"
    )
    results |= {"target": known, "seconds": seconds}
    pictures = {"learned": 1 + found[0], "Gauss-Newton": 1 + field}
    if truth is not None:
        error = {which: float(_errors(q[None], truth[None])) for which, q in answers.items()}
        of_permittivity = {which: float((q - truth).norm() / (1 + truth).norm()) for which, q in answers.items()}
        for which in answers:
            print(
                f"  {which:14s} relative L2 of the contrast {error[which]:.3f}, of the permittivity {of_permittivity[which]:.3f}"
            )
        print("  no target: 1 of the contrast")
        results |= {"contrast": error, "permittivity": of_permittivity}
        pictures = {"truth": 1 + truth, **pictures}
        if measured is not None or not both["learned"]:
            ratio = error["learned"] / error["Gauss-Newton"]
    else:
        print(f"  the geometry of {known!r} is not known here; give --name for one of {', '.join(KNOWN)}")
    deviations = {"of the ensemble": factor * deviation[0], "of Gauss-Newton": spread}
    if truth is not None:
        deviations = {"error, learned": (found[0] - truth).abs(), **deviations}
    figure = plot_images({"permittivity": pictures, "deviation": deviations}, grid, title=known)
    print(f"picture: {save_figure(figure, out / 'permittivity.png')}")
    write_json(out / "results.json", results)
    return ratio


class Scan(NamedTuple):
    """Scattered waves (n, frequency, view, receiver), where they were measured (view, receiver), and the directions in radians."""

    waves: Tensor
    mask: Tensor
    sources: Tensor
    receivers: Tensor


def problem(frequencies: tuple[float, ...], views: int) -> OpenScattering:
    """The simulated laboratory, in metres."""
    return OpenScattering(
        wavenumbers=tuple(2e9 * math.pi * f / LIGHT for f in frequencies), incidences=views, incident="line",
        receivers=RECEIVERS, receiver_radius=RADIUS, source_radius=RADIUS, half_width=HALF_WIDTH, law="rods",
    )  # fmt: skip


def simulated(
    split: str, numbers: range, views: int, frequencies: tuple[float, ...], grid: Grid, folder: Path, *, refine: int = 1
) -> tuple[Tensor, Scan]:
    """Contrasts (n, *grid) and their scattered waves, solved with 1/refine of the spacing; waves are kept in the folder."""
    laboratory = problem(frequencies, views)
    sources = laboratory.angles
    receivers = 2 * math.pi * torch.arange(RECEIVERS, dtype=torch.float64) / RECEIVERS
    said = "-".join(f"{f:g}" for f in frequencies)
    path = (
        folder
        / f"fresnel_{split}_{views}_views_{said}_GHz_{refine * grid.shape[0]}_cells_{numbers.start}_{len(numbers)}.safetensors"
    )
    if path.exists():
        waves = torch.view_as_complex(read_tensors(path)["waves"].double())
    else:
        fine, parts = laboratory.grid(tuple(refine * n for n in grid.shape)), []
        F = laboratory.forward(fine, rtol=1e-5)
        for start in range(0, len(numbers), 8):
            q = laboratory.sample(numbers[start : start + 8], fine, split=split)["contrast"]
            parts.append(torch.view_as_complex(F(q).movedim(2, -1).contiguous()))
        waves = torch.cat(parts).unflatten(1, (len(frequencies), views))
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"waves": torch.view_as_real(waves).float()})
    mask = _apart(receivers, sources[:, None]) > BLIND
    return laboratory.sample(numbers, grid, split=split)["contrast"], Scan(waves, mask, sources, receivers)


def _errors(found: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 errors of contrasts (n, *grid): (n,)"""
    return (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two directions, 0 to pi."""
    return ((a - b + math.pi) % (2 * math.pi) - math.pi).abs()


def corrupted(waves: Tensor, generator: torch.Generator) -> Tensor:
    """Errors of gain and phase, one a frequency and one a view, and noise: what calibration and instruments leave."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, frequencies, views, receivers = waves.shape
    gain = torch.exp(torch.complex(GAIN * normal(n, frequencies, 1, 1), PHASE * normal(n, frequencies, 1, 1)))
    wobble = torch.exp(VIEW_ERROR * torch.complex(normal(n, frequencies, views, 1), normal(n, frequencies, views, 1)))
    rms = waves.abs().square().mean((2, 3), keepdim=True).sqrt()
    noise = torch.complex(normal(n, frequencies, views, receivers), normal(n, frequencies, views, receivers)) / 2**0.5
    return gain * wobble * waves + NOISE * rms * noise


class LinearImages:
    """q = B^H (B B^H + damping)^-1 s, B[(v, r), x] = k^2 g(x_r, x) u_v(x) dx: Born's linear inverse, a few regularisations a frequency."""

    def __init__(self, frequencies: tuple[float, ...], scan: Scan, grid: Grid) -> None:
        points, self.grid, self.mask = grid.points().reshape(-1, 2), grid, scan.mask
        self.parts = []
        for f in frequencies:
            k = 2e9 * math.pi * f / LIGHT
            u, g = (free_space_green(_circle(t), points, k) for t in (scan.sources, scan.receivers))
            B = (k**2 * grid.spacing[0] ** 2 * u[:, None] * g)[scan.mask]
            gram = B @ B.mH
            unit = torch.eye(len(B), dtype=B.dtype) * gram.diagonal().real.mean()
            self.parts.append((B.conj(), [torch.linalg.cholesky(gram + damping * unit) for damping in DAMPINGS]))

    def __call__(self, waves: Tensor) -> Tensor:
        """(n, frequency, view, receiver) -> (n, frequency * damping * 2, *grid), float32"""
        images = []
        for i, (adjoint, factors) in enumerate(self.parts):
            s = waves[:, i][:, self.mask]
            for factor in factors:
                q = torch.cholesky_solve(s.T, factor).T @ adjoint
                images += [q.real, q.imag]
        return torch.stack(images, dim=1).unflatten(2, self.grid.shape).float()


def _circle(angles: Tensor) -> Tensor:
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


class ImageNetwork(nn.Module):
    """A U-Net on cells (Ronneberger et al. 2015): q from linear images, each divided by its deviation in training."""

    def __init__(self, deviation: Tensor, width: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            layers = []
            for i in (inputs, outputs):
                layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
            return nn.Sequential(*layers)

        self.register_buffer("deviation", deviation)
        self.down = nn.ModuleList([block(len(deviation), width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.project = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channel, *grid) -> (n, 1, *grid)"""
        x, seen = images / self.deviation.view(-1, 1, 1), []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.avg_pool2d(x, 2))
            seen.append(x)
        for block, beside in zip(self.up, reversed(seen[:-1]), strict=True):
            x = block(torch.cat([beside, nn.functional.interpolate(x, scale_factor=2, mode="bilinear")], dim=1))
        return self.project(x)


def symmetric(fields: Tensor, number: int) -> Tensor:
    """One of the eight symmetries of the square, which the laboratory has too."""
    fields = fields.rot90(number % 4, (-2, -1))
    return fields.mT if number >= 4 else fields


def train(images: Tensor, q: Tensor, steps: int, batch: int, width: int, seed: int) -> ImageNetwork:
    """One member of the ensemble: AdamW with a one-cycle schedule on the mean relative L2 error of the contrast."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ImageNetwork(images.square().mean((0, 2, 3)).sqrt(), width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    variants, n = images.shape[0] // q.shape[0], len(q)
    for step in range(steps):
        chosen = torch.randint(variants * n, (batch,), generator=generator)
        turn = int(torch.randint(8, (1,), generator=generator))
        loss = relative_errors(model(symmetric(images[chosen], turn)), symmetric(q[chosen % n], turn)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % max(1, steps // 5) == 0 or step == steps - 1:
            print(f"  step {step}: relative L2 of the contrast {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def learned(members: list[ImageNetwork], images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (n, *grid) over the members and the symmetries of the square."""
    answers = []
    for number in range(8):
        turned = symmetric(images, number)
        answers += [undone(model(turned), number)[:, 0].double() for model in members]
    stack = torch.stack(answers)
    return stack.mean(0), stack.std(0)


def undone(fields: Tensor, number: int) -> Tensor:
    """The inverse of `symmetric`."""
    return (fields.mT if number >= 4 else fields).rot90(-(number % 4), (-2, -1))


class PermittivityMap:
    """F(1 + q) for priors of a positive coefficient: what scatters is the permittivity less one."""

    def __init__(self, F: ScatteringMap) -> None:
        self.F = F

    def __call__(self, a: Tensor) -> Tensor:
        """(n, *grid) -> (n, L, 2, receivers)"""
        return self.F(a - 1)

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `ScatteringMap.linearise`."""
        return self.F.linearise(a - 1, directions)


def classical(frequencies: tuple[float, ...], scan: Scan, grid: Grid, prior: GaussianPrior) -> tuple[Tensor, Tensor]:
    """Gauss-Newton with a smoothness prior, frequency by frequency: contrast and its deviation (*grid), of the first of the scans."""
    z = torch.zeros(prior.n_modes, dtype=torch.float64)
    waves = torch.view_as_real(scan.waves[0]).movedim(-1, 2)  # (frequency, view, 2, receiver)
    points = grid.points().reshape(-1, 2)
    for last in range(1, len(frequencies) + 1):
        incident, deviation = [], []
        for i, f in enumerate(frequencies[:last]):
            k = 2e9 * math.pi * f / LIGHT
            incident.append((k, free_space_green(_circle(scan.sources), points, k).view(-1, *grid.shape)))
            rms = scan.waves[0, i][scan.mask].abs().square().mean().sqrt() / 2**0.5
            error = math.sqrt(GAIN**2 + PHASE**2 + 2 * VIEW_ERROR**2 + NOISE**2)
            deviation.append((error * rms).expand(len(scan.sources), 1, 1))
        F = PermittivityMap(ScatteringMap(grid, incident, _circle(scan.receivers), rtol=1e-6))
        estimate = gauss_newton(
            F, waves[:last].flatten(0, 1), prior, deviation=torch.cat(deviation),
            mask=scan.mask[None, :, None].expand(last, -1, 2, -1).flatten(0, 1),
            max_steps=6, discrepancy=None, start=z, tolerance=0.1,
        )  # fmt: skip
        z = estimate.coefficients
    return estimate.field - 1, estimate.deviation


def calibrated(measured: ScatteringMeasurement, frequencies: tuple[float, ...]) -> Scan:
    """The scattered waves of sources of unit strength, averaged over the receivers nearest to every fifth degree.

    One complex factor a frequency, fitted to the field without target where the receiver faces the source: nothing of the target is used.
    """
    places = [int((measured.frequencies / 1e9 - f).abs().argmin()) for f in frequencies]
    if any(abs(float(measured.frequencies[i]) / 1e9 - f) > 1e-3 for i, f in zip(places, frequencies, strict=True)):
        raise ValueError(f"the file has {(measured.frequencies / 1e9).tolist()} GHz but {frequencies} are needed.")
    facing = _apart(measured.receiver_angles, measured.source_angles[:, None] + math.pi) < ON_AXIS
    receivers = 2 * math.pi * torch.arange(RECEIVERS, dtype=torch.float64) / RECEIVERS
    near = (_apart(measured.receiver_angles[:, None], receivers) < math.pi / RECEIVERS).to(torch.complex128)
    waves, masks = [], []
    for i in places:
        k, seen = float(measured.wavenumbers[i]), measured.mask[i]
        free = free_space_green(_circle(measured.source_angles), _circle(measured.receiver_angles), k)
        incident, on_axis = measured.incident[i].conj(), seen & facing
        factor = torch.linalg.vecdot(free[on_axis], incident[on_axis]) / free[on_axis].abs().square().sum()
        counts = seen.to(torch.complex128) @ near
        waves.append(measured.scattered[i] / factor @ near / counts.real.clamp(min=1))
        masks.append(counts.real > 0)
    return Scan(torch.stack(waves)[None], torch.stack(masks).all(0), measured.source_angles, receivers)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
