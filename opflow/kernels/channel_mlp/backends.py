"""The backends of the perceptron along the channels, in order of preference."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from opflow.kernels.backend import Backend
from opflow.kernels.channel_mlp.call import ChannelMLPCall
from opflow.kernels.channel_mlp.cpu_backend import Cpu
from opflow.kernels.channel_mlp.reference import Reference


class ChannelMLPBackend(Backend[ChannelMLPCall], Protocol):
    """One implementation of the perceptron along the channels."""

    def __call__(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        beside: Tensor | None,
        gate: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        """s(W2 gelu(W1 x + b1) + b2 + g v) of fields flattened to (batch, channel, points)."""
        ...


BACKENDS: tuple[ChannelMLPBackend, ...] = (Cpu(), Reference())
