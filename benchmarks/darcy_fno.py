"""Accuracy and time of `examples/darcy_fno.py` over several seeds, run as a user runs it."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Row, write_report

EXAMPLE = Path(__file__).parents[1] / "examples" / "darcy_fno.py"


def run(seed: int, folder: Path, data: Path, device: str) -> dict[str, float]:
    """One run of the example; its results and the seconds of training."""
    out = folder / f"seed_{seed}"
    command = [sys.executable, str(EXAMPLE), "--seed", str(seed), "--out", str(out), "--data-folder", str(data)]
    subprocess.run([*command, "--device", device], check=True)
    results = json.loads((out / "results.json").read_text())
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return results | {"training_seconds": last["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder), options.data_folder, options.device) for seed in range(options.seeds)]
    errors = [100 * r["relative_l2"] for r in runs]
    ratios = [r["relative_l2_unseen_resolution"] / r["relative_l2"] for r in runs]
    times = [r["training_seconds"] for r in runs]
    error, ratio, duration = (statistics.median(values) for values in (errors, ratios, times))
    write_report(
        "darcy_fno",
        [
            Row("relative L2 on 100 unseen media at 64 x 64", error, "%", "<= 2.5 %", error <= 2.5),
            Row("the worst seed", max(errors), "%", "<= 2.5 %", max(errors) <= 2.5),
            Row("error at 127 x 127, never seen / error at 64 x 64", ratio, "x", "<= 1.5x", ratio <= 1.5),
            Row("training", duration, "s", "<= 180 s", duration <= 180),
        ],
        device=options.device,
        notes={"median_over_seeds": options.seeds, "runs": runs},
    )


if __name__ == "__main__":
    main()
