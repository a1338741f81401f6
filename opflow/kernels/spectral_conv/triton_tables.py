"""The real matrices of a truncated DFT as the Triton kernels read them: built in float64, padded with zeros, kept."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from opflow.kernels.spectral_conv.dft import TruncatedDFT, waves

# A multiple of every tile along an axis, so that kernels read tables without masks.
POINTS = 128


def padded_modes(count: int) -> int:
    """The power of two, at least 16, that holds `count` frequencies: the smallest side of a matrix product in Triton."""
    return max(16, 1 << (count - 1).bit_length())


def padded_points(n: int) -> int:
    """The multiple of POINTS that holds n points."""
    return -(-n // POINTS) * POINTS


def tables(dft: TruncatedDFT, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """One matrix an axis: [(cos | sin) |k|, j] on leading axes, [(s cos | -s sin) k, j] on the last."""
    axes = list(zip(dft.shape, dft.kept, strict=True))
    leading = [leading_table(n, max(-lowest, highest), dtype, device) for n, (lowest, highest) in axes[:-1]]
    return [*leading, last_table(axes[-1][0], dft.scale, dtype, device)]


# A compiled graph takes the tables as constants: they are made once, before any CUDA graph is captured.
@torch.compiler.assume_constant_result
@lru_cache(maxsize=128)
def leading_table(n: int, highest: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows cos(2 pi k j/n), then sin, for k = 0 .. highest: they serve +k and -k."""
    return _stack(*waves(n, 0, highest), dtype, device)


@torch.compiler.assume_constant_result
@lru_cache(maxsize=128)
def last_table(n: int, scale: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows s_k cos(2 pi k j/n), then -s_k sin, for k = 0 .. len(scale) - 1."""
    cosine, sine = waves(n, 0, len(scale) - 1)
    s = torch.tensor(scale, dtype=torch.float64)[:, None]
    return _stack(s * cosine, -s * sine, dtype, device)


def _stack(first: Tensor, second: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    # The table outlives the modes it happens to be built under: a plain tensor, also for a later backward pass.
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        (count, n), side = first.shape, padded_modes(first.shape[0])
        table = torch.zeros(2, side, padded_points(n), dtype=torch.float64)
        table[0, :count, :n], table[1, :count, :n] = first, second
        return table.flatten(0, 1).to(device, dtype)
