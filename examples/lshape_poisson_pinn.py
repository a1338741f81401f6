"""
Poisson's equation on an L-shape by a physics-informed network
==============================================================

-lap u = 1 on the square (-1, 1)^2 without its quadrant x > 0, y < 0, u = 0 on the boundary. At the corner that enters,
u = K r^(2/3) sin(2 theta / 3) + ..., whose gradient is infinite: a smooth network of (x, y) learns it to a per cent.

1. compute the reference with quadratic finite elements on graded meshes (scikit-fem), its error from two meshes, and K,
2. build u = (1 - x^2) (1 - y^2) r^(2/3) sin(2 theta / 3) N, zero on the whole boundary whatever N is. The network N reads
   r^(2/3) cos(2 theta / 3) and r^(2/3) sin(2 theta / 3), of which u is a smooth function; its value at the corner is K,
3. minimise the mean square of the residual: Adam, then self-scaled Broyden, with new points where the residual is large,
4. keep the state with the smallest residual at points that were never trained on,
5. draw the solution, its error, and the convergence.

Run ``python examples/lshape_poisson_pinn.py --help`` for the options.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opflow import Batch
from opflow.files import claim_folder, write_json
from opflow.layers import MLP, CornerFeatures, HardConstraint
from opflow.losses import PDEResidual
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, Collocation
from opflow.pde.geometry import LShape
from opflow.plotting import plot_convergence, plot_triangles, save_figure
from opflow.training import SelfScaledBroyden, fit


def main(
    hidden: tuple[int, ...] = (20, 20, 20),
    points: int = 3000,
    adam_steps: int = 500,
    iterations: int = 2000,
    resample_every: int = 500,
    refinements: int = 3,
    seed: int = 0,
    out: Path = Path("runs/lshape_poisson_pinn"),
    overwrite: bool = False,
) -> float:
    """Train and compare; return the relative L2 error.

    Args:
        hidden: widths of the network's hidden layers.
        points: collocation points.
        adam_steps: of the warm-up, new points every hundred.
        iterations: of the quasi-Newton method.
        resample_every: quasi-Newton iterations between new points, a multiple of 50.
        refinements: of the mesh of the reference, each halves all elements; the difference to one less tells its error.
        seed: of weights and points.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    coarse, fine = finite_elements(refinements - 1), finite_elements(refinements)
    difference = coarse.norm(fine.at_nodes_of(coarse) - coarse.u) / coarse.norm(coarse.u)
    reference = {
        "method": f"quadratic finite elements, {len(fine.u)} unknowns, graded",
        "error": difference / 7,  # third order: the coarser error is 8 times the finer one
        "difference to the coarser mesh": difference,
        "K": fine.K,
        "K on the coarser mesh": coarse.K,
        "largest value": float(fine.u.max()),
        "seconds": fine.seconds,
        "coarser": {"unknowns": len(coarse.u), "seconds": coarse.seconds},
    }
    print(f"reference: {reference}")

    # The network, and the residual as the loss.
    torch.manual_seed(seed)
    corner = CornerFeatures()
    network = PINN(corner, MLP((2, *hidden, 1), activation=nn.Tanh()))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    model = HardConstraint(
        network,
        lift=lambda y: 0.0 * y[..., :1],
        distance=lambda y: (1 - y[..., :1] ** 2) * (1 - y[..., 1:] ** 2) * corner(y)[..., 1:],
        conditions=("dirichlet",),
    ).double()
    derivatives = AutogradDerivatives(("x", "y"), method="taylor")
    loss = PDEResidual(lambda u, a: u.laplacian() + 1, derivatives, name="poisson")
    domain = LShape()
    collocation = Collocation(domain, points, steps=100, seed=seed)
    fresh = Batch(coords=domain.sample(4 * points, seed=(seed, 1)))
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {points} points")

    def residual(batch: Batch) -> Tensor:
        return loss.point_sizes(model, batch)

    nodes = torch.from_numpy(fine.nodes)

    @torch.no_grad()
    def predicted() -> np.ndarray:
        return model(nodes)[:, 0].numpy()

    # Adam finds the basin; the curvature that the quasi-Newton method gathers afterwards outlives the new points.
    seconds, began = 0.0, time.process_time()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, adam_steps))
    for _ in fit(model, loss, collocation, adam, epochs=max(1, adam_steps // 100), scheduler=schedule):
        collocation.resample(residual)
    broyden = SelfScaledBroyden(model.parameters(), iterations=50)
    collocation.steps = resample_every // 50
    best: dict[str, Tensor] = {}
    steps: list[int] = []
    curves: dict[str, list[float]] = {"residual at fresh points": [], "error": []}
    for record in fit(
        model, loss, collocation, broyden, epochs=max(1, iterations // resample_every),
        validate=lambda _: float(residual(fresh).square().mean().sqrt()),
    ):  # fmt: skip
        collocation.resample(residual)
        if record.best:
            best = copy.deepcopy(model.state_dict())
        seconds += time.process_time() - began
        error = fine.norm(predicted() - fine.u) / fine.norm(fine.u)
        print(f"{record}, error {error:.2e}, {seconds:.0f} s; {broyden.report}", flush=True)
        steps.append(broyden.report.iterations)
        curves["residual at fresh points"].append(record.validation)
        curves["error"].append(error)
        began = time.process_time()
    model.load_state_dict(best)

    # What came out.
    u = predicted()
    error = fine.norm(u - fine.u) / fine.norm(fine.u)
    K = float(network(torch.zeros(1, 2, dtype=torch.float64)).detach())
    row = {
        "error": error,
        "largest error": float(np.abs(u - fine.u).max()),
        "K": K,
        "error of K": abs(K - fine.K) / fine.K,
        "residual": min(curves["residual at fresh points"]),
        "seconds": seconds,
    }
    print(f"relative L2 error {error:.2e}, K = {K:.6f} for {fine.K:.6f}, in {seconds:.0f} s of CPU")
    settings = {"hidden": list(hidden), "points": points, "adam_steps": adam_steps, "iterations": iterations}
    history = {"iterations": steps, **curves}
    write_json(
        out / "results.json",
        {"rows": {"L-shape Poisson": row}, "reference": reference, "settings": settings, "history": history},
    )

    # Pictures, on the vertices of a mesh that is fine enough for the eye.
    n, triangles, said = coarse.mesh.p.shape[1], coarse.mesh.t.T, f"error (relative L2 {error:.1e})"
    values = {"finite elements": fine.u, "network": u, said: u - fine.u}
    shown = {name: (fine.nodes[:n], triangles, field[:n]) for name, field in values.items()}
    figure = plot_triangles(shown, edges=False, signed=[said])
    print(f"picture: {save_figure(figure, out / 'solution.png')}")
    figure = plot_convergence(
        {name: (steps, curve) for name, curve in curves.items()},
        xlabel="quasi-Newton iterations", ylabel="root mean square, relative L2",
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    return error


class FiniteElements(NamedTuple):
    """A solution of quadratic elements: values u at the nodes (n, 2), first the vertices of the mesh and then the middles of its edges."""

    mesh: Any
    nodes: np.ndarray
    u: np.ndarray
    mass: Any
    K: float
    seconds: float

    def norm(self, values: np.ndarray) -> float:
        """The L2 norm of the function with these values at the nodes."""
        return float(np.sqrt(values @ (self.mass @ values)))

    def at_nodes_of(self, coarser: FiniteElements) -> np.ndarray:
        """The solution at the nodes of the mesh that this one is the refinement of; they are the first vertices of this one."""
        n = len(coarser.u)
        assert np.allclose(self.nodes[:n], coarser.nodes)
        return self.u[:n]


def finite_elements(refinements: int) -> FiniteElements:
    """-lap u = 1, u = 0 on the boundary, by quadratic elements of scikit-fem, and the coefficient K of the corner.

    Toward the corner the elements shrink like their distance from it, so that the order of smooth solutions returns. With
    s = r^(-2/3) sin(2 theta / 3) and v harmonic, v = s on the boundary, Green's formula gives K = (1 / pi) int (s - v)
    (Grisvard 1985, section 8.4): the corner itself is not looked at.
    """
    try:
        import skfem
    except ImportError as error:
        raise ImportError(
            "the reference needs scikit-fem, which is not installed; run: pip install 'opflow[fem]'"
        ) from error
    from scipy.sparse.linalg import splu

    began = time.process_time()
    mesh = skfem.MeshTri.init_lshaped()
    mesh = skfem.MeshTri(mesh.p * np.array([[1.0], [-1.0]]), mesh.t).refined(2)
    for level in range(10):
        away = np.linalg.norm(mesh.p[:, mesh.t].mean(axis=1), axis=0)
        mesh = mesh.refined(np.nonzero(away < 0.75 * 0.5**level)[0])
    mesh = mesh.refined(refinements)
    basis = skfem.Basis(mesh, skfem.ElementTriP2(), intorder=4)
    stiffness = skfem.BilinearForm(lambda u, v, w: (u.grad * v.grad).sum(0)).assemble(basis)
    mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(basis)
    load = skfem.LinearForm(lambda v, w: v).assemble(basis)
    boundary = basis.get_dofs().flatten()
    inside = basis.complement_dofs(boundary)
    factors = splu(stiffness[inside][:, inside].tocsc())
    u, v = basis.zeros(), basis.zeros()
    u[inside] = factors.solve(load[inside])
    outer = boundary[np.abs(basis.doflocs[:, boundary]).max(axis=0) > 1 - 1e-9]  # s is zero on the sides of the corner
    r, theta = polar(basis.doflocs[:, outer])
    v[outer] = r ** (-2 / 3) * np.sin(2 * theta / 3)
    v[inside] = factors.solve(-(stiffness @ v)[inside])
    K = (integral_of_dual() - load @ v) / np.pi
    # The degrees of freedom are those of vertices, then those of edges; a refinement numbers its vertices likewise.
    order = np.concatenate([basis.nodal_dofs[0], basis.facet_dofs[0]])
    nodes, sorted_mass = np.ascontiguousarray(basis.doflocs[:, order].T), mass[order][:, order]
    return FiniteElements(mesh, nodes, u[order], sorted_mass, float(K), time.process_time() - began)


def polar(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r and theta in [0, 3 pi / 2] of points (2, n)."""
    x, y = points
    return np.hypot(x, y), np.arctan2(-x - y, y - x) + 0.75 * np.pi


def integral_of_dual(order: int = 30) -> float:
    """int r^(-2/3) sin(2 theta / 3) over the L-shape, by Gauss's rule in theta between the directions of its corners."""
    x, weights = np.polynomial.legendre.leggauss(order)
    theta = (np.pi / 8) * (x + 1) + (np.pi / 4) * np.arange(6)[:, None]
    end = 1 / np.maximum(np.abs(np.cos(theta)), np.abs(np.sin(theta)))
    return float((np.pi / 8) * (weights * np.sin(2 * theta / 3) * 0.75 * end ** (4 / 3)).sum())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
