"""The real matrices of a truncated DFT as the Triton kernels read them: built in float64, padded with zeros, kept."""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from opflow.kernels.backend import constant_when_compiled
from opflow.kernels.spectral_conv.dft import TruncatedDFT, waves

# A multiple of every tile along an axis, so that kernels read tables without masks.
POINTS = 128


def padded_modes(count: int) -> int:
    """The power of two, at least 16, that holds `count` frequencies: the smallest side of a matrix product in Triton."""
    side = 16
    while side < count:
        side *= 2
    return side


def padded_points(n: int) -> int:
    """The multiple of POINTS that holds n points."""
    return -(-n // POINTS) * POINTS


def tables(dft: TruncatedDFT, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """One matrix an axis: [(cos | sin) |k|, j] on leading axes, [(s cos | -s sin) k, j] on the last."""
    if not torch.compiler.is_compiling():
        return _built(dft, dtype, device)
    # A compiled graph holds the tables as constants of its grid; writing a number out is how one is fixed there.
    shape = tuple(int(f"{n}") for n in dft.shape)
    kept = tuple((int(f"{lowest}"), int(f"{highest}")) for lowest, highest in dft.kept)
    name = _shelved(shape, kept, dft.weights, dft.mean, dtype, device)
    return [getattr(_SHELF, f"{name}_{axis}") for axis in range(len(shape))]


class _Shelf:
    """Where a compiled graph finds its tables: attributes of one object, each of which it can guard by itself."""


_SHELF = _Shelf()


@lru_cache(maxsize=128)
def _built(dft: TruncatedDFT, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    # Tables outlive the modes that they happen to be built under: plain tensors, also for a later backward pass.
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        made = []
        for n, (lowest, highest) in zip(dft.shape[:-1], dft.kept[:-1], strict=True):
            made.append(_stack(*waves(n, 0, max(-lowest, highest))))  # one row serves +k and -k
        cosine, sine = waves(dft.shape[-1], *dft.kept[-1])
        s = torch.tensor(dft.scale, dtype=torch.float64)[:, None]
        made.append(_stack(s * cosine, -s * sine))
        return [table.to(device, dtype) for table in made]


def _stack(first: Tensor, second: Tensor) -> Tensor:
    (count, n), side = first.shape, padded_modes(first.shape[0])
    table = torch.zeros(2, side, padded_points(n), dtype=torch.float64)
    table[0, :count, :n], table[1, :count, :n] = first, second
    return table.flatten(0, 1)


@constant_when_compiled
def _shelved(
    shape: tuple[int, ...], kept: tuple[tuple[int, int], ...], weights: tuple[float, ...], mean: bool,
    dtype: torch.dtype, device: torch.device,
) -> str:  # fmt: skip
    """Put the tables on the shelf while a graph is traced, and say under which name."""
    return _shelve(TruncatedDFT(shape, kept, weights, mean), dtype, device)


@cache
def _shelve(dft: TruncatedDFT, dtype: torch.dtype, device: torch.device) -> str:
    name = f"tables_{len(vars(_SHELF))}"
    for axis, table in enumerate(_built(dft, dtype, device)):
        # At a fixed address, so that a captured graph reads it in place.
        torch._dynamo.mark_static_address(table, guard=False)
        setattr(_SHELF, f"{name}_{axis}", table)
    return name
