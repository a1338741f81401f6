"""The residual of an equation as a loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from opflow.batch import Batch, apply_model, unwrapped
from opflow.losses.chunks import ChunkedMeans
from opflow.losses.misfit import aligned
from opflow.losses.objective import Objective
from opflow.losses.unknown import Unknown
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.pde.derivatives.grid import GridDerivatives
from opflow.typing import Derivatives

Equation = Callable[[Derivatives, Mapping[str, Derivatives]], Tensor | dict[str, Tensor]]


class PDEResidual(Objective):
    """mean of r(u, a)^2 over the points, one term an equation   (Raissi, Perdikaris and Karniadakis 2019, eq. 4).

    The equation is stated once, and derivatives are supplied: at collocation points (`AutogradDerivatives`: PINN, physics-informed
    DeepONet; ``batch.coords``) or on a grid (`GridDerivatives`: PINO; the model's field).

    Args:
        problem: anything with ``residual(u, a) -> {equation: Tensor}``, `coordinates` and `unknowns`, such as those of
            `opflow.problems`; or a function (u, a) -> Tensor or {equation: Tensor}.
        derivatives: their coordinates and names are the problem's where they have none of their own.
        unknowns: coefficients of the problem (its fields of these names) that training has to find. Their parameters are this
            loss's: give them to the optimiser, [*model.parameters(), *loss.parameters()].
        on: which batch of a dict of batches.
        name: of the term where the problem is a function that returns one tensor; of a mapping, a prefix "name/" where it is given.
        inputs: coefficient functions of the coordinates by name, a["forcing"]; modules with parameters are unknown fields.
            Values at the points may also come in ``batch.parameters``, and for a grid in ``batch.input``.
        chunk: points that are differentiated at a time; see `ChunkedMeans`. For perceptrons of width 64, 1000 is faster than all at once.

    `batch.weight`, one number a point, weights the squares; they are divided by the number of points, not by the sum of the weights.

    Raises:
        ValueError: the equation asks for a coordinate or a coefficient that is not there.

    >>> heat = PDEResidual(lambda u, a: u.d("t") - u.d("xx"), AutogradDerivatives(("t", "x")), name="heat")
    >>> heat(nn.Linear(2, 1).requires_grad_(False), Batch(coords=torch.rand(5, 2)))["heat"].shape
    torch.Size([])
    """

    def __init__(
        self,
        problem: Any,
        derivatives: AutogradDerivatives | GridDerivatives,
        unknowns: Mapping[str, Unknown] | None = None,
        *,
        on: str | None = None,
        name: str | None = None,
        inputs: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(on=on)
        if not callable(getattr(problem, "residual", problem)):
            raise TypeError(
                f"problem is {type(problem).__name__}; give one with residual(u, a), or a function (u, a) -> Tensor."
            )
        self.problem, self.name = problem, name
        self._check_unknowns(unknowns or {})
        self.unknowns = nn.ModuleDict(dict(unknowns or {}))
        self.inputs = dict(inputs or {})
        self.input_modules = nn.ModuleList(f for f in self.inputs.values() if isinstance(f, nn.Module))
        if isinstance(derivatives, AutogradDerivatives):
            derivatives = AutogradDerivatives(
                derivatives.coordinates or getattr(problem, "coordinates", ()),
                derivatives.names or getattr(problem, "unknowns", ()),
                derivatives.method,
            )
        elif chunk is not None:
            raise ValueError("chunk splits collocation points, but derivatives on a grid need the whole; leave it out.")
        self.derivatives = derivatives
        self.chunks = None if chunk is None else ChunkedMeans(chunk)
        self._asked: frozenset[str] | None = None
        self._chosen: AutogradDerivatives | None = None

    @property
    def derivatives_asked(self) -> frozenset[str]:
        """The derivatives in the equation, {"t", "x", "xx"}; empty where it cannot be told without the model."""
        if self._asked is None:
            coordinates = getattr(self.derivatives, "coordinates", ())
            recorder = _Recorder(coordinates)
            try:
                self._state(recorder, _Anything(coordinates))
                self._asked = frozenset(recorder.asked)
            except Exception:  # an equation that looks at shapes: the function's series grows on its first call instead
                self._asked = frozenset()
            self._products = recorder.products
        return self._asked

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """{equation: mean of squares}"""
        part = self.pick(batch)
        if self.chunks is None:
            return self._means(model, part, None)
        if part.coords is None:
            raise ValueError("the batch has no coords; a residual at collocation points needs them.")
        total = part.coords.shape[-2]
        inner = unwrapped(model)
        parameters = [p for p in (*inner.parameters(), *self.parameters()) if p.requires_grad]
        if not torch.is_grad_enabled():
            parameters = []
        return self.chunks(lambda chunk: self._means(inner, chunk, total), part, parameters)

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """sqrt(w / n) r of every equation, one after another: the sum of squares is the sum of the terms."""
        part = self.pick(batch)
        flat = [
            (r if w is None else w.sqrt() * r).reshape(-1) / math.sqrt(r.numel())
            for r, w in self._weighted(model, part).values()
        ]
        return torch.cat(flat)

    def equations(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The residual itself, {equation: (points,) or (..., *grid)}"""
        return self._equations(model, self.pick(batch))

    def _equations(self, model: nn.Module, part: Batch) -> dict[str, Tensor]:
        if isinstance(self.derivatives, GridDerivatives):
            field = apply_model(model, part)
            u: Any = self.derivatives(field, getattr(self.problem, "unknowns", ()))
            return self._state(u, _GridInputs(self, part))
        chosen = self._method(model, part)
        u = chosen(model, part, asked=self.derivatives_asked) if chosen.method == "taylor" else chosen(model, part)
        return self._state(u, PointInputs(self, part, chosen))

    def point_sizes(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """sqrt(sum of r^2 over the equations) at each point, without a graph: what residual-adaptive resampling asks."""
        part = self.pick(batch)
        chunks = [part] if self.chunks is None else self.chunks.split(part)
        sizes = []
        for chunk in chunks:
            squares = [r.detach().square() for r in self._equations(model, chunk).values()]
            squares = [s.sum(-1) if chunk.coords is not None and s.ndim == chunk.coords.ndim else s for s in squares]
            sizes.append(torch.stack(squares).sum(0).sqrt())
        return torch.cat(sizes, -1)

    def _means(self, model: nn.Module, batch: Batch, total: int | None) -> dict[str, Tensor]:
        """The mean squares, or where `total` counts the points of all chunks, the share of this one."""
        means = {}
        for name, (r, w) in self._weighted(model, batch).items():
            squares = r.square() if w is None else w * r.square()
            share = 1.0 if total is None else cast(Tensor, batch.coords).shape[-2] / total
            means[name] = squares.mean() if total is None else share * squares.mean()
        return means

    def _weighted(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        found = self._equations(model, batch)
        return {name: (r, None if batch.weight is None else aligned(batch.weight, r)) for name, r in found.items()}

    def _state(self, u: Any, a: Any) -> dict[str, Tensor]:
        problem = self._problem()
        found = problem.residual(u, a) if hasattr(problem, "residual") else problem(u, a)
        if isinstance(found, Tensor):
            return {self.name or "residual": found}
        if not isinstance(found, Mapping) or not found:
            raise TypeError(
                f"the residual returned {type(found).__name__}; give a Tensor, or a dict {{equation: Tensor}}."
            )
        return {f"{self.name}/{key}" if self.name else key: r for key, r in found.items()}

    def _problem(self) -> Any:
        if not self.unknowns:
            return self.problem
        # Not `replace`: the constructor's checks would look at the numbers in every step.
        problem = copy.copy(self.problem)
        for name, unknown in self.unknowns.items():
            object.__setattr__(problem, name, unknown())
        return problem

    def _check_unknowns(self, unknowns: Mapping[str, Unknown]) -> None:
        for name, unknown in unknowns.items():
            if not isinstance(unknown, Unknown):
                raise TypeError(f"unknowns[{name!r}] is {type(unknown).__name__}; give an Unknown(initial).")
            if not hasattr(self.problem, name):
                fields = [f for f in getattr(self.problem, "__dataclass_fields__", {}) if not f.startswith("_")]
                raise ValueError(
                    f"the unknown {name!r} is no coefficient of {type(self.problem).__name__}, which has "
                    f"{', '.join(fields) or 'none that are named'}."
                )

    def _method(self, model: nn.Module, batch: Batch) -> AutogradDerivatives:
        assert isinstance(self.derivatives, AutogradDerivatives)
        if self._chosen is None:
            given = self.derivatives
            method = given.method
            if method is None:
                orders = max(map(len, self.derivatives_asked), default=0)
                taylor = orders >= 3 and not self._products and self._takes_jets(model, batch)
                method = "taylor" if taylor else "reverse"
            self._chosen = AutogradDerivatives(given.coordinates, given.names, method)
        return self._chosen

    def _takes_jets(self, model: nn.Module, batch: Batch) -> bool:
        assert isinstance(self.derivatives, AutogradDerivatives) and batch.coords is not None
        few = Batch(input=batch.input, coords=batch.coords.detach()[..., :2, :])
        try:
            taylor = AutogradDerivatives(self.derivatives.coordinates, self.derivatives.names, "taylor")
            _ = taylor(model, few, asked=self.derivatives_asked).value
        except (NotImplementedError, ValueError, TypeError, AttributeError):
            return False
        return True

    def extra_repr(self) -> str:
        """The problem, for print(loss)."""
        return f"{self.problem!r}" + (f", on={self.on!r}" if self.on else "")


class _Recorder:
    """Stands for a function of unknown shape and notes which derivatives an equation asks for."""

    def __init__(self, coordinates: Sequence[str] = ()) -> None:
        self.asked: set[str] = set()
        self.products = False
        self.value = torch.ones((), dtype=torch.float64)
        self._coordinates = tuple(coordinates)

    def __getitem__(self, name: str) -> _Recorder:
        return self

    def d(self, axes: str) -> Tensor:
        self.asked.add("".join(sorted(axes)))
        return self.value

    def of(self, value: Tensor) -> _Recorder:
        self.products = True
        raise NotImplementedError("the derivatives of a product")

    def gradient(self) -> tuple[Tensor, ...]:
        return tuple(self.d(axis) for axis in self._space)

    def laplacian(self) -> Tensor:
        return torch.stack([self.d(2 * axis) for axis in self._space]).sum(0)

    def div_grad(self, a: Any, *, jumps: bool = False) -> Tensor:
        return torch.stack(self.gradient()).sum(0) + self.laplacian()

    @property
    def _space(self) -> list[str]:
        if not self._coordinates:
            raise NotImplementedError("the coordinates are not named")
        return [axis for axis in self._coordinates if axis != "t"]


class _Anything(Mapping[str, Any]):
    """Whatever coefficient is asked for."""

    def __init__(self, coordinates: Sequence[str]) -> None:
        self._recorder = _Recorder(coordinates)

    def __getitem__(self, name: str) -> Any:
        return self._recorder

    def __contains__(self, name: object) -> bool:
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class PointInputs(Mapping[str, Any]):
    """The coefficients at the points: functions with their derivatives, or values without."""

    def __init__(self, loss: PDEResidual, batch: Batch, derivatives: AutogradDerivatives) -> None:
        self._loss, self._batch = loss, batch
        self._derivatives = AutogradDerivatives(derivatives.coordinates, (), derivatives.method)
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            if name in self._loss.inputs:
                points = Batch(coords=self._batch.coords)
                self._known[name] = self._derivatives(self._loss.inputs[name], points)
            elif self._batch.parameters is not None and name in self._batch.parameters:
                self._known[name] = _Values(self._batch.parameters[name], name)
            else:
                raise _missing(name, self)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loss.inputs or name in (self._batch.parameters or {})

    def __iter__(self) -> Iterator[str]:
        return iter({**self._loss.inputs, **(self._batch.parameters or {})})

    def __len__(self) -> int:
        return len({**self._loss.inputs, **(self._batch.parameters or {})})


class _GridInputs(Mapping[str, Any]):
    """The coefficients on the grid: from `batch.parameters`, or the channels of `batch.input` in the order of problem.inputs."""

    def __init__(self, loss: PDEResidual, batch: Batch) -> None:
        self._derivatives = cast(GridDerivatives, loss.derivatives)
        self._fields: dict[str, Tensor] = {}
        names: Iterable[str] = getattr(loss.problem, "inputs", ())
        grid = self._derivatives.grid
        if batch.input is not None and batch.input.shape[2:] == grid.shape:
            self._fields |= dict(zip(names, batch.input.unbind(1), strict=False))
        self._fields |= dict(batch.parameters or {})
        if loss.inputs:
            points = grid.points(dtype=torch.float64)
            device = next(iter(self._fields.values())).device if self._fields else None
            for name, function in loss.inputs.items():
                self._fields[name] = function(points.to(device)).reshape(grid.shape)

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            raise _missing(name, self)
        return self._derivatives(self._fields[name])

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _missing(name: str, known: Iterable[str]) -> ValueError:
    return ValueError(
        f"the equation asks for the coefficient {name!r}, but there are {', '.join(known) or 'none'}; give its function with "
        "inputs= or its values at the points in batch.parameters."
    )


class _Values:
    """Values at points, of which no derivative is known."""

    def __init__(self, value: Tensor, name: str) -> None:
        self.value, self._name = value, name

    def d(self, axes: str) -> Tensor:
        raise ValueError(
            f"the equation asks for a derivative of {self._name!r}, which is known by its values at the points only; give it as a "
            "function, PDEResidual(..., inputs={" + repr(self._name) + ": function})."
        )

    def gradient(self) -> tuple[Tensor, ...]:
        return (self.d("x"),)

    laplacian = gradient
