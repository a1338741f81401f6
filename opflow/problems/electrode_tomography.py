"""Electrical impedance tomography with electrodes: voltages between electrodes, and the conductivity behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opflow.grid import Grid
from opflow.mesh import Mesh
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import sample_generators
from opflow.problems.complete_electrode import CompleteElectrodeModel, ElectrodeState
from opflow.problems.disc_mesh import disc_mesh
from opflow.problems.tank_phantoms import TankPhantoms, inner_points

BALANCE = 1e-6  # what currents and differences may leave of their largest entry, as measured ones do


@dataclass(frozen=True, eq=False)
class ElectrodeTomography:
    """Find sigma in div(sigma grad u) = 0 from voltages between electrodes, each of which has a contact impedance z_e:

        u + z_e sigma du/dn = U_e and int_e sigma du/dn = I_e on electrode e,    sigma du/dn = 0 between electrodes

    (the complete electrode model: Somersalo, Cheney and Isaacson 1992). Measurement l is the vector of K differences pattern' U that the
    currents of column l make. Units are the user's, sigma [z] = length: with I in A and lengths in m, sigma is S (per m of depth S/m).

    In place of a grid stands the mesh. A conductivity is constant on every triangle, (n, n_cells): jumps need no node, and the exact
    derivative is one product a triangle. `sample` evaluates a phantom on the mesh, or at the points of a `Grid`, a picture for example.

    Attributes:
        mesh: triangles of three points.
        electrodes: per electrode its sides (sides, 2), pairs of points that are boundary sides of the mesh.
        impedances: z (electrodes,), positive; one number for all.
        currents: I (electrodes, L), columns sum to zero. A column may come twice, as measured ones do.
        pattern: (electrodes, K), columns sum to zero: 1 and -1 at two electrodes is the voltage between them.
        background: the conductivity without inclusions.
        phantoms: the law of the inclusions, on the largest disc about the middle of the mesh.

    Raises:
        ValueError: the mesh does not fit (sides of electrodes that are not on its boundary, or belong to two electrodes), currents or
            differences do not sum to zero, currents vanish, an impedance or the background is not positive, or shapes do not agree.

    >>> tank = ElectrodeTomography.disc(8)
    >>> sigma = tank.sample(2, tank.mesh)
    >>> tank.observe(sigma)["measurements"].shape  # (n, L, 1, K)
    torch.Size([2, 8, 1, 8])
    """

    mesh: Mesh
    electrodes: Sequence[Tensor]
    impedances: Tensor | float
    currents: Tensor
    pattern: Tensor
    background: float = 1.0
    phantoms: TankPhantoms = field(default_factory=TankPhantoms)

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("conductivity",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        sides = tuple(torch.as_tensor(one).long().reshape(-1, 2) for one in self.electrodes)
        count = len(sides)
        impedances = torch.as_tensor(self.impedances, dtype=torch.float64)
        object.__setattr__(self, "electrodes", sides)
        impedances = impedances.expand(count) if impedances.ndim == 0 else impedances
        object.__setattr__(self, "impedances", impedances)
        object.__setattr__(self, "currents", _balanced(self.currents, count, "currents"))
        object.__setattr__(self, "pattern", _balanced(self.pattern, count, "pattern"))
        _check_electrodes(self.mesh, sides)
        if impedances.shape != (count,) or not _positive(impedances):
            raise ValueError(
                f"impedances are {impedances.tolist()}; expected one positive number for each of {count} electrodes, or one for all."
            )
        if not (0 < self.background < float("inf")):
            raise ValueError(f"background is {self.background}; the conductivity of the water is positive.")

    @classmethod
    def disc(
        cls,
        n_electrodes: int = 16,
        *,
        radius: float = 1.0,
        coverage: float = 0.5,
        start: float = 0.0,
        sides: int = 2,
        impedance: float = 0.01,
        background: float = 1.0,
    ) -> ElectrodeTomography:
        """A round tank: equal electrodes counter-clockwise, currents and voltages between neighbours.

        Args:
            coverage: the share of the wall that is electrodes, in (0, 1).
            start: the angle of the first electrode's middle.
            sides: of the mesh on one electrode; as many are in every gap.
            impedance: of every contact.
        """
        mesh, electrodes = disc_mesh(n_electrodes, radius=radius, coverage=coverage, start=start, sides=sides)
        neighbours = torch.eye(n_electrodes, dtype=torch.float64)
        neighbours = neighbours - neighbours.roll(1, 0)
        return cls(mesh, electrodes, impedance, neighbours, neighbours, background)

    @property
    def descriptors(self) -> Tensor:
        """The currents of every measurement (L, electrodes), as a share of the largest."""
        return self.currents.T / self.currents.abs().max()

    @cached_property
    def model(self) -> CompleteElectrodeModel:
        """The discrete model, assembled on first use."""
        return CompleteElectrodeModel(self.mesh, [sides.numpy() for sides in self.electrodes])

    def sample(
        self, indices: int | Sequence[int], grid: Grid | Mesh | None = None, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random tanks {"conductivity": (n, n_cells)}, float64, or (n, *grid) at the points of a plane grid.

        Sample i is one phantom on every mesh and grid. On a mesh, a triangle that an outline cuts has a geometric mean.
        """
        where = self.mesh if grid is None else grid
        middle, radius = self._disc
        phantoms = [
            self.phantoms.draw(stream) for stream in sample_generators(type(self).__name__, indices, seed, split)
        ]
        if isinstance(where, Mesh):
            points = ((where.points.double() - middle) / radius)[where.triangles].numpy()
            ratios = [self.phantoms.mean_ratio(inclusions, points) for inclusions in phantoms]
            shape: tuple[int, ...] = (len(points),)
        elif where.dim == 2:
            points = ((where.points() - middle) / radius).reshape(-1, 2).numpy()
            ratios = [self.phantoms.ratio(inclusions, points) for inclusions in phantoms]
            shape = where.shape
        else:
            raise ValueError(f"a tank is plane, but the grid has {where.dim} axes; give a mesh or a grid of two axes.")
        values = torch.from_numpy(np.stack(ratios)) if ratios else torch.zeros(0, dtype=torch.float64)
        return {"conductivity": self.background * values.view(len(phantoms), *shape)}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: Tensor | None = None,
        *,
        grid: Mesh | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """{"measurements": (n, L, 1, K), "mask": (n, L), all measured} of conductivities (n, n_cells), float64.

        Args:
            inputs: "conductivity", positive.
            sensors: another measurement pattern (electrodes, K).
            grid: None, or the mesh of the problem; another mesh is another problem (`refined`, `dataclasses.replace`).
            noise: deviation as a share of the root mean square of a sample's voltages.
            seed: of the noise.
        """
        if "conductivity" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but the tank needs 'conductivity' (n, n_cells).")
        with torch.no_grad():
            clean = self.forward(grid, sensors)(inputs["conductivity"].detach().double())
        measurements = add_noise(clean, noise, torch.Generator().manual_seed(seed))
        return {"measurements": measurements, "mask": torch.ones(clean.shape[:2], dtype=torch.bool)}

    def forward(self, grid: Mesh | None = None, sensors: Tensor | None = None) -> ElectrodeVoltages:
        """The map from conductivities (n, n_cells) to voltages (n, L, 1, K), with its derivative."""
        if grid is not None and grid is not self.mesh:
            raise ValueError(
                "the electrodes belong to the problem's own mesh; give grid=problem.mesh or None, and make a problem for another mesh."
            )
        if isinstance(sensors, int):
            raise ValueError(
                f"sensors is {sensors}, but the electrodes are built in; give a pattern (electrodes, K) of other differences."
            )
        return ElectrodeVoltages(self if sensors is None else replace(self, pattern=sensors))

    def indicators(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Which pixels of a plane grid of cells the mesh meets, (*grid) bool, and the share of every triangle in each, (pixels, n_cells).

        The shares, counted over sixteen points a triangle, are directions for `linearise`: what the voltages say about a pixel.
        """
        if grid.dim != 2 or grid.layout != ("cells", "cells"):
            raise ValueError(f"the grid is {grid}; expected pixels, Grid((nx, ny), extent, layout='cells').")
        points = torch.from_numpy(inner_points(self.mesh.points.double()[self.mesh.triangles].numpy()))
        low = torch.tensor([a for a, _ in grid.extent], dtype=torch.float64)
        size = torch.tensor(grid.spacing, dtype=torch.float64)
        pixel = ((points - low) / size).floor().long()  # (cells, 16, 2)
        if bool((pixel < 0).any() or (pixel >= torch.tensor(grid.shape)).any()):
            raise ValueError(f"the mesh reaches beyond the grid's extent {grid.extent}; give a larger one.")
        flat = pixel[..., 0] * grid.shape[1] + pixel[..., 1]
        shares = torch.zeros(grid.shape[0] * grid.shape[1], len(points), dtype=torch.float64)
        cells = torch.arange(len(points))[:, None].expand_as(flat)
        shares.index_put_((flat, cells), torch.full(flat.shape, 1 / 16, dtype=torch.float64), accumulate=True)
        met = shares.any(1)
        return met.view(grid.shape), shares[met]

    def refined(self) -> ElectrodeTomography:
        """The same tank with every triangle cut into four, 4 i to 4 i + 3 from triangle i, and electrodes of twice the sides."""
        mesh = self.mesh
        edges = mesh.edges
        number = {pair: len(mesh.points) + k for k, pair in enumerate(map(tuple, edges.tolist()))}
        points = torch.cat([mesh.points, mesh.points[edges].mean(1)])

        def middle(a: int, b: int) -> int:
            return number[min(a, b), max(a, b)]

        cells = []
        for a, b, c in mesh.triangles.tolist():
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            cells += [[ab, bc, ca], [a, ab, ca], [ab, b, bc], [ca, bc, c]]
        electrodes = [
            torch.tensor([half for a, b in sides.tolist() for half in ([a, middle(a, b)], [middle(a, b), b])])
            for sides in self.electrodes
        ]
        return replace(self, mesh=Mesh(points, torch.tensor(cells)), electrodes=electrodes)

    @cached_property
    def _disc(self) -> tuple[Tensor, float]:
        """Middle and radius of the disc that phantoms lie in."""
        points = self.mesh.points.double()
        middle = (points.amin(0) + points.amax(0)) / 2
        return middle, -float(self.mesh.signed_distance(middle[None])[0])


class ElectrodeVoltages:
    """sigma (n, n_cells) -> voltages (n, L, 1, K), float64 on the CPU: differentiable once by autograd, through the adjoint.

    >>> tank = ElectrodeTomography.disc(8)
    >>> F = tank.forward()
    >>> ones = torch.ones(1, len(tank.mesh.cells), dtype=torch.float64)
    >>> bool(F(2 * ones).norm() < F(ones).norm())  # but not its half: the contacts have their share
    True
    """

    def __init__(self, problem: ElectrodeTomography) -> None:
        self.problem, self.model = problem, problem.model
        self.n_cells = len(problem.mesh.cells)
        self.currents, self.pattern = problem.currents.numpy(), problem.pattern.numpy()

    def __call__(self, conductivity: Tensor) -> Tensor:
        """(n, n_cells) -> (n, L, 1, K)"""
        self._check(conductivity, 2)
        return _Voltages.apply(conductivity, self)[:, :, None]

    def linearise(self, conductivity: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The voltages (L, 1, K) at sigma (n_cells,) and their derivatives (L, 1, K, k) along directions (k, n_cells)."""
        voltages, jacobian = self.jacobian(conductivity)
        if directions.ndim != 2 or directions.shape[1] != self.n_cells:
            raise ValueError(f"directions have shape {tuple(directions.shape)}; expected (k, {self.n_cells}).")
        return voltages, jacobian @ directions.detach().double().T

    def jacobian(self, conductivity: Tensor) -> tuple[Tensor, Tensor]:
        """The voltages (L, 1, K) at sigma (n_cells,) and their derivative (L, 1, K, n_cells)."""
        self._check(conductivity, 1)
        state = self.state(conductivity)
        jacobian = self.model.conductivity_jacobian(state, self.pattern, self.currents)
        return self._voltages(state)[:, None], torch.from_numpy(jacobian).transpose(0, 1)[:, None]

    def impedance_jacobian(self, conductivity: Tensor) -> Tensor:
        """The derivative of the voltages with respect to z, (L, 1, K, electrodes), at sigma (n_cells,)."""
        self._check(conductivity, 1)
        jacobian = self.model.impedance_jacobian(self.state(conductivity), self.pattern, self.currents)
        return torch.from_numpy(jacobian).transpose(0, 1)[:, None]

    def state(self, conductivity: Tensor) -> ElectrodeState:
        """Potentials and resistances at sigma (n_cells,)."""
        sigma = conductivity.detach().to("cpu", torch.float64)
        return self.model.state(sigma.numpy(), torch.as_tensor(self.problem.impedances).numpy())

    def _voltages(self, state: ElectrodeState) -> Tensor:
        return torch.from_numpy(state.voltages(self.pattern, self.currents).T.copy())  # (L, K)

    def _check(self, conductivity: Tensor, ndim: int) -> None:
        if conductivity.ndim != ndim or conductivity.shape[-1] != self.n_cells:
            raise ValueError(
                f"the conductivity has shape {tuple(conductivity.shape)}; expected ({'n, ' * (ndim - 1)}{self.n_cells}), one number a triangle."
            )
        if not _positive(conductivity):
            raise ValueError(
                "the conductivity must be positive and finite in every triangle; correct or leave out the sample."
            )


class _Voltages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, conductivity: Tensor, voltages: ElectrodeVoltages) -> Tensor:
        states = [voltages.state(one) for one in conductivity]
        ctx.voltages, ctx.states = voltages, states if ctx.needs_input_grad[0] else []
        shape = (0, voltages.currents.shape[1], voltages.pattern.shape[1])
        values = torch.stack([voltages._voltages(state) for state in states]) if states else torch.zeros(shape)
        return values.to(conductivity)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        voltages = ctx.voltages
        rows = []
        for state, weight in zip(ctx.states, gradient.detach().to("cpu", torch.float64).numpy(), strict=True):
            resistance = voltages.pattern[:-1] @ weight.T @ voltages.currents[:-1].T
            rows.append(torch.from_numpy(voltages.model.conductivity_gradient(state, resistance)))
        return torch.stack(rows).to(gradient), None


