"""The batched spectral time stepper: semilinear equations on boxes, with a step that the error chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opflow.pde.exponential import FORMULAS, Formula, Nonlinearity
from opflow.pde.fourier_space import FourierSpace
from opflow.pde.trigonometric_space import TrigonometricSpace

MAX_HALVINGS = 40
MAX_FORMULAS = 16  # sets of weights kept, a few fields each
ORDER = 4  # of every formula


class IntegrationFailed(RuntimeError):
    """A solution blew up, or needs steps too small to go on.

    Attributes:
        time: up to where every sample was good.
        sample: the first sample that was not.
    """

    def __init__(self, message: str, *, time: float, sample: int) -> None:
        super().__init__(message)
        self.time, self.sample = time, sample


class SpectralStepper:
    """Solves dc_k/dt = L_k c_k + N(c, t)_k for the Fourier (or sine, or cosine) coefficients of a batch of fields.

    The stiff linear part is integrated exactly, so diffusion and dispersion put no limit on the step; the formulas are of
    fourth order. The step is chosen so that the estimated error of the whole solution stays below `rtol`: each step is
    made once whole and once in halves, whose difference / 15 is the error of the halves (Hairer, Norsett and Wanner 1993, II.4);
    it may take the share of `rtol` that it has of the time span. Steps are the interval's length / 2^j, so that few sets of weights
    are ever computed and every output time is met exactly. The step serves the whole batch: its size follows the hardest sample.

    Only the error in time is controlled. That in space falls exponentially once the grid resolves the solution.

    Args:
        space: of the fields.
        linear: L, broadcastable to (*components, *modes), real or complex.
        nonlinear: N(c, t) -> coefficients, for c (batch, *components, *modes); None for a linear equation.
        formula: "etdrk4" or "integrating-factor-rk4".

    >>> from opflow.grid import Grid
    >>> space = FourierSpace(Grid((16,), (0.0, 2 * math.pi), "periodic"))
    >>> heat = SpectralStepper(space, space.laplacian)
    >>> u0 = torch.sin(space.grid.coordinates(0))[None]
    >>> torch.allclose(heat.solve(u0, [0.0, 1.0])[:, -1], math.exp(-1) * u0)
    True
    """

    def __init__(
        self,
        space: FourierSpace | TrigonometricSpace,
        linear: Tensor,
        nonlinear: Nonlinearity | None = None,
        *,
        formula: str = "etdrk4",
    ) -> None:
        if formula not in FORMULAS:
            raise ValueError(f"formula is {formula!r}; choose one of {', '.join(FORMULAS)}.")
        if not bool(linear.isfinite().all()):
            raise ValueError("the linear symbol holds NaN or infinity; check the equation's parameters.")
        self.space, self.linear, self.nonlinear, self.formula = space, linear, nonlinear, formula
        self._formulas: dict[float, Formula] = {}

    def solve(
        self,
        initial: Tensor,
        times: Sequence[float] | Tensor,
        *,
        rtol: float = 1e-10,
        steps: int | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        """The fields at `times`, (batch, *components, *grid) -> (batch, time, *components, *grid).

        Differentiable with respect to `initial` and to whatever `linear` and `nonlinear` were made of: the gradient is that of the
        steps taken, and their memory grows with their number.

        Args:
            initial: the fields at times[0]; float64, or complex128 in a space of complex fields.
            times: increasing, starting at 0.
            rtol: bound on the estimated relative L2 error in time of the last field, for every sample.
            steps: so many equal steps between two output times instead, without any estimate; for measuring orders.
            progress: called with the time after every output time.

        Raises:
            ValueError: times do not start at 0 or do not increase, or the initial fields do not fit.
            IntegrationFailed: a sample blew up; the message says when, and which.
        """
        moments = check_times(times)
        self._check_initial(initial)
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; at least one step between two output times is expected.")
        if steps is None and not 0 < rtol < 1:
            raise ValueError(f"rtol is {rtol}; a number between 0 and 1 is expected.")
        if initial.shape[0] == 0:
            return initial.unsqueeze(1).expand(-1, len(moments), *initial.shape[1:])
        if self.linear.requires_grad:
            self._formulas.clear()  # a graph serves one backward pass
        # Coefficients are kept between output times: a field and back would cost a rounding each, and a transform.
        c = first = self.space.coefficients(initial)
        frames = [initial]
        pace = _Pace()
        for start, length in zip(moments, _intervals(moments), strict=False):
            if self.nonlinear is None:
                c = torch.exp(self.linear * (start + length)) * first
                self._check_finite(c, start, start + length, "a mode of the linear equation grows; shorten the time")
            elif steps is not None:
                c = self._in_equal_steps(c, start, length, steps, self.nonlinear)
            else:
                c = self._adaptively(c, start, length, rtol / moments[-1], pace, self.nonlinear)
            frames.append(self.space.field(c))
            if progress is not None:
                progress(start + length)
        return torch.stack(frames, dim=1)

    def _in_equal_steps(self, c: Tensor, start: float, length: float, steps: int, nonlinear: Nonlinearity) -> Tensor:
        h = length / steps
        formula = self._step_of(h, nonlinear)
        for i in range(steps):
            t = start + i * h
            c = formula(c, t, nonlinear(c, t))
            self._check_finite(
                c,
                t,
                t + h,
                f"the step of {h:.1e} is too long for its speed (CFL), or the solution blows up; take more steps, or leave "
                "steps= out so that the error chooses them",
            )
        return c

    def _adaptively(
        self, c: Tensor, start: float, length: float, rate: float, pace: _Pace, nonlinear: Nonlinearity
    ) -> Tensor:
        """`rate`: the relative error that a unit of time may add."""
        level = pace.level(length)
        position = 0  # in units of length / 2^level
        n_c = whole = None
        while position < 1 << level:
            size = length / (1 << level)
            t = start + position * size
            n_c = nonlinear(c, t) if n_c is None else n_c
            whole = self._step_of(size, nonlinear)(c, t, n_c) if whole is None else whole
            half = self._step_of(size / 2, nonlinear)
            middle = half(c, t, n_c)
            end = half(middle, t + size / 2, nonlinear(middle, t + size / 2))
            error, worst = self._relative_error(whole, end)
            # Rounding puts a floor under every difference; below it a smaller step would gain nothing.
            allowed = max(rate * size, 16 * torch.finfo(torch.float64).eps)
            if error <= allowed:
                c, n_c, whole = end, None, None
                position += 1
                # Twice the step makes 2^5 times the error, of which it may make twice as much: 1/16, and a margin of two.
                if position % 2 == 0 and level > 0 and error <= allowed / 32:
                    position, level = position // 2, level - 1
                continue
            deeper = 1
            if math.isfinite(error):
                deeper = max(1, math.ceil(math.log2(error / allowed) / ORDER - 0.25))
            if level + deeper > MAX_HALVINGS:
                raise IntegrationFailed(
                    f"sample {worst} cannot be continued beyond t = {t:.6g}: steps of {size:.1e} still leave an error of {error:.1e} "
                    f"where {allowed:.1e} is allowed, so it blows up there; shorten the time, refine the grid or raise the "
                    "viscosity, or raise rtol if the error is near rounding.",
                    time=t,
                    sample=worst,
                )
            whole = middle if deeper == 1 else None  # the first half is the next attempt's whole
            position, level = position << deeper, level + deeper
        pace.keep(length, level)
        return c

    @torch.no_grad()
    def _relative_error(self, whole: Tensor, halves: Tensor) -> tuple[float, int]:
        """The largest of the batch, and its sample; infinite where a value is."""
        ratio = self._norm(whole - halves) / self._norm(halves).clamp(min=torch.finfo(torch.float64).tiny)
        ratio = torch.where(ratio.isfinite(), ratio, math.inf)
        if ratio.numel() == 0:
            return 0.0, 0
        worst = int(ratio.argmax())
        return float(ratio[worst]) / (2**ORDER - 1), worst

    def _norm(self, c: Tensor) -> Tensor:
        squares = torch.view_as_real(c).square().sum(-1) if c.is_complex() else c.square()
        weighted = squares * self.space.multiplicity
        return weighted.flatten(1).sum(1).sqrt()

    def _step_of(self, h: float, nonlinear: Nonlinearity) -> Formula:
        if h not in self._formulas:
            if len(self._formulas) == MAX_FORMULAS:
                self._formulas.pop(next(iter(self._formulas)))
            self._formulas[h] = FORMULAS[self.formula](self.linear, nonlinear, h)
        return self._formulas[h]

    def _check_initial(self, initial: Tensor) -> None:
        grid, wanted = self.space.grid, torch.float64 if self.space.real else torch.complex128
        grid.check(initial, "the initial field")
        if initial.ndim <= grid.dim:
            raise ValueError(
                f"the initial field has shape {tuple(initial.shape)}; expected (batch, *components, *grid), so give one field "
                "a batch axis, initial[None]."
            )
        if initial.dtype != wanted:
            raise TypeError(f"the initial field is {initial.dtype}, but this solver works in {wanted}; convert it.")
        if not bool(initial.isfinite().all()):
            sample = int((~initial.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"the initial field holds NaN or infinity in sample {sample}; correct or leave out this sample."
            )

    @torch.no_grad()
    def _check_finite(self, values: Tensor, before: float, now: float, advice: str) -> None:
        finite = values.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            sample = int((~finite).nonzero()[0])
            raise IntegrationFailed(
                f"sample {sample} is not finite at t = {now:.6g}: {advice}.", time=before, sample=sample
            )


class _Pace:
    """The step that the last interval ended with, for the start of the next."""

    def __init__(self) -> None:
        self._size: float | None = None

    def level(self, length: float) -> int:
        if self._size is None:
            return 4
        return max(0, math.ceil(math.log2(length / self._size) - 1e-9))

    def keep(self, length: float, level: int) -> None:
        self._size = length / (1 << level)


def _intervals(moments: Sequence[float]) -> list[float]:
    """The lengths between output times. Those that differ by rounding only become one, and share their weights."""
    rounding = 4 * torch.finfo(torch.float64).eps * moments[-1]
    lengths: list[float] = []
    for before, after in itertools.pairwise(moments):
        same = (known for known in lengths[-1:] if abs(known - (after - before)) <= rounding)
        lengths.append(next(same, after - before))
    return lengths


def check_times(times: Sequence[float] | Tensor) -> list[float]:
    """The output times as numbers: finite, increasing, the first 0.

    Raises:
        ValueError: they are not.
    """
    moments = [float(t) for t in times]
    if len(moments) < 2 or moments[0] != 0.0:
        raise ValueError(
            f"times are {moments[:4]}; at least two times are expected, and the first must be 0, where the inputs live."
        )
    for before, after in itertools.pairwise(moments):
        if not (math.isfinite(after) and after > before):
            raise ValueError(f"times go from {before} to {after}; give finite times in increasing order.")
    return moments
