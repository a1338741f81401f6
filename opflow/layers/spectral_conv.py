"""The spectral convolution as a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.functional import spectral_conv
from opflow.kernels.spectral_conv.call import weight_grid
from opflow.layers.tucker import Tucker
from opflow.typing import Field


def as_modes(n_modes: int | Sequence[int]) -> tuple[int, ...]:
    """`n_modes` as a tuple of positive numbers, its length the dimension."""
    modes = (n_modes,) if isinstance(n_modes, int) else tuple(n_modes)
    if len(modes) not in (1, 2, 3) or any(not isinstance(m, int) or m <= 0 for m in modes):
        raise ValueError(
            f"n_modes is {n_modes}; give one positive whole number per axis, for one to three axes, such as (16, 16)."
        )
    return modes


class SpectralConv(nn.Module):
    """(K v)(s) = Re sum_k c_k R_k vhat_k exp(2 pi i k.s) + b   (Li et al. 2021, eq. 4); see `functional.spectral_conv`.

    The same function on every grid that resolves its input; real-stored weights (*kept, 2, in, out).

    Args:
        n_modes: two-sided number of modes per axis, its length the dimension; (16, 16) keeps k = -8..7 and 0..8.
        bias: add one number per output channel.
        backend: None chooses the best that supports each call; a name means that one, or an error with its reason.
        rank: None for dense weights; a fraction in (0, 1] for Tucker weights with that share of the parameters.

    >>> SpectralConv(3, 8, (16, 16))(torch.zeros(2, 3, 64, 63)).shape
    torch.Size([2, 8, 64, 63])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: int | Sequence[int],
        *,
        bias: bool = True,
        backend: str | None = None,
        rank: float | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"in_channels is {in_channels} and out_channels {out_channels}; both must be positive.")
        self.in_channels, self.out_channels, self.n_modes = in_channels, out_channels, as_modes(n_modes)
        self.backend, self.rank = backend, rank
        shape = (*weight_grid(self.n_modes), 2, in_channels, out_channels)
        # E|R_k|^2 = 1 / (3 in_channels), so that K v starts with the variance of the 1 x 1 convolution beside it.
        std = 1 / math.sqrt(6 * in_channels)
        if rank is None:
            self.weight: Tensor | Tucker = nn.Parameter(std * torch.randn(shape))
        else:
            self.weight = Tucker(shape, rank=rank, std=std)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Field, output_shape: Sequence[int] | None = None) -> Field:
        """(batch, in, *grid) -> (batch, out, *output_shape), by default on the grid of x."""
        y = spectral_conv(x, self.dense_weight(), self.n_modes, output_shape=output_shape, backend=self.backend)
        if self.bias is not None:
            y = y + self.bias.view(-1, *[1] * len(self.n_modes)).to(y.dtype)
        return y

    def dense_weight(self) -> Tensor:
        """R (*kept, 2, in, out), multiplied out where it is stored in Tucker form."""
        return self.weight() if isinstance(self.weight, Tucker) else self.weight

    def extra_repr(self) -> str:
        """Channels and modes for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, n_modes={self.n_modes}" + (
            f", rank={self.rank}" if self.rank else ""
        )
