"""The Jacobian of a loss' residuals with respect to parameters, point by point where the loss is made of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from opflow.batch import unwrapped
from opflow.losses.objective import Scaled, Sum
from opflow.pde.derivatives.jet import Jet
from opflow.pde.derivatives.jet_kernels import RecordedLinear, recorded_linears

# Numbers outside the model, unknown coefficients above all, get their columns one by one up to this count.
_FEW = 64
_ROWS_AT_ONCE = 64


class LeastSquares:
    """The closure of a Gauss-Newton method: called, it leaves gradients and returns the loss; it has `residuals` and `jacobian`.

    Args:
        model, loss, batch: ``loss(model, batch) -> {name: Tensor}`` and ``loss.residuals(model, batch) -> (rows,)``.
        evaluate: what a call does; by default the backward pass of the sum of the terms.

    >>> from opflow.batch import Batch
    >>> from opflow.losses.misfit import DataMisfit
    >>> model = nn.Linear(1, 1)
    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> problem = LeastSquares(model, DataMisfit(square), Batch(input=torch.ones(3, 1), target=torch.ones(3, 1)))
    >>> problem.residuals().shape, problem.jacobian(list(model.parameters()))[1]
    (torch.Size([3]), tensor([[1., 1.],
            [1., 1.],
            [1., 1.]]))
    """

    def __init__(self, model: nn.Module, loss: Any, batch: Any, evaluate: Callable[[], float] | None = None) -> None:
        if not callable(getattr(loss, "residuals", None)):
            raise TypeError(
                f"the loss {type(loss).__name__} has no residuals(model, batch), which Gauss-Newton needs; "
                "use a loss of opflow.losses, or another optimiser."
            )
        self.model, self.loss, self.batch, self._evaluate = unwrapped(model), loss, batch, evaluate

    def __call__(self) -> float:
        """The loss, with its gradients in .grad."""
        if self._evaluate is not None:
            return self._evaluate()
        for parameter in (*self.model.parameters(), *getattr(self.loss, "parameters", tuple)()):
            parameter.grad = None
        value = torch.stack(list(self.loss(self.model, self.batch).values())).sum()
        value.backward()
        return float(value.detach())

    def residuals(self) -> Tensor:
        """r (rows,), with its graph."""
        return self.loss.residuals(self.model, self.batch)

    def jacobian(self, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """r (rows,) and dr/dp (rows, P), the parameters flattened one after another."""
        return jacobian(self.loss, self.model, self.batch, parameters)


def jacobian(loss: Any, model: nn.Module, batch: Any, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """r (rows,) and J = dr/dp (rows, P) of ``loss.residuals(model, batch)``, without graphs.

    Where every residual belongs to one point of ``batch.coords``, the model is evaluated with weights of their own at every
    point: one backward pass an equation then yields all rows, at the memory of J. That each row hangs on its own point
    alone is not assumed but checked, against one product J^T v with the true one; where it fails, for a Galerkin residual
    or batch normalisation, J is taken row by row.

    Args:
        parameters: of the model or of the loss, in the order of the columns; one that nothing depends on has zeros.
    """
    parts = [
        _part_of(leaf, factor, model, batch, parameters) for leaf, factor in added_losses(loss)
    ]  # the residuals of a sum are those of its losses, one after another
    return torch.cat([r for r, _ in parts]), torch.cat([j for _, j in parts])


def added_losses(loss: Any, factor: float = 1.0) -> Iterator[tuple[Any, float]]:
    """The losses that were added, each with the root of its weight, which its residuals are scaled by."""
    if isinstance(loss, Sum):
        for part in loss.losses:
            yield from added_losses(part, factor)
    elif isinstance(loss, Scaled):
        yield from added_losses(loss.loss, factor * loss.weight**0.5)
    else:
        yield loss, factor


def _part_of(
    loss: Any, factor: float, model: nn.Module, batch: Any, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    with recorded_linears() as records:
        residuals = loss.residuals(model, batch)
    found = _by_points(loss, model, batch, parameters, residuals, records)
    if found is None:
        found = _by_rows(residuals, parameters)
    return factor * residuals.detach(), factor * found


def _by_points(
    loss: Any,
    model: nn.Module,
    batch: Any,
    parameters: Sequence[Tensor],
    residuals: Tensor,
    records: list[RecordedLinear],
) -> Tensor | None:
    """J where every residual belongs to one point, or None where they are not made of points."""
    coords = _coords(loss, batch)
    names = {id(p): name for name, p in model.named_parameters()}
    mine = [p for p in parameters if id(p) in names]
    apart = [p for p in parameters if id(p) not in names]
    if coords is None or coords.ndim != 2 or residuals.numel() % len(coords) or not mine:
        return None
    if sum(p.numel() for p in apart) > _FEW:
        return None
    v = torch.randn(len(residuals), dtype=residuals.dtype, generator=torch.Generator().manual_seed(0)).to(
        residuals.device
    )
    true = _flat(torch.autograd.grad(residuals, mine, v, retain_graph=True, allow_unused=True), mine)
    accuracy = torch.finfo(residuals.dtype).eps ** 0.5
    ways = (
        lambda: _from_recorded_maps(records, mine, residuals, len(coords)),
        lambda: _from_weights_at_points(loss, model, batch, [names[id(p)] for p in mine], len(coords)),
    )
    for way in ways:
        try:
            for block in way():
                error = torch.linalg.norm(block.T @ v - true)
                if error <= accuracy * (torch.linalg.norm(true) + torch.linalg.norm(block)):
                    return _merged(block, residuals, parameters, mine)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):
            continue  # this model or loss cannot be told apart point by point in this way
    return None


def _coords(loss: Any, batch: Any) -> Tensor | None:
    try:
        return loss.pick(batch).coords
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # a loss of one's own that looks at batches in its own way
        return None


def _from_recorded_maps(
    records: Sequence[RecordedLinear], wanted: Sequence[Tensor], residuals: Tensor, points: int
) -> Iterator[Tensor]:
    """For Taylor mode: with the gradients at the outputs of the linear maps, J is a batch of outer products."""
    known = {id(p) for record in records for p in (record.weight, record.bias)}
    if any(id(p) not in known for p in wanted) or any(record.x.shape[1:-1] != (points,) for record in records):
        return

    def rows(value: Tensor) -> Tensor:
        slopes = torch.autograd.grad(value, [record.y for record in records], retain_graph=True)
        found: dict[int, Tensor] = {}
        for record, slope in zip(records, slopes, strict=True):
            parts = {id(record.weight): torch.einsum("hpo,hpi->poi", slope, record.x)}
            if record.bias is not None:
                parts[id(record.bias)] = slope[0]
            for key, part in parts.items():
                found[key] = found[key] + part if key in found else part
        return torch.cat([found[id(p)].reshape(points, -1) for p in wanted], dim=1)

    yield from _sorted_rows(residuals, rows, points)


def _from_weights_at_points(loss: Any, model: nn.Module, batch: Any, names: list[str], points: int) -> Iterator[Tensor]:
    """For any derivatives: the model with a copy of its weights for every point, and the gradient of each copy."""
    wrapped = _PerPoint(model, names, points)
    weights = list(wrapped.weights.values())

    def rows(value: Tensor) -> Tensor:
        slopes = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, slopes, strict=True)]
        return torch.cat([g.reshape(points, -1) for g in filled], dim=1)

    yield from _sorted_rows(loss.residuals(wrapped, batch), rows, points)


def _sorted_rows(residuals: Tensor, rows: Callable[[Tensor], Tensor], points: int) -> Iterator[Tensor]:
    """J if the residuals are sorted by equation and then point, and if they are sorted the other way round."""
    equations = residuals.numel() // points
    blocks = residuals.reshape(equations, points)
    found = [rows(block.sum()) for block in blocks]
    yield torch.cat(found)
    if equations > 1:
        blocks = residuals.reshape(points, equations)
        yield torch.stack([rows(block.sum()) for block in blocks.unbind(1)], dim=1).flatten(0, 1)


def _merged(block: Tensor, residuals: Tensor, parameters: Sequence[Tensor], mine: Sequence[Tensor]) -> Tensor:
    """The model's columns and those of parameters elsewhere, in the order of `parameters`."""
    model = {id(p) for p in mine}
    apart = [p for p in parameters if id(p) not in model]
    if not apart:
        return block
    columns = iter(_by_columns(residuals, apart).split([p.numel() for p in apart], dim=1))
    own = iter(block.split([p.numel() for p in mine], dim=1))
    return torch.cat([next(own) if id(p) in model else next(columns) for p in parameters], dim=1)


