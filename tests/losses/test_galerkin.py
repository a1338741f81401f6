"""Losses of weak forms, and the graph network that they train."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opflow import Batch
from opflow.layers import scaled_laplacian
from opflow.losses import FieldPrior, GalerkinResidual, PointObservations, Unknown
from opflow.models import GalerkinSolution, GraphNetwork
from opflow.models.recipe import build_model
from opflow.pde import FiniteElementSpace, MaternField, WeakForm
from opflow.training import SelfScaledBroyden, fit

skfem = pytest.importorskip("skfem")
SPACE = FiniteElementSpace(skfem.MeshTri.init_lshaped().refined(2))
POINTS = torch.tensor([[-0.5, 0.31], [-0.4, -0.62], [0.53, -0.45], [-0.77, 0.8]], dtype=torch.float64)


def poisson(space: FiniteElementSpace = SPACE) -> WeakForm:
    return WeakForm(space, lambda u, grad, x, p: p["k"] * grad, lambda u, grad, x, p: p["forcing"], dirichlet=0.2)


class Nodal(nn.Module):
    """The nodal values themselves as parameters."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, coords: Tensor) -> Tensor:
        return self.values


def batch(**parameters: Tensor) -> Batch:
    return Batch(coords=SPACE.nodes, parameters=parameters or None)


def test_the_residual_vanishes_at_the_solution_and_measures_the_error_elsewhere() -> None:
    torch.manual_seed(0)
    form, f = poisson(), torch.sin(3 * SPACE.nodes[:, 0])
    u = form.solve({"k": 1.0, "forcing": f})
    loss = GalerkinResidual(form, ("forcing",), unknowns={"k": Unknown(1.0, positive=True)})
    assert float(loss(Nodal(torch.stack([u, f], 1)), batch())["residual"].detach()) < 1e-25
    guess = form.imposed(u + 0.1 * torch.randn(SPACE.n_nodes).double())
    off = guess + 5 * form.fixed  # what the model says on the Dirichlet part does not matter
    model = Nodal(torch.stack([off, f], 1))
    error, energy = guess - u, torch.from_numpy(SPACE.stiffness() @ (guess - u).numpy()) @ (guess - u)
    assert float(error.norm()) > 0.1
    assert float(loss(model, batch())["residual"].detach()) == pytest.approx(float(energy), rel=1e-12)
    assert float(loss.residuals(model, batch()).square().sum().detach()) == pytest.approx(float(energy), rel=1e-12)
    doubled = 4.0 * loss
    assert float(doubled.residuals(model, batch()).square().sum().detach()) == pytest.approx(4 * float(energy))


def test_parameters_come_from_the_batch_the_network_or_the_loss() -> None:
    form, f = poisson(), torch.cos(2 * SPACE.nodes[:, 1])
    u = form.solve({"k": 1.7, "forcing": f})
    known = GalerkinResidual(form)(Nodal(u[:, None]), batch(k=torch.tensor(1.7), forcing=f))["residual"]
    assert float(known.detach()) < 1e-12
    unknown = GalerkinResidual(form, unknowns={"k": Unknown(1.0, positive=True)})
    observed = PointObservations(form, POINTS, torch.from_numpy(SPACE.interpolation(POINTS) @ u.numpy()))
    model, data = Nodal(1.5 * u[:, None]), batch(forcing=f)
    optimizer = SelfScaledBroyden([*model.parameters(), *unknown.parameters()], iterations=100)
    for _ in fit(model, unknown + observed, [data], optimizer, epochs=3):
        pass
    assert unknown.unknowns["k"].value == pytest.approx(1.7, rel=1e-4)


def test_a_scalar_is_found_with_u_eliminated() -> None:
    form, f = poisson(), torch.cos(2 * SPACE.nodes[:, 1])
    u = form.solve({"k": 1.7, "forcing": f})
    observed = PointObservations(form, POINTS, torch.from_numpy(SPACE.interpolation(POINTS) @ u.numpy()), 1e-3)
    model = GalerkinSolution(None, form, known={"k": Unknown(1.0, positive=True), "forcing": f})
    optimizer = SelfScaledBroyden(model.parameters(), iterations=10)
    for _ in fit(model, observed, [batch()], optimizer, epochs=2):
        pass
    assert model.unknowns["k"].value == pytest.approx(1.7, rel=1e-6)
    with pytest.raises(ValueError, match="give both or neither"):
        GalerkinSolution(None, form, ("forcing",))


