"""Levenberg-Marquardt: Gauss-Newton on a loss' residuals, damped until the loss falls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from opflow.training.arguments import check_count
from opflow.training.flat_optimizer import FlatOptimizer, check_positive
from opflow.training.jacobian import LeastSquares


class LevenbergMarquardt(FlatOptimizer):
    """x <- x + p with (J^T J + mu I) p = -J^T r, accepted only if |r|^2 falls; r are ``loss.residuals(model, batch)``.

    One `step` is one such iteration; it needs no warm-up by another optimiser and few steps, but each costs the Jacobian.
    mu follows the ratio of the actual to the predicted fall (Nielsen 1999, "Damping parameter in Marquardt's method"):
    it shrinks smoothly after a good step and grows twice as fast with every rejected one.

    With up to `dense` parameters J is formed (`jacobian`; rows x P numbers) and the smaller of J^T J + mu I and
    J J^T + mu I is factorised. Beyond, the system is solved by conjugate gradients on products with J and J^T alone.

    What is lowered is |r|^2, which is the loss where its terms are means of squares: `PDEResidual`, `ConditionResidual`,
    `DataMisfit` of `mean_squared_error`. The residuals of another misfit are the plain differences.

    In `fit` it works like any optimiser; on its own it takes ``step(LeastSquares(model, loss, batch))``.

    Args:
        damping: the first mu as a share of the largest entry of diag(J^T J).
        max_trials: how often mu is raised before the step is given up ("stalled").
        dense: the largest number of parameters with a Jacobian in memory.
        cg_steps, cg_rtol: of conjugate gradients, beyond.
        tolerance_grad: "converged" when no entry of J^T r is larger.
        dtype: of the algebra.

    >>> from opflow.batch import Batch
    >>> from opflow.losses.misfit import DataMisfit
    >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    >>> model = torch.nn.Linear(1, 1, dtype=torch.float64)
    >>> optimizer = LevenbergMarquardt(model.parameters(), tolerance_grad=1e-10)
    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> problem = LeastSquares(model, DataMisfit(square), Batch(input=x, target=2 * x + 1))
    >>> while optimizer.report.outcome != "converged":
    ...     _ = optimizer.step(problem)
    >>> round(model.weight.item(), 6), round(model.bias.item(), 6)
    (2.0, 1.0)
    """

    needs_residuals: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        *,
        damping: float = 1e-6,
        max_trials: int = 12,
        dense: int = 4000,
        cg_steps: int = 200,
        cg_rtol: float = 1e-2,
        tolerance_grad: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_positive("damping", damping)
        check_positive("cg_rtol", cg_rtol)
        for name, count in (("max_trials", max_trials), ("dense", dense), ("cg_steps", cg_steps)):
            check_count(name, count)
        if not tolerance_grad >= 0:
            raise ValueError(f"tolerance_grad is {tolerance_grad}; give a number >= 0.")
        # "lr" is what a training record reads; here it is no more than a mark that the full step is tried.
        super().__init__(params, {"lr": 1.0}, dtype=dtype)
        self.damping, self.max_trials, self.dense = damping, max_trials, dense
        self.cg_steps, self.cg_rtol, self.tolerance_grad = cg_steps, cg_rtol, tolerance_grad
        self._memory.update(mu=None, growth=2.0)

    def step(self, closure: Any) -> float:  # type: ignore[override]
        """One damped Gauss-Newton iteration; the loss before it is returned, what happened is in `report`.

        Args:
            closure: a `LeastSquares`; `fit` makes one.
        """
        if not isinstance(closure, LeastSquares):
            raise TypeError(
                f"LevenbergMarquardt was given {type(closure).__name__} as closure, but it needs the residuals; call "
                "step(LeastSquares(model, loss, batch)), or use fit."
            )
        entry, gradient = self._evaluate(closure)
        if not (math.isfinite(entry) and bool(gradient.isfinite().all())):
            self._memory["outcome"] = "not finite"
            return entry
        x = self._weights()
        moved = False
        try:
            system = self._linearise(closure)
            if float(system.gradient.abs().max()) <= self.tolerance_grad:
                self._memory["outcome"] = "converged"
                return entry
            x, moved = self._search(x, system, closure)
        finally:
            self._put(x)
        self._memory["iterations"] += moved
        self._memory["failures"] += not moved
        self._memory["outcome"] = "moved" if moved else "stalled"
        return entry

    def _linearise(self, closure: LeastSquares) -> _System:
        with torch.enable_grad():
            if self.size <= self.dense:
                residuals, matrix = closure.jacobian(self._params)
                return _DenseSystem(residuals.to(self.dtype), matrix.to(self.dtype))
            return _MatrixFreeSystem(closure.residuals(), self._params, self.dtype, self.cg_steps, self.cg_rtol)

    def _search(self, x: Tensor, system: _System, closure: LeastSquares) -> tuple[Tensor, bool]:
        memory, before = self._memory, float(system.residuals @ system.residuals)
        if memory["mu"] is None:
            memory["mu"] = self.damping * system.largest_curvature()
        for _ in range(self.max_trials):
            p = system.solve(memory["mu"])
            if p is not None:
                predicted = float(p @ (memory["mu"] * p - system.gradient))
                self._put(x + p)
                with torch.enable_grad():
                    after = float(closure.residuals().detach().to(self.dtype).square().sum())
                memory["evaluations"] += 1
                if predicted > 0 and math.isfinite(after) and after < before:
                    gain = (before - after) / predicted
                    memory["mu"] *= max(1 / 3, 1 - (2 * gain - 1) ** 3)
                    memory["growth"] = 2.0
                    return x + p, True
            memory["mu"] *= memory["growth"]
            memory["growth"] *= 2
        memory["growth"] = 2.0
        return x, False


class _System:
    """The linearised residual at one point."""

    residuals: Tensor
    gradient: Tensor  # J^T r

    def largest_curvature(self) -> float:
        """The largest entry of diag(J^T J), or what stands for it."""
        raise NotImplementedError

    def solve(self, mu: float) -> Tensor | None:
        """p of (J^T J + mu I) p = -J^T r; None where rounding makes that indefinite."""
        raise NotImplementedError


class _DenseSystem(_System):
    def __init__(self, residuals: Tensor, matrix: Tensor) -> None:
        self.residuals, self.matrix = residuals, matrix
        self.gradient = matrix.T @ residuals
        rows, columns = matrix.shape
        self.wide = rows < columns
        self.gram = matrix @ matrix.T if self.wide else matrix.T @ matrix

    def largest_curvature(self) -> float:
        return float(self.matrix.square().sum(0).max())

    def solve(self, mu: float) -> Tensor | None:
        shifted = self.gram.clone()
        shifted.diagonal().add_(mu)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0:
            return None
        if self.wide:  # (J^T J + mu I)^-1 J^T = J^T (J J^T + mu I)^-1
            return -self.matrix.T @ torch.cholesky_solve(self.residuals[:, None], factor)[:, 0]
        return -torch.cholesky_solve(self.gradient[:, None], factor)[:, 0]


class _MatrixFreeSystem(_System):
    """Products with J by differentiating J^T v with respect to v, with J^T by the backward pass."""

    def __init__(self, residuals: Tensor, params: list[Tensor], dtype: torch.dtype, steps: int, rtol: float) -> None:
        self._graph, self._params, self._dtype, self._steps, self._rtol = residuals, params, dtype, steps, rtol
        self._v = torch.zeros_like(residuals, requires_grad=True)
        gradients = torch.autograd.grad(residuals, params, self._v, create_graph=True, allow_unused=True)
        kept = [(p, g) for p, g in zip(params, gradients, strict=True)]
        self._product = torch.cat(
            [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in kept]
        )  # J^T v as a function of v
        self.residuals = residuals.detach().to(dtype)
        self.gradient = self._transposed(self.residuals)

    def _transposed(self, v: Tensor) -> Tensor:
        given = v.to(self._graph.dtype)
        gradients = torch.autograd.grad(self._graph, self._params, given, retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                (p.new_zeros(p.numel()) if g is None else g.reshape(-1)).to(self._dtype)
                for p, g in zip(self._params, gradients, strict=True)
            ]
        )

    def _times(self, p: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(self._product, self._v, p.to(self._product.dtype), retain_graph=True)
        return image.to(self._dtype)

    def largest_curvature(self) -> float:
        """g.J^T J g / g.g, which is between the smallest and the largest eigenvalue."""
        image = self._times(self.gradient)
        return float(image @ image) / float(self.gradient @ self.gradient)

    def solve(self, mu: float) -> Tensor | None:
        p = torch.zeros_like(self.gradient)
        residual = -self.gradient
        direction, square = residual, float(residual @ residual)
        goal = self._rtol**2 * square
        for _ in range(self._steps):
            image = self._transposed(self._times(direction)) + mu * direction
            curvature = float(direction @ image)
            if not curvature > 0:
                break
            p = p + square / curvature * direction
            residual = residual - square / curvature * image
            last, square = square, float(residual @ residual)
            if square <= goal:
                break
            direction = residual + square / last * direction
        return p if bool((p != 0).any()) else None
