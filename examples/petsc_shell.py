"""
Inside PETSc: opflow's multigrid as a PC
========================================

A simulation that solves with PETSc keeps its matrix, its KSP and its options; only the preconditioner is opflow's:

1. assemble -div(a grad u) = f on nodes, for a medium of two phases, as a PETSc AIJ matrix,
2. solve by KSP cg with PETSc's preconditioners and with opflow's in a PC of type python, to the same true residual,
3. compare the iterations with those of opflow's own conjugate gradients: the same algorithm, so the same number,
4. change the medium, as a time step would: PETSc calls ``setUp`` again and the preconditioner follows,
5. draw the residuals.

It needs petsc4py, for which there is no wheel: ``make petsc`` runs it beside Debian's. ``python examples/petsc_shell.py --help`` lists
the options.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opflow import Grid
from opflow.files import claim_folder, write_bytes
from opflow.interop import as_petsc_pc
from opflow.plotting import plot_convergence, save_figure
from opflow.problems import Darcy
from opflow.solvers import ConjugateGradient, FaceStencil, FastPoisson, Multigrid


def main(
    size: int = 257,
    rtol: float = 1e-8,
    seed: int = 0,
    out: Path = Path("runs/petsc_shell"),
    overwrite: bool = False,
) -> float:
    """Solve two media in turn; return the iterations of PETSc's cg with opflow's multigrid on the second.

    Args:
        size: nodes per axis.
        rtol: of every solve, on the true residual.
        seed: of the media.
        out: where results and the picture go.
        overwrite: replace what an earlier run left in `out`.
    """
    try:
        from petsc4py import PETSc
    except ImportError:
        raise SystemExit(
            "petsc4py is not installed, and this example solves with PETSc; on Debian run `apt install python3-petsc4py python3-venv` "
            "and `make petsc`."
        ) from None
    claim_folder(out, overwrite=overwrite)
    grid = Grid((size, size))
    media = Darcy().sample(2, grid, seed=seed)["permeability"]
    stencils = [FaceStencil.from_coefficient(a[None], grid) for a in media]
    rhs = np.ones(stencils[0].shape).ravel()

    # opflow alone: the same algorithm in torch. It comes first, so that compiling is in nobody's times below.
    results: dict[str, Any] = {}
    for name, M in (("FastPoisson", FastPoisson()), ("Multigrid", Multigrid())):
        solution = ConjugateGradient(M, rtol=rtol).solve(stencils[0], torch.from_numpy(rhs).view(stencils[0].shape))
        results[f"torch {name}"] = {
            "iterations": solution.iterations,
            "true_residual": solution.residual_norm / np.linalg.norm(rhs),
        }
        print(f"torch {name:14s} {solution.iterations:5d} iterations")

    # PETSc's side. The norm type makes cg stop on the true residual norm, as opflow does.
    def assembled(A: FaceStencil) -> Any:
        matrix = A.to_sparse()
        rows, columns = (part.astype(PETSc.IntType) for part in (matrix.indptr, matrix.indices))
        return PETSc.Mat().createAIJ(matrix.shape, csr=(rows, columns, matrix.data), comm=PETSc.COMM_SELF)

    def conjugate_gradients(A: Any, pc: Any) -> Any:
        ksp = PETSc.KSP().create(comm=PETSc.COMM_SELF)
        ksp.setOperators(A)
        ksp.setType("cg")
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=rtol, atol=0.0, max_it=10_000)
        ksp.setConvergenceHistory()
        if isinstance(pc, str):
            ksp.getPC().setType(pc)
        else:
            ksp.getPC().setType("python")
            ksp.getPC().setPythonContext(pc)
        return ksp

    b, x = PETSc.Vec().createWithArray(rhs, comm=PETSc.COMM_SELF), PETSc.Vec().createSeq(len(rhs))
    preconditioners = {
        "PETSc none": "none",
        "PETSc icc": "icc",
        "PETSc gamg": "gamg",
        "opflow FastPoisson": as_petsc_pc(FastPoisson(), grid=grid),
        "opflow Multigrid": as_petsc_pc(Multigrid(), grid=grid),
    }
    first, second = (assembled(A) for A in stencils)
    solvers, curves = {}, {}
    for name, pc in preconditioners.items():
        solvers[name] = ksp = conjugate_gradients(first, pc)
        start = time.perf_counter()
        ksp.setUp()
        ready = time.perf_counter()
        ksp.solve(b, x)
        done = time.perf_counter()
        residual = (b - first * x).norm() / b.norm()
        results[name] = {"iterations": ksp.getIterationNumber(), "true_residual": residual}
        curves[name] = (1 + np.arange(len(ksp.getConvergenceHistory())), ksp.getConvergenceHistory() / b.norm())
        print(
            f"{name:20s} {ksp.getIterationNumber():5d} iterations, set-up {ready - start:.3f} s, solve {done - ready:.3f} s, "
            f"true residual {residual:.1e}"
        )

    # The next time step: another medium in the same KSP. PETSc sees a new operator and calls setUp.
    ksp = solvers["opflow Multigrid"]
    ksp.setOperators(second)
    ksp.solve(b, x)
    residual = (b - second * x).norm() / b.norm()
    iterations = ksp.getIterationNumber()
    results["opflow Multigrid, second medium"] = {"iterations": iterations, "true_residual": residual}
    print(f"second medium        {iterations:5d} iterations, true residual {residual:.1e}")
    ksp.getPC().view(PETSc.Viewer.STDOUT(PETSc.COMM_SELF))
    for ksp in solvers.values():
        ksp.destroy()  # while Python is there: PETSc would do it after Python's end, without a context to call

    figure = plot_convergence(curves, xlabel="1 + iterations", ylabel="relative residual", log_x=True)
    print(f"picture: {save_figure(figure, out / 'residuals.png')}")
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return float(iterations)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
