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


def content(folder: Any) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