def test_the_most_probable_field_is_found_by_nodal_values_as_by_linear_algebra() -> None:
    """All at once, with the residual's weight as the precision of the model: the normal equations of the same Gaussians."""
    form = WeakForm(SPACE, lambda u, grad, x, p: grad, lambda u, grad, x, p: p["forcing"])
    prior = MaternField(SPACE, 1.0, 2.0)
    truth = prior.sample(np.random.default_rng(0))
    B, sigma, weight = torch.from_numpy(SPACE.interpolation(POINTS).toarray()), 0.01, 30.0
    free = form.free
    K = torch.from_numpy(SPACE.stiffness().toarray())[free][:, free]
    load = torch.from_numpy(SPACE.mass().toarray())[free]
    data = B @ form.solve({"forcing": truth}) + 0.01
    # y = B K^-1 M f + (noise + B K^-1/2 model error): eliminate u by hand.
    forward = B[:, free] @ torch.linalg.solve(K, load)
    spread = sigma**2 * torch.eye(len(POINTS)) + B[:, free] @ torch.linalg.solve(K, B[:, free].T) / weight
    C = prior.covariance(torch.eye(SPACE.n_nodes, dtype=torch.float64))
    expected = C @ forward.T @ torch.linalg.solve(forward @ C @ forward.T + spread, data)
    loss = (
        weight * GalerkinResidual(form, ("forcing",))
        + PointObservations(form, POINTS, data, sigma)
        + FieldPrior(prior, 1)
    )
    assert loss.names == ("residual", "observations", "prior")
    model = Nodal(torch.zeros(SPACE.n_nodes, 2, dtype=torch.float64))
    # The loss is quadratic: one Gauss-Newton step from anywhere.
    jacobian = torch.autograd.functional.jacobian(
        lambda v: loss.residuals(_functional(v), batch()), model.values.detach()
    ).flatten(1)
    residuals = loss.residuals(model, batch()).detach()
    # Least norm, since u on the Dirichlet part changes nothing.
    step = torch.linalg.lstsq(jacobian, -residuals[:, None], driver="gelsd").solution.view(-1, 2)
    assert torch.allclose(step[:, 1], expected, rtol=0, atol=1e-7)
    terms = loss(_functional(step), batch())
    assert sum(float(term) for term in terms.values()) < float(residuals.square().sum())


def _functional(values: Tensor) -> nn.Module:
    class Constant(nn.Module):
        def forward(self, coords: Tensor) -> Tensor:
            return values

    return Constant()


def test_observations_are_made_between_nodes_after_imposing_dirichlet_values() -> None:
    form = poisson()
    linear = SPACE.nodes @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    inside = torch.where(form.fixed, 0.2, linear)
    expected = torch.from_numpy(SPACE.interpolation(POINTS) @ inside.numpy())
    loss = PointObservations(form, POINTS, expected + torch.tensor([0.1, 0.0, -0.2, 0.0]), 0.1)
    model = Nodal((linear + 9 * form.fixed)[:, None])
    assert torch.allclose(loss.residuals(model, batch()).detach(), torch.tensor([-1.0, 0, 2, 0]).double(), atol=1e-12)
    assert float(loss(model, batch())["observations"].detach()) == pytest.approx(5.0)


def test_the_network_with_u_eliminated_finds_the_field_of_the_classical_solver() -> None:
    """A smooth forcing from few observations: the network's most probable field approaches the exact one."""
    torch.manual_seed(0)
    form = WeakForm(SPACE, lambda u, grad, x, p: grad, lambda u, grad, x, p: p["forcing"])
    prior = MaternField(SPACE, 2.0, 1.0)
    truth = torch.cos(2 * SPACE.nodes[:, 0]) * torch.sin(1 + SPACE.nodes[:, 1])
    B, sigma = torch.from_numpy(SPACE.interpolation(POINTS).toarray()), 0.002
    data = B @ form.solve({"forcing": truth})
    free = form.free
    forward = torch.from_numpy(SPACE.mass().toarray())[free]
    forward = B[:, free] @ torch.linalg.solve(torch.from_numpy(SPACE.stiffness().toarray())[free][:, free], forward)
    C = prior.covariance(torch.eye(SPACE.n_nodes, dtype=torch.float64))
    spread = forward @ C @ forward.T + sigma**2 * torch.eye(len(data))
    expected = C @ forward.T @ torch.linalg.solve(spread, data)

    graph = scaled_laplacian(SPACE.edges, SPACE.n_nodes, dtype=torch.float64)
    model = GalerkinSolution(GraphNetwork.build(2, 1, 8, order=3).double(), form, ("forcing",), linear=True)
    loss = PointObservations(form, POINTS, data, sigma) + FieldPrior(prior, 1)
    optimizer = SelfScaledBroyden(model.parameters(), iterations=50)
    nodes = batch(laplacian=graph)
    losses = [record.loss for record in fit(model, loss, [nodes], optimizer, epochs=4)]
    with torch.no_grad():
        output = model(nodes.coords, parameters=nodes.parameters)
    assert losses[-1] < 1e-2 * losses[0]
    assert (output[:, 1] - expected).norm() < 0.1 * expected.norm()
    residual = GalerkinResidual(form, ("forcing",))
    assert math.sqrt(float(residual(model, nodes)["residual"].detach())) < 1e-12


