"""One use of a stencil: what a backend is chosen from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opflow.kernels.backend import only_plain_operations
from opflow.kernels.stencil.stencil import Stencil


@dataclass(frozen=True)
class StencilCall:
    """Shape with the batch in front, dtype, device; `only_reference` says why none but plain torch operations can serve, where that is so."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    only_reference: str | None = None

    @staticmethod
    def of(stencil: Stencil, batch: int, *tensors: torch.Tensor) -> StencilCall:
        """The call for `batch` fields on the grid of a stencil; `tensors` are the fields, where they are known."""
        given = (*stencil.upper, stencil.diagonal, *tensors)
        reason = only_plain_operations(*given)
        if reason is None and len({tensor.dtype for tensor in given}) > 1:
            reason = "the tensors have several dtypes"
        if reason is None and stencil.corners is not None:
            reason = "the stencil couples points across corners"
        if reason is None and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            reason = "gradients go through plain torch operations"
        return StencilCall((batch, *stencil.shape), stencil.diagonal.dtype, stencil.diagonal.device, reason)
