"""Measurements of one sample pooled into a description that depends neither on their order nor on their number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.typing import check_placement

POOLINGS = ("mean", "deviation", "attention")


class MeasurementMixing(nn.Module):
    """{f_1, ..., f_L} -> [mean, deviation, attention]: a function of the set of measurements   (NIO: Molinaro et al. 2023, eq. 9).

    With the measurements that the mask keeps,

        mean       m = sum_l f_l / L
        deviation  sqrt(sum_l (f_l - m)^2 / L)
        attention  sum_l w_ql f_l,  w_q = softmax over l of (k_q . f_l) / sqrt(features),  q = 1, ..., queries   (Lee et al. 2019)

    each at every point of the axes that follow the features, and joined along the features. NIO is the mean alone. A set in which
    every measurement stands twice gives the same as the set; a masked measurement has no influence, whatever its values.

    Args:
        features: of one measurement.
        pooling: which of the three, in this order.
        queries: of the attention.

    Attributes:
        out_features: `features` times the number of poolings, where the attention counts `queries` times.

    >>> MeasurementMixing(8)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 48])
    >>> MeasurementMixing(3, ("mean",))(torch.zeros(2, 5, 3, 16, 16)).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(self, features: int, pooling: Sequence[str] = POOLINGS, *, queries: int = 4) -> None:
        super().__init__()
        self.features, self.pooling, self.queries = features, as_poolings(pooling), queries
        if features < 1 or queries < 1:
            raise ValueError(f"features is {features} and queries {queries}; give positive whole numbers.")
        counts = {"mean": 1, "deviation": 1, "attention": queries}
        self.out_features = features * sum(counts[name] for name in self.pooling)
        self.query = nn.Parameter(torch.randn(queries, features)) if "attention" in self.pooling else None

    def forward(self, f: Tensor, mask: Tensor | None = None) -> Tensor:
        """f (batch, L, features, *grid), mask (batch, L), True where measured -> (batch, out_features, *grid)

        Raises:
            ValueError: shapes that do not fit, or a sample without any measurement.
        """
        if f.ndim < 3 or f.shape[2] != self.features or f.shape[1] < 1:
            raise ValueError(
                f"the measurements have shape {tuple(f.shape)} but MeasurementMixing expects (batch, L, {self.features}, *grid), "
                "with L >= 1."
            )
        if self.query is not None:
            check_placement(f, self.query, "MeasurementMixing", "f")
        elif not f.is_floating_point():
            raise TypeError(f"f is {f.dtype}; convert it to a floating-point dtype, with .to(dtype).")
        kept = as_kept(mask, f)
        if kept is not None:
            f = torch.where(kept, f, 0.0)  # not a product: what is masked may be NaN
        share = f.new_ones(()) / f.shape[1] if kept is None else kept.to(f.dtype) / kept.sum(1, keepdim=True)
        mean = (share * f).sum(1)
        pooled = []
        for name in self.pooling:
            if name == "mean":
                pooled.append(mean)
            elif name == "deviation":
                variance = (share * (f - mean[:, None]).square()).sum(1)
                pooled.append((variance + _smallest(f)).sqrt())  # a root has no derivative at 0, where L = 1
            else:
                pooled.append(self._attended(f, kept))
        return torch.cat(pooled, dim=1)

    def _attended(self, f: Tensor, kept: Tensor | None) -> Tensor:
        assert self.query is not None
        scores = torch.einsum("qc,blc...->blq...", self.query, f) / self.features**0.5
        if kept is not None:
            scores = torch.where(kept, scores, -torch.inf)
        return torch.einsum("blq...,blc...->bqc...", scores.softmax(1), f).flatten(1, 2)

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        return f"{self.features}, pooling={self.pooling}, queries={self.queries}"


def as_poolings(pooling: Sequence[str]) -> tuple[str, ...]:
    """The names of poolings, known and not twice."""
    names = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    if not names or any(name not in POOLINGS for name in names) or len(set(names)) != len(names):
        raise ValueError(f"pooling is {pooling!r}; give one or more of {', '.join(POOLINGS)}, each once.")
    return names


def check_measurements(y: Tensor, like: Tensor, owner: str) -> None:
    """Raise unless y may be measurements (batch, L, channel, *sensors) for a model with parameters such as `like`."""
    if y.ndim < 4 or y.shape[1] < 1:
        raise ValueError(
            f"the measurements have shape {tuple(y.shape)} but {owner} expects (batch, L, channel, *sensors), L >= 1."
        )
    check_placement(y, like, owner, "measurements")


def as_kept(mask: Tensor | None, f: Tensor) -> Tensor | None:
    """A mask (batch, L) with as many axes as the measurements f (batch, L, ...); every sample must keep one.

    Raises:
        ValueError: another shape or dtype, or a sample that keeps nothing (not asked under torch.func and in compiled graphs).
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(f.shape[:2]):
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape {tuple(f.shape[:2])}, (batch, L), True where "
            "measured."
        )
    can_look = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or mask.is_meta)
    if can_look and not bool(mask.any(1).all()):
        bad = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"sample {bad} keeps none of its {f.shape[1]} measurements; give each at least one.")
    return mask.view(*mask.shape, *[1] * (f.ndim - 2))


def _smallest(f: Tensor) -> float:
    return 1e-12 if f.dtype == torch.float64 else 1e-8
