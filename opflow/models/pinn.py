"""The network of a PINN: coordinates in, unknowns out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from opflow.layers.coordinates import FourierFeatures, as_box
from opflow.layers.hard_constraint import RememberedFunction
from opflow.layers.mlp import MLP
from opflow.layers.periodic import PeriodicFeatures
from opflow.layers.residual_gate import ResidualGateMLP

ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


class PINN(nn.Module):
    """u(y) = network(features(y)), the unknowns as a function of coordinates   (Raissi, Perdikaris and Karniadakis 2019).

    features: the box scaled to [-1, 1], cosines and sines on periodic axes, random Fourier features; fixed functions, computed once
    for points that come again. `HardConstraint(PINN.build(...), lift, distance)` makes conditions hold by construction. Train it in
    float64, `.double()`: in single precision rounding ends the descent earlier.

    Args:
        features: coordinates (..., dim) -> (..., features), without parameters.
        network: (..., features) -> (..., out_channels).

    >>> import torch
    >>> PINN.build(((0.0, 1.0), (-1.0, 1.0)), periodic=(0, 2))(torch.zeros(7, 2)).shape
    torch.Size([7, 1])
    """

    def __init__(self, features: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.features, self.network = RememberedFunction(features), network
        self.recipe: dict[str, object] | None = None

    def forward(self, y: Tensor) -> Tensor:
        """(..., dim) -> (..., out_channels)"""
        return self.network(self.features(y))

    @classmethod
    def build(
        cls,
        domain: Sequence[Sequence[float]],
        out_channels: int = 1,
        hidden: Sequence[int] = (20, 20, 20),
        *,
        periodic: Sequence[int] | None = None,
        even: Sequence[bool] | None = None,
        fourier_features: int | None = None,
        fourier_scale: float = 1.0,
        residual_gates: bool = False,
        activation: str = "tanh",
    ) -> PINN:
        """The usual parts; weights Glorot normal, biases zero (Glorot and Bengio 2010).

        Args:
            domain: (low, high) per coordinate.
            hidden: widths of the hidden layers.
            periodic: harmonics per coordinate, 0 where not periodic; see `PeriodicFeatures`.
            even: per coordinate, periodic and even, by cosines alone.
            fourier_features: random ones of the scaled coordinates, cosines and sines together.
            fourier_scale: deviation of their frequencies, in cycles per unit of the box [-1, 1]^dim.
            residual_gates: one `ResidualGateBlock` a hidden layer (all of one width) instead of a plain perceptron.
            activation: "tanh", "gelu" or "silu".
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}.")
        box, widths = as_box(domain, len(domain)), tuple(hidden)
        if not widths or any(not isinstance(n, int) or n < 1 for n in widths):
            raise ValueError(f"hidden is {widths}; give the widths of the hidden layers, positive whole numbers.")
        scaled = PeriodicFeatures(box, (0,) * len(box) if periodic is None else periodic, even=even)
        size, parts = scaled.out_features, [cast(nn.Module, scaled)]
        if fourier_features is not None:
            parts.append(FourierFeatures(size, fourier_features, scale=fourier_scale))
            size = fourier_features
        network: nn.Module
        if residual_gates:
            if len(set(widths)) > 1:
                raise ValueError(f"hidden is {widths}; residual gates join layers of one width.")
            network = ResidualGateMLP(size, out_channels, widths[0], len(widths), activation=ACTIVATIONS[activation]())
        else:
            network = MLP((size, *widths, out_channels), activation=ACTIVATIONS[activation]())
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        model = cls(nn.Sequential(*parts) if len(parts) > 1 else scaled, network)
        model.recipe = {
            "model": cls.__name__, "domain": [list(pair) for pair in box], "out_channels": out_channels, "hidden": list(widths),
            "periodic": None if periodic is None else list(periodic), "even": None if even is None else [bool(e) for e in even], "fourier_features": fourier_features,
            "fourier_scale": fourier_scale, "residual_gates": residual_gates, "activation": activation,
        }  # fmt: skip
        return model
