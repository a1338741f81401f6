"""opflow at the border: learned solvers in the types of the program they are called from."""

from opflow.interop.predictor import Predictor

__all__ = ["Predictor"]
