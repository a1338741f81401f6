"""opflow: neural operators and PDE inverse problems in PyTorch."""

from opflow.batch import Batch
from opflow.grid import Grid
from opflow.mesh import Mesh
from opflow.version import __version__

__all__ = ["Batch", "Grid", "Mesh", "__version__"]
