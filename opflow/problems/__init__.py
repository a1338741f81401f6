"""Problems: equations with their inputs, their unknowns and a classical solver."""

from opflow.problems.darcy import Darcy

__all__ = ["Darcy"]
