"""Unknown fields by a network, the solution of the equation by the equation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GalerkinSolution(nn.Module):
    """(u(mu), mu): a network gives the unknown fields mu at the nodes, and u solves the weak form R(u; mu) = 0.

    The residual vanishes by construction, so a loss of observations and a prior is left, in fewer unknowns and far better conditioned
    than with u from a network too. The gradient is that of the implicit function: one adjoint solve.

    Args:
        network: (n_nodes, features) -> (n_nodes, len(fields)), a `GraphNetwork` for example; None where no field is unknown.
        form: a `WeakForm`: an object with ``solve(parameters, factors=...)`` and ``factorised(parameters)``.
        fields: names of the parameters that the channels are.
        known: other parameters of the form: numbers, nodal fields, or modules without arguments, an `Unknown`, whose parameters are then
            this model's.
        linear: the equation is linear in u and its Jacobian the same for all values of what is unknown: it is factorised once.

    Source: the reduced-space form of PDE-constrained optimisation, Hinze et al. 2009, section 1.6.
    """

    def __init__(
        self,
        network: nn.Module | None,
        form: Any,
        fields: Sequence[str] = (),
        *,
        known: Mapping[str, Tensor | float | nn.Module] | None = None,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if (network is None) == bool(fields):
            raise ValueError(f"the network is {network} and fields are {tuple(fields)}; give both or neither.")
        self.network, self.form, self.fields, self.linear = network, form, tuple(fields), linear
        self.known = {name: value for name, value in (known or {}).items() if not isinstance(value, nn.Module)}
        self.unknowns = nn.ModuleDict({n: value for n, value in (known or {}).items() if isinstance(value, nn.Module)})
        self._factors: Any = None

    def forward(self, coords: Tensor, *, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """(n_nodes, features) -> (n_nodes, components + fields), u first"""
        found = {**self.known, **{name: unknown() for name, unknown in self.unknowns.items()}}
        channels = coords[:, :0]
        if self.network is not None:
            channels = self.network(coords, parameters=parameters or {})
            if channels.ndim != 2 or channels.shape[1] != len(self.fields):
                raise ValueError(
                    f"the network gives {tuple(channels.shape)}; expected (n_nodes, {len(self.fields)}), one channel for each of "
                    f"{', '.join(self.fields)}."
                )
            found |= dict(zip(self.fields, channels.unbind(1), strict=True))
        if self.linear and self._factors is None:
            self._factors = self.form.factorised(found)
        u = self.form.solve(found, factors=self._factors)
        return torch.cat([u.reshape(len(u), -1).to(channels), channels], 1)
