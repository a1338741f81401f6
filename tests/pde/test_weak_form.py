"""Weak forms: orders of convergence, the patch test, Jacobians and implicit gradients, strict Dirichlet values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from opflow.pde import DualNorm, FiniteElementSpace, NewtonFailed, WeakForm

skfem = pytest.importorskip("skfem")
Known = Mapping[str, Tensor]


def diffusion(u: Tensor, grad: Tensor, x: Tensor, p: Known) -> Tensor:
    return grad


def nonlinear_flux(u: Tensor, grad: Tensor, x: Tensor, p: Known) -> Tensor:
    return (p["k"] * (1 + u**2))[..., None] * grad


def nonlinear_source(u: Tensor, grad: Tensor, x: Tensor, p: Known) -> Tensor:
    return p["f"] + p["c"] * torch.exp(-u) - grad[..., 0] * u


def stress(u: Tensor, grad: Tensor, x: Tensor, p: Known) -> Tensor:
    """Linear elasticity, lambda tr(e) I + 2 mu e."""
    strain = (grad + grad.mT) / 2
    trace = strain.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return p["lambda"] * trace * torch.eye(2, dtype=u.dtype) + 2 * p["mu"] * strain


def l_shape(refinements: int = 2, degree: int = 1, **options: int) -> FiniteElementSpace:
    return FiniteElementSpace(skfem.MeshTri.init_lshaped().refined(refinements), degree, **options)


@pytest.mark.parametrize(("degree", "mesh", "order"), [(1, "MeshTri", 2), (2, "MeshTri2", 3)])
def test_poisson_on_the_disc_converges_at_its_order(degree: int, mesh: str, order: int) -> None:
    """-lap u = f: f (1 - r^2) / 4 for a constant f, and cos(pi r^2 / 2), which no element holds."""
    cases = {
        "constant": (lambda r2: (1 - r2) / 4, lambda r2: torch.ones_like(r2)),
        "cosine": (
            lambda r2: torch.cos(math.pi / 2 * r2),
            lambda r2: math.pi**2 * r2 * torch.cos(math.pi / 2 * r2) + 2 * math.pi * torch.sin(math.pi / 2 * r2),
        ),
    }
    for name, (exact, forcing) in cases.items():
        errors = []
        for refinements in (3, 4):
            space = FiniteElementSpace(getattr(skfem, mesh).init_circle(refinements), degree, quadrature=6)
            form = WeakForm(space, diffusion, lambda u, grad, x, p, f=forcing: f(x.square().sum(-1)))
            found = space.at_quadrature(form.solve())[0]
            errors.append(float(space.integral((found - exact(space.points.square().sum(-1))) ** 2).sqrt()))
        assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.6, name
        assert errors[1] < 1e-2


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("traction", [False, True])
def test_elasticity_passes_the_patch_test(degree: int, traction: bool) -> None:
    """A linear displacement, prescribed on the boundary or pulled by its own stress, comes out exactly on any mesh."""
    mesh = skfem.MeshTri.init_sqsymmetric().refined(1)
    bent = mesh.p + 0.05 * torch.sin(9 * torch.from_numpy(mesh.p)).numpy() * 16 * (mesh.p * (1 - mesh.p)).prod(0)
    space = FiniteElementSpace(skfem.MeshTri(bent, mesh.t), degree, components=2)
    slope = torch.tensor([[0.3, 0.2], [-0.1, 0.4]], dtype=torch.float64)
    exact, known = space.nodes @ slope.T, {"lambda": 1.3, "mu": 0.7}
    options = {}
    if traction:
        sigma = stress(exact[:1, None], slope[None, None], exact, {k: torch.tensor(v) for k, v in known.items()})[0, 0]
        load = space.boundary_load(lambda x, n: n @ sigma.T, on=lambda x: x[:, 0] > 1e-9)
        options = {"on": lambda x: x[:, 0] == 0, "load": load}
    form = WeakForm(space, stress, dirichlet=lambda x: x @ slope.T, **options)
    assert (form.solve(known) - exact).abs().max() < 1e-13
    assert float(form.residual(exact, known).abs().max()) < 1e-14


@pytest.mark.parametrize("degree", [1, 2])
def test_jacobians_are_those_of_the_residual(degree: int) -> None:
    torch.manual_seed(0)
    space = l_shape(1, degree)
    form = WeakForm(space, nonlinear_flux, nonlinear_source, dirichlet=0.3)
    u, known = torch.rand(space.n_nodes).double(), {"k": 1 + torch.rand(space.n_nodes).double(), "f": 1.0, "c": 0.5}
    expected = torch.autograd.functional.jacobian(lambda u: form.residual(u, known), u)[:, form.free]
    found = torch.from_numpy(form.jacobian(u, known).toarray())
    assert torch.allclose(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
    vector = WeakForm(l_shape(1, degree, components=2), stress_of_large_strain)
    v = torch.rand(vector.space.shape).double()
    expected = torch.autograd.functional.jacobian(vector.residual, v).flatten(1)[:, vector.free]
    assert torch.allclose(torch.from_numpy(vector.jacobian(v).toarray()), expected, rtol=0, atol=1e-13)


def stress_of_large_strain(u: Tensor, grad: Tensor, x: Tensor, p: Known) -> Tensor:
    return grad + grad @ grad.mT + u[..., None] * x[..., None, :]


def test_solutions_have_the_gradients_of_implicit_functions() -> None:
    torch.manual_seed(0)
    space = l_shape(1)
    form = WeakForm(space, nonlinear_flux, nonlinear_source, dirichlet=0.1)
    k = (1 + torch.rand(space.n_nodes).double()).requires_grad_()
    f = torch.randn(space.n_nodes).double().requires_grad_()
    c = torch.tensor(0.7).double().requires_grad_()
    names = ("k", "f", "c")
    assert torch.autograd.gradcheck(
        lambda *values: form.solve(dict(zip(names, values, strict=True)), rtol=1e-13), (k, f, c), fast_mode=True
    )
    u = form.solve({"k": k, "f": f, "c": c})
    assert float(form.residual(u, {"k": k, "f": f, "c": c}).detach().norm()) < 1e-11


def test_a_linear_equation_is_solved_by_known_factors_and_others_are_found_out() -> None:
    space = l_shape(2)
    form = WeakForm(space, diffusion, lambda u, grad, x, p: p["f"])
    f = torch.sin(3 * space.nodes[:, 0]).requires_grad_()
    factors = form.factorised({"f": f})
    u, newton = form.solve({"f": f}, factors=factors), form.solve({"f": f})
    assert torch.allclose(u, newton, rtol=0, atol=1e-14)
    ours, theirs = (torch.autograd.grad(v.square().sum(), f)[0] for v in (u, newton))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-15)
    curved = WeakForm(space, nonlinear_flux, nonlinear_source)
    known = {"k": 1.0, "f": 5.0, "c": 0.5}
    with pytest.raises(NewtonFailed, match="the equation is not linear"):
        curved.solve(known, factors=curved.factorised(known))


def test_dirichlet_values_are_strict() -> None:
    space = l_shape(2, degree=2)
    form = WeakForm(space, diffusion, lambda u, grad, x, p: torch.ones_like(u), dirichlet=lambda x: x[:, 0])
    u = form.solve(start=torch.randn(space.n_nodes).double())
    at = space.boundary_nodes
    assert torch.equal(u[at], space.nodes[at, 0])
    wild = u + 100 * form.fixed  # values that are proposed on the boundary change nothing
    assert torch.equal(form.residual(wild), form.residual(u))
    assert torch.equal(form.expanded(u.flatten()[form.free]), u)
    assert len(form.free) + len(at) == space.n_nodes


def test_single_components_may_be_fixed() -> None:
    """A bar on rollers under its own traction: sigma_xx only, so u_x = x / E', u_y is free to contract."""
    space = FiniteElementSpace(skfem.MeshTri.init_tensor(*2 * [torch.linspace(0, 1, 4).numpy()]), components=2)
    left, bottom = (space.nodes[:, i].abs() < 1e-12 for i in range(2))
    load = space.boundary_load(lambda x, n: n * torch.tensor([1.0, 0.0]), on=lambda x: x[:, 0] > 1 - 1e-9)
    form = WeakForm(space, stress, on=torch.stack([left, bottom], 1), load=load)
    u = form.solve({"lambda": 1.0, "mu": 1.0})
    # sigma_yy = 0: e_yy = -lambda / (lambda + 2 mu) e_xx = -e_xx / 3, sigma_xx = (3 - 1/3) e_xx = 1
    expected = space.nodes * torch.tensor([3 / 8, -1 / 8])
    assert (u - expected).abs().max() < 1e-13


