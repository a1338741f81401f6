"""Linear solvers whose outcome is a value and whose success is always checked."""

from opflow.solvers.algebraic_multigrid import AlgebraicMultigrid
from opflow.solvers.conjugate_direction import ConjugateDirection
from opflow.solvers.conjugate_gradient import ConjugateGradient
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.fast_poisson import FastPoisson
from opflow.solvers.gmres import GMRES
from opflow.solvers.implicit import implicit_solve
from opflow.solvers.linear_operator import LinearOperator
from opflow.solvers.multigrid import Multigrid
from opflow.solvers.set_up_once import SetUpOnce
from opflow.solvers.solution import Reason, Solution, SolverError

__all__ = [
    "GMRES",
    "AlgebraicMultigrid",
    "ConjugateDirection",
    "ConjugateGradient",
    "FaceStencil",
    "FastPoisson",
    "LinearOperator",
    "Multigrid",
    "Reason",
    "SetUpOnce",
    "Solution",
    "SolverError",
    "implicit_solve",
]