def _by_columns(residuals: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """J by differentiating J^T v with respect to v, one column after another."""
    v = torch.zeros_like(residuals, requires_grad=True)
    gradients = torch.autograd.grad(residuals, parameters, v, create_graph=True, allow_unused=True)
    columns = []
    for p, g in zip(parameters, gradients, strict=True):
        for entry in [None] * p.numel() if g is None else g.reshape(-1).unbind():
            zero = entry is None or not entry.requires_grad
            columns.append(torch.zeros_like(residuals) if zero else torch.autograd.grad(entry, v, retain_graph=True)[0])
    return torch.stack(columns, dim=1).detach()


def _by_rows(residuals: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """J by vector-Jacobian products, many at once where every operation can be batched."""
    identity = torch.eye(len(residuals), dtype=residuals.dtype, device=residuals.device)
    rows = []
    for chunk in identity.split(_ROWS_AT_ONCE):
        try:
            gradients = torch.autograd.grad(
                residuals, parameters, chunk, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
            rows.append(
                torch.cat(
                    [
                        chunk.new_zeros(len(chunk), p.numel()) if g is None else g.reshape(len(chunk), -1)
                        for p, g in zip(parameters, gradients, strict=True)
                    ],
                    dim=1,
                )
            )
        except RuntimeError:  # an operation without a batching rule
            rows.extend(
                _flat(
                    torch.autograd.grad(residuals, parameters, row, retain_graph=True, allow_unused=True), parameters
                )[None]
                for row in chunk
            )
    return torch.cat(rows)


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(parameters, gradients, strict=True)]
    )


class _PerPoint(nn.Module):
    """The model with a copy of its weights for every point."""

    def __init__(self, model: nn.Module, names: list[str], points: int) -> None:
        super().__init__()
        known = dict(model.named_parameters())
        self.weights = {
            name: known[name].detach().expand(points, *known[name].shape).clone().requires_grad_() for name in names
        }
        self._rest = {name: p.detach() for name, p in known.items() if name not in self.weights}
        self._rest |= dict(model.named_buffers())
        self._inside = (model,)  # in a tuple, so that it is no submodule whose parameters would be listed
        self._points = points

    def forward(self, coords: Any) -> Any:
        if isinstance(coords, Jet):
            return self._series(coords)
        if coords.ndim != 2 or len(coords) != self._points:
            raise ValueError("the model is not called with all points at once.")

        def at_one_point(weights: dict[str, Tensor], y: Tensor) -> Tensor:
            return functional_call(self._inside[0], {**self._rest, **weights}, (y[None],))[0]

        return vmap(at_one_point)(self.weights, coords)

    def _series(self, coords: Jet) -> Jet:
        """The series of the model at points, by nested reverse mode, for losses that ask for it by Taylor mode."""
        if coords.origin is None:
            raise ValueError("the series is none of the coordinates themselves.")
        y = coords.origin.detach().requires_grad_()
        known: dict[tuple[int, ...], Tensor] = {(0,) * y.shape[-1]: self(y)}
        for alpha in coords.indices.all[1:]:
            j = next(i for i, order in enumerate(alpha) if order)
            lower = known[(*alpha[:j], alpha[j] - 1, *alpha[j + 1 :])]
            slopes = [
                torch.autograd.grad(lower[..., c].sum(), y, create_graph=True)[0][..., j]
                for c in range(lower.shape[-1])
            ]
            known[alpha] = torch.stack(slopes, dim=-1)
        factorials = coords.indices.factorials
        return Jet([known[a] / f for a, f in zip(coords.indices.all, factorials, strict=True)], coords.indices)