def test_a_singular_or_diverging_problem_says_so() -> None:
    space = l_shape(1)
    free = torch.zeros(space.n_nodes, dtype=torch.bool)
    with pytest.raises((ValueError, NewtonFailed)):
        WeakForm(space, diffusion, lambda u, grad, x, p: torch.ones_like(u), on=free).solve()
    with pytest.raises(NewtonFailed, match="Newton's method left a residual"):  # -lap u = 50 e^u has no solution
        WeakForm(space, diffusion, lambda u, grad, x, p: 50 * torch.exp(u)).solve()
    with pytest.raises(NewtonFailed, match="not finite"):
        WeakForm(space, diffusion, lambda u, grad, x, p: p["f"] * torch.ones_like(u)).solve({"f": math.nan})


def test_bad_statements_are_refused() -> None:
    space = l_shape(1)
    form = WeakForm(space, lambda u, grad, x, p: p["k"] * grad)
    u = torch.zeros(space.n_nodes).double()
    with pytest.raises(ValueError, match=r"asks for the parameter 'k', but given are: nu"):
        form.residual(u, {"nu": 1.0})
    with pytest.raises(ValueError, match=r"parameter 'k': the field has 7 values"):
        form.residual(u, {"k": torch.ones(7)})
    with pytest.raises(ValueError, match="the flux returned shape"):
        WeakForm(space, lambda u, grad, x, p: u).residual(u)
    with pytest.raises(ValueError, match="the source returned shape"):
        WeakForm(space, diffusion, lambda u, grad, x, p: grad).residual(u)
    with pytest.raises(ValueError, match="u has shape"):
        form.residual(u[:-1], {"k": 1.0})
    with pytest.raises(ValueError, match="dirichlet has shape"):
        WeakForm(space, diffusion, dirichlet=torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        WeakForm(space, diffusion, dirichlet=math.inf)
    with pytest.raises(ValueError, match="load has shape"):
        WeakForm(space, diffusion, load=torch.zeros(3))
    with pytest.raises(ValueError, match="names no node of the boundary"):
        WeakForm(space, diffusion, on=lambda x: x[:, 0] > 5)
    with pytest.raises(ValueError, match="expected a mask"):
        WeakForm(space, diffusion, on=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="every node is fixed"):
        WeakForm(space, diffusion, on=torch.ones(space.n_nodes, dtype=torch.bool))


class TestDualNorm:
    def test_it_is_the_error_in_the_energy_norm(self) -> None:
        torch.manual_seed(0)
        space = l_shape(2)
        k = torch.exp(space.nodes[:, 0])
        form = WeakForm(space, lambda u, grad, x, p: p["k"][..., None] * grad, lambda u, grad, x, p: torch.ones_like(u))
        solution = form.solve({"k": k})
        guess = form.imposed(solution + torch.randn(space.n_nodes).double())
        norm, error = DualNorm(form, k), guess - solution
        _, gradient = space.at_quadrature(error)
        energy = float(space.integral(space.interpolated(k) * gradient.square().sum(-1)).sqrt())
        residual = form.residual(guess, {"k": k})
        assert float(norm(residual)) == pytest.approx(energy, rel=1e-12)
        assert float(norm.whitened(residual).norm()) == pytest.approx(energy, rel=1e-12)

    @pytest.mark.parametrize("components", [None, 2])
    def test_its_gradient_is_exact(self, components: int | None) -> None:
        torch.manual_seed(0)
        space = l_shape(1, degree=2, components=components)
        flux = nonlinear_flux if components is None else stress_of_large_strain
        form = WeakForm(space, flux, None if components else nonlinear_source)
        norm = DualNorm(form, mass=0.5)
        u = torch.randn(space.shape).double().requires_grad_()
        c = torch.tensor(0.3).double().requires_grad_()

        def value(u: Tensor, c: Tensor) -> Tensor:
            return norm(form.residual(u, {"k": 1 + c**2, "f": c, "c": c}))

        assert torch.autograd.gradcheck(value, (u, c), check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(value, (u, c), fast_mode=True)
        residual = form.residual(u, {"k": 1.0, "f": 1.0, "c": 1.0}).detach()
        assert float(norm.whitened(residual).square().sum()) == pytest.approx(float(norm.squared(residual)), rel=1e-12)
        assert torch.autograd.gradcheck(norm.whitened, (residual.requires_grad_(),), fast_mode=True)

    def test_at_zero_it_has_a_finite_gradient(self) -> None:
        form = WeakForm(l_shape(1), diffusion)
        residual = torch.zeros(len(form.free), dtype=torch.float64, requires_grad=True)
        value = DualNorm(form)(residual)
        assert float(value.detach()) == 0
        assert torch.equal(torch.autograd.grad(value, residual)[0], torch.zeros_like(residual))

    def test_without_fixed_nodes_a_mass_is_added(self) -> None:
        space = l_shape(1)
        form = WeakForm(space, diffusion, on=torch.zeros(space.n_nodes, dtype=torch.bool))
        assert DualNorm(form).mass == 1.0
        one = torch.from_numpy(space.mass().sum(1))  # R(v) = int v has the representative 1 and the norm sqrt(area)
        assert float(DualNorm(form)(one)) == pytest.approx(3**0.5, rel=1e-12)
        with pytest.raises(ValueError, match="singular"):
            DualNorm(form, mass=0.0)(one)

    def test_single_precision_and_bad_coefficients(self) -> None:
        form = WeakForm(l_shape(1), diffusion)
        residual = torch.randn(len(form.free), generator=torch.Generator().manual_seed(0))
        norm = DualNorm(form)
        assert norm(residual).dtype == torch.float32
        assert float(norm(residual)) == pytest.approx(float(norm(residual.double())), rel=1e-5)
        for bad in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="positive and finite"):
                DualNorm(form, bad)
        with pytest.raises(ValueError, match="mass is -1"):
            DualNorm(form, mass=-1.0)
