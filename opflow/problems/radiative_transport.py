"""Radiative transport in a slab: the scattering of a medium from the light that comes back and through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.pde.measurement_noise import add_noise
from opflow.pde.random_field import DEFAULT_CUTOFF, CosineField, sample_generators
from opflow.problems.constants import check_finite, check_positive

MEDIA = ("box", "smooth")
NUMBERS_AT_ONCE = 2**23  # of the transmissions between faces that `observe` holds: 64 MiB


@dataclass(frozen=True)
class RadiativeTransport:
    """v u_x + absorption u = (a / knudsen) (<u> - u) in the slab 0 < x < 1, <u> = 1/2 int_-1^1 u dv   (Molinaro et al. 2023, NIO, 4.4).

    u(x, v) is the intensity of light whose direction has the cosine v in [-1, 1] with the x axis, a(x) > 0 the scattering; all is
    dimensionless. Light enters at x = 0 with v > 0 and at x = 1 with v < 0. Each of L = 2 n_inflow experiments sends
    exp(-sharpness (v - v_l)^2) in at one end, nothing at the other, and measures what leaves at both ends in 2 n_sensors directions.
    v_l and the directions of the sensors are Gauss-Legendre nodes of (0, 1) and their mirror images; both come in increasing v.

    - medium "box":    a = background (1 + c) within a box and background elsewhere, c uniform in `contrast`, its centre uniform in (0, 1)
      and its width in `width`. A cell's value is its mean.
    - medium "smooth": a = background exp(log_scale g / std(g)), g ~ N(0, (-Laplacian + tau^2)^(-alpha)), see `CosineField`.

    Without absorption, measurements depend on a through its integral alone: the equation is v u_s = <u> - u in s = int a dx / knudsen.
    Where in the slab it scatters can then not be seen from outside, whatever the method.

    Attributes:
        absorption: >= 0.
        knudsen: the mean free path over the thickness of the slab, for a = 1; > 0.
        n_angles: Gauss-Legendre nodes of (0, 1), and as many of (-1, 0), for the mean over directions. 32 resolve the
            default inflow, 16 leave an error of 0.4 %.

    >>> problem, grid = RadiativeTransport(), Grid((70,), layout="cells")
    >>> problem.observe(problem.sample(2, grid))["measurements"].shape
    torch.Size([2, 32, 1, 32])
    """

    medium: str = "box"
    absorption: float = 1.0
    knudsen: float = 1.0
    background: float = 1.0
    contrast: tuple[float, float] = (0.5, 1.0)
    width: tuple[float, float] = (0.1, 0.8)
    n_inflow: int = 16
    n_sensors: int = 16
    n_angles: int = 32
    sharpness: float = 200.0
    log_scale: float = 0.3
    alpha: float = 2.0
    tau: float = 3.0
    cutoff: int = DEFAULT_CUTOFF

    coordinates: ClassVar[tuple[str, ...]] = ("x",)
    inputs: ClassVar[tuple[str, ...]] = ("scattering",)
    unknowns: ClassVar[tuple[str, ...]] = ("measurements",)

    def __post_init__(self) -> None:
        check_positive(knudsen=self.knudsen, background=self.background, sharpness=self.sharpness)
        check_finite(absorption=self.absorption, log_scale=self.log_scale)
        if self.medium not in MEDIA:
            raise ValueError(f"medium is {self.medium!r}; choose one of {', '.join(MEDIA)}.")
        if self.absorption < 0:
            raise ValueError(f"absorption is {self.absorption}; it may be zero but not negative.")
        for name, value in (("contrast", self.contrast), ("width", self.width)):
            if len(value) != 2 or not (0 <= value[0] <= value[1] < float("inf")):
                raise ValueError(f"{name} is {value}; two numbers in increasing order from 0 on are expected.")
        for name in ("n_inflow", "n_sensors", "n_angles"):
            _check_count(name, getattr(self, name))

    @property
    def descriptors(self) -> Tensor:
        """What says which experiment l is, (L, 2): the cosine v_l, and the end of the slab where its light enters, 0 or 1."""
        v = self._inflow()
        return torch.stack([v, (v < 0).double()], dim=1)

    def sample(
        self, indices: int | Sequence[int], grid: Grid, *, seed: int = 0, split: str = "train"
    ) -> dict[str, Tensor]:
        """Random media {"scattering": (n, cells)}, float64; sample i is one function on every grid, a cell's value its mean.

        The smooth medium is taken at the centres of cells.
        """
        self._check(grid)
        generators = sample_generators(type(self).__name__, indices, seed, split)
        if self.medium == "smooth":
            law = CosineField(alpha=self.alpha, tau=self.tau, cutoff=self.cutoff)
            g = law.evaluate(law.coefficients(generators, 1), grid)
            return {"scattering": self.background * torch.exp(self.log_scale * g / law.standard_deviation(1))}
        draws = [[g.uniform(*self.contrast), g.uniform(0.0, 1.0), g.uniform(*self.width)] for g in generators]
        c, centre, width = torch.tensor(draws, dtype=torch.float64).view(-1, 3).T[..., None]
        faces = torch.linspace(0, 1, grid.shape[0] + 1, dtype=torch.float64)
        # int_0^x of the box's indicator; its differences are the share of each cell within.
        inside = (faces - (centre - width / 2)).clamp(min=0).minimum(width)
        return {"scattering": self.background * (1 + c * inside.diff(dim=1) * grid.shape[0])}

    def observe(
        self,
        inputs: Mapping[str, Tensor],
        sensors: int | None = None,
        *,
        grid: Grid | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """What leaves the slab: {"measurements": (n, L, 1, 2 sensors), "mask": (n, L), all True}, float64.

        Args:
            inputs: "scattering" (n, cells), positive.
            sensors: directions at each end; default `n_sensors`.
            grid: cells of (0, 1); default as many as the medium has.
            noise: deviation of additive Gaussian noise, as a share of the sample's root mean square.
            seed: of the noise.

        Raises:
            ValueError: a medium that is missing, not positive, not finite or not on the grid; an unknown number of sensors.
        """
        if "scattering" not in inputs:
            raise ValueError(
                f"the inputs are {sorted(inputs)} but RadiativeTransport needs 'scattering' (n, cells), the medium."
            )
        a = inputs["scattering"].double()
        forward = self.forward(grid or Grid((a.shape[-1],), layout="cells"), sensors)
        forward.check(a)
        at_once = max(1, NUMBERS_AT_ONCE // ((self.n_angles + forward.n_sensors) * a.shape[-1] ** 2))
        with torch.no_grad():
            measurements = torch.cat([forward(part) for part in a.split(at_once)])
        measurements = add_noise(measurements, noise, torch.Generator().manual_seed(seed))
        return {"measurements": measurements, "mask": torch.ones(measurements.shape[:2], dtype=torch.bool)}

    def forward(self, grid: Grid, sensors: int | None = None) -> AlbedoMap:
        """The map of media (n, cells) to measurements (n, L, 1, 2 sensors), differentiable; see `AlbedoMap`."""
        self._check(grid)
        n_sensors = self.n_sensors if sensors is None else _check_count("sensors", sensors)
        return AlbedoMap(self, grid, n_sensors)

    def _inflow(self) -> Tensor:
        return _mirrored(_half_range(self.n_inflow)[0])

    def _check(self, grid: Grid) -> None:
        if grid.dim != 1 or grid.layout != ("cells",) or grid.extent != ((0.0, 1.0),):
            raise ValueError(
                f'RadiativeTransport lives on cells of the slab (0, 1), but the grid is {grid}; use Grid((n,), layout="cells").'
            )


class AlbedoMap:
    """F(a): media (n, cells) to measurements (n, L, 1, 2 n_sensors), by discrete ordinates and diamond differences.

    In cell i, with sigma = absorption + a / knudsen, in the direction v > 0 of its faces i and i + 1,

        v (u_(i+1) - u_i) / h + sigma_i (u_(i+1) + u_i) / 2 = q_i,    q_i = a_i phi_i / knudsen,    phi = sum_m w_m (mean of u_m in i),

    and the mirror image for v < 0: second order in h where a is smooth, conservative, and right where free paths are far below h (Larsen,
    Morel and Miller 1987). The means phi (cells) of all experiments are the solution of one dense system a medium, of the order of its
    cells. Directions of sensors are swept with the phi that is found, whether or not they are nodes of the mean.
    Where a cell is thicker than 2 v / sigma the intensity of direction v alternates from face to face.
    """

    def __init__(self, problem: RadiativeTransport, grid: Grid, n_sensors: int) -> None:
        self.absorption, self.knudsen = problem.absorption, problem.knudsen
        self.grid, self.n_sensors = grid, n_sensors
        angles, weights = _half_range(problem.n_angles)
        seen, _ = _half_range(n_sensors)
        self._directions, self._weights = torch.cat([angles, seen]), weights / 2
        centres, _ = _half_range(problem.n_inflow)
        # (directions, n_inflow): what enters at x = 0. Experiments there come second, v being negative at x = 1.
        self._inflow = torch.exp(-problem.sharpness * (self._directions[:, None] - centres) ** 2)

    def __call__(self, a: Tensor) -> Tensor:
        """a (n, cells), float64, positive -> (n, L, 1, 2 n_sensors)"""
        self.check(a)
        slab, m = _Slab(self, a), len(self._weights)
        phi, rightward, leftward = slab.mean_intensity(), slab.rightward[:, m:], slab.leftward[:, m:]
        q = slab.scattering[..., None] * phi
        to_right = torch.einsum("nsi,nil->nls", rightward, q) + slab.straight("right")
        to_left = torch.einsum("nsi,nil->nls", leftward, q) + slab.straight("left")
        return torch.cat([to_left.flip(2), to_right], dim=2)[:, :, None]

    def linearise(self, a: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """One medium a (cells) and directions (k, cells): F(a) (L, 1, s) and the derivatives of F along them (L, 1, s, k).

        By the adjoint of the discrete equations, with one more solution a sensor and none a direction: in cell i, with u* of sensor s
        and u of experiment l,

            knudsen dF_ls / da_i = phi*_i phi_i - sum_m w_m u*_mi u_mi.
        """
        if directions.ndim != 2:
            raise ValueError(f"directions have shape {tuple(directions.shape)}; (k, cells) is expected.")
        self.check(a[None])
        self.grid.check(directions, "directions")
        with torch.no_grad():
            slab, w = _Slab(self, a[None]), self._weights
            m, phi = len(w), slab.mean_intensity()
            u_right, u_left = (part[0] for part in slab.intensities(slab.scattering[..., None] * phi))
            phi = phi[0]
            sensor = torch.cat([slab.leftward[0, m:].flip(0), slab.rightward[0, m:]])  # (sensors, cells)
            identity = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
            K, G = slab.K[0], slab.G[0, :m]
            adjoint = torch.linalg.solve(identity - slab.scattering[0][:, None] * K, (slab.scattering[0] * sensor).T)
            phi_adjoint = sensor + (K @ adjoint).T  # (sensors, cells)
            u_sensor = torch.cat([u_left[m:].flip(0), u_right[m:]])  # (sensors, cells, L)
            jacobian = torch.einsum("si,il->lsi", phi_adjoint, phi) - torch.einsum("si,sil->lsi", sensor, u_sensor)
            for u, response in ((u_right, G.mT), (u_left, G)):
                jacobian -= torch.einsum("mis,mil->lsi", response @ adjoint, w[:, None, None] * u[:m])
            derivatives = torch.einsum("lsi,ki->lsk", jacobian / self.knudsen, directions.to(a))
        return self(a[None])[0].detach(), derivatives[:, None]

    def check(self, a: Tensor) -> None:
        """Raise unless a is (n, cells), float64, positive and finite."""
        self.grid.check(a, "scattering")
        if a.ndim != 2 or a.dtype != torch.float64:
            raise ValueError(
                f"scattering has shape {tuple(a.shape)} and is {a.dtype}; (n, cells) in float64 is expected, one medium a row."
            )
        values = a.detach()
        good = (values.isfinite() & (values > 0)).all(1)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0])
            raise ValueError(
                f"scattering of sample {bad} is not positive and finite everywhere and not NaN: its smallest value is "
                f"{float(values[bad].min()):g}; correct or leave out this medium."
            )


class _Slab:
    """The discrete equations of some media.

    Attributes:
        scattering: a / knudsen, (n, cells).
        G: (n, directions, cells, cells): the mean of u in cell i from a unit source in cell j, for v > 0; for v < 0 it is the transpose.
        K: (n, cells, cells): phi from an isotropic source, sum_m w_m (G_m + G_m^T), symmetric.
        rightward, leftward: (n, directions, cells): what leaves at x = 1 and x = 0 from a unit source in cell j.
    """

    def __init__(self, albedo: AlbedoMap, a: Tensor) -> None:
        v, self._w, self._inflow = albedo._directions, albedo._weights, albedo._inflow
        h, m = albedo.grid.spacing[0], len(self._w)
        self.scattering = a / albedo.knudsen
        half = (albedo.absorption + self.scattering)[:, None] * (h / 2) / v[:, None]  # (n, directions, cells)
        mean = 1 / (1 + half)  # of the two faces, per unit that enters
        passed = _transmissions((1 - half) * mean)
        source = mean * (h / v)[:, None]  # at the face where it leaves, per unit source
        between = mean[..., :, None] * passed[..., :-1, 1:] * source[..., None, :]
        self.G = between + torch.diag_embed(source / 2)
        onward = torch.einsum("m,nmij->nij", self._w, self.G[:, :m])
        self.K = onward + onward.mT
        self.rightward, self.leftward = passed[..., -1, 1:] * source, passed[..., :-1, 0] * source
        # From a unit that enters: the mean in cell i, and what leaves at the other end.
        self._from_left, self._from_right = passed[..., :-1, 0] * mean, passed[..., -1, 1:] * mean
        self._through = passed[..., -1, 0]

    def mean_intensity(self) -> Tensor:
        """phi (n, cells, L) of all experiments."""
        enters = self._w[:, None] * self._inflow[: len(self._w)]
        from_left = torch.einsum("nmi,ml->nil", self._from_left[:, : len(enters)], enters)
        from_right = torch.einsum("nmi,ml->nil", self._from_right[:, : len(enters)], enters.flip(1))
        K = self.K
        identity = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
        return torch.linalg.solve(identity - K * self.scattering[:, None], torch.cat([from_right, from_left], dim=2))

    def intensities(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """q (n, cells, L) -> the means of u in cells for v > 0 and for v < 0, each (n, directions, cells, L)"""
        left = self._from_left[..., None] * self._inflow[:, None]
        right = self._from_right[..., None] * self._inflow.flip(1)[:, None]
        rightward = self.G @ q[:, None] + torch.cat([torch.zeros_like(left), left], dim=3)
        leftward = self.G.mT @ q[:, None] + torch.cat([right, torch.zeros_like(right)], dim=3)
        return rightward, leftward

    def straight(self, end: str) -> Tensor:
        """What leaves at an end without having been scattered, (n, L, sensors)"""
        m = len(self._w)
        seen = self._through[:, None, m:] * self._inflow[m:].T  # (n, n_inflow, sensors)
        none = torch.zeros_like(seen)
        return torch.cat([none, seen] if end == "right" else [seen.flip(1), none], dim=1)


def _transmissions(kept: Tensor) -> Tensor:
    """(n, directions, cells) -> (n, directions, faces i, faces j): the product of `kept` over the cells from face j to face i >= j.

    Zero for j > i. A product along the axis, and not a sum of logarithms: `kept` may be zero or negative.
    """
    faces = torch.eye(kept.shape[-1] + 1, dtype=kept.dtype, device=kept.device)
    rows = [faces[0].expand(*kept.shape[:-1], -1)]
    for i in range(kept.shape[-1]):
        rows.append(rows[-1] * kept[..., i : i + 1] + faces[i + 1])
    return torch.stack(rows, dim=-2)


@lru_cache(maxsize=16)
def _half_range(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights of (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _mirrored(v: Tensor) -> Tensor:
    return torch.cat([-v.flip(0), v])


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a positive whole number, for each end of the slab, is expected.")
    return value
