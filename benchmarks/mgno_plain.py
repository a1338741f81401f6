"""The published MgNO written the straightforward way, convolution modules of torch in a row: what ours is timed beside."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.layers.mlp import ChannelLinear
from opflow.layers.multigrid import Level
from opflow.models import MgNO
from opflow.models.mgno import MultigridLayer


class PlainCycle(nn.Module):
    """One smoothing a level and two on the coarsest, f restricted, every level started from the finer one; zeros outside.

    For grids whose size 2^(n_levels - 1) divides.
    """

    def __init__(self, in_channels: int, channels: int, n_levels: int) -> None:
        super().__init__()

        def conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False)

        steps = [*range(n_levels), n_levels - 1]
        self.S = nn.ModuleList(conv(in_channels, channels) for _ in steps)
        self.A = nn.ModuleList(conv(channels, in_channels) for _ in steps[1:])
        self.R = nn.ModuleList(conv(in_channels, in_channels, 2) for _ in range(n_levels - 1))
        self.Pi = nn.ModuleList(conv(channels, channels, 2) for _ in range(n_levels - 1))
        self.P = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False) for _ in range(n_levels - 1)
        )

    def forward(self, f: Tensor) -> Tensor:
        """(batch, in, n1, n2) -> (batch, channel, n1, n2)"""
        u = self.S[0](f)
        fine = []
        for R, Pi, S, A in zip(self.R, self.Pi, self.S[1:], self.A, strict=False):
            fine.append(u)
            f, u = R(f), Pi(u)
            u = u + S(f - A(u))
        u = u + self.S[-1](f - self.A[-1](u))
        for P, v in zip(reversed(self.P), reversed(fine), strict=True):
            u = v + P(u)
        return u


class PlainMgNO(nn.Module):
    """The layers s(W v + K v + b) and a linear map at every point."""

    def __init__(self, in_channels: int, out_channels: int, channels: int, n_layers: int, n_levels: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * n_layers
        self.cycles = nn.ModuleList(PlainCycle(a, channels, n_levels) for a in widths[:-1])
        self.skips = nn.ModuleList(nn.Conv2d(a, channels, 1) for a in widths[:-1])
        self.project = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, n1, n2) -> (batch, out, n1, n2)"""
        for cycle, skip in zip(self.cycles, self.skips, strict=True):
            x = F.gelu(cycle(x) + skip(x))
        return self.project(x)


@torch.no_grad()
def plain_of(model: MgNO) -> PlainMgNO:
    """The same network with the same weights, of a model of the published form that imposes no boundary values."""
    layers = [cast(MultigridLayer, layer) for layer in model.layers]
    project = cast(ChannelLinear, model.project)
    plain = PlainMgNO(
        layers[0].conv.in_channels, project.out_channels, project.in_channels, len(layers), layers[0].conv.n_levels
    )
    for layer, cycle, skip in zip(layers, plain.cycles, plain.skips, strict=True):
        levels = [cast(Level, level) for level in layer.conv.levels]
        ours = {
            "S": [S for level in levels for S in level.S],
            "A": [A for level in levels for A in level.A],
            "R": [level.restrict for level in levels[:-1]],
            "Pi": [level.project for level in levels[:-1]],
            "P": [level.prolong for level in levels[:-1]],
        }
        for name, parts in ours.items():
            for theirs, part in zip(getattr(cycle, name), parts, strict=True):
                theirs.weight.copy_(part.weight)
        skip.weight.copy_(layer.skip.weight[:, :, None, None])
        skip.bias.copy_(layer.skip.bias)
    plain.project.weight.copy_(project.weight[:, :, None, None])
    return plain.to(project.weight.device)
