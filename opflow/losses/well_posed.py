"""A warning where equation, conditions and data together do not determine the solution."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from opflow.batch import Batch, unwrapped
from opflow.losses.condition import ConditionResidual
from opflow.losses.discrete_time import DiscreteTimeResidual
from opflow.losses.galerkin import PointObservations
from opflow.losses.misfit import DataMisfit
from opflow.losses.unknown import Unknown
from opflow.pde.boundary import Condition, Initial
from opflow.pde.derivatives.grid import GridDerivatives

_BOUNDARY = frozenset({"dirichlet", "neumann", "robin", "periodic"})


def warn_if_ill_posed(model: nn.Module, loss: nn.Module, batch: Batch | Mapping[str, Batch]) -> list[str]:
    """Warn, and return why, where a physics-informed loss has too few conditions to determine its solution.

    Counted are soft conditions (`ConditionResidual`), hard ones (a module of the model with an attribute `conditions`, such as
    `HardConstraint` or `PeriodicFeatures`), the periodic axes of `GridDerivatives`, and observations (`DataMisfit`, `PointObservations`, and the snapshot at the end of a `DiscreteTimeResidual`;
    that at the start is an initial condition). Each of these is a reason:

    - a derivative in time, and neither an initial condition nor observations; for m derivatives in time, fewer than m orders
      of soft initial conditions and none that is hard;
    - two or more derivatives in space, and neither a boundary condition nor observations;
    - unknown coefficients (`Unknown`) and fewer numbers observed than there are of them; an unknown coefficient function and no
      observations at all.

    The equations are those losses that have `derivatives_asked`, a set such as {"t", "xx"}, as `PDEResidual` has. It is a
    check of counts: silence does not prove well-posedness.

    Args:
        model: it is not called.
        loss: the whole loss, its parts anywhere within.
        batch: that of a step, for the number of observations.

    >>> from opflow.losses.objective import Objective
    >>> class Heat(Objective):
    ...     derivatives_asked = frozenset({"t", "xx"})
    >>> with warnings.catch_warnings(record=True):
    ...     warnings.simplefilter("always")
    ...     len(warn_if_ill_posed(nn.Linear(2, 1), Heat(), Batch()))
    2
    """
    parts = list(loss.modules())
    asked = {axes for part in parts for axes in getattr(part, "derivatives_asked", ())}
    soft = [part.condition for part in parts if isinstance(part, ConditionResidual)]
    hard = _hard_conditions(model) | _of_grids(parts)
    observed = sum(_observed(part, batch) for part in parts)
    reasons = [
        *_initial_reasons(asked, soft, hard, observed),
        *_boundary_reasons(asked, {condition.kind for condition in soft} | hard, observed),
        *_coefficient_reasons(loss, observed),
    ]
    if reasons:
        warnings.warn(
            f"the problem is not well posed: {'; '.join(reasons)}. Training will find one of many solutions.",
            UserWarning,
            stacklevel=2,
        )
    return reasons


def _hard_conditions(model: nn.Module) -> frozenset[str]:
    inner = unwrapped(model)
    modules = inner.modules() if isinstance(inner, nn.Module) else [inner]
    return frozenset(name for module in modules for name in _names(getattr(module, "conditions", ())))


def _of_grids(losses: Iterable[nn.Module]) -> frozenset[str]:
    """ "periodic" where an equation is stated on a grid with a periodic axis."""
    found = [getattr(loss, "derivatives", None) for loss in losses]
    grids = [derivatives.grid for derivatives in found if isinstance(derivatives, GridDerivatives)]
    return frozenset({"periodic"} if any("periodic" in grid.layout for grid in grids) else ())


def _names(conditions: object) -> list[str]:
    # Another library's module may use the word for something else.
    if not isinstance(conditions, Iterable) or isinstance(conditions, str):
        return []
    return [name for name in conditions if isinstance(name, str)]


def _observed(loss: nn.Module, batch: Batch | Mapping[str, Batch]) -> int:
    if isinstance(loss, PointObservations):
        return loss.values.numel()
    at_the_end = isinstance(loss, DiscreteTimeResidual) and loss.snapshot == "end"
    if not (isinstance(loss, DataMisfit) or at_the_end):
        return 0
    part = batch if isinstance(batch, Batch) else batch.get(str(loss.on or ""))
    if part is None:
        return 0
    if part.target is None and at_the_end and part.coords is not None:  # the snapshot is a function
        return part.coords[..., 0].numel()
    return 0 if part.target is None else part.target.numel()


def _initial_reasons(asked: set[str], soft: list[Condition], hard: frozenset[str], observed: int) -> list[str]:
    needed = max((axes.count("t") for axes in asked), default=0)
    orders = {condition.order for condition in soft if isinstance(condition, Initial)}
    if not needed or observed or "initial" in hard or len(orders) >= needed:
        return []
    given = "none is" if not orders else f"only order {', '.join(map(str, sorted(orders)))} is"
    return [
        f"the equation has {needed} derivative{'s' * (needed > 1)} in time, so it needs {needed} initial "
        f"condition{'s' * (needed > 1)}, of which {given} given; add ConditionResidual(Initial(...)), a HardConstraint, or observations"
    ]


def _boundary_reasons(asked: set[str], kinds: set[str] | frozenset[str], observed: int) -> list[str]:
    in_space = {axes: len(axes) - axes.count("t") for axes in asked}
    if observed or kinds & _BOUNDARY or max(in_space.values(), default=0) < 2:
        return []
    highest = max(sorted(in_space), key=in_space.__getitem__)
    return [
        f"the equation has the space derivative {highest!r} but there is no boundary condition; add ConditionResidual(Dirichlet(...)) "
        "or another, a HardConstraint, PeriodicFeatures, or observations"
    ]


def _coefficient_reasons(loss: nn.Module, observed: int) -> list[str]:
    scalars = [p for part in loss.modules() if isinstance(part, Unknown) for p in part.parameters() if p.requires_grad]
    count = sum(p.numel() for p in scalars)
    # A function's parameters are no count of what is unknown: neighbouring values hang together.
    functions = any(p.requires_grad for p in loss.parameters() if not any(p is q for q in scalars))
    if count > observed:
        what = f"{count} unknown coefficient{'s' * (count > 1)}"
    elif functions and not observed:
        what = "an unknown coefficient function"
    else:
        return []
    return [
        f"{what} cannot be found from {observed or 'no'} observation{'s' * (observed != 1)}; "
        "add a DataMisfit with more, or fix coefficients"
    ]
