"""Times other tiles, warps and stages of the Triton kernels on the device at hand, and writes the table of the fastest.

The table is used where OPFLOW_TRITON_CONFIGURATIONS names it; a committed one joins `triton_configurations.json`. Nothing is
ever timed while a model runs, so that equal programs take equal kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from opflow.files import write_json
from opflow.kernels.spectral_conv import triton_stages as stages
from opflow.kernels.spectral_conv.call import SpectralConvCall, weight_grid
from opflow.kernels.spectral_conv.triton_queue import Queue
from opflow.kernels.spectral_conv.triton_tables import tables

Timer = Callable[[Callable[[], None]], float]
CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    "analyse_lines": {"ROWS": (32, 64, 128), "TILE": (32, 64), "PROGRAMS": (264, 528, 1056)},
    "analyse_planes": {"TILE1": (32, 64, 128), "TILE2": (16, 32, 64)},
    "analyse_third_axis": {"ROWS": (16, 32), "TILE": (16, 32)},
    "block": {"OUT": (32, 64, 128), "IN": (16, 32, 64), "TILE": (32, 64, 128)},
    "block_backward": {"TILE": (16, 32, 64), "PROGRAMS": (132, 264, 528)},
    "channel_gradient": {"OUT": (32, 64), "IN": (32, 64), "TILE": (32, 64), "PROGRAMS": (132, 264, 528)},
    "multiply_modes": {"ROWS": (16, 32, 64), "COLUMNS": (32, 64), "INNER": (16, 32)},
    "synthesise_lead": {"TILE1": (16, 32, 64, 128)},
    "synthesise_lines": {"ROWS": (32, 64, 128), "TILE": (32, 64, 128)},
    "synthesise_planes": {"TILE1": (32, 64, 128), "TILE2": (32, 64, 128)},
    "synthesise_third_axis": {"ROWS": (16, 32), "TILE": (32, 64)},
}


@dataclass
class Trial:
    """One kernel's candidate, the sizes it was asked for, and its time."""

    kernel: str
    row: dict[str, int]
    sizes: dict[str, int]
    milliseconds: float


class TimingQueue(Queue):
    """A queue that gives one kernel a candidate in place of its configuration, and times it."""

    def __init__(self, queue: Queue, kernel: str, row: dict[str, int], timer: Timer) -> None:
        super().__init__(queue.architecture, queue.precision)
        self.trial, self.timer = Trial(kernel, row, {}, 0.0), timer

    def configuration(self, kernel: str, **sizes: int) -> dict[str, int]:
        """The candidate where it is this kernel's turn."""
        if kernel != self.trial.kernel:
            return super().configuration(kernel, **sizes)
        self.trial.sizes = sizes
        return dict(self.trial.row)

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch it; time it where it is this kernel's turn."""
        super().__call__(kernel, grid, *arguments, **constants)
        if getattr(kernel, "kernel", kernel).fn.__name__ == self.trial.kernel:
            launch = super().__call__
            self.trial.milliseconds += self.timer(lambda: launch(kernel, grid, *arguments, **constants))


def every_stage(queue: Queue, parts: tuple[torch.Tensor, ...], call: SpectralConvCall) -> None:
    """A convolution and a layer, forward and backward."""
    x, weight, W, bias = parts
    kept = [bound for axis in range(len(call.n_modes)) for bound in call.kept(axis)]
    after = tables(call.synthesis(), weight.dtype, x.device)
    R = call.kept_weight(weight).flatten(0, x.ndim - 3)
    X = stages.analyse(queue, x, kept, tables(call.analysis(), weight.dtype, x.device))
    Y = stages.multiply(queue, X, R, "")
    g = stages.synthesise(queue, Y, call.out_shape, kept, after, x.dtype)
    stages.multiply(queue, X, Y, "left")
    lines = stages.lead(queue, Y, x.shape[2:], kept, after)
    stages.combine(queue, lines, x, W, bias, "gelu")
    stages.combine_backward(queue, lines, x, W, bias, g)
    stages.channel_gradients(queue, g, x)


def candidates(kernel: str) -> list[dict[str, int]]:
    """Every choice of tiles, with 4 and 8 warps and 1 to 4 stages."""
    names = [*CHOICES[kernel], "num_warps", "num_stages"]
    return [dict(zip(names, row, strict=True)) for row in product(*CHOICES[kernel].values(), (4, 8), (1, 2, 3, 4))]


def tune(
    parts: tuple[torch.Tensor, ...], call: SpectralConvCall, timer: Timer, kernels: tuple[str, ...] = tuple(CHOICES)
) -> dict[str, list[dict[str, int]]]:
    """The fastest row of each kernel that this call launches, for its sizes and below; of those that the device can run."""
    best = {}
    for kernel in kernels:
        trials = []
        for row in candidates(kernel):
            queue = TimingQueue(Queue.of(parts[0]), kernel, row, timer)
            try:
                every_stage(queue, parts, call)
            except Exception as error:  # too much shared memory, mostly: Triton's own kinds of error differ by version
                print(f"{kernel} {row}: {type(error).__name__}")
                continue
            trials.append(queue.trial)
        trials = [trial for trial in trials if trial.milliseconds > 0]
        if trials:
            fastest = min(trials, key=lambda trial: trial.milliseconds)
            print(f"{kernel} {fastest.row}: {fastest.milliseconds:.4f} ms")
            best[kernel] = [{f"max_{key}": size for key, size in fastest.sizes.items()} | fastest.row]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", type=int, nargs="+", default=[24, 24])
    parser.add_argument("--shape", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="where to write the table")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    from triton.testing import do_bench

    torch.manual_seed(0)
    c, modes = options.channels, tuple(options.modes)
    sizes = ((options.batch, c, *options.shape), (*weight_grid(modes), 2, c, c), (c, c), (c,))
    x, weight, W, bias = (torch.randn(size, device="cuda") for size in sizes)
    rows = tune(
        (x, weight, W, bias), SpectralConvCall.of(x, weight, modes, None), lambda f: do_bench(f, return_mode="median")
    )
    write_json(options.out, {torch.cuda.get_device_name(): rows})


if __name__ == "__main__":
    main()
