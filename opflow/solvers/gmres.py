"""The generalised minimal residual method, for systems that are neither symmetric nor definite, real or complex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opflow.solvers.krylov import REASONS, KrylovSolver, outcome
from opflow.solvers.linear_system import LinearSystem, largest
from opflow.solvers.solution import Reason, Solution, SolverError
from opflow.typing import Preconditioner

NO_PROGRESS = 0.999  # the share of the true residual that a whole cycle may leave,
NO_AGREEMENT = 0.5  # and that one may which the recursion took for a success


class GMRES(KrylovSolver):
    """x in x0 + span(r, A r, ..., A^(m-1) r) that minimises ||b - A x||, for any square A, real or complex, batched over columns.

    With a preconditioner, span(M r, ...): the flexible form, in which M may be nonlinear or change from step to step. After `restart`
    steps the space is begun anew from the true residual. Each column stops and freezes on its own; what the recursion claims is
    checked against b - A x at the end of a cycle, and only that decides. A cycle that leaves the true residual where it was ends a
    column as STAGNATED; one whose space A maps into itself without reaching b, as INCONSISTENT.

    Args:
        preconditioner: M with ``setup(A)`` and ``apply(r)`` ~ A^-1 r, of any kind; None for none.
        rtol: ||b - A x|| <= rtol ||b||. atol: or <= atol.
        restart: steps of a cycle; the memory is that many copies of b, twice as many with a preconditioner.
        callback: called with (step, residual norms (batch,)) after each step.
        raise_on_failure: raise `SolverError`, with the solution inside, instead of returning one that did not converge.

    Source: Saad and Schultz (1986); flexible: Saad (1993).

    >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> GMRES().solve(A, torch.tensor([2.0, 3.0])).x.round(decimals=5)
    tensor([-3.,  2.])
    """

    def __init__(
        self,
        preconditioner: Preconditioner | None = None,
        rtol: float = 1e-8,
        max_steps: int = 500,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        atol: float = 0.0,
        restart: int = 40,
        raise_on_failure: bool = False,
    ) -> None:
        super().__init__(rtol, max_steps, callback, atol=atol, raise_on_failure=raise_on_failure)
        if restart < 1:
            raise ValueError(f"restart is {restart}; give a positive whole number of steps.")
        self.preconditioner, self.restart = preconditioner, restart

    @torch.no_grad()
    def solve(self, A: Any, b: Any, x0: Any = None) -> Solution:
        """Solve A x = b.

        Args:
            A: LinearOperator, SciPy sparse matrix or dense square tensor.
            b: (batch, *shape) or (*shape), NumPy or torch; x comes back in the same type, dtype and shape.
            x0: initial guess in the shape of b; zero by default.
        """
        system = LinearSystem.of(A, b, x0, allow_complex=True)
        run = _Run(system, self)
        if self.preconditioner is not None and bool(run.active.any()):
            self.preconditioner.setup(system.A)
        while bool(run.active.any()):
            run.cycle()
        solution = run.solution()
        if self.raise_on_failure and not solution.all_converged:
            raise SolverError(solution)
        return solution


class _Run:
    """The state of one solve; every quantity per column is (batch,), vectors are flat, (batch, n)."""

    def __init__(self, system: LinearSystem, method: GMRES) -> None:
        self.system, self.method, self.A = system, method, system.A
        self.shape = system.b.shape
        self.b, self.x = _flat(system.b), _flat(system.x)
        self.matvecs = self.steps = self.fallbacks = 0
        batch, device = len(self.b), self.b.device
        self.active = torch.ones(batch, dtype=torch.bool, device=device)
        self.iterations = torch.zeros(batch, dtype=torch.int64, device=device)
        self._reason = torch.full_like(self.iterations, REASONS.index(Reason.MAX_STEPS))
        self.b_norm = _norm(self.b)
        self.largest = torch.zeros_like(self.b_norm)  # ||A z|| so far: what rounding is measured by
        self.tolerance = torch.maximum(method.rtol * self.b_norm, method.atol / system.unit)
        self.stop(~(self.b_norm.isfinite() & largest(self.x).isfinite()), Reason.NAN_OR_INF)
        self.x[self.active & (self.b_norm == 0)] = 0
        self.r = self.b - self.apply(self.x)
        self.r_norm = _norm(self.r)
        self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
        self.history = [self.r_norm]
        self.succeed()

    def apply(self, x: Tensor) -> Tensor:
        """A x, counted."""
        self.matvecs += 1
        return _flat(self.A.apply(x.reshape(len(x), *self.A.shape)))

    def stop(self, columns: Tensor, reason: Reason) -> None:
        """Freeze the active ones of these columns for this reason."""
        self._reason = torch.where(columns & self.active, REASONS.index(reason), self._reason)
        self.active = self.active & ~columns

    def succeed(self) -> None:
        """Stop the columns whose true residual, which r_norm is now, meets the tolerance."""
        self.stop(self.active & (self.r_norm <= self.method.rtol * self.b_norm), Reason.RTOL)
        self.stop(self.active & (self.r_norm <= self.tolerance), Reason.ATOL)

    def preconditioned(self, v: Tensor) -> Tensor:
        """M v, and v itself in a column where M gives NaN or infinity."""
        M = self.method.preconditioner
        if M is None:
            return v
        z = M.apply(v.view(len(v), *self.A.shape))
        if not isinstance(z, Tensor) or z.numel() != v.numel() or len(z) != len(v) or z.device != v.device:
            came = f"{z.dtype} {tuple(z.shape)} on {z.device}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise ValueError(
                f"{type(M).__name__} was given {v.dtype} {(len(v), *self.A.shape)} on {v.device} and returned {came}; "
                "expected numbers of that shape on that device."
            )
        z = _flat(z).to(v.dtype)
        broken = self.active & ~(torch.view_as_real(z) if z.is_complex() else z).isfinite().flatten(1).all(1)
        self.fallbacks += int(broken.sum())
        return torch.where(broken[:, None], v, z)

    def cycle(self) -> None:
        """Up to `restart` steps from the true residual, and then the true residual again."""
        m = min(self.method.restart, self.method.max_steps - self.steps)
        if m < 1:
            self.stop(self.active, Reason.MAX_STEPS)
            return
        before, working = self.r_norm, self.active.clone()
        batch, dtype = len(self.b), self.b.dtype
        V = torch.empty(batch, m + 1, self.b.shape[1], dtype=dtype, device=self.b.device)
        V[:, 0] = torch.where(working[:, None], self.r / before.clamp(min=torch.finfo(before.dtype).tiny)[:, None], 0)
        Z: list[Tensor] = []
        R = torch.zeros(batch, m, m, dtype=dtype, device=self.b.device)
        g = torch.zeros(batch, m + 1, dtype=dtype, device=self.b.device)
        g[:, 0] = torch.where(working, before, 0).to(dtype)
        rotations: list[tuple[Tensor, Tensor]] = []
        count = torch.zeros_like(self.iterations)
        invariant = torch.zeros_like(working)
        for j in range(m):
            Z.append(self.preconditioned(V[:, j]))
            w = self.apply(Z[j])
            self.largest = torch.maximum(self.largest, _norm(w).nan_to_num())
            h = w.new_zeros(batch, j + 1)
            basis = V[:, : j + 1]
            for _ in range(2):  # twice is enough to keep the basis orthogonal
                part = (basis.conj() @ w[..., None])[..., 0]
                w, h = w - (part[:, None] @ basis)[:, 0], h + part
            beyond = _norm(w)
            rounding = 10 * torch.finfo(beyond.dtype).eps * self.largest
            ended = beyond <= rounding
            finite = beyond.isfinite()
            self.stop(working & ~finite, Reason.NAN_OR_INF)
            beyond = torch.where(ended, 0.0, beyond)
            # Givens rotations keep the triangular factor of the Hessenberg matrix.
            column = list(h.unbind(1))
            for i, (c, s) in enumerate(rotations):
                column[i], column[i + 1] = c * column[i] + s * column[i + 1], -s.conj() * column[i] + c * column[i + 1]
            length = (column[j].abs().square() + beyond.square()).sqrt()
            safe = torch.where(length > 0, length, 1.0)
            # c is real: s = conj of the phase of the diagonal times what is beyond it.
            c = torch.where(length > 0, column[j].abs() / safe, 1.0)
            phase = torch.where(
                column[j].abs() > 0, column[j] / column[j].abs().clamp(min=torch.finfo(length.dtype).tiny), 1
            )
            s = phase * beyond / safe
            rotations.append((c.to(dtype), s))
            column[j] = phase * length
            taken = working & finite & (length > rounding)  # no step along what A takes to zero
            for i in range(j + 1):
                R[:, i, j] = torch.where(taken, column[i], 0)
            g_next = -s.conj() * g[:, j]
            g[:, j + 1] = torch.where(taken, g_next, 0)
            g[:, j] = torch.where(taken, c * g[:, j], g[:, j])
            count = count + taken
            self.iterations = self.iterations + taken
            self.r_norm = torch.where(taken, g[:, j + 1].abs(), self.r_norm)
            invariant = invariant | (working & finite & ended)
            self.steps += 1
            self.history.append(self.r_norm)
            if self.method.callback is not None:
                self.method.callback(len(self.history) - 1, self.r_norm * self.system.unit)
            working = working & finite & ~ended & (self.r_norm > self.tolerance)
            if not bool(working.any()):
                break
            V[:, j + 1] = torch.where(working[:, None], w / torch.where(beyond > 0, beyond, 1.0)[:, None], 0)
        claimed = self.r_norm <= self.tolerance
        self._combine(Z, R, g, count)
        self.r = self.b - self.apply(self.x)
        true = _norm(self.r)
        self.r_norm = torch.where(self.active, true, self.r_norm)
        self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
        self.succeed()
        stuck = self.active & ~(self.r_norm <= torch.where(claimed, NO_AGREEMENT, NO_PROGRESS) * before)
        self.stop(stuck & invariant & ~claimed, Reason.INCONSISTENT)
        self.stop(stuck & (claimed | (count == self.method.restart)), Reason.STAGNATED)
        if self.steps >= self.method.max_steps:
            self.stop(self.active, Reason.MAX_STEPS)

    def _combine(self, Z: list[Tensor], R: Tensor, g: Tensor, count: Tensor) -> None:
        """x += sum_j y_j z_j with R y = g over the steps that each column has taken."""
        k = len(Z)
        R, g = R[:, :k, :k], g[:, :k]
        missing = torch.arange(k, device=count.device) >= count[:, None]
        R = torch.where(missing[:, None, :], 0, R) + torch.diag_embed(missing.to(R.dtype))
        y = torch.linalg.solve_triangular(R, torch.where(missing, 0, g)[..., None], upper=True)[..., 0]
        y = torch.where(self.active[:, None], y, 0)
        for j, z in enumerate(Z):
            self.x = self.x + y[:, j, None] * torch.where(self.active[:, None], z, 0)

    def solution(self) -> Solution:
        """The outcome in the units of b; the residual is that of the very numbers returned."""
        unit = self.system.unit
        returned = self.x * unit[:, None]
        residual = _norm(self.b - self.apply(returned / unit[:, None]))
        reasons = [
            Reason.STAGNATED if REASONS[index].converged and missed else REASONS[index]
            for index, missed in zip(self._reason.tolist(), (~(residual <= self.tolerance)).tolist(), strict=True)
        ]
        return outcome(
            self.system,
            returned.view(self.shape),
            reasons,
            self.iterations,
            residual,
            torch.where(self.b_norm > 0, self.b_norm, 1.0),
            self.history,
            (self.matvecs, self.fallbacks),
        )


def _flat(u: Tensor) -> Tensor:
    return u.flatten(1)


def _norm(u: Tensor) -> Tensor:
    return torch.linalg.vector_norm(u, dim=1)
