"""Small questions to a module: its device, its mode, the model inside a wrapper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the first parameter or buffer; None if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """Which parts are in training mode."""
    return {module: module.training for module in model.modules()}


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put every part back into its own mode; ``model.train()`` would wake parts that were frozen on purpose."""
    for module, training in modes.items():
        module.training = training


def is_first_rank() -> bool:
    """True for the one process that writes files; in a run without torch.distributed always."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every part is in the mode it was in."""
    modes = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        set_modes(modes)


def differences(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], *, check_dtype: bool = True) -> list[str]:
    """Sentence parts that say how the stored tensors differ from the expected ones; empty if they fit."""
    parts = []
    for what, names in (("missing", expected.keys() - stored.keys()), ("unexpected", stored.keys() - expected.keys())):
        if names:
            parts.append(f"{what}: {_first(sorted(names))}")
    tensors = {name: tensor for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    common = [name for name in expected if name in tensors and isinstance(expected[name], Tensor)]
    wrong = [
        f"{n} {tuple(tensors[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in common
        if tensors[n].shape != expected[n].shape
    ]
    if wrong:
        parts.append(f"other shapes: {_first(wrong)}")
    if check_dtype:
        cast = [
            f"{n} {tensors[n].dtype} instead of {expected[n].dtype}"
            for n in common
            if tensors[n].dtype != expected[n].dtype
        ]
        if cast:
            parts.append(f"other dtypes: {_first(cast)}")
    return parts


def _first(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
