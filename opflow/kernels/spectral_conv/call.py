"""One call of the spectral convolution: its shapes, checked, and the frequencies that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from opflow.kernels.backend import only_plain_operations
from opflow.kernels.spectral_conv.dft import TruncatedDFT


def weight_grid(n_modes: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of a spectral weight: all of k = -(m//2) .. (m-1)//2, and k = 0 .. m//2 on the last axis."""
    return (*n_modes[:-1], n_modes[-1] // 2 + 1)


@dataclass(frozen=True)
class SpectralConvCall:
    """Shapes, dtype and device of y(x) = Re sum_k c_k R_k x_k exp(2 pi i k x): all that a backend is chosen from.

    `only_reference` says why none but plain torch operations can serve, in words, where that is so.
    """

    n_modes: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    channels: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    only_reference: str | None = None

    @staticmethod
    def of(
        x: Tensor, weight: Tensor, n_modes: tuple[int, ...], output_shape: tuple[int, ...] | None
    ) -> SpectralConvCall:
        """Check the arguments of `functional.spectral_conv`; every error says what came and what was expected."""
        dim = len(n_modes)
        if dim not in (1, 2, 3):
            raise ValueError(f"n_modes {n_modes} names {dim} dimensions; the spectral convolution works in 1, 2 or 3.")
        if any(m <= 0 for m in n_modes):
            raise ValueError(f"n_modes is {n_modes}; every entry must be a positive number of modes.")
        if x.ndim != dim + 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)} with {x.ndim} axes, but n_modes {n_modes} expects {dim + 2}: (batch, channel, "
                f"{', '.join(('nx', 'ny', 'nz')[:dim])})."
            )
        if not x.is_floating_point() or not weight.is_floating_point():
            raise TypeError(
                f"x is {x.dtype} and weight is {weight.dtype}; both must be real floating-point tensors "
                "(spectral weights are stored as real pairs, fields are converted with .float())."
            )
        kept = (*weight_grid(n_modes), 2)
        if weight.ndim != dim + 3 or tuple(weight.shape[:-2]) != kept:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} but n_modes {n_modes} expects "
                f"({', '.join(map(str, kept))}, in_channels, out_channels): kept modes, real and imaginary part, in, out."
            )
        if weight.shape[-2] != x.shape[1]:
            raise ValueError(
                f"x has {x.shape[1]} channels but the weight expects {weight.shape[-2]}; "
                "fields are (batch, channel, *grid), so check that the channel axis is second."
            )
        if x.device != weight.device:
            raise ValueError(f"x is on {x.device} and weight on {weight.device}; move one with .to(device).")
        if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
            raise TypeError(
                f"x is {x.dtype} but weight is {weight.dtype}; mixing double with single precision would lose digits in silence: "
                "convert the model with .double() or the field with .float()."
            )
        in_shape = tuple(x.shape[2:])
        if output_shape is not None and len(output_shape) != dim:
            raise ValueError(
                f"output_shape {output_shape} has {len(output_shape)} entries, but the field has {dim} grid axes."
            )
        out_shape = in_shape if output_shape is None else output_shape
        if any(n < 1 for n in in_shape) or any(n < 1 for n in out_shape):
            raise ValueError(f"the grid is {in_shape} and the output {out_shape}; every axis needs at least one point.")
        channels = (x.shape[1], weight.shape[-1])
        return SpectralConvCall(
            n_modes, in_shape, out_shape, channels, x.dtype, x.device, only_plain_operations(x, weight)
        )

    def kept(self, axis: int) -> tuple[int, int]:
        """The frequencies lowest .. highest that the weight, the input grid and the output grid all have."""
        m, n, n_out = self.n_modes[axis], self.in_shape[axis], self.out_shape[axis]
        if axis == len(self.n_modes) - 1:
            return 0, min(m // 2, n // 2, n_out // 2)
        return -min(m // 2, n // 2, n_out // 2), min((m - 1) // 2, (n - 1) // 2, (n_out - 1) // 2)

    def analysis(self) -> TruncatedDFT:
        """xhat_k = mean_j x_j exp(-2 pi i k.j/n) on the input grid."""
        kept = tuple(self.kept(axis) for axis in range(len(self.n_modes)))
        return TruncatedDFT(self.in_shape, kept, (1.0,) * (kept[-1][1] + 1), mean=True)

    def synthesis(self) -> TruncatedDFT:
        """y_j = Re sum_k c_k Y_k exp(2 pi i k.j/n) on the output grid; c_k is 1 on unpaired columns, else 2."""
        kept = tuple(self.kept(axis) for axis in range(len(self.n_modes)))
        c = tuple(1.0 if k == 0 or 2 * k == self.in_shape[-1] else 2.0 for k in range(kept[-1][1] + 1))
        return TruncatedDFT(self.out_shape, kept, c, mean=False)

    def kept_weight(self, weight: Tensor) -> Tensor:
        """The part (*kept, 2, in, out) of a weight that belongs to the kept frequencies."""
        for axis, m in enumerate(self.n_modes):
            lowest, highest = self.kept(axis)
            first = 0 if axis == len(self.n_modes) - 1 else m // 2 + lowest
            weight = weight.narrow(axis, first, highest - lowest + 1)
        return weight

    def embedded_weight(self, kept: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of `kept_weight`: zeros of the given shape around the kept part."""
        padding = [0] * 6
        for axis, m in reversed(list(enumerate(self.n_modes))):
            lowest, highest = self.kept(axis)
            first = 0 if axis == len(self.n_modes) - 1 else m // 2 + lowest
            padding += [first, shape[axis] - first - (highest - lowest + 1)]
        return pad(kept, padding) if any(padding) else kept
