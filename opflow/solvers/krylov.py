"""What every Krylov method here shares: columns that stop one by one, and a success that is said only of the true residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from opflow.solvers.linear_operator import LinearOperator
from opflow.solvers.linear_system import LinearSystem, dot, largest, norm
from opflow.solvers.solution import Reason, Solution, SolverError

MAX_RESTARTS = 5
REASONS = tuple(Reason)


class KrylovSolver:
    """The options and the frame of a Krylov method; a method defines `iterate` and, if something reads A first, `setup`.

    Args:
        rtol: ||b - A x|| <= rtol ||b||. atol: or <= atol.
        callback: called with (step, residual norms (batch,)) after each step.
        raise_on_failure: raise `SolverError`, with the solution inside, instead of returning one that did not converge.
    """

    def __init__(
        self,
        rtol: float,
        max_steps: int,
        callback: Callable[[int, Tensor], None] | None,
        *,
        atol: float,
        raise_on_failure: bool,
    ) -> None:
        if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
            raise ValueError(
                f"rtol is {rtol} and atol {atol}; neither may be negative or NaN and one must be positive."
            )
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; give a positive whole number.")
        self.rtol, self.atol = rtol, atol
        self.max_steps, self.callback, self.raise_on_failure = max_steps, callback, raise_on_failure

    @torch.no_grad()
    def solve(self, A: Any, b: Any, x0: Any = None) -> Solution:
        """Solve A x = b.

        Args:
            A: LinearOperator, SciPy sparse matrix or dense square tensor.
            b: (batch, *shape) or (*shape), NumPy or torch; x comes back in the same type, dtype and shape.
            x0: initial guess in the shape of b; zero by default. A part of it in a known null space of A is kept.
        """
        run = Iteration(LinearSystem.of(A, b, x0), self)
        if not run.refused():
            self.setup(run.A)
            self.iterate(run)
        solution = run.solution()
        if self.raise_on_failure and not solution.all_converged:
            raise SolverError(solution)
        return solution

    def setup(self, A: LinearOperator) -> None:
        """Read the operator, once a solve and only if there is something to solve."""

    def iterate(self, run: Iteration) -> None:
        """Take steps until no column is active."""
        raise TypeError(f"{type(self).__name__} does not define iterate(run); a Krylov method needs it.")


class Iteration:
    """The state of one solve; every quantity per column is (batch,).

    Attributes:
        A, b, x, r: the system, the iterate and its recursive residual; r is zero in a column that has stopped.
        r_norm: |r|. tolerance: what it must reach.
        active: columns that still iterate. trusted: those that still use the preconditioner or the network.
        stiffest: the largest p.Ap / p.p so far, an estimate of the largest eigenvalue.
    """

    def __init__(self, system: LinearSystem, method: KrylovSolver) -> None:
        self.A, self.b, self.x, self.method, self.system = system.A, system.b, system.x, method, system
        batch = self.b.shape[0]
        self.active = torch.ones(batch, dtype=torch.bool, device=self.b.device)
        self.trusted = self.active
        self.iterations = torch.zeros(batch, dtype=torch.int64, device=self.b.device)
        self.history: list[Tensor] = []
        self.fallbacks = 0
        self._products = [0]  # a list, which an iteration beside shares
        self.b_norm = norm(self.b)
        self.tolerance = torch.maximum(method.rtol * self.b_norm, method.atol / system.unit)
        self.stiffest = torch.zeros_like(self.b_norm)
        self._reason = torch.full_like(self.iterations, REASONS.index(Reason.MAX_STEPS))
        self._restarts = torch.zeros_like(self.iterations)
        self._last_true = torch.full_like(self.b_norm, torch.inf)

    def shaped(self, per_column: Tensor) -> Tensor:
        """(batch,) -> (batch, 1, ..., 1)"""
        return per_column.view(-1, *[1] * (self.b.ndim - 1))

    def apply(self, x: Tensor) -> Tensor:
        """A x, counted."""
        self._products[0] += 1
        return self.A.apply(x)

    def stop(self, columns: Tensor, reason: Reason) -> None:
        """Freeze the active ones of these columns for this reason; nothing waits for the device."""
        self._reason = torch.where(columns & self.active, REASONS.index(reason), self._reason)
        self.active = self.active & ~columns

    def unfinished(self) -> bool:
        """Whether some column is active and has steps left."""
        if len(self.history) > self.method.max_steps:
            self.stop(self.active, Reason.MAX_STEPS)
        return bool(self.active.any())

    def refused(self) -> bool:
        """Everything that is known before the first step; True if nothing is left to do."""
        self.stop(~(self.b_norm.isfinite() & largest(self.x).isfinite()), Reason.NAN_OR_INF)
        self.x[self.active & (self.b_norm == 0)] = 0
        self._guess_null = self.A.null_part(self.x)
        self._project_null_space()
        if self.A.symmetric is None and not self._probe_symmetry():
            self.stop(self.active, Reason.NONSYMMETRIC)
        self.r = self.b - self.apply(self.x)
        self.r_norm = norm(self.r)
        self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
        self.history.append(self.r_norm)
        self._succeed(self.r_norm <= self.tolerance, self.r_norm)
        self.r = self._zero_if_frozen(self.r)
        return not self.unfinished()

    def curvature(self, p: Tensor, Ap: Tensor, singular: Reason = Reason.INCONSISTENT) -> Tensor:
        """p.Ap of each column; one stops where A shows itself not finite, not positive definite or, for this reason, singular."""
        pAp, pp, eps = dot(p, Ap), dot(p, p), torch.finfo(p.dtype).eps
        self.stiffest = torch.maximum(self.stiffest, torch.where(pp > 0, pAp / pp, 0.0))
        self.stop(~pAp.isfinite(), Reason.NAN_OR_INF)
        doubtful = self.active & ~(pAp > 1000 * eps * self.stiffest * pp)
        if bool(doubtful.any()):
            # Largest entries now, not sums of squares, which may underflow and make a regular A look singular.
            negligible = largest(Ap) <= 10 * eps * self.stiffest * largest(p)
            self.stop(doubtful & negligible, singular)
            self.stop(pAp <= 0, Reason.INDEFINITE)
        return pAp

    def advance(self, length: Tensor, p: Tensor, Ap: Tensor) -> Tensor:
        """x += length p and r -= length A p in the active columns; returns those that restart from the true residual."""
        if not bool(self.active.any()):
            return torch.zeros_like(self.active)
        self.move(length, p, Ap)
        return self.settle()

    def move(self, length: Tensor, p: Tensor, Ap: Tensor) -> None:
        """The new x and r of a step."""
        length = torch.where(self.active, length, 0.0)
        self.x.addcmul_(self.shaped(length), self._zero_if_frozen(p))
        self.r.addcmul_(self.shaped(-length), self._zero_if_frozen(Ap))
        self.r_norm = torch.where(self.active, norm(self.r), self.r_norm)

    def settle(self) -> Tensor:
        """Count the step, see who is there, tell the caller; returns the columns that restart from the true residual."""
        self.iterations = self.iterations + self.active
        self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
        restarted = self._verify(self.active & (self.r_norm <= self.tolerance))
        self.r = self._zero_if_frozen(self.r)
        self.history.append(self.r_norm)
        if self.method.callback is not None:
            self.method.callback(len(self.history) - 1, self.r_norm * self.system.unit)
        return restarted

    def beside(self, method: KrylovSolver) -> Iteration:
        """The same system in the same state, for another method to iterate; its products with A count here."""
        other = copy(self)
        other.method, other.x, other.r, other.history = method, self.x.clone(), self.r.clone(), list(self.history)
        return other

    def follow(self, other: Iteration, columns: Tensor) -> Tensor:
        """Settle a step of both with the iterate of the other in these columns and where that one has ended, for its reason.

        Where this one breaks or stagnates on its own, it goes on as the other and is trusted no more. Returns the columns that restart.
        """
        lost = self.active & ~self.r_norm.isfinite()
        ended = self.active & ~other.active
        self._take(other, ended | (columns & self.active) | lost)
        restarted = self.settle()
        self._reason = torch.where(ended & self.active, other._reason, self._reason)
        self.active = self.active & ~ended
        stuck = other.active & ~self.active & (self._reason == REASONS.index(Reason.STAGNATED)) & ~ended
        if bool(stuck.any()):
            self.active = self.active | stuck
            self._take(other, stuck)
        self.trusted = self.trusted & ~(lost | stuck)
        other.active = other.active & self.active
        return restarted | stuck

    def _take(self, other: Iteration, columns: Tensor) -> None:
        taken = self.shaped(columns)
        self.x, self.r = torch.where(taken, other.x, self.x), torch.where(taken, other.r, self.r)
        self.r_norm = torch.where(columns, other.r_norm, self.r_norm)

    def checked(self, z: Any, source: object) -> Tensor:
        """What a preconditioner or a network returned for r, in the dtype of r."""
        if (
            not isinstance(z, Tensor)
            or z.shape != self.r.shape
            or not z.is_floating_point()
            or z.device != self.r.device
        ):
            came = f"{z.dtype} {tuple(z.shape)} on {z.device}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise ValueError(
                f"{getattr(source, '__name__', type(source).__name__)} was given r, {self.r.dtype} {tuple(self.r.shape)} on "
                f"{self.r.device}, and returned {came}; expected real floating-point numbers of that shape on that device."
            )
        return z.to(self.r.dtype)

    def _zero_if_frozen(self, u: Tensor) -> Tensor:
        """0 * inf is NaN, so what is left in a frozen column must not enter a product."""
        return u if bool(self.active.all()) else torch.where(self.shaped(self.active), u, 0.0)

    def _project_null_space(self) -> None:
        """A singular A can only produce b without a null component: refuse a large one, count a small one as residual."""
        part = self.A.null_part(self.b)
        if part is None:
            return
        component = norm(part)
        rounding = 100 * torch.finfo(self.b.dtype).eps * math.prod(self.A.shape) ** 0.5 * self.b_norm
        self.stop(component > torch.maximum(self.tolerance, rounding), Reason.INCONSISTENT)
        self.b = self.b - part
        # What remains of ||b - A x||^2 <= tolerance^2 once the component, which no x can remove, has had its part.
        left = self.tolerance * (1 - (component / self.tolerance).square()).clamp(min=0).sqrt()
        self.tolerance = torch.where(component < self.tolerance, left, self.tolerance)

    def _probe_symmetry(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, 1, *self.A.shape, generator=generator, dtype=torch.float64).to(self.b)
        Au, Av = self.apply(u), self.apply(v)
        size = self.shaped(torch.maximum(largest(Au), largest(Av)))  # so that no product underflows
        Au, Av = Au / size, Av / size
        scale = torch.maximum(norm(u) * norm(Av), norm(v) * norm(Au))
        gap = (dot(u, Av) - dot(v, Au)).abs()
        # NaN compares as symmetric here; the first residual then says NAN_OR_INF.
        return not bool((gap > torch.finfo(self.b.dtype).eps ** 0.5 * scale).any())

    def _succeed(self, columns: Tensor, true_norm: Tensor) -> None:
        self.stop(columns & (true_norm <= self.method.rtol * self.b_norm), Reason.RTOL)
        self.stop(columns, Reason.ATOL)

    def _verify(self, claimed: Tensor) -> Tensor:
        """Recompute b - A x where the recursive residual claims success; return the columns that restart from it."""
        if not bool(claimed.any()):
            return claimed
        true = self.b - self.apply(self.x)
        true_norm = norm(true)
        self._succeed(claimed & (true_norm <= self.tolerance), true_norm)
        drifted = claimed & self.active
        self.stop(drifted & ((self._restarts >= MAX_RESTARTS) | (true_norm > 0.5 * self._last_true)), Reason.STAGNATED)
        self._restarts = self._restarts + drifted
        self._last_true = torch.where(drifted, true_norm, self._last_true)
        self.r_norm = torch.where(drifted, true_norm, self.r_norm)
        if bool(drifted.any()):
            self.r = torch.where(self.shaped(drifted), true, self.r)
        return drifted

    def solution(self) -> Solution:
        """The outcome in the units of b; the residual is that of the very numbers returned."""
        unit = self.system.unit
        part = self.A.null_part(self.x)
        if (
            part is not None and self._guess_null is not None
        ):  # steps may have gone along the null space, unseen by b - A x
            self.x = torch.where(self.shaped(self.iterations > 0), self.x - part + self._guess_null, self.x)
        returned = self.x * self.shaped(unit)
        residual = norm(self.system.b - self.apply(returned / self.shaped(unit)))
        tolerance = torch.maximum(self.method.rtol * self.b_norm, self.method.atol / unit)
        reasons = [
            Reason.STAGNATED if REASONS[index].converged and missed else REASONS[index]
            for index, missed in zip(self._reason.tolist(), (~(residual <= tolerance)).tolist(), strict=True)
        ]
        counts = self._products[0], self.fallbacks
        size = torch.where(self.b_norm > 0, self.b_norm, 1.0)
        return outcome(self.system, returned, reasons, self.iterations, residual, size, self.history, counts)


def outcome(
    system: LinearSystem,
    x: Tensor,
    reasons: list[Reason],
    iterations: Tensor,
    residual: Tensor,
    size: Tensor,
    history: list[Tensor],
    counts: tuple[int, int],
) -> Solution:
    """What a method found, in the type and shape of b.

    Args:
        x: in the units of b. residual, size, history: norms of b - A x, of b and of the steps, in the system's own unit.
        counts: products with A, and fallbacks.
    """
    unit = system.unit

    def out(value: Tensor) -> Any:
        value = value[..., 0] if system.single else value
        if value.ndim == 0:
            return value.item()
        return value.cpu().numpy() if system.numpy else value

    returned = x[0] if system.single else x
    return Solution(
        x=returned.numpy() if system.numpy else returned,
        reason=reasons[0] if system.single else reasons,
        iterations=out(iterations),
        residual_norm=out(residual * unit),
        converged=out(torch.tensor([reason.converged for reason in reasons], dtype=torch.bool)),
        message=_message(reasons, iterations, residual / size),
        history=out(torch.stack(history) * unit),
        matvecs=counts[0],
        fallbacks=counts[1],
    )


def _message(reasons: list[Reason], iterations: Tensor, relative: Tensor) -> str:
    if not reasons:
        return "nothing to solve: the batch is empty"
    failed = [column for column, reason in enumerate(reasons) if not reason.converged]
    worst = failed[0] if failed else int(relative.argmax())
    sentence = f"relative residual {relative[worst]:.1e} after {int(iterations[worst])} steps: {reasons[worst].value}"
    if len(reasons) == 1:
        return sentence
    if failed:
        return f"{len(failed)} of {len(reasons)} columns did not converge; column {worst}: {sentence}"
    return f"all {len(reasons)} columns converged; the worst has {sentence}"
