"""Stateless operations: the layers of opflow are these functions with parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from opflow.fourier import resample
from opflow.kernels.backend import choose, explain
from opflow.kernels.channel_mlp.backends import BACKENDS as MLP_BACKENDS
from opflow.kernels.channel_mlp.call import ChannelMLPCall
from opflow.kernels.spectral_conv.backends import BACKENDS
from opflow.kernels.spectral_conv.call import SpectralConvCall

__all__ = ["channel_mlp", "explain_backend", "fourier_block", "resample", "spectral_conv"]

ACTIVATIONS = ("gelu", None)


def spectral_conv(
    x: Tensor,
    weight: Tensor,
    n_modes: int | Sequence[int],
    *,
    output_shape: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """The spectral convolution of a Fourier neural operator (Li et al. 2021, eq. 4).

        y(s) = Re sum_k c_k R_k xhat_k exp(2 pi i k.s),    xhat_k = mean_j x_j exp(-2 pi i k.s_j),

    over the half of the frequencies with k_last >= 0; c_k = 2 where the mirrored -k_last is summed with it and 1 on
    the unpaired columns k_last = 0 and n_last/2. For inputs with |k_j| < min(n_j, n_modes_j)/2 this is the same
    function s -> y(s) on every grid; frequencies beyond the limit of either grid are dropped.

    Args:
        x: (batch, in_channels, *grid), one to three grid axes of any size; real.
        weight: (*kept, 2, in_channels, out_channels), real and imaginary parts; kept frequencies are
            -(m//2) .. (m-1)//2 in increasing order on the leading axes and 0 .. m//2 on the last.
        n_modes: two-sided number of modes m per axis.
        output_shape: evaluate y on another grid of the same domain.
        backend: None chooses the best that supports the call; a name means that one, or an error with its reason.

    Returns:
        y (batch, out_channels, *output_shape) in the dtype of x.

    Raises:
        ValueError: shapes, modes, devices or the backend do not fit. TypeError: the dtypes do not.

    >>> import torch
    >>> spectral_conv(torch.zeros(2, 3, 16, 15), torch.zeros(8, 5, 2, 3, 4), (8, 8)).shape
    torch.Size([2, 4, 16, 15])
    """
    call = SpectralConvCall.of(x, weight, _modes(n_modes), None if output_shape is None else tuple(output_shape))
    return choose(BACKENDS, call, backend)(x, weight, call)


def fourier_block(
    x: Tensor,
    weight: Tensor,
    n_modes: int | Sequence[int],
    skip: Tensor,
    bias: Tensor,
    *,
    activation: str | None = "gelu",
    perceptron: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    gate: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """v = s(K x + W x + b): a whole Fourier layer (Li et al. 2021, eq. 2) in one pass over the field.

    K is `spectral_conv` on the grid of x, W a matrix along the channels and s the activation. With a perceptron
    M(v) = W2 gelu(W1 v + b1) + b2 along the channels and a gate g, the layer goes on to s(M(v) + g x) (Kossaifi et al.
    2023). The result is that of the parts; the field is read and written fewer times.

    Args:
        x: (batch, in_channels, *grid).
        weight: (*kept, 2, in_channels, out_channels), as in `spectral_conv`.
        skip: W (out_channels, in_channels).
        bias: b (out_channels,).
        activation: "gelu" (exact, by the error function) or None.
        perceptron: W1 (hidden, out_channels), b1 (hidden,), W2 (out_channels, hidden) and b2 (out_channels,).
        gate: g (out_channels,), with the perceptron; in_channels is out_channels then.

    Returns:
        (batch, out_channels, *grid).

    Raises:
        ValueError, TypeError: as `spectral_conv`, and where skip, bias or activation do not fit.

    >>> import torch
    >>> x, weight = torch.zeros(2, 3, 16, 15), torch.zeros(8, 5, 2, 3, 4)
    >>> fourier_block(x, weight, (8, 8), torch.zeros(4, 3), torch.zeros(4)).shape
    torch.Size([2, 4, 16, 15])
    """
    call = SpectralConvCall.of(x, weight, _modes(n_modes), None)
    c_in, c_out = call.channels
    if skip.shape != (c_out, c_in) or bias.shape != (c_out,):
        raise ValueError(
            f"skip has shape {tuple(skip.shape)} and bias {tuple(bias.shape)}, but the weight maps {c_in} channels to {c_out}: "
            f"expected ({c_out}, {c_in}) and ({c_out},)."
        )
    if not weight.dtype == skip.dtype == bias.dtype or not weight.device == skip.device == bias.device:
        raise TypeError(
            f"weight, skip and bias are {weight.dtype} on {weight.device}, {skip.dtype} on {skip.device} and {bias.dtype} on "
            f"{bias.device}; convert the whole layer with .to(...)."
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of {ACTIVATIONS}, or apply your own to None.")
    chosen = choose(BACKENDS, call, backend)
    if perceptron is None and gate is None:
        return chosen.block(x, weight, call, skip, bias, activation)
    if perceptron is None or gate is None or c_in != c_out:
        raise ValueError(
            f"the layer maps {c_in} channels to {c_out}, with perceptron {'' if perceptron else 'not '}given and gate "
            f"{'not ' if gate is None else ''}given; give both, to a layer with as many channels out as in, or neither."
        )
    w1, b1, w2, b2 = perceptron
    layer = getattr(chosen, "layer", None)
    if layer is None or len({part.dtype for part in (weight, *perceptron, gate)}) > 1:
        v = chosen.block(x, weight, call, skip, bias, activation)
        return channel_mlp(v, (w1, w2), (b1, b2), beside=x, gate=gate, activation=activation)
    shapes = [tuple(part.shape) for part in (*perceptron, gate)]
    if shapes != [(len(w1), c_out), (len(w1),), (c_out, len(w1)), (c_out,), (c_out,)]:
        raise ValueError(
            f"perceptron and gate have shapes {shapes}, but the layer has {c_out} channels: expected (hidden, {c_out}), (hidden,), "
            f"({c_out}, hidden), ({c_out},) and ({c_out},)."
        )
    return layer(x, weight, call, skip, bias, activation, (*perceptron, gate))


def channel_mlp(
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
    *,
    beside: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """y = s(W2 gelu(W1 x + b1) + b2 + g v) at every grid point, in one pass over the field.

    Args:
        x: (batch, in_channels, *grid).
        weights: W1 (hidden, in_channels) and W2 (out_channels, hidden).
        biases: b1 (hidden,) and b2 (out_channels,).
        beside: v (batch, out_channels, *grid), with `gate` g (out_channels,): a gated skip connection; None for none.
        activation: s, "gelu" or None.

    Returns:
        y (batch, out_channels, *grid).

    Raises:
        ValueError: a shape, the activation or the backend does not fit.

    >>> import torch
    >>> W1, W2 = torch.zeros(8, 3), torch.zeros(4, 8)
    >>> channel_mlp(torch.zeros(2, 3, 16, 15), (W1, W2), (torch.zeros(8), torch.zeros(4))).shape
    torch.Size([2, 4, 16, 15])
    """
    (hidden, c_in), c_out, grid = weights[0].shape, weights[1].shape[0], x.shape[2:]
    shapes = [tuple(part.shape) for part in (*weights, *biases)]
    if x.ndim < 3 or x.shape[1] != c_in or shapes[1:] != [(c_out, hidden), (hidden,), (c_out,)]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weights {shapes[0]} and {shapes[1]} and the biases {shapes[2]} and {shapes[3]}; expected "
            "(batch, in, *grid), (hidden, in), (out, hidden), (hidden,) and (out,)."
        )
    if (beside is None) != (gate is None) or (
        beside is not None
        and gate is not None
        and (
            beside.shape[0] != x.shape[0]
            or beside.shape[1] != c_out
            or beside.shape[2:] != grid
            or gate.shape[0] != c_out
        )
    ):
        given = [None if part is None else tuple(part.shape) for part in (beside, gate)]
        raise ValueError(
            f"beside is {given[0]} and gate {given[1]}; give both, {(x.shape[0], c_out, *grid)} and ({c_out},), or neither."
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of {ACTIVATIONS}, or apply your own to None.")
    flat = None if beside is None else beside.flatten(2)
    call = ChannelMLPCall.of(x, *weights, *biases, beside, gate)
    y = choose(MLP_BACKENDS, call, backend)(x.flatten(2), weights, biases, flat, gate, activation)
    return y.unflatten(2, grid)


def explain_backend(
    x: Tensor, weight: Tensor, n_modes: int | Sequence[int], *, output_shape: Sequence[int] | None = None
) -> str:
    """Which backend `spectral_conv` takes for these arguments, and why the ones before it do not serve."""
    call = SpectralConvCall.of(x, weight, _modes(n_modes), None if output_shape is None else tuple(output_shape))
    return explain(BACKENDS, call)


def _modes(n_modes: int | Sequence[int]) -> tuple[int, ...]:
    return (n_modes,) if isinstance(n_modes, int) else tuple(n_modes)
