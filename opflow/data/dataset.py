"""The data set a model is trained on: samples of a source as batches of stacked channels."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from opflow.batch import Batch
from opflow.data.formats import open_dataset
from opflow.data.schema import DataError, check_names
from opflow.data.source import ArraySource, Source, as_array, check_positions, measurement_names
from opflow.grid import Grid


class FieldDataset(Dataset[Batch]):
    """Fields of a source, channels stacked in the order of names, on the source's grid or a coarser one.

    ``dataset.read(positions)`` gives ``Batch(input (b, channel, *grid), target (b, channel, *grid), weight (*grid),
    index (b,))``; ``dataset[i]`` is the same with b = 1. With a DataLoader use ``collate_fn=collate``.

    Measurements stand alone: where the one input is measurements, ``input`` is (b, measurement, channel, *sensors), and a
    stride coarsens the fields only. Where the one target is (a data set for a surrogate), there is no ``weight``.

    Args:
        source: an opened source, or a path for `open_dataset`.
        inputs: input names in channel order, by default the source's.
        targets: target names in channel order, by default the source's; ``()`` for none.
        stride: keep every stride-th point of node and periodic axes and average blocks of cells; one number for all axes, or
            one each. It must divide.
        dtype: torch.float32 or torch.float64.
        indices: the positions in the source to use, by default all.

    Raises:
        DataError: a name that the source does not have, measurements mixed with fields, or damaged data.
        ValueError: a stride that does not divide the grid.

    >>> data = FieldDataset.from_arrays(torch.ones(6, 8, 8), torch.ones(6, 8, 8), Grid((8, 8)))
    >>> data.read([0, 5]).input.shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        source: Source | str | Path,
        inputs: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        *,
        stride: int | Sequence[int] = 1,
        dtype: torch.dtype = torch.float32,
        indices: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        self.source: Source = open_dataset(source) if isinstance(source, str | Path) else source
        self.input_names = check_names(self.source.inputs if inputs is None else inputs, "input")
        self.target_names = check_names(self.source.targets if targets is None else targets, "target")
        if not self.input_names + self.target_names:
            raise DataError("neither inputs nor targets were named; name at least one field.")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype is {dtype}; torch.float32 or torch.float64 is expected.")
        for name in self.input_names + self.target_names:
            self.source.read(name, [])  # an unknown name is refused now, not in the first epoch
        self.measured_input = self._are_measurements(self.input_names, "inputs")
        self.measured_target = self._are_measurements(self.target_names, "targets")
        self.dtype = dtype
        self.stride = stride
        self.grid: Grid = self.source.grid.subsampled(stride)
        self._weight = None if self.measured_target else self.grid.quadrature_weights(dtype=dtype)
        n = len(self.source)
        self.indices = np.arange(n) if indices is None else check_positions(indices, n, "the source")
        self._memory: Batch | None = None
        self._fingerprint: str | None = None

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        targets: Any,
        grid: Grid,
        *,
        measurements: Any = None,
        stride: int | Sequence[int] = 1,
        dtype: torch.dtype = torch.float32,
        index: Sequence[int] | NDArray[np.int64] | None = None,
        split: str = "train",
    ) -> FieldDataset:
        """A data set from arrays in memory.

        Args:
            inputs: ``{name: (n, *grid)}``, or one array (n, *grid) or (n, channel, *grid), tensor or NumPy.
            targets: likewise, or None.
            grid: where the values live.
            measurements: one array (n, measurement, channel, *sensors), tensor or NumPy, or ``{name: array}`` with one name;
                the input, in place of `inputs`, which is then None.
            stride: as for the class.
            dtype: as for the class.
            index: global sample numbers (n,), by default 0..n-1.
            split: the seed namespace.
        """
        named_inputs, named_targets = _named(inputs, "input", grid), _named(targets, "target", grid)
        if measurements is None:
            measured = {}
        elif named_inputs:
            raise DataError(
                "inputs and measurements were both given; a model has one of them as its input: leave one out."
            )
        else:
            measured = dict(measurements) if isinstance(measurements, Mapping) else {"measurements": measurements}
        both = set(named_inputs) & set(named_targets)
        if both:
            raise DataError(f"{sorted(both)} is given as input and as target; give the arrays distinct names.")
        source = ArraySource(
            named_inputs | named_targets,
            grid,
            inputs=(*named_inputs, *measured),
            targets=tuple(named_targets),
            measurements=measured,
            index=index,
            split=split,
        )
        return cls(source, stride=stride, dtype=dtype)

    @property
    def split_name(self) -> str:
        """The seed namespace the samples were drawn from."""
        return self.source.split

    @property
    def fingerprint(self) -> str:
        """A hash of the content and of how it is read; checkpoints hold it, so that a run resumes on its own data."""
        if self._fingerprint is None:
            parts = {
                "source": self.source.fingerprint,
                "inputs": self.input_names,
                "targets": self.target_names,
                "stride": self.stride if isinstance(self.stride, int) else list(self.stride),
                "dtype": str(self.dtype),
                "indices": hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest(),
            }
            self._fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The samples at these positions of the data set, as one batch."""
        positions = check_positions(indices, len(self), "the data set")
        index = torch.from_numpy(self.source.index[self.indices[positions]])
        if self._memory is not None:
            rows = torch.from_numpy(positions)
            held = {f: getattr(self._memory, f) for f in ("input", "target")}
            stacks = {f: None if part is None else part[rows] for f, part in held.items()}
        else:
            stacks = {
                "input": self._stack(self.input_names, self.indices[positions]),
                "target": self._stack(self.target_names, self.indices[positions]),
            }
        return Batch(**stacks, weight=self._weight, index=index)

    def _are_measurements(self, names: tuple[str, ...], role: str) -> bool:
        measured = [name for name in names if name in measurement_names(self.source)]
        if measured and len(names) > 1:
            raise DataError(
                f"{role} are {', '.join(names)}, where {measured[0]} are measurements: they have axes of their own and are not "
                f"stacked with anything; name one thing with {role}=."
            )
        return bool(measured)

    def _stack(self, names: tuple[str, ...], positions: NDArray[np.int64]) -> Tensor | None:
        if not names:
            return None
        if names[0] in measurement_names(self.source):
            return torch.from_numpy(self.source.read(names[0], positions)).to(self.dtype)
        channels = [torch.from_numpy(self.source.read(name, positions)).to(self.dtype) for name in names]
        return torch.stack([self.source.grid.subsample(channel, self.stride) for channel in channels], dim=1)

    def __getitem__(self, position: int) -> Batch:
        if not -len(self) <= position < len(self):
            raise IndexError(f"the data set has {len(self)} samples; position {position} is outside.")
        return self.read([position % len(self)])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """What a DataLoader calls for a whole batch; `collate` hands the result on as it is."""
        return self.read(positions)

    def in_memory(self) -> FieldDataset:
        """The same data set held as tensors, read and checked once: no file is touched afterwards."""
        held = copy.copy(self)
        held._memory = self.read(np.arange(len(self)))
        return held

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> FieldDataset:
        """The samples at these positions, as a data set of its own."""
        positions = check_positions(indices, len(self), "the data set")
        part = copy.copy(self)
        part.indices = self.indices[positions]
        part._fingerprint = None
        part._memory = None if self._memory is None else self.read(positions)
        return part

    def split(self, *sizes: float, seed: int = 0) -> tuple[FieldDataset, ...]:
        """Disjoint random parts, the same for the same seed.

        For files without splits of their own; data made by `generate` has a seed namespace for each split instead.

        Args:
            sizes: whole numbers of samples, or fractions between 0 and 1; what is left over goes to no part.
            seed: of the permutation.

        >>> data = FieldDataset.from_arrays(torch.ones(10, 4), torch.ones(10, 4), Grid(4))
        >>> [len(part) for part in data.split(0.8, 0.2)]
        [8, 2]
        """
        n = len(self)
        whole = all(isinstance(size, int) for size in sizes)
        if not sizes or min(sizes) <= 0 or (not whole and not all(isinstance(s, float) for s in sizes)):
            raise ValueError(f"sizes are {sizes}; give positive whole numbers, or positive fractions, not both.")
        if sum(sizes) > (n if whole else 1 + 1e-9):
            raise ValueError(f"sizes {sizes} add up to more than the {n} samples there are; make them smaller.")
        edges = [0, *np.cumsum(sizes).tolist()]
        counts = [int(edge) if whole else round(edge * n) for edge in edges]
        if len(set(counts)) != len(counts):
            raise ValueError(f"sizes {sizes} leave a part of the {n} samples empty; make it larger.")
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).permutation(n)
        return tuple(self.subset(np.sort(order[a:b])) for a, b in pairwise(counts))


def collate(samples: Batch | Sequence[Batch]) -> Batch:
    """One batch from what a DataLoader fetched: a whole `Batch` as it is, single samples joined."""
    if isinstance(samples, Batch):
        return samples
    joined: dict[str, Tensor | None] = {}
    for field in fields(Batch):
        parts = [getattr(sample, field.name) for sample in samples]
        shared = field.name in ("weight", "coords") or parts[0] is None
        joined[field.name] = parts[0] if shared else torch.cat(parts)
    return Batch(**joined)  # type: ignore[arg-type]


def _named(values: Any, kind: str, grid: Grid) -> dict[str, NDArray[Any]]:
    """Arrays by name: a mapping as it is; a stack of channels taken apart."""
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return {name: as_array(value) for name, value in values.items()}
    array = as_array(values)
    if array.ndim == grid.dim + 1:
        return {kind: array}
    if array.ndim == grid.dim + 2:
        channels = range(array.shape[1])
        return {kind if len(channels) == 1 else f"{kind}_{c}": array[:, c] for c in channels}
    raise DataError(
        f"{kind}s have shape {array.shape} but the grid is {grid.shape}; (n, *grid) or (n, channel, *grid) is expected."
    )
