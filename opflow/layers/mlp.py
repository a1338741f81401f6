"""Perceptrons: along the last axis of points (MLP), and along the channel axis of fields (ChannelLinear, ChannelMLP)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.functional import channel_mlp
from opflow.kernels.channel_mlp.reference import channel_linear
from opflow.typing import Field, check_field, check_placement


class MLP(nn.Module):
    """x -> W_L s(... s(W_1 x + b_1) ...) + b_L [+ S x] along the last axis, s = `activation`.

    Args:
        sizes: the widths, input first: (in, hidden, ..., out).
        skip: add S x, so that the perceptron corrects a linear map.

    >>> MLP((2, 16, 1))(torch.zeros(5, 7, 2)).shape
    torch.Size([5, 7, 1])
    """

    def __init__(self, sizes: Sequence[int], *, activation: nn.Module | None = None, skip: bool = False) -> None:
        super().__init__()
        if len(sizes) < 2 or any(size < 1 for size in sizes):
            raise ValueError(f"sizes is {tuple(sizes)}; give at least an input and an output width, all positive.")
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = activation or nn.GELU()
        self.skip = nn.Linear(sizes[0], sizes[-1], bias=False) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        first = cast(nn.Linear, self.linears[0]).weight
        if x.shape[-1] != first.shape[1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but the MLP expects {first.shape[1]} numbers along the last axis."
            )
        check_placement(x, first, "the MLP")
        beside = None if self.skip is None else self.skip(x)
        for linear in self.linears[:-1]:
            x = self.activation(linear(x))
        x = self.linears[-1](x)
        return x if beside is None else x + beside


class ChannelLinear(nn.Module):
    """(W v + b)(s) = W v(s) + b at every grid point: a 1 x 1 convolution.

    >>> ChannelLinear(3, 8)(torch.zeros(2, 3, 16, 15)).shape
    torch.Size([2, 8, 16, 15])
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"in_channels is {in_channels} and out_channels {out_channels}; both must be positive.")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default of a 1 x 1 convolution: uniform with variance 1 / (3 in_channels)."""
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        check_field(x, self.in_channels, None, self.weight, "ChannelLinear")
        if x.stride(1) == 1 and self.in_channels > 1:  # the channels of a point stand side by side, and stay so
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        return channel_linear(x.flatten(2), self.weight, self.bias).unflatten(2, x.shape[2:])

    def extra_repr(self) -> str:
        """Channels for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"


class ChannelMLP(nn.Module):
    """A perceptron along the channel axis, the same at every grid point.

    Args:
        hidden_channels: width of the hidden layers; default `out_channels`.
        n_layers: linear maps in all; 1 is a plain ChannelLinear.

    >>> ChannelMLP(3, 64)(torch.zeros(2, 3, 16)).shape
    torch.Size([2, 64, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int | None = None,
        n_layers: int = 2,
        *,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}; a ChannelMLP needs at least one linear map.")
        widths = [in_channels, *[hidden_channels or out_channels] * (n_layers - 1), out_channels]
        self.linears = nn.ModuleList(ChannelLinear(a, b) for a, b in itertools.pairwise(widths))
        self.activation = activation or nn.GELU()

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        if self.is_fusible():
            return self.with_skip(x)
        for linear in self.linears[:-1]:
            x = self.activation(linear(x))
        return self.linears[-1](x)

    def is_fusible(self) -> bool:
        """Whether `with_skip` can serve: two linear maps with biases, exact GELU between them, and nobody watching."""
        return (
            len(self.linears) == 2
            and all(type(linear) is ChannelLinear and linear.bias is not None for linear in self.linears)
            and is_exact_gelu(self.activation)
            and not is_watched(*self.linears, self.activation)
        )

    def arrays(self, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W1, b1, W2 and b2 (+ `bias`) of M(x) = W2 gelu(W1 x + b1) + b2; only if `is_fusible`."""
        first, last = (cast(ChannelLinear, linear) for linear in self.linears)
        b1, b2 = cast(Tensor, first.bias), cast(Tensor, last.bias)
        return first.weight, b1, last.weight, b2 if bias is None else b2 + bias

    def with_skip(
        self, x: Field, beside: Field | None = None, gate: Tensor | None = None, bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Field:  # fmt: skip
        """s(M(x) + g v + b) in one pass over the field, see `functional.channel_mlp`; only if `is_fusible`."""
        first = cast(ChannelLinear, self.linears[0])
        check_field(x, first.in_channels, None, first.weight, "ChannelMLP")
        w1, b1, w2, b2 = self.arrays(bias)
        return channel_mlp(x, (w1, w2), (b1, b2), beside=beside, gate=gate, activation=activation)


def is_exact_gelu(module: nn.Module) -> bool:
    """Whether a module is GELU by the error function, which the fused operations compute."""
    return type(module) is nn.GELU and module.approximate == "none"


def is_watched(*modules: nn.Module | None) -> bool:
    """Whether a hook waits for one of these modules' own call, which a fused operation would pass by."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(module is not None and any(getattr(module, kind) for kind in kinds) for module in modules)
