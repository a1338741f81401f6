"""What every method of the table of inverse problems is asked: the same test samples, noise and subsets of measurements for all."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opflow import Batch, Grid, problems
from opflow.data import FieldDataset, random_subsets
from opflow.losses.norms import relative_errors, relative_l1_errors
from opflow.pde import add_noise

BATCH = 64


@dataclass(frozen=True)
class Case:
    """One way of measuring: how many measurements of each sample, chosen at random, and noise of which level and kind."""

    measurements: int
    noise: float
    kind: str = "additive"

    @property
    def seed(self) -> int:
        """Of noise and subsets: the same for every method."""
        return zlib.crc32(repr((self.measurements, self.noise, self.kind)).encode())


def folder_of(settings: Mapping[str, Any]) -> str:
    """Where the data of these settings are: in the folder of the catalogue's set, or, where that is too small, in one of their own."""
    sizes = settings["recipe"].get("splits", {})
    enough = all(settings[split] <= sizes.get(split, settings[split]) for split in ("train", "validation", "test"))
    return settings["data"] if enough else f"{settings['data']}-{settings['train']}"


def seen(settings: Mapping[str, Any], measurements: Tensor) -> Tensor:
    """What a learned method sees of measurements: sign(y) log(1 + |y|) where the settings say `compressed`, else y."""
    return measurements.sign() * measurements.abs().log1p() if settings.get("compressed") else measurements


class Question:
    """A problem's data sets, of the sizes that the settings ask for, and what is measured of the test samples."""

    def __init__(self, settings: Mapping[str, Any], data: Path) -> None:
        self.settings = settings
        self.folder = data / folder_of(settings)
        self.stride = settings.get("stride", 1)
        self.test = self.dataset("test")

    def dataset(self, split: str) -> FieldDataset:
        """The first samples of a split, in memory: measurements to coefficients on the grid of the table."""
        data = FieldDataset(self.folder / split, stride=self.stride)
        n = self.settings[split]
        if n > len(data):
            raise ValueError(f"{self.folder / split} holds {len(data)} samples, but {n} are asked for; make more.")
        return data.subset(range(n)).in_memory()

    @cached_property
    def train(self) -> FieldDataset:
        """What methods learn from."""
        return self.dataset("train")

    @cached_property
    def validation(self) -> FieldDataset:
        """What a method's state and settings may be chosen by."""
        return self.dataset("validation")

    @property
    def grid(self) -> Grid:
        """Of the coefficients that are compared."""
        return self.test.grid

    @property
    def full_grid(self) -> Grid:
        """Of the coefficients as they are stored: where methods that solve the equation work."""
        return self.test.source.grid

    @property
    def weight(self) -> Tensor:
        """Quadrature weights of `grid`."""
        return self.grid.quadrature_weights(dtype=torch.float64)

    @cached_property
    def problem(self) -> Any:
        """The problem itself."""
        recipe = self.settings["recipe"]
        return getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))

    @cached_property
    def shape(self) -> tuple[int, int, tuple[int, ...]]:
        """L, channels and sensors of the measurements."""
        _, L, channels, *sensors = self.test.read([0]).input.shape
        return L, channels, tuple(sensors)

    def cases(self) -> list[Case]:
        """Every count with every level of additive noise; multiplicative noise on all measurements, as it was published."""
        counts, levels = self.settings["counts"], self.settings["noise"]
        additive = [Case(count, level) for count in counts for level in levels]
        return additive + [
            Case(counts[0], level, "multiplicative") for level in self.settings.get("multiplicative", [])
        ]

    def measured(self, data: FieldDataset, case: Case, n: int | None = None) -> Batch:
        """The first n samples as they are measured in this case; no mask where nothing is left out."""
        n = len(data) if n is None else min(n, len(data))
        generator = torch.Generator().manual_seed(case.seed)
        batch = data.read(range(len(data)))
        L = batch.input.shape[1]
        mask = random_subsets(len(data), L, generator, at_least=case.measurements, at_most=case.measurements)
        noisy = add_noise(batch.input, case.noise, generator, kind=case.kind)
        kept = None if case.measurements == L else mask[:n]
        return Batch(noisy[:n], batch.target[:n], mask=kept, weight=batch.weight, index=batch.index[:n])

    def errors(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Relative L1 and L2 errors (n,) of fields (n, 1, *grid), in double precision with quadrature weights."""
        p, t = prediction.double(), target.double()
        return {
            "l1": relative_l1_errors(p, t, self.weight)[:, 0],
            "l2": relative_errors(p, t, self.weight)[:, 0],
        }

    def outcome(self, case: Case, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """The row's numbers in this case; of the first samples alone too, which slow methods are asked for."""
        errors = self.errors(prediction, target)
        few = self.settings["few"]
        return {
            **asdict(case),
            "samples": len(target),
            **{name: statistics(values) for name, values in errors.items()},
            "first": {"samples": min(few, len(target))}
            | {name: float(values[:few].median()) for name, values in errors.items()},
        }


def statistics(values: Tensor) -> dict[str, float]:
    """Median, quartiles and 90th percentile."""
    levels = {"median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75, "p90": 0.9}
    return {name: float(torch.quantile(values, level)) for name, level in levels.items()}


def pieces(batch: Batch, size: int = BATCH) -> Iterator[Batch]:
    """A batch in smaller ones."""
    for i in range(0, batch.batch_size, size):
        cut = slice(i, i + size)
        yield Batch(
            batch.input[cut],
            batch.target[cut],
            mask=None if batch.mask is None else batch.mask[cut],
            parameters=batch.parameters,
            weight=batch.weight,
            index=batch.index[cut],
        )
