"""Acoustic full-waveform inversion: the speed of sound in the ground from shots that are heard at its surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.acoustic_stepper import AcousticStepper, Shots, ricker
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.problems.constants import check_positive

MEDIA = ("curved-layers", "style")
PRECISIONS = {"single": torch.float32, "double": torch.float64}
SHOTS_AT_ONCE = 24  # more leave the cache
MOST_LAYERS = 8


@dataclass(frozen=True)
class AcousticWaveform:
    """u_tt / c^2 - lap u = ricker(t) delta(x - x_s) in the ground, from rest: the set-up of Deng et al. (2022), "OpenFWI".

    c is the speed of sound in m/s, at nodes whose first axis is the depth z and whose second the offset x, in metres. Each of L = n_shots
    experiments fires one source at `depth` and records u there at receivers, at t = 0, record_every time_step, ... Sources and receivers
    are spread evenly over the width, at multiples of `spacing`. All four sides absorb, the surface too.

    - medium "curved-layers": two to five layers with sinusoidal interfaces, faster the deeper.
    - medium "style": speeds[0] + (speeds[1] - speeds[0]) Phi(g / std(g)), g ~ N(0, (-Laplacian + tau^2)^(-alpha)), Phi the normal distribution.

    They are made like the families of OpenFWI that they are named after; they are not these data.

    Eighth order in space, second in time: see `AcousticStepper`. On a grid finer than `spacing`, steps are as much shorter, the
    absorbing layer is as thick in metres, and sources are those of the coarse grid.

    Attributes:
        speeds: the slowest and the fastest of the media.
        time_step: in seconds, on a grid of `spacing`. Speeds that are not stable with it are refused.
        n_times: steps of a record, the first at t = 0.
        record_every: keep every so many-th of them.
        n_receivers: by default one at every multiple of `spacing`.
        frequency: of the Ricker wavelet, in hertz. It peaks at 1.5 / frequency.
        absorbing_cells: of the layer, on a grid of `spacing`.
        precision: of `observe`, "single" or "double". `forward` has that of its argument.

    >>> problem, grid = AcousticWaveform(spacing=20.0, time_step=2e-3, n_times=100, n_receivers=12), Grid((24, 24), (0.0, 460.0))
    >>> problem.observe(problem.sample(2, grid), grid=grid)["measurements"].shape
    torch.Size([2, 5, 1, 100, 12])
    """

    medium: str = "curved-layers"
    spacing: float = 10.0
    time_step: float = 1e-3
    n_times: int = 1000
    record_every: int = 1
    frequency: float = 15.0
    n_shots: int = 5
    n_receivers: int | None = None
    depth: float = 0.0
    speeds: tuple[float, float] = (1500.0, 4500.0)
    n_layers: tuple[int, int] = (2, 5)
    alpha: float = 3.0
    tau: float = 10.0
    cutoff: int = DEFAULT_CUTOFF
    absorbing_cells: int = 12
    precision: str = "single"

    coordinates: ClassVar[tuple[str, ...]] = ("z", "x")
    inputs: ClassVar[tuple[str, ...]] = ("wave_speed",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        check_positive(spacing=self.spacing, time_step=self.time_step, frequency=self.frequency)
        for name, value, choices in (("medium", self.medium, MEDIA), ("precision", self.precision, PRECISIONS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        for name in ("n_times", "record_every", "n_shots", "n_receivers", "absorbing_cells"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; a positive whole number is expected.")
        if len(self.speeds) != 2 or not 0 < self.speeds[0] < self.speeds[1] < float("inf"):
            raise ValueError(f"speeds are {self.speeds}; two positive numbers in increasing order are expected.")
        if len(self.n_layers) != 2 or not 1 <= self.n_layers[0] <= self.n_layers[1] <= MOST_LAYERS:
            raise ValueError(
                f"n_layers is {self.n_layers}; two numbers in increasing order from 1 to {MOST_LAYERS} are expected."
            )
        if self.depth < 0 or not _whole(self.depth / self.spacing):
            raise ValueError(f"depth is {self.depth}; a multiple of spacing={self.spacing} from 0 on is expected.")

    @property
    def descriptors(self) -> Tensor:
        """What says which shot l is, (L, 1): where it is fired, as a share of the width."""
        return _shares(self.n_shots)[:, None]

    def usual_grid(self, shape: Sequence[int]) -> Grid:
        """Nodes at `spacing`."""
        return Grid(shape, [(0.0, (n - 1) * self.spacing) for n in shape], axes=self.coordinates)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random media {"wave_speed": (n, *grid)} in m/s, float64; sample i is one function of the place on every grid of a domain."""
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        slow, fast = self.speeds
        if self.medium == "style":
            law = CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff)
            g = law.evaluate(law.coefficients(generators, 2), grid) / law.standard_deviation(2)
            return {"wave_speed": slow + (fast - slow) * torch.special.ndtr(g)}
        media = [self._curved_layers(generator, grid) for generator in generators]
        return {"wave_speed": torch.stack(media) if media else torch.zeros(0, *grid.shape, dtype=torch.float64)}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Records: {"measurements": (n, L, 1, times, receivers), "mask": (n, L), all True}, float64.

        Args:
            inputs: "wave_speed" (n, *grid), in m/s.
            sensors: how many receivers; default `n_receivers`.
            grid: nodes, depth first; default as many as the medium has, at `spacing`.
            noise: deviation of additive Gaussian noise, as a share of the sample's root mean square.
            seed: of the noise.

        Raises:
            ValueError: a medium that is missing, not positive, not finite, not on the grid or too fast for the time step; sources
                or receivers that are not at nodes.
        """
        if "wave_speed" not in inputs:
            raise ValueError(
                f"the inputs are {sorted(inputs)} but AcousticWaveform needs 'wave_speed' (n, *grid), in m/s."
            )
        c = inputs["wave_speed"]
        if c.ndim != 3:
            raise ValueError(f"wave_speed has shape {tuple(c.shape)}; (n, depth, width) is expected.")
        forward = self.forward(grid or self.usual_grid(c.shape[1:]), sensors)
        c = c.to(PRECISIONS[self.precision])
        forward.check(c)
        with torch.no_grad():
            parts = [forward(part).double() for part in c.split(max(1, SHOTS_AT_ONCE // self.n_shots))]
        measurements = add_noise(torch.cat(parts), noise, torch.Generator().manual_seed(seed))
        return {"measurements": measurements, "mask": torch.ones(measurements.shape[:2], dtype=torch.bool)}

    def forward(self, grid: Grid, sensors: int | None = None) -> ShotRecords:
        """The map of media (n, *grid) to records (n, L, 1, times, receivers), differentiable; see `ShotRecords`."""
        self._check(grid)
        most = round(grid.lengths[1] / self.spacing) + 1
        n_receivers = next(n for n in (sensors, self.n_receivers, most) if n is not None)
        if not 1 <= n_receivers <= most:
            raise ValueError(
                f"{n_receivers} receivers were asked for; 1 to {most} fit a width of {grid.lengths[1]:g} m at multiples of "
                f"{self.spacing:g} m."
            )
        return ShotRecords(self, grid, n_receivers)

    def _curved_layers(self, generator: np.random.Generator, grid: Grid) -> Tensor:
        """Layers from the surface down; every interface has the waves of all, and one of its own. Depths are shares of the grid's."""
        n = int(generator.integers(self.n_layers[0], self.n_layers[1] + 1))
        # Drawn whole, so that the stream does not depend on the number of layers.
        speeds, thickness = generator.uniform(0.0, 1.0, MOST_LAYERS), generator.uniform(0.4, 1.0, MOST_LAYERS)
        waves = generator.uniform(0.0, 1.0, (MOST_LAYERS + 1, 3))  # amplitude, wave number, phase
        z, x = (grid.points() / torch.tensor(grid.lengths, dtype=torch.float64)).unbind(-1)
        c = torch.from_numpy(self.speeds[0] + (self.speeds[1] - self.speeds[0]) * np.sort(speeds[:n]))
        depths = np.cumsum(thickness[:n]) / thickness[:n].sum()

        def wave(k: int, amplitude: float) -> Tensor:
            size, number, phase = waves[k]
            return amplitude * size * torch.sin(2 * torch.pi * ((0.5 + 1.5 * number) * x + phase))

        medium = torch.full_like(z, float(c[0]))
        for k in range(1, n):
            medium = torch.where(z > float(depths[k - 1]) + wave(0, 0.1) + wave(k, 0.02), c[k], medium)
        return medium

    def _check(self, grid: Grid) -> None:
        starts = all(a == 0 for a, _ in grid.extent)
        if grid.dim != 2 or grid.layout != ("nodes", "nodes") or not starts:
            raise ValueError(
                f"AcousticWaveform lives on nodes from 0 on in metres, depth first, but the grid is {grid}; use usual_grid((n, n))."
            )


