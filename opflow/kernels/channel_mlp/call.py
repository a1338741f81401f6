"""One call of the perceptron along the channels: what a backend is chosen from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.kernels.backend import only_plain_operations


@dataclass(frozen=True)
class ChannelMLPCall:
    """Dtype and device; `only_reference` says why none but plain torch operations can serve, where that is so."""

    dtype: torch.dtype
    device: torch.device
    only_reference: str | None = None

    @staticmethod
    def of(*tensors: Tensor | None) -> ChannelMLPCall:
        """The call on these tensors, the field first."""
        given = [tensor for tensor in tensors if tensor is not None]
        reason = only_plain_operations(*given)
        if reason is None and len({tensor.dtype for tensor in given}) > 1:
            reason = "the tensors have several dtypes"
        return ChannelMLPCall(given[0].dtype, given[0].device, reason)
