"""Every backend of the stencils equals the float64 reference; the reference equals dense matrices and passes gradcheck."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from opflow.kernels.stencil import numba_rows
from opflow.kernels.stencil.backends import BACKENDS, StencilBackend
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.numba_backend import SMALLEST, Numba
from opflow.kernels.stencil.reference import Reference
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer
from opflow.solvers import ConjugateGradient, FaceStencil
from opflow.solvers.multigrid import Multigrid

REFERENCE = Reference()
FAST = [backend for backend in BACKENDS if backend.name != "reference"]
every = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

SIZES = [
    # one to three dimensions; sizes 1, 2, 3, odd, prime; unequal
    (1,),
    (2,),
    (3,),
    (17,),
    (40,),
    (1, 1),
    (2, 2),
    (1, 6),
    (5, 1),
    (7, 4),
    (37, 62),
    (2, 2, 2),
    (1, 4, 6),
    (4, 1, 5),
    (3, 6, 1),
    (5, 8, 12),
    (6, 7, 3),
    (4, 37, 31),
]
# The interpreter of Triton needs a second for what a device does at once.
FEW = [(3,), (2, 2), (7, 4), (4, 1, 5), (5, 8, 12)]
each_size = pytest.mark.parametrize(
    ("backend", "shape", "dtype", "tolerance"),
    [
        pytest.param(backend, shape, dtype, tolerance, id=f"{backend.name}-{'x'.join(map(str, shape))}-{dtype}")
        for backend in FAST
        for dtype, tolerance, step in ((torch.float64, 1e-13, 1), (torch.float32, 5e-6, 3))
        for shape in (FEW[::-1] if backend.name == "triton" else SIZES[::-1])[::step]
    ],
)
# operators, fields
BATCHES = [(1, 1), (1, 3), (2, 2)]


def rings(dim: int) -> list[tuple[bool, ...]]:
    """No axis, every one alone, all of them."""
    each = [tuple(d == axis for d in range(dim)) for axis in range(dim)]
    return [(False,) * dim, *each, *([(True,) * dim] if dim > 1 else [])]


@dataclass
class Problem:
    """A stencil with a fifth of the points outside the domain, where fields are zero; in float64."""

    stencil: Stencil
    mask: Tensor
    f: Tensor
    u: Tensor

    @staticmethod
    def of(shape: tuple[int, ...], ring: tuple[bool, ...], operators: int, batch: int, seed: int = 0) -> Problem:
        random = torch.Generator().manual_seed(seed)

        def uniform(n: int) -> Tensor:
            return 0.1 + torch.rand(n, *shape, generator=random, dtype=torch.float64)

        mask = torch.rand(operators, *shape, generator=random) > 0.2
        upper = []
        for d in range(len(shape)):
            w = uniform(operators) * mask * mask.roll(-1, d + 1)
            if not ring[d]:
                w.select(d + 1, -1).zero_()
            upper.append(w)
        diagonal = sum((w + w.roll(1, d + 1) for d, w in enumerate(upper)), uniform(operators) * mask)
        f, u = ((uniform(batch) - 0.6) * mask for _ in range(2))
        return Problem(Stencil(tuple(upper), diagonal, ring), mask, f, u)

    def sweeps(self, kind: str) -> list[Relaxation]:
        d = self.stencil.diagonal
        inverse = torch.where(d > 0, 1 / torch.where(d > 0, d, 1.0), 0.0)
        rough = inverse * (0.5 + torch.rand(d.shape, generator=torch.Generator().manual_seed(1), dtype=d.dtype))
        return {
            "exact": [Relaxation(inverse, colour, True) for colour in (0, 1, 0, 1)],
            "one colour": [Relaxation(inverse, 1, True)],
            "damped": [Relaxation(0.7 * inverse, 1), Relaxation(rough, 0)],
            "jacobi": [Relaxation(0.8 * inverse), Relaxation(rough)],
            "mixed": [Relaxation(rough, 1), Relaxation(0.8 * inverse), Relaxation(inverse, 0, True)],
        }[kind]

    def transfers(self) -> list[Transfer]:
        shape, d = self.stencil.shape, self.stencil.diagonal
        random = torch.Generator().manual_seed(2)
        found = []
        for factors in itertools.product((2, 1), repeat=len(shape)):
            own, *across = (torch.rand(d.shape, generator=random, dtype=d.dtype) for _ in range(len(shape) + 1))
            found += [Transfer(factors), Transfer(factors, own, tuple(across))]
        return found

    def coarse(self, transfer: Transfer) -> Tensor:
        shape = (self.f.shape[0], *transfer.coarse_shape(self.stencil.shape))
        return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cast(value, dtype: torch.dtype, layout: Callable[[Tensor], Tensor] = lambda t: t):
    """Tensors and everything made of them in another precision and memory layout, with memory of its own."""
    match value:
        case Tensor():
            return layout(value.to(dtype, copy=True))
        case Stencil():
            return Stencil(cast(value.upper, dtype, layout), cast(value.diagonal, dtype, layout), value.periodic)
        case Relaxation():
            return Relaxation(cast(value.weight, dtype, layout), value.colour, value.exact)
        case Transfer():
            return Transfer(value.factors, cast(value.own, dtype, layout), cast(value.across, dtype, layout))
        case list() | tuple():
            return type(value)(cast(part, dtype, layout) for part in value)
    return value


def supported(backend: StencilBackend, dtype: torch.dtype = torch.float64) -> None:
    """Skip a backend that serves no call of this kind, whatever its size."""
    reason = backend.refusal(StencilCall((1, 256, 256), dtype, torch.device("cpu")))
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")


def equal(found: Tensor, expected: Tensor, tolerance: float, dtype: torch.dtype = torch.float64) -> None:
    assert found.dtype == dtype and found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    assert (found.double() - expected).abs().amax().item() <= tolerance * scale if found.numel() else True


def cases(backend: StencilBackend, shape: tuple[int, ...]) -> list[tuple[Problem, list[Transfer]]]:
    """Problems with their transfers: all, or a few of each where a backend is interpreted."""
    few = backend.name == "triton"
    kinds = [(ring, batch) for ring in rings(len(shape)) for batch in BATCHES]
    problems = [Problem.of(shape, ring, *batch) for ring, batch in (kinds[1::4] if few else kinds)]
    return [(problem, problem.transfers()[: 4 if few else None]) for problem in problems]


@each_size
def test_the_product_equals_the_reference(backend, shape, dtype, tolerance) -> None:
    supported(backend, dtype)
    for problem, _ in cases(backend, shape):
        expected = REFERENCE.apply(problem.stencil, problem.u)
        found = backend.apply(*cast((problem.stencil, problem.u), dtype))
        equal(found, expected, tolerance, dtype)


@each_size
@pytest.mark.parametrize("kind", ["exact", "one colour", "damped", "jacobi", "mixed"])
def test_relaxation_equals_the_reference(backend, shape, dtype, tolerance, kind) -> None:
    supported(backend, dtype)
    for problem, _ in cases(backend, shape):
        given = problem.stencil, problem.sweeps(kind), problem.f
        for start in (None, problem.u):
            expected = REFERENCE.relax(*given, None if start is None else start.clone())
            equal(backend.relax(*cast((*given, start), dtype)), expected, tolerance, dtype)


@each_size
def test_restriction_equals_the_reference(backend, shape, dtype, tolerance) -> None:
    supported(backend, dtype)
    for problem, transfers in cases(backend, shape):
        given = problem.stencil, problem.f
        for transfer in transfers:
            expected = REFERENCE.restrict(problem.stencil, transfer, problem.f, problem.u)
            stencil, way, f, u = cast((problem.stencil, transfer, problem.f, problem.u), dtype)
            equal(backend.restrict(stencil, way, f, u), expected, tolerance, dtype)
        if problem.stencil.two_coloured:
            relaxed = REFERENCE.relax(problem.stencil, problem.sweeps("exact"), problem.f, None)
            for transfer in transfers[:2]:
                expected = REFERENCE.restrict(*given[:1], transfer, problem.f, relaxed)
                parts = cast((problem.stencil, transfer, problem.f, relaxed), dtype)
                found = backend.restrict(*parts, vanishing=1).double()
                assert (found - expected).abs().amax() <= tolerance * problem.f.abs().amax() * 2 ** len(shape)


@each_size
@pytest.mark.parametrize("kind", ["exact", "damped", "jacobi"])
def test_the_correction_equals_the_reference(backend, shape, dtype, tolerance, kind) -> None:
    supported(backend, dtype)
    for problem, transfers in cases(backend, shape):
        for transfer in transfers:
            e = problem.coarse(transfer)
            given = (problem.stencil, transfer, problem.sweeps(kind), problem.f)
            for sweeps in (given[2], []) if kind == "exact" else (given[2],):
                parts = (problem.stencil, transfer, sweeps, problem.f)
                expected = REFERENCE.correct(*parts, problem.u.clone(), e) * problem.mask
                found = backend.correct(*cast((*parts, problem.u, e), dtype)) * problem.mask
                equal(found, expected, tolerance, dtype)


LAYOUTS = {
    "strided": lambda t: torch.empty(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)[..., ::2].copy_(t),
    "reversed": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    "shifted": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t),
}


@every
@pytest.mark.parametrize("shape", [(9,), (6, 7), (5, 4, 6)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_does_not_matter(backend, shape, layout) -> None:
    supported(backend)
    problem = Problem.of(shape, (False,) * len(shape), 2, 2)
    plain, weighted = problem.transfers()[:2]
    sweeps, e = problem.sweeps("damped"), problem.coarse(plain)

    def everything(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        def given(*parts: object) -> tuple:
            return cast(parts, torch.float64, change)

        stencil, f, u = problem.stencil, problem.f, problem.u
        return [
            backend.apply(*given(stencil, u)),
            backend.relax(*given(stencil, sweeps, f, u)),
            backend.relax(*given(stencil, sweeps, f, None)),
            *(backend.restrict(*given(stencil, transfer, f, u)) for transfer in (plain, weighted)),
            *(backend.correct(*given(stencil, transfer, sweeps, f, u, e)) for transfer in (plain, weighted)),
        ]

    for found, expected in zip(everything(layout), everything(lambda t: t), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@every
@pytest.mark.parametrize(
    ("shape", "ring"), [((7,), (False,)), ((4, 6), (True, False)), ((3, 4, 5), (False, True, False))], ids=str
)
def test_restriction_is_the_transpose_of_interpolation(backend, shape, ring) -> None:
    """Both against the dense P: rows of a_i at the own block and b_(d,i) at the blocks across the nearest faces."""
    supported(backend)
    problem = Problem.of(shape, ring, 1, 1)
    nothing = Stencil(tuple(torch.zeros_like(w) for w in problem.stencil.upper), torch.zeros_like(problem.f), ring)
    for transfer in problem.transfers():
        coarse = transfer.coarse_shape(shape)
        P = interpolation(transfer, shape, ring)
        for column, e in zip(P.T, torch.eye(P.shape[1], dtype=torch.float64).view(-1, 1, *coarse), strict=True):
            found = backend.correct(nothing, transfer, [], torch.zeros_like(problem.f), torch.zeros_like(problem.f), e)
            torch.testing.assert_close(found.flatten(), column, rtol=0, atol=1e-15)
        restricted = backend.restrict(nothing, transfer, problem.f, problem.u)
        torch.testing.assert_close(restricted.flatten(), P.T @ problem.f.flatten(), rtol=0, atol=1e-14)


def interpolation(transfer: Transfer, shape: tuple[int, ...], ring: tuple[bool, ...]) -> Tensor:
    """P, dense, one entry after the other."""
    coarse = transfer.coarse_shape(shape)
    place = torch.arange(int(torch.tensor(coarse).prod())).view(coarse)
    P = torch.zeros(*shape, place.numel(), dtype=torch.float64)
    for point in itertools.product(*map(range, shape)):
        block = tuple(i // factor for i, factor in zip(point, transfer.factors, strict=True))
        P[(*point, place[block])] += 1.0 if transfer.own is None else transfer.own[(0, *point)]
        for d, factor in enumerate(transfer.factors):
            if factor == 1 or transfer.across is None:
                continue
            beyond = point[d] + (1 if point[d] % 2 else -1)  # the neighbour in the next block
            if ring[d] and shape[d] % 2 == 0:
                beyond %= shape[d]
            if 0 <= beyond < shape[d]:
                next_block = (*block[:d], beyond // 2, *block[d + 1 :])
                P[(*point, place[next_block])] += transfer.across[d][(0, *point)]
    return P.flatten(0, len(shape) - 1)


@pytest.mark.parametrize(
    ("shape", "ring"), [((5,), (True,)), ((6,), (False,)), ((3, 4), (False, True)), ((2, 3, 2), (False,) * 3)], ids=str
)
def test_the_reference_equals_a_dense_matrix(shape, ring) -> None:
    """A from the definition, one coupling after the other."""
    problem = Problem.of(shape, ring, 1, 2)
    stencil, n = problem.stencil, problem.mask.numel()
    place = torch.arange(n).view(shape)
    A = torch.diag(stencil.diagonal.flatten())
    for d, w in enumerate(stencil.upper):
        for weight, i, j in zip(w.flatten(), place.flatten(), place.roll(-1, d).flatten(), strict=True):
            if weight != 0:
                A[i, j] -= weight
                A[j, i] -= weight
    torch.testing.assert_close(REFERENCE.apply(stencil, problem.u).flatten(1), problem.u.flatten(1) @ A.T)
    for kind in ("exact", "damped", "jacobi", "mixed"):
        u = problem.u.flatten(1)
        for sweep in problem.sweeps(kind):
            here = torch.ones(shape, dtype=torch.bool)
            if sweep.colour is not None:
                here = sum(torch.meshgrid(*map(torch.arange, shape), indexing="ij")) % 2 == sweep.colour
            u = u + (sweep.weight * here).flatten(1) * (problem.f.flatten(1) - u @ A.T)
        found = REFERENCE.relax(stencil, problem.sweeps(kind), problem.f, problem.u.clone())
        torch.testing.assert_close(found.flatten(1), u)


def test_a_sweep_with_the_exact_weight_leaves_no_residual_at_its_colour() -> None:
    problem = Problem.of((6, 7), (True, False), 1, 1)
    u = REFERENCE.relax(problem.stencil, problem.sweeps("exact"), problem.f, None)
    r = problem.f - REFERENCE.apply(problem.stencil, u)
    black = (torch.arange(6)[:, None] + torch.arange(7)) % 2 == 1
    assert r[0, black].abs().max() <= 1e-15 and r[0, ~black].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "ring"), [((5,), (True,)), ((3, 4), (False, True)), ((2, 3, 2), (False,) * 3)], ids=str
)
@pytest.mark.parametrize("kind", ["damped", "jacobi"])
def test_gradients_of_the_reference_in_every_tensor(shape, ring, kind) -> None:
    problem = Problem.of(shape, ring, 1, 2)
    transfer = problem.transfers()[1]
    sweeps, dim = problem.sweeps(kind), len(shape)
    leaves = [
        *problem.stencil.upper, problem.stencil.diagonal, *(sweep.weight for sweep in sweeps), *transfer.weights,
        problem.f, problem.u, problem.coarse(transfer),
    ]  # fmt: skip

    def cycle(*tensors: Tensor) -> Tensor:
        rest = list(tensors)
        stencil = Stencil(tuple(rest.pop(0) for _ in range(dim)), rest.pop(0), ring)
        relaxation = [Relaxation(rest.pop(0), sweep.colour) for sweep in sweeps]
        way = Transfer(transfer.factors, rest.pop(0), tuple(rest.pop(0) for _ in range(dim)))
        f, u, e = rest
        u = REFERENCE.relax(stencil, relaxation, f, u)
        coarse = REFERENCE.restrict(stencil, way, f, u)
        return REFERENCE.correct(stencil, way, relaxation[::-1], f, u, e + coarse)

    assert torch.autograd.gradcheck(cycle, [leaf.clone().requires_grad_() for leaf in leaves], fast_mode=True)


@every
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with NumPy
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nan_and_infinity_come_through_and_stay_in_their_sample(backend, poison) -> None:
    supported(backend)
    problem = Problem.of((5, 6, 8), (False,) * 3, 1, 3)
    problem.mask[:] = True
    plain, weighted = problem.transfers()[:2]
    f, u = problem.f.clone(), problem.u.clone()
    f[1, 2, 3, 4] = u[1, 4, 5, 7] = poison
    sweeps, e = problem.sweeps("exact"), problem.coarse(plain)

    def results(f: Tensor, u: Tensor) -> list[Tensor]:
        found = [backend.apply(problem.stencil, u), backend.relax(problem.stencil, sweeps, f, None)]
        for transfer in (plain, weighted):
            found.append(backend.restrict(problem.stencil, transfer, f, u))
            found.append(backend.correct(problem.stencil, transfer, sweeps, f, u.clone(), e))
        return found

    for found, clean in zip(results(f, u), results(problem.f, problem.u), strict=True):
        assert not found[1].isfinite().all()
        assert torch.equal(found[::2], clean[::2])


@every
def test_an_empty_batch(backend) -> None:
    supported(backend)
    problem = Problem.of((4, 6), (False, False), 1, 2)
    plain, weighted = problem.transfers()[:2]
    f, u, sweeps = problem.f[:0], problem.u[:0], problem.sweeps("exact")
    assert backend.apply(problem.stencil, u).shape == (0, 4, 6)
    assert backend.relax(problem.stencil, sweeps, f, None).shape == (0, 4, 6)
    for transfer in (plain, weighted):
        e = backend.restrict(problem.stencil, transfer, f, u)
        assert e.shape == (0, 2, 3)
        assert backend.correct(problem.stencil, transfer, sweeps, f, u, e).shape == (0, 4, 6)


@every
def test_nothing_to_relax_is_refused(backend) -> None:
    problem = Problem.of((4,), (False,), 1, 1)
    with pytest.raises(ValueError, match="no sweep was given and no field to start from"):
        backend.relax(problem.stencil, [], problem.f, None)


# The compiled loops


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads for grids of any size."""
    monkeypatch.setattr(numba_rows, "SHARE", 1)


