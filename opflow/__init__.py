"""opflow: neural operators and PDE inverse problems in PyTorch."""

from opflow.batch import Batch
from opflow.grid import Grid

__version__ = "0.1.0"
__all__ = ["Batch", "Grid", "__version__"]
