"""Perceptrons whose depth opens during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualGateBlock(nn.Module):
    """x -> a h + (1 - a) x, h three layers gated by U and V   (Wang, Li, Chen and Perdikaris 2024, "PirateNets", eq. 4.2 to 4.8).

        f = s(W_1 x + b_1),  z_1 = f U + (1 - f) V,  g = s(W_2 z_1 + b_2),  z_2 = g U + (1 - g) V,  h = s(W_3 z_2 + b_3)

    a is learned and starts at 0, so that the block begins as the identity, however deep the network is.

    >>> block = ResidualGateBlock(8)
    >>> x = torch.rand(5, 8)
    >>> torch.equal(block(x, x, x), x)
    True
    """

    def __init__(self, width: int, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.activation = activation or nn.Tanh()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(..., width), the features and the two gates -> (..., width)"""
        first, second, third = self.linears
        h = x
        for linear in (first, second):
            f = self.activation(linear(h))
            h = f * u + (1 - f) * v
        h = self.activation(third(h))
        return self.gate * h + (1 - self.gate) * x


class ResidualGateMLP(nn.Module):
    """Residual gate blocks on features, U = s(W_u f + b_u) and V = s(W_v f + b_v), with a linear layer at the end.

    Args:
        in_features: of the features, see `PeriodicFeatures` and `FourierFeatures`; they are first mapped to `width`.
        width: of every block.
        n_blocks: each has three layers.

    >>> ResidualGateMLP(2, 1, 16, 3)(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, in_features: int, out_features: int, width: int, n_blocks: int, *, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give a positive whole number.")
        if n_blocks < 1:
            raise ValueError(f"n_blocks is {n_blocks}; give at least one block.")
        self.activation = activation or nn.Tanh()
        self.embed, self.gate_u, self.gate_v = (nn.Linear(in_features, width) for _ in range(3))
        self.blocks = nn.ModuleList(ResidualGateBlock(width, activation=self.activation) for _ in range(n_blocks))
        self.last = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        u, v = self.activation(self.gate_u(x)), self.activation(self.gate_v(x))
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, u, v)
        return self.last(h)
