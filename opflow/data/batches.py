"""Batches of a data set, epoch after epoch, in an order that a checkpoint can continue exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from opflow.batch import Batch
from opflow.data.dataset import FieldDataset, collate
from opflow.data.schema import DataError

Transform = Callable[[Batch, torch.Generator], Batch]


class Batches:
    """An iterable of `Batch`; one pass over it is the rest of an epoch.

    The order of epoch e depends on (seed, e) alone, and what `transform` draws on (seed, e, position) alone; neither
    touches torch's global generator. ``position`` counts the batches already handed out, so a state taken in the body
    of the loop continues with the next batch, whatever worker processes have read ahead. A state taken after the last
    batch, before the loop ends, continues with an empty rest of the epoch, so that its end is not skipped.

    Args:
        dataset: what to read.
        batch_size: samples a batch; the last batch of an epoch may be smaller.
        shuffle: a new order every epoch; otherwise the data set's own.
        seed: of order and transform.
        drop_last: leave out the last batch where it is smaller.
        device: where batches are moved to, by default nowhere.
        transform: ``transform(batch, generator) -> Batch``, on the CPU before the move; for augmentation.
        workers: processes that read ahead; 0 reads in this one. For data that fit, ``dataset.in_memory()`` is faster.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``, by default Python's own choice.

    >>> from opflow import Grid
    >>> data = FieldDataset.from_arrays(torch.ones(5, 8), torch.ones(5, 8), Grid(8))
    >>> [batch.batch_size for batch in Batches(data, 2)]
    [2, 2, 1]
    """

    def __init__(
        self,
        dataset: FieldDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        transform: Transform | None = None,
        workers: int = 0,
        multiprocessing_context: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give a positive whole number.")
        if seed < 0:
            raise ValueError(f"seed is {seed}; give zero or a positive whole number.")
        if workers < 0:
            raise ValueError(f"workers is {workers}; give 0 to read in this process, or a number of processes.")
        if drop_last and batch_size > len(dataset):
            raise ValueError(
                f"batch_size {batch_size} with drop_last leaves no batch of the {len(dataset)} samples; make it smaller."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.device = device
        self.transform = transform
        self.workers = workers
        self.multiprocessing_context = multiprocessing_context if workers else None
        self.epoch = 0
        self.position = 0
        self._passes = 0
        self._remaining = _Remaining()
        self._loader: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def order(self, epoch: int) -> list[NDArray[np.int64]]:
        """The positions in the data set that each batch of an epoch holds."""
        n = len(self.dataset)
        if self.shuffle:
            sequence = np.random.SeedSequence([self.seed, epoch])
            positions = np.random.Generator(np.random.PCG64(sequence)).permutation(n)
        else:
            positions = np.arange(n)
        return [positions[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def __iter__(self) -> Iterator[Batch]:
        self._passes += 1
        this_pass = self._passes
        for batch in self._read():
            batch = self._finished(batch)
            self.position += 1
            yield batch
            if self._passes != this_pass:
                raise RuntimeError(
                    "these batches were restarted, or a state was loaded, while a pass over them was under way; "
                    "finish or leave one pass before the next, or make a second Batches."
                )
        self.epoch += 1
        self.position = 0

    def _read(self) -> Iterator[Batch]:
        if self.workers == 0:
            for positions in self.order(self.epoch)[self.position :]:
                yield self.dataset.read(positions)
            return
        self._remaining.batches = self.order(self.epoch)[self.position :]
        if self._loader is None:
            self._loader = DataLoader(
                self.dataset,
                batch_sampler=self._remaining,
                collate_fn=collate,
                num_workers=self.workers,
                multiprocessing_context=self.multiprocessing_context,
                persistent_workers=True,
                # Without one, the loader draws from the global generator, and a resumed run would draw differently.
                generator=torch.Generator(),
            )
        yield from self._loader

    def _finished(self, batch: Batch) -> Batch:
        if self.transform is not None:
            sequence = np.random.SeedSequence([self.seed, self.epoch, self.position, 1])
            high, low = (int(word) for word in sequence.generate_state(2))
            batch = self.transform(batch, torch.Generator().manual_seed((high >> 1) << 32 | low))
        return batch if self.device is None else batch.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the reading is, in values that JSON holds."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "fingerprint": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, with its seed.

        Raises:
            DataError: the state belongs to other data or to other batches.
        """
        ours = self.state_dict()
        missing = set(ours) - set(state)
        if missing:
            raise DataError(
                f"the state of the batches has no {sorted(missing)[0]!r}; it was not made by Batches.state_dict."
            )
        if state["fingerprint"] != ours["fingerprint"]:
            raise DataError(
                "the state of the batches belongs to another data set (its fingerprint is "
                f"{str(state['fingerprint'])[:12]}..., here it is {ours['fingerprint'][:12]}...); "
                "resume with the same files, names, stride and dtype."
            )
        for name in ("batch_size", "shuffle", "drop_last"):
            if state[name] != ours[name]:
                raise DataError(
                    f"the state was taken with {name}={state[name]} but here it is {ours[name]}; use the same to resume."
                )
        for name in ("seed", "epoch", "position"):
            if type(state[name]) is not int or state[name] < 0:
                raise DataError(f"{name} in the state of the batches is {state[name]!r}; a whole number is expected.")
        if state["position"] > len(self):
            raise DataError(
                f"the state is at batch {state['position']} of an epoch of {len(self)}; it was not made by these batches."
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._passes += 1


class _Remaining:
    """The batches that are left of an epoch; workers outlive a pass, so the loader asks here again at every one."""

    batches: Sequence[NDArray[np.int64]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter([positions.tolist() for positions in self.batches])

    def __len__(self) -> int:
        return len(self.batches)
