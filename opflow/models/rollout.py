"""Time stepping with a learned step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from opflow.typing import Field


class Rollout(nn.Module):
    """u_(n+1) = G(u_(n-w+1), ..., u_n), its own outputs fed back   (Li et al. 2021, "FNO", section 5.3, the recurrent FNO-2D).

    The loss sees all the steps, and the gradient runs back through them: trained unrolled, G learns to start from its own
    errors, which a loss on single steps never shows it.

    `model` is G. It sees the window as channels and gives the next frame, or the next few at once, likewise:
    (batch, channel * window, *grid) -> (batch, channel * frames, *grid), a channel's times next to each other. With
    ``stacked=False`` it sees (batch, channel, window, *grid) and gives (batch, channel, frames, *grid), as a model of space and time does.
    ``Rollout(Normalized(model, ...), ...)`` has one number a channel of the window, ``Normalized(Rollout(model, ...), ...)`` one a
    physical quantity, which must then be the same for input and output.

    Resolution: what the model promises of one step. The steps amplify differences, so the theorem is not claimed.

    Args:
        model: G.
        steps: frames to give; forward may ask for another number.
        window: w, frames that G sees.
        stacked: the window as channels, or as an axis of its own.
        increments: G gives the differences from the last frame that it sees.
        checkpoint: keep only the frames for the backward pass and compute the inside of each call again; for long rollouts. The
            gradient is the same.
        detach_every: cut the gradient after so many calls of G, which truncates it in time; 1 trains every step from where the rollout
            has led, with no gradient for how it got there. None never cuts.

    >>> step = nn.Conv2d(10, 1, 3, padding=1)
    >>> Rollout(step, 40, window=10)(torch.zeros(2, 1, 10, 16, 16)).shape
    torch.Size([2, 1, 40, 16, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        window: int = 1,
        stacked: bool = True,
        increments: bool = False,
        checkpoint: bool = False,
        detach_every: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("steps", steps), ("window", window), ("detach_every", detach_every)):
            _check_count(name, value, or_none=name == "detach_every")
        self.model, self.steps, self.window = model, steps, window
        self.stacked, self.increments = stacked, increments
        self.checkpoint, self.detach_every = checkpoint, detach_every

    def forward(self, x: Field, steps: int | None = None) -> Field:
        """(batch, channel, window, *grid) -> (batch, channel, steps, *grid), the frames after those of x

        Raises:
            ValueError: x is not such a field, or the model gives something else than whole frames on the same grid.
        """
        steps = self.steps if steps is None else steps
        _check_count("steps", steps)
        if x.ndim < 4 or x.shape[2] != self.window:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but Rollout expects (batch, channel, {self.window}, *grid), the last {self.window} "
                "frames, time before space; cut out the frames to start from with x[:, :, -window:], or build with another window."
            )
        frames: list[Tensor] = []
        known, calls = 0, 0
        while known < steps:
            if self.detach_every is not None and calls and calls % self.detach_every == 0:
                x = x.detach()
            new = self._advance(x)
            frames.append(new)
            known, calls = known + new.shape[2], calls + 1
            x = torch.cat([x, new], dim=2)[:, :, -self.window :]
        return torch.cat(frames, dim=2)[:, :, :steps]

    def _advance(self, x: Tensor) -> Tensor:
        """The next frames, (batch, channel, window, *grid) -> (batch, channel, frames, *grid)"""
        seen = x.flatten(1, 2) if self.stacked else x
        if self.checkpoint and torch.is_grad_enabled():
            y = recomputed(self.model, seen, use_reentrant=False)
        else:
            y = self.model(seen)
        given, channels, grid = tuple(y.shape), x.shape[1], tuple(x.shape[3:])
        if self.stacked:
            fits = y.ndim == seen.ndim and y.shape[1] % channels == 0
            y = y.unflatten(1, (channels, y.shape[1] // channels)) if fits else y
        else:
            fits = y.ndim == seen.ndim and y.shape[1] == channels
        if not fits or y.shape[2] < 1 or tuple(y.shape[3:]) != grid:
            times, points = " *" if self.stacked else ",", ", ".join(map(str, grid))
            raise ValueError(
                f"the model gave {given} for {tuple(seen.shape)}, but (batch, {channels}{times} frames, {points}) is expected, "
                "so that its frames can be fed back; give it the rollout's number of channels and the same grid."
            )
        return x[:, :, -1:] + y if self.increments else y

    @property
    def recipe(self) -> dict[str, object] | None:
        """What a checkpoint needs to build this again; None where the model leaves none."""
        inner = getattr(self.model, "recipe", None)
        if inner is None:
            return None
        return {
            "model": "Rollout", "inner": inner, "steps": self.steps, "window": self.window, "stacked": self.stacked,
            "increments": self.increments, "checkpoint": self.checkpoint, "detach_every": self.detach_every,
        }  # fmt: skip

    def extra_repr(self) -> str:
        """The numbers, for `print(model)`."""
        return f"steps={self.steps}, window={self.window}, increments={self.increments}"


def _check_count(name: str, value: int | None, *, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value}; give a positive whole number{', or None' if or_none else ''}.")
