"""The residual of one implicit Runge-Kutta step as a loss: time is discrete, and a step may be as long as the data are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.misfit import aligned
from opflow.losses.residual import PDEResidual, PointInputs
from opflow.losses.unknown import Unknown
from opflow.pde.derivatives.autograd import AutogradDerivatives, PointFunction, TaylorFunction
from opflow.pde.runge_kutta import ButcherTableau, gauss_legendre

TIME = "t"
SNAPSHOTS = ("start", "end")


class DiscreteTimeResidual(PDEResidual):
    """How far the stages U_j(x) of one step of length h are from a snapshot   (Raissi, Perdikaris and Karniadakis 2019, eqs. 9 and 19).

    Of u_t + N[u] = 0 the model knows the space coordinates only, x -> U_1 .. U_q, at the times t_n + c_j h, and where it has another
    channel the end u_(n+1) of the step. The terms are the mean squares, over points and stages, of

        start:   U_i + h sum_j a_ij N[U_j] - u_n             and  u_(n+1) + h sum_j b_j N[U_j] - u_n
        end:     U_i + h sum_j (a_ij - b_j) N[U_j] - u_(n+1)    and, where the model has it, u_(n+1) less its snapshot.

    One term to find u_(n+1) from u_n; both, on points of their own, to find unknown coefficients from two snapshots:

        loss = DiscreteTimeResidual(problem, derivatives, q, h, snapshot="start", unknowns=unknowns, on="start") + \\
               DiscreteTimeResidual(problem, derivatives, q, h, snapshot="end", unknowns=unknowns, on="end")

    N comes from the very `problem.residual` of a continuous-time loss, by the u whose d("t") is zero. So every equation must hold
    the time derivative of one unknown, linearly and with the coefficient 1 or -1, and coefficients must not depend on time; the
    first is checked at the first call.

    Args:
        problem: as of `PDEResidual`.
        derivatives: in space. Without a method, Taylor mode where the model takes it: reverse mode differentiates every stage by itself.
        tableau: the Runge-Kutta method, or the number of stages of `gauss_legendre`.
        step: h.
        snapshot: which of the two the batch holds, as ``batch.target`` (points,) or (points, unknowns).
        values: the snapshot as a function of the coordinates (..., dim), where the batch has no target (points that are drawn anew).
        unknowns, on, inputs: as of `PDEResidual`.
        name: of the term; by default "start" or "end", followed by "/unknown" where there are several.

    The model's channels are the stages of the first unknown, with its end where there is one, then those of the second, and so on.

    Raises:
        ValueError: the equation is not of this kind, the model's channels or the snapshot do not fit, or the snapshot is not finite.

    >>> heat = DiscreteTimeResidual(lambda u, a: u.d("t") - u.d("xx"), AutogradDerivatives(("x",)), 4, 0.1)
    >>> batch = Batch(coords=torch.rand(5, 1), target=torch.zeros(5))
    >>> heat.residuals(nn.Linear(1, 5), batch).shape
    torch.Size([25])
    """

    def __init__(
        self,
        problem: Any,
        derivatives: AutogradDerivatives,
        tableau: ButcherTableau | int,
        step: float,
        *,
        snapshot: Literal["start", "end"] = "start",
        values: Callable[[Tensor], Tensor] | None = None,
        unknowns: Mapping[str, Unknown] | None = None,
        on: str | None = None,
        name: str | None = None,
        inputs: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        if not isinstance(derivatives, AutogradDerivatives):
            raise TypeError(f"derivatives is {type(derivatives).__name__}; give AutogradDerivatives(...).")
        if snapshot not in SNAPSHOTS:
            raise ValueError(f"snapshot is {snapshot!r}; give 'start' or 'end'.")
        if isinstance(step, bool) or not (isinstance(step, int | float) and 0 < step < float("inf")):
            raise ValueError(f"step is {step!r}; give its length in time, a positive number.")
        space = tuple(axis for axis in derivatives.coordinates or getattr(problem, "coordinates", ()) if axis != TIME)
        self.fields = derivatives.names or tuple(getattr(problem, "unknowns", ()))
        super().__init__(problem, AutogradDerivatives(space, (), derivatives.method), unknowns, on=on, inputs=inputs)
        # The names belong to blocks of channels, which `StageFunction` picks.
        self.derivatives = AutogradDerivatives(space, (), derivatives.method)
        self.tableau = gauss_legendre(tableau) if isinstance(tableau, int) else tableau
        self.step, self.snapshot, self.term = float(step), snapshot, name or snapshot
        self.values = values
        matrix = torch.from_numpy(self.tableau.matrix.copy())
        weights = torch.from_numpy(self.tableau.weights.copy())
        # The rows are what each relation takes of N; the last one is that of the end of the step.
        rows = (
            torch.cat([matrix, weights[None]])
            if snapshot == "start"
            else torch.cat([matrix - weights, 0 * weights[None]])
        )
        self.register_buffer("rows", rows, persistent=False)
        self._signs: list[tuple[int, float]] | None = None
        self._known: tuple[Tensor, int, Tensor] | None = None

    @property
    def derivatives_asked(self) -> frozenset[str]:
        """The derivatives in space that the equation holds; empty where it cannot be told without the model."""
        return frozenset(axes for axes in super().derivatives_asked if TIME not in axes)

    @property
    def names(self) -> tuple[str, ...]:
        """One a field."""
        return (self.term,) if len(self.fields) < 2 else tuple(f"{self.term}/{field}" for field in self.fields)

    def equations(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The relations themselves, {term: (points, stages)} or one column more where the model has the end of the step."""
        return super().equations(model, batch)

    def _equations(self, model: nn.Module, part: Batch) -> dict[str, Tensor]:
        if part.coords is None:
            raise ValueError("the batch has no coords; give Batch(coords=(points, dim)) of the snapshot.")
        chosen = self._method(model, part)
        u = chosen(model, part, asked=self.derivatives_asked) if chosen.method == "taylor" else chosen(model, part)
        stages = StageFunction(u, self.fields, self.tableau.stages)
        a = _Columns(PointInputs(self, part, chosen))
        rates = list(self._state(stages, a).values())
        if self._signs is None:
            self._signs = self._time_derivatives(stages, a, rates)
        target = self._target(part, stages)
        rows = cast(Tensor, self.rows).to(stages.all)
        count = stages.all.shape[-1]
        found = {}
        for k, name in enumerate(self.names):
            equation, sign = self._signs[k]
            rate = rates[equation].expand(*stages.all.shape[:-2], self.tableau.stages)
            moved = (sign * self.step) * (rate @ rows[:count].mT)
            found[name] = stages.all[..., k, :] + moved - target[..., k, None]
        return found

    def _weighted(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        # The last axis are stages: as many of them as points would take the points' weights.
        weight = None if batch.weight is None else batch.weight.unsqueeze(-1)
        found = self._equations(model, batch)
        return {name: (r, None if weight is None else aligned(weight, r)) for name, r in found.items()}

    def _target(self, batch: Batch, stages: StageFunction) -> Tensor:
        """The snapshot (..., points, fields)"""
        coords, target = batch.coords, batch.target
        assert coords is not None
        given = target if target is not None else coords
        if self._known is not None and self._known[0] is given and self._known[1] == given._version:
            return self._known[2]
        if target is None:
            if self.values is None:
                raise ValueError(
                    f"the batch has no target, the snapshot at the {self.snapshot} of the step; give Batch(target=...) or values=."
                )
            with torch.no_grad():
                target = self.values(coords)
        points, fields = stages.all.shape[:-2], stages.all.shape[-2]
        if target.shape == points and fields == 1:
            target = target.unsqueeze(-1)
        if target.shape != (*points, fields):
            raise ValueError(
                f"the snapshot has shape {tuple(target.shape)}; expected one value a point and unknown, {(*points, fields)}."
            )
        if not bool(target.isfinite().all()):
            first = int((~target.isfinite()).flatten(0, -2).any(-1).nonzero()[0])
            raise ValueError(f"the snapshot is NaN or infinite at point {first}; correct or leave out this point.")
        target = target.detach().to(stages.all)
        self._known = (given, given._version, target)
        return target

    @torch.no_grad()
    def _time_derivatives(
        self, stages: StageFunction, a: Mapping[str, Any], rates: list[Tensor]
    ) -> list[tuple[int, float]]:
        """For each field the place of its equation and the sign of u_t there, seen by a u_t of random numbers."""
        generator = torch.Generator().manual_seed(0)
        size = max(1.0, *(float(rate.abs().max()) for rate in rates))
        shape = (*stages.all.shape[:-1], self.tableau.stages)
        probe = (size * (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))).to(stages.all)
        answers = list(self._state(stages.moving(probe), a).values())
        tolerance = 1e3 * torch.finfo(probe.dtype).eps * size
        places = {}
        for equation, (answer, rate) in enumerate(zip(answers, rates, strict=True)):
            for k in range(probe.shape[-2]):
                for sign in (1.0, -1.0):
                    if bool(((answer - rate - sign * probe[..., k, :]).abs() <= tolerance).all()):
                        places[k] = (equation, sign)
        if len(places) < probe.shape[-2] or len(answers) != probe.shape[-2]:
            missing = [field for k, field in enumerate(self.fields or ("u",)) if k not in places]
            what = f"that of {missing[0]!r} is not" if missing else f"there are {len(answers)} equations"
            raise ValueError(
                f"a discrete-time residual needs, for each of the {probe.shape[-2]} unknowns, one equation that holds its time derivative "
                f"linearly with the coefficient 1 or -1, but {what}; divide the equation by the coefficient, or use PDEResidual."
            )
        return [places[k] for k in range(probe.shape[-2])]

    def extra_repr(self) -> str:
        """The problem and the step, for print(loss)."""
        return f"{self.problem!r}, {self.tableau.stages} stages, step={self.step:g}, snapshot={self.snapshot!r}" + (
            f", on={self.on!r}" if self.on else ""
        )


