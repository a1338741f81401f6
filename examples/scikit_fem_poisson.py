"""
Finite elements of scikit-fem, solved by opflow
===============================================

Three ways to discretise -lap u = f, u = 0 on the boundary, all assembled and condensed by scikit-fem:

1. linear triangles on a rectangle of nodes. Their matrix is a five-point stencil in another order of numbers; it is recognised
   from the coordinates of the nodes, and geometric multigrid solves it without a matrix,
2. linear triangles on a disc and 3. quadratic triangles with curved sides there. No stencil is found, the refusal says why, and algebraic multigrid
   takes the matrix.

Each is refined, compared with SciPy's direct solver on the same matrix and with the exact u, and its order is checked. On the finest
meshes SciPy's own conjugate gradients take the same preconditioners as ``M=``.

It takes seconds. Run ``python examples/scikit_fem_poisson.py --help`` for the options.
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
from opflow.interop import as_preconditioner
from opflow.plotting import plot_convergence, plot_triangles, save_figure
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid

LENGTHS = (1.0, 1.5)  # of the rectangle


def main(
    rectangles: tuple[int, ...] = (33, 65, 129, 257),
    discs: tuple[int, ...] = (3, 4, 5, 6),
    rtol: float = 1e-10,
    out: Path = Path("runs/scikit_fem_poisson"),
    overwrite: bool = False,
) -> float:
    """Solve on every mesh; return the largest difference to a direct solve of the same matrix, relative to its solution.

    Args:
        rectangles: nodes along the shorter side, one number a mesh.
        discs: refinements of a coarse disc, one number a mesh.
        rtol: of conjugate gradients.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    try:
        import skfem
    except ImportError as error:
        raise ImportError(
            "this example needs scikit-fem, which is not installed; run: pip install 'opflow[fem]'"
        ) from error
    from scipy.sparse.linalg import cg, spsolve

    claim_folder(out, overwrite=overwrite)

    def rectangle(n: int) -> Any:
        lines = [np.linspace(0.0, length, round((n - 1) * length) + 1) for length in LENGTHS]
        return skfem.MeshTri.init_tensor(*lines)

    # A name: meshes, element, exact solution, right-hand side, the order in L2 that theory states.
    cases = {
        "rectangle, linear": ([rectangle(n) for n in rectangles], skfem.ElementTriP1(), waves, waves_forcing, 2),
        "disc, linear": ([skfem.MeshTri.init_circle(k) for k in discs], skfem.ElementTriP1(), bump, bump_forcing, 2),
        "disc, quadratic": (
            [skfem.MeshTri2.init_circle(k) for k in discs],
            skfem.ElementTriP2(),
            bump,
            bump_forcing,
            3,
        ),
    }
    curves, pictures, results, differences = {}, {}, {}, []
    for name, (meshes, element, u, f, stated) in cases.items():
        sizes, errors = [], []
        for mesh in meshes:
            # The host assembles and removes the boundary.
            basis = skfem.Basis(mesh, element, intorder=6)
            stiffness = skfem.BilinearForm(lambda u, v, w: (u.grad * v.grad).sum(0)).assemble(basis)
            load = skfem.LinearForm(lambda v, w, f=f: f(w.x) * v).assemble(basis)
            matrix, rhs, expanded, inside = skfem.condense(stiffness, load, D=basis.get_dofs())

            # opflow solves: through a stencil where there is one, through the matrix where not.
            start = time.perf_counter()
            stencil = recognised(matrix, basis, inside)
            if stencil is None:
                A, M, b = matrix, AlgebraicMultigrid(), torch.from_numpy(rhs)
            else:
                A, M, b = stencil, Multigrid(), stencil.scatter(torch.from_numpy(rhs)[None])[0]
            solution = ConjugateGradient(M, rtol=rtol, raise_on_failure=True).solve(A, b)
            x = solution.x if stencil is None else stencil.gather(solution.x[None])[0]
            expanded[inside] = x.numpy()
            seconds = time.perf_counter() - start

            # Checks: against a direct solve, and against the exact solution.
            start = time.perf_counter()
            direct = spsolve(matrix.tocsc(), rhs)
            direct_seconds = time.perf_counter() - start
            differences.append(float(np.linalg.norm(expanded[inside] - direct) / np.linalg.norm(direct)))
            squares = skfem.Functional(lambda w, u=u: (w.uh - u(w.x)) ** 2).assemble(
                basis, uh=basis.interpolate(expanded)
            )
            sizes.append(mesh.param())
            errors.append(float(np.sqrt(squares)))
            print(
                f"{name}: {len(rhs)} unknowns, {type(M).__name__}, {solution.iterations} iterations, {seconds:.2f} s with setup (direct "
                f"{direct_seconds:.2f} s), difference {differences[-1]:.1e}, error {errors[-1]:.2e}"
            )
            if mesh is meshes[0]:
                vertices = mesh.t.max() + 1
                pictures[name] = (mesh.p[:, :vertices].T, mesh.t.T, expanded[basis.nodal_dofs[0]])
        order = float(np.log(errors[-2] / errors[-1]) / np.log(sizes[-2] / sizes[-1]))
        print(f"{name}: order {order:.2f} of {stated} stated")
        if order < stated - 0.2:
            raise RuntimeError(f"{name}: the error falls with order {order:.2f}, but {stated} is stated.")
        curves[name] = (sizes, errors)

        # SciPy's conjugate gradients with the same preconditioner.
        counted: list[int] = []
        x, info = cg(
            matrix, rhs, rtol=rtol, M=as_preconditioner(M, A), callback=lambda _, counted=counted: counted.append(1)
        )
        if info != 0:
            raise RuntimeError(f"{name}: SciPy's cg returned info={info}.")
        differences.append(float(np.linalg.norm(x - direct) / np.linalg.norm(direct)))
        print(
            f"{name}: SciPy's cg with M={type(M).__name__}: {len(counted)} iterations, difference {differences[-1]:.1e}"
        )
        results[name] = {
            "preconditioner": type(M).__name__, "order": order, "error": errors[-1],
            "iterations": solution.iterations, "iterations of SciPy": len(counted),
        }  # fmt: skip

    print(f"picture: {save_figure(plot_triangles(pictures), out / 'solutions.png')}")
    figure = plot_convergence(curves, xlabel="mesh size", ylabel="error in L2", log_x=True, slopes=(2.0, 3.0))
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    results["largest difference to the direct solve"] = max(differences)
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return max(differences)


