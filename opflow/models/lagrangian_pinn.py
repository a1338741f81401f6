"""A PINN along characteristics: where particles go, and what they carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opflow.layers.coordinates import as_box
from opflow.layers.hard_constraint import HardConstraint
from opflow.models.pinn import PINN

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Crossing:
    """Two characteristics meet: x_xi <= 0, so that w is no function of x from there on.

    Attributes:
        time: the first moment at which it was seen.
        label, position: xi and x there.
        stretch: x_xi.
    """

    time: float
    label: float
    position: float
    stretch: float

    @property
    def message(self) -> str:
        """When and where, and what to do."""
        return (
            f"characteristics cross at t = {self.time:.6g}, x = {self.position:.6g} (label {self.label:.6g}, x_xi = {self.stretch:.3g}): a shock; "
            "the solution is no function of x from then on. End before it, add viscosity, or train in Eulerian coordinates."
        )


class CharacteristicsCross(ValueError):
    """A solution was asked at a time when characteristics have crossed; `crossing` says where."""

    def __init__(self, crossing: Crossing) -> None:
        super().__init__(crossing.message)
        self.crossing = crossing


class LagrangianPINN(nn.Module):
    """x = xi + t N_x(t, xi), w = w_0(xi) + t N_w(t, xi): particles xi, their positions and values   (Mojgani, Balajewicz and Hassanzadeh 2023, "Kolmogorov n-width and Lagrangian physics-informed neural networks", eq. 9).

    Both branches are periodic in the label, so that x(t, xi + P) = x(t, xi) + P. A wave that travels is nearly constant along
    its characteristics, where a function of (t, x) would need ever more degrees of freedom. Train it with `losses.LagrangianResidual`;
    `at` is the solution at points (t, x).

    Args:
        position, value: N_x and N_w, (t, xi) (..., 2) -> (..., 1), of period `period` in xi; small ones will do.
        initial: w_0, x (..., 1) -> (..., 1), of that period.
        period: P, the length of the interval.
        start: the time of the initial values.

    Raises:
        ValueError: a branch or the initial values are not periodic.

    >>> model = LagrangianPINN.build(((0.0, 1.0), (0.0, 2 * torch.pi)), torch.sin)
    >>> labels = torch.tensor([[0.0, 1.0], [0.5, 2.0]])
    >>> position, value = model(labels).unbind(-1)
    >>> position[0].item()
    1.0
    """

    conditions = ("initial", "periodic")

    def __init__(
        self, position: nn.Module, value: nn.Module, initial: Function, *, period: float, start: float = 0.0
    ) -> None:
        super().__init__()
        if not period > 0:
            raise ValueError(f"period is {period}; give the length of the interval.")
        self.period, self.start = float(period), float(start)

        def elapsed(y: Tensor) -> Tensor:
            return y[..., :1] - self.start

        self.position = HardConstraint(position, lambda y: y[..., 1:], elapsed, conditions=("initial",))
        self.value = HardConstraint(value, lambda y: initial(y[..., 1:]), elapsed, conditions=("initial",))
        self._check_periodic(initial)

    @classmethod
    def build(
        cls,
        domain: Sequence[Sequence[float]],
        initial: Function,
        position_hidden: Sequence[int] = (20, 20),
        value_hidden: Sequence[int] = (20, 20),
        *,
        harmonics: int = 1,
        activation: str = "tanh",
    ) -> LagrangianPINN:
        """Two perceptrons of periodic features.

        There is no recipe to rebuild it from, as the initial values are a function: build it again, then load the weights.

        Args:
            domain: (low, high) of time and of the interval.
            position_hidden, value_hidden: widths of the hidden layers of the two branches.
            harmonics: waves of the label that the branches see; see `layers.PeriodicFeatures`.
        """
        (start, _), (low, high) = box = as_box(domain, 2)
        position, value = (
            PINN.build(box, 1, hidden, periodic=(0, harmonics), activation=activation)
            for hidden in (position_hidden, value_hidden)
        )
        return cls(position, value, initial, period=high - low, start=start)

    def forward(self, y: Tensor) -> Tensor:
        """(..., 2) of (t, xi) -> (..., 2): position and value"""
        return torch.cat([self.position(y), self.value(y)], -1)

    def stretch(self, y: Tensor) -> Tensor:
        """x_xi at (..., 2) of (t, xi), (...): how far apart neighbouring particles are; without a graph."""
        return self._place(y[..., :1], y[..., 1:])[1].squeeze(-1)

    def first_crossing(
        self, times: Sequence[float] | Tensor, *, labels: int = 1024, low: float = 0.0
    ) -> Crossing | None:
        """The first crossing in an increasing sequence of times, to 1e-6 of the step in which it is; None where there is none.

        Args:
            labels: over one period from `low`, at which x_xi is looked at.
        """
        moments = torch.as_tensor(times, dtype=torch.float64).tolist()
        before = self.start
        for after in moments:
            found = self._least_stretch(after, labels, low)
            if found.stretch > 0:
                before = after
                continue
            step = after - before
            while after - before > 1e-6 * step and found.time > self.start:
                middle = self._least_stretch(0.5 * (before + after), labels, low)
                if middle.stretch > 0:
                    before = middle.time
                else:
                    after, found = middle.time, middle
            return found
        return None

    def at(self, points: Tensor) -> Tensor:
        """w at points (..., 2) of (t, x) -> (..., 1), x any real number; differentiable with respect to the parameters, once.

        Raises:
            CharacteristicsCross: x_xi <= 0 at one of the times, so that w has no unique value.
        """
        t, x = points[..., :1], points[..., 1:]
        labels = self.labels_at(points).unsqueeze(-1)
        if torch.is_grad_enabled():
            # One Newton step with a graph has the derivatives of the implicit function xi(t, x; parameters).
            slope = self._place(t, labels)[1]
            labels = labels - (self.position(torch.cat([t, labels], -1)) - x) / slope
        return self.value(torch.cat([t, labels], -1))

    @torch.no_grad()
    def labels_at(self, points: Tensor, *, probes: int = 512) -> Tensor:
        """xi with x(t, xi) = x at points (..., 2) of (t, x), (...): Newton's method within a bracket that bisection shrinks.

        Args:
            probes: labels at which x_xi > 0 is made sure of, at each of the times (256 between first and last, if there are more).
        """
        flat = points.reshape(-1, 2)
        if not len(flat):
            return points[..., 0]
        t, x = flat[:, :1], flat[:, 1:]
        self._refuse_crossing(t, probes)
        # x grows by one period with the label: from any label, the period that holds the solution is known.
        centre = x
        turns = torch.floor((x - self._place(t, centre)[0]) / self.period)
        low = centre + self.period * turns
        high = low + self.period
        label = 0.5 * (low + high)
        tolerance = 4 * torch.finfo(x.dtype).eps * (self.period + x.abs().amax())
        for _ in range(100):
            position, slope = self._place(t, label)
            excess = position - x
            low, high = torch.where(excess < 0, label, low), torch.where(excess < 0, high, label)
            newton = label - excess / slope
            inside = (newton >= low) & (newton <= high)
            label_next = torch.where(inside, newton, 0.5 * (low + high))
            done = bool(((excess.abs() <= tolerance) | (high - low <= tolerance)).all())
            label = torch.where(excess == 0, label, label_next)
            if done:
                break
        return label.reshape(points.shape[:-1])

    def _place(self, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x and x_xi, without a graph."""
        with torch.enable_grad():
            labels = labels.detach().requires_grad_()
            x = self.position(torch.cat([t.detach(), labels], -1))
            (slope,) = torch.autograd.grad(x.sum(), labels)
        return x.detach(), slope

    def _least_stretch(self, time: float, count: int, low: float) -> Crossing:
        like = next(self.parameters())
        labels = low + self.period * torch.arange(count, dtype=like.dtype, device=like.device)[:, None] / count
        x, slope = self._place(torch.full_like(labels, time), labels)
        place = int(slope.argmin())
        return Crossing(time, float(labels[place]), float(x[place]), float(slope[place]))

    def _refuse_crossing(self, t: Tensor, probes: int) -> None:
        times = t.unique()
        if len(times) > 256:
            times = torch.linspace(float(times[0]), float(times[-1]), 256, dtype=t.dtype, device=t.device)
        labels = self.period * torch.arange(probes, dtype=t.dtype, device=t.device) / probes
        y = torch.cartesian_prod(times, labels)
        slopes = self.stretch(y).reshape(len(times), -1)
        if bool((slopes <= 0).any()):
            raise CharacteristicsCross(self.first_crossing(times, labels=probes) or self._worst(times, slopes, labels))

    def _worst(self, times: Tensor, slopes: Tensor, labels: Tensor) -> Crossing:
        i, j = divmod(int(slopes.argmin()), slopes.shape[1])
        x, slope = self._place(times[i].reshape(1, 1), labels[j].reshape(1, 1))
        return Crossing(float(times[i]), float(labels[j]), float(x), float(slope))

    def _check_periodic(self, initial: Function) -> None:
        like = next(self.parameters())
        s = self.period * torch.tensor([[0.0], [0.3], [0.7]], dtype=like.dtype, device=like.device)
        y = torch.cat([torch.full_like(s, self.start + 0.5), s], -1)
        shifted = torch.cat([y[:, :1], s + self.period], -1)
        functions = {"position": (self.position.network, y, shifted), "value": (self.value.network, y, shifted)}
        functions["initial"] = (initial, s, s + self.period)  # type: ignore[assignment]
        for name, (function, here, there) in functions.items():
            with torch.no_grad():
                a, b = function(here), function(there)
            if a.shape != s.shape:
                raise ValueError(
                    f"{name} maps {tuple(here.shape)} to {tuple(a.shape)}; expected one number a point, (..., 1)."
                )
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()) + 1e-4):
                raise ValueError(
                    f"{name} has not the period {self.period:g} in its label; use layers.PeriodicFeatures, as LagrangianPINN.build does."
                )

    def extra_repr(self) -> str:
        """The period, for print(model)."""
        return f"period={self.period:g}, start={self.start:g}"
