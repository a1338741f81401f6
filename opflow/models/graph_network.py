"""A network on the graph of a mesh: nodal fields out of coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from opflow.layers.graph_conv import ChebyshevConv
from opflow.layers.mlp import MLP


class GraphNetwork(nn.Module):
    """x -> s * Q tanh(C_L ... tanh(C_1 x)), C_l Chebyshev convolutions on the graph, Q linear at every node.

    The network of the physics-informed graph Galerkin method (Gao, Zahr and Wang 2022), with tanh and few channels: smooth fields need
    neither the published eight layers nor 256 channels. The graph is an argument, so one network serves every mesh.

    Args:
        convolutions: `ChebyshevConv` layers.
        project: (..., channels) -> (..., out_channels) at every node.

    >>> from opflow.layers.graph_conv import scaled_laplacian
    >>> graph = scaled_laplacian(torch.tensor([[0, 1], [1, 2], [2, 3]]), 4)
    >>> GraphNetwork.build(2, 1)(torch.zeros(4, 2), parameters={"laplacian": graph}).shape
    torch.Size([4, 1])
    """

    def __init__(self, convolutions: Sequence[ChebyshevConv], project: nn.Module) -> None:
        super().__init__()
        if not len(convolutions):
            raise ValueError("there are no convolutions; give at least one ChebyshevConv.")
        self.convolutions, self.project = nn.ModuleList(convolutions), project
        self.recipe: dict[str, object] | None = None

    @classmethod
    def build(
        cls,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 16,
        *,
        n_layers: int = 2,
        order: int = 4,
    ) -> GraphNetwork:
        """The usual parts.

        Args:
            in_channels: coordinates of a node, scaled to about [-1, 1], and further features of it.
            out_channels: fields.
            n_layers: convolutions.
            order: polynomials of each; a layer sees order - 1 edges far.
        """
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}; give at least one convolution.")
        sizes = [in_channels, *[hidden_channels] * n_layers]
        convolutions = [ChebyshevConv(a, b, order) for a, b in itertools.pairwise(sizes)]
        model = cls(convolutions, MLP((hidden_channels, out_channels)))
        model.recipe = {
            "model": "GraphNetwork", "in_channels": in_channels, "out_channels": out_channels,
            "hidden_channels": hidden_channels, "n_layers": n_layers, "order": order,
        }  # fmt: skip
        return model

    def forward(self, coords: Tensor, *, parameters: Mapping[str, Tensor]) -> Tensor:
        """(..., n_nodes, in_channels) -> (..., n_nodes, out_channels)

        Args:
            parameters: "laplacian", the `scaled_laplacian` of the graph; and if given "scale", s, which broadcasts to the output: the
                sizes of the fields, and a factor that vanishes where a field does.
        """
        if "laplacian" not in parameters:
            raise ValueError(
                "parameters hold no 'laplacian', the graph to work on; give Batch(coords=nodes, "
                "parameters={'laplacian': scaled_laplacian(space.edges, space.n_nodes)})."
            )
        x = coords
        for convolution in self.convolutions:
            x = torch.tanh(convolution(x, parameters["laplacian"]))
        fields = self.project(x)
        return fields * parameters["scale"] if "scale" in parameters else fields
