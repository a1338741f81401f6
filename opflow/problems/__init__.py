"""Problems: equations with their inputs, their unknowns and a classical solver."""

from opflow.problems.burgers import Burgers
from opflow.problems.darcy import Darcy

__all__ = ["Burgers", "Darcy"]
