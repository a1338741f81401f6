"""Random subsets of the measurements, a subset of its own for each sample."""

from __future__ import annotations

import torch
from torch import Tensor


def random_subsets(
    n: int,
    n_measurements: int,
    generator: torch.Generator | None = None,
    *,
    at_least: int = 1,
    at_most: int | None = None,
) -> Tensor:
    """Masks (n, n_measurements), True where a measurement is kept.

    For each sample a size is drawn, uniform over at_least..at_most, then that many measurements without replacement. A
    network trained so has seen every size, the whole set among them, and every batch mixes sizes (batch statistics that
    alternate between whole and reduced batches would fit neither).

    Args:
        n: samples.
        n_measurements: measurements a sample.
        generator: of the CPU; None takes torch's global one.
        at_least: the smallest size.
        at_most: the largest size, by default all; equal to `at_least` for one fixed size.

    >>> random_subsets(3, 20, torch.Generator().manual_seed(0), at_least=5, at_most=5).sum(1)
    tensor([5, 5, 5])
    """
    at_most = n_measurements if at_most is None else at_most
    if not 1 <= at_least <= at_most <= n_measurements:
        raise ValueError(
            f"subsets of {at_least} to {at_most} of {n_measurements} measurements were asked for; "
            "1 <= at_least <= at_most <= n_measurements is expected."
        )
    sizes = torch.randint(at_least, at_most + 1, (n, 1), generator=generator)
    ranks = torch.rand(n, n_measurements, generator=generator).argsort(1).argsort(1)
    return ranks < sizes