class StageFunction:
    """The stages of a step as a function of space with derivatives, values (..., points, stages); its d("t") is zero, or given.

    Args:
        function: of all channels, (..., points, channels).
        fields: the unknowns' names, in the order of the blocks of channels; empty for one without a name.
        stages: q; a block has q channels, or q + 1 with the end of the step, which no derivative is asked of.
    """

    def __init__(
        self, function: PointFunction | TaylorFunction, fields: tuple[str, ...], stages: int, rate: Tensor | None = None
    ) -> None:
        self._function, self._fields, self._stages, self._rate = function, fields, stages, rate
        self._field: int | None = None if len(fields) > 1 else 0
        count, channels = max(1, len(fields)), function.value.shape[-1]
        if channels not in (count * stages, count * (stages + 1)):
            raise ValueError(
                f"the model has {channels} channels, but {stages} stages of {count} unknown{'s' * (count > 1)} are "
                f"{count * stages} channels, or {count * (stages + 1)} with the end of the step."
            )
        self.all = function.value.unflatten(-1, (count, -1))

    def moving(self, rate: Tensor) -> StageFunction:
        """The same with d("t") = rate (..., points, fields, stages)."""
        return StageFunction(self._function, self._fields, self._stages, rate)

    @property
    def value(self) -> Tensor:
        """(..., points, stages), before the last axis that of the fields where no name was picked and there are several"""
        return self._block(self._function.value)

    def __getitem__(self, name: str) -> StageFunction:
        """The stages of one unknown."""
        if name not in self._fields:
            raise KeyError(
                f"no component is called {name!r}; this function has {self._fields or 'no named components'}."
            )
        part = StageFunction.__new__(StageFunction)
        part.__dict__ = self.__dict__ | {"_field": self._fields.index(name), "_fields": ()}
        return part

    def d(self, axes: str) -> Tensor:
        """A partial derivative, one letter a differentiation."""
        if TIME not in axes:
            return self._block(self._function.d(axes))
        if axes != TIME:
            raise ValueError(
                f"the equation asks for d({axes!r}), but in discrete time it may hold the first time derivative only; use PDEResidual."
            )
        if self._rate is None:
            return torch.zeros_like(self.value)
        return self._rate if self._field is None else self._rate[..., self._field, :]

    def gradient(self) -> tuple[Tensor, ...]:
        """The first derivatives in space."""
        return tuple(self._block(part) for part in self._function.gradient())

    def laplacian(self) -> Tensor:
        """The sum of the second derivatives in space."""
        return self._block(self._function.laplacian())

    def div_grad(self, a: Any, *, jumps: bool = False) -> Tensor:
        """grad a . grad u + a lap u, with a coefficient that is a function of space."""
        if jumps:
            raise ValueError(
                "a is discontinuous, so that its pointwise gradient would be wrong in silence; use a weak form."
            )
        products = [da * du for da, du in zip(a.gradient(), self.gradient(), strict=True)]
        return torch.stack(products).sum(0) + a.value * self.laplacian()

    def of(self, value: Tensor) -> StageFunction:
        """Refused: the stages share their points, so that the product's channels are not the model's."""
        raise ValueError("u.of(value) is not available in discrete time; write the product rule out.")

    def _block(self, channels: Tensor) -> Tensor:
        blocks = channels.unflatten(-1, (max(1, self.all.shape[-2]), -1))[..., : self._stages]
        return blocks if self._field is None else blocks[..., self._field, :]


class _Columns(Mapping[str, Any]):
    """Coefficients at the points, so that they broadcast over the stages."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._inputs = inputs

    def __getitem__(self, name: str) -> _Column:
        return _Column(self._inputs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


class _Column:
    def __init__(self, function: Any) -> None:
        self._function = function
        self._bare = not isinstance(function, PointFunction | TaylorFunction) or function.value.ndim == 1

    @property
    def value(self) -> Tensor:
        return self._column(self._function.value)

    def d(self, axes: str) -> Tensor:
        if TIME in axes:
            raise ValueError(
                f"the equation asks for d({axes!r}) of a coefficient; in discrete time it must not depend on time."
            )
        return self._column(self._function.d(axes))

    def gradient(self) -> tuple[Tensor, ...]:
        return tuple(self._column(part) for part in self._function.gradient())

    def _column(self, value: Tensor) -> Tensor:
        return value.unsqueeze(-1) if self._bare else value
