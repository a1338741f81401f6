"""The Triton kernels of stencils on a CUDA device: errors against float64, equal bits, solves that wait for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.kernels.stencil.reference import Reference
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer
from opflow.kernels.stencil.triton_backend import Triton
from opflow.solvers import ConjugateGradient, FaceStencil
from opflow.solvers.multigrid import Multigrid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CASES = [
    # shape, rings, operators, fields
    ((4096,), (False,), 1, 3),
    ((4096,), (True,), 2, 2),
    ((257, 130), (False, False), 1, 2),
    ((256, 64), (True, False), 2, 2),
    ((33, 70, 129), (False, False, False), 1, 2),
    ((32, 48, 64), (True, False, True), 2, 2),
    ((128, 128, 128), (False, False, False), 1, 1),
]
cases = pytest.mark.parametrize(("shape", "ring", "operators", "batch"), CASES, ids=str)
dtypes = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)], ids=str)


def results(backend: Reference | Triton, shape, ring, operators: int, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Every operation once; numbers are drawn in float64, memory is filled with NaN: what a kernel leaves unwritten shows."""
    random = torch.Generator(device="cuda").manual_seed(0)

    def uniform(n: int, *of: int) -> Tensor:
        return (0.1 + torch.rand(n, *of, generator=random, dtype=torch.float64, device="cuda")).to(dtype)

    upper = [uniform(operators, *shape) for _ in shape]
    for d, w in enumerate(upper):
        if not ring[d]:
            w.select(d + 1, -1).zero_()
    diagonal = sum((w + w.roll(1, d + 1) for d, w in enumerate(upper)), uniform(operators, *shape))
    stencil, f, u = Stencil(tuple(upper), diagonal, ring), uniform(batch, *shape) - 0.6, uniform(batch, *shape)
    exact = [Relaxation(1 / diagonal, colour, True) for colour in (0, 1, 0, 1)]
    damped = [Relaxation(uniform(operators, *shape) / diagonal, colour) for colour in (1, 0)]
    jacobi = [Relaxation(0.8 / diagonal)] * 2
    factors = (2,) * len(shape)
    weighted = Transfer(factors, uniform(operators, *shape), tuple(uniform(operators, *shape) for _ in shape))
    e = uniform(batch, *weighted.coarse_shape(shape))
    poison = [torch.full((1 << 24,), torch.nan, device="cuda") for _ in range(8)]
    del poison
    found = [backend.apply(stencil, u)]
    for sweeps in (exact, damped, jacobi):
        found += [backend.relax(stencil, sweeps, f, None), backend.relax(stencil, sweeps, f, u.clone())]
        for transfer in (Transfer(factors), weighted):
            found.append(backend.correct(stencil, transfer, sweeps, f, u.clone(), e))
    return found + [backend.restrict(stencil, transfer, f, u) for transfer in (Transfer(factors), weighted)]


@pytest.fixture(autouse=True)
def default_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9 warns of a default that will change."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@cases
@dtypes
def test_equals_the_float64_reference(shape, ring, operators, batch, dtype, tolerance) -> None:
    expected = results(Reference(), shape, ring, operators, batch, torch.float64)
    for a, b in zip(results(Triton(), shape, ring, operators, batch, dtype), expected, strict=True):
        assert a.dtype == dtype and (a.double() - b).abs().max() <= tolerance * b.abs().max()


@cases
def test_two_runs_give_equal_bits(shape, ring, operators, batch) -> None:
    first, second = (results(Triton(), shape, ring, operators, batch, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def problem(n: int) -> tuple[FaceStencil, FaceStencil, Tensor]:
    """The same operator with the kernels and with plain operations, and a right-hand side."""
    random = torch.Generator(device="cuda").manual_seed(0)
    a = torch.exp(torch.rand(1, n, n, n, generator=random, dtype=torch.float64, device="cuda"))
    A = FaceStencil.from_coefficient(a, Grid((n,) * 3, layout="cells"))
    plain = FaceStencil(A.weights, boundary=A.boundary, layout=A.layout, backend="reference")
    return A, plain, torch.randn(n, n, n, generator=random, dtype=torch.float64, device="cuda")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_solve_takes_the_same_steps_as_with_plain_operations() -> None:
    A, plain, b = problem(64)
    found = ConjugateGradient(Multigrid(backend="triton"), rtol=1e-10).solve(A, b)
    expected = ConjugateGradient(Multigrid(backend="reference"), rtol=1e-10).solve(plain, b)
    assert found.converged and found.iterations == expected.iterations
    assert (found.x - expected.x).norm() <= 1e-8 * expected.x.norm()


def test_a_cycle_does_not_wait_for_the_device(request) -> None:
    A, _, b = problem(64)
    M = Multigrid(backend="triton").setup(A)
    first = M.apply(b[None])
    request.getfixturevalue("no_waiting")
    assert M.apply(b[None]).shape == first.shape