def test_a_nonlinear_equation_is_eliminated_by_newton() -> None:
    torch.manual_seed(0)
    form = WeakForm(
        SPACE, lambda u, grad, x, p: (p["k"] + u**2)[..., None] * grad, lambda u, grad, x, p: p["forcing"] + 0 * u
    )
    graph = scaled_laplacian(SPACE.edges, SPACE.n_nodes, dtype=torch.float64)
    network = GraphNetwork.build(2, 1, 4).double()
    model = GalerkinSolution(network, form, ("forcing",), known={"k": 0.5})
    loss = PointObservations(form, POINTS, torch.zeros(4).double())
    nodes = batch(laplacian=graph)
    parameters = list(network.parameters())
    gradient = torch.autograd.grad(loss(model, nodes)["observations"], parameters)
    direction = [torch.randn_like(p) for p in parameters]
    expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            value = float(loss(model, nodes)["observations"])
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return value

    assert (moved(1e-5) - moved(-1e-5)) / 2e-5 == pytest.approx(expected, rel=1e-6)


def test_a_graph_network_comes_back_from_its_recipe_and_serves_other_meshes() -> None:
    model = GraphNetwork.build(2, 3, 8, n_layers=3, order=2).double()
    again = build_model(model.recipe).double()
    again.load_state_dict(model.state_dict())
    other = FiniteElementSpace(skfem.MeshTri.init_circle(2))
    for space in (SPACE, other):
        graph = scaled_laplacian(space.edges, space.n_nodes, dtype=torch.float64)
        scale = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
        plain = model(space.nodes, parameters={"laplacian": graph})
        assert torch.equal(again(space.nodes, parameters={"laplacian": graph, "scale": scale}), plain * scale)
    assert all(p.grad is not None for p in _after_backward(model, plain))
    with pytest.raises(ValueError, match="hold no 'laplacian'"):
        model(SPACE.nodes, parameters={})
    with pytest.raises(ValueError, match="n_layers is 0"):
        GraphNetwork.build(2, 1, n_layers=0)
    with pytest.raises(ValueError, match="no convolutions"):
        GraphNetwork([], nn.Identity())


def _after_backward(model: nn.Module, output: Tensor) -> list[Tensor]:
    output.square().sum().backward()
    return list(model.parameters())


def test_bad_losses_are_refused() -> None:
    form, zeros = poisson(), torch.zeros(4).double()
    with pytest.raises(TypeError, match="give an Unknown"):
        GalerkinResidual(form, unknowns={"k": 1.0})
    with pytest.raises(ValueError, match="name a parameter twice"):
        GalerkinResidual(form, ("k",), unknowns={"k": Unknown(1.0)})
    loss = GalerkinResidual(form, ("forcing",))
    with pytest.raises(ValueError, match=r"expected \(65, channels\) with 1 \+ 1 channels"):
        loss(Nodal(torch.zeros(SPACE.n_nodes, 3).double()), batch())
    with pytest.raises(ValueError, match="asks for the parameter 'k'"):
        loss(Nodal(torch.zeros(SPACE.n_nodes, 2).double()), batch())
    with pytest.raises(ValueError, match=r"observation \[2\] is nan"):
        PointObservations(form, POINTS, torch.tensor([0.0, 1.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match=r"values have shape \(3,\)"):
        PointObservations(form, POINTS, zeros[:3])
    with pytest.raises(ValueError, match="outside of the mesh"):
        PointObservations(form, POINTS + 1.0, zeros)
    with pytest.raises(ValueError, match="noise must be positive"):
        PointObservations(form, POINTS, zeros, 0.0)
    model = GalerkinSolution(Nodal(torch.zeros(SPACE.n_nodes, 2)), form, ("forcing",))
    model.network.forward = lambda coords, parameters: torch.zeros(SPACE.n_nodes, 2)
    with pytest.raises(ValueError, match="one channel for each of forcing"):
        model(SPACE.nodes, parameters={})
