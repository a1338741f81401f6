"""Ordinary differential equations driven by a random forcing: what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.gauss_method import integrate
from opflow.pde.kernel_field import SquaredExponentialField
from opflow.pde.random_field import sample_generator
from opflow.typing import Derivatives

DEGREE = 7  # of the spline through the forcing
SMALLEST_RTOL = 1e-13
BLOCK = 4096  # samples solved together

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ForcedODE:
    """s'(t) = f(s(t), u(t)) on [0, final_time], s(0) = 0; the operator to learn maps u to s   (Lu et al. 2021, section 4).

    The forcing u is a Gaussian process with covariance exp(-(t - t')^2 / (2 length^2)), one function on every grid.

    Attributes:
        final_time: the end of the interval.
        length: the correlation length of the forcing.
    """

    final_time: float = 1.0
    length: float = 0.2

    coordinates: ClassVar[tuple[str, ...]] = ("t",)
    inputs: ClassVar[tuple[str, ...]] = ("forcing",)
    unknowns: ClassVar[tuple[str, ...]] = ("state",)

    def __post_init__(self) -> None:
        for name in ("final_time", "length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; give a positive number.")

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random forcings {"forcing": (n, times)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        if isinstance(indices, int) and indices < 0:
            raise ValueError(
                f"{indices} samples were asked for; give a number that is not negative, or the samples' indices."
            )
        numbers = range(indices) if isinstance(indices, int) else indices
        law = SquaredExponentialField(self.length)
        generators = [sample_generator(type(self).__name__, split, int(i), seed) for i in numbers]
        return {"forcing": law.evaluate(law.coefficients(generators, grid), grid)}

    def solve(
        self,
        inputs: Mapping[str, Tensor],
        grid: Grid,
        *,
        times: Sequence[float] | None = None,
        rtol: float = 1e-10,
    ) -> dict[str, Tensor]:
        """The unknowns {name: (n, times)}, float64 on the CPU, at the grid's nodes or at `times`.

        The forcing between its nodes is the spline of degree 7 through them: an error of order h^8, h the spacing.

        Args:
            inputs: "forcing" (n, *grid).
            times: not decreasing, within [0, final_time]; the nodes by default.
            rtol: of the time integration, against the largest magnitude of each unknown and sample.

        Raises:
            ValueError: the forcing is missing, is not finite or does not fit the grid, or the grid does not fit the problem.
            RuntimeError: a solution blows up, or the integration does not reach `rtol`; names the sample and the time.
        """
        forcing, at = self._checked_inputs(inputs, grid, times)
        if not rtol >= SMALLEST_RTOL:
            raise ValueError(f"rtol is {rtol}; give at least {SMALLEST_RTOL:g}, what float64 can keep.")
        nodes = grid.coordinates(0).numpy()
        parts = [
            self._integrate(_spline(nodes, forcing[i : i + BLOCK]), at, rtol, first=i)
            for i in range(0, len(forcing), BLOCK)
        ] or [np.empty((len(self.unknowns), 0, len(at)))]
        values = torch.from_numpy(np.concatenate(parts, axis=1))
        return dict(zip(self.unknowns, values, strict=True))

    def _integrate(self, forcing: Any, at: Array, rtol: float, first: int) -> Array:
        """The unknowns (unknown, n, times) for the forcing, a spline with values (..., n); `first` is the number of its first sample."""
        return integrate(self.rate, forcing, at, len(self.unknowns), rtol=rtol, first=first)

    def rate(self, s: Array, u: Array) -> Array:
        """f(s, u): s (unknown, ...) and u (...) -> (unknown, ...)"""
        raise NotImplementedError

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """One equation per unknown."""
        raise NotImplementedError

    def _checked_inputs(
        self, inputs: Mapping[str, Tensor], grid: Grid, times: Sequence[float] | None
    ) -> tuple[Array, Array]:
        self._check(grid)
        name = type(self).__name__
        if "forcing" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but {name} needs 'forcing' (n, *grid).")
        forcing = inputs["forcing"].detach().to("cpu", torch.float64)
        grid.check(forcing, "forcing")
        if forcing.ndim != 2:
            raise ValueError(f"forcing has shape {tuple(forcing.shape)}; expected (n, *grid), one row a sample.")
        if grid.shape[0] <= DEGREE:
            raise ValueError(
                f"the grid has {grid.shape[0]} nodes but the forcing is a spline of degree {DEGREE} through them, which "
                f"needs at least {DEGREE + 1}."
            )
        if not forcing.isfinite().all():
            bad = int((~forcing.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"the forcing of sample {bad} holds NaN or infinity.")
        at = grid.coordinates(0).numpy() if times is None else np.asarray(times, dtype=np.float64)
        if at.ndim != 1 or not (np.diff(at) >= 0).all() or not ((at >= 0) & (at <= self.final_time)).all():
            raise ValueError(f"times is {times}; give numbers that do not decrease, within [0, {self.final_time}].")
        return forcing.numpy(), at

    def _check(self, grid: Grid) -> None:
        name = type(self).__name__
        if grid.dim != 1 or grid.layout != ("nodes",):
            raise ValueError(
                f"{name} lives on the nodes of the time interval [0, {self.final_time}], but the grid is {grid}; "
                f"use Grid(n, extent=(0.0, {self.final_time}), axes=('t',))."
            )
        if grid.extent[0][0] != 0:
            raise ValueError(
                f"the time grid starts at {grid.extent[0][0]}, but {name} starts from rest at 0; begin it there."
            )
        if grid.extent[0][1] != self.final_time:
            raise ValueError(
                f"the time grid ends at {grid.extent[0][1]} and {name} at final_time={self.final_time}; make them equal."
            )


def _spline(nodes: Array, forcing: Array) -> Any:
    """The spline through forcing (n, nodes), with values (n) at every time."""
    from scipy.interpolate import make_interp_spline  # on use: `import opflow` loads no SciPy

    return make_interp_spline(nodes, forcing.T, k=DEGREE, axis=0)
