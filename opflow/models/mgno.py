"""The multigrid neural operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import nn

from opflow.layers.boundary import as_boundary, impose
from opflow.layers.function_norm import FunctionNorm
from opflow.layers.mlp import ChannelLinear
from opflow.layers.multigrid import MultigridConv
from opflow.models.fno import ACTIVATIONS
from opflow.typing import Field, check_sizes


class MultigridLayer(nn.Module):
    """v -> s(W v + K v + b): a multigrid cycle beside a linear map at every point   (He, Liu and Xu 2024, eq. 2).

    Args:
        conv: W.
        skip: K with its bias b.
        norm: of the sum, before the activation; None for none.
        activation: s, GELU by default.

    >>> import torch
    >>> MultigridLayer(MultigridConv(3, 8, 3), ChannelLinear(3, 8))(torch.zeros(2, 3, 16, 15)).shape
    torch.Size([2, 8, 16, 15])
    """

    def __init__(
        self,
        conv: MultigridConv,
        skip: ChannelLinear,
        *,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv, self.skip, self.norm = conv, skip, norm
        self.activation = activation or nn.GELU()

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        y = self.conv(v) + self.skip(v)
        return self.activation(y if self.norm is None else self.norm(y))


class MgNO(nn.Module):
    """u = Q L_n ... L_1 a,  L v = s(W v + K v + b), every W a learned multigrid cycle   (He, Liu and Xu 2024, "MgNO").

    No lift and no coordinates: the first layer goes from the input's channels to the hidden ones, and the boundary conditions
    of the cycles say where a point lies. Takes its parts; `MgNO.build` makes the usual ones from plain values.

    Args:
        layers: L_1, ..., L_n.
        project: Q, linear at every point.
        boundary: the condition per axis that u keeps exactly on a grid of nodes, see `opflow.layers.boundary.impose`; None for none.

    >>> import torch
    >>> MgNO.build(n_levels=4)(torch.zeros(2, 1, 21, 16)).shape
    torch.Size([2, 1, 21, 16])
    """

    def __init__(
        self, layers: Iterable[nn.Module], project: nn.Module, *, boundary: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.layers, self.project = nn.ModuleList(layers), project
        self.boundary = None if boundary is None else tuple(boundary)
        self.recipe: dict[str, Any] | None = None

    def forward(self, x: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        for layer in self.layers:
            x = layer(x)
        u = self.project(x)
        return u if self.boundary is None else impose(u, self.boundary)

    @classmethod
    def build(
        cls,
        in_channels: int = 1,
        out_channels: int = 1,
        hidden_channels: int = 24,
        n_layers: int = 4,
        *,
        n_levels: int = 6,
        cycle: str = "backslash",
        boundary: str | Sequence[str] = "dirichlet",
        impose: bool = True,
        dim: int = 2,
        smoothing: Sequence[Sequence[int]] | None = None,
        reference_shape: int | Sequence[int] | None = None,
        norm: str | None = None,
        activation: str = "gelu",
    ) -> MgNO:
        """The usual parts from plain values, which `model.recipe` keeps; by default the paper's model of 572,661 parameters.

        Args:
            n_levels, cycle, smoothing, reference_shape: of every `MultigridConv`.
            boundary: "dirichlet", "neumann" or "periodic", per axis or one for all, of every cycle and of the output.
            impose: let the output keep the boundary condition exactly on its boundary nodes, u = 0 or a vanishing normal derivative.
                False where the condition is another one, where values live on cells, and for the published model to the letter.
            norm: "group" (one group) or None, in every layer, see `FunctionNorm`: means over the domain, after which W v + K v + b is no
                longer affine in v.
            activation: "gelu", "relu", "silu" or "tanh".
        """
        check_sizes(n_layers=n_layers, hidden_channels=hidden_channels)
        if norm not in ("group", None):
            raise ValueError(f"norm is {norm!r}; give 'group' or None.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}.")
        conditions = as_boundary(boundary, dim)
        layout = ["periodic" if name == "periodic" else "nodes" for name in conditions]
        widths = [in_channels] + [hidden_channels] * n_layers
        layers = [
            MultigridLayer(
                MultigridConv(
                    a, b, n_levels, cycle=cycle, boundary=boundary, dim=dim, smoothing=smoothing, reference_shape=reference_shape
                ),
                ChannelLinear(a, b),
                norm=FunctionNorm(b, 1, layout, dim=dim) if norm else None,
                activation=ACTIVATIONS[activation](),
            )
            for a, b in itertools.pairwise(widths)
        ]  # fmt: skip
        model = cls(
            layers, ChannelLinear(hidden_channels, out_channels, bias=False), boundary=conditions if impose else None
        )
        conv = cast(MultigridLayer, model.layers[0]).conv
        model.recipe = {
            "model": cls.__name__, "in_channels": in_channels, "out_channels": out_channels,
            "hidden_channels": hidden_channels, "n_layers": n_layers, "n_levels": n_levels, "cycle": cycle,
            "boundary": list(conditions), "impose": impose, "dim": dim, "smoothing": [list(pair) for pair in conv.smoothing],
            "reference_shape": None if conv.reference_shape is None else list(conv.reference_shape),
            "norm": norm, "activation": activation,
        }  # fmt: skip
        return model
