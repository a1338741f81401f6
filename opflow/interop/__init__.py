"""opflow at the border: learned solvers in the types of the program they are called from."""

from opflow.interop.neuraloperator import from_neuraloperator
from opflow.interop.petsc_bridge import as_petsc_pc
from opflow.interop.predictor import Predictor
from opflow.interop.scipy_bridge import as_linear_operator, as_preconditioner

__all__ = ["Predictor", "as_linear_operator", "as_petsc_pc", "as_preconditioner", "from_neuraloperator"]
