"""Gaussian random fields that are the same function on every grid, and the random streams that they are drawn from."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid

SPLITS = {"train": 0, "validation": 1, "test": 2}
DEFAULT_CUTOFF = 128


def sample_generator(name: str, split: str, index: int, seed: int = 0) -> np.random.Generator:
    """The random stream of sample `index`: Philox on SeedSequence([seed, crc32(name), split, index]).

    Every sample has its own stream, so data do not depend on how many are drawn, in which order or by how many
    processes; the splits are apart by construction.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}, each with its own random streams.")
    if index < 0 or seed < 0:
        raise ValueError(f"seed is {seed} and index {index}; neither may be negative.")
    entropy = [seed, zlib.crc32(name.encode()), SPLITS[split], index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def sample_generators(name: str, indices: int | Sequence[int], seed: int, split: str) -> list[np.random.Generator]:
    """The random streams of samples 0..n-1, or of these, of the problem called `name`; see `sample_generator`."""
    if isinstance(indices, int) and indices < 0:
        raise ValueError(
            f"{indices} samples were asked for; give a number that is not negative, or the samples' indices."
        )
    numbers = range(indices) if isinstance(indices, int) else indices
    return [sample_generator(name, split, int(i), seed) for i in numbers]


@lru_cache(maxsize=8)
def _nested_order(cutoff: int, dim: int) -> np.ndarray:
    """Flat positions of the modes k in [0, cutoff)^dim, shell by shell of max(k): a smaller cutoff is a prefix."""
    modes = np.stack(np.meshgrid(*[np.arange(cutoff)] * dim, indexing="ij")).reshape(dim, -1)
    return np.lexsort((*modes[::-1], modes.max(axis=0)))


class CosineField:
    """g ~ N(0, (-Laplacian + tau^2)^(-alpha)) on the unit box, with homogeneous Neumann conditions on the Laplacian.

        g(x) = sum_k (pi^2 |k|^2 + tau^2)^(-alpha/2) xi_k prod_d phi_(k_d)(x_d),   phi_0 = 1, phi_k = sqrt(2) cos(pi k x),

    over k in [0, cutoff)^dim with xi_k ~ N(0, 1), drawn in nested order so that any cutoff continues the same series.

    Args:
        mean_mode: keep k = 0. The published Darcy generator sets it to zero ("L(1,1) = 0" in its GRF.m) although the
            paper's formula has it; with it many thresholded media are mostly of one phase.

    Source: Li et al. 2021, section 5.2 and appendix A.3.2.
    """

    def __init__(
        self, *, alpha: float = 2.0, tau: float = 3.0, cutoff: int = DEFAULT_CUTOFF, mean_mode: bool = False
    ) -> None:
        if cutoff < 1 or not tau >= 0 or not alpha > 0:
            raise ValueError(
                f"alpha is {alpha}, tau {tau}, cutoff {cutoff}; alpha and cutoff must be positive, tau not negative."
            )
        if mean_mode and tau == 0:
            raise ValueError("the mean mode has infinite variance for tau = 0; pass mean_mode=False or a positive tau.")
        self.alpha, self.tau, self.cutoff, self.mean_mode = alpha, tau, cutoff, mean_mode

    def coefficients(self, generators: Sequence[np.random.Generator], dim: int) -> Tensor:
        """One coefficient array (cutoff, ..., cutoff) per generator, stacked: (n, *modes), float64"""
        order = _nested_order(self.cutoff, dim)
        draws = np.empty((len(generators), order.size))
        for row, generator in zip(draws, generators, strict=True):
            row[order] = generator.standard_normal(order.size)
        return torch.from_numpy(draws.reshape(-1, *[self.cutoff] * dim) * self._deviations(dim))

    def standard_deviation(self, dim: int) -> float:
        """The root of the variance of g, averaged over the box."""
        return float(np.sqrt((self._deviations(dim) ** 2).sum()))

    def _deviations(self, dim: int) -> np.ndarray:
        k2 = sum(np.meshgrid(*[np.arange(self.cutoff, dtype=np.float64) ** 2] * dim, indexing="ij"))
        with np.errstate(divide="ignore"):
            deviations = (np.pi**2 * k2 + self.tau**2) ** (-self.alpha / 2)
        if not self.mean_mode:
            deviations[(0,) * dim] = 0.0
        return deviations

    def evaluate(self, coefficients: Tensor, grid: Grid) -> Tensor:
        """The field on a grid of the unit box, (n, *modes) -> (n, *grid.shape), float64 on the CPU"""
        field = coefficients
        for axis in range(grid.dim):
            a, length = grid.extent[axis][0], grid.lengths[axis]
            x = (grid.coordinates(axis) - a) / length
            k = torch.arange(self.cutoff, dtype=torch.float64)
            cosines = torch.cos(torch.pi * x[:, None] * k)
            cosines[:, 1:] *= 2**0.5
            field = torch.tensordot(field, cosines, dims=([1], [1]))  # the axis moves to the end: a full cycle in all
        return field


class PeriodicField:
    """g ~ N(0, sigma^2 (-Laplacian + tau^2)^(-alpha)) on the unit box with periodic boundaries.

        g(x) = sigma sum_k (4 pi^2 |k|^2 + tau^2)^(-alpha/2) (xi_k sqrt(2) cos(2 pi k.x) + eta_k sqrt(2) sin(2 pi k.x)),

    over one k of every pair (k, -k) with |k_j| <= cutoff, xi_k, eta_k ~ N(0, 1), drawn in nested order so that any cutoff continues
    the same series; k = 0 adds sigma tau^(-alpha) xi_0.

    Args:
        sigma: the scale, of g itself and not of its variance.
        mean_mode: keep k = 0. The formula has it; the published Burgers and Navier-Stokes generators set it to zero.

    Source: Li et al. 2021, sections 5.1 and 5.3, appendix A.3.
    """

    def __init__(
        self,
        *,
        alpha: float,
        tau: float,
        sigma: float = 1.0,
        cutoff: int = DEFAULT_CUTOFF,
        mean_mode: bool = False,
    ) -> None:
        if cutoff < 1 or not tau >= 0 or not alpha > 0 or not sigma > 0:
            raise ValueError(
                f"alpha is {alpha}, tau {tau}, sigma {sigma}, cutoff {cutoff}; alpha, sigma and cutoff must be positive, "
                "tau not negative."
            )
        if mean_mode and tau == 0:
            raise ValueError("the mean mode has infinite variance for tau = 0; pass mean_mode=False or a positive tau.")
        self.alpha, self.tau, self.sigma, self.cutoff, self.mean_mode = alpha, tau, sigma, cutoff, mean_mode

    def coefficients(self, generators: Sequence[np.random.Generator], dim: int) -> Tensor:
        """Complex c_k of g(x) = Re sum c_k exp(2 pi i k.x), one array per generator: (n, 2 cutoff + 1, ..., cutoff + 1), k
        in increasing order, the last axis k >= 0; zero at the second k of each pair.
        """
        order = _paired_order(self.cutoff, dim)
        shape = (*[2 * self.cutoff + 1] * (dim - 1), self.cutoff + 1)
        values = np.zeros((len(generators), math.prod(shape)), dtype=np.complex128)
        for row, generator in zip(values, generators, strict=True):
            draws = generator.standard_normal((len(order), 2))
            row[order] = draws[:, 0] - 1j * draws[:, 1]
        values = values.reshape(-1, *shape) * self._deviations(dim)
        mean = (..., *[self.cutoff] * (dim - 1), 0)
        values[mean] = values[mean].real * (0.5**0.5 if self.mean_mode else 0.0)
        return torch.from_numpy(values)

    def standard_deviation(self, dim: int) -> float:
        """The root of the variance of g at any point."""
        variance = self._deviations(dim) ** 2 / 2
        kept = np.zeros(variance.size, dtype=bool)
        kept[_paired_order(self.cutoff, dim)] = True
        total = 2 * float(variance.reshape(-1)[kept].sum())
        mean = float(variance[(*[self.cutoff] * (dim - 1), 0)])
        return (total - 2 * mean + (mean if self.mean_mode else 0.0)) ** 0.5

    def _deviations(self, dim: int) -> np.ndarray:
        """sqrt(2) sigma (4 pi^2 |k|^2 + tau^2)^(-alpha/2) in the order of `coefficients`."""
        leading = [np.arange(-self.cutoff, self.cutoff + 1)] * (dim - 1)
        grids = np.meshgrid(*leading, np.arange(self.cutoff + 1), indexing="ij")
        k2 = sum(k.astype(np.float64) ** 2 for k in grids)
        with np.errstate(divide="ignore"):
            deviations = (4 * np.pi**2 * k2 + self.tau**2) ** (-self.alpha / 2)
        if not self.mean_mode:
            deviations[(*[self.cutoff] * (dim - 1), 0)] = 0.0
        return 2**0.5 * self.sigma * deviations

    def evaluate(self, coefficients: Tensor, grid: Grid) -> Tensor:
        """The field on a grid of the unit box, (n, *modes) -> (n, *grid.shape), float64 on the CPU"""
        field = coefficients
        for axis in range(grid.dim):
            a, length = grid.extent[axis][0], grid.lengths[axis]
            x = (grid.coordinates(axis) - a) / length
            k = torch.arange(0 if axis == grid.dim - 1 else -self.cutoff, self.cutoff + 1, dtype=torch.float64)
            waves = torch.exp(2j * torch.pi * x[:, None] * k)
            field = torch.tensordot(field, waves, dims=([1], [1]))  # the axis moves to the end: a full cycle in all
        return field.real


@lru_cache(maxsize=8)
def _paired_order(cutoff: int, dim: int) -> np.ndarray:
    """Flat positions, in a half spectrum, of one mode of each pair (k, -k), shell by shell of max |k_j|: k = 0 first."""
    leading = [np.arange(-cutoff, cutoff + 1)] * (dim - 1)
    modes = np.stack(np.meshgrid(*leading, np.arange(cutoff + 1), indexing="ij")).reshape(dim, -1)
    last_sign = np.zeros(modes.shape[1])
    for k in modes:  # the sign of the last axis that is not zero, read from the last: it picks one of k and -k
        last_sign = np.where(k != 0, np.sign(k), last_sign)
    order = np.lexsort((*modes[::-1], np.abs(modes).max(axis=0)))
    return order[last_sign[order] >= 0]
