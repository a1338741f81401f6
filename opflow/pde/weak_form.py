"""A differential equation in weak form on finite elements: its residual, its Jacobian, its solution, its dual norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.pde.finite_element import FiniteElementSpace
from opflow.pde.sparse_map import SparseFactors

Pointwise = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Parameters = Mapping[str, Tensor | float]


class NewtonFailed(RuntimeError):
    """Newton's method did not converge; the message says how far it came."""


class WeakForm:
    """R_i(u; mu) = int grad phi_i . F(u, grad u, x; mu) - phi_i S(u, grad u, x; mu) dx - l_i = 0 for every free i, u = g else.

    It states -div F = S with F . n = 0 where nothing is fixed, or what `load` says there. Values on the Dirichlet part are
    condensed strictly: u is g there whatever is proposed, and the equations of these nodes are left out.

    Args:
        space: where u lives.
        flux: F, a function of u (elements, points[, components]), grad u (..., 2), x (elements, points, 2) and the parameters,
            that acts at every quadrature point by itself; it returns the shape of grad u.
        source: S, a function of the same, that returns the shape of u; None is zero.
        dirichlet: g, a number, nodal values, or a function of the nodes (n_nodes, 2).
        on: the fixed nodes: None for the whole boundary, a function of the nodes that is asked on the boundary only, or a mask of
            the shape of u, (n_nodes[, components]), which may name single components.
        load: l, (n_nodes[, components]), such as `space.boundary_load(traction)`.

    Parameters are given by name to `residual` and `solve`: numbers, or nodal fields (n_nodes[, k]) or (n_vertices[, k]), which the
    flux and the source see at the quadrature points.

    Source: the physics-informed graph Galerkin method, Gao, Zahr and Wang 2022, sections 2.2 and 2.3; the norm is ours.

    >>> square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]], dtype=torch.float64)
    >>> from opflow.mesh import Mesh
    >>> space = FiniteElementSpace(Mesh(square, torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])))
    >>> form = WeakForm(space, lambda u, grad, x, p: p["k"] * grad, lambda u, grad, x, p: torch.ones_like(u))
    >>> form.solve({"k": 1.0})[4]  # -lap u = 1 with one free node: a third of the area over the stiffness 4
    tensor(0.0833, dtype=torch.float64)
    """

    def __init__(
        self,
        space: FiniteElementSpace,
        flux: Pointwise,
        source: Pointwise | None = None,
        *,
        dirichlet: Tensor | float | Callable[[Tensor], Tensor] = 0.0,
        on: Callable[[Tensor], Tensor] | Tensor | None = None,
        load: Tensor | None = None,
    ) -> None:
        self.space, self.flux, self.source = space, flux, source
        fixed = self._mask(on)
        values = torch.as_tensor(dirichlet(space.nodes) if callable(dirichlet) else dirichlet, dtype=torch.float64)
        try:
            self.dirichlet = torch.where(fixed, values.expand(space.shape), 0.0)
        except RuntimeError as error:
            raise ValueError(f"dirichlet has shape {tuple(values.shape)}; a field here is {space.shape}.") from error
        if not bool(self.dirichlet.isfinite().all()):
            raise ValueError("a Dirichlet value is not finite.")
        if load is not None and tuple(load.shape) != space.shape:
            raise ValueError(f"load has shape {tuple(load.shape)}; a field here is {space.shape}.")
        self.fixed, self.load = fixed, load
        self.free = (~fixed).flatten().nonzero().squeeze(1)  # numbers in the flat order of (n_nodes[, components])
        if not len(self.free):
            raise ValueError("every node is fixed, so nothing is left to solve for; refine the mesh, or fix less.")

    def imposed(self, u: Tensor) -> Tensor:
        """u (n_nodes[, components]) with its values on the Dirichlet part put right."""
        if tuple(u.shape) != self.space.shape:
            raise ValueError(f"u has shape {tuple(u.shape)}; a field here is {self.space.shape}.")
        return torch.where(self.fixed.to(u.device), self.dirichlet.to(u), u)

    def expanded(self, free: Tensor) -> Tensor:
        """The field (n_nodes[, components]) whose free values are these, (n_free,)."""
        flat = self.dirichlet.to(free).flatten()
        return flat.index_copy(0, self.free.to(free.device), free).view(self.space.shape)

    def residual(self, u: Tensor, parameters: Parameters | None = None) -> Tensor:
        """R (n_free,) of nodal values u (n_nodes[, components]), whose Dirichlet part is imposed first."""
        value, gradient = self.space.at_quadrature(self.imposed(u))
        flux, source = self._pointwise(value, gradient, self._at_quadrature(parameters, value))
        load = self.space.load(None if source is None else -source, flux)
        if self.load is not None:
            load = load - self.load.to(load)
        return load.flatten()[self.free.to(load.device)]

    def jacobian(self, u: Tensor, parameters: Parameters | None = None) -> Any:
        """dR/du of the free values, a SciPy CSC array (n_free, n_free), exact for any flux and source that act pointwise."""
        value, gradient = (part.detach().requires_grad_() for part in self.space.at_quadrature(self.imposed(u)))
        known = {name: p.detach() for name, p in self._at_quadrature(parameters, value).items()}
        flux, source = self._pointwise(value, gradient, known)
        phi, grad_phi, dx = self.space.tables(value)
        width = self.space.components or 1
        local = value.new_zeros((*self.space.element_nodes.shape, width, self.space.element_nodes.shape[1], width))
        # One backward pass for every component of F and S: at a point they depend on u and grad u of that point alone.
        for k in range(width):
            for d in range(2):
                by_value, by_gradient = self._derivatives(_component(flux, k, d, width), value, gradient)
                tested = torch.einsum("eqb,eq->eqb", grad_phi[..., d], dx)
                local[:, :, k] += torch.einsum("eqb,qc,eqj->ebcj", tested, phi, by_value)
                local[:, :, k] += torch.einsum("eqb,eqcd,eqjd->ebcj", tested, grad_phi, by_gradient)
            if source is not None:
                by_value, by_gradient = self._derivatives(_component(source, k, None, width), value, gradient)
                tested = torch.einsum("qb,eq->eqb", phi, dx)
                local[:, :, k] -= torch.einsum("eqb,qc,eqj->ebcj", tested, phi, by_value)
                local[:, :, k] -= torch.einsum("eqb,eqcd,eqjd->ebcj", tested, grad_phi, by_gradient)
        return self._condensed(local)

    def solve(
        self,
        parameters: Parameters | None = None,
        start: Tensor | None = None,
        *,
        rtol: float = 1e-10,
        max_steps: int = 25,
        factors: SparseFactors | None = None,
    ) -> Tensor:
        """u (n_nodes[, components]) with R(u; mu) = 0 by Newton's method, differentiable in the parameters.

        The gradient is that of the implicit function, du/dmu = -(dR/du)^-1 dR/dmu, by one adjoint solve with the factors of the last
        Jacobian; nothing of the iteration is kept. It has first derivatives only.

        Args:
            start: the first iterate; zero by default.
            rtol: of the residual, against the first one; it is also enough to reach the rounding error of the residual.
            max_steps: of Newton, each with a backtracking line search.
            factors: of the Jacobian, from `factorised`, where it depends neither on u nor on what varies between solves, so that one step
                solves; that it did is checked.

        Raises:
            NewtonFailed: the residual is not finite, or did not fall to `rtol`. ValueError: a Jacobian is singular.
        """
        known = {name: torch.as_tensor(p).detach() for name, p in (parameters or {}).items()}
        with torch.no_grad():
            u = self.imposed(torch.zeros(self.space.shape, dtype=torch.float64) if start is None else start.detach())
            one_step = factors is not None
            if factors is None:
                u, factors = self._newton(u, known, rtol, max_steps)
        # One step with a graph. From the solution itself, its value is the solution and its derivative the implicit function's; where
        # the Jacobian is constant, both hold from anywhere.
        residual = self.residual(u, parameters)
        flat = u.flatten().index_add(0, self.free.to(u.device), -factors.solve(residual).to(u))
        u = flat.view(self.space.shape)
        if one_step:
            with torch.no_grad():
                left, first = float(self.residual(u, known).norm()), float(residual.norm())
            if not left <= 1e-8 * first:
                raise NewtonFailed(
                    f"one step with the given factors left a residual of {left:.3g}, from {first:.3g}; the equation is not linear, or "
                    "its Jacobian changed: leave `factors` out."
                )
        return u

    def factorised(self, parameters: Parameters | None = None, u: Tensor | None = None) -> SparseFactors:
        """The factors of the Jacobian at u, zero by default."""
        u = torch.zeros(self.space.shape, dtype=torch.float64) if u is None else u
        return SparseFactors(self.jacobian(u, parameters))

    def _newton(self, u: Tensor, known: Parameters, rtol: float, max_steps: int) -> tuple[Tensor, SparseFactors]:
        residual = self.residual(u, known)
        first = size = float(residual.norm())
        if not np.isfinite(size):
            raise NewtonFailed("the residual of the first iterate is not finite; check the parameters and the start.")
        free = self.free.to(u.device)
        for _ in range(max_steps):
            with torch.enable_grad():
                factors = SparseFactors(self.jacobian(u, known))
            step, length = factors.solve(residual), 1.0
            while True:
                trial = u.flatten().index_add(0, free, -length * step).view(self.space.shape)
                residual_there = self.residual(trial, known)
                reached = float(residual_there.norm())
                if reached <= (1 - 1e-4 * length) * size or length < 1e-3:
                    break
                length /= 2
            # Below its rounding error a residual need not fall; there the step is small.
            small = float(step.norm()) <= 1e-12 * float(u.norm()) if length == 1.0 else False
            stuck = not reached < size
            if not stuck or small:
                u, residual, size = trial, residual_there, reached
            if size <= rtol * first or small or size == 0.0:
                with torch.enable_grad():
                    return u, SparseFactors(self.jacobian(u, known))
            if stuck:
                break
        raise NewtonFailed(
            f"Newton's method left a residual of {size:.3g}, from {first:.3g} at the start; "
            "start closer (by continuation in a parameter), or check that the flux has the sign of -div F = S."
        )

    def _pointwise(
        self, value: Tensor, gradient: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        x = self.space.points.to(value)
        try:
            flux = self.flux(value, gradient, x, parameters)
            source = None if self.source is None else self.source(value, gradient, x, parameters)
        except KeyError as error:
            given = ", ".join(parameters) or "none"
            raise ValueError(
                f"the flux or the source asks for the parameter {error}, but given are: {given}."
            ) from error
        for name, part, like in (("flux", flux, gradient), ("source", source, value)):
            if part is not None and part.shape != like.shape:
                raise ValueError(
                    f"the {name} returned shape {tuple(part.shape)}; expected {tuple(like.shape)}, the shape of "
                    f"{'grad u' if name == 'flux' else 'u'} at the quadrature points."
                )
        return flux, source

    def _at_quadrature(self, parameters: Parameters | None, like: Tensor) -> dict[str, Tensor]:
        """The parameters as the flux sees them: numbers, or fields at the quadrature points."""
        found = {}
        for name, given in (parameters or {}).items():
            value = torch.as_tensor(given)
            if not value.is_floating_point():
                value = value.to(like.dtype)
            if value.ndim == 0:
                found[name] = value.to(like)
                continue
            try:
                found[name] = self.space.interpolated(value.to(like))
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from error
        return found

    def _derivatives(self, part: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """d part/du (elements, points, components) and d part/d grad u (elements, points, components, 2)."""
        if part.requires_grad:
            found = torch.autograd.grad(
                part.sum(), (value, gradient), retain_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            found = (torch.zeros_like(value), torch.zeros_like(gradient))
        scalar = self.space.components is None
        return (found[0].unsqueeze(-1), found[1].unsqueeze(-2)) if scalar else (found[0], found[1])

    def _condensed(self, local: Tensor) -> Any:
        """The free rows and columns of element matrices (elements, basis, components, basis, components)."""
        from scipy.sparse import coo_array

        at, width = self.space.element_nodes.numpy(), local.shape[2]
        numbers = at[:, :, None] * width + np.arange(width)  # (elements, basis, components)
        rows, columns = np.broadcast_arrays(numbers[:, :, :, None, None], numbers[:, None, None, :, :])
        n = self.space.n_nodes * width
        values = local.detach().cpu().double().numpy().ravel()
        whole = coo_array((values, (rows.ravel(), columns.ravel())), (n, n)).tocsr()
        free = self.free.numpy()
        return whole[free][:, free].tocsc()

    def _mask(self, on: Callable[[Tensor], Tensor] | Tensor | None) -> Tensor:
        nodes, boundary = self.space.nodes, self.space.boundary_nodes
        mask = torch.zeros(len(nodes), dtype=torch.bool)
        if isinstance(on, Tensor):
            if on.dtype != torch.bool or tuple(on.shape) not in (self.space.shape, (len(nodes),)):
                raise ValueError(f"on is {on.dtype} of shape {tuple(on.shape)}; expected a mask of {self.space.shape}.")
            mask = on
        elif on is None:
            mask[boundary] = True
        else:
            mask[boundary] = torch.as_tensor(on(nodes[boundary]), dtype=torch.bool)
            if not bool(mask.any()):
                raise ValueError("`on` names no node of the boundary; to fix none, give a mask of False.")
        if self.space.components is not None and mask.ndim == 1:
            mask = mask[:, None].expand(self.space.shape)
        return mask.clone()


def _component(part: Tensor, k: int, d: int | None, width: int) -> Tensor:
    """Component k of a vector, or of its flux in direction d; a scalar field has no axis of components."""
    at = part if d is None else part[..., d]
    return at if at.ndim == 2 else at[..., k]
