"""Matrix products or pruned FFTs on a CPU: a pure function of the shapes and of a table in the package.

The work of both forms is counted from the shapes; the table holds nanoseconds per unit of work, as medians measured by
`python -m benchmarks.cpu_cost`, which rewrites it. No timing happens at run time, so a resumed run takes the same path.
"""

from __future__ import annotations

import functools
import json
import math
from importlib.resources import files

import torch

from opflow.kernels.spectral_conv.dft import TruncatedDFT

TABLE = "cpu_cost.json"
LARGEST_SMOOTH_PRIME = 13  # FFT libraries have code for each prime up to here


@functools.cache
def cost_table() -> dict[str, dict[str, float]]:
    """Nanoseconds per unit of work: {dtype: {"matrix", "smooth", "rough"}}."""
    table = json.loads((files("opflow.kernels.spectral_conv") / TABLE).read_text(encoding="utf-8"))
    return table["nanoseconds"]


def matrix_work(dft: TruncatedDFT) -> float:
    """Floating-point operations of the matrix form for one plane, in one direction."""
    work, rest = 0.0, float(math.prod(dft.shape))
    for axis in reversed(range(len(dft.shape))):
        n, (lowest, highest) = dft.shape[axis], dft.kept[axis]
        rows = 2 * (highest + 1) if axis == len(dft.shape) - 1 else 2 * (max(highest, -lowest) + 1)
        work += 2 * rows * rest
        # What is left after the axis: real and imaginary part of its kept frequencies.
        rest *= 2 * dft.modes[axis] / n if axis == len(dft.shape) - 1 else dft.modes[axis] / n
    return work


def fft_work(dft: TruncatedDFT) -> dict[str, float]:
    """Points times log2(n) of the pruned FFT for one plane, apart for smooth and rough axis lengths n."""
    work, rest = {"smooth": 0.0, "rough": 0.0}, float(math.prod(dft.shape))
    for axis in reversed(range(len(dft.shape))):
        n = dft.shape[axis]
        kind = "smooth" if _largest_prime(n) <= LARGEST_SMOOTH_PRIME else "rough"
        work[kind] += rest * (1 + math.log2(n))
        rest *= 2 * dft.modes[axis] / n if axis == len(dft.shape) - 1 else dft.modes[axis] / n
    return work


@functools.lru_cache(maxsize=1024)
def prefers_fft(dft: TruncatedDFT, dtype: torch.dtype) -> bool:
    """Whether the pruned FFT is the cheaper form of this transform by the table."""
    price = cost_table()[str(dtype).removeprefix("torch.")]
    by_fft = sum(price[kind] * work for kind, work in fft_work(dft).items())
    return by_fft < price["matrix"] * matrix_work(dft)


def _largest_prime(n: int) -> int:
    largest, p = 1, 2
    while p * p <= n:
        while n % p == 0:
            largest, n = p, n // p
        p += 1
    return max(largest, n)
