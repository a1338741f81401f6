"""Encoders of one measurement: the values at its sensors to features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn

from opflow.layers.mlp import MLP
from opflow.typing import check_placement, check_sizes


class SensorEncoder(nn.Module):
    """Values at sensors along a closed boundary -> features: circular convolutions of stride 2, then one linear map.

    The boundary has no ends, so neither has the convolution: a corner of a square is a place like any other. Nothing is normalised,
    so that the size of a measurement, which is information on the coefficient, reaches the features.

    Args:
        in_channels: of the measurement.
        sensors: how many, on the whole boundary.
        features: of the output.
        channels: of the convolutions; each halves the sensors.
        kernel_size: odd.
        closed: False for a line of sensors with two ends, which is then padded with zeros.

    >>> import torch
    >>> SensorEncoder(1, 272, 64)(torch.zeros(5, 1, 272)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        in_channels: int,
        sensors: int,
        features: int,
        channels: Sequence[int] = (32, 64, 64, 64),
        *,
        kernel_size: int = 7,
        closed: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, sensors=sensors, features=features, kernel_size=kernel_size)
        if kernel_size % 2 == 0 or sensors < kernel_size:
            raise ValueError(
                f"kernel_size is {kernel_size} for {sensors} sensors; give an odd number, not more than the sensors."
            )
        widths, n = [in_channels, *channels], sensors
        self.in_channels, self.sensors = in_channels, sensors
        self.convs = nn.ModuleList()
        for a, b in pairwise(widths):
            size = min(kernel_size, n - 1 + n % 2)
            mode: Literal["circular", "zeros"] = "circular" if closed else "zeros"
            self.convs.append(nn.Conv1d(a, b, size, stride=2, padding=size // 2, padding_mode=mode))
            n = -(-n // 2)
        self.linear = nn.Linear(widths[-1] * n, features)
        self.activation = nn.GELU()
        keep_size(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, sensors) -> (n, features)"""
        check_measurement(x, self.in_channels, (self.sensors,), self.linear.weight, "SensorEncoder")
        for conv in self.convs:
            x = self.activation(conv(x))
        return self.linear(x.flatten(1))


class FlatEncoder(nn.Module):
    """Values at sensors -> features by a perceptron, which knows nothing of where the sensors are.

    For measurements that are coefficients rather than values on a boundary, and where steps have to be cheap.

    Args:
        in_channels: of the measurement.
        sensors: their number, or the shape of their grid.
        features: of the output.
        hidden: widths between.
        skip: add a linear map of the values.

    >>> import torch
    >>> FlatEncoder(1, (32,), 64)(torch.zeros(5, 1, 32)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        in_channels: int,
        sensors: Sequence[int],
        features: int,
        hidden: Sequence[int] = (256,),
        *,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.sensors = in_channels, tuple(sensors)
        size = in_channels
        for n in self.sensors:
            size *= n
        self.mlp = MLP((size, *hidden, features), skip=skip)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, *sensors) -> (n, features)"""
        first = cast(nn.Linear, self.mlp.linears[0]).weight
        check_measurement(x, self.in_channels, self.sensors, first, "FlatEncoder")
        return self.mlp(x.flatten(1))


class ImageEncoder(nn.Module):
    """Records (time, receiver) -> features: strided convolutions, longer in time than in space, then one linear map.

    After InversionNet (Wu and Lin 2019), at a fraction of its width and without normalisation: time is first cut down to the number of
    receivers, then both are halved together until few points are left.

    Args:
        in_channels: of the measurement.
        sensors: (times, receivers).
        features: of the output.
        channels: of the convolutions in time; the last is that of the halvings.

    >>> import torch
    >>> ImageEncoder(1, (200, 35), 64)(torch.zeros(3, 1, 200, 35)).shape
    torch.Size([3, 64])
    """

    def __init__(
        self, in_channels: int, sensors: Sequence[int], features: int, channels: Sequence[int] = (16, 32, 48)
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, features=features)
        if len(sensors) != 2 or len(channels) < 1:
            raise ValueError(f"sensors is {tuple(sensors)}; give (times, receivers).")
        self.in_channels, self.sensors = in_channels, tuple(sensors)
        (t, r), width = self.sensors, in_channels
        layers: list[nn.Module] = []
        widths = iter(channels)
        while t > 2 * r or not layers:
            new = next(widths, channels[-1])
            layers += [nn.Conv2d(width, new, (7, 1), stride=(2, 1), padding=(3, 0)), nn.GELU()]
            t, width = -(-t // 2), new
        while t > 6 and r > 6:
            new = next(widths, channels[-1])
            layers += [nn.Conv2d(width, new, 3, stride=2, padding=1), nn.GELU()]
            t, r, width = -(-t // 2), -(-r // 2), new
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(width * t * r, features)
        keep_size(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, times, receivers) -> (n, features)"""
        check_measurement(x, self.in_channels, self.sensors, self.linear.weight, "ImageEncoder")
        return self.linear(self.convs(x).flatten(1))


class SideEncoder(nn.Module):
    """The branch of the published NIO for a square: convolutions along its sides, which do not meet at the corners.

    Molinaro et al. (2023), with the channels of their code times `width`: kernels 1 x 7 and 1 x 3 along the sensors of a side, batch
    normalisation, LeakyReLU(0.2), and one convolution over what is left of the four sides. Kept for comparison: zero padding cuts the
    boundary at its corners, and batch normalisation makes the answer to one measurement depend on others in training.

    >>> import torch
    >>> SideEncoder(1, 272, 50, width=0.25)(torch.zeros(3, 1, 272)).shape
    torch.Size([3, 50])
    """

    def __init__(self, in_channels: int, sensors: int, features: int, *, width: float = 1.0) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, sensors=sensors, features=features)
        if sensors % 4 or sensors < 64:
            raise ValueError(f"sensors is {sensors}; give as many on each of the four sides, at least 16.")
        self.in_channels, self.sensors = in_channels, sensors
        plan = [(64, 7, 2), (128, 3, 2), (128, 3, 1), (256, 3, 2), (256, 3, 1), (512, 3, 2), (512, 3, 1)]
        layers: list[nn.Module] = []
        last, n = in_channels, sensors // 4
        for channels, size, stride in plan:
            new = max(1, round(channels * width))
            conv = nn.Conv2d(last, new, (1, size), stride=(1, stride), padding=(0, size // 2))
            layers += [conv, nn.BatchNorm2d(new), nn.LeakyReLU(0.2)]
            last, n = new, -(-n // stride)
        latent = max(1, round(512 * width))
        layers += [nn.Conv2d(last, latent, (4, n)), nn.BatchNorm2d(latent), nn.LeakyReLU(0.2)]
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(latent, features)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, sensors) -> (n, features)"""
        check_measurement(x, self.in_channels, (self.sensors,), self.linear.weight, "SideEncoder")
        return self.linear(self.convs(x.unflatten(-1, (4, -1))).flatten(1))


def keep_size(encoder: nn.Module) -> None:
    """Weights of convolutions with which values keep their size from layer to layer (He et al. 2015): nothing else does, without norms."""
    for part in encoder.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def check_measurement(x: Tensor, channels: int, sensors: tuple[int, ...], like: Tensor, owner: str) -> None:
    """Raise unless x is (n, channel, *sensors) with the layout that `owner` was built for."""
    if tuple(x.shape[1:]) != (channels, *sensors):
        raise ValueError(
            f"the measurements have shape {tuple(x.shape)} but {owner} expects (n, {channels}, {', '.join(map(str, sensors))}): "
            "another layout of sensors needs a model of its own, or interpolation to this one."
        )
    check_placement(x, like, owner, "the measurement")
