"""A whole FNO of the peer and of opflow: the weights made there and brought over by `from_neuraloperator`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peer
from benchmarks.definition import relative_error
from benchmarks.layer_sides import Sides
from opflow.interop import from_neuraloperator
from opflow.layers import SpectralConv
from opflow.models import FNO


class ModelSides(Sides):
    """The peer's FNO with its defaults and opflow's with the same weights; a step is the forward pass and all gradients.

    Args:
        shape, channels, batch, n_modes: the field inside the model, and the kept modes; one channel goes in and out.
        channel_mlp: with the perceptrons in every layer, as is the peer's default.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        batch: int,
        n_modes: Sequence[int],
        *,
        channel_mlp: bool = True,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(0)
        theirs = peer.fno(n_modes, channels, channel_mlp=channel_mlp)
        with torch.no_grad():  # gates start at one, where a wrong use of them would not show
            for name, parameter in theirs.named_parameters():
                if "channel_mlp_skips" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        transcription = peer.fno(n_modes, channels, channel_mlp=channel_mlp, transcribed=True)
        # Plain tensors: the peer notes its constructor's arguments among the weights, which no other model can load.
        weights = {key: value for key, value in theirs.state_dict().items() if isinstance(value, Tensor)}
        transcription.load_state_dict(weights)
        self.models: dict[str, nn.Module] = {
            "peer": theirs.to(device),
            "ours": from_neuraloperator(theirs.state_dict()).to(device),
            "transcription": transcription.to(device),
        }
        self.x = torch.randn(batch, 1, *shape).to(device)
        self.g = torch.randn(batch, 1, *shape).to(device)

    def parameter_counts(self) -> dict[str, int]:
        """Real numbers among the parameters of each side; a complex one counts twice."""
        return {
            side: sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
            for side, model in self.models.items()
        }

    def step(self, side: str) -> tuple[Tensor, ...]:
        """The output and the gradients of all parameters; the data want none, as in training."""
        model = self.models[side]
        y = model(self.x)
        return (y.detach(), *torch.autograd.grad(y, list(model.parameters()), self.g))

    def forward(self, side: str) -> Tensor:
        """The output alone."""
        with torch.no_grad():
            return self.models[side](self.x)

    def errors(self) -> dict[str, float]:
        """How far outputs lie apart, as a share of the largest value; and our gradients from float64, relative L2.

        The float64 reference is our model in that precision with the reference backend.
        """
        exact = double_reference(self.models["ours"])
        y = exact(self.x.double())
        gradients = torch.autograd.grad(y, list(exact.parameters()), self.g.double())
        ours, *ours_gradients = self.step("ours")
        theirs = self.forward("peer")
        return {
            "output, ours and the peer": apart(ours, theirs),
            "output, ours and float64": apart(ours, y),
            "output, the peer and float64": apart(theirs, y),
            "output, the transcription and the peer": apart(self.forward("transcription"), theirs),
            "gradients, ours and float64": relative_error(flat(ours_gradients), flat(gradients)),
        }


def double_reference(model: FNO) -> FNO:
    """A copy of an opflow model in float64, its spectral convolutions by the reference backend."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if isinstance(module, SpectralConv):
            module.backend = "reference"
    return exact


def apart(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|"""
    return float((a.detach().double() - b.detach().double()).abs().max() / b.detach().double().abs().max())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def profile(sides: ModelSides, side: str, largest: int = 8) -> dict[str, Any]:
    """The share of each operation in the CPU time of a step, in percent; the largest ones."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        sides.step(side)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    ranked = sorted(times.items(), key=lambda item: -item[1])[:largest]
    return {name: round(100 * time / total, 1) for name, time in ranked}
