"""A training step of a whole FNO on a CUDA device beside the peer's, eagerly and as graphs."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks import cuda_timing
from benchmarks.layer_cuda import BOTH, LATENCY, case, compare, notes
from benchmarks.model_sides import ModelSides
from benchmarks.report import write_report
from benchmarks.side_by_side import Table
from benchmarks.train_step import CASES, EQUAL, Case, checked

LARGE = Case((128, 128), channels=64)
SMALL = Case((64, 64), batch=1)


def models(
    table: Table, options: Any, timer: cuda_timing.Timer, device: str = "cuda", large: Case = LARGE, small: Case = SMALL
) -> None:
    """Rows of every model; the large one is asked for throughput and the small one for latency."""
    asked: list[tuple[Case, Any, Any]] = [(large, BOTH, {}), (small, LATENCY, LATENCY)]
    asked += [(CASES[key], {}, {}) for key in options.cases]
    for model, of_step, of_forward in asked:
        title = f"FNO {model.title}"
        with case(table, title):
            sides = ModelSides(*model.field(), channel_mlp=model.channel_mlp, device=device)
            differences = checked(sides, model)
            table.number(
                f"{title}: output, ours and float64, largest difference / largest value",
                "",
                differences["output, ours and float64"],
                required=EQUAL,
                differences=differences,
                parameters=sides.parameter_counts()["ours"],
            )
            compare(table, f"{title}: step", sides.steps("peer", "ours"), options, timer, **of_step)
            compare(table, f"{title}: forward only", sides.forwards("peer", "ours"), options, timer, **of_forward)
            del sides


def run(options: argparse.Namespace) -> None:
    """Measure and write ``train_step_<device>.json``."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda, but torch sees no CUDA device here; leave the option out to measure on the CPU."
        )
    table, timer = Table(), cuda_timing.EventTimer()
    with cuda_timing.convolutions_in_tf32(False):
        models(table, options, timer)
    write_report(
        "train_step",
        table.rows,
        device="cuda",
        notes={**notes(options), "details": table.details},
        folder=options.out,
    )
