"""Strong Wolfe: its conditions hold, one evaluation where the first step fits, trials that are not finite."""

import math

import pytest
import torch

from opflow.training.line_search import LineSearch, Trial, strong_wolfe

C1, C2 = 1e-4, 0.9


def search(phi, slope, first, **options) -> LineSearch:
    def evaluate(step: float) -> Trial:
        return Trial(step, phi(step), slope(step), torch.empty(0))

    return strong_wolfe(evaluate, evaluate(0.0), first, c1=C1, c2=options.pop("c2", C2), **options)


def wolfe_holds(found: LineSearch, phi, slope, c2: float = C2) -> bool:
    step = found.trial.step
    return phi(step) <= phi(0.0) + C1 * step * slope(0.0) and abs(slope(step)) <= c2 * abs(slope(0.0))


QUARTIC = (lambda t: (t - 2) ** 4 - t, lambda t: 4 * (t - 2) ** 3 - 1)
WAVY = (  # many local minima, as in Moré and Thuente 1994, section 5
    lambda t: (t - 5) ** 2 / 10 + 0.3 * math.sin(6 * t),
    lambda t: (t - 5) / 5 + 1.8 * math.cos(6 * t),
)
FLAT_START = (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2)  # Moré and Thuente's first function


@pytest.mark.parametrize("first", [1e-6, 1e-3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("c2", [0.9, 0.1, 1e-3])
@pytest.mark.parametrize("function", [QUARTIC, FLAT_START])
def test_the_wolfe_conditions_hold_from_any_first_step(function, c2, first) -> None:
    found = search(*function, first, c2=c2, max_evaluations=60)
    assert found.wolfe
    assert wolfe_holds(found, *function, c2=c2)


def test_many_local_minima() -> None:
    phi, slope = WAVY
    start = 1.4  # downhill there
    found = search(lambda t: phi(start + t), lambda t: slope(start + t), 4.0, c2=0.1)
    assert slope(start) < 0
    assert found.wolfe
    assert wolfe_holds(found, lambda t: phi(start + t), lambda t: slope(start + t), c2=0.1)


def test_a_first_step_that_fits_costs_one_evaluation() -> None:
    found = search(lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), 1.0)
    assert (found.evaluations, found.trial.step) == (1, 1.0)


def test_a_parabola_is_solved_by_one_interpolation() -> None:
    found = search(lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), 5.0, c2=1e-6)
    assert found.evaluations == 2
    assert found.trial.step == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_shortens_the_step(bad) -> None:
    phi, slope = (lambda t: t * t - t if t < 0.7 else bad), (lambda t: 2 * t - 1 if t < 0.7 else math.nan)
    found = search(phi, slope, 1e3)
    assert found.wolfe
    assert wolfe_holds(found, phi, slope)


def test_nowhere_lower_is_said_and_costs_no_more_than_allowed() -> None:
    found = search(lambda t: t, lambda t: -1.0, 1.0, max_evaluations=7)  # a slope that lies
    assert not found.decreased
    assert found.trial.step == 0
    assert found.evaluations == 7


def test_within_rounding_the_slope_decides() -> None:
    """phi is 1 up to a noise of 1e-12 that hides the decrease of 1e-14; only the slopes show the minimum."""

    def phi(t: float) -> float:
        return 1.0 + 1e-14 * (t - 1) ** 2 + (1e-12 if t > 0 else 0.0)

    def slope(t: float) -> float:
        return 2e-14 * (t - 1)

    assert not search(phi, slope, 1.0).decreased
    found = search(phi, slope, 1.0, rounding=1e-11)
    assert found.wolfe
    assert found.trial.step == 1.0