def recognised(matrix: Any, basis: Any, inside: np.ndarray) -> FaceStencil | None:
    """The stencil behind the matrix of the nodes `inside` of a rectangle; None, with the reason, where there is none."""
    nodes = basis.doflocs.round(9)  # what assembly leaves by rounding is no place of its own
    lines = [np.unique(line) for line in nodes]
    shape = [len(line) for line in lines]
    if np.prod(shape) != nodes.shape[1]:
        print(
            f"no stencil: {nodes.shape[1]} nodes have {shape[0]} x {shape[1]} different coordinates, so they are no grid."
        )
        return None
    grid = Grid(shape, [(line[0], line[-1]) for line in lines])
    index = np.ravel_multi_index([np.searchsorted(*pair) for pair in zip(lines, nodes, strict=True)], grid.shape)
    try:
        return FaceStencil.from_sparse(matrix, grid, index[inside])
    except ValueError as refusal:
        print(f"no stencil: {refusal}")
        return None


def waves(x: np.ndarray) -> np.ndarray:
    """sin(pi x / L_x) sin(pi y / L_y) on the rectangle."""
    return np.sin(np.pi * x[0] / LENGTHS[0]) * np.sin(np.pi * x[1] / LENGTHS[1])


def waves_forcing(x: np.ndarray) -> np.ndarray:
    """-lap of it."""
    return np.pi**2 * (LENGTHS[0] ** -2 + LENGTHS[1] ** -2) * waves(x)


def bump(x: np.ndarray) -> np.ndarray:
    """cos(pi r^2 / 2) on the unit disc."""
    return np.cos(np.pi / 2 * (x[0] ** 2 + x[1] ** 2))


def bump_forcing(x: np.ndarray) -> np.ndarray:
    """-lap of it."""
    square = x[0] ** 2 + x[1] ** 2
    return np.pi**2 * square * np.cos(np.pi / 2 * square) + 2 * np.pi * np.sin(np.pi / 2 * square)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
