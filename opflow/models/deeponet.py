"""The deep operator network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opflow.grid import Grid
from opflow.layers.branch_trunk import BranchTrunk, as_multi_output
from opflow.layers.coordinates import BoxCoordinates, FourierFeatures, as_box, check_inside
from opflow.layers.mlp import MLP
from opflow.layers.pod import PODTrunk
from opflow.models.fno import ACTIVATIONS
from opflow.typing import Field, Points, check_field, check_placement


class OutputGroups(nn.Module):
    """Nets side by side, their outputs in groups: (..., in) -> (..., groups, width)

    >>> OutputGroups([nn.Linear(3, 8)], groups=2)(torch.zeros(5, 3)).shape
    torch.Size([5, 2, 4])
    """

    def __init__(self, nets: Iterable[nn.Module], groups: int) -> None:
        super().__init__()
        self.nets, self.groups = nn.ModuleList(nets), groups

    def forward(self, x: Tensor) -> Tensor:
        """Apply every net to the same input."""
        return torch.cat([net(x) for net in self.nets], dim=-1).unflatten(-1, (self.groups, -1))


class DeepONet(nn.Module):
    """G(u)(y) = sum_k b_k(u(x_1), ..., u(x_m)) t_k(y) + b_0   (Lu et al. 2021, "DeepONet", eq. 2).

    The branch b sees the input function at fixed sensors x_i, the trunk t any coordinates y. So the output can be asked
    for anywhere, while the sensors are those of the training: the theorem of resolution is not claimed.

    Takes its parts; `DeepONet.build` makes the usual ones from plain values.

    Args:
        branch: b, (batch, channel, *sensors) -> (batch, out or 1, basis).
        trunk: t, (..., dim) -> (..., out or 1, basis). The mean of a PODTrunk is added to the sum.
        combine: the sum, with an axis of outputs.
        sensors: the shape of the sensors' grid.
        in_channels: of the input function.
        coord_dim: the dimension of the coordinates.
        domain: (low, high) per coordinate; points outside are refused, but not in a graph that is compiled or exported,
            nor under vmap, where values cannot be looked at. None takes any point.

    >>> model = DeepONet.build(100, 1, domain=((0.0, 1.0),))
    >>> model(torch.zeros(2, 1, 100), torch.rand(7, 1)).shape
    torch.Size([2, 7, 1])
    """

    def __init__(
        self,
        branch: nn.Module,
        trunk: nn.Module,
        combine: BranchTrunk,
        *,
        sensors: Sequence[int],
        in_channels: int = 1,
        coord_dim: int = 1,
        domain: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.branch, self.trunk, self.combine = branch, trunk, combine
        self.sensors, self.in_channels, self.coord_dim = tuple(sensors), in_channels, coord_dim
        self.domain = None if domain is None else as_box(domain, coord_dim)
        self.recipe: dict[str, object] | None = None

    def forward(self, u: Field, coords: Points) -> Tensor:
        """u (batch, channel, *sensors), coords (points, dim) or (batch, points, dim) -> (batch, points, out)

        Coordinates without a batch are the same for all samples, and cost the trunk once.
        """
        self._check(u, coords)
        y = self.combine(self.branch(u), self.trunk(coords))
        return y + self.trunk.mean_at(coords) if isinstance(self.trunk, PODTrunk) else y

    def _check(self, u: Field, coords: Points) -> None:
        like = next(self.parameters(), u)  # parts of your own may have none
        check_field(u, self.in_channels, len(self.sensors), like, "DeepONet")
        if tuple(u.shape[2:]) != self.sensors:
            raise ValueError(
                f"u has shape {tuple(u.shape)} but DeepONet expects the sensors that it was built for, "
                f"(batch, {self.in_channels}, {', '.join(map(str, self.sensors))}); its branch is tied to them, so "
                "interpolate u there, or train a model for the new layout."
            )
        if coords.ndim not in (2, 3) or coords.shape[-1] != self.coord_dim:
            raise ValueError(
                f"coords has shape {tuple(coords.shape)} but DeepONet expects (points, {self.coord_dim}), the same for "
                f"all samples, or (batch, points, {self.coord_dim})."
            )
        if coords.ndim == 3 and coords.shape[0] not in (1, u.shape[0]):
            raise ValueError(
                f"coords has {coords.shape[0]} sets of points but u has {u.shape[0]} samples; give one set a sample, "
                "or one set (points, dim) for all."
            )
        check_placement(coords, like, "DeepONet", "coords")
        if self.domain is not None:
            advice = "a trunk does not extrapolate, so ask inside, or build with a larger domain."
            check_inside(coords.detach(), self.domain, "points", advice)

    @classmethod
    def build(
        cls,
        sensors: int | Sequence[int],
        coord_dim: int = 1,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        basis: int = 64,
        branch: Sequence[int] = (128, 128),
        trunk: Sequence[int] | str = (128, 128),
        multi_output: str = "independent",
        trunk_features: int | None = None,
        fourier_scale: float = 1.0,
        activation: str = "gelu",
        domain: Sequence[Sequence[float]] | None = None,
        grid: Grid | Mapping[str, Any] | None = None,
    ) -> DeepONet:
        """The usual parts from plain values, which `model.recipe` keeps.

        Args:
            sensors: the shape of the grid on which the input function is given, a number in one dimension.
            coord_dim: the dimension of the coordinates.
            basis: how many products are summed.
            branch: hidden widths of the branch, whose last layer is linear.
            trunk: hidden widths of the trunk, whose last layer has the activation too; or "pod" for the modes of the
                training targets, which ``model.trunk.fit(targets)`` computes: a `PODTrunk` on `grid`, without b_0.
            multi_output: how several outputs share the nets (the names of Lu et al. 2022):
                "independent", a branch and a trunk for each; "split_both", one branch and one trunk whose outputs are
                split among them; "split_branch", only the branch's outputs are split, and the functions t_k shared;
                "split_trunk", only the trunk's are split, and the coefficients b_k shared.
            trunk_features: so many random Fourier features of the coordinates go into the trunk; None for the
                coordinates themselves.
            fourier_scale: deviation of their frequencies, in cycles per unit of length; with a domain, the units are
                those of the box [-1, 1]^dim.
            activation: "gelu", "relu", "silu" or "tanh".
            domain: (low, high) per coordinate: maps it to [-1, 1] before the trunk, and refuses points outside.
            grid: of the targets, for trunk="pod", or its `Grid.to_json`; its extent is then the domain.
        """
        shape = (sensors,) if isinstance(sensors, int) else tuple(sensors)
        is_pod = trunk == "pod"
        hidden = () if isinstance(trunk, str) else tuple(trunk)
        for name, values in (
            ("sensors", shape), ("coord_dim", (coord_dim,)), ("in_channels", (in_channels,)),
            ("out_channels", (out_channels,)), ("basis", (basis,)), ("branch", tuple(branch)), ("trunk", hidden),
        ):  # fmt: skip
            if not all(isinstance(n, int) and n > 0 for n in values) or (name == "sensors" and not values):
                raise ValueError(f"{name} is {values if len(values) != 1 else values[0]}; give positive whole numbers.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}.")
        if isinstance(trunk, str) and not is_pod:
            raise ValueError(f"trunk is {trunk!r}; give hidden widths, for example (128, 128), or 'pod'.")
        if is_pod != (grid is not None) or (is_pod and (domain is not None or trunk_features is not None)):
            raise ValueError(
                f"trunk is {trunk!r} with grid={grid}, domain={domain} and trunk_features={trunk_features}; "
                "'pod' takes a grid and neither of the others, hidden widths take no grid."
            )
        apart = as_multi_output(multi_output)
        make_activation = ACTIVATIONS[activation]
        nets = out_channels if multi_output == "independent" else 1

        def groups(sizes: Sequence[int], apart: bool, *, is_trunk: bool) -> OutputGroups:
            count = out_channels if apart else 1
            perceptrons = [MLP((*sizes, basis * count // nets), activation=make_activation()) for _ in range(nets)]
            return OutputGroups([nn.Sequential(p, make_activation()) if is_trunk else p for p in perceptrons], count)

        functions: nn.Module
        if grid is None:
            box = None if domain is None else as_box(domain, coord_dim)
            parts: list[nn.Module] = [] if box is None else [BoxCoordinates(box)]
            if trunk_features is not None:
                parts.append(FourierFeatures(coord_dim, trunk_features, scale=fourier_scale))
            functions = nn.Sequential(*parts, groups((trunk_features or coord_dim, *hidden), apart[1], is_trunk=True))
        else:
            grid = grid if isinstance(grid, Grid) else Grid.from_json(grid)
            box = as_box(grid.extent, coord_dim)
            functions = PODTrunk(grid, basis, out_channels, multi_output=multi_output)
        coefficients = groups((in_channels * math.prod(shape), *branch), apart[0], is_trunk=False)
        model = cls(
            nn.Sequential(nn.Flatten(1), coefficients),
            functions,
            BranchTrunk(out_channels, bias=not is_pod),
            sensors=shape,
            in_channels=in_channels,
            coord_dim=coord_dim,
            domain=box,
        )
        model.recipe = {
            "model": cls.__name__, "sensors": list(shape), "coord_dim": coord_dim, "in_channels": in_channels,
            "out_channels": out_channels, "basis": basis, "branch": list(branch), "trunk": "pod" if is_pod else list(hidden),
            "multi_output": multi_output, "trunk_features": trunk_features, "fourier_scale": fourier_scale,
            "activation": activation, "domain": None if is_pod or box is None else [list(pair) for pair in box],
            "grid": None if grid is None else grid.to_json(),
        }  # fmt: skip
        return model
