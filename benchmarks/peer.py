"""neuraloperator 2.0.0, and a transcription of its operations for machines where it cannot be installed.

The transcription does what the released layers do, operation by operation and in their order: `rfftn`, `fftshift`, zeros of
the full spectrum, the product over the kept modes (the weight first, as opt_einsum turns it), a second `fftshift` (on odd
leading axes the wrong one, as released), `irfftn`, the bias; 1 x 1 convolutions on flattened grids. Its modules bear the
names of the original's weights, so state dicts load both ways. `tests/benchmarks/test_peer.py` compares the two.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRANSCRIPTION = "a transcription of neuraloperator 2.0.0"


def neuraloperator() -> ModuleType | None:
    """The package, imported quietly and without its experiment tracker's network; None where it is not installed."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    os.environ.setdefault("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies warn at import
        try:
            import neuralop
            import neuralop.layers.spectral_convolution
            import neuralop.models
        except ImportError:
            return None
    return neuralop


def name() -> str:
    """Which peer a benchmark on this machine times."""
    return f"neuraloperator {version('neuraloperator')}" if neuraloperator() else TRANSCRIPTION


def spectral_conv(channels: int, n_modes: Sequence[int], *, bias: bool = False, transcribed: bool = False) -> nn.Module:
    """The peer's layer, or the transcription where asked for or where there is no other."""
    package = None if transcribed else neuraloperator()
    layer = package.layers.spectral_convolution.SpectralConv if package else SpectralConv
    return layer(channels, channels, tuple(n_modes), bias=bias)


def fno(n_modes: Sequence[int], channels: int, *, channel_mlp: bool = True, transcribed: bool = False) -> nn.Module:
    """The peer's FNO with its defaults, one channel in and out; or the transcription."""
    package = None if transcribed else neuraloperator()
    model = package.models.FNO if package else FNO
    return model(tuple(n_modes), 1, 1, channels, use_channel_mlp=channel_mlp)


class Weight(nn.Module):
    """The dense complex weight (in, out, *modes), under the name that it has in the original."""

    def __init__(self, shape: Sequence[int], std: float) -> None:
        super().__init__()
        self.tensor = nn.Parameter(std * torch.randn(*shape, dtype=torch.cfloat))


class SpectralConv(nn.Module):
    """(batch, in, *grid) -> (batch, out, *grid); no fewer points than modes."""

    def __init__(self, in_channels: int, out_channels: int, n_modes: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        std = (2 / (in_channels + out_channels)) ** 0.5
        self.out_channels, self.n_modes = out_channels, (*n_modes[:-1], n_modes[-1] // 2 + 1)
        self.weight = Weight((in_channels, out_channels, *self.n_modes), std)
        self.bias = nn.Parameter(std * torch.randn(out_channels, *[1] * len(n_modes))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        batch, _, *shape = x.shape
        axes = list(range(-len(shape), 0))
        spectrum = torch.fft.rfftn(x, norm="forward", dim=axes)
        if len(axes) > 1:
            spectrum = torch.fft.fftshift(spectrum, dim=axes[:-1])
        sizes = (*shape[:-1], shape[-1] // 2 + 1)
        out = torch.zeros([batch, self.out_channels, *sizes], device=x.device, dtype=torch.cfloat)
        weight = self.weight.tensor[(slice(None),) * (2 + len(axes))]
        kept = [slice(None), slice(None)]
        for n, m in zip(sizes[:-1], self.n_modes[:-1], strict=True):
            kept.append(slice(n // 2 - m // 2, n // 2 + m // 2 + m % 2))
        kept.append(slice(None, self.n_modes[-1]) if self.n_modes[-1] < sizes[-1] else slice(None))
        modes = "xyz"[: len(axes)]
        out[tuple(kept)] = torch.einsum(f"io{modes},bi{modes}->bo{modes}", weight, spectrum[tuple(kept)])
        if len(axes) > 1:
            out = torch.fft.fftshift(out, dim=axes[:-1])
        y = torch.fft.irfftn(out, s=shape, dim=axes, norm="forward")
        return y if self.bias is None else y + self.bias


class Skip(nn.Module):
    """A 1 x 1 convolution along the flattened grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.view(*x.shape[:2], -1)).view(x.shape)


class Gate(nn.Module):
    """x -> w x with one w per channel."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, *[1] * dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Perceptron(nn.Module):
    """Two 1 x 1 convolutions along the flattened grid with a GELU between."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.fcs = nn.ModuleList([nn.Conv1d(inputs, width, 1), nn.Conv1d(width, outputs, 1)])

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(*shape[:2], -1) if x.ndim > 3 else x
        x = self.fcs[1](F.gelu(self.fcs[0](x)))
        return x.reshape(shape[0], -1, *shape[2:]) if len(shape) > 3 else x


class Block(nn.Module):
    """gelu(K v + W v), the Fourier layer as the peer composes it: the transcription of its first half, or around its own K."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv, self.skip = conv, Skip(channels)

    def forward(self, v: Tensor) -> Tensor:
        skipped = self.skip(v)
        return F.gelu(self.conv(v) + skipped)


class Blocks(nn.Module):
    """The Fourier layers, each part in a list of its own as in the original."""

    def __init__(self, n_modes: Sequence[int], channels: int, n_layers: int, channel_mlp: bool) -> None:
        super().__init__()
        layers, dim = range(n_layers), len(n_modes)
        self.convs = nn.ModuleList(SpectralConv(channels, channels, n_modes) for _ in layers)
        self.fno_skips = nn.ModuleList(Skip(channels) for _ in layers)
        if channel_mlp:
            self.channel_mlp = nn.ModuleList(Perceptron(channels, round(channels * 0.5), channels) for _ in layers)
            self.channel_mlp_skips = nn.ModuleList(Gate(channels, dim) for _ in layers)
        self.has_mlp = channel_mlp

    def forward(self, x: Tensor, i: int) -> Tensor:
        is_last = i == len(self.convs) - 1
        skipped = self.fno_skips[i](x)
        if self.has_mlp:
            gated = self.channel_mlp_skips[i](x)
        x = self.convs[i](x) + skipped
        x = x if is_last else F.gelu(x)
        if self.has_mlp:
            x = self.channel_mlp[i](x) + gated
        return x if is_last else F.gelu(x)  # a second time also without a perceptron, as released


class FNO(nn.Module):
    """The model with its defaults: coordinates i/n appended, lifting and projection twice as wide, four layers."""

    def __init__(
        self,
        n_modes: Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        *,
        n_layers: int = 4,
        use_channel_mlp: bool = True,
    ) -> None:
        super().__init__()
        self.fno_blocks = Blocks(n_modes, hidden_channels, n_layers, use_channel_mlp)
        self.lifting = Perceptron(in_channels + len(n_modes), 2 * hidden_channels, hidden_channels)
        self.projection = Perceptron(hidden_channels, 2 * hidden_channels, out_channels)
        self._coordinates: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        if not self._coordinates or self._coordinates[0].shape[2:] != shape or self._coordinates[0].device != x.device:
            lines = [torch.linspace(0, 1, n + 1)[:-1] for n in shape]
            grids = torch.meshgrid(*lines, indexing="ij")
            self._coordinates = [grid.contiguous().to(x)[None, None] for grid in grids]
        grids = [grid.repeat(x.shape[0], *[1] * (x.ndim - 1)) for grid in self._coordinates]
        v = self.lifting(torch.cat((x, *grids), dim=1))
        for i in range(len(self.fno_blocks.convs)):
            v = self.fno_blocks(v, i)
        return self.projection(v)
