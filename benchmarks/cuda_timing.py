"""Interleaved timing on a CUDA device: events around every call, a cold L2 cache, eagerly and as CUDA graphs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.side_by_side import rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

# More than the L2 cache of any present device; written before every timed call, so that none finds its data there.
FLUSH_BYTES = 256 << 20
COPY_BYTES = 1 << 30


class EventTimer:
    """Seconds of device time of each of several calls, by CUDA events, the L2 cache flushed before each."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")

    def __call__(self, call: Callable[[], object], repeats: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize()
        for start, stop in events:
            self.flush.zero_()
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in events]


Timer = Callable[[Callable[[], object], int], list[float]]


def interleave(
    arms: Mapping[str, Callable[[], object]], rounds: int, timer: Timer, *, seconds: float = 0.02
) -> dict[str, list[float]]:
    """Median seconds per call of every arm in every round, measured A B C, A B C, ... after calls to warm up.

    A round repeats an arm's call until about `seconds` of device time, five times at least.
    """
    repeats = {}
    for name, call in arms.items():
        timer(call, 3)  # compiles, plans and fills caches
        repeats[name] = min(200, max(5, math.ceil(seconds / max(statistics.median(timer(call, 3)), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, call in arms.items():
            times[name].append(statistics.median(timer(call, repeats[name])))
    return times


def captured(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of a call whose tensors stay where they are: its replay, and the outputs that each replay rewrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # plans, tables and compiled kernels must be there before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


def graphs(arms: Mapping[str, Callable[[], Any]], tolerance: float = 1e-5) -> dict[str, Callable[[], None]]:
    """Every arm as a CUDA graph that was replayed and gave the arm's own result.

    Raises:
        AssertionError: a replay gives something else than the eager call.
    """
    replays = {}
    for name, call in arms.items():
        expected = _first(call()).clone()
        replay, outputs = captured(call)
        _first(outputs).zero_()
        replay()
        torch.cuda.synchronize()
        difference = float((_first(outputs) - expected).norm() / expected.norm())
        if not difference <= tolerance:
            raise AssertionError(f"the CUDA graph of {name} differs from the eager call by {difference:.2g}.")
        replays[name] = replay
    return replays


def _first(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def copy_bandwidth(timer: Timer, device: str = "cuda", size: int = COPY_BYTES) -> float:
    """TB/s of a copy inside the device's memory, bytes read plus bytes written: the ceiling of what moves data once."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = statistics.median(timer(lambda: target.copy_(source), 20))
    return rounded(2 * size / seconds / 1e12)


@contextmanager
def convolutions_in_tf32(allowed: bool) -> Iterator[None]:
    """Whether cuDNN may round the operands of convolutions to TF32, as is torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