def _positive(values: Tensor) -> bool:
    return bool((values > 0).all() and values.isfinite().all())


def _balanced(values: Any, count: int, name: str) -> Tensor:
    columns = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if columns.ndim != 2 or len(columns) != count or not columns.shape[1]:
        raise ValueError(f"{name} have shape {tuple(columns.shape)}; expected ({count}, n), a row an electrode.")
    if not bool(columns.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinity; leave out the columns that were not measured.")
    largest = columns.abs().amax(0)
    if bool((largest == 0).any()):
        raise ValueError(f"column {int((largest == 0).nonzero()[0])} of {name} is zero; leave it out.")
    left = columns.sum(0).abs() / largest
    if bool((left > BALANCE).any()):
        where = int(left.argmax())
        raise ValueError(
            f"column {where} of {name} sums to {float(columns[:, where].sum()):.3g}, but the entries of each must sum to zero: what flows in flows out."
        )
    return columns


def _check_electrodes(mesh: Mesh, electrodes: Sequence[Tensor]) -> None:
    if mesh.cells.shape[1] != 3:
        raise ValueError("the mesh has curved sides; the electrode model takes triangles of three points.")
    if len(electrodes) < 2:
        raise ValueError(f"there are {len(electrodes)} electrodes; current needs at least two.")
    wall = {(min(a, b), max(a, b)) for a, b in mesh.boundary_edges.tolist()}
    owner: dict[tuple[int, int], int] = {}
    for e, sides in enumerate(electrodes):
        if not len(sides):
            raise ValueError(f"electrode {e} has no side; give it at least one boundary side of the mesh.")
        for a, b in sides.tolist():
            side = (min(a, b), max(a, b))
            if side not in wall:
                raise ValueError(
                    f"side ({a}, {b}) of electrode {e} is not on the boundary of the mesh; the mesh does not fit these electrodes."
                )
            if side in owner:
                raise ValueError(f"side ({a}, {b}) belongs to the electrodes {owner[side]} and {e}; give it to one.")
            owner[side] = e
