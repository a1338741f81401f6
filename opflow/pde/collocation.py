"""Collocation points that stay the same until they are drawn again, where the residual is large."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.batch import Batch
from opflow.pde.geometry.domain import Geometry, Seed, Where
from opflow.pde.geometry.space_time import SpaceTime
from opflow.typing import check_sizes

AnyBatch = Batch | Mapping[str, Batch]
ResidualFunction = Callable[[Any], Tensor]
INTERIOR, BOUNDARY, INITIAL = "interior", "boundary", "initial"


def boundary_batch(
    geometry: Geometry, n: int, *, seed: Seed = 0, where: Where | None = None, dtype: torch.dtype = torch.float64
) -> Batch:
    """n points on the boundary as a `Batch` (coords, parameters["normal"]), each (n, dim); see `Geometry.boundary`.

    >>> from opflow.pde.geometry.primitives import Interval
    >>> boundary_batch(Interval(0, 1), 2).parameters["normal"].flatten().sort().values.tolist()
    [-1.0, 1.0]
    """
    points, normals = geometry.boundary(n, seed=seed, where=where, dtype=dtype)
    return Batch(coords=points, parameters={"normal": normals})


def initial_batch(geometry: Geometry, n: int, *, seed: Seed = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """n points at the beginning of a space-time geometry as a `Batch`.

    Raises:
        TypeError: the geometry has no time.

    >>> from opflow.pde.geometry.primitives import Interval
    >>> initial_batch(SpaceTime((0, 1), Interval(-1, 1)), 8).coords.shape
    torch.Size([8, 2])
    """
    if not isinstance(geometry, SpaceTime):
        raise TypeError(
            f"{geometry!r} has no time, so it has no initial points; give SpaceTime((0, 1), {geometry!r}) for example."
        )
    return Batch(coords=geometry.initial(n, seed=seed, dtype=dtype))


class Collocation:
    """The points of a physics-informed loss: an iterable that yields the same batch until it is resampled.

    One pass yields the batch `steps` times: a `Batch` if there are interior points only, otherwise a dict with "interior",
    "boundary" (with normals), "initial" and what `others` holds. Between two calls of `resample` every tensor is the same
    object, so that a quasi-Newton method meets a fixed objective and layers may keep what they computed at these points.

        for record in fit(model, loss, points, optimizer, epochs=40):
            points.resample(lambda batch: loss.point_sizes(model, batch))

    Args:
        geometry: where; a `SpaceTime` for an evolution.
        n: interior points.
        boundary: points on the (lateral) boundary.
        initial: points at the beginning of a `SpaceTime`.
        others: further batches by name, observations for example; they stay as they are. Their coords must lie in the geometry.
        steps: batches in a pass.
        seed: of all points; the d-th drawing depends on (seed, d), and with a residual on the residual.
        pool: `resample` chooses n of pool * n candidates.
        exponent, constant: k and c of `resample`.
        importance: give the interior batch weights that undo the change of measure.

    Raises:
        ValueError: a number of points below 1, points outside the geometry, a name that is taken twice.

    >>> from opflow.pde.geometry.primitives import Interval
    >>> points = Collocation(SpaceTime((0, 1), Interval(-1, 1)), 100, boundary=20, initial=10)
    >>> {name: tuple(batch.coords.shape) for name, batch in next(iter(points)).items()}
    {'interior': (100, 2), 'boundary': (20, 2), 'initial': (10, 2)}
    """

    def __init__(
        self,
        geometry: Geometry,
        n: int,
        *,
        boundary: int = 0,
        initial: int = 0,
        others: Mapping[str, Batch] | None = None,
        steps: int = 1,
        seed: int = 0,
        pool: int = 5,
        exponent: float = 1.0,
        constant: float = 1.0,
        importance: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(geometry, Geometry):
            raise TypeError(
                f"geometry is {type(geometry).__name__}; give one of opflow.pde.geometry, a Box for example."
            )
        check_sizes(n=n, steps=steps, pool=pool)
        for name, number in ((BOUNDARY, boundary), (INITIAL, initial)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ValueError(f"{name} is {number!r} points; give a whole number, 0 for none.")
        if not (exponent >= 0 and constant >= 0 and exponent + constant > 0):
            raise ValueError(
                f"exponent is {exponent} and constant {constant}; neither may be negative, and one must be positive."
            )
        self.geometry, self.n, self.steps, self.seed = geometry, n, steps, seed
        self.n_boundary, self.n_initial = boundary, initial
        self.pool, self.exponent, self.constant, self.importance = pool, float(exponent), float(constant), importance
        self.dtype, self.device = dtype, device
        self.others = {name: self._admitted(name, batch) for name, batch in (others or {}).items()}
        self.draws = 0
        self.position = 0
        self._continue_at = 0
        self._passes = 0
        self._drawn: dict[str, Batch] = {}
        self._draw(self._interior_points(self.n, INTERIOR), None)

    @property
    def interior(self) -> Batch:
        """The interior points; a weight (n,) given to it, causal weights for example, stays until the next resampling."""
        return self._drawn[INTERIOR]

    @property
    def batch(self) -> AnyBatch:
        """What an iteration yields."""
        if len(self._drawn) == 1 and not self.others:
            return self.interior
        return {**self._drawn, **self.others}

    def __len__(self) -> int:
        """Batches in a pass."""
        return self.steps

    def __iter__(self) -> Iterator[AnyBatch]:
        self._passes += 1
        this_pass = self._passes
        # Only a loaded state continues a pass: batches that someone looked at and left do not shorten the next.
        self.position, self._continue_at = self._continue_at, 0
        while self.position < self.steps:
            self.position += 1
            yield self.batch
            if self._passes != this_pass:
                raise RuntimeError(
                    "these points were iterated anew, or a state was loaded, while a pass over them was under way; "
                    "finish or leave one pass before the next."
                )
        self.position = 0

    def resample(self, residual: ResidualFunction | None = None) -> None:
        """Draw new points: uniformly by Sobol, or where the residual is large.

        With a residual, n of pool * n Sobol points y_i are drawn without replacement with probabilities

            p_i ~ |r_i|^k / mean |r|^k + c        (residual-based adaptive distribution, RAD: Wu et al. 2023, eq. 2)

        The mean of squares over these points is then one over the density p, not over the domain; it is what makes a
        PINN converge where its residual is sharp. To undo it, ``importance=True`` sets weights of mean 1 proportional to one
        over the probability of being drawn. Boundary and initial points are drawn uniformly.

        Args:
            residual: ``residual(batch) -> (n,)``, called with `pool` batches of n points like those of an iteration (a
                dict with "interior" only where a dict is yielded): ``loss.point_sizes`` of a `PDEResidual` will do.
                Several equations, (equations, n), count by their root of squares.

        Raises:
            ValueError: the residual has another shape, or is NaN or infinite somewhere.

        Source: Wu, Zhu, Tan, Kartha, Lu, "A comprehensive study of non-adaptive and residual-based adaptive sampling for
        physics-informed neural networks", CMAME 403 (2023).
        """
        if residual is None:
            self.draws += 1
            self._draw(self._interior_points(self.n, INTERIOR), None)
            return
        # Nothing of the state moves before the residual was found usable.
        candidates = self._interior_points(self.pool * self.n, "pool", self.draws + 1)
        sizes = torch.cat([self._sizes(residual, part) for part in candidates.split(self.n)])
        share = _rad(sizes, self.exponent, self.constant)
        kept = _without_replacement(share, self.n, self._generator("choice", self.draws + 1))
        self.draws += 1
        weight = _importance(share, self.n)[kept] if self.importance else None
        self._draw(candidates[torch.from_numpy(kept).to(candidates.device)], weight)

    def state_dict(self) -> dict[str, Any]:
        """The points themselves and where the iteration is: a run continues bit for bit, whatever the residual was."""
        drawn = {name: {"coords": batch.coords, **(batch.parameters or {})} for name, batch in self._drawn.items()}
        tensors = {name: {key: t.detach().clone() for key, t in parts.items()} for name, parts in drawn.items()}  # type: ignore[union-attr]
        weight = self.interior.weight
        return {
            **self._settings(),
            "seed": self.seed,
            "draws": self.draws,
            "position": self.position,
            "points": tensors,
            "weight": None if weight is None else weight.detach().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, with its seed and its points.

        Raises:
            ValueError: it was made by another kind of collocation, or lacks something.
        """
        missing = [name for name in (*self.state_dict(),) if name not in state]
        if missing:
            raise ValueError(f"the state has no {missing[0]!r}; it was not made by Collocation.state_dict.")
        for name, ours in self._settings().items():
            if state[name] != ours:
                raise ValueError(
                    f"the state was taken with {name}={state[name]!r} but here it is {ours!r}; use the same to resume."
                )
        points = state["points"]
        if set(points) != set(self._drawn) or len(points[INTERIOR]["coords"]) != self.n:
            raise ValueError(
                "the state holds other sets of points than these; build the collocation with the same numbers."
            )
        self.seed, self.draws = state["seed"], state["draws"]
        self.position = self._continue_at = state["position"]
        for name, parts in points.items():
            named = {key: self._placed(tensor) for key, tensor in parts.items()}
            self._drawn[name] = Batch(coords=named.pop("coords"), parameters=named or None)
        weight = state["weight"]
        self.interior.weight = None if weight is None else self._placed(weight)
        self._passes += 1

    def _settings(self) -> dict[str, Any]:
        return {
            "geometry": repr(self.geometry),
            "n": self.n,
            "boundary": self.n_boundary,
            "initial": self.n_initial,
            "steps": self.steps,
            "pool": self.pool,
            "exponent": self.exponent,
            "constant": self.constant,
            "importance": self.importance,
        }

    def _draw(self, interior: Tensor, weight: Tensor | None) -> None:
        self._drawn = {INTERIOR: Batch(coords=interior, weight=None if weight is None else self._placed(weight))}
        if self.n_boundary:
            seed = self._seed(BOUNDARY, self.draws)
            batch = boundary_batch(self.geometry, self.n_boundary, seed=seed, dtype=self.dtype)
            self._drawn[BOUNDARY] = batch.to(self.device)
        if self.n_initial:
            seed = self._seed(INITIAL, self.draws)
            self._drawn[INITIAL] = initial_batch(self.geometry, self.n_initial, seed=seed, dtype=self.dtype).to(
                self.device
            )

    def _interior_points(self, n: int, name: str, draw: int | None = None) -> Tensor:
        seed = self._seed(name, self.draws if draw is None else draw)
        return self.geometry.sample(n, seed=seed, dtype=self.dtype).to(self.device)

    def _sizes(self, residual: ResidualFunction, part: Tensor) -> Tensor:
        batch = Batch(coords=part.clone())
        found = residual(batch if isinstance(self.batch, Batch) else {INTERIOR: batch}).detach().double()
        n = len(part)
        if found.ndim not in (1, 2) or found.shape[-1] != n:
            raise ValueError(
                f"the residual has shape {tuple(found.shape)} at {n} points; expected ({n},), or (equations, {n}): "
                "PDEResidual.point_sizes gives one number a point."
            )
        sizes = found.abs() if found.ndim == 1 else found.norm(dim=0)
        if not bool(sizes.isfinite().all()):
            at = part[int((~sizes.isfinite()).nonzero()[0])].tolist()
            raise ValueError(
                f"the residual is not finite at {at}; the model has diverged, so the points stay as they are."
            )
        return sizes

    def _seed(self, name: str, draw: int) -> tuple[int, int, int]:
        return self.seed, draw, zlib.crc32(name.encode())

    def _generator(self, name: str, draw: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self._seed(name, draw))))

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(dtype=self.dtype, device=self.device)

    def _admitted(self, name: str, batch: Batch) -> Batch:
        if name in (INTERIOR, *([BOUNDARY] if self.n_boundary else []), *([INITIAL] if self.n_initial else [])):
            raise ValueError(f"others holds {name!r}, which this collocation draws itself; give it another name.")
        if not isinstance(batch, Batch):
            raise TypeError(f"others holds {type(batch).__name__} under {name!r}; give a Batch.")
        if batch.coords is not None:
            self.geometry.refuse_outside(batch.coords, f"point of {name!r}")
        return batch.to(self.device, self.dtype)


