"""The Gauss method: implicit Runge-Kutta of order 8, for batches of forced ordinary differential equations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opflow.pde.runge_kutta import gauss_legendre

STAGES = 4
MOST_HALVINGS = 8
MOST_SWEEPS = 40  # of the fixed-point iteration for the stages
ROUNDING = 4 * float(np.finfo(np.float64).eps)

Array = NDArray[np.float64]
Rate = Callable[[Array, Array], Array]  # state (unknown, stage, n), forcing (stage, n) -> (unknown, stage, n)


def integrate(rate: Rate, forcing: Any, times: Array, n_unknowns: int, *, rtol: float) -> tuple[Array, Array]:
    """s' = rate(s, forcing(t)), s(0) = 0   (Hairer, Norsett and Wanner 1993, section II.7).

    Every interval between neighbouring times is one step; the steps are halved until two solutions agree to `rtol` of the
    largest magnitude of each unknown and sample. Samples that agree are not computed again.

    Args:
        rate: the right-hand side.
        forcing: a SciPy BSpline with values (n,).
        times: not decreasing, from 0 on.

    Returns:
        The states (unknown, n, times), and the times (n,) up to which they agreed: infinity for those that did throughout.
    """
    n = forcing.c.shape[1]
    states, good_until = np.zeros((n_unknowns, n, len(times))), np.full(n, np.inf)
    if states.size == 0:
        return states, good_until
    open_samples = np.arange(n)
    coarse = gauss_steps(rate, forcing, times, n_unknowns)
    for halving in range(1, MOST_HALVINGS + 1):
        remaining = type(forcing)(forcing.t, forcing.c[:, open_samples], forcing.k)
        fine = gauss_steps(rate, remaining, times, n_unknowns, steps=2**halving)
        with np.errstate(invalid="ignore"):  # where a solution blows up
            largest = np.fmax.reduce(np.abs(fine), axis=-1, keepdims=True)
            agrees = (np.abs(fine - coarse) <= rtol * largest).all(0)  # (sample, time)
        done = agrees.all(-1)
        states[:, open_samples] = fine
        good_until[open_samples] = np.where(done, np.inf, times[np.maximum(np.argmin(agrees, -1) - 1, 0)])
        open_samples, coarse = open_samples[~done], fine[:, ~done]
        if len(open_samples) == 0:
            break
    return states, good_until


def gauss_steps(rate: Rate, forcing: Any, times: Array, n_unknowns: int, *, steps: int = 1) -> Array:
    """The states (unknown, n, times) with so many steps between neighbouring times; NaN or infinite after a blow-up."""
    method = gauss_legendre(STAGES)
    c, a, b = method.nodes, method.matrix, method.weights
    state = np.zeros((n_unknowns, forcing.c.shape[1]))
    states = np.empty((*state.shape, len(times)))
    with np.errstate(over="ignore", invalid="ignore"):
        for number, (start, end) in enumerate(itertools.pairwise(np.concatenate([[0.0], times]))):
            h = (end - start) / steps
            if h > 0:
                for u in forcing(start + h * (np.arange(steps)[:, None] + c)):  # (stage, n)
                    state = state + h * np.einsum("j,ujn->un", b, _slopes(rate, state, u, h * a))
            states[..., number] = state
    return states


def _slopes(rate: Rate, state: Array, u: Array, ha: Array) -> Array:
    """K (unknown, stage, n) with K_i = rate(state + h sum_j a_ij K_j, u_i), by fixed-point iteration."""
    start = state[:, None]
    moved = np.zeros((len(state), *u.shape))
    slopes = rate(start + moved, u)
    for _ in range(MOST_SWEEPS):
        before, moved = moved, ha @ slopes
        slopes = rate(start + moved, u)
        # Samples that blow up are NaN, which fmax passes by: they must not end the iteration of the others.
        change = np.fmax.reduce(np.abs(moved - before), axis=None)
        if not change > ROUNDING * np.fmax.reduce(np.abs(start + moved), axis=None):
            break
    return slopes
