"""A preconditioner or a network direction that reads one operator and then serves many solves with it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor


class SetUpOnce:
    """The part as its first `setup` left it; the later ones, of solves with the same A, cost nothing.

    Solvers read the operator in every solve, since time steppers change it. Where it stays, this saves the setup. If A did
    change after all, the solve takes more iterations; what it calls converged is checked against the true residual all the same.

    Args:
        part: a preconditioner such as `Multigrid`, or a direction with a `setup`. It is copied, so the caller's own may serve others.

    >>> import torch
    >>> from opflow.solvers.conjugate_gradient import ConjugateGradient
    >>> from opflow.solvers.face_stencil import FaceStencil
    >>> from opflow.solvers.fast_poisson import FastPoisson
    >>> A, solver = FaceStencil([torch.ones(1, 9)]), ConjugateGradient(SetUpOnce(FastPoisson()), rtol=1e-5)
    >>> [solver.solve(A, b).all_converged for b in torch.eye(8)[:2]]
    [True, True]
    """

    def __init__(self, part: Any) -> None:
        self._part, self._ready = copy.copy(part), False

    def setup(self, A: Any) -> SetUpOnce:
        """Read A, the first time; return self."""
        if not self._ready:
            self._part.setup(A)
            self._ready = True
        return self

    def __call__(self, r: Tensor) -> Tensor:
        """The direction for r, where the part is one."""
        result: Tensor = self._part(r)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying asks for such names before there is a part
            raise AttributeError(name)
        return getattr(self._part, name)
