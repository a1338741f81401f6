"""Conjugate directions that a network suggests, with conjugate gradients beside so that a bad one costs no iteration."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.krylov import Iteration, KrylovSolver
from opflow.solvers.linear_operator import LinearOperator
from opflow.solvers.linear_system import dot, largest
from opflow.solvers.solution import Reason

SAFEGUARDS = ("span", None)
USEFUL_SHARE = 0.1  # of a step's decrease of the energy error: less does not pay for the second product with A
MOST_USELESS = 3
PATIENCE, PROGRESS = 40, 0.9


class ConjugateDirection(KrylovSolver):
    """A x = b, A symmetric positive definite, along directions d(r / |r|) that a network or any other function suggests.

    With ``safeguard="span"`` conjugate gradients go beside, one step a step, and each step minimises the energy error
    (x - x*).A(x - x*) over

        x + span{the last `memory` steps, x_cg - x, r, d(r / |r|)},        x_cg the iterate of conjugate gradients,

    made A-orthogonal in this order, so that neither sign nor size of d matters. So x is not behind conjugate
    gradients in energy while d is in use, a column ends with whichever of the two arrives first, and **a network costs no iteration, whatever it says**;
    it costs products with A, three a step while it is in use instead of one.

    An output is discarded where it is not finite, zero, dependent on the others, of no positive energy, or worth less
    than a tenth of the step's decrease. Three discarded outputs, or 40 steps in which |r| did not fall by 10 %, retire the network
    for that column. Then conjugate gradients restarted from x and those beside both go on, until the latter are ahead; a
    column in which the network never took part has those alone. Once no column uses the network, it is not called any more.

    With ``safeguard=None`` it is the published method, which minimises along d alone:

        p = d(r / |r|) - sum over the last `memory` p_j of (d.A p_j / p_j.A p_j) p_j,   x <- x + (p.r / p.A p) p.

    There a direction of NaN or infinity ends the column as NAN_OR_INF, one that A sends to zero as STAGNATED.

    Both take r from its recursion, one product with A a direction, and recompute b - A x before they claim success, as
    `ConjugateGradient` does. `Solution.fallbacks` counts discarded outputs, and retirements for want of progress.

    Args:
        direction: r / |r| (batch, *shape), a tensor in b's dtype, -> a tensor of that shape, of any real floating-point dtype; if it has
            ``setup(A)``, that is called once a solve. It need not be linear, symmetric or deterministic.
        memory: how many previous directions are kept, each with its product with A. A column that goes on without its
            network keeps one in any case.
        rtol: ||b - A x|| <= rtol ||b||. atol: or <= atol.
        callback: called with (step, residual norms (batch,)) after each step.
        raise_on_failure: raise `SolverError`, with the solution inside, instead of returning one that did not converge.

    Source: Kaneda et al. (2023), "A deep conjugate direction method for iteratively solving linear systems", Algorithm 1, without
    its second product with A. The safeguard is ours.

    >>> A = torch.diag(torch.arange(1.0, 101.0).double())
    >>> b = torch.ones(100).double()
    >>> solution = ConjugateDirection(lambda r: -r / A.diagonal()).solve(A, b)
    >>> solution.iterations, solution.converged
    (1, True)
    """

    def __init__(
        self,
        direction: Callable[[Tensor], Tensor],
        memory: int = 2,
        safeguard: str | None = "span",
        rtol: float = 1e-8,
        max_steps: int = 500,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        atol: float = 0.0,
        raise_on_failure: bool = False,
    ) -> None:
        super().__init__(rtol, max_steps, callback, atol=atol, raise_on_failure=raise_on_failure)
        if not callable(direction):
            raise TypeError(
                f"direction is a {type(direction).__name__}; expected a function or network that maps r / |r| (batch, *shape) to a "
                "direction of that shape. A preconditioner M goes in as M.apply, or into ConjugateGradient(M)."
            )
        if not isinstance(memory, int) or memory < 0:
            raise ValueError(f"memory is {memory!r}; give the number of previous directions to keep, 0 or more.")
        if safeguard not in SAFEGUARDS:
            raise ValueError(f'safeguard is {safeguard!r}; choose "span", or None for the method as published.')
        self.direction, self.memory, self.safeguard = direction, memory, safeguard

    def setup(self, A: LinearOperator) -> None:
        """Let the network read A if it wants to."""
        read: Any = getattr(self.direction, "setup", None)
        if callable(read):
            read(A)

    def iterate(self, run: Iteration) -> None:
        """Take steps until no column is active."""
        if self.safeguard is None:
            self._iterate_as_published(run)
        else:
            self._iterate_in_span(run)

    def _iterate_as_published(self, run: Iteration) -> None:
        previous: deque[Direction] = deque(maxlen=self.memory)
        while run.unfinished():
            d, finite = self._suggested(run)
            run.stop(~finite, Reason.NAN_OR_INF)
            p = d.clone()
            for last in previous:
                p.addcmul_(run.shaped(-_component(d, last)), last.p)
            Ap = run.apply(p)
            pAp = run.curvature(p, Ap, Reason.STAGNATED)
            restarted = run.advance(dot(p, run.r) / pAp, p, Ap)
            previous.appendleft(Direction(p, Ap, pAp))
            _forget(previous, restarted)

    def _iterate_in_span(self, run: Iteration) -> None:
        classical = ConjugateGradient(None, self.rtol, self.max_steps, atol=self.atol)
        rival = run.beside(classical)
        steps = classical.steps(rival)
        previous: deque[Direction] = deque(maxlen=max(self.memory, 1))
        record = _Record(run)
        while run.unfinished():
            next(steps)
            asked, apart = run.trusted & run.active, record.apart & run.active
            useful = torch.zeros_like(asked)
            if bool((asked | apart).any()):
                step, useful = self._step(run, rival, list(previous), asked, apart)
                run.move(torch.ones_like(step.pAp), step.p, step.Ap)
                previous.appendleft(step)
            restarted = run.follow(rival, ~(apart | useful))
            retired = record.enter(run, rival, asked, useful)
            _forget(previous, restarted | retired | (run.trusted & (self.memory == 0)))

    def _step(
        self, run: Iteration, rival: Iteration, previous: list[Direction], asked: Tensor, apart: Tensor
    ) -> tuple[Direction, Tensor]:
        """The step that minimises the energy error over the span, and the columns where the network takes part in it."""
        span = [*previous]
        span.append(_added(run, rival.x - run.x, span, asked, rival.stiffest, run.r - rival.r))
        # Where both were one so far, r lies in the span of the steps before and of the rival's new one.
        span.append(_added(run, run.r, span, apart, rival.stiffest))
        d = self._suggested(run)[0] if bool(asked.any()) else torch.zeros_like(run.r)
        span.append(_added(run, d, span, asked, rival.stiffest))
        lengths, decreases = zip(*(_line_search(direction, run.r) for direction in span[-3:]), strict=True)
        useful = asked & (decreases[-1] > 0) & (decreases[-1] >= USEFUL_SHARE * sum(decreases))
        p, Ap, energy = torch.zeros_like(run.x), torch.zeros_like(run.x), torch.zeros_like(run.r_norm)
        for direction, length, decrease, columns in zip(
            span[-3:], lengths, decreases, (asked, apart, useful), strict=True
        ):
            length = run.shaped(torch.where(columns, length, 0.0))
            p.addcmul_(length, direction.p)
            Ap.addcmul_(length, direction.Ap)
            energy = energy + torch.where(columns, decrease, 0.0)
        return Direction(p, Ap, energy), useful

    def _suggested(self, run: Iteration) -> tuple[Tensor, Tensor]:
        """d(r / |r|) without its part in a known null space, and whether it is finite; zero where it is not."""
        r = run.r / run.shaped(torch.where(run.active, run.r_norm, 1.0))
        d = run.checked(self.direction(r), self.direction)
        size = largest(d)
        finite = size.isfinite()
        d = torch.where(run.shaped(finite & (size > 0)), d / run.shaped(size), 0.0)
        part = run.A.null_part(d)
        return d if part is None else d - part, finite


class Direction(NamedTuple):
    """p, A p and p.A p (batch,), which is zero in columns where p adds nothing or is forgotten."""

    p: Tensor
    Ap: Tensor
    pAp: Tensor


class _Record:
    """What the network of each column has been worth so far.

    Attributes:
        useless: outputs discarded. idle_steps: steps since |r| had last fallen by 10 %, to `mark`.
        apart: whether the network has led x away from the iterate of conjugate gradients.
    """

    def __init__(self, run: Iteration) -> None:
        self.useless, self.idle_steps = torch.zeros_like(run.iterations), torch.zeros_like(run.iterations)
        self.mark, self.apart = run.r_norm, torch.zeros_like(run.active)

    def enter(self, run: Iteration, rival: Iteration, asked: Tensor, useful: Tensor) -> Tensor:
        """Enter a step; retire the networks that have had their chances, and return those columns."""
        useless = asked & ~useful
        self.useless = self.useless + useless
        progressed = run.r_norm <= PROGRESS * self.mark
        self.mark = torch.where(progressed, run.r_norm, self.mark)
        self.idle_steps = torch.where(progressed, 0, self.idle_steps + 1)
        failed = asked & (self.useless >= MOST_USELESS)
        idle = asked & ~failed & (self.idle_steps >= PATIENCE)
        run.fallbacks += int(useless.sum() + idle.sum())
        run.trusted = run.trusted & ~failed & ~idle
        behind = ~run.trusted & (rival.r_norm <= run.r_norm)
        self.apart = (self.apart | useful) & ~behind
        return failed | idle


def _added(
    run: Iteration, u: Tensor, others: Sequence[Direction], columns: Tensor, stiffest: Tensor, Au: Tensor | None = None
) -> Direction:
    """What u adds to directions that are A-orthogonal to each other, in these columns; A u is computed unless it is known."""
    eps, size = torch.finfo(u.dtype).eps, largest(u)
    columns = columns & size.isfinite() & (size > 0)
    shaped = run.shaped(columns)
    p = torch.where(shaped, u / run.shaped(size), 0.0)
    Ap = None if Au is None else torch.where(shaped, Au / run.shaped(size), 0.0)
    for _ in range(2):  # what rounding left the first time, relative to a p that may have become small, goes the second
        for other in others:
            component = run.shaped(-_component(p, other))
            p.addcmul_(component, other.p)
            if Ap is not None:
                Ap.addcmul_(component, other.Ap)
    columns = columns & (largest(p) > 100 * eps)
    if not bool(columns.any()):
        return Direction(p, p, torch.zeros_like(size))
    Ap = run.apply(p) if Ap is None else Ap
    pAp = dot(p, Ap)
    # Less is rounding, or a null space that nobody knows of: a step along it could be of any length.
    columns = columns & pAp.isfinite() & (pAp > eps * stiffest * dot(p, p))
    if not bool(columns.all()):
        shaped = run.shaped(columns)
        p, Ap, pAp = torch.where(shaped, p, 0.0), torch.where(shaped, Ap, 0.0), torch.where(columns, pAp, 0.0)
    return Direction(p, Ap, pAp)


def _line_search(direction: Direction, r: Tensor) -> tuple[Tensor, Tensor]:
    """The step along p that minimises the energy error, and by how much it falls; zero where p.A p = 0."""
    pr, pAp = dot(direction.p, r), direction.pAp
    length = torch.where(pAp > 0, pr / pAp, 0.0)
    return length, length * pr


def _component(u: Tensor, direction: Direction) -> Tensor:
    """(u.A p) / (p.A p) of each column."""
    return torch.where(direction.pAp > 0, dot(u, direction.Ap) / direction.pAp, 0.0)


def _forget(previous: deque[Direction], columns: Tensor) -> None:
    if bool(columns.any()):
        for i, (p, Ap, pAp) in enumerate(previous):
            previous[i] = Direction(p, Ap, torch.where(columns, 0.0, pAp))
