"""The mean square by which a condition is missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.objective import Objective
from opflow.pde.boundary import Condition, Initial
from opflow.pde.derivatives.autograd import AutogradDerivatives
from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.space_time import SpaceTime
from opflow.typing import Derivatives


class ConditionResidual(Objective):
    """mean(w r^2) of a boundary or initial condition's residual r, over points and components: a soft condition.

    Args:
        condition: `Dirichlet`, `Neumann`, `Robin`, `Periodic`, `Initial` or a `Condition` of your own.
        derivatives: ``derivatives(model, batch) -> Derivatives``, `AutogradDerivatives` for example.
        on: which batch of a dict of batches; None for a step that is one `Batch`.
        name: the term's name, by default that of the condition's kind.
        geometry: refuse points outside of it, and with it initial points that are not at its beginning.

    ``batch.weight`` (..., points) is w. See `PDEResidual` for the equation itself; both count points alike.

    Raises:
        TypeError, ValueError: an argument or the batch does not fit, or a point lies outside the geometry.

    >>> import torch
    >>> from opflow.pde.boundary import Dirichlet
    >>> from opflow.pde.derivatives.autograd import AutogradDerivatives
    >>> loss = ConditionResidual(Dirichlet(1.0), AutogradDerivatives())
    >>> loss(lambda y: 3 * y, Batch(coords=torch.tensor([[0.0], [1.0]])))["dirichlet"].item()
    2.5
    """

    def __init__(
        self,
        condition: Condition,
        derivatives: Callable[[nn.Module, Batch], Derivatives],
        *,
        on: str | None = None,
        name: str | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(on=on)
        if not isinstance(condition, Condition):
            raise TypeError(
                f"condition is {type(condition).__name__}; give one of opflow.pde.boundary, Dirichlet(0.0) for example."
            )
        if not callable(derivatives):
            raise TypeError(f"derivatives is {type(derivatives).__name__}; give AutogradDerivatives(...) for example.")
        if isinstance(condition, Initial) and geometry is not None and not isinstance(geometry, SpaceTime):
            raise TypeError(f"the initial condition has the geometry {geometry!r} without time; give a SpaceTime.")
        self.condition, self.derivatives, self.geometry = condition, derivatives, geometry
        self.name = condition.kind if name is None else name
        self._admitted: tuple[Tensor, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def forward(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> dict[str, Tensor]:
        """The weighted mean of squares under its name."""
        residual, weight = self._evaluate(model, batch)
        squares = residual.square()
        return {self.name: (squares if weight is None else weight * squares).mean()}

    def residuals(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> Tensor:
        """sqrt(w / n) r, flattened, n the number of its entries: |residuals|^2 is the term."""
        residual, weight = self._evaluate(model, batch)
        scaled = residual if weight is None else weight.sqrt() * residual
        return scaled.reshape(-1) / residual.numel() ** 0.5

    def _evaluate(self, model: nn.Module, batch: Batch | Mapping[str, Batch]) -> tuple[Tensor, Tensor | None]:
        part = self.pick(batch)
        if part.coords is None:
            raise ValueError(
                f"the batch of the condition {self.name!r} has no coords; give Batch(coords=(points, dim))."
            )
        self._admit(part.coords)
        points, derivatives = self.condition.points_for(part), self.derivatives
        if isinstance(derivatives, AutogradDerivatives) and derivatives.method == "taylor":
            letters = derivatives.coordinates_of(part.coords)
            u: Derivatives = derivatives(model, points, asked=self.condition.asked(letters))
        else:
            u = derivatives(model, points)
        residual = self.condition.residual(u, part)
        if residual.numel() == 0:
            raise ValueError(f"the batch of the condition {self.name!r} has no points; give one or more.")
        return residual, self._weight(residual, part)

    def _weight(self, residual: Tensor, batch: Batch) -> Tensor | None:
        """``batch.weight`` so that it multiplies the residual point by point."""
        weight = batch.weight
        if weight is None or batch.coords is None:
            return None
        points = residual.shape[:-1] if self.condition.has_channels(residual, batch) else residual.shape
        if weight.shape not in (points, points[-1:]):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} but the points {tuple(points)}; give one weight a point."
            )
        return weight.unsqueeze(-1) if residual.ndim > len(points) else weight

    def _admit(self, coords: Tensor) -> None:
        # The same points come again thousands of times.
        known = self._admitted
        if self.geometry is None or (known and known[0] is coords and known[1] == coords._version):
            return
        self.geometry.refuse_outside(coords, f"point of {self.name!r}")
        if isinstance(self.condition, Initial) and isinstance(self.geometry, SpaceTime):
            late = (coords[..., 0].detach() - self.geometry.start).abs().flatten()
            tolerance = 1e-6 * self.geometry.time.measure
            if bool((late > tolerance).any()):
                first = int((late > tolerance).nonzero()[0])
                at = coords.detach().reshape(-1, coords.shape[-1])[first].tolist()
                raise ValueError(
                    f"point {first} of the initial condition {self.name!r} is at {at}, but time begins at "
                    f"{self.geometry.start}; give points with that first coordinate, as initial_batch does."
                )
        self._admitted = (coords, coords._version)

    def extra_repr(self) -> str:
        """The condition and the batch, for print(loss)."""
        return f"{self.condition!r}" + (f", on={self.on!r}" if self.on else "")
