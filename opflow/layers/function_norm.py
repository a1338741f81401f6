"""Normalisation by means over the domain: what a norm over pixels becomes on every grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.layers.embedding import as_layout
from opflow.typing import Field, check_field


class FunctionNorm(nn.Module):
    """v_c -> w_c (v_c - mean) / sqrt(var + eps) + b_c,   mean = sum_{c' in G(c)} int v_c' dx / (|G| |D|), var likewise.

    The means over a group G of channels and over the domain D are integrals by the grid's quadrature weights, so that they
    converge with its order: on nodes the two ends count half, where a mean over pixels is off by the first power of the spacing. On
    cells and periodic axes all weights are equal, and this is torch's GroupNorm.

    Args:
        groups: how many groups of neighbouring channels; `channels` of them make an instance norm.
        layout: "nodes", "cells" or "periodic", per axis or one for all.
        dim: the number of axes.

    >>> FunctionNorm(8, 2, "nodes", dim=2)(torch.zeros(2, 8, 16, 15)).shape
    torch.Size([2, 8, 16, 15])
    """

    def __init__(
        self,
        channels: int,
        groups: int = 1,
        layout: str | Sequence[str] = "periodic",
        *,
        dim: int,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(
                f"channels is {channels} and groups {groups}; both are positive, and the groups have as many channels each."
            )
        self.channels, self.groups, self.layout, self.eps = channels, groups, as_layout(layout, dim), eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, v: Field) -> Field:
        """(batch, channel, *grid) -> the same"""
        check_field(v, self.channels, len(self.layout), self.weight, "FunctionNorm")
        u = v.unflatten(1, (self.groups, self.channels // self.groups))
        u = u - self._mean(u)
        u = (u * (self._mean(u.square()) + self.eps).rsqrt()).flatten(1, 2)
        shape = (-1, *[1] * len(self.layout))
        return torch.addcmul(self.bias.view(shape), self.weight.view(shape), u)

    def _mean(self, u: Tensor) -> Tensor:
        """(batch, groups, channels, *grid) -> (batch, groups, 1, *ones)"""
        for axis, kind in enumerate(self.layout, start=3):
            n, inner = u.shape[axis], u.sum(axis, keepdim=True)
            if kind == "nodes":
                u = (inner - (u.narrow(axis, 0, 1) + u.narrow(axis, n - 1, 1)) / 2) / (n - 1)
            else:
                u = inner / n
        return u.mean(2, keepdim=True)

    def extra_repr(self) -> str:
        """Channels and groups for `print(model)`."""
        return f"{self.channels}, {self.groups}, layout={self.layout}"
