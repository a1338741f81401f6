"""Normalisation inside the model, so that everything outside it is in physical units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.typing import Field, check_field, check_placement


class Normalizer(nn.Module):
    """x -> (x - mean) / std per channel; buffers, so that they travel in the checkpoint.

    One number a channel and never one a grid point: a per-point statistic ties a model to one grid.

    Args:
        mean, std: one number per channel. A std below 1e-6 of the channel's magnitude (a constant channel) counts as 1.
        points: the values are at points and not on a grid: (batch, points, channel), the channel last.

    >>> Normalizer([5.0], [2.0])(torch.full((1, 1, 3), 9.0))
    tensor([[[2., 2., 2.]]])
    >>> Normalizer([5.0, 0.0], [2.0, 1.0], points=True)(torch.full((1, 3, 2), 9.0))[0, 0]
    tensor([2., 9.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float], *, points: bool = False) -> None:
        super().__init__()
        mean = torch.as_tensor(mean, dtype=torch.float64)
        std = torch.as_tensor(std, dtype=torch.float64)
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and std {tuple(std.shape)}; give one number per channel in both."
            )
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise ValueError(
                f"mean {mean.tolist()} and std {std.tolist()} must be finite and std not negative; check the data for NaN."
            )
        constant = std <= 1e-6 * mean.abs().clamp(min=torch.finfo(torch.float32).tiny)
        self.points = points
        default = torch.get_default_dtype()
        self.register_buffer("mean", mean.to(default))
        self.register_buffer("std", torch.where(constant, 1.0, std).to(default))

    def forward(self, x: Field) -> Field:
        """Physical -> normalised, (batch, channel, *grid), or (batch, points, channel) with `points`"""
        mean, std = self._columns(x)
        return (x - mean) / std

    def inverse(self, x: Field) -> Field:
        """Normalised -> physical, likewise"""
        mean, std = self._columns(x)
        return x * std + mean

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.mean.shape[0]
        if self.points:
            if x.ndim != 3 or x.shape[-1] != channels:
                raise ValueError(
                    f"x has shape {tuple(x.shape)} but this Normalizer expects values at points, (batch, points, {channels}), "
                    "the channel last; for fields on a grid, leave points=True out."
                )
            check_placement(x, self.mean, "Normalizer")
            return self.mean, self.std
        check_field(x, channels, None, self.mean, "Normalizer")
        shape = (-1, *[1] * (x.ndim - 2))
        return self.mean.view(shape), self.std.view(shape)

    def extra_repr(self) -> str:
        """The numbers, for `print(model)`."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}" + ", points=True" * self.points


class Normalized(nn.Module):
    """A model in physical units: its first argument is normalised on the way in, its output taken back on the way out.

    Args:
        model: the model in normalised units.
        input: for the first argument; None leaves it.
        output: for the result; None leaves it. For a model whose output is at points, give it `points=True`.
        coords: for the second argument (points, dim) or (batch, points, dim), where the model takes one; None leaves it.

    >>> model = Normalized(nn.Identity(), Normalizer([5.0], [2.0]), Normalizer([0.0], [10.0]))
    >>> model(torch.full((1, 1, 3), 9.0))
    tensor([[[20., 20., 20.]]])
    """

    def __init__(
        self,
        model: nn.Module,
        input: Normalizer | None = None,
        output: Normalizer | None = None,
        coords: Normalizer | None = None,
    ) -> None:
        super().__init__()
        self.model, self.input, self.output, self.coords = model, input, output, coords

    def forward(self, x: Tensor, coords: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Physical units in, physical units out; quadrature weights go to a model that takes them, as they are."""
        if self.input is not None:
            x = self.input(x)
        if coords is not None and self.coords is not None:
            flat = coords.reshape(1, -1, coords.shape[-1])
            coords = (self.coords(flat) if self.coords.points else self.coords(flat.mT).mT).reshape(coords.shape)
        positional = (x,) if coords is None else (x, coords)
        y = self.model(*positional) if weights is None else self.model(*positional, weights=weights)
        return y if self.output is None else self.output.inverse(y)

    @property
    def recipe(self) -> dict[str, object] | None:
        """What a checkpoint needs to build this again; the numbers themselves are in the state dict."""
        inner = getattr(self.model, "recipe", None)
        if inner is None:
            return None
        parts = {"input": self.input, "output": self.output, "coords": self.coords}
        channels = {name: None if part is None else part.mean.shape[0] for name, part in parts.items()}
        points = [name for name, part in parts.items() if part is not None and part.points]
        return {"model": "Normalized", "inner": inner, "channels": channels, "points": points}
