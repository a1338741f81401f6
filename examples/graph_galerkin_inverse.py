"""
A forcing from sparse observations, by graph Galerkin
=====================================================

-lap u = f on an L-shape, u = 0 on its boundary. f is a smooth random field, unknown; u is observed at 50 points with noise. Three methods look
for the same f, the most probable one under a Whittle-Matern prior and the known noise, on the same mesh of linear triangles:

1. graph Galerkin: a graph network gives u and f at the nodes; the dual norm of the weak form's residual, the observations and
   the prior are lowered together,
2. the same with u eliminated: the network gives f alone, u is solved for, and the gradient is that of the implicit function,
3. adjoint Gauss-Newton without a network, the classical solver.

The data come from quadratic triangles on a mesh of half the size, so no method knows their discretisation error.

It takes about a minute. Run ``python examples/graph_galerkin_inverse.py --help`` for the options.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opflow import Batch, Mesh
from opflow.files import claim_folder, write_json
from opflow.layers import scaled_laplacian
from opflow.losses import FieldPrior, GalerkinResidual, PointObservations
from opflow.models import GalerkinSolution, GraphNetwork
from opflow.pde import FiniteElementSpace, MaternField, SparseMatrix, WeakForm
from opflow.pde.random_field import sample_generator
from opflow.plotting import plot_convergence, plot_triangles, save_figure
from opflow.training import SelfScaledBroyden, fit

MODES = 6  # of f along each axis: 36 degrees of freedom
RESIDUAL_WEIGHTS = (0.1, 1.0, 10.0)  # one after another, over the variance of the noise
PRIOR = {"length": 2.0, "deviation": 1.0}


def main(
    nodes: int = 2000,
    observations: int = 50,
    noise: float = 0.01,
    iterations: int = 2000,
    hidden_channels: int = 16,
    layers: int = 2,
    order: int = 4,
    seed: int = 0,
    out: Path = Path("runs/graph_galerkin_inverse"),
    overwrite: bool = False,
) -> float:
    """Recover f by all three; return the error of graph Galerkin's f over that of adjoint Gauss-Newton's.

    Args:
        nodes: of the mesh, at least.
        observations: of u, at random points.
        noise: deviation of their errors, over the deviation of u at the points.
        iterations: of the quasi-Newton method, for each of the two networks.
        hidden_channels: of the network.
        layers: convolutions.
        order: polynomials of each.
        seed: of f, of the points, of the noise and of the weights.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    task = draw(nodes, observations, noise, seed)
    space, form = task.space, task.form
    print(f"mesh: {space.n_nodes} nodes; noise {task.sigma:.2e}, {noise:.1%} of the deviation of u")
    results: dict[str, Any] = {"nodes": space.n_nodes, "observations": observations, "noise": noise, "seed": seed}
    found: dict[str, Tensor] = {}

    def note(name: str, u: Tensor, f: Tensor, start: float) -> dict[str, Any]:
        row = {
            "method": name, "error_f": task.error(f, task.f), "error_u": task.error(u, task.u),
            "seconds": time.process_time() - start,
        }  # fmt: skip
        found[name] = f
        print(f"{name:36s} error of f {row['error_f']:.4f}, of u {row['error_u']:.4f}, {row['seconds']:.1f} s")
        return row

    # The classical solver.
    start = time.process_time()
    u, f = adjoint_gauss_newton(task)
    results["reference"] = note("adjoint Gauss-Newton", u, f, start)

    # Networks on the graph of the mesh. The solution of -lap e = 1 is a feature and multiplies u: it vanishes on the boundary and
    # behaves like u in the corners, so that a smooth network is left to find.
    start = time.process_time()
    envelope = form.solve({"forcing": torch.ones(space.n_nodes, dtype=torch.float64)})
    envelope = envelope / envelope.max()
    features = torch.cat([space.nodes, 2 * envelope[:, None] - 1], 1)
    graph = scaled_laplacian(space.edges, space.n_nodes, dtype=torch.float64)
    misfit = PointObservations(form, task.points, task.values, task.sigma)
    curves = {}

    torch.manual_seed(seed)
    network = GraphNetwork.build(3, 2, hidden_channels, n_layers=layers, order=order).double()
    print(f"network: {sum(p.numel() for p in network.parameters())} parameters")
    scale = torch.stack([float(task.values.abs().max()) * envelope, torch.ones_like(envelope)], 1)
    batch = Batch(coords=features, parameters={"laplacian": graph, "scale": scale})
    residual, prior = GalerkinResidual(form, ("forcing",)), FieldPrior(task.prior, 1)
    optimizer = SelfScaledBroyden(network.parameters(), iterations=25)
    curves["graph Galerkin"] = [
        record.loss
        for share, weight in zip((0.25, 0.25, 0.5), RESIDUAL_WEIGHTS, strict=True)
        for record in train(
            network, (weight / task.sigma**2) * residual + misfit + prior, batch, optimizer, share * iterations
        )
    ]
    u, f = outputs(network, batch, form)
    results |= note("graph Galerkin", u, f, start)
    with torch.no_grad():
        results["residual"] = float(residual.norm(residual.equations(network, batch)))
    results["ratio"] = results["error_f"] / results["reference"]["error_f"]

    # The same with u eliminated.
    start = time.process_time()
    torch.manual_seed(seed)
    network = GraphNetwork.build(3, 1, hidden_channels, n_layers=layers, order=order).double()
    model = GalerkinSolution(network, form, ("forcing",), linear=True)
    batch = Batch(coords=features, parameters={"laplacian": graph})
    optimizer = SelfScaledBroyden(network.parameters(), iterations=25)
    curves["u eliminated"] = [record.loss for record in train(model, misfit + prior, batch, optimizer, iterations)]
    u, f = outputs(model, batch, form)
    results["eliminated"] = note("graph Galerkin, u eliminated", u, f, start)
    results["eliminated"]["ratio"] = results["eliminated"]["error_f"] / results["reference"]["error_f"]
    print(f"error of f over Gauss-Newton's: {results['ratio']:.3f}, u eliminated {results['eliminated']['ratio']:.3f}")

    mesh = (space.mesh.points, space.mesh.triangles)
    pictures = {"f": (*mesh, task.f)}
    for name in ("adjoint Gauss-Newton", "graph Galerkin"):
        pictures |= {name: (*mesh, found[name]), f"error, {name}": (*mesh, (found[name] - task.f).abs())}
    print(f"picture: {save_figure(plot_triangles(pictures, edges=False), out / 'forcings.png')}")
    steps = {name: (25 * np.arange(1, len(values) + 1), values) for name, values in curves.items()}
    figure = plot_convergence(steps, xlabel="iteration", ylabel="loss")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    write_json(out / "results.json", results)
    return results["ratio"]


