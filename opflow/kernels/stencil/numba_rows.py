"""A grid as compiled loops see it, and how its rows are shared among threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from opflow.kernels.stencil.geometry import Geometry

# Numbers for each thread below which a thread costs more than it saves.
SHARE = 1 << 15
# Numbers in a block of rows: a buffer of them stays in the first-level cache beside what is streamed through it.
BLOCK = 1 << 10

# Where a run of sweeps starts from.
FIELD, ZERO, CORRECTION = range(3)

Span = tuple[int, int]


@dataclass(frozen=True)
class Rows(Geometry):
    """Rows along the last axis, in units: planes, or blocks of rows where there is but one plane."""

    @property
    def solid(self) -> bool:
        """Whether there are several planes."""
        return self.shape[0] > 1

    @property
    def block(self) -> int:
        """Rows at once: an even number, so that no block of a coarser grid is cut."""
        return 2 * max(1, BLOCK // (2 * self.shape[2]))

    @property
    def units(self) -> int:
        """Planes, or blocks of rows."""
        return self.shape[0] if self.solid else -(-self.shape[1] // self.block)

    @property
    def lag(self) -> int:
        """Units after which a second sweep may follow the first: all of them where the outermost axis is a ring."""
        return self.units if self.rings[0 if self.solid else 1] else 1

    @property
    def workers(self) -> int:
        """Threads worth having, of those that torch may use."""
        return max(1, min(torch.get_num_threads(), self.batch * self.points // SHARE))

    def share(self, kernel: Callable[..., None], arguments: tuple[Any, ...], units: int, multiple: int = 1) -> None:
        """kernel(*arguments, fields, units) for all fields and units; spans of units begin at multiples of `multiple`."""
        run([(kernel, (*arguments, *spans)) for spans in self._spans(units, multiple)])

    def share_sweeps(self, kernel: Callable[..., None], arguments: tuple[Any, ...], stages: int) -> None:
        """kernel(*arguments, fields, units, shrink, stages) so that every stage sees its neighbours after the one before.

        Threads take spans of units that shrink from stage to stage, then the gaps between them, which grow. Where these would
        meet, the stages are shared one by one.
        """
        whole, all_stages = (0, 0), (0, stages)
        workers = self.workers
        parts = -(-workers // max(1, self.batch))
        if parts == 1:
            units = (0, self.units)
            run([(kernel, (*arguments, fields, units, whole, all_stages)) for fields in cut(self.batch, workers)])
            return
        parts = min(parts, self.units // (2 * stages * self.lag))
        if parts < 2:
            for stage in range(stages):
                one = (stage, stage + 1)
                run([(kernel, (*arguments, *spans, whole, one)) for spans in self._spans(self.units, 1)])
            return
        each = [(b, b + 1) for b in range(self.batch)]
        slabs = cut(self.units, parts)
        ends = [(int(low > 0), int(high < self.units)) for low, high in slabs]
        run(
            [
                (kernel, (*arguments, b, s, shrink, all_stages))
                for b in each
                for s, shrink in zip(slabs, ends, strict=True)
            ]
        )
        gaps = [(low, low) for low, _ in slabs[1:]]
        run([(kernel, (*arguments, b, gap, (-1, -1), all_stages)) for b in each for gap in gaps])

    def _spans(self, units: int, multiple: int) -> list[tuple[Span, Span]]:
        """The spans (fields, units) of the threads: fields first, units where there are fewer fields than threads."""
        workers = self.workers
        fields = cut(self.batch, workers)
        pieces = cut(units, -(-workers // max(1, self.batch)), multiple)
        if len(pieces) > 1:
            fields = [(b, b + 1) for b in range(self.batch)]
        return [(b, piece) for b in fields for piece in pieces]


def cut(count: int, parts: int, multiple: int = 1) -> list[Span]:
    """0 .. count in at most so many spans of nearly equal length, which begin at multiples of `multiple`."""
    blocks = -(-count // multiple)
    parts = max(1, min(parts, blocks))
    ends = [min(count, multiple * (blocks * i // parts)) for i in range(parts + 1)]
    return list(pairwise(ends))


def flat(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The memory of contiguous tensors, each as one row of numbers."""
    return tuple([tensor.numpy().ravel() for tensor in tensors])


def run(tasks: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """All tasks at once, the last of them in this thread."""
    *others, (function, arguments) = tasks
    if not others:
        function(*arguments)
        return
    waiting = [_pool(os.getpid()).submit(other, *given) for other, given in others]
    function(*arguments)
    for task in waiting:
        task.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: after a fork there are none. They wait for work, none waits for another."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="opflow-stencil")
