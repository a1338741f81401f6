"""
Darcy flow on several grids
===========================

A random medium of opflow is a function, not an array. This example

1. samples one two-phase medium at 33, 65, 129 and 257 nodes a side and checks that it is one and the same function,
2. solves -div(a grad u) = 1 on each grid and compares with the finest,
3. measures the order of convergence on the manufactured solutions of ``Darcy.exact``: two where the permeability is
   smooth, or jumps midway between nodes; one where it jumps on a node.

It takes seconds. Run ``python examples/darcy_resolution.py --help`` for the options.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from opflow import Grid
from opflow.files import claim_folder
from opflow.losses import relative_errors
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Darcy


def main(
    sizes: tuple[int, ...] = (33, 65, 129),
    finest: int = 257,
    sample: int = 0,
    seed: int = 0,
    out: Path = Path("runs/darcy_resolution"),
    overwrite: bool = False,
) -> float:
    """Solve one medium on several grids and return the order observed on a smooth manufactured solution.

    Args:
        sizes: nodes per axis; each spacing a whole multiple of the finest.
        finest: nodes per axis of the grid that the others are compared with.
        sample: the number of the medium.
        seed: the root seed of the media.
        out: where the two pictures go.
        overwrite: empty `out` first if it holds files.
    """
    claim_folder(out, overwrite=overwrite)

    # One medium, one function: what is sampled on a coarse grid is what the fine grid has at the same nodes.
    problem = Darcy()
    fine = Grid((finest, finest))
    medium = problem.sample([sample], fine, seed=seed)["permeability"]
    reference = problem.solve({"permeability": medium}, fine)["pressure"]
    rows, spacings, errors = [], [], []
    for n in sizes:
        grid, stride = Grid((n, n)), (finest - 1) // (n - 1)
        a = problem.sample([sample], grid, seed=seed)["permeability"]
        same = torch.equal(a, fine.subsample(medium, stride))
        u, u_fine = problem.solve({"permeability": a}, grid)["pressure"], fine.subsample(reference, stride)
        error = relative_l2_error(u, u_fine, grid)
        rows.append({"permeability": a[0], f"pressure, {finest} nodes": u_fine[0], "pressure, this grid": u[0]})
        spacings.append(grid.spacing[0])
        errors.append(error)
        print(f"{n:4d} nodes: the same medium: {same}; pressure against {finest} nodes: relative L2 {error:.2e}")
    figure = plot_fields(
        rows, fine, input="permeability", reference=f"pressure, {finest} nodes", prediction="pressure, this grid"
    )
    print(f"picture: {save_figure(figure, out / 'fields.png')}")

    # Manufactured solutions: an even number of nodes puts x = 1/2, where the medium jumps, midway between two of them.
    even = [n - 1 for n in sizes]
    studies = {
        "smooth permeability": (Darcy(medium="log-normal"), sizes),
        "jump midway between nodes": (Darcy(), even),
        "jump on a node": (Darcy(), sizes),
    }
    curves, orders = {f"random medium, against {finest} nodes": (spacings, errors)}, {}
    for name, (manufactured, numbers) in studies.items():
        h, e = zip(*(exact_error(manufactured, Grid((n, n))) for n in numbers), strict=True)
        orders[name] = math.log(e[-2] / e[-1]) / math.log(h[-2] / h[-1])
        curves[f"{name}: order {orders[name]:.2f}"] = (h, e)
        print(f"manufactured solution, {name}: observed order {orders[name]:.2f}")
    labels = {"xlabel": "spacing h", "ylabel": "relative L2 error of the pressure"}
    figure = plot_convergence(curves, **labels, log_x=True, slopes=(1, 2))
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    return orders["smooth permeability"]


def exact_error(problem: Darcy, grid: Grid) -> tuple[float, float]:
    """The spacing, and the relative L2 error against the manufactured solution."""
    exact = {name: field[None] for name, field in problem.exact(grid.points()).items()}
    u = problem.solve(exact, grid)["pressure"]
    return grid.spacing[0], relative_l2_error(u, exact["pressure"], grid)


def relative_l2_error(u: torch.Tensor, reference: torch.Tensor, grid: Grid) -> float:
    """||u - reference|| / ||reference|| with the quadrature weights of the grid, for fields (1, *grid)."""
    return float(relative_errors(u[:, None], reference[:, None], grid.quadrature_weights()))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
