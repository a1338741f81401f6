"""Weights that change during training: causal weights of points, and weights of terms that balance them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opflow.batch import Batch
from opflow.losses.objective import Scaled, total
from opflow.training.arguments import check_count
from opflow.training.flat_optimizer import check_positive
from opflow.training.jacobian import jacobian

_FACTOR = 3.0  # by which epsilon changes


class CausalWeights:
    """w_i = exp(-epsilon sum_(k < i) L_k): a time slab counts when those before it are solved.

    L_k is the mean of squared residuals over slab k (Wang, Sankaran and Perdikaris 2024, "Respecting causality for training
    physics-informed neural networks", CMAME 421). The weights are found from a given state and then stay with
    the batch, so that the objective is fixed in between; call it when points are drawn anew:

        points.resample(lambda batch: residual.point_sizes(model, batch))
        causal.weigh(points.interior, residual.point_sizes(model, points.interior))

    epsilon adapts: three times as large where even the last slab has a weight above 1/2, smaller by threes until the
    weights of the slabs add to two.

    Args:
        interval: of time.
        slabs: of equal length.
        epsilon: to begin with.
        axis: the time's place among the coordinates.

    >>> causal = CausalWeights((0.0, 1.0), slabs=4, epsilon=1.0)
    >>> batch = Batch(coords=torch.tensor([[0.1, 0.0], [0.9, 0.0]]))
    >>> causal.weigh(batch, torch.tensor([1.0, 5.0]))
    tensor([1.0000, 0.3679])
    >>> batch.weight is not None, causal.epsilon
    (True, 1.0)
    """

    def __init__(self, interval: tuple[float, float], *, slabs: int = 20, epsilon: float = 1.0, axis: int = 0) -> None:
        check_count("slabs", slabs)
        check_positive("epsilon", epsilon)
        if not (math.isfinite(interval[0]) and math.isfinite(interval[1]) and interval[0] < interval[1]):
            raise ValueError(f"interval is {interval}; give (beginning, end) of time with beginning < end.")
        self.interval, self.slabs, self.epsilon, self.axis = interval, slabs, float(epsilon), axis

    def weigh(self, batch: Batch, sizes: Tensor) -> Tensor:
        """Give ``batch.weight`` the weights of its points, and return them.

        Args:
            batch: with coords (points, dim) inside the interval.
            sizes: |r| at the points (points,), or (equations, points), without weights: ``loss.point_sizes(model, batch)``.

        Raises:
            ValueError: the sizes do not fit the points, are not finite, or a point lies outside the interval.
        """
        if batch.coords is None or batch.coords.ndim != 2 or sizes.shape[-1:] != batch.coords.shape[:1]:
            shape = None if batch.coords is None else tuple(batch.coords.shape)
            raise ValueError(
                f"the coords have shape {shape} and the sizes {tuple(sizes.shape)}; give coords (points, dim) and one size a point."
            )
        squares = sizes.detach().square().reshape(-1, len(batch.coords)).sum(0)
        if not bool(squares.isfinite().all()):
            raise ValueError(
                "a residual is NaN or infinite, so the weights would be too; go back to the last good state."
            )
        first, last = self.interval
        position = (batch.coords.detach()[:, self.axis] - first) / (last - first)
        if bool((position < -1e-6).any() or (position > 1 + 1e-6).any()):
            raise ValueError(
                f"coordinate {self.axis} runs from {float(batch.coords[:, self.axis].min()):.4g} to "
                f"{float(batch.coords[:, self.axis].max()):.4g}, beyond the interval {self.interval}; say with axis= which "
                "coordinate is time."
            )
        slab = (position * self.slabs).long().clamp(0, self.slabs - 1)
        ones = torch.ones_like(squares)
        zeros = squares.new_zeros(self.slabs)
        losses = zeros.scatter_add(0, slab, squares) / zeros.scatter_add(0, slab, ones).clamp(min=1)
        before = losses.cumsum(0) - losses
        while float(torch.exp(-self.epsilon * before).sum()) < 2 <= self.slabs and self.epsilon > 1e-30:
            self.epsilon /= _FACTOR
        weights = torch.exp(-self.epsilon * before)
        if float(weights.min()) > 0.5 and float(before[-1]) > 0:
            self.epsilon *= _FACTOR  # from the next call on; these weights are what was asked for
        batch.weight = weights[slab]
        return batch.weight

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; the weights themselves belong to the batch."""
        return {"epsilon": self.epsilon}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.epsilon = float(state["epsilon"])


class _TermBalance:
    """Moves the weights of scaled losses towards aims, as an exponential moving average."""

    def __init__(self, terms: Mapping[str, Scaled], decay: float) -> None:
        wrong = [name for name, term in terms.items() if not isinstance(term, Scaled)]
        if wrong or len(terms) < 2:
            raise ValueError(
                f"the terms {', '.join(wrong) or list(terms)} cannot be balanced; give two or more scaled losses, "
                '{"residual": 1.0 * PDEResidual(...), "boundary": 1.0 * ConditionResidual(...)}, the very objects that are added.'
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a number from 0 (no memory) to below 1.")
        self.terms, self.decay = dict(terms), decay

    @property
    def weights(self) -> dict[str, float]:
        """The weights as they stand."""
        return {name: term.weight for name, term in self.terms.items()}

    def _move(self, aims: Mapping[str, float]) -> dict[str, float]:
        for name, aim in aims.items():
            if math.isfinite(aim):  # a term without a gradient keeps its weight
                term = self.terms[name]
                term.weight = self.decay * term.weight + (1 - self.decay) * aim
        return self.weights

    def state_dict(self) -> dict[str, float]:
        """The weights, which the losses' own state does not hold."""
        return self.weights

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        if state.keys() != self.terms.keys():
            raise ValueError(f"the state has the terms {', '.join(state)} but these are {', '.join(self.terms)}.")
        for name, weight in state.items():
            self.terms[name].weight = float(weight)


class GradientNormBalance(_TermBalance):
    """lambda_i <- decay lambda_i + (1 - decay) max |grad L_ref| / mean |grad L_i|   (Wang, Teng and Perdikaris 2021, algorithm 1).

    Makes the gradients of boundary, initial and data terms as strong as that of the reference, the equation's residual,
    whose own weight stays. Call `update` now and then in the training loop; for a quasi-Newton method, when points are
    drawn anew, as other weights are another objective.

    Args:
        terms: the scaled losses by name; their weights are what changes.
        reference: the name of the one to compare with.
        decay: of the moving average.

    >>> from opflow.losses.misfit import DataMisfit
    >>> square = lambda prediction, target, weight: (prediction - target).square().mean()
    >>> terms = {"interior": 1.0 * DataMisfit(square), "edge": 1.0 * DataMisfit(lambda p, t, w: 0.1 * square(p, t, w), name="edge")}
    >>> balance = GradientNormBalance(terms, "interior", decay=0.0)
    >>> batch = Batch(input=torch.ones(4, 1), target=torch.ones(4, 1))
    >>> {name: round(weight, 3) for name, weight in balance.update(nn.Linear(1, 1), batch).items()}
    {'interior': 1.0, 'edge': 10.0}
    """

    def __init__(self, terms: Mapping[str, Scaled], reference: str, *, decay: float = 0.9) -> None:
        super().__init__(terms, decay)
        if reference not in self.terms:
            raise ValueError(f"reference is {reference!r}, but the terms are {', '.join(self.terms)}.")
        self.reference = reference

    def update(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Take the gradients of the unscaled terms at this state into the weights, and return these."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = {}
        for name, term in self.terms.items():
            value = total(term.loss(model, batch))
            parts = torch.autograd.grad(value, parameters, allow_unused=True)
            gradients[name] = torch.cat([g.reshape(-1).abs() for g in parts if g is not None])
        largest = float(gradients[self.reference].max())
        aims = {}
        for name, gradient in gradients.items():
            mean = float(gradient.mean())
            if name != self.reference:
                aims[name] = largest / mean if mean > 0 else math.nan
        return self._move(aims)


class TangentKernelBalance(_TermBalance):
    """lambda_i <- decay lambda_i + (1 - decay) tr K / tr K_ii,   K_ij = J_i J_j^T   (Wang, Yu and Perdikaris 2022, algorithm 1).

    Lets all terms converge at like rates under gradient descent: tr K_ii = |J_i|^2 is the mean rate of term i, J_i the
    Jacobian of its residuals (rows x parameters numbers in memory), which are scaled as means.

    Args:
        terms: the scaled losses by name, with `residuals`; their weights are what changes.
        decay: of the moving average.

    >>> from opflow.losses.misfit import DataMisfit
    >>> from opflow.losses.norms import mean_squared_error
    >>> terms = {"a": 1.0 * DataMisfit(mean_squared_error, on="a"), "b": 1.0 * DataMisfit(mean_squared_error, name="b", on="b")}
    >>> balance = TangentKernelBalance(terms, decay=0.0)
    >>> batch = {name: Batch(coords=torch.full((4, 1), x), target=torch.ones(4, 1)) for name, x in (("a", 1.0), ("b", 3.0))}
    >>> balance.update(nn.Linear(1, 1, bias=False), batch)
    {'a': 10.0, 'b': 1.1111111111111112}
    """

    def __init__(self, terms: Mapping[str, Scaled], *, decay: float = 0.9) -> None:
        super().__init__(terms, decay)

    def update(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Take the Jacobians of the unscaled terms at this state into the weights, and return these."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        traces = {
            name: float(jacobian(term.loss, model, batch, parameters)[1].square().sum())
            for name, term in self.terms.items()
        }
        whole = sum(traces.values())
        return self._move({name: whole / trace if trace > 0 else math.nan for name, trace in traces.items()})


class StateSelection:
    """Keeps the parameters at the lowest value so far, of the residual at fresh points for example.

    The error of a PINN jumps between redrawings of its points, so that its last state is rarely its best::

        selection = StateSelection(model, loss)
        for record in fit(..., validate=lambda model: float(total(loss(model, fresh)))):
            selection.offer(record.validation)
        selection.restore()

    Args:
        modules: whose states belong together: the model, and the loss if it holds unknown coefficients.

    >>> model = nn.Linear(1, 1)
    >>> selection = StateSelection(model)
    >>> selection.offer(0.5), selection.offer(0.7), selection.value
    (True, False, 0.5)
    >>> selection.restore()
    """

    def __init__(self, *modules: nn.Module) -> None:
        if not modules:
            raise ValueError("StateSelection was given no module whose state it could keep.")
        self.modules = modules
        self.value = math.inf
        self._states: list[dict[str, Tensor]] = []

    def offer(self, value: float | None) -> bool:
        """Keep the present state if `value` is lower than all before; None, NaN and infinity never are."""
        if value is None or not value < self.value:
            return False
        self.value = float(value)
        self._states = [{k: t.detach().clone() for k, t in module.state_dict().items()} for module in self.modules]
        return True

    def restore(self) -> None:
        """Put the kept state back.

        Raises:
            RuntimeError: no finite value was ever offered.
        """
        if not self._states:
            raise RuntimeError("no state was kept, as no finite value was offered; is the validation NaN?")
        for module, state in zip(self.modules, self._states, strict=True):
            module.load_state_dict(state)
