"""Stateless operations: the layers of opflow are these functions with parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from opflow.fourier import resample
from opflow.kernels.backend import choose, explain
from opflow.kernels.spectral_conv.backends import BACKENDS
from opflow.kernels.spectral_conv.call import SpectralConvCall

__all__ = ["explain_backend", "resample", "spectral_conv"]


def spectral_conv(
    x: Tensor,
    weight: Tensor,
    n_modes: int | Sequence[int],
    *,
    output_shape: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """The spectral convolution of a Fourier neural operator (Li et al. 2021, eq. 4).

        y(s) = Re sum_k c_k R_k xhat_k exp(2 pi i k.s),    xhat_k = mean_j x_j exp(-2 pi i k.s_j),

    over the half of the frequencies with k_last >= 0; c_k = 2 where the mirrored -k_last is summed with it and 1 on
    the unpaired columns k_last = 0 and n_last/2. For inputs with |k_j| < min(n_j, n_modes_j)/2 this is the same
    function s -> y(s) on every grid; frequencies beyond the limit of either grid are dropped.

    Args:
        x: (batch, in_channels, *grid), one to three grid axes of any size; real.
        weight: (*kept, 2, in_channels, out_channels), real and imaginary parts; kept frequencies are
            -(m//2) .. (m-1)//2 in increasing order on the leading axes and 0 .. m//2 on the last.
        n_modes: two-sided number of modes m per axis.
        output_shape: evaluate y on another grid of the same domain.
        backend: None chooses the best that supports the call; a name means that one, or an error with its reason.

    Returns:
        y (batch, out_channels, *output_shape) in the dtype of x.

    Raises:
        ValueError: shapes, modes, devices or the backend do not fit. TypeError: the dtypes do not.

    >>> import torch
    >>> spectral_conv(torch.zeros(2, 3, 16, 15), torch.zeros(8, 5, 2, 3, 4), (8, 8)).shape
    torch.Size([2, 4, 16, 15])
    """
    call = SpectralConvCall.of(x, weight, _modes(n_modes), None if output_shape is None else tuple(output_shape))
    return choose(BACKENDS, call, backend)(x, weight, call)


def explain_backend(
    x: Tensor, weight: Tensor, n_modes: int | Sequence[int], *, output_shape: Sequence[int] | None = None
) -> str:
    """Which backend `spectral_conv` takes for these arguments, and why the ones before it do not serve."""
    call = SpectralConvCall.of(x, weight, _modes(n_modes), None if output_shape is None else tuple(output_shape))
    return explain(BACKENDS, call)


def _modes(n_modes: int | Sequence[int]) -> tuple[int, ...]:
    return (n_modes,) if isinstance(n_modes, int) else tuple(n_modes)
