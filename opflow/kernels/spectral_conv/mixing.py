"""The product of spectra with the weights, mode by mode, in real arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_rows(spectrum: Tensor) -> Tensor:
    """Spectra (modes, 2, batch, channel) as the real matrices [[Xr, -Xi], [Xi, Xr]] (modes, 2 batch, 2 channel).

    Times a weight (modes, 2 in, out), which holds the real above the imaginary part as it is stored, this gives the real
    above the imaginary part of X R: one real product a mode, and the weight is never copied.
    """
    real, imaginary = spectrum.unbind(1)
    return torch.cat([torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1)


def complex_rows_adjoint(rows: Tensor) -> Tensor:
    """The adjoint of `complex_rows`: (modes, 2 batch, 2 channel) -> (modes, 2, batch, channel)."""
    modes, batch, channel = rows.shape[0], rows.shape[1] // 2, rows.shape[2] // 2
    parts = rows.view(modes, 2, batch, 2, channel)
    real = parts[:, 0, :, 0] + parts[:, 1, :, 1]
    imaginary = parts[:, 1, :, 0] - parts[:, 0, :, 1]
    return torch.stack([real, imaginary], dim=1)
