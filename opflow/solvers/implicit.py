"""x = A^-1 b as a differentiable function: the backward pass is one solve more, whatever the forward one took."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.linear_operator import LinearOperator, as_operator
from opflow.solvers.linear_system import dot, largest, norm
from opflow.solvers.multigrid import Multigrid
from opflow.solvers.set_up_once import SetUpOnce
from opflow.solvers.solution import Solution, SolverError


def implicit_solve(A: Any, b: Tensor, solver: Any = None) -> Tensor:
    """x with A x = b for symmetric A, differentiable in b and in the tensors that define A.

    With the gradient g of a loss in x, one adjoint solve A lambda = g gives all others: lambda in b, and
    -lambda^T (dA/dtheta) x in theta (`A.tensors()`). Nothing of the iteration is kept, so memory does not grow with its
    steps. The adjoint solve uses the same solver, whose preconditioner is set up once, in the forward pass.

    Where A is singular (closed boxes), b must have no null component, x has none, and gradients in b have none.

    Args:
        A: LinearOperator, dense tensor or SciPy sparse matrix. Its tensors receive gradients, and so does what they were computed
            from, such as the coefficient of `FaceStencil.from_coefficient`; a SciPy matrix receives none.
        b: (batch, *shape) or (*shape).
        solver: an object with ``solve(A, b) -> Solution`` for symmetric A, such as `ConjugateGradient(Multigrid())`. The error
            of the gradient is that of its tolerance. By default conjugate gradients to a relative residual of 1e-10 (1e-5 in float32),
            with `Multigrid` where A is a FaceStencil.

    Raises:
        TypeError: b is no tensor. SolverError: the forward or the adjoint solve did not converge. ValueError: in the backward pass,
            A turned out not to be symmetric.

    Source: the adjoint of a linear solve, Giles (2008).

    >>> k = torch.tensor(2.0, requires_grad=True)
    >>> implicit_solve(k * torch.eye(3), torch.ones(3)).sum().backward()
    >>> k.grad  # d/dk of 3 / k
    tensor(-0.7500)
    """
    operator = as_operator(A)
    if not isinstance(b, Tensor):
        raise TypeError(f"b is a {type(b).__name__}; gradients need a tensor, so convert it with torch.from_numpy.")
    if operator.symmetric is False:
        raise ValueError(
            "A declares itself not symmetric, and the adjoint solve here is one with A itself; use a symmetric form of it."
        )
    if solver is None:
        M = Multigrid() if isinstance(operator, FaceStencil) else None
        solver = ConjugateGradient(M, rtol=1e-10 if b.dtype == torch.float64 else 1e-5, max_steps=10_000)
    x: Tensor = _ImplicitSolve.apply(operator, _private(solver), b, *operator.tensors())
    return x


class _ImplicitSolve(torch.autograd.Function):
    """x(b, theta); what backward needs is x, b, theta and the solver with its preconditioner as it was set up."""

    @staticmethod
    def forward(ctx: Any, operator: LinearOperator, solver: Any, b: Tensor, *tensors: Tensor) -> Tensor:
        operator = operator.with_tensors([t.detach() for t in tensors])
        solution = _solved(solver, operator, b, "the forward solve")
        x = _without_null_part(operator, solution.x)
        ctx.operator, ctx.solver, ctx.residual = operator, solver, solution.residual_norm
        ctx.save_for_backward(x, b, *tensors)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, b, *tensors = ctx.saved_tensors  # an error if one of them was changed in place since
        operator = ctx.operator
        g = _without_null_part(operator, g)
        scale = _scale(ctx.solver, operator, b, g)
        adjoint = _solved(ctx.solver, operator, g * scale, "the adjoint solve, of the backward pass,")
        multiplier = _without_null_part(operator, adjoint.x)
        if operator.symmetric is None:
            _check_duality(operator, (x, b, ctx.residual), (multiplier, g * scale, adjoint.residual_norm))
        multiplier = multiplier / scale
        needed = ctx.needs_input_grad[3:]
        gradients: list[Tensor | None] = [None] * len(tensors)
        if any(needed):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
                Ax = operator.with_tensors(leaves).apply(_batched(operator, x))
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(Ax, wanted, -_batched(operator, multiplier), allow_unused=True))
            gradients = [next(found) if need else None for need in needed]
        return None, None, multiplier, *gradients


def _private(solver: Any) -> Any:
    """The solver with a preconditioner (or network direction) of its own that is set up once, and failures as values."""
    solver = copy.copy(solver)
    for name in ("preconditioner", "direction"):
        if hasattr(getattr(solver, name, None), "setup"):
            setattr(solver, name, SetUpOnce(getattr(solver, name)))
    if hasattr(solver, "raise_on_failure"):
        solver.raise_on_failure = False
    return solver


def _solved(solver: Any, operator: LinearOperator, b: Tensor, what: str) -> Solution:
    solution: Solution = solver.solve(operator, b)
    if not solution.all_converged:
        raise SolverError(replace(solution, message=f"{what} failed: {solution.message}"))
    return solution


def _batched(operator: LinearOperator, u: Tensor) -> Tensor:
    return u[None] if tuple(u.shape) == operator.shape else u


def _without_null_part(operator: LinearOperator, u: Tensor) -> Tensor:
    null = operator.null_part(_batched(operator, u))
    return u if null is None else u - null.view_as(u)


def _scale(solver: Any, operator: LinearOperator, b: Tensor, g: Tensor) -> Any:
    """What brings each column of g to the size of b, where an absolute tolerance was chosen with b in mind; else 1."""
    if not getattr(solver, "atol", 0.0):
        return 1.0
    sizes = [largest(_batched(operator, u)) for u in (b, g)]
    ratio = torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], 1.0)
    return ratio if b.ndim == len(operator.shape) else ratio.view(-1, *[1] * (b.ndim - 1))


def _check_duality(
    operator: LinearOperator, primal: tuple[Tensor, Tensor, Any], adjoint: tuple[Tensor, Tensor, Any]
) -> None:
    """With A x = b and A lambda = g a symmetric A has g.x = lambda.b, up to the two residuals; the check costs two products."""
    x, b, multiplier, g = (_batched(operator, u) for u in (*primal[:2], *adjoint[:2]))
    residuals = [torch.as_tensor(r, dtype=b.dtype, device=b.device) for r in (primal[2], adjoint[2])]
    allowed = norm(multiplier) * residuals[0] + norm(x) * residuals[1]
    rounding = torch.finfo(b.dtype).eps * (norm(multiplier) * norm(b) + norm(x) * norm(g))
    if bool(((dot(g, x) - dot(multiplier, b)).abs() > 10 * allowed + 1000 * rounding).any()):
        raise ValueError(
            "A is not symmetric: with A x = b and A lambda = g, g.x differs from lambda.b by more than the residuals. The adjoint solve "
            "here is one with A itself; use a symmetric form of the operator."
        )
