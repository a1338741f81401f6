"""What a solver returns: the iterate, and in words why it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Reason(Enum):
    """Why a solver stopped; only RTOL and ATOL claim success, after the true residual b - A x was recomputed."""

    RTOL = "the true residual fell below rtol times the right-hand side"
    ATOL = "the true residual fell below atol"
    MAX_STEPS = "the step limit came first; raise max_steps or use a better preconditioner"
    STAGNATED = "the true residual stopped falling above the tolerance: the dtype cannot reach it, so raise rtol or use float64, or the direction does not reduce it"
    INDEFINITE = "the operator or the preconditioner is not positive definite; use a solver for indefinite systems"
    NONSYMMETRIC = "the operator is not symmetric; conjugate gradients need symmetry, so use GMRES or BiCGSTAB"
    NAN_OR_INF = "a NaN or an infinity came in with the operator, the right-hand side, the initial guess or an unsafe direction, or numbers overflowed their dtype"
    INCONSISTENT = "the operator is singular and the right-hand side has a component that it cannot produce"

    @property
    def converged(self) -> bool:
        """True for the two reasons that claim success."""
        return self in (Reason.RTOL, Reason.ATOL)


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve. For a batched right-hand side every entry but the last four is per column.

    Attributes:
        x: the iterate, in the type (NumPy or torch), dtype and shape of b; the last one also when it did not converge.
        reason: a `Reason`, or a list of them.
        iterations: steps taken.
        residual_norm: the Euclidean norm of b - A x, recomputed from x.
        converged: whether that norm meets the tolerance.
        message: one sentence.
        history: residual norms after each step, (steps + 1,) or (steps + 1, batch); the recursive ones inside a solve.
        matvecs: applications of A to the whole batch.
        fallbacks: times that a preconditioner's or network's output was discarded, summed over columns, and networks retired
            because the residual did not fall; a column whose preconditioner returned NaN or infinity goes on without it.
    """

    x: Any
    reason: Reason | list[Reason]
    iterations: Any
    residual_norm: Any
    converged: Any
    message: str
    history: Any
    matvecs: int
    fallbacks: int

    @property
    def all_converged(self) -> bool:
        """True if every column converged."""
        reasons = self.reason if isinstance(self.reason, list) else [self.reason]
        return all(reason.converged for reason in reasons)


class SolverError(RuntimeError):
    """A solve failed and the caller asked for an exception; `solution` holds the iterate all the same."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(solution.message)
        self.solution = solution
