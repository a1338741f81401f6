"""Weights of neuraloperator's FNO as an opflow FNO."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opflow.kernels.spectral_conv.call import weight_grid
from opflow.layers.spectral_conv import as_modes
from opflow.models.fno import ACTIVATIONS, FNO
from opflow.training.module import differences

# What a converted model cannot do, by the keys that betray it; every part is the end of a sentence.
_FOREIGN = (
    (r"(^|\.)f[ri]\.", "weights of a model with complex_data=True; opflow's fields are real"),
    (
        r"^fno_blocks\.norm\.",
        "normalisation layers, which stand elsewhere in opflow's layers (after the skip connection was added); "
        "train with norm=None",
    ),
    (
        r"^fno_blocks\.(convs\.weight|convs\.bias|mlp|mlp_skips)\b",
        "the layout before neuraloperator 1.0; load it there and save it again with a newer version",
    ),
    (r"^(fno_blocks\.\d+\.|horizontal_skips)", "the layers of another model, such as UNO; only FNO and TFNO convert"),
)
# Arguments that leave no weights, and their only values that convert.
_WITHOUT_WEIGHTS = {"norm": None, "preactivation": False, "stabilizer": None, "resolution_scaling_factor": None}
_REMEDY = dict.fromkeys(_WITHOUT_WEIGHTS, "such a model cannot be converted") | {
    "max_n_modes": "pass n_modes=, the peer's model.n_modes, since not all of its weights may be in use",
    "in_channels": "pass positional_embedding= as it was there",
}
# FNO's first positional arguments, the same in 2.0.0 and later; the metadata keep them without their names.
_POSITIONAL = (
    "n_modes", "in_channels", "out_channels", "hidden_channels", "n_layers", "lifting_channel_ratio",
    "projection_channel_ratio", "positional_embedding", "non_linearity", "norm",
)  # fmt: skip
_SKIP_DEFAULTS = {"fno_skips": "linear", "channel_mlp_skips": "soft-gating"}


def from_neuraloperator(
    state_dict: Mapping[str, Any],
    *,
    n_modes: int | Sequence[int] | None = None,
    positional_embedding: str | None = "grid",
    grid_boundaries: Sequence[Sequence[float]] | None = None,
    fno_skip: str | None = "linear",
    channel_mlp_skip: str | None = "soft-gating",
    non_linearity: str = "gelu",
    domain_padding: float | Sequence[float] | None = None,
) -> FNO:
    """An opflow FNO equal to the `neuralop.models.FNO` or `TFNO` (2.0.0, or the main branch) that has these weights.

    The channels, layers and widths are read off the weights. The keywords bear neuraloperator's names and defaults; they
    say what weights cannot. The spectral weights (in, out, *modes), complex, fft-shifted on the leading axes, become
    (*modes, 2, in, out), real; Tucker, CP and TT factors are multiplied out, so a TFNO becomes dense. The bias of a
    spectral convolution moves to the linear skip beside it.

    Outputs are equal to rounding, in eval mode and full precision,

    - at every even grid size, whether the modes lie below, at or above its Nyquist limit, and at odd sizes of the last axis;
    - at odd sizes of the leading axes to the versions after 2.0.0 only, with no fewer points than modes (2.0.0 misplaces
      the frequencies of these axes there, so a model that was trained at such a size is another function).

    Args:
        state_dict: ``model.state_dict()``, in memory. Nothing is taken from its ``_metadata``, but a contradiction to it is
            refused; drop that key to go ahead all the same.
        n_modes: the peer's ``model.n_modes``, needed where that is smaller than its ``max_n_modes``: the weights beyond are
            cut off. By default all modes are kept, and the recipe's n_modes on the last axis is even: of an odd number
            there, n_modes // 2 is all that is stored, and all that matters.
        positional_embedding: "grid", coordinates i/n appended to the input (opflow's layout "periodic"), or None.
        grid_boundaries: (start, stop) of every axis, where the embedding does not run from 0 to 1.
        fno_skip, channel_mlp_skip: "identity" or None must be said, since they leave no weights.
        non_linearity: "gelu", "relu", "silu" or "tanh".
        domain_padding: fraction added at either side, per axis or one for all. Equal where fraction x size is whole.

    Returns:
        The model, in the precision and on the device of the weights, with `recipe` as `FNO.build` leaves it.

    Raises:
        TypeError: not a mapping from names to tensors.
        ValueError: weights that no opflow FNO has (normalisation, complex data, separable or spherical convolutions, local
            kernels, other models), missing or left-over ones, or a keyword that contradicts them.

    >>> weights = {"fno_blocks.convs.0.weight.tensor": torch.ones(1, 1, 3, dtype=torch.complex64)}
    >>> weights |= {"fno_blocks.convs.0.bias": torch.zeros(1, 1), "fno_blocks.fno_skips.0.conv.weight": torch.ones(1, 1, 1)}
    >>> for name, inputs in (("lifting", 2), ("projection", 1)):
    ...     weights |= {f"{name}.fcs.0.weight": torch.ones(2, inputs, 1), f"{name}.fcs.0.bias": torch.zeros(2)}
    ...     weights |= {f"{name}.fcs.1.weight": torch.ones(1, 2, 1), f"{name}.fcs.1.bias": torch.zeros(1)}
    >>> from_neuraloperator(weights)(torch.zeros(1, 1, 8)).shape
    torch.Size([1, 1, 8])
    """
    if non_linearity not in ACTIVATIONS:
        raise ValueError(f"non_linearity is {non_linearity!r}; give one of {tuple(ACTIVATIONS)}.")
    if positional_embedding not in ("grid", None):
        raise ValueError(f"positional_embedding is {positional_embedding!r}; give 'grid' or None.")
    weights = _Weights(state_dict)
    spectral = [weights.spectral(i) for i in range(weights.n_layers)]
    modes = _modes(spectral, n_modes)
    dim, hidden = len(modes), spectral[0].shape[1]
    fno_skip = weights.skip_kind("fno_skips", fno_skip)
    has_mlp = weights.has("fno_blocks.channel_mlp.")
    channel_mlp_skip = weights.skip_kind("channel_mlp_skips", channel_mlp_skip) if has_mlp else None

    converted: dict[str, Tensor] = {}
    inputs, lifted, _ = weights.perceptron("lifting", "lift", converted)
    _, projected, out_channels = weights.perceptron("projection", "project", converted)
    width = hidden
    for i, dense in enumerate(spectral):
        converted[f"blocks.{i}.conv.weight"] = _as_pairs(dense, modes)
        bias = f"blocks.{i}.{'skip' if fno_skip == 'linear' else 'conv'}.bias"
        converted[bias] = weights.take(f"fno_blocks.convs.{i}.bias").flatten()
        weights.skip(f"fno_blocks.fno_skips.{i}", f"blocks.{i}.skip", fno_skip, converted)
        if has_mlp:
            _, width, _ = weights.perceptron(f"fno_blocks.channel_mlp.{i}", f"blocks.{i}.channel_mlp", converted)
            name = f"fno_blocks.channel_mlp_skips.{i}"
            weights.skip(name, f"blocks.{i}.channel_mlp_skip", channel_mlp_skip, converted)
    weights.nothing_left()

    in_channels = inputs - dim if positional_embedding else inputs
    if in_channels < 1:
        raise ValueError(
            f"the lifting takes {inputs} channels, too few for an input and {dim} coordinates; this model was made with "
            "positional_embedding=None, so pass that."
        )
    if grid_boundaries is not None:
        _move_boundaries(converted, in_channels, inputs - in_channels, grid_boundaries)
    padding = _fractions(domain_padding, dim)
    said = {"in_channels": in_channels, "non_linearity": non_linearity, "domain_padding": padding, "fno_skip": fno_skip}
    said |= {"channel_mlp_skip": channel_mlp_skip} if has_mlp else {}
    said |= {"max_n_modes": None} if n_modes is None else {}
    _refuse_contradictions(state_dict.get("_metadata"), said, dim)
    with torch.random.fork_rng(devices=[]):  # the fresh weights must not use up the caller's random numbers
        model = FNO.build(
            modes,
            in_channels,
            out_channels,
            hidden,
            n_layers=weights.n_layers,
            # A periodic layer commutes with shifts, so zeros at both ends act as twice as many at one.
            padding=[2 * fraction for fraction in padding],
            coordinates=positional_embedding is not None,
            layout="periodic",
            # Without perceptrons the peer's layers take the activation twice, as ours do around the identity.
            channel_mlp=width / hidden if has_mlp else "identity",
            channel_mlp_skip=channel_mlp_skip,
            skip=fno_skip,
            activation=non_linearity,
            lifting_channel_ratio=lifted / hidden,
            projection_channel_ratio=projected / hidden,
        )
    wrong = differences(model.state_dict(), converted, check_dtype=False)
    if wrong:
        raise ValueError(
            f"the weights do not fit together as one FNO: {'; '.join(wrong)} (in opflow's names); pass the state dict of "
            "one whole model."
        )
    model.to(device=spectral[0].device, dtype=weights.dtype).load_state_dict(converted)
    return model


class _Weights:
    """The tensors of a state dict; those that were converted leave it."""

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(state_dict, nn.Module):
            raise TypeError(f"state_dict is a {type(state_dict).__name__}; pass its .state_dict().")
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict is a {type(state_dict).__name__} but a mapping from names to tensors is expected; load a file "
                "with torch.load(path, weights_only=True) or safetensors first."
            )
        self.left: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            if key == "_metadata":
                continue
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"state_dict[{key!r}] is a {type(value).__name__}, but only tensors are expected; if this is a whole "
                    "checkpoint, pass the state dict inside it."
                )
            self.left[key] = value.detach()
        for pattern, what in _FOREIGN:
            found = next((key for key in self.left if re.search(pattern, key)), None)
            if found:
                raise ValueError(f"the state dict holds {found!r}: {what}.")
        is_double = any(value.dtype in (torch.float64, torch.complex128) for value in self.left.values())
        self.dtype = torch.float64 if is_double else torch.float32
        self.n_layers = self._n_layers()

    def _n_layers(self) -> int:
        numbers = {int(m[1]) for key in self.left if (m := re.match(r"fno_blocks\.convs\.(\d+)\.", key))}
        nested = next((key for key in self.left if "fno_blocks.convs." in key), None)
        if not numbers and nested:
            raise ValueError(
                f"the keys begin with {nested.split('fno_blocks')[0]!r}; remove this prefix from all of them."
            )
        if not numbers or numbers != set(range(len(numbers))):
            raise ValueError(
                f"the state dict has the spectral convolutions {sorted(numbers)} under 'fno_blocks.convs', but 0 to n - 1 are "
                "expected; pass the whole state dict of a neuraloperator FNO or TFNO."
            )
        return len(numbers)

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.left)

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            raise ValueError(
                f"the state dict has no {key!r}; pass the whole state dict of a neuraloperator FNO or TFNO."
            )
        return self.left.pop(key)

    def nothing_left(self) -> None:
        if self.left:
            first = ", ".join(sorted(self.left)[:3]) + (", ..." if len(self.left) > 3 else "")
            raise ValueError(
                f"{len(self.left)} tensors of the state dict have no place in opflow's FNO: {first}; only plain models of "
                "neuraloperator's FNO and TFNO convert."
            )

    def spectral(self, layer: int) -> Tensor:
        """The dense complex weight (in, out, *modes); factors are multiplied out."""
        name = f"fno_blocks.convs.{layer}.weight"
        keys = [key for key in self.left if key.startswith(f"{name}.factors.")]
        factors = [self.take(key) for key in sorted(keys, key=lambda key: int(key.rpartition("_")[2]))]
        if self.has(f"{name}.core"):  # Tucker
            dense = self.take(f"{name}.core")
            for axis, factor in enumerate(factors):
                dense = torch.tensordot(factor, dense, dims=([1], [axis])).movedim(0, axis)
        elif self.has(f"{name}.weights"):  # CP: the sum over the common rank comes last
            dense = self.take(f"{name}.weights")
            for factor in factors:
                dense = dense.unsqueeze(-2) * factor
            dense = dense.sum(-1)
        elif factors:  # tensor train: (1, n, r), (r, m, s), ..., (t, k, 1)
            dense = factors[0]
            for factor in factors[1:]:
                dense = torch.tensordot(dense, factor, dims=1)
            dense = dense.squeeze(0).squeeze(-1)
        else:
            dense = self.take(f"{name}.tensor" if self.has(f"{name}.tensor") else name)
        if not dense.is_complex():
            raise ValueError(
                f"{name} is {dense.dtype} but complex numbers are expected; .to(dtype) of a neuraloperator model drops "
                "their imaginary part, so take the weights from before."
            )
        bias = self.left.get(f"fno_blocks.convs.{layer}.bias")
        if bias is not None and (dense.ndim < 3 or dense.ndim != bias.ndim + 1):
            raise ValueError(
                f"{name} has shape {tuple(dense.shape)} but (in, out, *modes) with {bias.ndim - 1} axes of modes is expected; "
                "separable and spherical (SFNO) convolutions cannot be converted."
            )
        return dense

    def perceptron(self, name: str, target: str, converted: dict[str, Tensor]) -> tuple[int, int, int]:
        """name.fcs.j.* (out, in, 1) -> target.linears.j.*; its widths in, hidden (0 for a single map), out."""
        n = max(1, sum(re.fullmatch(rf"{re.escape(name)}\.fcs\.\d+\.weight", key) is not None for key in self.left))
        shapes = []
        for j in range(n):
            weight = converted[f"{target}.linears.{j}.weight"] = _matrix(self.take(f"{name}.fcs.{j}.weight"))
            converted[f"{target}.linears.{j}.bias"] = self.take(f"{name}.fcs.{j}.bias")
            shapes.append(weight.shape)
        return shapes[0][1], shapes[0][0] if n > 1 else 0, shapes[-1][0]

    def skip_kind(self, name: str, said: str | None) -> str | None:
        """What the weights say that a skip connection is; where there are none, what the caller said."""
        option, default = name.removesuffix("s"), _SKIP_DEFAULTS[name]
        prefix = f"fno_blocks.{name}."
        found = [value for key, value in self.left.items() if key.startswith(prefix) and key.endswith("weight")]
        if not found:
            if said in ("identity", None):
                return said
            raise ValueError(
                f"the state dict has no fno_blocks.{name}.*, so {option} was 'identity' or None there, but {said!r} was given "
                f"or left as the default; pass {option}='identity' or {option}=None."
            )
        wide = [tuple(weight.shape) for weight in found if weight.ndim < 3 or weight[0, 0].numel() != 1]
        if wide:
            raise ValueError(
                f"fno_blocks.{name} holds weights of shape {wide[0]} but (out, in, 1) or (1, channels, 1, ...) is "
                "expected; opflow's skip connections act point by point, so a wider conv_bias_kernel cannot be converted."
            )
        kind = "soft-gating" if found[0].shape[0] == 1 < found[0].shape[1] else "linear"
        if said not in (kind, default):
            raise ValueError(f"{option} is {said!r} but the state dict holds weights of {kind!r}; leave {option} out.")
        return kind

    def skip(self, name: str, target: str, kind: str | None, converted: dict[str, Tensor]) -> None:
        if kind in ("linear", "soft-gating"):
            weight = self.take(f"{name}.conv.weight" if self.has(f"{name}.conv.") else f"{name}.weight")
            converted[f"{target}.weight"] = _matrix(weight) if kind == "linear" else weight.flatten()


def _matrix(kernel: Tensor) -> Tensor:
    """(out, in, 1, ...) -> (out, in)"""
    return kernel.reshape(len(kernel), -1)


def _modes(spectral: Sequence[Tensor], n_modes: int | Sequence[int] | None) -> tuple[int, ...]:
    shapes = {tuple(dense.shape[2:]) for dense in spectral}
    stored = tuple(spectral[0].shape[2:])
    if len(shapes) > 1:
        raise ValueError(
            f"the layers hold different modes, {sorted(shapes)}; opflow's FNO has the same in every layer."
        )
    if n_modes is None:
        return as_modes((*stored[:-1], max(1, 2 * (stored[-1] - 1))))
    modes = as_modes(n_modes)
    if len(modes) != len(stored) or any(m > s for m, s in zip(weight_grid(modes), stored, strict=True)):
        raise ValueError(
            f"n_modes is {modes} but the weights hold {stored}, which is n_modes // 2 + 1 on the last axis; pass the peer's "
            "model.n_modes, or leave it out to keep all."
        )
    return modes


def _as_pairs(dense: Tensor, modes: tuple[int, ...]) -> Tensor:
    """(in, out, *modes) complex -> (*kept, 2, in, out) real; of more modes than wanted the rows that the peer takes."""
    for axis, m in enumerate(modes[:-1], start=2):
        dense = dense.narrow(axis, (dense.shape[axis] - m) // 2, m)
    kept = dense[..., : modes[-1] // 2 + 1]
    return torch.view_as_real(kept.resolve_conj()).movedim((0, 1), (-2, -1))


def _move_boundaries(
    converted: dict[str, Tensor], in_channels: int, n_coordinates: int, boundaries: Sequence[Sequence[float]]
) -> None:
    """W (start + (stop - start) t) + b = W (stop - start) t + (W start + b): the lifting takes the boundaries in."""
    pairs = [[float(end) for end in pair] for pair in boundaries]
    if len(pairs) != n_coordinates or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"grid_boundaries is {boundaries!r} but the model has {n_coordinates} coordinates; give (start, stop) for each."
        )
    weight, bias = converted["lift.linears.0.weight"].clone(), converted["lift.linears.0.bias"]
    start, stop = torch.tensor(pairs, dtype=weight.dtype, device=weight.device).T
    converted["lift.linears.0.bias"] = bias + weight[:, in_channels:] @ start
    weight[:, in_channels:] *= stop - start
    converted["lift.linears.0.weight"] = weight


def _fractions(padding: float | Sequence[float] | None, dim: int) -> list[float]:
    if isinstance(padding, Sequence) and len(padding) != dim:
        raise ValueError(
            f"domain_padding is {padding} but the model has {dim} axes; give one fraction, or one per axis."
        )
    return [float(p) for p in padding] if isinstance(padding, Sequence) else [float(padding or 0)] * dim


def _refuse_contradictions(metadata: Any, said: Mapping[str, Any], dim: int) -> None:
    """Compare the result with the arguments that neuraloperator noted: some leave no weights and would pass unseen.

    Only plain values and the names of functions are looked at, and nothing is taken from here.
    """
    if not isinstance(metadata, Mapping):
        return
    noted = {**metadata, **dict(zip(_POSITIONAL, metadata.get("args") or (), strict=False))}
    expected = {**_WITHOUT_WEIGHTS, **said}
    for name in sorted(expected.keys() & noted.keys()):
        value = getattr(noted[name], "__name__", noted[name])
        if name == "domain_padding" and (value is None or isinstance(value, int | float | list | tuple)):
            value = _fractions(value, dim)
        if (value is None or isinstance(value, bool | int | float | str | list | tuple)) and value != expected[name]:
            raise ValueError(
                f"neuraloperator noted {name}={noted[name]!r} for this model but the conversion has {name}={expected[name]!r}; "
                f"{_REMEDY.get(name, f'pass {name}= as it was there')}."
            )
