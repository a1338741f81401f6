"""
Matrices of another program: PyAMG's gallery
============================================

Sparse matrices as other programs assemble them, solved by opflow's conjugate gradients to a true residual of 1e-8:

1. five- and seven-point matrices are recognised as stencils and preconditioned by geometric multigrid, which needs no matrix,
2. all others (unstructured grids, elasticity, rotated anisotropy) get algebraic multigrid, PyAMG's hierarchy,
3. what conjugate gradients cannot solve is answered with a reason, not with numbers,
4. draw the iterations with and without preconditioners.

It takes seconds. Run ``python examples/pyamg_gallery.py --help`` for the options.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from opflow import Grid
from opflow.files import claim_folder, write_bytes
from opflow.plotting import plot_bars, save_figure
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid


def main(
    size: int = 100,
    rtol: float = 1e-8,
    seed: int = 0,
    out: Path = Path("runs/pyamg_gallery"),
    overwrite: bool = False,
) -> float:
    """Solve the gallery's matrices; return the largest true relative residual of a solve that says it converged.

    Args:
        size: points per axis of the matrices that come in any size; a fourth of it in three dimensions.
        rtol: of every solve.
        seed: of the right-hand sides.
        out: where results and the picture go.
        overwrite: replace what an earlier run left in `out`.
    """
    from pyamg.gallery import diffusion_stencil_2d, linear_elasticity, load_example, poisson, stencil_grid

    claim_folder(out, overwrite=overwrite)
    random = np.random.default_rng(seed)

    def diffusion(epsilon: float, angle: float):
        return stencil_grid(diffusion_stencil_2d(epsilon=epsilon, theta=angle, type="FD"), (size, size))

    # A name: the matrix, the shape of its grid where it has one, what smoothed aggregation should know of it.
    plate, plate_modes = linear_elasticity((size // 2, size // 2))
    bar = load_example("bar")
    quarter = max(4, size // 4)
    matrices = {
        "Poisson, five points": (poisson((size, size)), (size, size), {}),
        "Poisson, seven points": (poisson((quarter,) * 3), (quarter,) * 3, {}),
        "anisotropy 0.01, aligned": (diffusion(0.01, 0.0), (size, size), {}),
        "anisotropy 0.01, rotated by 45 degrees": (diffusion(0.01, math.pi / 4), (size, size), {}),
        "elasticity of a plate": (plate, None, {"near_null_space": plate_modes, "block": 2}),
        "bar (elasticity)": (bar["A"], None, {"near_null_space": bar["B"], "block": 3}),
    }
    for name in ("airfoil", "knot", "local_disc_galerkin_diffusion", "unit_cube", "unit_square"):
        matrices[name] = (load_example(name)["A"], None, {})

    iterations, residuals = {}, []
    for name, (matrix, shape, modes) in matrices.items():
        matrix = matrix.tocsr()
        # From a known x, so that the right-hand side is in the range of singular ones too: unit_square has closed sides.
        b = matrix @ random.standard_normal(matrix.shape[0])
        stencil = recognised(matrix, shape)
        preconditioners = {"none": None, "smoothed aggregation": AlgebraicMultigrid(**modes)}
        if not modes:
            preconditioners["Ruge-Stueben"] = AlgebraicMultigrid("ruge-stueben")
        if stencil is not None:
            preconditioners["geometric multigrid"] = Multigrid()
        iterations[name] = {}
        for method, M in preconditioners.items():
            solver = ConjugateGradient(M, rtol=rtol, max_steps=5000)
            if stencil is None:
                solution = solver.solve(matrix, b)
                x = solution.x
            else:
                solution = solver.solve(stencil, b.reshape(stencil.shape))
                x = solution.x.ravel()
            if solution.converged:
                iterations[name][method] = solution.iterations
                residuals.append(float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)))
            else:
                print(f"{name}, {method}: {solution.message}")
        kind = "matrix" if stencil is None else "stencil"
        print(
            f"{name} ({kind}, {matrix.shape[0]} unknowns): "
            + ", ".join(f"{m} {n}" for m, n in iterations[name].items())
        )

    # Neither of these is symmetric positive definite; the answer is a reason or a refusal.
    flow = load_example("recirc_flow")["A"].tocsr()
    solution = ConjugateGradient(AlgebraicMultigrid()).solve(flow, np.ones(flow.shape[0]))
    print(f"recirc_flow: {solution.reason.name}: {solution.reason.value}")
    wave = load_example("helmholtz_2D")["A"].tocsr()
    try:
        ConjugateGradient().solve(wave, np.ones(wave.shape[0]))
    except ValueError as refusal:
        print(f"helmholtz_2D: {refusal}")

    print(f"largest true relative residual of {len(residuals)} solves that converged: {max(residuals):.1e}")
    figure = plot_bars(iterations, xlabel=f"iterations of conjugate gradients to {rtol:g}")
    print(f"picture: {save_figure(figure, out / 'iterations.png')}")
    results = {"iterations": iterations, "largest_residual": max(residuals), "recirc_flow": solution.reason.name}
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return max(residuals)


def recognised(matrix, shape: tuple[int, ...] | None) -> FaceStencil | None:
    """The stencil behind a matrix on a grid of cells, or None; a matrix that has none says why."""
    if shape is None:
        return None
    try:
        return FaceStencil.from_sparse(matrix, Grid(shape, layout="cells"))
    except ValueError as refusal:
        print(f"no stencil: {refusal}")
        return None


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
