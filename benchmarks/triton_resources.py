"""Registers, shared memory and spills of the Triton kernels as the shipped configurations compile them, without a GPU.

Triton compiles ahead of time for an architecture that is not there; `cuobjdump` of its wheel reads the machine code.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.report import RESULTS
from opflow.files import write_json
from opflow.kernels.spectral_conv import triton_stages as stages
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.spectral_conv.triton_queue import Queue
from opflow.kernels.spectral_conv.triton_tables import padded_modes, padded_points

ARCHITECTURES = (80, 90)
RECORD = RESULTS / "triton_resources.json"
TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Launch:
    """A kernel with what decides its machine code: types and divisibility of the arguments, constants, options."""

    kernel: Any
    signature: tuple[str, ...]
    divisible: tuple[int, ...]
    constants: tuple[tuple[int, Any], ...]
    options: tuple[tuple[str, int], ...]

    @staticmethod
    def of(jit: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> Launch:
        """As Triton specialises the kernel `jit` for these arguments."""
        options = tuple((key, constants[key]) for key in ("num_warps", "num_stages") if key in constants)
        named = dict(zip(jit.arg_names, arguments, strict=False)) | constants
        signature, divisible, fixed = [], [], []
        for i, name in enumerate(jit.arg_names):
            value = named[name]
            if isinstance(value, torch.Tensor):
                signature.append(TYPES[value.dtype])
                divisible.append(i)
            elif name in constants or value == 1:
                signature.append("constexpr")
                fixed.append((i, value))
            else:
                signature.append("i32" if value < 2**31 else "i64")
                if value % 16 == 0:
                    divisible.append(i)
        return Launch(jit, tuple(signature), tuple(divisible), tuple(fixed), options)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    def describe(self) -> dict[str, Any]:
        """Its named constants and options, for a record."""
        names = self.kernel.arg_names
        return {names[i]: value for i, value in self.constants if names[i].isupper()} | dict(self.options)


@dataclass
class Resources:
    """What one kernel needs on one architecture; spills count local loads and stores in the machine code."""

    kernel: str
    architecture: str
    constants: dict[str, Any]
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    tensor_core: str
    seconds: float = field(default=0.0, repr=False)


class RecordingQueue(Queue):
    """A queue that notes every launch and runs none."""

    def __init__(self, capability: int, precision: str) -> None:
        super().__init__((f"sm_{capability}", "default"), precision)
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Note it."""
        self.launches.append(Launch.of(kernel.kernel, arguments, constants))


def record(
    capability: int,
    precision: str,
    n_modes: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    channels: int = 64,
    batch: int = 20,
    dtype: torch.dtype = torch.float32,
) -> list[Launch]:
    """Every distinct launch of a convolution and of a block, forward and backward."""
    queue = RecordingQueue(capability, precision)
    x = torch.empty(batch, channels, *shape, dtype=dtype, device="meta")
    weight = torch.empty(*n_modes[:-1], n_modes[-1] // 2 + 1, 2, channels, channels, device="meta")
    call = SpectralConvCall.of(x, weight, n_modes, None)
    kept = [bound for axis in range(len(shape)) for bound in call.kept(axis)]
    tables = [
        torch.empty(2 * padded_modes(max(-low, high) + 1), padded_points(n), device="meta")
        for n, low, high in zip(shape, kept[::2], kept[1::2], strict=True)
    ]
    R = call.kept_weight(weight).flatten(0, len(shape) - 1)
    W, b = torch.empty(channels, channels, device="meta"), torch.empty(channels, device="meta")
    X = stages.analyse(queue, x, kept, tables)
    Y = stages.multiply(queue, X, R, "")
    y = stages.synthesise(queue, Y, shape, kept, tables, dtype)
    stages.multiply(queue, Y, R, "right")
    stages.multiply(queue, X, Y, "left")
    lines = stages.lead(queue, Y, shape, kept, tables)
    stages.combine(queue, lines, x, W, b, "gelu")
    stages.combine_backward(queue, lines, x, W, b, y)
    stages.combine(queue, lines, y, W.t(), None, "none")
    stages.channel_gradients(queue, y, x)
    return list(dict.fromkeys(queue.launches))


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile for an architecture and read what the machine code needs."""
    names = launch.kernel.arg_names
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(zip(names, launch.signature, strict=True)),
        constexprs={(i,): value for i, value in launch.constants},
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.divisible},
    )
    program = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={**dict(launch.options), "enable_fp_fusion": True}
    )
    usage, code = _cuobjdump(program.asm["cubin"], "-res-usage"), _cuobjdump(program.asm["cubin"], "-sass")
    instruction = "wgmma" if "HGMMA" in code else "mma" if "HMMA" in code else "none"
    return Resources(
        launch.name,
        f"sm_{capability}",
        launch.describe(),
        int(re.search(r"REG:(\d+)", usage).group(1)),
        program.metadata.shared,
        int(re.search(r"STACK:(\d+)", usage).group(1)),
        len(re.findall(r"\b(?:LDL|STL)\b", code)),
        instruction,
    )


def _cuobjdump(binary: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def table(rows: Iterable[Resources]) -> str:
    """The rows, one a line."""
    return "\n".join(
        f"{r.kernel:22s} {r.architecture} regs {r.registers:3d} shared {r.shared_bytes / 1024:5.1f} KB spills {r.spills:3d} "
        f"stack {r.stack_bytes} {r.tensor_core:5s} {r.constants}"
        for r in rows
    )


CASES: tuple[dict[str, Any], ...] = (
    {"n_modes": (24, 24), "shape": (128, 128)},
    {"n_modes": (16,), "shape": (8192,)},
    {"n_modes": (16, 16, 16), "shape": (64, 64, 40), "channels": 20, "batch": 4},
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="*", default=["tf32x3", "tf32"])
    options = parser.parse_args(arguments)
    rows = []
    for capability in ARCHITECTURES:
        for precision in options.precision:
            launches = dict.fromkeys(launch for case in CASES for launch in record(capability, precision, **case))
            for launch in launches:
                rows.append(compile_launch(launch, capability))
                print(table(rows[-1:]), flush=True)
    write_json(
        RECORD,
        {"triton": triton.__version__, "torch": torch.__version__, "kernels": [asdict(row) for row in rows]},
    )
    return sum(row.spills > 0 for row in rows)


if __name__ == "__main__":
    sys.exit(main())