@dataclass
class Task:
    """The discretised problem, its data, and the truth to compare with."""

    space: FiniteElementSpace
    form: WeakForm
    prior: MaternField
    points: Tensor
    values: Tensor
    sigma: float
    f: Tensor  # at the nodes
    u: Tensor

    def error(self, found: Tensor, truth: Tensor) -> float:
        """The relative error in L2 of nodal values."""
        mass = SparseMatrix(self.space.mass())
        difference = found - truth
        return math.sqrt(float(difference @ mass(difference)) / float(truth @ mass(truth)))


def draw(nodes: int, observations: int, noise: float, seed: int) -> Task:
    """A smooth random f = sum c_kl cos(k pi (x+1)/2) cos(l pi (y+1)/2), k, l < 6, c_kl ~ N(0, (k^2 + l^2 + 1)^-2), and its data."""
    space = FiniteElementSpace(l_shape(nodes))
    fine = FiniteElementSpace(space.mesh.to_skfem().refined(), degree=2)
    generator = sample_generator("graph_galerkin_inverse", "test", 0, seed)
    k = torch.arange(MODES, dtype=torch.float64)
    coefficients = torch.from_numpy(generator.standard_normal((MODES, MODES))) / (k[:, None] ** 2 + k**2 + 1)

    def f(x: Tensor) -> Tensor:
        along_x, along_y = (torch.cos(torch.pi / 2 * (c + 1)[:, None] * k) for c in x.unbind(1))
        return torch.einsum("nk,kl,nl->n", along_x, coefficients, along_y)

    u = poisson(fine).solve({"forcing": f(fine.nodes)})
    box = torch.from_numpy(generator.uniform(-1, 1, (100 + 10 * observations, 2)))
    points = box[space.mesh.signed_distance(box) < -0.02][:observations]
    clean = SparseMatrix(fine.interpolation(points))(u)
    sigma = noise * float(clean.std())
    values = clean + sigma * torch.from_numpy(generator.standard_normal(observations))
    prior = MaternField(space, **PRIOR)
    at_nodes = SparseMatrix(fine.interpolation(space.nodes))(u)
    return Task(space, poisson(space), prior, points, values, sigma, f(space.nodes), at_nodes)


