"""Reconstruction from differences by one linear step, at several strengths of regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor


class LinearisedReconstruction:
    """m_j = (J' P J + lambda_j s R)^-1 J' P d,   P = W (I - Q) W:   Tikhonov's solution of J m = d, for several lambda_j.

    W = 1 / deviation weighs the data, I - Q removes what is not wanted of the weighted data, a drift for example, from data and Jacobian alike:
    Q projects on W times the rows of `nuisance`. So d may hold any multiple of them. s = trace(J' P J) / trace(R) makes lambda a plain number.

    Args:
        jacobian: J (measurements, unknowns); flatten the measurements.
        deviation: of the data's errors, (measurements,), positive; infinite where nothing was measured.
        levels: lambda_j, positive.
        penalty: R (unknowns, unknowns), symmetric and positive definite; None for the identity. `smoothness_penalty` makes one.
        nuisance: (n, measurements).

    Raises:
        ValueError: shapes do not fit, a deviation or level is not positive, or the penalty is not positive definite.

    >>> J = torch.eye(3, dtype=torch.float64)
    >>> step = LinearisedReconstruction(J, torch.ones(3), [1e-9], nuisance=torch.tensor([[0.0, 0.0, 1.0]]))
    >>> step(torch.tensor([[1.0, 2.0, 100.0]])).round().tolist()  # (n, levels, unknowns)
    [[[1.0, 2.0, 0.0]]]
    """

    def __init__(
        self,
        jacobian: Tensor,
        deviation: Tensor,
        levels: Sequence[float],
        *,
        penalty: Tensor | None = None,
        nuisance: Tensor | None = None,
    ) -> None:
        J, deviation = jacobian.detach().double(), deviation.detach().to(jacobian.device).double()
        if J.ndim != 2 or deviation.shape != J.shape[:1]:
            raise ValueError(
                f"jacobian and deviation have shapes {tuple(J.shape)} and {tuple(deviation.shape)}; expected (measurements, unknowns) and (measurements,)."
            )
        if not bool((deviation > 0).all()):
            raise ValueError("a deviation is not positive; give infinity where nothing was measured.")
        if not levels or min(levels) <= 0:
            raise ValueError(f"levels are {list(levels)}; give at least one, all positive.")
        R = torch.eye(J.shape[1], dtype=J.dtype, device=J.device) if penalty is None else penalty.to(J)
        if R.shape != (J.shape[1], J.shape[1]):
            raise ValueError(f"the penalty has shape {tuple(R.shape)}; expected {(J.shape[1], J.shape[1])}.")
        if not float(R.trace()) > 0:
            raise ValueError(f"the penalty has the trace {float(R.trace()):g}, so that it is not positive definite.")
        self.levels = tuple(float(level) for level in levels)
        self.weight = 1 / deviation
        self._unwanted = J.new_zeros(len(J), 0)
        if nuisance is not None:
            if nuisance.ndim != 2 or nuisance.shape[1] != len(J):
                raise ValueError(f"nuisance has shape {tuple(nuisance.shape)}; expected (n, {len(J)}).")
            self._unwanted = torch.linalg.qr((nuisance.to(J).nan_to_num() * self.weight).T)[0]
        K = self._clean((self.weight[:, None] * J).T).T
        normal = K.T @ K
        R = R * (normal.trace() / R.trace())
        rows = []
        for level in self.levels:
            factor, failed = torch.linalg.cholesky_ex(normal + level * R)
            if int(failed):
                raise ValueError(
                    f"the system of level {level:g} is not positive definite; give a larger level or another penalty."
                )
            rows.append(torch.cholesky_solve(K.T, factor))
        self._maps = torch.stack(rows)  # (levels, unknowns, measurements)

    def to(self, dtype: torch.dtype) -> LinearisedReconstruction:
        """The same step with answers in another precision; data are prepared in float64 as before."""
        other = copy(self)
        other._maps = self._maps.to(dtype)
        return other

    def prepared(self, data: Tensor) -> Tensor:
        """Weighted data without what is not wanted, (n, measurements); NaN, not measured, becomes zero where the deviation is infinite."""
        if data.ndim != 2 or data.shape[1] != len(self.weight):
            raise ValueError(
                f"data have shape {tuple(data.shape)}; expected (n, {len(self.weight)}), measurements flattened."
            )
        known = torch.where(self.weight > 0, data.to(self.weight), torch.zeros_like(self.weight))
        if not bool(known.isfinite().all()):
            raise ValueError(
                "data hold NaN or infinity where the deviation is finite; give an infinite deviation there."
            )
        return self._clean(known * self.weight)

    def __call__(self, data: Tensor) -> Tensor:
        """(n, measurements) -> (n, levels, unknowns)"""
        return torch.einsum("jum,nm->nju", self._maps, self.prepared(data).to(self._maps))

    def _clean(self, rows: Tensor) -> Tensor:
        return rows - (rows @ self._unwanted) @ self._unwanted.T


def smoothness_penalty(inside: Tensor, scale: float) -> Tensor:
    """R = I + scale^2 L on the pixels inside (height, width) bool: L the graph Laplacian of neighbours, `scale` in pixels.

    The unknowns are the pixels inside, row by row. A large scale prefers smooth images, zero none of them.

    >>> smoothness_penalty(torch.ones(1, 2, dtype=torch.bool), 1.0).tolist()
    [[2.0, -1.0], [-1.0, 2.0]]
    """
    if inside.ndim != 2 or inside.dtype != torch.bool or not bool(inside.any()):
        raise ValueError(
            f"inside is {inside.dtype} {tuple(inside.shape)}; expected a mask (height, width) that holds some pixel."
        )
    number = torch.full(inside.shape, -1)
    number[inside] = torch.arange(int(inside.sum()))
    pairs = torch.cat(
        [
            torch.stack([a.flatten(), b.flatten()], 1)
            for a, b in ((number[1:], number[:-1]), (number[:, 1:], number[:, :-1]))
        ]
    )
    a, b = pairs[(pairs >= 0).all(1)].T
    n = int(inside.sum())
    R = torch.zeros(n, n, dtype=torch.float64)
    R[a, b] = R[b, a] = -(scale**2)
    R.diagonal().copy_(1 - R.sum(1))
    return R
