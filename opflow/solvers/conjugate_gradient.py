"""Conjugate gradients that never claim more than the true residual shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opflow.solvers.linear_system import LinearSystem, dot, largest, norm
from opflow.solvers.solution import Reason, Solution, SolverError
from opflow.typing import Preconditioner

MAX_RESTARTS = 5


class ConjugateGradient:
    """Preconditioned conjugate gradients for symmetric positive definite A, batched over right-hand sides and operators.

    Each column stops and freezes on its own. When the recursive residual meets the tolerance, b - A x is recomputed; only
    that decides. If it disagrees, the column restarts from the true residual, and after a few restarts without
    progress it says STAGNATED.

    Args:
        preconditioner: M with ``setup(A)`` and ``apply(r)``; it must be linear and symmetric. None for none.
        rtol: ||b - A x|| <= rtol ||b||. atol: or <= atol.
        callback: called with (step, residual norms (batch,)) after each step.
        raise_on_failure: raise `SolverError`, with the solution inside, instead of returning one that did not converge.

    Source: Hestenes and Stiefel (1952); the restart follows van der Vorst and Ye (2000).

    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> ConjugateGradient().solve(A, torch.tensor([3.0, 4.0])).x.round(decimals=5)
    tensor([1., 1.])
    """

    def __init__(
        self,
        preconditioner: Preconditioner | None = None,
        rtol: float = 1e-8,
        max_steps: int = 500,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        atol: float = 0.0,
        raise_on_failure: bool = False,
    ) -> None:
        if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
            raise ValueError(
                f"rtol is {rtol} and atol {atol}; neither may be negative or NaN and one must be positive."
            )
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; give a positive whole number.")
        if preconditioner is not None and not (preconditioner.linear and preconditioner.symmetric):
            raise ValueError(
                f"{type(preconditioner).__name__} declares linear={preconditioner.linear}, symmetric={preconditioner.symmetric}; conjugate "
                "gradients need a preconditioner that is both. Use a flexible method for this one."
            )
        self.preconditioner, self.rtol, self.atol = preconditioner, rtol, atol
        self.max_steps, self.callback, self.raise_on_failure = max_steps, callback, raise_on_failure

    @torch.no_grad()
    def solve(self, A: Any, b: Any, x0: Any = None) -> Solution:
        """Solve A x = b.

        Args:
            A: LinearOperator, SciPy sparse matrix or dense square tensor.
            b: (batch, *shape) or (*shape), NumPy or torch; x comes back in the same type, dtype and shape.
            x0: initial guess in the shape of b; zero by default.
        """
        system = LinearSystem.of(A, b, x0)
        run = _Run(system, self)
        if not run.refused():
            if self.preconditioner is not None:
                self.preconditioner.setup(system.A)
            run.iterate()
        solution = run.solution()
        if self.raise_on_failure and not solution.all_converged:
            raise SolverError(solution)
        return solution


class _Run:
    """The state of one solve; every per-column quantity is (batch,)."""

    def __init__(self, system: LinearSystem, method: ConjugateGradient) -> None:
        self.A, self.b, self.x, self.method, self.system = system.A, system.b, system.x, method, system
        batch = self.b.shape[0]
        self.reasons: list[Reason | None] = [None] * batch
        self.active = torch.ones(batch, dtype=torch.bool, device=self.b.device)
        self.iterations = torch.zeros(batch, dtype=torch.int64, device=self.b.device)
        self.history: list[Tensor] = []
        self.matvecs = self.fallbacks = 0
        self.trusted = torch.full_like(self.active, method.preconditioner is not None)
        self.b_norm = norm(self.b)
        self.tolerance = torch.maximum(method.rtol * self.b_norm, method.atol / system.unit)
        self.null = self.A.null_space()

    def stop(self, columns: Tensor, reason: Reason) -> None:
        columns = columns & self.active
        for column in columns.nonzero().flatten().tolist():
            self.reasons[column] = reason
        self.active = self.active & ~columns

    def apply(self, x: Tensor) -> Tensor:
        self.matvecs += 1
        return self.A.apply(x)

    def shaped(self, per_column: Tensor) -> Tensor:
        return per_column.view(-1, *[1] * (self.b.ndim - 1))

    def refused(self) -> bool:
        """Everything that is known before the first step; True if nothing is left to do."""
        finite = self.b.flatten(1).isfinite().all(1) & self.x.flatten(1).isfinite().all(1)
        self.stop(~finite, Reason.NAN_OR_INF)
        zero = self.active & (self.b_norm == 0)
        self.x[zero] = 0
        self.project_null_space()
        if self.A.symmetric is None and not self.probe_symmetry():
            self.stop(self.active, Reason.NONSYMMETRIC)
        self.r = self.b - self.apply(self.x)
        self.r_norm = norm(self.r)
        self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
        self.history.append(self.r_norm)
        self.succeed(self.r_norm <= self.tolerance, self.r_norm)
        return not bool(self.active.any())

    def project_null_space(self) -> None:
        """A singular A can only produce b without a null component: refuse a large one, count a small one as residual."""
        if self.null is None:
            return
        component = dot(self.b, self.null.expand_as(self.b))
        rounding = 100 * torch.finfo(self.b.dtype).eps * self.null.numel() ** 0.5 * self.b_norm
        self.stop(component.abs() > torch.maximum(self.tolerance, rounding), Reason.INCONSISTENT)
        self.b = self.b - self.shaped(component) * self.null
        # What remains of ||b - A x||^2 <= tolerance^2 once the component, which no x can remove, has had its part.
        left = self.tolerance * (1 - (component / self.tolerance).square()).clamp(min=0).sqrt()
        self.tolerance = torch.where(component.abs() < self.tolerance, left, self.tolerance)

    def advanced(self, u: Tensor, step: Tensor, direction: Tensor) -> Tensor:
        """u + step direction in the active columns; the others stay as they are, whatever their direction holds."""
        moved = torch.addcmul(u, step, direction)
        return moved if bool(self.active.all()) else torch.where(self.shaped(self.active), moved, u)

    def probe_symmetry(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, 1, *self.A.shape, generator=generator, dtype=torch.float64).to(self.b)
        Au, Av = self.apply(u), self.apply(v)
        size = self.shaped(torch.maximum(largest(Au), largest(Av)))  # so that no product underflows
        Au, Av = Au / size, Av / size
        scale = torch.maximum(norm(u) * norm(Av), norm(v) * norm(Au))
        gap = (dot(u, Av) - dot(v, Au)).abs()
        # NaN compares as symmetric here; the first residual then says NAN_OR_INF.
        return not bool((gap > torch.finfo(self.b.dtype).eps ** 0.5 * scale).any())

    def succeed(self, columns: Tensor, true_norm: Tensor) -> None:
        self.stop(columns & (true_norm <= self.method.rtol * self.b_norm), Reason.RTOL)
        self.stop(columns, Reason.ATOL)

    def precondition(self) -> tuple[Tensor, Tensor, Tensor]:
        """z = M r, r.z, and the columns where M gave NaN or infinity just now; those go on without it, z = r."""
        M = self.method.preconditioner
        if M is None or not bool(self.trusted.any()):
            return self.r, dot(self.r, self.r), torch.zeros_like(self.active)
        z = torch.where(self.shaped(self.trusted), M.apply(self.r), self.r)
        rz = dot(self.r, z)
        broken = ~rz.isfinite()  # what is not finite in z shows in the product
        if bool(broken.any()):
            self.fallbacks += int((broken & self.active).sum())
            self.trusted = self.trusted & ~broken
            z = torch.where(self.shaped(broken), self.r, z)
            rz = dot(self.r, z)
        return z, rz, broken

    def iterate(self) -> None:
        eps = torch.finfo(self.b.dtype).eps
        p, rz, _ = self.precondition()
        self.stop(rz <= 0, Reason.INDEFINITE)
        operator_norm = torch.zeros_like(rz)
        restarts = torch.zeros_like(self.iterations)
        last_true = torch.full_like(self.r_norm, torch.inf)
        for step in range(1, self.method.max_steps + 1):
            if not bool(self.active.any()):
                return
            Ap = self.apply(p)
            # Largest entries, not Euclidean norms: their squares could underflow and make a regular A look singular.
            pAp, p_norm, Ap_norm = dot(p, Ap), largest(p), largest(Ap)
            operator_norm = torch.maximum(operator_norm, Ap_norm / p_norm)
            self.stop(~(pAp.isfinite() & Ap_norm.isfinite()), Reason.NAN_OR_INF)
            self.stop(Ap_norm <= 10 * eps * operator_norm * p_norm, Reason.INCONSISTENT)
            self.stop(pAp <= 0, Reason.INDEFINITE)
            alpha = self.shaped(rz / pAp)
            self.x = self.advanced(self.x, alpha, p)
            self.r = self.advanced(self.r, -alpha, Ap)
            self.r_norm = torch.where(self.active, norm(self.r), self.r_norm)
            self.iterations += self.active
            self.stop(~self.r_norm.isfinite(), Reason.NAN_OR_INF)
            restarted = self.verify(self.active & (self.r_norm <= self.tolerance), restarts, last_true)
            self.history.append(self.r_norm)
            if self.method.callback is not None:
                self.method.callback(step, self.r_norm * self.system.unit)
            previous = rz
            z, rz, broken = self.precondition()
            self.stop(rz <= 0, Reason.INDEFINITE)
            beta = torch.where(self.active & ~(restarted | broken), rz / previous, 0.0)
            p = torch.addcmul(z, self.shaped(beta), p)
        self.stop(self.active, Reason.MAX_STEPS)

    def verify(self, claimed: Tensor, restarts: Tensor, last_true: Tensor) -> Tensor:
        """Recompute b - A x where the recursive residual claims success; return the columns that restart from it."""
        if not bool(claimed.any()):
            return claimed
        true = self.b - self.apply(self.x)
        true_norm = norm(true)
        self.succeed(claimed & (true_norm <= self.tolerance), true_norm)
        drifted = claimed & self.active
        stuck = drifted & ((restarts >= MAX_RESTARTS) | (true_norm > 0.5 * last_true))
        self.stop(stuck, Reason.STAGNATED)
        restarts += drifted
        last_true[drifted] = true_norm[drifted]
        self.r = torch.where(self.shaped(drifted), true, self.r)
        self.r_norm = torch.where(drifted, true_norm, self.r_norm)
        return drifted

    def solution(self) -> Solution:
        """The outcome in the units of b; the residual is that of the very numbers returned."""
        unit = self.system.unit
        returned = self.x * self.shaped(unit)
        residual = norm(self.system.b - self.apply(returned / self.shaped(unit)))
        tolerance = torch.maximum(self.method.rtol * self.b_norm, self.method.atol / unit)
        reasons = [
            Reason.STAGNATED if reason.converged and missed else reason
            for reason, missed in zip(
                (reason or Reason.MAX_STEPS for reason in self.reasons),
                (~(residual <= tolerance)).tolist(),
                strict=True,
            )
        ]
        converged = torch.tensor([reason.converged for reason in reasons], dtype=torch.bool)
        history = torch.stack(self.history) * unit
        relative = residual / torch.where(self.b_norm > 0, self.b_norm, 1.0)
        message = _message(reasons, self.iterations, relative)

        def out(value: Tensor) -> Any:
            value = value[..., 0] if self.system.single else value
            if value.ndim == 0:
                return value.item()
            return value.cpu().numpy() if self.system.numpy else value

        x = returned[0] if self.system.single else returned
        return Solution(
            x=x.numpy() if self.system.numpy else x,
            reason=reasons[0] if self.system.single else reasons,
            iterations=out(self.iterations),
            residual_norm=out(residual * unit),
            converged=out(converged),
            message=message,
            history=out(history),
            matvecs=self.matvecs,
            fallbacks=self.fallbacks,
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
