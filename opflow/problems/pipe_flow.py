"""Steady viscous flow through a curved pipe, on a grid that is mapped onto it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.random_field import sample_generators
from opflow.pde.taylor_hood import FoldedMeshError, TaylorHood
from opflow.problems.constants import check_finite, check_positive
from opflow.typing import Derivatives

SEGMENTS = 4  # cubic pieces of the centre line
MOST_STEPS = 25
SMALLEST_RTOL = 1e-12
CONTINUATION = (0.25, 0.5, 0.75, 1.0)  # shares of the advection, where Newton's method does not reach it at once

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PipeFlow:
    """(u . grad) u = -grad p + nu lap u + f,  div u = 0   in a curved pipe   (Li et al. 2023, "Geo-FNO", section 4, pipe flow).

    The pipe is the image of the unit square under (s, n) -> (x, y), s along it and n across. The operator to learn maps the
    coordinates x_map and y_map of the nodes to the velocity. On the wall, n = 0 and n = 1, u = 0; at the inlet, s = 0,
    u = (4 U r (1 - r), 0) with r the share of its length; at the outlet, s = 1, the stress nu du/dn - p n vanishes. There is no
    force f, unless one is given. Dimensionless; the Reynolds number of the defaults is U width / nu = 200.

    The random pipes are x = length s, y = c(x) + width (n - 1/2). The centre line c starts level at the origin and is cubic between
    `SEGMENTS` + 1 evenly spaced points, with heights uniform in (-height, height) and slopes uniform in (-slope, slope).

    Attributes:
        inflow: U, the largest velocity at the inlet.

    >>> problem, grid = PipeFlow(), Grid((33, 17), axes=("s", "n"))
    >>> flow = problem.solve(problem.sample(1, grid), grid)
    >>> flow["velocity_x"].shape, flow["pressure"].shape
    (torch.Size([1, 33, 17]), torch.Size([1, 33, 17]))
    """

    viscosity: float = 0.005
    inflow: float = 1.0
    length: float = 10.0
    width: float = 1.0
    height: float = 2.0
    slope: float = 1.0

    coordinates: ClassVar[tuple[str, ...]] = ("s", "n")
    inputs: ClassVar[tuple[str, ...]] = ("x_map", "y_map")
    unknowns: ClassVar[tuple[str, ...]] = ("velocity_x", "velocity_y", "pressure")

    def __post_init__(self) -> None:
        check_positive(viscosity=self.viscosity, inflow=self.inflow, length=self.length, width=self.width)
        check_finite(height=self.height, slope=self.slope)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random pipes {"x_map": (n, *grid), "y_map": (n, *grid)}, float64 on the CPU; sample i is one map on every grid."""
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        draws = np.array([generator.uniform(-1.0, 1.0, (2, SEGMENTS)) for generator in generators]).reshape(
            -1, 2, SEGMENTS
        )
        heights, slopes = np.pad(draws, ((0, 0), (0, 0), (1, 0))).transpose(1, 0, 2)  # level at the origin
        s, n = (grid.coordinates(axis) for axis in range(2))
        centre = torch.from_numpy(_cubics(self.height * heights, self.slope * self.length * slopes, s.numpy()))
        x = (self.length * s[:, None]).expand(grid.shape)
        return {
            "x_map": x.expand(len(centre), *grid.shape).clone(),
            "y_map": (centre[..., None] + self.width * (n - 0.5)).contiguous(),
        }

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """Velocity and pressure {name: (n, *grid)}, float64: Taylor-Hood elements, Newton's method, sparse factors, on the CPU.

        Third order in the velocity and second in the pressure where the map is smooth within elements (see `TaylorHood`): for the
        random pipes, where the number of intervals along the pipe is a multiple of eight. Newton's method starts from the flow
        without advection, and takes advection in shares where it does not converge at once.

        Args:
            inputs: "x_map" and "y_map" (n, *grid); optionally "force_x" and "force_y" (n or 1, *grid).
            rtol: of the weak equations of momentum and of mass, against their sizes at rest, with inflow.

        Raises:
            FoldedMeshError: a map is not one to one.
            ValueError: an input is missing, is not finite or does not fit the grid, or the grid has an even number of nodes.
            RuntimeError: Newton's method did not converge.
        """
        x, y, *force = self._checked(inputs, grid)
        if not SMALLEST_RTOL <= rtol < 1:
            raise ValueError(f"rtol is {rtol}; give a number from {SMALLEST_RTOL:g}, which float64 can keep, to 1.")
        flows = np.empty((len(x), len(self.unknowns), *grid.shape))
        for i in range(len(x)):
            try:
                elements = TaylorHood(x[i], y[i], self.viscosity)
            except FoldedMeshError as error:
                raise FoldedMeshError(f"sample {i}: {error}") from None
            flows[i] = self._flow(elements, x[i], y[i], (force[0][i].ravel(), force[1][i].ravel()), rtol, i)
        device = inputs["x_map"].device
        return {name: torch.from_numpy(flows[:, c].copy()).to(device) for c, name in enumerate(self.unknowns)}

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"momentum_x", "momentum_y", "continuity"}, by derivatives in s and n.

        With J = x_s y_n - x_n y_s, d_x = (y_n d_s - y_s d_n) / J and d_y = (x_s d_n - x_n d_s) / J,

            lap f = D f - (D x) f_x - (D y) f_y,    J^2 D = (x_n^2 + y_n^2) d_ss - 2 (x_s x_n + y_s y_n) d_sn + (x_s^2 + y_s^2) d_nn,

        since x and y are harmonic.

        Args:
            a: "x_map", "y_map", and "force_x" and "force_y" where there is a force.
        """
        x, y = a["x_map"], a["y_map"]
        x_s, x_n, y_s, y_n = x.d("s"), x.d("n"), y.d("s"), y.d("n")
        jacobian = x_s * y_n - x_n * y_s

        def gradient(f: Derivatives) -> tuple[Tensor, Tensor]:
            f_s, f_n = f.d("s"), f.d("n")
            return (y_n * f_s - y_s * f_n) / jacobian, (x_s * f_n - x_n * f_s) / jacobian

        def second(f: Derivatives) -> Tensor:
            mixed = (x_s * x_n + y_s * y_n) * f.d("sn")
            return ((x_n**2 + y_n**2) * f.d("ss") - 2 * mixed + (x_s**2 + y_s**2) * f.d("nn")) / jacobian**2

        second_x, second_y = second(x), second(y)
        velocity = [u[name] for name in ("velocity_x", "velocity_y")]
        gradients = [gradient(component) for component in velocity]
        equations = {}
        for i, (component, (d_x, d_y), p_i) in enumerate(
            zip(velocity, gradients, gradient(u["pressure"]), strict=True)
        ):
            laplacian = second(component) - second_x * d_x - second_y * d_y
            name = f"force_{'xy'[i]}"
            f = a[name].value if name in a else 0.0
            advection = velocity[0].value * d_x + velocity[1].value * d_y
            equations[f"momentum_{'xy'[i]}"] = advection + p_i - self.viscosity * laplacian - f
        return equations | {"continuity": gradients[0][0] + gradients[1][1]}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A flow whose stream lines are the lines of the mesh, at points (..., 2) of (s, n), with the force that drives it:

            u = U(n) (1, c'(x)),   p = 8 nu inflow (length - x) / width^2,   U = 4 inflow n (1 - n),   c = height sin(pi s)^4,

        in the pipe x = length s, y = c(x) + width (n - 1/2). For height = 0 it is Poiseuille's, without force.
        """
        s, n = points.unbind(-1)
        k, sine, cosine = torch.pi / self.length, torch.sin(torch.pi * s), torch.cos(torch.pi * s)
        c = self.height * sine**4
        c1 = 4 * self.height * k * sine**3 * cosine
        c2 = 4 * self.height * k**2 * sine**2 * (3 - 4 * sine**2)
        c3 = 8 * self.height * k**3 * sine * cosine * (3 - 8 * sine**2)
        speed, shear = 4 * self.inflow * n * (1 - n), 4 * self.inflow * (1 - 2 * n) / self.width
        curvature = -8 * self.inflow / self.width**2
        nu, x = self.viscosity, self.length * s
        return {
            "x_map": x,
            "y_map": c + self.width * (n - 0.5),
            "force_x": nu * (shear * c2 - curvature * c1**2),
            "force_y": speed**2 * c2 - nu * (curvature * c1 * (1 + c1**2) - 3 * shear * c1 * c2 + speed * c3),
            "velocity_x": speed,
            "velocity_y": speed * c1,
            "pressure": -nu * curvature * (self.length - x),
        }

    def _flow(
        self, elements: TaylorHood, x: Array, y: Array, force: tuple[Array, Array], rtol: float, sample: int
    ) -> Array:
        """The fields (unknown, *grid) of one pipe."""
        n = elements.n_nodes
        wall_or_inlet = np.zeros(x.shape, dtype=bool)
        wall_or_inlet[0], wall_or_inlet[:, [0, -1]] = True, True
        given = np.concatenate([wall_or_inlet.ravel()] * 2 + [np.zeros(elements.n_pressures, dtype=bool)])
        inlet = np.zeros(x.shape)
        along = np.concatenate([[0.0], np.hypot(np.diff(x[0]), np.diff(y[0])).cumsum()])
        share = along / along[-1]
        inlet[0] = 4 * self.inflow * share * (1 - share)
        rest = np.concatenate([inlet.ravel(), np.zeros(n + elements.n_pressures)])
        equations = _SteadyFlow(elements, force, np.flatnonzero(~given), rest)
        state = equations.newton(rest, 0.0, rtol)  # linear: one step
        at_once = None if state is None else equations.newton(state, 1.0, rtol)
        for advection in CONTINUATION if at_once is None else ():
            state = None if state is None else equations.newton(state, advection, rtol)
        flow = at_once if at_once is not None else state
        if flow is None:
            raise RuntimeError(
                f"Newton's method did not converge for sample {sample} in {MOST_STEPS} steps, nor with the advection in shares; the flow may be "
                "unstable, or the grid too coarse for it: raise the viscosity or the number of nodes."
            )
        u, v, p = flow[:n], flow[n : 2 * n], flow[2 * n :]
        return np.stack([u.reshape(x.shape), v.reshape(x.shape), _between(p, x.shape)])

    def _checked(self, inputs: Mapping[str, Tensor], grid: Grid) -> list[Array]:
        """x_map, y_map, force_x, force_y as (n, *grid)"""
        self._check(grid)
        fields = []
        for name in (*self.inputs, "force_x", "force_y"):
            if name not in inputs and name in self.inputs:
                raise ValueError(f"the inputs are {sorted(inputs)} but PipeFlow needs {name!r} (n, *grid).")
            field = inputs.get(name, torch.zeros(1, *grid.shape)).detach().to("cpu", torch.float64)
            grid.check(field, name)
            if field.ndim != grid.dim + 1:
                raise ValueError(
                    f"{name} has shape {tuple(field.shape)}; expected (n, *grid), with the grid {grid.shape}."
                )
            if not bool(field.isfinite().all()):
                bad = int((~field.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(f"{name} holds NaN or infinity in sample {bad}; correct or leave out this sample.")
            fields.append(field)
        n = len(fields[0])
        for name, field in zip((*self.inputs, "force_x", "force_y"), fields, strict=True):
            if len(field) != n and not (name.startswith("force") and len(field) == 1):
                raise ValueError(f"{name} holds {len(field)} samples but x_map {n}; give one field a sample.")
        return [field.expand(n, *grid.shape).numpy() for field in fields]

    def _check(self, grid: Grid) -> None:
        square = grid.extent == ((0.0, 1.0), (0.0, 1.0)) if grid.dim == 2 else False
        if not square or grid.layout != ("nodes", "nodes") or grid.axes != self.coordinates:
            raise ValueError(
                f"PipeFlow lives on the nodes of the unit square of (s, n), which x_map and y_map map onto the pipe, but the grid is {grid}; "
                "use Grid((n, n), axes=('s', 'n'))."
            )


class _SteadyFlow:
    """The discrete equations of one flow, whose free unknowns Newton's method finds."""

    def __init__(self, elements: TaylorHood, force: tuple[Array, Array], free: NDArray[np.intp], rest: Array) -> None:
        self.elements, self.force, self.free = elements, force, free
        self.momentum = free < 2 * elements.n_nodes
        self.scale = np.ones(2)
        self.scale = self._sizes(self._residual(rest, 0.0))

    def newton(self, state: Array, advection: float, rtol: float) -> Array | None:
        """The state that meets rtol; None where the steps do not get there."""
        from scipy.sparse.linalg import splu

        n = self.elements.n_nodes
        for _ in range(MOST_STEPS):
            residual = self._residual(state, advection)
            sizes = self._sizes(residual)
            if sizes.max() <= rtol or not np.isfinite(sizes).all():
                break
            matrix = self.elements.jacobian(state[:n], state[n : 2 * n], advection=advection)
            # The pattern is symmetric, so its own fill is least; pivots leave the diagonal only where they must.
            factors = splu(
                matrix[self.free][:, self.free].tocsc(),
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.01,
                options={"SymmetricMode": True},
            )
            state = state.copy()
            state[self.free] -= factors.solve(residual)
        return state if self._sizes(self._residual(state, advection)).max() <= rtol else None

    def _residual(self, state: Array, advection: float) -> Array:
        n = self.elements.n_nodes
        u, v, p = state[:n], state[n : 2 * n], state[2 * n :]
        return self.elements.residual(u, v, p, self.force, advection=advection)[self.free]

    def _sizes(self, residual: Array) -> Array:
        sizes = np.array([np.linalg.norm(residual[self.momentum]), np.linalg.norm(residual[~self.momentum])])
        return np.asarray(sizes / self.scale)


def _cubics(heights: Array, slopes: Array, s: Array) -> Array:
    """The cubic between each two of evenly spaced points on [0, 1] with these heights and slopes there, (n, points), at s: (n, len(s))"""
    pieces = heights.shape[1] - 1
    k = np.minimum((s * pieces).astype(int), pieces - 1)
    t = s * pieces - k
    left, right, d_left, d_right = heights[:, k], heights[:, k + 1], slopes[:, k] / pieces, slopes[:, k + 1] / pieces
    bend = t**2 * (3 - 2 * t)
    return np.asarray(left * (1 - bend) + right * bend + d_left * t * (1 - t) ** 2 - d_right * t**2 * (1 - t))


def _between(corners: Array, shape: tuple[int, ...]) -> Array:
    """Values at the corners of elements, bilinear at the nodes between: (*shape)"""
    field: Any = corners.reshape(shape[0] // 2 + 1, shape[1] // 2 + 1)
    for _ in range(2):
        filled = np.empty((2 * field.shape[0] - 1, field.shape[1]))
        filled[::2], filled[1::2] = field, (field[1:] + field[:-1]) / 2
        field = filled.T
    return np.asarray(field)
