"""Ordinary differential equations driven by a random forcing: what they share."""

from __future__ import annotations

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
from opflow.pde.random_field import sample_generators
from opflow.pde.stepper import IntegrationFailed
from opflow.problems.constants import check_positive
from opflow.typing import Derivatives

DEGREE = 7  # of the spline through the forcing: order 8, as the Gauss method
BLOCK = 4096  # samples solved together
SMALLEST_RTOL = 1e-13
MOST_REDRAWS = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ForcedODE:
    """s'(t) = f(s(t), u(t)) on [0, final_time], s(0) = 0   (Lu et al. 2021, "DeepONet"): the base of those that state f.

    The operator to learn maps the forcing u to the state s. u is a Gaussian process with covariance
    exp(-(t - t')^2 / (2 length^2)), see `SquaredExponentialField`. Everything is dimensionless.

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
        check_positive(final_time=self.final_time, length=self.length)

    def rate(self, s: Array, u: Array) -> Array:
        """f(s, u): s (unknown, ...) and u (...) -> (unknown, ...)"""
        raise NotImplementedError(f"{type(self).__name__} states no rate(s, u).")

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """One equation per unknown."""
        raise NotImplementedError(f"{type(self).__name__} states no residual(u, a).")

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random forcings {"forcing": (n, times)}, float64 on the CPU; sample i is one function on every grid."""
        self._check(grid)
        law, generators = (
            SquaredExponentialField(self.length),
            sample_generators(type(self).__name__, indices, seed, split),
        )
        coefficients = law.coefficients(generators, grid)
        rejected = self._rejected(law, coefficients)
        for _ in range(MOST_REDRAWS):
            if len(rejected) == 0:
                break
            coefficients[rejected] = law.coefficients([generators[i] for i in rejected], grid)
            rejected = rejected[self._rejected(law, coefficients[rejected])]
        else:
            raise RuntimeError(
                f"{len(rejected)} forcings were drawn {MOST_REDRAWS} times without one that {self} admits; "
                "its condition all but excludes the law."
            )
        return {"forcing": law.evaluate(coefficients, grid)}

    def solve(
        self,
        inputs: Mapping[str, Tensor],
        grid: Grid,
        *,
        times: Sequence[float] | Tensor | None = None,
        rtol: float = 1e-10,
    ) -> dict[str, Tensor]:
        """The unknowns {name: (n, times)}, float64 on the CPU, at the grid's nodes or at `times`.

        Between its nodes the forcing is the spline of degree 7 through them, an error of order h^8 in the spacing h.

        Args:
            inputs: "forcing" (n, *grid).
            times: not decreasing, within [0, final_time]; the nodes by default.
            rtol: of the integration in time, against the largest magnitude of each unknown and sample.

        Raises:
            ValueError: the forcing is missing, is not finite or does not fit the grid, or the grid does not fit the problem.
            IntegrationFailed: a solution blows up; the message says which sample, and when.
        """
        forcing = self._checked_forcing(inputs, grid)
        at = grid.coordinates(0).numpy() if times is None else np.asarray(times, dtype=np.float64)
        if at.ndim != 1 or not (np.diff(at) >= 0).all() or not ((at >= 0) & (at <= self.final_time)).all():
            raise ValueError(f"times is {times}; give numbers that do not decrease, within [0, {self.final_time}].")
        if not SMALLEST_RTOL <= rtol < 1:
            raise ValueError(f"rtol is {rtol}; give a number from {SMALLEST_RTOL:g}, which float64 can keep, to 1.")
        nodes = grid.coordinates(0).numpy()
        states = np.empty((len(self.unknowns), len(forcing), len(at)))
        for first in range(0, len(forcing), BLOCK):
            part = slice(first, first + BLOCK)
            states[:, part], good_until = self._integrate(spline(nodes, forcing[part]), at, rtol)
            self._check_finished(good_until, first, rtol)
        return dict(zip(self.unknowns, torch.from_numpy(states), strict=True))

    def _integrate(self, forcing: Any, times: Array, rtol: float) -> tuple[Array, Array]:
        """The unknowns (unknown, n, times) for the spline of the forcing, and until when each sample is good."""
        return integrate(self.rate, forcing, times, len(self.unknowns), rtol=rtol)

    def _rejected(self, law: SquaredExponentialField, coefficients: Tensor) -> NDArray[np.intp]:
        """The numbers of the forcings that the problem does not admit: none, unless a problem says otherwise."""
        return np.empty(0, dtype=np.intp)

    def _check_finished(self, good_until: Array, first: int, rtol: float) -> None:
        failed = np.flatnonzero(np.isfinite(good_until))
        if len(failed):
            sample, time = first + int(failed[0]), float(good_until[failed[0]])
            raise IntegrationFailed(
                f"the solution of sample {sample} blows up, or changes too fast for rtol={rtol:g}, after time {time:g} "
                f"(as do {len(failed) - 1} others here); leave the sample out, or shorten final_time.",
                time=time,
                sample=sample,
            )

    def _checked_forcing(self, inputs: Mapping[str, Tensor], grid: Grid) -> Array:
        self._check(grid)
        if "forcing" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but {type(self).__name__} needs 'forcing' (n, *grid).")
        forcing = inputs["forcing"].detach().to("cpu", torch.float64)
        grid.check(forcing, "forcing")
        if forcing.ndim != 2:
            raise ValueError(f"forcing has shape {tuple(forcing.shape)}; expected (n, *grid), one row a sample.")
        if grid.shape[0] <= DEGREE:
            raise ValueError(
                f"the grid has {grid.shape[0]} nodes, but the spline of degree {DEGREE} through the forcing needs at "
                f"least {DEGREE + 1}; use a finer grid."
            )
        if not bool(forcing.isfinite().all()):
            bad = int((~forcing.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"forcing holds NaN or infinity in sample {bad}; correct or leave out this sample.")
        return forcing.numpy()

    def _check(self, grid: Grid) -> None:
        name, use = type(self).__name__, f"use Grid(n, extent=(0.0, {self.final_time}), axes=('t',))."
        if grid.dim != 1 or grid.layout != ("nodes",):
            raise ValueError(f"{name} lives on the nodes of a time interval, but the grid is {grid}; {use}")
        start, end = grid.extent[0]
        if start != 0:
            raise ValueError(f"the time grid starts at {start}, but {name} starts from rest at 0; {use}")
        if end != self.final_time:
            raise ValueError(f"the time grid ends at {end}, but final_time is {self.final_time}; {use}")


def spline(nodes: Array, values: Array) -> Any:
    """The spline of degree 7 through values (n, nodes): a SciPy BSpline with values (n,)."""
    from scipy.interpolate import make_interp_spline  # on use: `import opflow` loads no SciPy

    return make_interp_spline(nodes, values.T, k=DEGREE, axis=0)
