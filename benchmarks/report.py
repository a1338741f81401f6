"""What every benchmark writes: its rows, with the machine, the versions and the command that made them."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from opflow.files import write_json

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One number beside what is asked of it."""

    what: str
    measured: float
    unit: str
    required: str
    reached: bool


def write_report(name: str, rows: list[Row], *, device: str, notes: dict[str, Any] | None = None) -> Path:
    """Write ``results/<name>_<device>.json`` and print the rows."""
    label = "cpu" if device == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "_")
    path = RESULTS / f"{name}_{label}.json"
    packages = {}
    for package in ("torch", "numpy", "scipy", "h5py", "opflow"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    report = {
        "benchmark": name,
        "command": "python -m " + shlex.join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": {
            "device": label,
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
            "allocator": {key: os.environ[key] for key in sorted(os.environ) if key.startswith("MALLOC_")} or "default",
        },
        "versions": {"python": platform.python_version(), **packages},
        "rows": [asdict(row) for row in rows],
        "notes": notes or {},
    }
    write_json(path, report)
    for row in rows:
        verdict = "reached" if row.reached else "NOT reached"
        print(f"{row.what}: {row.measured:.4g} {row.unit} (asked: {row.required}; {verdict})")
    print(path)
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
