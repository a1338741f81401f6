"""Rules that the operators of several kernels share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def looped_vmap(op: Any) -> Any:
    """A vmap rule that calls the operator once per element and stacks the results."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def call(i: int) -> tuple[Tensor, ...]:
            # The dimension of a list is a list, and nothing to select from.
            return op(*[a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)])

        outputs = tuple(torch.stack(parts) for parts in zip(*map(call, range(info.batch_size)), strict=True))
        return outputs, (0,) * len(outputs)

    return rule
