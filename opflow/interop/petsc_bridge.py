"""opflow's preconditioners and network directions inside PETSc, as the context of a python PC."""

from __future__ import annotations

from typing import Any

from opflow.grid import Grid
from opflow.interop.host_operation import HostOperation
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.linear_operator import LinearOperator, as_operator

# KSP types that allow a preconditioner to change from step to step.
FLEXIBLE = (
    "fgmres",
    "fcg",
    "gcr",
    "fbcgs",
    "fbcgsr",
    "pipefcg",
    "pipefgmres",
    "pipegcr",
    "richardson",
    "preonly",
    "none",
)
# KSP types whose theory wants a symmetric preconditioner.
SYMMETRIC = (
    "cg",
    "fcg",
    "cr",
    "minres",
    "symmlq",
    "nash",
    "stcg",
    "gltr",
    "groppcg",
    "pipecg",
    "pipecr",
    "pipefcg",
    "pipelcg",
    "pipeprcg",
)


def as_petsc_pc(M: Any, A: Any = None, *, grid: Grid | None = None, free_dofs: Any = None) -> PetscPC:
    """M as the python context of a PETSc PC: `setUp` reads the operator and runs ``M.setup``, `apply` changes nothing else.

        ksp.getPC().setType("python")
        ksp.getPC().setPythonContext(as_petsc_pc(Multigrid(), grid=grid))

    PETSc calls `setUp` again after each change of its operators, so a preconditioner (and a network behind it) follows them.
    A preconditioner that is not linear or not deterministic, such as a network direction, needs a flexible KSP: fgmres, fcg or
    gcr. Every solve checks the type of its KSP and refuses others. One process only.

    Call ``ksp.destroy()`` when done: petsc4py keeps what Python let go until PETSc ends, and then there is no Python any more for the
    context (a crash on exit with PETSc 3.18).

    Args:
        M: a preconditioner, or a callable from a residual of unit norm to a direction; directions that are not finite are
            replaced by the residual.
        A: the operator that M reads; None reads PETSc's matrix (the one given for the preconditioner) at each `setUp`.
        grid: the grid of PETSc's unknowns, which makes its matrix a `FaceStencil`, as `Multigrid` and `FastPoisson` need; without
            one M gets the sparse matrix, as `AlgebraicMultigrid` takes it.
        free_dofs: the place on the grid of each row of PETSc's matrix, see `FaceStencil.from_sparse`.

    >>> import torch
    >>> as_petsc_pc(lambda r: r, torch.eye(3))
    PetscPC(function)
    """
    return PetscPC(M, A, grid=grid, free_dofs=free_dofs)


class PetscPC:
    """The context of a PETSc PC of type python; see `as_petsc_pc`. The methods bear PETSc's names."""

    def __init__(self, M: Any, A: Any = None, *, grid: Grid | None = None, free_dofs: Any = None) -> None:
        if A is not None and (grid is not None or free_dofs is not None):
            raise ValueError("A is given, so PETSc's matrix is not read; leave grid and free_dofs out.")
        if grid is None and free_dofs is not None:
            raise ValueError("free_dofs are places on a grid; give the grid too.")
        self.M, self.A, self.grid, self.free_dofs = M, A, grid, free_dofs
        self._operation: HostOperation | None = None

    def __repr__(self) -> str:
        return f"PetscPC({type(self.M).__name__})"

    def setUp(self, pc: Any) -> None:
        """Read the operator anew and set M up on it."""
        self._operation = HostOperation.of_inverse(self.M, self._read(pc) if self.A is None else self.A)

    def preSolve(self, pc: Any, ksp: Any, b: Any, x: Any) -> None:
        """Before each solve: refuse a Krylov method that may not use M.

        Raises:
            ValueError: M is not linear and deterministic and the KSP not flexible, or M is not symmetric and the KSP wants it so.
        """
        operation, kind = self._ready(), ksp.getType()
        fixed = operation.linear and operation.deterministic
        if not fixed and kind not in FLEXIBLE:
            raise ValueError(
                f"{operation.name} is not a fixed linear preconditioner, but the KSP is {kind!r}, which needs one; "
                "set its type to 'fgmres', 'fcg' or 'gcr'."
            )
        if fixed and not operation.symmetric and kind in SYMMETRIC:
            raise ValueError(
                f"{operation.name} declares symmetric=False, but the KSP {kind!r} needs a symmetric preconditioner; "
                "set its type to 'gmres' or 'fgmres'."
            )

    def apply(self, pc: Any, x: Any, y: Any) -> None:
        """y <- M^-1 x"""
        y.setArray(self._ready()(x.getArray(readonly=True)[None])[0])

    def applyTranspose(self, pc: Any, x: Any, y: Any) -> None:
        """The same for a symmetric M; others have none here."""
        if not (self._ready().linear and self._ready().symmetric):
            raise ValueError(f"{self._ready().name} is not linear and symmetric, so its transpose is not at hand.")
        self.apply(pc, x, y)

    def view(self, pc: Any, viewer: Any) -> None:
        """One line for `-ksp_view`."""
        state = "not set up yet"
        if self._operation is not None:
            flags = [flag for flag in ("linear", "symmetric", "deterministic") if getattr(self._operation, flag)]
            state = f"{', '.join(flags) or 'flexible methods only'}; {self._operation.n} unknowns"
        viewer.printfASCII(f"    opflow {type(self.M).__name__}: {state}\n")

    def _ready(self) -> HostOperation:
        if self._operation is None:
            raise RuntimeError(
                "the PC is used before its setUp; PETSc calls it first, so call ksp.setUp() or pc.setUp()."
            )
        return self._operation

    def _read(self, pc: Any) -> LinearOperator:
        matrix = pc.getOperators()[1]
        if matrix.getComm().getSize() > 1:
            raise ValueError(
                f"PETSc's matrix lives on {matrix.getComm().getSize()} processes, but opflow's preconditioners run on one; use them "
                "inside the blocks of PETSc's bjacobi or asm."
            )
        from scipy.sparse import csr_array  # on use: `import opflow` loads no SciPy

        indptr, indices, values = matrix.getValuesCSR()
        csr = csr_array((values, indices, indptr), shape=matrix.getSize())
        return as_operator(csr) if self.grid is None else FaceStencil.from_sparse(csr, self.grid, self.free_dofs)
