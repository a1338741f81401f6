"""Initial values that an operator on a space-time grid holds by construction."""

from __future__ import annotations

import torch
from torch import nn

from opflow.typing import Field


class HardInitial(nn.Module):
    """G(u0)(t, x) = u0(x) + (t / T) N(u0)(t, x): the initial value as it is, whatever the network N   (Lagaris, Likas and Fotiadis 1998).

    N sees u0 at every time, (batch, channel, time, *space), and tells the times apart by coordinates that it appends, as
    `FNO.build(..., coordinates=True)` does; so it is a function on a space-time grid with `times` nodes in [0, T]. The residual of
    an evolution equation on that grid is then a loss without a term for initial values.

    Args:
        network: N, (batch, channel, time, *space) -> (batch, channel, time, *space).
        times: nodes in time, the first at 0 and the last at T; forward may ask for another number.

    >>> G = HardInitial(nn.Identity(), 5)
    >>> u0 = torch.ones(2, 1, 8)
    >>> G(u0).shape, torch.equal(G(u0)[:, :, 0], u0)
    (torch.Size([2, 1, 5, 8]), True)
    """

    conditions = ("initial",)

    def __init__(self, network: nn.Module, times: int) -> None:
        super().__init__()
        self.network, self.times = network, _check(times)

    def forward(self, initial: Field, times: int | None = None) -> Field:
        """(batch, channel, *space) -> (batch, channel, time, *space)

        Raises:
            ValueError: the initial value is no field, or the network changes the shape.
        """
        n = self.times if times is None else _check(times)
        if initial.ndim < 3:
            raise ValueError(
                f"the initial value has shape {tuple(initial.shape)} but HardInitial expects (batch, channel, *space)."
            )
        held = initial.unsqueeze(2).expand(-1, -1, n, *initial.shape[2:])
        change = self.network(held)
        if change.shape != held.shape:
            raise ValueError(
                f"the network gave {tuple(change.shape)} for {tuple(held.shape)}; one value for each is expected, so give it as "
                "many output channels as the initial value has."
            )
        t = torch.linspace(0.0, 1.0, n, dtype=change.dtype, device=change.device)
        return held + t.view(-1, *[1] * (initial.ndim - 2)) * change

    def extra_repr(self) -> str:
        """The number of times, for print(model)."""
        return f"times={self.times}"


def _check(times: int) -> int:
    if isinstance(times, bool) or not isinstance(times, int) or times < 2:
        raise ValueError(f"times is {times!r}; give a whole number from 2 on, the first at 0 and the last at the end.")
    return times