@pytest.mark.parametrize(
    ("shape", "ring", "batch"),
    [
        ((33, 6, 8), (False,) * 3, 1),
        ((12, 6, 8), (True, False, True), 1),
        ((300, 62), (False, False), 1),
        ((64, 40), (True, False), 2),
        ((9, 5, 7), (False,) * 3, 3),
        ((200,), (False,), 1),
    ],
    ids=str,
)
def test_the_bits_do_not_depend_on_the_number_of_threads(any_size, shape, ring, batch) -> None:
    backend = Numba()
    supported(backend)
    problem = Problem.of(shape, ring, 1, batch)
    sweeps, transfers = problem.sweeps("exact"), problem.transfers()

    def everything() -> list[Tensor]:
        stencil, f, u = problem.stencil, problem.f, problem.u
        found = [backend.apply(stencil, u), backend.relax(stencil, sweeps, f, None)]
        found.append(backend.relax(stencil, problem.sweeps("jacobi"), f, u.clone()))
        for transfer in (*transfers[:2], *transfers[-2:]):
            found.append(backend.restrict(stencil, transfer, f, u))
            found.append(backend.correct(stencil, transfer, sweeps, f, u.clone(), problem.coarse(transfer)))
        return found

    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            results.append(everything())
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("shape", [(26, 30, 32), (130, 150)], ids=str)
@pytest.mark.parametrize("cycle", ["V", "W"])
def test_a_solve_takes_the_same_steps_with_every_backend(shape, cycle) -> None:
    supported(Numba())
    problem = Problem.of(shape, (False,) * len(shape), 1, 1)
    faces = [
        torch.nn.functional.pad(w, [0, 0] * (len(shape) - 1 - d) + [1, 0]) for d, w in enumerate(problem.stencil.upper)
    ]
    for axis, w in enumerate(faces):  # a closed box but for one side
        w.select(axis + 1, -1).fill_(2.0 if axis == 0 else 0.0)
    solutions = []
    for backend in ("reference", "numba"):
        A = FaceStencil(faces, mask=problem.mask, boundary="neumann", layout="cells", backend=backend)
        b = A.apply(problem.u)
        solutions.append(ConjugateGradient(Multigrid(cycle, backend=backend), rtol=1e-10).solve(A, b))
    one, other = solutions
    assert one.all_converged and other.all_converged
    assert one.iterations.tolist() == other.iterations.tolist()
    assert (one.x - other.x).norm() <= 1e-8 * one.x.norm()


