"""What every benchmark writes: its rows, with the machine, the versions and the command that made them."""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from opflow.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "h5py", "triton", "neuraloperator", "opflow")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass
class Row:
    """One number beside what is asked of it.

    Attributes:
        column: where the same thing is measured under several conditions, which of them this number belongs to; the
            tables then show such rows as one, with a column a condition.
    """

    what: str
    measured: float
    unit: str
    required: str
    reached: bool
    column: str = ""


def write_report(
    name: str,
    rows: list[Row],
    *,
    device: str,
    notes: dict[str, Any] | None = None,
    conditions: dict[str, Any] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write ``results/<name>_<device>.json`` and print the rows.

    `conditions` replaces entries of the machine's description, where what was measured ran in processes of its own.
    """
    label = device_label(device)
    path = folder / f"{name}_{label}.json"
    report = {
        "benchmark": name,
        "command": "python -m " + shlex.join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": machine(device) | (conditions or {}),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
        "notes": {"torch": torch_flags(), **(notes or {})},
    }
    write_json(path, report)
    for row in rows:
        verdict = "" if row.required == "reported" else "; reached" if row.reached else "; NOT reached"
        column = f" [{row.column}]" if row.column else ""
        print(f"{row.what}{column}: {row.measured:.4g} {row.unit} (asked: {row.required}{verdict})")
    print(path)
    return path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else who asks for the same file has it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def device_label(device: str) -> str:
    """The device in a file's name."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "_")


def machine(device: str = "cpu") -> dict[str, Any]:
    """The device, the processor, how much of it this process may use, and how it hands out memory."""
    return {
        "device": device_label(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "allocator": allocator(),
        "transparent huge pages": huge_pages(),
    }


def allocator() -> str:
    """The environment variables that change glibc's allocator, or "default"."""
    said = [f"{key}={os.environ[key]}" for key in sorted(os.environ) if key.startswith(("MALLOC_", "THP_MEM_"))]
    tunables = os.environ.get("GLIBC_TUNABLES")
    return " ".join([*said, *([f"GLIBC_TUNABLES={tunables}"] if tunables else [])]) or "default"


def huge_pages() -> str:
    """Which of "always", "madvise" (where a program asks for them) and "never" the system grants huge pages."""
    if not HUGE_PAGES.exists():
        return "unknown"
    words = HUGE_PAGES.read_text().split()
    return next((word.strip("[]") for word in words if word.startswith("[")), "unknown")


def versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    return {"python": platform.python_version(), **packages}


def torch_flags() -> dict[str, Any]:
    """The switches of torch that change speed or precision."""
    flags: dict[str, Any] = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_available():
        flags["cuda"] = torch.version.cuda
        flags["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32
    return flags


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
