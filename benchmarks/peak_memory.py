"""The peak memory of one step of a layer above its inputs, in units of its input: run as a child by `spectral_conv`.

The high-water mark of the resident memory is reset after a first step that warms caches and tables up, and read after a
second. The allocator is told to hand every freed buffer back (MALLOC_MMAP_THRESHOLD_), or the mark would show what it keeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from collections.abc import Sequence
from pathlib import Path


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory now (VmRSS) or at most since the mark was reset (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status names no {field}; the peak memory is measured on Linux only.")


def reset_peak() -> bool:
    """Set the high-water mark to what is resident now; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return resident("VmHWM") <= resident() + (1 << 20)


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks import side_by_side
    from benchmarks.layer_sides import LayerSides
    from benchmarks.spectral_conv import CASES

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("side", choices=("peer", "ours"))
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    side_by_side.pin(1)
    case = CASES[options.case]
    if reset_peak():
        sides = LayerSides(*case.field())
        sides.step(options.side)
        gc.collect()
        reset_peak()
        before = resident()
        kept = sides.step(options.side)
        peak = resident("VmHWM")
    else:  # the mark of the whole life then, after a first step that is too small to raise it
        LayerSides(case.shape, case.channels, 1, case.n_modes).step(options.side)
        sides = LayerSides(*case.field())
        before = resident()
        kept = sides.step(options.side)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del kept
    size = sides.x.numel() * sides.x.element_size()
    options.result.write_text(json.dumps((peak - before) / size))


if __name__ == "__main__":
    main()