class ShotRecords:
    """F(c): media (n, *grid) in m/s to records (n, L, 1, times, receivers), in the precision of c."""

    def __init__(self, problem: AcousticWaveform, grid: Grid, n_receivers: int) -> None:
        self.grid = grid
        refined = [problem.spacing / h for h in grid.spacing]
        ratio = round(max(refined))
        if any(abs(r - max(ratio, 1)) > 1e-6 * r for r in refined):
            raise ValueError(
                f"the grid has spacing {grid.spacing}; spacing={problem.spacing} m or a whole part of it is expected, so that sources "
                "and receivers are at nodes. Give the problem another spacing, or the grid another number of nodes."
            )
        step = problem.time_step / ratio
        self.stepper = AcousticStepper(
            grid.shape, grid.spacing, step, speed=problem.speeds[1], frequency=problem.frequency,
            absorbing_cells=problem.absorbing_cells * ratio,
        )  # fmt: skip
        if problem.depth > grid.lengths[0]:
            raise ValueError(f"depth is {problem.depth} m, but the ground ends at {grid.lengths[0]:g} m.")

        def places(n: int) -> Tensor:
            x = (_shares(n) * grid.lengths[1] / problem.spacing).round() * ratio
            return torch.stack([torch.full_like(x, problem.depth / problem.spacing * ratio), x], dim=1)

        if len(places(problem.n_shots).unique(dim=0)) < problem.n_shots:
            raise ValueError(
                f"{problem.n_shots} shots do not fit a width of {grid.lengths[1]:g} m at multiples of {problem.spacing:g} m: two would be "
                "fired at one place; ask for fewer."
            )
        sources = self.stepper.point_sources(places(problem.n_shots), width=ratio)
        kept = (
            (problem.n_times - 1) // problem.record_every * problem.record_every
        )  # steps to the last that is recorded
        wavelet = ricker(problem.frequency, step, kept * ratio + 1)
        self.shots = Shots(sources, wavelet, places(n_receivers).round().long(), problem.record_every * ratio)

    def __call__(self, c: Tensor) -> Tensor:
        """c (n, *grid), positive and stable with the time step -> (n, L, 1, times, receivers)"""
        self.check(c)
        return self.stepper.records(c, self.shots)[:, :, None]

    def linearise(self, c: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """One medium c (*grid), directions (k, *grid): F(c) (L, 1, times, receivers) and its derivatives (..., k), by k more waves a shot."""
        self.grid.check(directions, "directions")
        self.check(c[None])
        data, derivatives = self.stepper.tangents(c, directions, self.shots)
        return data[:, None], derivatives.movedim(0, -1)[:, None]

    def check(self, c: Tensor) -> None:
        """Raise unless c is (n, *grid), positive, finite and stable with the time step."""
        self.grid.check(c, "wave_speed")
        self.stepper.check(c)


def _shares(n: int) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.full((1,), 0.5, dtype=torch.float64)


def _whole(x: float) -> bool:
    return abs(x - round(x)) < 1e-9
