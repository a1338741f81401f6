"""The state of every global random number generator a training run draws from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomStreams:
    """The random streams of torch (CPU and CUDA), of Python's `random` and of NumPy's legacy global generator.

    >>> streams = RandomStreams.capture()
    >>> first = torch.rand(2)
    >>> streams.restore()
    >>> bool((torch.rand(2) == first).all())
    True
    """

    torch_cpu: Tensor
    torch_cuda: list[Tensor]
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @staticmethod
    def capture() -> RandomStreams:
        """The streams as they are now."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        # The legacy global stream is what data sets and libraries written for NumPy's old interface draw from.
        return RandomStreams(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=False))  # noqa: NPY002

    def restore(self) -> None:
        """Put every stream back. CUDA streams of devices that this machine lacks are left out."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda and torch.cuda.is_available():
            for device, state in enumerate(self.torch_cuda[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002

    def state_dict(self) -> dict[str, Any]:
        """Plain values, arrays and tensors."""
        version, words, gauss = self.python
        return {
            "torch_cpu": self.torch_cpu,
            "torch_cuda": self.torch_cuda,
            "python": (version, np.array(words, dtype=np.int64), gauss),
            "numpy": self.numpy,
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> RandomStreams:
        """The inverse of `state_dict`, checked by loading it into generators of its own: no stream changes."""
        version, words, gauss = state["python"]
        python = (version, tuple(int(word) for word in words), gauss)
        random.Random().setstate(python)
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(state["torch_cpu"])
        return RandomStreams(state["torch_cpu"], state["torch_cuda"], python, state["numpy"])
