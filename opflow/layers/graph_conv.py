"""Convolution on graphs, by Chebyshev polynomials of the graph's Laplacian."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from opflow.typing import check_placement


def scaled_laplacian(edges: Tensor, n_nodes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """L - I = -D^(-1/2) A D^(-1/2), the normalised Laplacian moved to the interval [-1, 1]; sparse CSR (n_nodes, n_nodes).

    Args:
        edges: pairs of nodes (n_edges, 2), each once; A is 1 for both directions of each.

    Raises:
        ValueError: an edge names a node that is not there, joins one with itself or comes twice.

    >>> scaled_laplacian(torch.tensor([[0, 1], [1, 2]]), 3).to_dense()[0]
    tensor([ 0.0000, -0.7071,  0.0000])
    """
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.is_floating_point():
        raise ValueError(
            f"edges are {edges.dtype} of shape {tuple(edges.shape)}; expected pairs of numbers (n_edges, 2)."
        )
    if len(edges) and (int(edges.min()) < 0 or int(edges.max()) >= n_nodes):
        raise ValueError(f"edges name nodes {int(edges.min())} to {int(edges.max())}, but there are {n_nodes}.")
    if bool((edges[:, 0] == edges[:, 1]).any()) or len(edges.sort(1).values.unique(dim=0)) < len(edges):
        raise ValueError("an edge joins a node with itself, or comes twice; give every pair of neighbours once.")
    both = torch.cat([edges, edges.flip(1)])
    degree = torch.bincount(both[:, 0], minlength=n_nodes).to(dtype)
    values = -(degree[both[:, 0]] * degree[both[:, 1]]).rsqrt()
    matrix = torch.sparse_coo_tensor(both.T, values, (n_nodes, n_nodes), check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return matrix.coalesce().to_sparse_csr()


class ChebyshevConv(nn.Module):
    """x -> sum_k T_k(L) x W_k + b for k < order, T_0 = 1, T_1 = L, T_k = 2 L T_(k-1) - T_(k-2)   (Defferrard et al. 2016, eq. 4).

    L is the scaled Laplacian of a graph, so a node's output depends on the nodes within order - 1 edges. It is an argument: the
    same layer serves every graph.

    Args:
        in_channels, out_channels: features of a node.
        order: how many polynomials; 1 looks at no neighbour.

    >>> graph = scaled_laplacian(torch.tensor([[0, 1], [1, 2], [2, 3]]), 4)
    >>> ChebyshevConv(2, 8, 3)(torch.zeros(5, 4, 2), graph).shape
    torch.Size([5, 4, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, order: int, *, bias: bool = True) -> None:
        super().__init__()
        if min(in_channels, out_channels, order) < 1:
            raise ValueError(
                f"in_channels is {in_channels}, out_channels {out_channels} and order {order}; all must be positive."
            )
        self.in_channels, self.out_channels, self.order = in_channels, out_channels, order
        self.weight = nn.Parameter(torch.empty(order, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's normal initialisation of all order * in_channels inputs together."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / (self.order * self.in_channels + self.out_channels)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """(..., n_nodes, in_channels), sparse (n_nodes, n_nodes) -> (..., n_nodes, out_channels)"""
        if x.ndim < 2 or x.shape[-1] != self.in_channels or x.shape[-2] != laplacian.shape[0]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (..., nodes, channels) with {laplacian.shape[0]} nodes of the graph "
                f"and {self.in_channels} channels."
            )
        check_placement(x, self.weight, "ChebyshevConv")
        terms = [x]
        if self.order > 1:
            terms.append(_product(laplacian, x))
        while len(terms) < self.order:
            terms.append(2 * _product(laplacian, terms[-1]) - terms[-2])
        y = torch.cat(terms, -1) @ self.weight.reshape(-1, self.out_channels)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, order={self.order}"


def _product(laplacian: Tensor, x: Tensor) -> Tensor:
    """L x along the nodes of x (..., n_nodes, channels)."""
    if x.ndim == 2:
        return _SymmetricProduct.apply(x, laplacian)
    columns = x.movedim(-2, 0)
    return _SymmetricProduct.apply(columns.flatten(1), laplacian).view(columns.shape).movedim(0, -2)


class _SymmetricProduct(torch.autograd.Function):
    """L x for a constant symmetric sparse L: its derivatives are products with L too, so no transpose is ever formed."""

    @staticmethod
    def forward(x: Tensor, laplacian: Tensor) -> Tensor:
        return laplacian @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.laplacian = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _SymmetricProduct.apply(g, ctx.laplacian), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _SymmetricProduct.apply(tangent, ctx.laplacian)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, laplacian: Tensor) -> tuple[Tensor, int]:
        columns = x.movedim(in_dims[0], 1)  # (n_nodes, batch, channels)
        y = _SymmetricProduct.apply(columns.flatten(1), laplacian)
        return y.view(columns.shape), 1
