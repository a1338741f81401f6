"""The methods that `benchmarks.solvers` sets side by side, each at its best: what it sets up, how it solves, what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from benchmarks.solver_tasks import Case, System
from opflow.solvers import ConjugateDirection, ConjugateGradient, FaceStencil, FastPoisson, Multigrid, SetUpOnce

OURS = "multigrid V"
ROOT = Path(__file__).parents[1]
DIRECTIONS = {2: ROOT / "runs" / "poisson_conjugate_direction", 3: ROOT / "runs" / "poisson_conjugate_direction_3d"}


class Run(NamedTuple):
    """The iterate, the steps to it, products with A."""

    x: Any
    iterations: int
    matvecs: int


@dataclass(frozen=True)
class Method:
    """A preconditioner and the Krylov method around it.

    Attributes:
        setup: what depends on the operator alone; timed apart from the solve.
        solve: (what setup returned, the system, rtol) -> Run.
        slow: gets fewer seeds. hierarchy: gets fewer where hierarchies take long.
        refusal: (case) -> why it is not run there, or None.
    """

    name: str
    setup: Callable[[System], Any]
    solve: Callable[[Any, System, float], Run]
    slow: bool = False
    hierarchy: bool = False
    refusal: Callable[[Case], str | None] = lambda case: None


def within(make: Callable[[], Any]) -> tuple[Callable[[System], Any], Callable[[Any, System, float], Run]]:
    """Setup and solve of one of our preconditioners inside our conjugate gradients."""

    def setup(system: System) -> Any:
        return SetUpOnce(make()).setup(system.A)

    def solve(M: Any, system: System, rtol: float) -> Run:
        return _run(ConjugateGradient(M, rtol=rtol, max_steps=1000).solve(system.A, system.b))

    return setup, solve


def _run(solution: Any) -> Run:
    return Run(solution.x, int(solution.iterations[0]), solution.matvecs)


def scipy_cg(M: Any, system: System, rtol: float) -> Run:
    """SciPy's conjugate gradients on the CSR matrix."""
    from scipy.sparse.linalg import cg

    steps = []
    x, _ = cg(system.matrix, system.vector, rtol=rtol, maxiter=3000, M=M, callback=steps.append)
    return Run(x, len(steps), len(steps) + 1)


def plain(limit: int) -> Callable[[Any, System, float], Run]:
    return lambda _, system, rtol: _run(ConjugateGradient(rtol=rtol, max_steps=limit).solve(system.A, system.b))


def pyamg_cycle(kind: str) -> Callable[[System], Any]:
    """PyAMG's hierarchy with its default options, one V-cycle."""

    def setup(system: System) -> Any:
        import pyamg

        state = np.random.get_state()  # noqa: NPY002  (PyAMG draws from it)
        build = pyamg.ruge_stuben_solver if kind == "ruge-stueben" else pyamg.smoothed_aggregation_solver
        hierarchy = build(system.matrix)
        np.random.set_state(state)  # noqa: NPY002
        cycle = hierarchy.aspreconditioner()
        cycle.hierarchy = hierarchy
        return cycle

    return setup


def incomplete_cholesky(system: System) -> Any:
    """IC(0) from ilupp."""
    import ilupp
    from scipy.sparse import csr_matrix

    return ilupp.IChol0Preconditioner(csr_matrix(system.matrix))  # it takes matrices, not arrays


def conjugate_directions(dim: int) -> Method | None:
    """The multilevel network that `examples/poisson_conjugate_direction.py` trained on 64 x 64 or 16^3 domains; None before it has run."""
    from opflow.models import DirectionNetwork
    from opflow.training import load_checkpoint

    folder = DIRECTIONS[dim] / "checkpoints"
    if not folder.exists():
        return None
    network = DirectionNetwork.build(dim)
    load_checkpoint(folder, network)

    def solve(part: SetUpOnce, system: System, rtol: float) -> Run:
        return _run(ConjugateDirection(part, rtol=rtol, max_steps=1000).solve(system.A, system.b))

    return Method(
        "deep conjugate directions",
        lambda system: SetUpOnce(network).setup(system.A),
        solve,
        slow=True,
        refusal=not_smoke,
    )


