"""Self-scaled quasi-Newton methods of the Broyden class, with a dense inverse Hessian."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opflow.training.arguments import check_count
from opflow.training.flat_optimizer import Closure, FlatOptimizer, check_positive
from opflow.training.line_search import Trial, strong_wolfe

LARGEST_DENSE = 10_000
UPDATES = ("broyden", "bfgs")


class QuasiNewton(FlatOptimizer):
    """x <- x + a p with p = -H g and a by strong Wolfe; how H is kept is the subclass's.

    One `step` makes up to `iterations` of these with one evaluation more than the searches need: the objective may have
    changed since the last step (new collocation points), so its value and gradient are taken anew on entry, and no
    difference of gradients ever mixes two objectives. H outlives such changes.

    A search that finds nothing lower ends the step with the outcome "stalled"; at the second in a row H is forgotten.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        iterations: int,
        c1: float,
        c2: float,
        max_evaluations: int,
        tolerance_grad: float,
        dtype: torch.dtype,
    ) -> None:
        check_positive("lr", lr)
        check_count("iterations", iterations)
        check_count("max_evaluations", max_evaluations)
        if not 0 < c1 < c2 < 1:
            raise ValueError(f"c1 is {c1} and c2 is {c2}; the Wolfe conditions need 0 < c1 < c2 < 1.")
        if not tolerance_grad >= 0:
            raise ValueError(f"tolerance_grad is {tolerance_grad}; give a number >= 0.")
        super().__init__(params, {"lr": lr, "iterations": iterations}, dtype=dtype)
        self.c1, self.c2, self.max_evaluations, self.tolerance_grad = c1, c2, max_evaluations, tolerance_grad
        self._memory.update(failures_in_a_row=0, last_step=1.0)

    # What a subclass states.
    def _direction(self, gradient: Tensor) -> Tensor:
        """p = -H g."""
        raise NotImplementedError

    def _learn(self, s: Tensor, before: Trial, after: Trial) -> None:
        """Take s = x_new - x and the two gradients into H."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Throw the curvature away."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """Up to `iterations` quasi-Newton iterations; the loss on entry is returned, what happened is in `report`.

        Args:
            closure: leaves the gradients in .grad and returns the loss; called with the weights of every trial.
        """
        entry, gradient = self._evaluate(closure)
        point = Trial(0.0, entry, 0.0, gradient)
        self._drop = 0.0
        if not (math.isfinite(entry) and bool(gradient.isfinite().all())):
            self._memory["outcome"] = "not finite"
            return entry
        self._memory["outcome"] = "moved"
        x = self._weights()
        try:
            for _ in range(self.param_groups[0]["iterations"]):
                if float(point.gradient.abs().max()) <= self.tolerance_grad:
                    self._memory["outcome"] = "converged"
                    break
                x, point, moved = self._iterate(x, point, closure)
                if not moved:
                    self._memory["outcome"] = "stalled"
                    break
        finally:  # an exception inside the closure leaves a trial's weights behind
            self._put(x)
        return entry

    def _iterate(self, x: Tensor, point: Trial, closure: Closure) -> tuple[Tensor, Trial, bool]:
        p = self._direction(point.gradient)
        slope = float(p @ point.gradient)
        if not slope < 0:  # rounding has cost H its positive definiteness
            self._restart()
            p = self._direction(point.gradient)
            slope = float(p @ point.gradient)

        def evaluate(step: float) -> Trial:
            self._put(x + step * p)
            value, gradient = self._evaluate(closure)
            return Trial(step, value, float(p @ gradient), gradient)

        start = Trial(0.0, point.value, slope, point.gradient)
        found = strong_wolfe(
            evaluate,
            start,
            self._first_step(start),
            c1=self.c1,
            c2=self.c2,
            rounding=self._value_accuracy(),
            max_evaluations=self.max_evaluations,
        )
        if not found.decreased:
            self._fail()
            return x, point, False
        self._memory["failures_in_a_row"] = 0
        self._memory["iterations"] += 1
        self._memory["last_step"] = found.trial.step
        self._drop = start.value - found.trial.value
        s = found.trial.step * p
        self._learn(s, start, found.trial)
        return x + s, found.trial, True

    def _first_step(self, start: Trial) -> float:
        """The minimum of the parabola with this slope that falls as far as the last step did (Nocedal and Wright 2006, eq. 3.60).

        A scaled H makes steps below 1 the rule, so that 1 as the first trial would cost a second evaluation.
        """
        lr = float(self.param_groups[0]["lr"])
        if not self._knows_curvature():
            return lr * min(1.0, 1.0 / float(start.gradient.abs().sum()))
        if self._drop > 0:
            return lr * min(1.0, -2.02 * self._drop / start.slope)
        return lr * min(1.0, self._memory["last_step"])

    def _knows_curvature(self) -> bool:
        raise NotImplementedError

    def _value_accuracy(self) -> float:
        # A residual is a small difference of large terms, so its square is known to far fewer digits than eps says; measured
        # on Burgers in float32, 1e4 eps is where searches stop failing.
        return 1e4 * self.rounding

    def _fail(self) -> None:
        self._memory["failures"] += 1
        self._memory["failures_in_a_row"] += 1
        if self._memory["failures_in_a_row"] >= 2:
            self._restart()

    def _restart(self) -> None:
        self._memory["restarts"] += 1
        self._memory["failures_in_a_row"] = 0
        self._forget()


@dataclass(frozen=True)
class BroydenUpdate:
    """The two numbers of one self-scaled update: H is divided by `tau`, and `phi` = 1 is BFGS, 0 is DFP."""

    tau: float
    phi: float

    @staticmethod
    def of(update: str, sbs: float, sy: float, yhy: float, size: int) -> BroydenUpdate:
        """tau and phi from s.Bs (B = H^-1), s.y and y.Hy (Urban, Stefanou and Pons 2025).

        "bfgs": tau = min(1, 1/b), phi = 1. "broyden": the switch between the two ends of the interval of theta in which
        the update stays positive definite and well conditioned (Al-Baali 1998), then phi = (1 - theta) / (1 + a theta).
        """
        b, h = sbs / sy, yhy / sy
        if update == "bfgs":
            return BroydenUpdate(min(1.0, 1.0 / b), 1.0)
        a = max(b * h - 1.0, 1e-15)  # >= 0 by Cauchy-Schwarz, and 0 where Hy is a multiple of s
        rho = min(1.0, h * (1.0 - math.sqrt(a / (1.0 + a))))
        theta = max((rho - 1.0) / a, min(1.0 / rho, (1.0 - b) / b)) if rho > 0 else (1.0 - b) / b
        sigma = 1.0 + a * theta
        if not sigma > 0:  # rounding: fall back on BFGS
            return BroydenUpdate(min(1.0, 1.0 / b), 1.0)
        shrink = sigma ** (-1.0 / max(size - 1, 1))
        tau = min(1.0, 1.0 / b)
        tau = tau * min(shrink, 1.0 / theta) if theta > 0 else min(tau * shrink, sigma)
        return BroydenUpdate(tau, (1.0 - theta) / sigma)


class SelfScaledBroyden(QuasiNewton):
    """Self-scaled Broyden with a dense inverse Hessian H: the optimiser for small networks in float64.

    H+ = (H - Hy (Hy)^T / y.Hy + phi (y.Hy) v v^T) / tau + s s^T / s.y,   v = s / s.y - Hy / y.Hy

    with s = x+ - x, y = g+ - g (Urban, Stefanou and Pons 2025, "Unveiling the optimization process of physics informed
    neural networks: how accurate and competitive can PINNs be?"; scaling and switch after Al-Baali 1998). An iteration costs 1.01 to 1.05 evaluations,
    one product with H and one rank-2 update in place: O(P^2), with 8 P^2 bytes for P parameters.

    H is kept from step to step, through a change of points too, and travels in a checkpoint.

    Args:
        update: "broyden", or "bfgs" for self-scaled BFGS.
        lr: a factor on the first step that each search tries; 1 for quasi-Newton steps.
        iterations: in one ``step``; it costs one evaluation more than its searches.
        c1, c2: the constants of the Wolfe conditions.
        max_evaluations: of one search.
        tolerance_grad: "converged" when no entry of the gradient is larger.
        dtype: of H and the algebra; float64 for float32 parameters too.

    Raises:
        ValueError: more than 10,000 parameters.

    >>> x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    >>> optimizer = SelfScaledBroyden([x], iterations=100, tolerance_grad=1e-10)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> optimizer.report.outcome, bool((x - 1).abs().max() < 1e-9)
    ('converged', True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        update: str = "broyden",
        lr: float = 1.0,
        iterations: int = 50,
        c1: float = 1e-4,
        c2: float = 0.9,
        max_evaluations: int = 25,
        tolerance_grad: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if update not in UPDATES:
            raise ValueError(f"update is {update!r}; give one of {', '.join(map(repr, UPDATES))}.")
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
        if self.size > LARGEST_DENSE:
            needed = self.size**2 * torch.finfo(dtype).bits // 8
            raise ValueError(
                f"there are {self.size:,} parameters, and a dense inverse Hessian of them takes {needed:,} bytes "
                f"({needed / 1e9:.1f} GB) and as much traffic in every iteration; up to {LARGEST_DENSE:,} parameters are "
                "taken. Use LimitedMemoryBFGS, or a smaller network."
            )
        self.update = update
        self._forget()

    def _forget(self) -> None:
        # H = scale * matrix: a scale of its own spares one pass over the matrix in every iteration.
        self._memory.pop("matrix", None)
        self._memory["matrix"] = torch.eye(self.size, dtype=self.dtype, device=self.device)
        self._memory["scale"] = 1.0
        self._memory["updates"] = 0
        self._product: tuple[Tensor, Tensor] | None = None

    def _knows_curvature(self) -> bool:
        return self._memory["updates"] > 0

    @property
    def inverse_hessian(self) -> Tensor:
        """H as it stands, (P, P); a copy."""
        return self._memory["scale"] * self._memory["matrix"]

    def _times(self, vector: Tensor) -> Tensor:
        return self._memory["scale"] * torch.mv(self._memory["matrix"], vector)

    def _direction(self, gradient: Tensor) -> Tensor:
        # After an update H g is already known from it.
        if self._product is None or self._product[0] is not gradient:
            self._product = (gradient, self._times(gradient))
        return -self._product[1]

    def load_state_dict(self, state_dict: Any) -> None:
        """H comes back as it was, in its own dtype."""
        super().load_state_dict(state_dict)
        self._product = None

    def _learn(self, s: Tensor, before: Trial, after: Trial) -> None:
        y = after.gradient - before.gradient
        sy = float(s @ y)
        sbs = -after.step * float(s @ before.gradient)  # s = -a H g, so B s = -a g
        assert self._product is not None
        image = self._times(after.gradient)
        hy = image - self._product[1]
        yhy = float(y @ hy)
        if not (sy > 1e-14 * math.sqrt(float(s @ s) * float(y @ y)) and yhy > 0 and sbs > 0):
            self._product = (after.gradient, image)
            return
        if self._memory["updates"] == 0:
            # BFGS from gamma I: the size of the first H says nothing, that of s.y / y.y does.
            gamma = sy / float(y @ y)
            ratio = gamma / self._memory["scale"]
            image, hy, yhy = ratio * image, ratio * hy, ratio * yhy
            self._memory["scale"] = gamma
            numbers = BroydenUpdate(1.0, 1.0)
        else:
            numbers = BroydenUpdate.of(self.update, sbs, sy, yhy, self.size)
        tau, phi = numbers.tau, numbers.phi
        # The update as [s, Hy] C [s, Hy]^T with a symmetric 2 x 2 matrix C.
        ss = phi * yhy / (tau * sy * sy) + 1.0 / sy
        sh = -phi / (tau * sy)
        hh = (phi - 1.0) / (tau * yhy)
        left = torch.stack([s, hy], dim=1)
        right = torch.stack([ss * s + sh * hy, sh * s + hh * hy])
        scale = self._memory["scale"] / tau
        self._memory["matrix"].addmm_(left, right / scale)
        self._memory["scale"] = scale
        self._memory["updates"] += 1
        self._product = (after.gradient, image / tau + left @ (right @ after.gradient))
        self._renormalise()

    def _renormalise(self) -> None:
        scale = self._memory["scale"]
        limit = 1e6 if self.dtype == torch.float32 else 1e30
        if not 1 / limit < scale < limit:
            self._memory["matrix"].mul_(scale)
            self._memory["scale"] = 1.0
