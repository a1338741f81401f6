"""Weak forms as losses: the residual in its dual norm, observations at points, priors of unknown fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from opflow.batch import Batch, apply_model
from opflow.losses.objective import Objective
from opflow.losses.unknown import Unknown
from opflow.pde.dual_norm import DualNorm
from opflow.pde.matern_field import MaternField
from opflow.pde.sparse_map import SparseMatrix
from opflow.pde.weak_form import WeakForm

OF_THE_MODEL = ("laplacian", "scale")  # parameters of a batch that are the graph network's, not the equation's


class GalerkinResidual(Objective):
    """|R(u; mu)|^2 in the norm of K^-1, the residual of a weak form whose u and unknown fields a network gives at the nodes.

    The model's output is (n_nodes, channels): first u, one channel a component, then `fields` in their order. Values of u on the
    Dirichlet part are imposed, whatever the model says there.

    Args:
        form: the equation.
        fields: names of parameters that are further channels of the model: unknown coefficient fields.
        unknowns: scalar parameters that training has to find; they are this loss's: give [*model.parameters(), *loss.parameters()] to
            the optimiser. Parameters that are known come in ``batch.parameters``.
        norm: a `DualNorm` of the form; the one of K = int grad phi_i . grad phi_j by default.

    Raises:
        ValueError: the model's output has a wrong shape. TypeError: an unknown is no `Unknown`.

    Source: Gao, Zahr and Wang 2022, "Physics-informed graph neural Galerkin networks", eq. 15, whose norm is Euclidean.
    """

    def __init__(
        self,
        form: WeakForm,
        fields: Sequence[str] = (),
        *,
        unknowns: Mapping[str, Unknown] | None = None,
        norm: DualNorm | None = None,
        name: str = "residual",
        on: str | None = None,
    ) -> None:
        super().__init__(on=on)
        self.form, self.fields, self.name = form, tuple(fields), name
        self.norm = DualNorm(form) if norm is None else norm
        for key, unknown in (unknowns or {}).items():
            if not isinstance(unknown, Unknown):
                raise TypeError(f"unknowns[{key!r}] is {type(unknown).__name__}; give an Unknown(initial).")
        self.unknowns = nn.ModuleDict(dict(unknowns or {}))
        repeated = set(self.fields) & set(self.unknowns)
        if repeated or len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields {self.fields} and unknowns {tuple(self.unknowns)} name a parameter twice.")

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """{name: R^T K^-1 R}"""
        return {self.name: self.norm.squared(self.equations(model, batch))}

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """A vector whose sum of squares is the term: the gradient of K^-1 R at the quadrature points, see `DualNorm.whitened`."""
        return self.norm.whitened(self.equations(model, batch))

    def equations(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """R itself, (n_free,)."""
        part = self.pick(batch)
        u, channels = state(model, part, self.form, len(self.fields))
        known = {key: p for key, p in (part.parameters or {}).items() if key not in OF_THE_MODEL}
        found = dict(zip(self.fields, channels, strict=True))
        return self.form.residual(u, {**known, **found, **{key: unknown() for key, unknown in self.unknowns.items()}})


class _SumOfSquares(Objective):
    """|residuals|^2 under one name."""

    def __init__(self, name: str, on: str | None) -> None:
        super().__init__(on=on)
        self.name = name

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """{name: the sum of squares}"""
        return {self.name: self.residuals(model, batch).square().sum()}


class PointObservations(_SumOfSquares):
    """|(u(x_i) - y_i) / sigma|^2 summed over observations of u at arbitrary points of the mesh.

    Args:
        form: where u lives; its Dirichlet values are imposed before u is looked at.
        points: x (n, 2), anywhere in the mesh.
        values: y (n,), or (n, components).
        noise: sigma, one number or one an observation.

    Raises:
        ValueError: a point outside of the mesh, a value that is not finite, a noise that is not positive.
    """

    def __init__(
        self,
        form: WeakForm,
        points: Tensor,
        values: Tensor,
        noise: Tensor | float = 1.0,
        *,
        name: str = "observations",
        on: str | None = None,
    ) -> None:
        super().__init__(name, on)
        expected = (len(points), *form.space.shape[1:])
        if tuple(values.shape) != expected:
            raise ValueError(f"values have shape {tuple(values.shape)}; expected {expected} for these points.")
        if not bool(values.isfinite().all()):
            where = (~values.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"observation {where} is {float(values[tuple(where)])}; leave out what was not measured.")
        sigma = torch.as_tensor(noise, dtype=torch.float64)
        if not bool((sigma > 0).all()) or not bool(sigma.isfinite().all()):
            raise ValueError("the noise must be positive and finite; it is the deviation of an observation's error.")
        self.form = form
        self.interpolate = SparseMatrix(form.space.interpolation(points))
        self.values, self.noise = values.detach(), sigma

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """(u(x_i) - y_i) / sigma, flattened."""
        u, _ = state(model, self.pick(batch), self.form, None)
        predicted = self.interpolate(self.form.imposed(u))
        return ((predicted - self.values.to(predicted)) / self.noise.to(predicted)).flatten()


class FieldPrior(_SumOfSquares):
    """|M_l^(-1/2) A (f - m) / s|^2 = -2 log p(f) of an unknown field f under a `MaternField`.

    Args:
        prior: the distribution.
        channel: which channel of the model's output is f.
    """

    def __init__(self, prior: MaternField, channel: int, *, name: str = "prior", on: str | None = None) -> None:
        super().__init__(name, on)
        self.prior, self.channel = prior, channel

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """The whitened field."""
        output = apply_model(model, self.pick(batch))
        return self.prior.whitened(output[:, self.channel])


def state(model: nn.Module, batch: Batch, form: WeakForm, n_fields: int | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """u (n_nodes[, components]) and the further channels, each (n_nodes,), of a model's output at the nodes.

    Raises:
        ValueError: the output is not (n_nodes, components + n_fields), or with None has fewer channels than components.
    """
    output = apply_model(model, batch)
    width, nodes = form.space.components or 1, form.space.n_nodes
    fits = output.ndim == 2 and len(output) == nodes
    if not fits or (output.shape[1] < width if n_fields is None else output.shape[1] != width + n_fields):
        wanted = f"at least {width}" if n_fields is None else f"{width} + {n_fields}"
        raise ValueError(
            f"the model's output has shape {tuple(output.shape)}; expected ({nodes}, channels) with {wanted} channels, "
            "u first and then the unknown fields. Give the nodes as Batch(coords=space.nodes)."
        )
    u = output[:, 0] if form.space.components is None else output[:, :width]
    return u, tuple(output[:, width:].unbind(1))