def not_smoke(case: Case) -> str | None:
    return None if case.family.startswith("smoke") else "trained among obstacles"


def has_corners(case: Case) -> str | None:
    return "reads stencils without corners" if case.family == "rotated" else None


def learned(kind: str) -> list[Method]:
    """The shipped cycle of this dimension, and its ablation of five scalars."""
    from opflow.models import MultigridNetwork, TunedCycle

    found = []
    for name, cls in (("learned multigrid", MultigridNetwork), ("five tuned scalars", TunedCycle)):
        coefficients = cls.from_pretrained(f"elliptic-{kind}")
        setup, solve = within(lambda coefficients=coefficients: Multigrid(coefficients=coefficients))
        found.append(Method(name, setup, solve, refusal=has_corners))
    return found


def methods(case: Case) -> list[Method]:
    """All methods for a case, ours first."""
    found = [
        Method(OURS, *within(Multigrid)),
        Method("multigrid W", *within(lambda: Multigrid("W"))),
        Method("fast Poisson (transforms)", *within(FastPoisson), refusal=has_corners),
        Method("Ruge-Stueben (PyAMG)", pyamg_cycle("ruge-stueben"), scipy_cg, hierarchy=True),
        Method("smoothed aggregation (PyAMG)", pyamg_cycle("smoothed-aggregation"), scipy_cg, hierarchy=True),
        Method("IC(0) (ilupp)", incomplete_cholesky, scipy_cg, slow=True),
        Method("no preconditioner", lambda system: None, plain(case.steps), slow=True),
    ]
    directions = conjugate_directions(len(case.shape))
    return [*found[:2], *learned(f"{len(case.shape)}d"), *([] if directions is None else [directions]), *found[2:]]


def size(state: Any) -> int:
    """Bytes of every distinct array that a preconditioner holds."""
    seen: dict[int, int] = {}
    for array in _arrays(state):
        if isinstance(array, Tensor):
            seen[array.untyped_storage().data_ptr()] = array.untyped_storage().nbytes()
        else:
            seen[array.__array_interface__["data"][0]] = array.nbytes
    return sum(seen.values())


def _arrays(state: Any) -> Iterator[Any]:
    if isinstance(state, Tensor | np.ndarray):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from _arrays(part)
    elif isinstance(state, dict):
        yield from _arrays(list(state.values()))
    elif is_dataclass(state):
        yield from _arrays([getattr(state, field.name) for field in fields(state)])
    elif hasattr(state, "hierarchy"):
        for level in state.hierarchy.levels:
            for name in ("A", "P", "R"):
                if hasattr(level, name):
                    m = getattr(level, name)
                    yield from (m.data, m.indices, m.indptr)
    elif isinstance(state, nn.Module):  # a network, and what it keeps of the operator
        yield from state.parameters()
        yield from _arrays([getattr(module, "_levels", []) for module in state.modules()])
    elif isinstance(state, SetUpOnce):
        yield from _arrays(state._part)
    elif isinstance(state, Multigrid | FastPoisson):  # but not the operator, which every method has
        yield from _arrays({name: value for name, value in vars(state).items() if not isinstance(value, FaceStencil)})


def bytes_held(name: str, state: Any, system: System) -> float | None:
    """Bytes an unknown that the preconditioner holds beside the operator; None where they cannot be counted."""
    if name.startswith("IC(0)"):  # the factor has the entries of the lower triangle, 8 bytes and an index of 4 each
        entries = (system.matrix.nnz + system.unknowns) // 2
        return 12.0 * entries / system.unknowns
    if state is None:
        return 0.0
    return size(state) / system.unknowns
