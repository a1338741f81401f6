"""PETSc as the host: against objects of PETSc's shape always, against PETSc where petsc4py is installed (`make petsc`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from opflow import Grid
from opflow.interop import as_petsc_pc
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, FastPoisson, Multigrid

N = 31


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stencil(seed: int = 0) -> FaceStencil:
    return FaceStencil.from_coefficient(torch.exp(0.5 * randn(1, N + 2, N + 2, seed=seed)), Grid((N + 2, N + 2)))


GRID = Grid((N + 2, N + 2))


class FakeComm:
    def __init__(self, size: int = 1) -> None:
        self.size = size

    def getSize(self) -> int:
        return self.size


class FakeMat:
    """The part of petsc4py's Mat that a PC reads."""

    def __init__(self, matrix: Any, processes: int = 1) -> None:
        self.matrix, self.comm, self.reads = sp.csr_array(matrix), FakeComm(processes), 0

    def getComm(self) -> FakeComm:
        return self.comm

    def getSize(self) -> tuple[int, int]:
        return self.matrix.shape

    def getValuesCSR(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.reads += 1
        return self.matrix.indptr, self.matrix.indices, self.matrix.data


class FakePC:
    def __init__(self, matrix: FakeMat) -> None:
        self.matrix = matrix

    def getOperators(self) -> tuple[None, FakeMat]:
        return None, self.matrix


class FakeVec:
    """Read-only where PETSc's would be."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.array(array)

    def getArray(self, readonly: bool = False) -> np.ndarray:
        view = self.array.view()
        view.setflags(write=not readonly)
        return view

    def setArray(self, array: np.ndarray) -> None:
        self.array[:] = array


class FakeKSP:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def getType(self) -> str:
        return self.kind


class FakeViewer:
    def __init__(self) -> None:
        self.text = ""

    def printfASCII(self, text: str) -> None:
        self.text += text


def applied(context: Any, pc: FakePC, r: np.ndarray) -> np.ndarray:
    x, y = FakeVec(r), FakeVec(np.full_like(r, np.nan))
    context.apply(pc, x, y)
    np.testing.assert_array_equal(x.array, r)
    return y.array


def iterations_of_cg(matrix: Any, b: np.ndarray, context: Any, pc: FakePC, rtol: float) -> int:
    """Conjugate gradients as KSPCG runs them with the unpreconditioned norm."""
    r, z = b.copy(), applied(context, pc, b)
    p, rz, steps = z, r @ z, 0
    while np.linalg.norm(r) > rtol * np.linalg.norm(b):
        Ap = matrix @ p
        alpha = rz / (p @ Ap)
        r = r - alpha * Ap
        z = applied(context, pc, r)
        p, rz = z + (r @ z) / rz * p, r @ z
        steps += 1
    return steps


PRECONDITIONERS = [
    pytest.param(FastPoisson, GRID, id="FastPoisson"),
    pytest.param(Multigrid, GRID, id="Multigrid"),
    pytest.param(AlgebraicMultigrid, None, id="AlgebraicMultigrid"),
]


@pytest.mark.parametrize(("make", "grid"), PRECONDITIONERS)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_iterations_as_in_torch(make: Any, grid: Grid | None, seed: int) -> None:
    A, b = stencil(seed), randn(N, N, seed=seed + 10)
    pc = FakePC(FakeMat(A.to_sparse()))
    context = as_petsc_pc(make(), grid=grid)
    context.setUp(pc)
    ours = ConjugateGradient(make(), rtol=1e-8).solve(A, b)
    steps = iterations_of_cg(A.to_sparse(), b.numpy().ravel(), context, pc, 1e-8)
    assert ours.converged and steps == ours.iterations > 4


def test_every_set_up_reads_the_operator_anew_and_apply_reads_nothing() -> None:
    matrix = FakeMat(stencil().to_sparse())
    pc, context, r = FakePC(matrix), as_petsc_pc(FastPoisson(), grid=GRID), randn(N * N).numpy()
    context.setUp(pc)
    first = applied(context, pc, r)
    np.testing.assert_array_equal(applied(context, pc, r), first)
    matrix.matrix = matrix.matrix * 4.0
    np.testing.assert_array_equal(applied(context, pc, r), first)
    assert matrix.reads == 1
    context.setUp(pc)
    np.testing.assert_allclose(applied(context, pc, r), first / 4, rtol=1e-12)
    assert matrix.reads == 2
    given = as_petsc_pc(FastPoisson(), stencil())
    given.setUp(FakePC(None))  # type: ignore[arg-type]
    np.testing.assert_allclose(applied(given, pc, r), first, rtol=1e-10)


def test_rows_in_the_order_of_the_host() -> None:
    order = np.random.default_rng(0).permutation(N * N)
    places = np.arange((N + 2) ** 2).reshape(N + 2, N + 2)[1:-1, 1:-1].ravel()
    cells = Grid((N, N), layout="cells")
    matrix = stencil().to_sparse()
    usual, permuted = as_petsc_pc(Multigrid(), grid=cells), as_petsc_pc(Multigrid(), grid=cells, free_dofs=order)
    pcs = [FakePC(FakeMat(matrix)), FakePC(FakeMat(matrix[order][:, order]))]
    usual.setUp(pcs[0])
    permuted.setUp(pcs[1])
    r = randn(N * N).numpy()
    np.testing.assert_allclose(applied(permuted, pcs[1], r[order]), applied(usual, pcs[0], r)[order], rtol=1e-6)
    assert len(places) == N * N


def test_a_network_needs_a_flexible_ksp() -> None:
    pc = FakePC(FakeMat(stencil().to_sparse()))
    context = as_petsc_pc(lambda r: r + r.abs(), grid=GRID)
    context.setUp(pc)
    for kind in ("fgmres", "fcg", "gcr"):
        context.preSolve(pc, FakeKSP(kind), None, None)
    for kind in ("cg", "gmres", "minres", "bcgs"):
        with pytest.raises(
            ValueError, match=rf"not a fixed linear preconditioner, but the KSP is '{kind}'.*'fgmres', 'fcg'"
        ):
            context.preSolve(pc, FakeKSP(kind), None, None)
    with pytest.raises(ValueError, match="transpose is not at hand"):
        context.applyTranspose(pc, FakeVec(np.ones(N * N)), FakeVec(np.ones(N * N)))
    multigrid = as_petsc_pc(Multigrid(), grid=GRID)
    multigrid.setUp(pc)
    for kind in ("cg", "gmres", "fcg"):
        multigrid.preSolve(pc, FakeKSP(kind), None, None)


def test_an_unsymmetric_preconditioner_is_refused_by_symmetric_methods() -> None:
    class OneSided(FastPoisson):
        symmetric = False

    pc = FakePC(FakeMat(stencil().to_sparse()))
    context = as_petsc_pc(OneSided(), grid=GRID)
    context.setUp(pc)
    context.preSolve(pc, FakeKSP("gmres"), None, None)
    with pytest.raises(ValueError, match="OneSided declares symmetric=False, but the KSP 'cg'"):
        context.preSolve(pc, FakeKSP("cg"), None, None)


def test_transpose_of_a_symmetric_one_and_view() -> None:
    pc, viewer = FakePC(FakeMat(stencil().to_sparse())), FakeViewer()
    context = as_petsc_pc(Multigrid(), grid=GRID)
    context.view(pc, viewer)
    assert "opflow Multigrid: not set up yet" in viewer.text
    context.setUp(pc)
    x, y = FakeVec(randn(N * N).numpy()), FakeVec(np.zeros(N * N))
    context.applyTranspose(pc, x, y)
    np.testing.assert_array_equal(y.array, applied(context, pc, x.array))
    context.view(pc, viewer)
    assert f"opflow Multigrid: linear, symmetric, deterministic; {N * N} unknowns" in viewer.text
    network = as_petsc_pc(torch.nn.Identity(), grid=GRID)
    network.setUp(pc)
    network.view(pc, viewer)
    assert "flexible methods only" in viewer.text


def test_wrong_use_is_refused_in_a_sentence() -> None:
    with pytest.raises(RuntimeError, match="used before its setUp"):
        applied(as_petsc_pc(Multigrid(), grid=GRID), FakePC(FakeMat(sp.eye_array(4))), np.ones(4))
    with pytest.raises(ValueError, match="A is given, so PETSc's matrix is not read"):
        as_petsc_pc(Multigrid(), stencil(), grid=GRID)
    with pytest.raises(ValueError, match="free_dofs are places on a grid"):
        as_petsc_pc(Multigrid(), free_dofs=np.arange(4))
    with pytest.raises(ValueError, match=r"lives on 4 processes.*bjacobi"):
        as_petsc_pc(Multigrid(), grid=GRID).setUp(FakePC(FakeMat(stencil().to_sparse(), processes=4)))
    with pytest.raises(ValueError, match="complex128"):
        as_petsc_pc(AlgebraicMultigrid()).setUp(FakePC(FakeMat(sp.eye_array(4, dtype=complex))))
    with pytest.raises(TypeError, match=r"Multigrid.*FaceStencil"):
        as_petsc_pc(Multigrid()).setUp(FakePC(FakeMat(stencil().to_sparse())))


# PETSc itself


@pytest.fixture
def PETSc() -> Iterator[Any]:
    reason = "petsc4py is not installed; `make petsc` runs these tests"
    module = pytest.importorskip("petsc4py.PETSc", reason=reason, exc_type=ImportError)
    yield module
    module.garbage_cleanup()  # python contexts must end before Python does


def ksp_for(PETSc: Any, matrix: Any, kind: str, context: Any) -> Any:
    rows, columns = (part.astype(PETSc.IntType) for part in (matrix.indptr, matrix.indices))
    A = PETSc.Mat().createAIJ(matrix.shape, csr=(rows, columns, matrix.data), comm=PETSc.COMM_SELF)
    ksp = PETSc.KSP().create(comm=PETSc.COMM_SELF)
    ksp.setOperators(A)
    ksp.setType(kind)
    if kind == "cg":
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=1e-8, atol=0.0, max_it=500)
    pc = ksp.getPC()
    pc.setType("python")
    pc.setPythonContext(context)
    return ksp


@pytest.mark.parametrize(("make", "grid"), PRECONDITIONERS)
def test_petsc_takes_the_same_iterations(PETSc: Any, make: Any, grid: Grid | None) -> None:
    if make is AlgebraicMultigrid:
        pytest.importorskip("pyamg", reason="PyAMG is not installed beside petsc4py")
    A, b = stencil(), randn(N, N, seed=1)
    matrix = A.to_sparse()
    ksp = ksp_for(PETSc, matrix, "cg", as_petsc_pc(make(), grid=grid))
    rhs, x = PETSc.Vec().createWithArray(b.numpy().ravel(), comm=PETSc.COMM_SELF), PETSc.Vec().createSeq(N * N)
    ksp.solve(rhs, x)
    ours = ConjugateGradient(make(), rtol=1e-8).solve(A, b)
    assert ksp.getConvergedReason() > 0 and ksp.getIterationNumber() == ours.iterations
    true = np.linalg.norm(b.numpy().ravel() - matrix @ x.getArray())
    assert true <= 1.1e-8 * float(b.norm())


def test_petsc_sets_up_again_when_its_matrix_changes(PETSc: Any) -> None:
    calls = []

    class Counted(FastPoisson):
        def setup(self, A: Any) -> FastPoisson:
            calls.append(1)
            return super().setup(A)

    matrix = stencil().to_sparse()
    ksp = ksp_for(PETSc, matrix, "cg", as_petsc_pc(Counted(), grid=GRID))
    rhs, x = PETSc.Vec().createWithArray(randn(N * N).numpy(), comm=PETSc.COMM_SELF), PETSc.Vec().createSeq(N * N)
    ksp.solve(rhs, x)
    ksp.solve(rhs, x)
    assert len(calls) == 1
    A = ksp.getOperators()[0]
    A.scale(2.0)
    ksp.setOperators(A)
    ksp.solve(rhs, x)
    assert len(calls) == 2 and ksp.getConvergedReason() > 0


def test_petsc_runs_a_network_in_flexible_methods_only(PETSc: Any) -> None:
    inner = FastPoisson().setup(stencil())

    def network(r: Tensor) -> Tensor:
        return inner.apply(r + r**3)

    rhs, x = PETSc.Vec().createWithArray(randn(N * N).numpy(), comm=PETSc.COMM_SELF), PETSc.Vec().createSeq(N * N)
    ksp = ksp_for(PETSc, stencil().to_sparse(), "fgmres", as_petsc_pc(network, grid=GRID))
    ksp.solve(rhs, x)
    assert ksp.getConvergedReason() > 0
    true = np.linalg.norm(rhs.getArray() - stencil().to_sparse() @ x.getArray())
    assert true <= 1.1e-8 * rhs.norm()
    with pytest.raises(ValueError, match="the KSP is 'cg'"):
        ksp_for(PETSc, stencil().to_sparse(), "cg", as_petsc_pc(network, grid=GRID)).solve(rhs, x)
