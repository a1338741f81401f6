"""What the evolution equations share: their solver, and the checks of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.exponential import Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.stepper import SpectralStepper, check_times
from opflow.pde.trigonometric_space import TrigonometricSpace


class SemilinearEvolution:
    """u_t = L u + N(u) with L diagonal in the functions of a `space`: the base of the problems that state these three.

    A subclass is a frozen dataclass with `final_time`; it states `space`, `linear` and `nonlinear`, the grids it takes in `_check`,
    and where its fields are stacked otherwise than one real unknown, `pack` and `unpack`.
    """

    coordinates: ClassVar[tuple[str, ...]] = ("t", "x")
    inputs: ClassVar[tuple[str, ...]] = ("initial",)
    unknowns: ClassVar[tuple[str, ...]]
    formula: ClassVar[str] = "etdrk4"
    final_time: float

    def space(self, grid: Grid, device: torch.device | str | None = None) -> FourierSpace | TrigonometricSpace:
        """The functions in which L is diagonal."""
        raise NotImplementedError(f"{type(self).__name__} states no space(grid).")

    def linear(self, space: Any) -> Tensor:
        """The symbol L, broadcastable to (*components, *modes)."""
        raise NotImplementedError(f"{type(self).__name__} states no linear(space).")

    def nonlinear(self, space: Any, inputs: Mapping[str, Tensor]) -> Nonlinearity | None:
        """N(c, t) on coefficients (n, *components, *modes); None for a linear equation."""
        raise NotImplementedError(f"{type(self).__name__} states no nonlinear(space, inputs).")

    def pack(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The state at t = 0, (n, *components, *grid), from the inputs."""
        return inputs[self.inputs[0]]

    def unpack(self, state: Tensor) -> dict[str, Tensor]:
        """The unknowns from states (n, time, *components, *grid)."""
        return {self.unknowns[0]: state}

    def stepper(self, inputs: Mapping[str, Tensor], grid: Grid) -> SpectralStepper:
        """The time stepper of this equation on a grid, for inputs in float64; `solve` uses it, and so may a coupled code."""
        space = self.space(grid, next(iter(inputs.values())).device)
        return SpectralStepper(space, self.linear(space), self.nonlinear(space, inputs), formula=self.formula)

    def solve(
        self,
        inputs: Mapping[str, Tensor],
        grid: Grid,
        *,
        times: Sequence[float] | Tensor | None = None,
        rtol: float = 1e-10,
    ) -> dict[str, Tensor]:
        """The unknowns at `times`, (n, time, *grid); at `final_time` alone, (n, *grid), where no times are given.

        Fourth order in time with steps that the error chooses (see `SpectralStepper`). The grid must resolve the solution: the
        error in space is not estimated.

        Args:
            inputs: fields (n, *grid) at t = 0, on the device where to solve; computed in float64.
            times: increasing, starting at 0.
            rtol: bound on the estimated relative L2 error in time of each sample.

        Raises:
            ValueError: an input is missing or does not fit the grid, or the times do not start at 0.
            IntegrationFailed: a sample blew up; the message says when, and which.
        """
        self._check(grid)
        moments = [0.0, float(self.final_time)] if times is None else check_times(times)
        inputs = self._inputs(inputs, grid)
        fields = self.unpack(self.stepper(inputs, grid).solve(self.pack(inputs), moments, rtol=rtol))
        return {name: field[:, -1] if times is None else field for name, field in fields.items()}

    def _inputs(self, inputs: Mapping[str, Tensor], grid: Grid) -> dict[str, Tensor]:
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ValueError(
                f"the inputs are {sorted(inputs)} but {type(self).__name__} needs {missing[0]!r} (n, *{grid.shape})."
            )
        n = inputs[self.inputs[0]].shape[0] if inputs[self.inputs[0]].ndim else 0
        for name, field in inputs.items():
            grid.check(field, name)
            if field.ndim != grid.dim + 1 or field.shape[0] not in (1, n):
                raise ValueError(
                    f"{name} has shape {tuple(field.shape)}; expected (n, *grid), with as many samples as "
                    f"{self.inputs[0]} or one for all."
                )
            if field.is_complex():
                raise TypeError(f"{name} is {field.dtype}, but inputs are real fields; give its real part.")
            if not bool(field.isfinite().all()):
                bad = int((~field.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(f"{name} holds NaN or infinity in sample {bad}; correct or leave out this sample.")
        return {name: field.to(torch.float64) for name, field in inputs.items()}

    def _check(self, grid: Grid) -> None:
        """Raise unless the problem lives on this grid."""
        raise NotImplementedError(f"{type(self).__name__} does not say which grids it takes.")
