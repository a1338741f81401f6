"""Where the kernels are launched: on which architecture, with which tiles, at which precision."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Triton reads the same variable when a kernel is defined: then kernels run in Python, on tensors of any device.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def wrap_triton(kernel: Any) -> Any:
    """The kernel as torch.compile can see it; itself where it is interpreted."""
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


class Queue:
    """Launches kernels; what a test replaces to see every launch without a GPU.

    Attributes:
        architecture: the tables of `triton_configurations.json` to read, the closest first.
        precision: of the operands of a matrix product; sums are in float32 (in float64 for float64 fields).
    """

    def __init__(self, architecture: Sequence[str], precision: str) -> None:
        self.architecture, self.precision = architecture, precision

    @staticmethod
    def of(x: Tensor, dtype: torch.dtype | None = None) -> Queue:
        """The queue of the device of x, for fields of its dtype, or of `dtype`."""
        return Queue(_architecture(x.device), precision(dtype or x.dtype))

    def configuration(self, kernel: str, **sizes: int) -> dict[str, int]:
        """Tiles, warps and stages of a kernel: of the first row, of the closest table, that holds these sizes."""
        return dict(configuration(tuple(self.architecture), kernel, tuple(sizes.items())))

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch a wrapped kernel on a grid of programs; none, none at all."""
        if math.prod(grid) > 0:
            kernel[grid](*arguments, **constants)


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of the products, by `torch.get_float32_matmul_precision()`.

    "highest" is three tf32 products in place of one (2e-7, as float32 itself); "high" and "medium" are tf32 (5e-4).
    bfloat16 fields are exact in tf32 and are rounded to 4e-3 at the end, so that one product is enough.
    """
    if dtype == torch.float64:
        return "ieee"
    if dtype == torch.bfloat16 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "tf32x3"


@cache
def configurations() -> dict[str, dict[str, list[dict[str, int]]]]:
    """`triton_configurations.json`, {device name, "sm_90" or "default": {kernel: rows}}, after the table of one's own.

    OPFLOW_TRITON_CONFIGURATIONS names a file of the same form, such as `benchmarks/triton_tune.py` writes for a device.
    """
    shipped = json.loads(files("opflow.kernels.spectral_conv").joinpath("triton_configurations.json").read_text())
    path = os.environ.get("OPFLOW_TRITON_CONFIGURATIONS")
    try:
        own = json.loads(Path(path).read_text()) if path else {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"OPFLOW_TRITON_CONFIGURATIONS is {path}, which is no table of configurations: {error}."
        ) from error
    for name, kernels in own.items():
        for kernel, rows in kernels.items():
            known = shipped.setdefault(name, {})
            known[kernel] = rows + known.get(kernel, [])
    return shipped


@lru_cache(maxsize=1024)
def configuration(architecture: tuple[str, ...], kernel: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """The row of a kernel; its upper-case sizes say how large a problem it serves, missing ones any."""
    for name in architecture:
        for row in configurations().get(name, {}).get(kernel, []):
            if all(size <= row.get(f"max_{key}", size) for key, size in sizes):
                return {key: value for key, value in row.items() if not key.startswith("max_")}
    raise ValueError(f"{kernel} has no configuration for {dict(sizes)}; add a row to triton_configurations.json.")


@lru_cache(maxsize=64)
def _architecture(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda" or not torch.cuda.is_available():
        return ("default",)
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"sm_{major}{minor}", "default"
