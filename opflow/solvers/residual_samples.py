"""Residuals to train search directions on: with a stated spectrum, or met while solving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opflow.batch import Batch
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.fast_poisson import FastPoisson
from opflow.solvers.linear_operator import LinearOperator

NULL = 1e-8  # Ritz values below this part of the largest belong to the null space


@torch.no_grad()
def transform_residuals(A: FaceStencil, n: int, *, boost: float = 9.0, seed: int = 0) -> Batch:
    """r = sum_j c_j q_j over all eigenvectors of a box, of norm 1, and x with A x = r   (Kaneda et al. 2023, section 5, without Lanczos).

    On a box with a constant coefficient the q_j are products of sines and cosines. c_j is normal, with standard deviation `boost` for
    eigenvalues below the median and 1 for the others; a constant that A annihilates is left out. r is A x as the operator computes it.

    Returns:
        A `Batch` with input r and target x, (n, 1, *shape).

    Raises:
        ValueError: A is no such box; take `ritz_residuals` then.

    >>> A = FaceStencil([torch.ones(1, 9, 8), torch.ones(1, 8, 9)])
    >>> transform_residuals(A, 3).input.shape
    torch.Size([3, 1, 8, 8])
    """
    modes = FastPoisson().setup(A)
    values = modes.eigenvalues
    if A.batch > 1 or A.mask is not None:
        raise ValueError(
            f"A is a batch of {A.batch} operators{' with a mask' if A.mask is not None else ''}; sines and cosines are the eigenvectors "
            "of one box without obstacles. Use ritz_residuals."
        )
    scale = torch.where(values < values.median(), boost, 1.0).to(values)
    c = _normal((n, *A.shape), seed).to(values) * scale * (values > 0)
    x = modes.from_modes(c / torch.where(values > 0, values, 1.0))
    r, expected = A.apply(x), modes.from_modes(c)
    if bool((_norm(r - expected) > 1e-3 * _norm(expected)).any()):
        raise ValueError(
            "the coefficient of A is not constant, so sines and cosines are not its eigenvectors; use ritz_residuals."
        )
    size = _norm(r)
    return Batch(input=(r / size)[:, None], target=(x / size)[:, None])


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs, in increasing order.

    Attributes:
        values: (batch, m).
        vectors: (batch, m, *shape), orthonormal; zero where the Krylov space ended before m.
    """

    values: Tensor
    vectors: Tensor

    @property
    def spans(self) -> Tensor:
        """Which pairs belong to the range of A, (batch, m): not those of the null space, nor those beyond the Krylov space."""
        there = self.vectors.flatten(2).square().sum(2) > 0.5
        return there & (self.values > NULL * self.values.amax(1, keepdim=True))


@torch.no_grad()
def ritz_pairs(A: LinearOperator, m: int = 200, *, seed: int = 0) -> RitzPairs:
    """m steps of Lanczos from A z, z normally distributed, with full re-orthogonalisation   (Kaneda et al. 2023, section 5).

    For a symmetric positive semi-definite A on any domain, a batch of operators at once. It starts in the range of A and stays
    there, so masked points and null spaces do not show. Ritz pairs at both ends of the spectrum converge first.

    Memory: m fields per operator, and as much again for the Ritz vectors.

    >>> from opflow.solvers.linear_operator import DenseOperator
    >>> ritz_pairs(DenseOperator(torch.diag(torch.tensor([1.0, 2.0, 5.0]))), 3).values.round(decimals=4)
    tensor([[1., 2., 5.]])
    """
    if m < 1:
        raise ValueError(f"m is {m}; give a positive number of Lanczos steps.")
    shape, batch = tuple(A.shape), A.batch
    size = int(torch.Size(shape).numel())
    m = min(m, size)
    z = _normal((batch, *shape), seed).to(dtype=A.dtype, device=A.device)
    basis = torch.zeros(batch, m, size, dtype=A.dtype, device=A.device)
    alpha, beta = (torch.zeros(batch, m, dtype=A.dtype, device=A.device) for _ in range(2))
    w, eps = A.apply(z).flatten(1), torch.finfo(A.dtype).eps
    largest = w.norm(dim=1) / z.flatten(1).norm(dim=1)
    for j in range(m):
        length = w.norm(dim=1)
        ended = (length <= 1e3 * eps * largest) if j else (length == 0)
        basis[:, j] = torch.where(ended[:, None], 0.0, w / torch.where(ended, 1.0, length)[:, None])
        if j:
            beta[:, j - 1] = torch.where(ended, 0.0, length)
        w = A.apply(basis[:, j].view(batch, *shape)).flatten(1)
        alpha[:, j] = (w * basis[:, j]).sum(1)
        largest = torch.maximum(largest, w.norm(dim=1))
        for known, v in zip(
            basis[:, : j + 1], w, strict=True
        ):  # batched products of matrix and vector are slow on a CPU
            for _ in range(2):  # twice is enough
                v -= known.T @ (known @ v)
    T = torch.diag_embed(alpha) + torch.diag_embed(beta[:, :-1], 1) + torch.diag_embed(beta[:, :-1], -1)
    values, mixing = torch.linalg.eigh(T)
    return RitzPairs(values, (mixing.mT @ basis).view(batch, m, *shape))


def ritz_residuals(pairs: RitzPairs, n: int, *, boost: float = 9.0, theta: int = 0, seed: int = 0) -> Batch:
    """r = sum_j c_j q_j over the Ritz vectors, of norm 1   (Kaneda et al. 2023, section 5).

    c_j is normal with standard deviation `boost` for the lower half of the Ritz values and `theta` more, and 1 for the rest.

    Args:
        n: residuals for each operator.

    Returns:
        A `Batch` with input (batch n, 1, *shape): n of the first operator, then n of the next.
    """
    spans = pairs.spans
    rank = spans.cumsum(1)
    low = rank <= (rank[:, -1:] // 2 + theta)
    scale = torch.where(low, boost, 1.0) * spans
    batch, m = spans.shape
    c = _normal((batch, n, m), seed).to(pairs.values) * scale[:, None]
    fields = (c @ pairs.vectors.flatten(2)).view(batch * n, *pairs.vectors.shape[2:])
    return Batch(input=(fields / _norm(fields))[:, None])


class ResidualRecorder:
    """A direction that remembers the unit residuals it was called with: training data from where the network will work.

    A network that was trained on one spectrum meets another one after a few steps; what a solve asks of it says which.

    Args:
        direction: r -> d; its `setup(A)` is passed on.

    Attributes:
        seen: residuals (batch, *shape), one a step.

    >>> recorder = ResidualRecorder(lambda r: r)
    >>> d = recorder(torch.ones(2, 3))
    >>> len(recorder.seen)
    1
    """

    def __init__(self, direction: Callable[[Tensor], Tensor]) -> None:
        self.direction = direction
        self.seen: list[Tensor] = []

    def setup(self, A: Any) -> ResidualRecorder:
        """Tell the direction its operator; return self."""
        if hasattr(self.direction, "setup"):
            self.direction.setup(A)
        return self

    def __call__(self, r: Tensor) -> Tensor:
        """The direction's answer."""
        self.seen.append(r.clone())
        return self.direction(r)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Drawn on the CPU in float64, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _norm(fields: Tensor) -> Tensor:
    return fields.flatten(1).norm(dim=1).view(-1, *[1] * (fields.ndim - 1))
