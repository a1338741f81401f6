"""Conjugate gradients that never claim more than the true residual shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from opflow.solvers.krylov import Iteration, KrylovSolver
from opflow.solvers.linear_operator import LinearOperator
from opflow.solvers.linear_system import dot
from opflow.solvers.solution import Reason
from opflow.typing import Preconditioner


class ConjugateGradient(KrylovSolver):
    """Preconditioned conjugate gradients for symmetric positive definite A, batched over right-hand sides and operators.

        z = M r,   p <- z + beta p,   x <- x + alpha p,   r <- r - alpha A p,   alpha = r.z / p.Ap,
        beta = r.z / r_old.z_old, or with ``flexible=True`` (r - r_old).z / r_old.z_old = -z.Ap / p.Ap

    Each column stops and freezes on its own. When the recursive residual meets the tolerance, b - A x is recomputed; only
    that decides. If it disagrees, the column restarts from the true residual, and after a few restarts without
    progress it says STAGNATED. A column whose preconditioner gives NaN or infinity goes on without it.

    Args:
        preconditioner: M with ``setup(A)`` and ``apply(r)``; it must be linear, symmetric and deterministic. None for none.
        rtol: ||b - A x|| <= rtol ||b||. atol: or <= atol.
        callback: called with (step, residual norms (batch,)) after each step.
        flexible: the formula of Polak and Ribiere, which makes successive directions A-orthogonal whatever M does. So M may be
            nonlinear, unsymmetric, random or of either sign; one product more a step. Columns where M gives zero go on without it.
        raise_on_failure: raise `SolverError`, with the solution inside, instead of returning one that did not converge.

    Source: Hestenes and Stiefel (1952); the restart follows van der Vorst and Ye (2000); flexible: Golub and Ye (1999),
    Notay (2000), algorithm FCG(1).

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
        flexible: bool = False,
        raise_on_failure: bool = False,
    ) -> None:
        super().__init__(rtol, max_steps, callback, atol=atol, raise_on_failure=raise_on_failure)
        M = preconditioner
        if not flexible and M is not None and not (M.linear and M.symmetric and M.deterministic):
            raise ValueError(
                f"{type(M).__name__} declares linear={M.linear}, symmetric={M.symmetric}, deterministic={M.deterministic}; conjugate "
                "gradients need a preconditioner that is all three. Use a flexible method for this one: ConjugateGradient(..., flexible=True)."
            )
        self.preconditioner, self.flexible = M, flexible

    def setup(self, A: LinearOperator) -> None:
        """Let the preconditioner read A."""
        if self.preconditioner is not None:
            self.preconditioner.setup(A)

    def iterate(self, run: Iteration) -> None:
        """Take steps until no column is active."""
        for _ in self.steps(run):
            pass

    def steps(self, run: Iteration) -> Iterator[None]:
        """One step each time it is asked, so that another method can go beside."""
        p = Ap = pAp = previous = restarted = torch.empty(0)
        while run.unfinished():
            z, rz, broken = self._precondition(run)
            if not self.flexible:
                run.stop(rz <= 0, Reason.INDEFINITE)
            if not p.numel():
                p = z.clone()
            else:
                beta = -dot(z, Ap) / pAp if self.flexible else rz / previous
                torch.addcmul(z, run.shaped(torch.where(restarted | broken, 0.0, beta)), p, out=p)
            Ap = run.apply(p)
            # Any p may come from a flexible preconditioner, so one that A sends to zero says nothing about the right-hand side.
            foreign = self.flexible and z is not run.r and bool(run.trusted.any())
            pAp = run.curvature(p, Ap, Reason.INDEFINITE if foreign else Reason.INCONSISTENT)
            restarted = run.advance(rz / pAp, p, Ap)
            previous = rz
            yield

    def _precondition(self, run: Iteration) -> tuple[Tensor, Tensor, Tensor]:
        """z = M r, r.z, and the columns where M gave nothing of use just now; those go on without it, z = r."""
        M = self.preconditioner
        if M is None or not bool(run.trusted.any()):
            return run.r, run.r_norm.square(), torch.zeros_like(run.active)
        z = run.checked(M.apply(run.r), M)
        rz = dot(run.r, z)
        useless = ~rz.isfinite()  # what is not finite in z shows in the product
        if self.flexible:
            useless = useless | (rz == 0)
        broken = useless & run.trusted & run.active
        if bool((broken | ~run.trusted).any()):
            run.fallbacks += int(broken.sum())
            run.trusted = run.trusted & ~broken
            z = torch.where(run.shaped(run.trusted), z, run.r)
            rz = torch.where(run.trusted, rz, run.r_norm.square())
        return z, rz, broken