def poisson(space: FiniteElementSpace) -> WeakForm:
    """-lap u = f, u = 0 on the boundary."""
    return WeakForm(space, lambda u, grad, x, p: grad, lambda u, grad, x, p: p["forcing"])


def l_shape(nodes: int) -> Mesh:
    """(-1, 1)^2 without its first quadrant, with at least so many nodes, finer towards the corner at 0."""
    try:
        import skfem
    except ImportError as error:
        raise ImportError("this example needs scikit-fem; run: pip install 'opflow[fem]'") from error
    host = skfem.MeshTri.init_lshaped().refined(2)
    while host.nvertices < nodes:
        mesh = Mesh.from_skfem(host)
        distance = mesh.points[mesh.triangles].mean(1).norm(dim=1)
        largest = (mesh.areas / distance).argsort(descending=True)
        host = host.refined(largest[: max(1, len(largest) // 8)].numpy())
    return Mesh.from_skfem(host)


def train(model: nn.Module, loss: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, iterations: float) -> Any:
    """The records of so many iterations, 25 each."""
    return fit(model, loss, [batch], optimizer, epochs=max(1, round(iterations / 25)), progress=False)


def outputs(model: nn.Module, batch: Batch, form: WeakForm) -> tuple[Tensor, Tensor]:
    """u and f of a model."""
    with torch.no_grad():
        fields = model(batch.coords, parameters=batch.parameters)
    return form.imposed(fields[:, 0]), fields[:, 1]


def adjoint_gauss_newton(task: Task, rtol: float = 1e-8, max_steps: int = 20) -> tuple[Tensor, Tensor]:
    """u and the f that minimises |(B u(f) - y) / sigma|^2 + |f - m|_(C^-1)^2, by Gauss-Newton steps in the space of the data:

        f <- m + C J^T (J C J^T + sigma^2)^-1 (y - B u(f) + J (f - m)),

    where row i of J is one adjoint solve. u depends linearly on f here, so the first step ends it.
    """
    form, prior, observe = task.form, task.prior, SparseMatrix(task.space.interpolation(task.points))
    f = torch.full_like(task.f, prior.mean)
    factors = form.factorised({"forcing": f})
    for _ in range(max_steps):
        f.requires_grad_()
        u = form.solve({"forcing": f}, factors=factors)
        predicted = observe(u)
        J = torch.stack([torch.autograd.grad(value, f, retain_graph=True)[0] for value in predicted])
        f, predicted = f.detach(), predicted.detach()
        CJ = prior.covariance(J.T)
        inner = J @ CJ + task.sigma**2 * torch.eye(len(J), dtype=J.dtype)
        change = prior.mean + CJ @ torch.linalg.solve(inner, task.values - predicted + J @ (f - prior.mean)) - f
        f = f + change
        if change.norm() <= rtol * f.norm():
            return form.solve({"forcing": f}, factors=factors), f
    raise RuntimeError(f"Gauss-Newton did not converge in {max_steps} steps.")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
