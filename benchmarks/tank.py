"""The example of the measured water tank, with several seeds: score and Dice of every method on every tank, medians.

The configuration is the example's default, chosen on simulated tanks; this is where it meets the measured ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import Row, write_report

EXAMPLE = Path(__file__).parents[1] / "examples" / "tank_impedance_tomography.py"
REQUIRED = {"U-Net": (0.8, 0.8), "linearised + Otsu": (0.6, None)}  # score and Dice on each measured tank
MEASURES = ("challenge score", "Dice")


def example() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[EXAMPLE.stem] = module
    spec.loader.exec_module(module)
    return module


def rows(records: list[dict[str, Any]]) -> list[Row]:
    """One row a tank, method and measure: the median over the runs."""
    found = [
        Row("misfit of the calibrated empty tank", 100 * records[0]["calibration_misfit"], "%", "reported", True),
    ]
    tables = [record["score_and_dice"] for record in records]
    for where, methods in tables[0].items():
        for method in methods:
            for k, measure in enumerate(MEASURES):
                value = statistics.median(table[where][method][k] for table in tables)
                asked = None if "test" in where else REQUIRED.get(method, (None, None))[k]
                found.append(
                    Row(
                        f"{where}: {measure}", value, "", "reported" if asked is None else f">= {asked}",
                        asked is None or value >= asked, method,
                    )
                )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tank", type=Path, required=True, help="the folder of measured files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/tank"), help="a folder a seed; what is there is not run again"
    )
    options = parser.parse_args()
    module, records = example(), []
    for seed in options.seeds:
        folder = options.runs / f"seed{seed}"
        if not (folder / "results.json").exists():
            module.main(options.tank, seed=seed, out=folder, overwrite=True)
        records.append(json.loads((folder / "results.json").read_text()))
    runs = [
        {"seed": seed, "training_cpu_seconds": r["training_cpu_seconds"], "score_and_dice": r["score_and_dice"]}
        for seed, r in zip(options.seeds, records, strict=True)
    ]
    notes = {"runs": runs, "settings": records[0]["settings"], "parameters": records[0]["parameters"]}
    write_report("tank", rows(records), device="cpu", notes=notes)


if __name__ == "__main__":
    main()
