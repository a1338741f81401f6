"""Sets of multi-indices, in which truncated Taylor series are multiplied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

Index = tuple[int, ...]


class MultiIndices:
    """The smallest set of multi-indices that holds the given ones and, with an index, every smaller one.

    Ordered by total order, the zero index first. Only products of its members that stay in the set are kept, so that a series
    with u, u_t, u_x and u_xx does not pay for u_tx.

    Attributes:
        all: the indices; `position` finds an index in it.
        factorials: alpha! of each, by which a Taylor coefficient becomes a derivative.
        products: for each alpha the positions (beta, gamma) of all pairs with beta + gamma = alpha.
        chains: for each alpha but zero the triples (beta_i / alpha_i, beta, alpha - beta) with beta_i > 0, i the first axis with
            alpha_i > 0: the terms of the chain rule (d_i y)_alpha = (w d_i x)_alpha, see `Jet`.

    >>> MultiIndices([(0, 2), (1, 0)]).all
    ((0, 0), (0, 1), (1, 0), (0, 2))
    """

    def __init__(self, indices: Iterable[Index]) -> None:
        below = {beta for alpha in indices for beta in itertools.product(*(range(a + 1) for a in alpha))}
        self.all: tuple[Index, ...] = tuple(sorted(below, key=lambda alpha: (sum(alpha), alpha)))
        self.position = {alpha: i for i, alpha in enumerate(self.all)}
        self.factorials = tuple(math.prod(math.factorial(a) for a in alpha) for alpha in self.all)
        self.products = tuple(tuple(self._pairs(alpha)) for alpha in self.all)
        self.chains = tuple(tuple(self._chain(alpha)) for alpha in self.all)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.all[0])

    def __len__(self) -> int:
        return len(self.all)

    def _pairs(self, alpha: Index) -> Iterable[tuple[int, int]]:
        for beta in itertools.product(*(range(a + 1) for a in alpha)):
            yield self.position[beta], self.position[tuple(a - b for a, b in zip(alpha, beta, strict=True))]

    def _chain(self, alpha: Index) -> Iterable[tuple[float, int, int]]:
        if not any(alpha):
            return
        i = next(axis for axis, a in enumerate(alpha) if a)
        for beta in itertools.product(*(range(a + 1) for a in alpha)):
            if beta[i]:
                rest = tuple(a - b for a, b in zip(alpha, beta, strict=True))
                yield beta[i] / alpha[i], self.position[beta], self.position[rest]


@lru_cache(maxsize=256)
def multi_indices(indices: frozenset[Index], dim: int) -> MultiIndices:
    """The set that holds `indices`; equal arguments give the same object."""
    return MultiIndices([(0,) * dim, *indices])


def as_index(axes: str, coordinates: Sequence[str]) -> Index:
    """The multi-index of a derivative that is written with one letter a differentiation: "xx" of (t, x) is (0, 2).

    Raises:
        ValueError: the string is empty, or a letter names no coordinate.
    """
    if not axes or any(letter not in coordinates for letter in axes):
        raise ValueError(
            f"d({axes!r}) asks for coordinates that are not there; there are {', '.join(coordinates)}. "
            'Write one letter a differentiation, d("xx") for the second derivative with respect to x.'
        )
    return tuple(axes.count(letter) for letter in coordinates)
