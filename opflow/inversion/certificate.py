"""A certified stability bound of a network, and the sampled lower bound that shows how tight it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from opflow.inversion.operator_norms import convolution_bound, fourier_bound, perceptron_bound
from opflow.layers.bounds import gram_bound, slopes
from opflow.layers.embedding import GridEmbedding
from opflow.layers.fourier import FourierLayer, SoftGate
from opflow.layers.lipschitz import (
    AOLLinear,
    CayleyLinear,
    LipschitzFourierLayer,
    LipschitzMLP,
    SandwichLayer,
    SLLBlock,
)
from opflow.layers.mlp import MLP, ChannelLinear, ChannelMLP
from opflow.layers.normalizer import Normalized, Normalizer
from opflow.layers.spectral_conv import SpectralConv

# One by construction, or because they move numbers without changing them; dropout passes everything on once it is in eval mode.
_AT_MOST_ONE = (SandwichLayer, CayleyLinear, AOLLinear, SLLBlock, LipschitzFourierLayer, nn.Flatten, nn.Unflatten, GridEmbedding)  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Certificate:
    """|f(x) - f(y)| <= bound |x - y| for all x, y, in Euclidean norms or those of the weights that were given.

    Attributes:
        bound: the constant.
        parts: the factors that it is the product of, by name.
    """

    bound: float
    parts: tuple[tuple[str, float], ...]

    def error(self, noise: float) -> float:
        """How far noise of this size can move the output, in its units."""
        return self.bound * noise

    def __str__(self) -> str:
        factors = " * ".join(f"{value:.3g} ({name})" for name, value in self.parts)
        return f"Lipschitz constant at most {self.bound:.4g} = {factors}"


@torch.no_grad()
def lipschitz_bound(
    model: nn.Module, *, input_weight: Tensor | float = 1.0, output_weight: Tensor | float = 1.0
) -> Certificate:
    """A certified Lipschitz constant of a network in evaluation mode: the product over its parts, perceptrons by `perceptron_bound`.

    Known parts: linear layers, activations with known slopes, circular or zero-padded convolutions, `SpectralConv`, `FourierLayer`, `MLP`,
    `ChannelMLP`, `Normalized`, the layers of `opflow.layers.lipschitz`, ``nn.Sequential`` of them, and modules whose ``composition`` names the
    parts that they apply one after another (`FNO`). A module of your own may state ``lipschitz_bound() -> float``.

    With quadrature weights the norms are |x|^2 = sum_i w_i x_i^2, those of L2 on grids: noise of L2 size e then moves the output by at
    most bound e in L2. On uniform grids they amount to a factor sqrt(h_out / h_in).

    Args:
        input_weight, output_weight: positive, numbers or tensors of any shape.

    Raises:
        ValueError: a part has no known bound, in a sentence with its name.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> certificate = lipschitz_bound(model)
    >>> lower = sampled_lower_bound(model, torch.randn(16, 3))
    >>> lower <= certificate.bound
    True
    """
    weighing = math.sqrt(_extreme(output_weight, "output_weight")[1] / _extreme(input_weight, "input_weight")[0])
    parts = list(_factors(list(_leaves(model, ""))))
    if weighing != 1.0:
        parts.append(("quadrature weights", weighing))
    return Certificate(math.prod(value for _, value in parts), tuple(parts))


def _extreme(weight: Tensor | float, name: str) -> tuple[float, float]:
    w = torch.as_tensor(weight, dtype=torch.float64)
    if not bool((w > 0).all() and w.isfinite().all()):
        raise ValueError(f"{name} is not positive and finite everywhere; give quadrature weights.")
    return float(w.min()), float(w.max())


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a composition in order, perceptrons taken apart into linear maps and activations."""
    at = name or type(module).__name__
    if isinstance(module, nn.Sequential) or hasattr(module, "composition"):
        children = list(module) if isinstance(module, nn.Sequential) else cast(Any, module).composition
        for i, child in enumerate(children):
            yield from _leaves(child, f"{at}.{i}" if name else str(i))
    elif isinstance(module, MLP | ChannelMLP):
        for i, linear in enumerate(module.linears):
            if i:
                yield f"{at}.activation", module.activation
            yield f"{at}.linears.{i}", linear
    elif isinstance(module, Normalized):
        if module.input is not None:
            yield f"{at}.input", module.input
        yield from _leaves(module.model, f"{at}.model")
        if module.output is not None:
            yield f"{at}.output", _Inverse(module.output)
    else:
        yield at, module


