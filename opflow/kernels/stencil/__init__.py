"""Stencils of nearest neighbours and the steps of a multigrid cycle on them."""

from opflow.kernels.stencil.backends import BACKENDS
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer

__all__ = ["BACKENDS", "Relaxation", "Stencil", "StencilCall", "Transfer"]
