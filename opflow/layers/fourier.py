"""The Fourier layer, and the skip connections that stand beside its spectral convolution."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from opflow.functional import fourier_block
from opflow.layers.mlp import ChannelLinear, ChannelMLP, is_exact_gelu, is_watched
from opflow.layers.spectral_conv import SpectralConv
from opflow.typing import Field, check_field


class SoftGate(nn.Module):
    """x -> w x + b with one w and one b per channel; starts as the identity.

    Args:
        bias: without it, x -> w x: beside a map that ends in a bias of its own.

    >>> SoftGate(3)(torch.ones(2, 3, 4)).sum()
    tensor(24., grad_fn=<SumBackward0>)
    """

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Field) -> Field:
        """(batch, channel, *grid) -> the same"""
        check_field(x, self.weight.shape[0], None, self.weight, "SoftGate")
        shape = (-1, *[1] * (x.ndim - 2))
        weight = self.weight.view(shape)
        return weight * x if self.bias is None else torch.addcmul(self.bias.view(shape), weight, x)


class FourierLayer(nn.Module):
    """v -> s(K v + W v), then optionally s(M(.) + G v)   (Li et al. 2021, eq. 2; Kossaifi et al. 2023 for the second half).

    Args:
        conv: K, the spectral convolution.
        skip: W, beside it; None for no skip.
        channel_mlp: M, a perceptron along the channels; None to stop after the first half.
        channel_mlp_skip: G, beside M, applied to the layer's input.
        norm: applied to K v + W v before the activation.
        activation: s; nn.Identity() in a model's last layer.

    >>> from opflow.layers.mlp import ChannelLinear
    >>> FourierLayer(SpectralConv(8, 8, (5, 5)), ChannelLinear(8, 8))(torch.zeros(2, 8, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        conv: SpectralConv,
        skip: nn.Module | None = None,
        *,
        channel_mlp: nn.Module | None = None,
        channel_mlp_skip: nn.Module | None = None,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if channel_mlp is None and channel_mlp_skip is not None:
            raise ValueError(
                "channel_mlp_skip was given without channel_mlp; the skip stands beside the perceptron, so give both or neither."
            )
        self.conv, self.skip, self.norm = conv, skip, norm
        self.channel_mlp, self.channel_mlp_skip = channel_mlp, channel_mlp_skip
        self.activation = activation or nn.GELU()

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        can_fuse, can_fuse_mlp = self._can_fuse(), self._can_fuse_mlp()
        if can_fuse and can_fuse_mlp and self.conv.in_channels == self.conv.out_channels:
            return self._fused(v, whole=True)
        y = self._fused(v) if can_fuse else self._by_parts(v)
        if self.channel_mlp is None:
            return y
        if can_fuse_mlp:
            mlp, gate = cast(ChannelMLP, self.channel_mlp), cast(SoftGate, self.channel_mlp_skip)
            check_field(v, gate.weight.shape[0], None, gate.weight, "SoftGate")
            return mlp.with_skip(y, v, gate.weight, gate.bias, self._activation_name())
        y = self.channel_mlp(y)
        if self.channel_mlp_skip is not None:
            y = y + self.channel_mlp_skip(v)
        return self.activation(y)

    def _by_parts(self, v: Field) -> Field:
        y = self.conv(v)
        if self.skip is not None:
            y = y + self.skip(v)
        if self.norm is not None:
            y = self.norm(y)
        return self.activation(y)

    def _can_fuse(self) -> bool:
        """Whether s(K v + W v + b) is one operation: the usual parts, and nobody who watches them one by one."""
        return (
            type(self.conv) is SpectralConv
            and type(self.skip) is ChannelLinear
            and self.norm is None
            and (type(self.activation) is nn.Identity or is_exact_gelu(self.activation))
            and not is_watched(self.conv, self.skip, self.activation)
        )

    def _can_fuse_mlp(self) -> bool:
        """Whether s(M(.) + G v) is one operation."""
        return (
            type(self.channel_mlp) is ChannelMLP
            and self.channel_mlp.is_fusible()
            and type(self.channel_mlp_skip) is SoftGate
            and (type(self.activation) is nn.Identity or is_exact_gelu(self.activation))
            and not is_watched(self.channel_mlp, self.channel_mlp_skip, self.activation)
        )

    def _activation_name(self) -> str | None:
        return None if type(self.activation) is nn.Identity else "gelu"

    def _fused(self, v: Field, *, whole: bool = False) -> Field:
        conv, skip = self.conv, cast(ChannelLinear, self.skip)
        check_field(v, conv.in_channels, len(conv.n_modes), skip.weight, "FourierLayer")
        biases = [part.bias for part in (conv, skip) if part.bias is not None]
        bias = sum(biases[1:], biases[0]) if biases else skip.weight.new_zeros(skip.out_channels)
        perceptron = gate = None
        if whole:
            mlp, soft = cast(ChannelMLP, self.channel_mlp), cast(SoftGate, self.channel_mlp_skip)
            perceptron, gate = mlp.arrays(soft.bias), soft.weight
        return fourier_block(
            v, conv.dense_weight(), conv.n_modes, skip.weight, bias,
            activation=self._activation_name(), backend=conv.backend, perceptron=perceptron, gate=gate,
        )  # fmt: skip
