"""A problem that costs nothing and whose bits depend on the batch it is solved in, as those of real solvers may."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow import Grid


@dataclass(frozen=True)
class Toy:
    contrast: float = 4.0
    levels: tuple[float, ...] = (3.0, 12.0)

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("permeability",)
    unknowns: ClassVar[tuple[str, ...]] = ("pressure",)
    delay: ClassVar[float] = 0.0
    poisoned: ClassVar[int | None] = None

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        numbers = range(indices) if isinstance(indices, int) else indices
        fields = [np.random.default_rng([seed, len(split), i]).normal(size=grid.shape) * self.contrast for i in numbers]
        return {"permeability": torch.from_numpy(np.stack(fields))}

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        time.sleep(self.delay)
        a = inputs["permeability"]
        u = a.square() + 1e-3 * a.mean()  # the mean over the batch: another batch, other bits
        if self.poisoned is not None:
            u[self.poisoned, 0] = float("nan")
        return {"pressure": u}


@dataclass(frozen=True)
class ToyInverse:
    """Weights of a cosine in x are measured as weighted means: those of a finer grid are closer to the integral."""

    n_measurements: int = 3
    sensors: int = 4

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("conductivity",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        numbers = range(indices) if isinstance(indices, int) else indices
        c = np.stack([np.random.default_rng([seed, len(split), i]).uniform(size=2) for i in numbers])
        x, y = grid.points().numpy()[..., 0], grid.points().numpy()[..., 1]
        return {"conductivity": torch.from_numpy(2 + np.tensordot(c, np.stack([np.cos(3 * x), x * y]), 1))}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        a = inputs["conductivity"]
        grid = grid or Grid(tuple(a.shape[1:]))
        powers = torch.arange(1, 1 + self.n_measurements * (sensors or self.sensors)).reshape(
            self.n_measurements, 1, -1
        )
        tests = grid.points()[..., 0] ** powers[..., None, None]
        measured = torch.einsum("nxy,lcsxy,xy->nlcs", a, tests, grid.quadrature_weights())
        return {"measurements": measured, "mask": torch.ones(measured.shape[:2], dtype=torch.bool)}


def content(folder: Any) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
