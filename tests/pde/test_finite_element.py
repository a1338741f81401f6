"""Finite elements against scikit-fem's own assembly, and integrals that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opflow.pde import FiniteElementSpace

skfem = pytest.importorskip("skfem")
from skfem.helpers import dot, grad  # noqa: E402

SPACES = {
    "P1": lambda **options: FiniteElementSpace(skfem.MeshTri.init_lshaped().refined(2), 1, **options),
    "P2": lambda **options: FiniteElementSpace(skfem.MeshTri.init_lshaped().refined(2), 2, **options),
    "P2 curved": lambda **options: FiniteElementSpace(skfem.MeshTri2.init_circle(2), 2, **options),
}


def host_basis(space: FiniteElementSpace) -> skfem.Basis:
    element = skfem.ElementTriP1() if space.degree == 1 else skfem.ElementTriP2()
    return skfem.Basis(space.mesh.to_skfem(), element, intorder=space.quadrature)


@pytest.mark.parametrize("kind", SPACES)
def test_assembly_equals_that_of_scikit_fem(kind: str) -> None:
    space = SPACES[kind]()
    basis = host_basis(space)
    k = np.exp(space.nodes[:, 0].numpy())
    weighted = skfem.BilinearForm(lambda u, v, w: w.k * dot(grad(u), grad(v))).assemble(basis, k=basis.interpolate(k))
    mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(basis)
    assert abs(space.stiffness(torch.from_numpy(k)) - weighted).max() < 1e-13 * abs(weighted).max()
    assert abs(space.mass() - mass).max() < 1e-13 * abs(mass).max()
    # A nonlinear residual: int (1 + u^2) grad u . grad v - exp(x) u v
    u = torch.sin(3 * space.nodes).sum(1)
    value, gradient = space.at_quadrature(u)
    ours = space.load(-space.points[..., 0].exp() * value, (1 + value**2)[..., None] * gradient)
    form = skfem.LinearForm(lambda v, w: (1 + w.u**2) * dot(grad(w.u), grad(v)) - np.exp(w.x[0]) * w.u * v)
    theirs = form.assemble(basis, u=basis.interpolate(u.numpy()))
    assert np.abs(ours.numpy() - theirs).max() < 1e-13 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", SPACES)
def test_boundary_loads_equal_those_of_scikit_fem(kind: str) -> None:
    space = SPACES[kind](components=2)
    host = space.mesh.to_skfem()
    ours = space.boundary_load(lambda x, n: x[..., :1] * n, on=lambda x: x[:, 0] < 0)
    middle = host.p[0][host.facets].mean(0)
    facets = np.array([i for i in host.boundary_facets() if middle[i] < 0])
    basis = skfem.FacetBasis(host, host_basis(space).elem, facets=facets, intorder=space.quadrature)
    for component in range(2):
        form = skfem.LinearForm(lambda v, w, c=component: w.x[0] * w.n[c] * v)
        assert np.abs(ours[:, component].numpy() - form.assemble(basis)).max() < 1e-14
    # Of a constant over the whole boundary: the divergence theorem says that the normal integrates to zero.
    assert float(space.boundary_load(lambda x, n: n).sum(0).abs().max()) < 1e-14


@pytest.mark.parametrize("kind", SPACES)
def test_polynomials_of_the_degree_are_held_exactly(kind: str) -> None:
    space = SPACES[kind]()
    generator = torch.Generator().manual_seed(1)
    points = 2 * torch.rand(60, 2, dtype=torch.float64, generator=generator) - 1
    points = torch.cat([points[space.mesh.contains(points)], space.mesh.vertices[:5]])
    powers = [(1, 0), (0, 1), (0, 0)] + ([(2, 0), (1, 1), (0, 2)] if kind == "P2" else [])
    for i, j in powers:

        def p(x: torch.Tensor, i: int = i, j: int = j) -> torch.Tensor:
            return x[..., 0] ** i * x[..., 1] ** j

        nodal = p(space.nodes)
        assert torch.allclose(space.at_quadrature(nodal)[0], p(space.points), rtol=0, atol=1e-14)
        assert np.abs(space.interpolation(points) @ nodal.numpy() - p(points).numpy()).max() < 1e-12


def test_fields_at_the_corners_are_linear() -> None:
    space = SPACES["P2 curved"]()
    linear = 1 + 2 * space.nodes[:, 0] - space.nodes[:, 1]
    corners = space.interpolated(linear[: space.n_vertices])
    assert corners.shape == space.weights.shape
    # On cells with straight sides both are the same function.
    straight = SPACES["P2"]()
    linear = 1 + 2 * straight.nodes[:, 0] - straight.nodes[:, 1]
    assert torch.allclose(straight.interpolated(linear[: straight.n_vertices]), straight.interpolated(linear))
    with pytest.raises(ValueError, match=r"has 3 values; expected one at each of .* nodes or .* corners"):
        space.interpolated(torch.zeros(3))


def test_single_precision_follows_the_field() -> None:
    space = SPACES["P2"]()
    u = torch.sin(3 * space.nodes).sum(1)
    double = space.load(*space.at_quadrature(u))
    single = space.load(*space.at_quadrature(u.float()))
    assert single.dtype == torch.float32 and (single - double).abs().max() < 1e-5 * double.abs().max()


def test_the_graph_joins_nodes_of_one_element() -> None:
    space = SPACES["P2"]()
    pairs = {tuple(sorted(pair)) for nodes in space.element_nodes.tolist() for pair in _pairs(nodes)}
    assert {tuple(edge) for edge in space.edges.tolist()} == pairs and len(space.edges) == len(pairs)


def _pairs(nodes: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]


def test_bad_requests_are_refused() -> None:
    space = SPACES["P1"]()
    with pytest.raises(ValueError, match="degree is 3"):
        FiniteElementSpace(space.mesh, 3)
    with pytest.raises(ValueError, match="components is 0"):
        FiniteElementSpace(space.mesh, components=0)
    with pytest.raises(ValueError, match=r"point 1, \[0\.5, 0\.3\], lies 0\.3 outside"):
        space.interpolation(torch.tensor([[-0.5, 0.1], [0.5, 0.3]], dtype=torch.float64))
    with pytest.raises(ValueError, match="point 0"):
        space.interpolation(torch.tensor([[torch.nan, 0.0]]))
    with pytest.raises(ValueError, match="nothing to integrate"):
        space.load()
    with pytest.raises(ValueError, match="no side of the boundary"):
        space.boundary_load(1.0, on=lambda x: x[:, 0] > 5)
    with pytest.raises(ValueError, match="the traction has shape"):
        space.boundary_load(lambda x, n: n)
