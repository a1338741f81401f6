"""Self-scaled BFGS from the last pairs of steps and gradients: for networks too large for a dense inverse Hessian."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opflow.training.arguments import check_count
from opflow.training.line_search import Trial
from opflow.training.quasi_newton import QuasiNewton


class LimitedMemoryBFGS(QuasiNewton):
    """BFGS from the last `history` pairs (s, y), self-scaled: O(history P) work and memory for P parameters.

    H_(k+1) = V^T H_k V / tau_k + s s^T / s.y,   V = I - y s^T / s.y,   tau_k = min(1, s.y / s.B_k s)

    applied by the two-loop recursion (Nocedal and Wright 2006, algorithm 7.4) with the scaling of Al-Baali (1998) in the
    second loop, from H = (s.y / y.y) I of the newest pair. The searches are strong Wolfe.

    Unlike ``torch.optim.LBFGS``, which stays the baseline, it keeps its pairs when the collocation points change: no pair
    ever mixes gradients of two sets of points. `SelfScaledBroyden` is better by far where P^2 numbers fit.

    Args:
        history: pairs kept.
        lr, iterations, c1, c2, max_evaluations, tolerance_grad, dtype: as in `SelfScaledBroyden`.

    >>> x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    >>> optimizer = LimitedMemoryBFGS([x], iterations=100, tolerance_grad=1e-10)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> optimizer.report.outcome
    'converged'
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        history: int = 50,
        lr: float = 1.0,
        iterations: int = 50,
        c1: float = 1e-4,
        c2: float = 0.9,
        max_evaluations: int = 25,
        tolerance_grad: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        check_count("history", history)
        super().__init__(
            params,
            lr=lr,
            iterations=iterations,
            c1=c1,
            c2=c2,
            max_evaluations=max_evaluations,
            tolerance_grad=tolerance_grad,
            dtype=dtype,
        )
        self.history = history
        self._forget()

    def _forget(self) -> None:
        self._memory.update(steps=[], gradient_changes=[], curvatures=[], taus=[], base=1.0)

    def _knows_curvature(self) -> bool:
        return bool(self._memory["steps"])

    def _direction(self, gradient: Tensor) -> Tensor:
        memory = self._memory
        pairs = list(
            zip(memory["steps"], memory["gradient_changes"], memory["curvatures"], memory["taus"], strict=True)
        )
        q = -gradient
        shares = []
        for s, y, sy, _ in reversed(pairs):
            share = torch.dot(s, q) / sy  # kept a tensor: no wait for the device
            q = torch.addcmul(q, share, y, value=-1)
            shares.append(share)
        q = memory["base"] * q
        for (s, y, sy, tau), share in zip(pairs, reversed(shares), strict=True):
            q = q / tau
            q = torch.addcmul(q, share - torch.dot(y, q) / sy, s)
        return q

    def _learn(self, s: Tensor, before: Trial, after: Trial) -> None:
        y = after.gradient - before.gradient
        sy, yy = float(s @ y), float(y @ y)
        sbs = -after.step * float(s @ before.gradient)  # s = -a H g, so B s = -a g
        if not (sy > 1e-14 * math.sqrt(float(s @ s) * yy) and sbs > 0):
            return
        memory = self._memory
        memory["taus"].append(min(1.0, sy / sbs) if memory["steps"] else 1.0)
        memory["steps"].append(s)
        memory["gradient_changes"].append(y)
        memory["curvatures"].append(sy)
        memory["base"] = sy / yy
        if len(memory["steps"]) > self.history:
            for kept in ("steps", "gradient_changes", "curvatures", "taus"):
                memory[kept].pop(0)
