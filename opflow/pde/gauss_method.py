"""The Gauss method: implicit Runge-Kutta of order 8 for batches of forced ordinary differential equations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = 4
MOST_HALVINGS = 8
MOST_SWEEPS = 40  # of the fixed-point iteration for the stages
ROUNDING = 4 * float(np.finfo(np.float64).eps)

Array = NDArray[np.float64]


def integrate(
    rate: Callable[[Array, Array], Array], forcing: Any, at: Array, n_unknowns: int, *, rtol: float, first: int = 0
) -> Array:
    """s' = rate(s, forcing(t)), s(0) = 0, at the times `at`: (unknown, n, times), by the Gauss method of order 8.

    Every interval between neighbouring times is a step; the steps are halved until two solutions agree to `rtol` of the
    largest magnitude of each unknown and sample, for those samples that do not yet.
    """
    n = forcing.c.shape[1]
    values = np.zeros((n_unknowns, n, len(at)))
    if n == 0 or len(at) == 0:
        return values
    ends = np.concatenate([[0.0], at])
    open_samples = np.arange(n)
    coarse = _gauss(rate, forcing, ends, 1, n_unknowns)
    for halving in range(1, MOST_HALVINGS + 1):
        fine = _gauss(rate, _columns(forcing, open_samples), ends, 2**halving, n_unknowns)
        with np.errstate(invalid="ignore"):
            difference = np.abs(fine - coarse)
            agrees = (difference <= rtol * np.abs(fine).max(-1, keepdims=True)).all((0, 2))
        values[:, open_samples[agrees]] = fine[:, agrees]
        open_samples, coarse = open_samples[~agrees], fine[:, ~agrees]
        if len(open_samples) == 0:
            return values
    difference = difference[:, ~agrees][:, 0]
    bad = ~(difference <= rtol * np.abs(coarse[:, 0]).max(-1, keepdims=True)).all(0)
    raise RuntimeError(
        f"sample {first + open_samples[0]} could not be integrated to rtol={rtol:g} beyond time {at[bad][0]:g}, with "
        f"{2**MOST_HALVINGS} steps between neighbouring times: its solution blows up there, or changes too fast for this "
        f"grid ({len(open_samples)} samples in all). Leave the sample out, shorten final_time or refine the grid."
    )


@lru_cache(maxsize=1)
def tableau() -> tuple[Array, Array, Array]:
    """Times c, matrix a and weights b with a_ij = int_0^(c_i) l_j, b_j = int_0^1 l_j, l_j the Lagrange polynomials at c."""
    x, w = np.polynomial.legendre.leggauss(STAGES)
    c = (x + 1) / 2
    powers = np.arange(1, STAGES + 1)
    a = np.linalg.solve(c[:, None] ** (powers - 1), np.eye(STAGES)).T @ (c[:, None] ** powers / powers).T
    return c, a.T, w / 2


def _gauss(rate: Callable[[Array, Array], Array], forcing: Any, ends: Array, steps: int, n_unknowns: int) -> Array:
    """The state (unknown, n, times) at ends[1:], with so many steps between neighbouring ends."""
    c, a, b = tableau()
    state = np.zeros((n_unknowns, forcing.c.shape[1]))
    states = np.empty((*state.shape, len(ends) - 1))
    with np.errstate(over="ignore", invalid="ignore"):  # a blow-up is said by `integrate`
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            h = (end - start) / steps
            if h > 0:
                for u in forcing(start + h * (np.arange(steps)[:, None] + c)):  # (stage, n)
                    slopes = _stages(rate, state, u, h * a)
                    state = state + h * np.einsum("j,ujn->un", b, slopes)
            states[..., number] = state
    return states


def _stages(rate: Callable[[Array, Array], Array], state: Array, u: Array, ha: Array) -> Array:
    """K (unknown, stage, n) with K_i = rate(state + h sum_j a_ij K_j, u_i), by fixed-point iteration."""
    start = state[:, None]
    slopes = rate(np.repeat(start, STAGES, axis=1), u)
    moved = np.zeros_like(slopes)
    for _ in range(MOST_SWEEPS):
        before, moved = moved, ha @ slopes
        slopes = rate(start + moved, u)
        # Samples that blow up are NaN, which fmax passes by: they must not end the iteration of the others.
        if not np.fmax.reduce(np.abs(moved - before), axis=None) > ROUNDING * np.fmax.reduce(
            np.abs(start + moved), axis=None
        ):
            break
    return slopes


def _columns(spline: Any, samples: NDArray[np.intp]) -> Any:
    """The same spline of some samples only."""
    return type(spline)(spline.t, spline.c[:, samples], spline.k)
