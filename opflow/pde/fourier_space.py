"""Fourier coefficients of periodic fields: transforms, the symbols of derivatives, and the modes free of aliasing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from opflow.fourier import angular_wavenumbers
from opflow.grid import Grid


class FourierSpace:
    """Fields u (..., *grid) on a periodic grid and their coefficients c_k, u(x) = sum_k c_k exp(i k (x - a)).

    Real fields keep the half of the spectrum that determines them (k >= 0 on the last axis); complex fields keep all.
    Coefficients do not depend on the grid: a band-limited field has the same ones at every n.

    Args:
        grid: periodic on every axis.
        real: whether the fields are real.
        device: where the symbols live.

    Raises:
        ValueError: an axis of the grid is not periodic.

    >>> space = FourierSpace(Grid((8,), (0.0, 2 * math.pi), "periodic"))
    >>> x = space.grid.coordinates(0)
    >>> torch.allclose(space.field(space.gradient[0] * space.coefficients(torch.sin(x))), torch.cos(x))
    True
    """

    def __init__(self, grid: Grid, *, real: bool = True, device: torch.device | str | None = None) -> None:
        for kind, axis in zip(grid.layout, grid.axes, strict=True):
            if kind != "periodic":
                raise ValueError(
                    f"axis {axis} of the grid is made of {kind}, but a Fourier series needs periodic axes; "
                    f"use Grid({grid.shape}, extent, 'periodic')."
                )
        self.grid, self.real = grid, real
        self.device = torch.device("cpu" if device is None else device)
        self._axes = tuple(range(-grid.dim, 0))

    @property
    def modes(self) -> tuple[int, ...]:
        """The number of coefficients along each axis."""
        *leading, last = self.grid.shape
        return (*leading, last // 2 + 1 if self.real else last)

    def coefficients(self, field: Tensor) -> Tensor:
        """(..., *grid) -> (..., *modes), complex"""
        if field.numel() == 0:  # no transform takes an empty batch
            dtype = torch.promote_types(field.dtype, torch.complex64)
            return field.new_zeros((*field.shape[: -self.grid.dim], *self.modes), dtype=dtype)
        transform = torch.fft.rfftn if self.real else torch.fft.fftn
        return transform(field, dim=self._axes, norm="forward")

    def field(self, coefficients: Tensor) -> Tensor:
        """(..., *modes) -> (..., *grid), real for real fields"""
        if coefficients.numel() == 0:
            dtype = coefficients.real.dtype if self.real else coefficients.dtype
            return coefficients.new_zeros((*coefficients.shape[: -self.grid.dim], *self.grid.shape), dtype=dtype)
        if self.real:
            return torch.fft.irfftn(coefficients, s=self.grid.shape, dim=self._axes, norm="forward")
        return torch.fft.ifftn(coefficients, dim=self._axes, norm="forward")

    @cached_property
    def gradient(self) -> tuple[Tensor, ...]:
        """i k_j of every axis, each broadcastable to (*modes); zero at the unpaired frequency of an even axis."""
        lines = [
            angular_wavenumbers(n, length, half=self.real and axis == self.grid.dim - 1)
            for axis, (n, length) in enumerate(zip(self.grid.shape, self.grid.lengths, strict=True))
        ]
        return tuple(self._along(1j * line, axis) for axis, line in enumerate(lines))

    @cached_property
    def laplacian(self) -> Tensor:
        """-|k|^2, (*modes), real; it keeps the unpaired frequencies, whose second derivative is well defined."""
        total = torch.zeros(self.modes, dtype=torch.float64, device=self.device)
        for axis, (n, length) in enumerate(zip(self.grid.shape, self.grid.lengths, strict=True)):
            total = total - self._along((self._numbers(axis, n) * (2 * math.pi / length)).square(), axis)
        return total

    @cached_property
    def dealiased(self) -> Tensor:
        """1 where every |k_j| < n_j / 3, else 0, (*modes): products of two such fields put no alias on these modes.

        The two-thirds rule (Orszag 1971).
        """
        kept = torch.ones(self.modes, dtype=torch.float64, device=self.device)
        for axis, n in enumerate(self.grid.shape):
            kept = kept * self._along((3 * self._numbers(axis, n).abs() < n).to(torch.float64), axis)
        return kept

    @cached_property
    def multiplicity(self) -> Tensor:
        """How often each coefficient counts in Parseval's sum, mean |u|^2 = sum m |c|^2: 2 for the columns of a half spectrum."""
        line = torch.ones(self.modes[-1], dtype=torch.float64, device=self.device)
        n = self.grid.shape[-1]
        if self.real:
            line[1 : (n + 1) // 2] = 2.0
        return line.expand(self.modes)

    def _numbers(self, axis: int, n: int) -> Tensor:
        half = self.real and axis == self.grid.dim - 1
        return (torch.fft.rfftfreq if half else torch.fft.fftfreq)(n, d=1.0 / n, dtype=torch.float64)

    def _along(self, line: Tensor, axis: int) -> Tensor:
        shape: Sequence[int] = [-1 if a == axis else 1 for a in range(self.grid.dim)]
        return line.to(self.device).view(*shape)