def _rad(sizes: Tensor, exponent: float, constant: float) -> np.ndarray:
    """|r|^k / mean |r|^k + c, as shares of one."""
    largest = sizes.max()
    # Scaled by its largest, so that a power neither overflows nor vanishes; no residual at all leaves a uniform density.
    powers = (sizes / largest if largest > 0 else torch.ones_like(sizes)) ** exponent
    density = (powers / powers.mean() + constant).cpu().numpy()
    return density / density.sum()


def _without_replacement(share: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """n positions, in increasing order, drawn one after another with these probabilities: the first n of exponential clocks."""
    with np.errstate(divide="ignore"):
        clocks = generator.exponential(size=len(share)) / share
    return np.sort(np.argpartition(clocks, n - 1)[:n])


def _importance(share: np.ndarray, n: int) -> Tensor:
    """Weights of mean 1 over the pool's draws, 1 / pi_i, with pi_i = 1 - exp(-lambda p_i) and sum pi_i = n.

    The clock i rings before time lambda with probability pi_i, and about n of them do by the time that solves the sum
    (Rosen 1972); without replacement pi_i is not n p_i.
    """
    from scipy.optimize import brentq

    if np.count_nonzero(share) <= n:  # all that can be drawn are
        return torch.full((len(share),), n / len(share), dtype=torch.float64)
    upper = 1.0
    while -np.expm1(-upper * share).sum() < n:
        upper *= 2
    time = brentq(lambda time: -np.expm1(-time * share).sum() - n, 0.0, upper, xtol=1e-12 * upper)
    return torch.from_numpy(n / len(share) / -np.expm1(-time * share))
