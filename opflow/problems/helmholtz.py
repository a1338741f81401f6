"""The Helmholtz equation: time-harmonic waves in a medium."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.pde.spectral_element import DEGREE, SPLINE_DEGREE, ElementSquare
from opflow.problems.constants import check_finite, check_positive
from opflow.solvers.shift_invert import ShiftInvert
from opflow.typing import Derivatives

BOUNDARIES = ("neumann", "dirichlet")
FEWEST_ELEMENTS, MOST_ELEMENTS = 4, 128  # per side; a factorisation of the most takes gigabytes
RADIANS_TO_SOLVE = 4.0  # of the shortest wave, an element: 12 points a wavelength
RADIANS_TO_ADMIT = 6.0  # an eigenvalue converges with twice the order of its function
ADMISSION_GRID = Grid((129, 129))  # where `sample` looks for resonances, whatever grid it is asked for
MOST_REDRAWS = 100

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Helmholtz:
    """-lap u - (omega / c)^2 u = f on the unit square   (de Hoop et al. 2022, "The cost-accuracy trade-off in operator learning").

    c is the wave speed, u the field, omega the angular frequency; all dimensionless. The operator to learn maps c to u. The media are
    c = background + spread tanh(g), g ~ N(0, (-Laplacian + tau^2)^(-alpha)), see `CosineField`.

    - boundary "neumann": du/dn = boundary_value on the part of the top side y = 1 with x in `flux_interval`, and zero elsewhere. The
      default is that of the published generator; (0, 1) is the whole side.
    - boundary "dirichlet": u = boundary_value.

    Both are cavities: the operator is real and indefinite, and at its resonances there is no solution. What has one too near is refused
    by `solve` and drawn again by `sample`.

    Attributes:
        omega: > 0.
        background: the speed where g = 0.
        spread: the speeds stay within background - spread and background + spread; 0 <= spread < background.
        forcing: f, one number.
        resonance_tolerance: a medium is refused if a resonance omega_j has |omega_j^2 / omega^2 - 1| below it: a relative
            change of that size in omega^2 or c^2 makes the field infinite. 0 refuses nothing.
        cutoff: cosine modes per axis of g; the published generator takes the 100 smoothest.
        mean_mode: keep the mean of g, which the published generator does not (see `CosineField`). Without it g has a deviation of
            about 0.1, so that c varies by half a percent and omega^2 / c^2 by as much as its eigenvalues are apart.

    >>> problem, grid = Helmholtz(omega=200.0), Grid((65, 65))
    >>> problem.solve(problem.sample(2, grid), grid)["field"].shape
    torch.Size([2, 65, 65])
    """

    omega: float | Tensor = 1e3
    background: float = 20.0
    spread: float = 1.0
    boundary: str = "neumann"
    boundary_value: float = 1.0
    flux_interval: tuple[float, float] = (0.35, 0.65)
    forcing: float = 0.0
    resonance_tolerance: float = 1e-4
    alpha: float = 2.0
    tau: float = 3.0
    cutoff: int = DEFAULT_CUTOFF
    mean_mode: bool = False

    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("wave_speed",)
    unknowns: ClassVar[tuple[str, ...]] = ("field",)

    def __post_init__(self) -> None:
        check_positive(omega=self.omega, background=self.background)
        check_finite(boundary_value=self.boundary_value, forcing=self.forcing)
        if not 0 <= self.spread < self.background:
            raise ValueError(
                f"spread is {self.spread} and background {self.background}; a spread from 0 to below the background is "
                "expected, so that wave speeds are positive."
            )
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {self.boundary!r}; choose one of {', '.join(BOUNDARIES)}.")
        interval = tuple(self.flux_interval)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"flux_interval is {self.flux_interval}; two numbers in increasing order within [0, 1] are expected."
            )
        if not 0 <= self.resonance_tolerance < 1:
            raise ValueError(
                f"resonance_tolerance is {self.resonance_tolerance}; a number from 0, which refuses nothing, to below 1 is expected."
            )
        self._law()

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random media {"wave_speed": (n, *grid)}, float64 on the CPU; sample i is one function on every grid.

        A medium with a resonance nearer than twice `resonance_tolerance` is drawn again from its own stream. That is decided on a grid of
        its own; the factor is the room for the grid on which it is solved.

        Raises:
            RuntimeError: the tolerance all but excludes the law.
        """
        self._check(grid)
        law = self._law()
        generators = sample_generators(type(self).__name__, indices, seed, split)
        coefficients = law.coefficients(generators, grid.dim)
        rejected = self._rejected(law, coefficients)
        for _ in range(MOST_REDRAWS):
            if len(rejected) == 0:
                break
            coefficients[rejected] = law.coefficients([generators[i] for i in rejected], grid.dim)
            rejected = rejected[self._rejected(law, coefficients[rejected])]
        else:
            raise RuntimeError(
                f"{len(rejected)} media were drawn {MOST_REDRAWS} times without one that is far enough from resonance; "
                f"resonance_tolerance={self.resonance_tolerance} all but excludes the law at omega={float(self.omega)}."
            )
        return {"wave_speed": self._speed(law.evaluate(coefficients, grid))}

    def solve(self, inputs: Mapping[str, Tensor], grid: Grid, *, rtol: float = 1e-10) -> dict[str, Tensor]:
        """The field {"field": (n, *grid)}, float64 on the CPU: spectral elements of degree 8, one sparse factorisation a medium.

        There are at least as many points as grid nodes and at least 12 a wavelength, so that a coarse grid costs no accuracy beyond
        what it does not say about the medium: between its nodes log c is the spline of degree 5 through them, and f likewise. The
        order in the spacing is 6.

        Args:
            inputs: "wave_speed" (n or 1, *grid), positive; optionally "forcing" (n or 1, *grid) in place of the constant, and "boundary"
                (n or 1, *grid), of which the values on the boundary are read: u for "dirichlet"; for "neumann" du/dn on the top side y = 1,
                zero on the others. One medium with many boundary fields is factorised once.
            rtol: bounds the recomputed residual of the linear system.

        Raises:
            ValueError: an input is missing, does not fit the grid or is not finite; a speed is not positive; or a medium
                resonates.
            RuntimeError: rounding does not let the residual reach rtol.
        """
        self._check(grid)
        if not 0 < rtol < 1:
            raise ValueError(f"rtol is {rtol}; a number between 0 and 1 is expected.")
        fields, n = self._checked(inputs, grid)
        speeds, u = fields.pop("wave_speed"), np.empty((n, *grid.shape))
        for medium, c in enumerate(speeds):
            of_medium = slice(None) if len(speeds) == 1 else slice(medium, medium + 1)
            cavity = self._cavity(grid, c, RADIANS_TO_SOLVE, at_least=grid.shape)
            system = cavity.system(c, float(self.omega))
            self._refuse_resonance(system, medium)
            data = {name: field if len(field) == 1 else field[of_medium] for name, field in fields.items()}
            u[of_medium] = cavity.solve(system, *self._boundary_and_load(data, cavity.square), rtol=rtol)
        return {"field": torch.from_numpy(u)}

    def residual(self, u: Derivatives, a: Mapping[str, Derivatives]) -> dict[str, Tensor]:
        """{"helmholtz": -lap u - (omega / c)^2 u - f}"""
        f = a["forcing"].value if "forcing" in a else self.forcing
        squared = (self.omega / a["wave_speed"].value) ** 2
        return {"helmholtz": -u["field"].laplacian() - squared * u["field"].value - f}

    def exact(self, points: Tensor) -> dict[str, Tensor]:
        """A manufactured solution at points (..., 2): {"wave_speed", "forcing", "boundary", "field"}, each (...).

        u = cos(m pi x) cos(l y) with (m pi)^2 + l^2 = (omega / background)^2 where that is possible, a standing wave of the background, in
        the medium c = background + (spread / 2) sin(2 x + y), so that f = ((m pi)^2 + l^2 - (omega / c)^2) u. It has no flux through
        three sides; "boundary" is u, or du/dy.
        """
        x, y = points.unbind(-1)
        wavenumber = float(self.omega) / self.background
        kx = math.pi * max(1, round(wavenumber / (math.pi * math.sqrt(2))))
        ky = math.sqrt(max(wavenumber**2 - kx**2, 1.0))
        c = self.background + self.spread / 2 * torch.sin(2 * x + y)
        u = torch.cos(kx * x) * torch.cos(ky * y)
        slope = -ky * torch.cos(kx * x) * torch.sin(ky * y)
        return {
            "wave_speed": c,
            "forcing": (kx**2 + ky**2 - (float(self.omega) / c) ** 2) * u,
            "boundary": u if self.boundary == "dirichlet" else slope,
            "field": u,
        }

    def _law(self) -> CosineField:
        return CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff, mean_mode=self.mean_mode)

    def _speed(self, g: Tensor) -> Tensor:
        return self.background + self.spread * torch.tanh(g)

    def _cavity(self, grid: Grid, c: Array, radians: float, *, at_least: tuple[int, ...] = (0, 0)) -> _Cavity:
        """Elements no wider than `radians` of the shortest wave, with no fewer nodes than `at_least`."""
        for_wave = math.ceil(float(self.omega) / c.min() / radians)
        if for_wave > MOST_ELEMENTS:
            raise ValueError(
                f"omega is {float(self.omega):g} and the lowest wave speed {c.min():g}, which makes "
                f"{float(self.omega) / c.min() / (2 * math.pi):.0f} waves along a side of the square; at most "
                f"{MOST_ELEMENTS * radians / (2 * math.pi):.0f} are solved. Lower omega, or check the units of the speed."
            )
        n_x, n_y = (max(for_wave, FEWEST_ELEMENTS, math.ceil((n - 1) / DEGREE)) for n in at_least)
        return _cavity(grid, (n_x, n_y), self.boundary == "dirichlet")

    def _rejected(self, law: CosineField, coefficients: Tensor) -> NDArray[np.intp]:
        """The numbers of the media that have a resonance nearer than twice the tolerance."""
        if self.resonance_tolerance == 0:
            return np.empty(0, dtype=np.intp)
        distance = np.empty(len(coefficients))
        for i in range(len(coefficients)):
            c = self._speed(law.evaluate(coefficients[i : i + 1], ADMISSION_GRID))[0].numpy()
            system = self._cavity(ADMISSION_GRID, c, RADIANS_TO_ADMIT).system(c, float(self.omega))
            distance[i] = abs(system.nearest_eigenvalue() - 1)
        return np.flatnonzero(distance < 2 * self.resonance_tolerance)

    def _refuse_resonance(self, system: ShiftInvert, sample: int) -> None:
        if self.resonance_tolerance == 0:
            return
        nearest = system.nearest_eigenvalue()
        if abs(nearest - 1) < self.resonance_tolerance:
            raise ValueError(
                f"wave_speed of sample {sample} resonates at omega = {float(self.omega) * math.sqrt(nearest):.10g}, and omega is "
                f"{float(self.omega):.10g}: their squares differ by {abs(nearest - 1):.1e}, less than resonance_tolerance="
                f"{self.resonance_tolerance:g}, so that the field would be that of rounding and discretisation. Choose another omega or "
                "another medium, or a smaller resonance_tolerance."
            )

    def _boundary_and_load(self, data: Mapping[str, Array], square: ElementSquare) -> tuple[Array, Array]:
        """u on a Dirichlet boundary, zero elsewhere, and the integrals of forcing and flux, each (n or 1, *square.shape)."""
        load = square.mass * (
            square.interpolate(data["forcing"]) if "forcing" in data else np.full((1, 1, 1), self.forcing)
        )
        given = square.interpolate(data["boundary"]) if "boundary" in data else None
        if self.boundary == "dirichlet":
            return np.where(square.boundary, self.boundary_value if given is None else given, 0.0), load
        flux = np.zeros((1 if given is None else len(given), *square.shape))
        if given is None:
            flux[..., -1] = self.boundary_value * square.x.integrals(*self.flux_interval)
        else:
            flux[..., -1] = square.x.mass * given[..., -1]
        return np.zeros((1, *square.shape)), load + flux

    def _checked(self, inputs: Mapping[str, Tensor], grid: Grid) -> tuple[dict[str, Array], int]:
        """The inputs as arrays, and the number of samples."""
        if "wave_speed" not in inputs:
            raise ValueError(f"the inputs are {sorted(inputs)} but Helmholtz needs 'wave_speed' (n, *grid).")
        fields, n = {}, 1
        for name in ("wave_speed", "forcing", "boundary"):
            if name not in inputs:
                continue
            field = inputs[name].detach().to("cpu", torch.float64)
            grid.check(field, name)
            if field.ndim != 3:
                raise ValueError(f"{name} has shape {tuple(field.shape)}; expected (n, *grid), one field a sample.")
            if not bool(field.isfinite().all()):
                bad = int((~field.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(f"{name} holds NaN or infinity in sample {bad}; correct or leave out this sample.")
            if len(field) != 1 and n not in (1, len(field)):
                raise ValueError(
                    f"{name} has {len(field)} samples where another input has {n}; give each n, or 1 for all."
                )
            n = n if len(field) == 1 else len(field)
            fields[name] = field.numpy()
        slowest = fields["wave_speed"].reshape(-1, math.prod(grid.shape)).min(axis=1)
        if not (slowest > 0).all():
            bad = int(np.flatnonzero(slowest <= 0)[0])
            raise ValueError(f"wave_speed of sample {bad} falls to {slowest[bad]:g}; it must be positive everywhere.")
        return fields, n

    def _check(self, grid: Grid) -> None:
        square = grid.dim == 2 and grid.layout == ("nodes", "nodes") and grid.extent == ((0.0, 1.0), (0.0, 1.0))
        if not square or min(grid.shape) <= SPLINE_DEGREE:
            raise ValueError(
                f"Helmholtz lives on the nodes of the unit square, at least {SPLINE_DEGREE + 1} a side, but the grid is {grid}; "
                "use Grid((n, n))."
            )


class _Cavity:
    """The equation on spectral elements, all but its medium and its data.

        int grad u . grad v - (omega / c)^2 u v = int f v + int_boundary (du/dn) v

    for every v; where u is `fixed` on the boundary, for those that vanish there.
    """

    def __init__(self, square: ElementSquare, *, fixed: bool) -> None:
        self.square = square
        self._free = np.flatnonzero(~square.boundary) if fixed else np.arange(square.mass.size)
        self._stiffness = square.stiffness[self._free][:, self._free]

    def system(self, c: Array, omega: float) -> ShiftInvert:
        """The factorised system of a medium (*grid); log c is what is interpolated, so that c stays positive."""
        squared = (omega / np.exp(self.square.interpolate(np.log(c)))) ** 2
        return ShiftInvert(self._stiffness, (self.square.mass * squared).ravel()[self._free])

    def solve(self, system: ShiftInvert, boundary: Array, load: Array, *, rtol: float) -> Array:
        """u (n, *grid) from its values on a fixed boundary, zero elsewhere, and the load, each (n or 1, *square.shape)."""
        boundary, load = np.broadcast_arrays(boundary, load)
        u = boundary.reshape(len(boundary), -1).T.copy()
        # The mass is diagonal and couples no two nodes, so that the stiffness alone takes the boundary to the other side.
        right = load.reshape(len(load), -1).T - self.square.stiffness @ u
        u[self._free] = system.solve(right[self._free], rtol=rtol)
        return self.square.evaluate(u.T.reshape(load.shape))


@lru_cache(maxsize=4)
def _cavity(grid: Grid, n_elements: tuple[int, int], fixed: bool) -> _Cavity:
    points = grid.coordinates(0).numpy(), grid.coordinates(1).numpy()
    return _Cavity(ElementSquare(n_elements, points), fixed=fixed)