def test_two_solves_at_once_give_what_one_gives(any_size) -> None:
    supported(Numba())
    problems = [Problem.of((26, 30, 32), (False,) * 3, 1, 1, seed) for seed in (0, 1)]
    threads, found = torch.get_num_threads(), {}

    def cycle(problem: Problem) -> Tensor:
        backend, sweeps, transfer = Numba(), problem.sweeps("exact"), problem.transfers()[0]
        u = backend.relax(problem.stencil, sweeps, problem.f, None)
        e = backend.restrict(problem.stencil, transfer, problem.f, u, vanishing=1)
        return backend.correct(problem.stencil, transfer, sweeps[::-1], problem.f, u, e)

    def repeat(name: int, problem: Problem) -> None:
        found[name] = [cycle(problem) for _ in range(20)]

    torch.set_num_threads(2)
    try:
        workers = [threading.Thread(target=repeat, args=pair) for pair in enumerate(problems)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for name, problem in enumerate(problems):
            alone = cycle(problem)
            assert len(found[name]) == 20 and all(torch.equal(alone, other) for other in found[name])
    finally:
        torch.set_num_threads(threads)


# Dispatch


CPU = torch.device("cpu")
REFUSALS = {
    "device": (StencilCall((1, 256, 256), torch.float32, torch.device("cuda", 0)), "x is on cuda"),
    "dtype": (StencilCall((1, 256, 256), torch.bfloat16, CPU), "x is torch.bfloat16"),
    "size": (StencilCall((1, 8, 8), torch.float32, CPU), f"x holds 64 numbers, .* from {SMALLEST} on"),
    "caller": (StencilCall((1, 256, 256), torch.float32, CPU, "gradients go"), "gradients go"),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_the_compiled_loops_refuse_in_words(call, sentence) -> None:
    reason = Numba().refusal(call)
    assert reason is not None
    assert re.search(sentence, reason)


def test_without_numba_it_says_how_to_install_it(monkeypatch) -> None:
    from opflow.kernels.stencil import numba_backend

    monkeypatch.setattr(numba_backend, "INSTALLED", False)
    reason = Numba().refusal(StencilCall((1, 256, 256), torch.float32, CPU))
    assert reason is not None and "pip install 'opflow[fast]'" in reason


def test_an_explicit_backend_refuses_with_its_reason() -> None:
    weights = [torch.ones(1, 9, 8), torch.ones(1, 8, 9)]
    with pytest.raises(ValueError, match="backend 'numba' was asked for, but x holds 64 numbers"):
        FaceStencil(weights, backend="numba").apply(torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="backend 'triton' was asked for, but x is on cpu"):
        FaceStencil(weights, backend="triton").apply(torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="backend 'cuda' is unknown here"):
        FaceStencil(weights, backend="cuda").apply(torch.ones(1, 8, 8))


def test_gradients_and_transforms_go_through_the_reference() -> None:
    problem = Problem.of((4, 5), (False, False), 1, 1)
    leaf = problem.u.clone().requires_grad_()
    assert "gradients go through" in StencilCall.of(problem.stencil, 1, leaf).only_reference
    with torch.no_grad():
        assert StencilCall.of(problem.stencil, 1, leaf).only_reference is None
    assert "several dtypes" in StencilCall.of(problem.stencil, 1, problem.u.float()).only_reference
