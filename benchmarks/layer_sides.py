"""The spectral convolution, and the Fourier layer around it, of the peer and of opflow with the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import definition, peer
from opflow.functional import fourier_block
from opflow.layers import SpectralConv

# A side that is further off than this computes something else, and its time means nothing.
WRONG = 1e-5

Arms = dict[str, Callable[[], Any]]


def as_pairs(weight: Tensor) -> Tensor:
    """The peer's complex weight (in, out, *modes) as opflow stores it, (*modes, 2, in, out)."""
    return torch.view_as_real(weight.detach()).movedim((0, 1), (-2, -1)).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """The same field with its channels last in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Sides:
    """What is timed: one step, and one forward pass, of each side."""

    def step(self, side: str) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def forward(self, side: str) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward pass")

    def steps(self, *sides: str) -> Arms:
        """{side: its step}, to be timed."""
        return {side: lambda side=side: self.step(side) for side in sides}

    def forwards(self, *sides: str) -> Arms:
        """{side: its forward pass}, to be timed."""
        return {side: lambda side=side: self.forward(side) for side in sides}


class LayerSides(Sides):
    """Both layers without a bias; a step is the forward pass and the gradients of x and of the weight.

    Args:
        shape, channels, batch, n_modes: the field and the kept modes.
        last: give fields and their gradients with the channels last in memory.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        batch: int,
        n_modes: Sequence[int],
        *,
        last: bool = False,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.n_modes = tuple(n_modes)
        self.modules: dict[str, nn.Module] = {
            "peer": peer.spectral_conv(channels, n_modes),
            "ours": SpectralConv(channels, channels, self.n_modes, bias=False),
            "transcription": peer.spectral_conv(channels, n_modes, transcribed=True),
        }
        complex_weight = next(self.modules["peer"].parameters()).detach()
        with torch.no_grad():
            self.modules["ours"].weight.copy_(as_pairs(complex_weight))
            self.modules["transcription"].weight.tensor.copy_(complex_weight)
        for module in self.modules.values():
            module.to(device)
        x, g = (torch.randn(batch, channels, *shape).to(device) for _ in range(2))
        self.x, self.g = (channels_last(x), channels_last(g)) if last else (x, g)
        self.x.requires_grad_()

    def step(self, side: str) -> tuple[Tensor, Tensor, Tensor]:
        """y and the gradients of x and of the weight."""
        module = self.modules[side]
        y = module(self.x)
        return (y.detach(), *torch.autograd.grad(y, [self.x, *module.parameters()], self.g))

    def forward(self, side: str) -> Tensor:
        """y alone."""
        with torch.no_grad():
            return self.modules[side](self.x)

    def errors(self, *sides: str) -> dict[str, dict[str, float]]:
        """{side: relative L2 error against the float64 definition of y, of the gradient of x and of that of the weight}"""
        weight = self.modules["ours"].weight.detach().double().requires_grad_()
        x = self.x.detach().double().requires_grad_()
        y = definition.spectral_conv(x, weight, self.n_modes)
        exact = [y.detach(), *torch.autograd.grad(y, [x, weight], self.g.double())]
        errors = {}
        for side in sides:
            got = list(self.step(side))
            got[2] = as_pairs(got[2]) if got[2].is_complex() else got[2]
            names = ("y", "gradient of x", "gradient of the weight")
            errors[side] = {name: definition.relative_error(a, b) for name, a, b in zip(names, got, exact, strict=True)}
        return errors


class BlockSides:
    """gelu(K x + W x + b): `functional.fourier_block` beside the peer's convolutions, sum and activation."""

    def __init__(
        self, shape: Sequence[int], channels: int, batch: int, n_modes: Sequence[int], *, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.n_modes = tuple(n_modes)
        block = peer.Block(peer.spectral_conv(channels, n_modes, bias=True), channels).to(device)
        named = dict(block.named_parameters())
        self.peer, self.peer_parameters = block, list(named.values())
        (weight,) = (p for name, p in named.items() if p.is_complex())
        parts = [as_pairs(weight), named["skip.conv.weight"].detach()[..., 0], named["conv.bias"].detach().flatten()]
        self.parts = [part.clone().requires_grad_() for part in parts]
        self.x = torch.randn(batch, channels, *shape).to(device).requires_grad_()
        self.g = torch.randn(batch, channels, *shape).to(device)

    def _value(self, side: str) -> Tensor:
        if side == "ours":
            weight, skip, bias = self.parts
            return fourier_block(self.x, weight, self.n_modes, skip, bias)
        return self.peer(self.x)

    def step(self, side: str) -> tuple[Tensor, ...]:
        """y and the gradients of x and of the layer's parameters."""
        y = self._value(side)
        parameters = self.parts if side == "ours" else self.peer_parameters
        return (y.detach(), *torch.autograd.grad(y, [self.x, *parameters], self.g))

    def forward(self, side: str) -> Tensor:
        """y alone."""
        with torch.no_grad():
            return self._value(side)

    def steps(self, *sides: str) -> Arms:
        """{side: its step}, to be timed."""
        return {side: lambda side=side: self.step(side) for side in sides}

    def forwards(self, *sides: str) -> Arms:
        """{side: its forward pass}, to be timed."""
        return {side: lambda side=side: self.forward(side) for side in sides}

    def errors(self) -> dict[str, dict[str, float]]:
        """{"ours": relative L2 errors against float64 of y and of all gradients, "peer": that of y}"""
        leaves = [part.detach().double().requires_grad_() for part in (self.x, *self.parts)]
        x, weight, skip, bias = leaves
        y = definition.fourier_block(x, weight, self.n_modes, skip, bias)
        exact = [y.detach(), *torch.autograd.grad(y, leaves, self.g.double())]
        names = ("y", "gradient of x", "gradient of the weight", "gradient of the skip", "gradient of the bias")
        got = self.step("ours")
        ours = {name: definition.relative_error(a, b) for name, a, b in zip(names, got, exact, strict=True)}
        return {"ours": ours, "peer": {"y": definition.relative_error(self.forward("peer"), exact[0])}}


def must_be_right(errors: dict[str, float], what: str) -> None:
    """Refuse to time a layer that computes something else.

    Raises:
        AssertionError: with what is off and by how much.
    """
    for name, error in errors.items():
        if not error <= WRONG:
            raise AssertionError(
                f"{what}: the relative error of {name} against the float64 definition is {error:.2g}, above {WRONG:g}; a wrong "
                "answer is not timed."
            )
