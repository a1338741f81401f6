"""Features of coordinates: a box mapped to [-1, 1]^d, and random Fourier features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.typing import check_placement


def as_box(domain: Sequence[Sequence[float]], dim: int) -> tuple[tuple[float, float], ...]:
    """One pair of finite numbers (low, high) per coordinate."""
    pairs = [tuple(map(float, pair)) for pair in domain]
    if len(pairs) != dim or any(len(p) != 2 or not -math.inf < p[0] < p[1] < math.inf for p in pairs):
        raise ValueError(
            f"domain is {domain!r}; give a pair (low, high) with low < high for each of the {dim} coordinates, "
            "for example ((0.0, 1.0),) in one dimension."
        )
    return tuple((low, high) for low, high in pairs)


def is_symbolic(x: Tensor) -> bool:
    """Whether the values of a tensor cannot be looked at: in a graph that is compiled, exported or captured, under
    torch.func, or on the meta device.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_meta:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def check_inside(coords: Tensor, domain: Sequence[Sequence[float]], what: str, advice: str) -> None:
    """Raise unless all coordinates (..., dim) lie in the box, up to rounding; where values can be looked at, see `is_symbolic`.

    Args:
        what: what the sentence calls them.
        advice: how it ends.
    """
    if is_symbolic(coords):
        return
    low, high = torch.tensor(domain, dtype=coords.dtype, device=coords.device).unbind(-1)
    slack = 4 * torch.finfo(coords.dtype).eps * (low.abs() + high.abs())  # an end point may round outwards
    fits = (coords >= low - slack) & (coords <= high + slack)  # NaN does not
    outside = ~fits.all(-1)
    if bool(outside.any()):
        point, axis = coords[outside][0].tolist(), int(fits[outside][0].int().argmin())
        first, last = domain[axis]
        raise ValueError(
            f"{int(outside.sum())} of {outside.numel()} {what} lie outside the domain {tuple(domain)}, the first at {point}: "
            f"coordinate {axis} is {point[axis]:g} but [{first:g}, {last:g}] is expected; {advice}"
        )


class BoxCoordinates(nn.Module):
    """y_j -> (2 y_j - low_j - high_j) / (high_j - low_j): a box to [-1, 1]^dim, where a fresh perceptron is at its best.

    >>> BoxCoordinates(((0.0, 4.0),))(torch.tensor([[0.0], [3.0]])).tolist()
    [[-1.0], [0.5]]
    """

    def __init__(self, domain: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.domain = as_box(domain, len(domain))

    def forward(self, y: Tensor) -> Tensor:
        """(..., dim) -> the same"""
        if y.ndim < 1 or y.shape[-1] != len(self.domain):
            raise ValueError(
                f"the coordinates have shape {tuple(y.shape)} but BoxCoordinates expects {len(self.domain)} "
                "numbers along the last axis."
            )
        if not y.is_floating_point():
            raise TypeError(f"the coordinates are {y.dtype}; convert them to a floating-point dtype, with .to(dtype).")
        columns = [
            (2 * c - (low + high)) / (high - low) for c, (low, high) in zip(y.unbind(-1), self.domain, strict=True)
        ]
        return torch.stack(columns, dim=-1)

    def extra_repr(self) -> str:
        """The box, for `print(model)`."""
        return f"{self.domain}"


class FourierFeatures(nn.Module):
    """y -> [cos(2 pi B y), sin(2 pi B y)],  B_ij ~ N(0, scale^2)   (Tancik et al. 2020, eq. 5).

    A perceptron of these learns functions that oscillate about `scale` times per unit of length; of bare coordinates it
    learns the slow ones first. B is fixed: a buffer, so that it travels in the checkpoint.

    Args:
        in_features: the dimension of the coordinates.
        out_features: cosines and sines together, an even number.
        scale: the standard deviation of the frequencies, in cycles per unit of length.

    >>> FourierFeatures(2, 64, scale=3.0)(torch.zeros(5, 2)).shape
    torch.Size([5, 64])
    """

    frequencies: Tensor

    def __init__(self, in_features: int, out_features: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if in_features < 1 or out_features < 2 or out_features % 2:
            raise ValueError(
                f"in_features is {in_features} and out_features {out_features}; give a positive and an even number, "
                "since every frequency has a cosine and a sine."
            )
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}; give a positive number of cycles per unit of length.")
        self.scale = scale
        self.register_buffer("frequencies", scale * torch.randn(out_features // 2, in_features))

    def forward(self, y: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        features = self.frequencies.shape[1]
        if y.ndim < 1 or y.shape[-1] != features:
            raise ValueError(
                f"the coordinates have shape {tuple(y.shape)} but FourierFeatures expects {features} "
                "numbers along the last axis."
            )
        check_placement(y, self.frequencies, "FourierFeatures", "y")
        angle = 2 * torch.pi * (y @ self.frequencies.mT)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        half, features = self.frequencies.shape
        return f"{features}, {2 * half}, scale={self.scale}"