class _Inverse(nn.Module):
    """A Normalizer run backwards."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.std = normalizer.std


def _factors(leaves: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, float]]:
    """The bounds of the parts; runs linear - activation - linear with slopes in [0, b] are bounded as one perceptron."""
    while leaves:
        name, module = leaves.pop(0)
        if not isinstance(module, nn.Linear | ChannelLinear):
            yield name, _bound(module, name)
            continue
        weights, scale, last = [module.weight], 1.0, name
        while len(leaves) >= 2 and type(leaves[1][1]) is type(module) and _is_monotone(leaves[0][1]):
            scale *= slopes(leaves[0][1])[1]
            last = leaves[1][0]
            weights.append(leaves[1][1].weight)
            del leaves[:2]
        yield (name if last == name else f"{name} to {last}"), scale * perceptron_bound(weights)


def _is_monotone(module: nn.Module) -> bool:
    try:
        return slopes(module)[0] >= 0
    except ValueError:
        return False


def _bound(module: nn.Module, name: str) -> float:
    if hasattr(module, "lipschitz_bound"):
        return float(cast(Any, module).lipschitz_bound())
    if isinstance(module, _AT_MOST_ONE):
        return 1.0
    if isinstance(module, LipschitzMLP):
        return module.lipschitz
    if isinstance(module, SpectralConv):
        return fourier_bound(module.dense_weight(), module.n_modes)
    if isinstance(module, FourierLayer):
        return _fourier_layer_bound(module, name)
    if isinstance(module, SoftGate):
        return float(module.weight.abs().max())
    if isinstance(module, Normalizer):
        return float(1 / module.std.min())
    if isinstance(module, _Inverse):
        return float(module.std.max())
    if isinstance(module, _CONVOLUTIONS):
        return _convolution_bound(module, name)
    if isinstance(module, _BATCH_NORMS):
        return _batch_norm_bound(module, name)
    if isinstance(module, nn.Dropout):
        if module.training:
            raise ValueError(f"{name} is dropout in training mode, whose output is random; call model.eval() first.")
        return 1.0
    try:
        return max(map(abs, slopes(module)))
    except ValueError:
        raise ValueError(
            f"{name} is a {type(module).__name__}, whose Lipschitz constant is not known here; build the network of known parts (see "
            "`lipschitz_bound`), or give the module a method lipschitz_bound() that states a bound you can prove."
        ) from None


def _fourier_layer_bound(layer: FourierLayer, name: str) -> float:
    conv, skip = layer.conv, layer.skip
    if layer.norm is not None:
        raise ValueError(
            f"{name} holds a {type(layer.norm).__name__}, which divides by its input's own deviation and so has no Lipschitz constant; "
            "use norm=None."
        )
    W = None if skip is None else _matrix(skip, conv.in_channels, f"{name}.skip")
    slope = max(map(abs, slopes(layer.activation)))
    first = slope * fourier_bound(conv.dense_weight(), conv.n_modes, W)
    if layer.channel_mlp is None:
        return first
    second = first * math.prod(v for _, v in _factors(list(_leaves(layer.channel_mlp, f"{name}.channel_mlp"))))
    if layer.channel_mlp_skip is not None:
        G = _matrix(layer.channel_mlp_skip, conv.in_channels, f"{name}.channel_mlp_skip")
        second += float(gram_bound(G, 12))
    return slope * second


def _matrix(skip: nn.Module, channels: int, name: str) -> Tensor:
    """The matrix (out, in) that a skip connection applies at every point."""
    if isinstance(skip, ChannelLinear):
        return skip.weight.detach().to(torch.float64)
    if isinstance(skip, SoftGate):
        return torch.diag(skip.weight.detach().to(torch.float64))
    if isinstance(skip, nn.Identity):
        return torch.eye(channels, dtype=torch.float64)
    raise ValueError(
        f"{name} is a {type(skip).__name__}; a certificate knows ChannelLinear, SoftGate and Identity there."
    )


def _convolution_bound(module: nn.Module, name: str) -> float:
    assert isinstance(module, _CONVOLUTIONS)
    if module.padding_mode not in ("circular", "zeros") or module.groups != 1 or set(module.dilation) != {1}:
        raise ValueError(
            f"{name} has padding {module.padding_mode!r}, {module.groups} groups and dilation {module.dilation}; a certificate knows "
            "circular and zero padding, one group and dilation 1."
        )
    pads = module._reversed_padding_repeated_twice  # (before, after) per axis, the last axis first
    if module.padding_mode == "circular" and any(
        before + after > taps - 1
        for before, after, taps in zip(pads[::2], pads[1::2], reversed(module.kernel_size), strict=True)
    ):
        raise ValueError(
            f"{name} pads {module.padding} for {module.kernel_size} taps, so that a circular convolution repeats some of its outputs; "
            "pad (taps - 1) / 2 on every side."
        )
    return convolution_bound(module.weight)


def _batch_norm_bound(module: nn.Module, name: str) -> float:
    assert isinstance(module, _BATCH_NORMS)
    if module.training or module.running_var is None:
        raise ValueError(f"{name} normalises by the statistics of the batch in training mode; call model.eval() first.")
    gain = torch.ones_like(module.running_var) if module.weight is None else module.weight
    return float((gain.abs() / (module.running_var + module.eps).sqrt()).max())


def sampled_lower_bound(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    power_steps: int = 10,
    ascent_steps: int = 10,
    input_weight: Tensor | float = 1.0,
    output_weight: Tensor | float = 1.0,
    generator: torch.Generator | None = None,
) -> float:
    """The largest |J(x) v| / |v| found: no Lipschitz constant can be smaller.

    Power iteration on J^T J at every input, then ascent in x along the gradient of |J(x) v|^2, v fixed, with more power steps after every
    move; a move that does not raise the norm is taken back and halved. Batched over the inputs, whose outputs may not depend on each other.

    Args:
        model: twice differentiable by autograd.
        inputs: (n, ...), where the data are.
        input_weight, output_weight: as in `lipschitz_bound`, broadcastable against input and output.
    """
    x = inputs.detach().clone()
    _extreme(input_weight, "input_weight"), _extreme(output_weight, "output_weight")
    root_in = torch.as_tensor(input_weight, dtype=x.dtype, device=x.device).sqrt()
    root_out = torch.as_tensor(output_weight, dtype=x.dtype, device=x.device).sqrt()
    flat = tuple(range(1, x.ndim))

    def normalised(v: Tensor) -> Tensor:
        return v / v.square().sum(flat, keepdim=True).sqrt().clamp(min=torch.finfo(v.dtype).tiny)

    def norms(x: Tensor, v: Tensor, steps: int, want_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """|J v| (n,), v after `steps` of power iteration, and the gradient of |J v|^2 by x."""
        x = x.detach().requires_grad_()
        y = root_out * model(x)
        u = torch.zeros_like(y, requires_grad=True)
        (pullback,) = torch.autograd.grad(y, x, u, create_graph=True)  # J^T u, whose derivative by u along v is J v

        def push(v: Tensor, keep: bool) -> Tensor:
            return torch.autograd.grad(pullback, u, v / root_in, retain_graph=True, create_graph=keep)[0]

        for _ in range(steps):
            v = normalised(torch.autograd.grad(y, x, push(v, False), retain_graph=True)[0] / root_in)
        Jv = push(v, want_gradient)
        squares = Jv.flatten(1).square().sum(1)
        gradient = torch.zeros_like(x)
        if want_gradient and squares.requires_grad:
            (found,) = torch.autograd.grad(squares.sum(), x, allow_unused=True)
            gradient = gradient if found is None else found
        return squares.detach().sqrt(), v.detach(), gradient.detach()

    v = normalised(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device))
    values, v, gradient = norms(x, v, power_steps, ascent_steps > 0)
    step = torch.full_like(values, 0.3 * float(x.square().flatten(1).sum(1).mean().sqrt())).view(-1, *[1] * len(flat))
    for _ in range(ascent_steps):
        moved = x.detach() + step * normalised(gradient)
        found, direction, slope = norms(moved, v, 2, True)
        better = found > values
        values = torch.where(better, found, values)
        better = better.view(-1, *[1] * len(flat))
        x = torch.where(better, moved.detach(), x.detach())
        v, gradient = torch.where(better, direction, v), torch.where(better, slope, gradient)
        step = torch.where(better, 1.2 * step, 0.5 * step)
    return float(values.max())
