"""The layers on a CUDA device: the Fourier layer and the spectral convolution beside the peer's, eagerly and as graphs."""

from __future__ import annotations

import argparse
import gc
import statistics
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import cuda_timing, peer
from benchmarks.layer_sides import Arms, BlockSides, LayerSides, must_be_right
from benchmarks.report import write_report
from benchmarks.side_by_side import Table
from opflow.functional import explain_backend

if TYPE_CHECKING:
    from benchmarks.spectral_conv import Case

ERROR = 1e-6
EAGER, GRAPHS = "eager", "CUDA graphs"
Asked = tuple[tuple[tuple[int, ...], int, int, tuple[int, ...]], dict[str, Any], dict[str, Any]]
# (shape, channels, batch, n_modes), and what is asked of the forward pass and of the step.
BOTH = {"required": {EAGER: 3.0, GRAPHS: 3.0}, "ambitious": {EAGER: 6.0, GRAPHS: 6.0}}
LATENCY = {"required": {GRAPHS: 2.0}, "ambitious": {GRAPHS: 4.0}}
ASKED: tuple[Asked, ...] = (
    (((128, 128), 64, 20, (24, 24)), BOTH, BOTH),
    (((64, 64), 32, 1, (24, 24)), LATENCY, {}),
)


def compare(
    table: Table,
    what: str,
    arms: Arms,
    options: Any,
    timer: cuda_timing.Timer,
    *,
    required: Mapping[str, float] = MappingProxyType({}),
    ambitious: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, dict[str, list[float]]]:
    """Rows peer time / ours, eagerly and as graphs, with what is asked by column. Returns the seconds by column.

    A side that cannot be captured, or whose graph gives something else, leaves its reason beside a zero.
    """
    name = f"{what}, peer time / ours"
    measured = {EAGER: cuda_timing.interleave(arms, options.rounds, timer)}
    try:
        measured[GRAPHS] = cuda_timing.interleave(cuda_timing.graphs(arms), options.rounds, timer)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        print(f"{what}: no CUDA graph: {reason}")
        table.number(name, GRAPHS, 0.0, "x", required=required.get(GRAPHS), sign=">=", no_graph=reason)
    for column, seconds in measured.items():
        table.ratio(name, column, seconds, required=required.get(column), ambitious=ambitious.get(column))
    return measured


@contextmanager
def case(table: Table, title: str) -> Iterator[None]:
    """One case: what goes wrong in it is a row that says so, and the other cases are measured all the same."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        table.number(f"{title}: failed", "", 1.0, required=0, error=f"{type(error).__name__}: {error}")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bandwidth(table: Table, what: str, field_bytes: int, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """TB/s that the forward pass of a whole Fourier layer achieves where it reads x twice and writes y once."""
    for column, seconds in measured.items():
        achieved = 3 * field_bytes / statistics.median(seconds["ours"]) / 1e12
        table.number(f"{what}: x read twice and y written", column, achieved, "TB/s", sign=">=")


def blocks(
    table: Table, options: Any, timer: cuda_timing.Timer, device: str = "cuda", asked: Sequence[Asked] = ASKED
) -> None:
    """The Fourier layer gelu(K x + W x + b) at the sizes that something is asked of."""
    for field, forward, step in asked:
        shape, channels, batch, _ = field
        title = f"Fourier layer {'x'.join(map(str, shape))}, C={channels}, B={batch}"
        with case(table, title):
            sides = BlockSides(*field, device=device)
            errors(table, title, sides.errors())
            measured = compare(table, f"{title}: forward", sides.forwards("peer", "ours"), options, timer, **forward)
            bandwidth(table, f"{title}: forward", sides.x.numel() * sides.x.element_size(), measured)
            compare(table, f"{title}: step", sides.steps("peer", "ours"), options, timer, **step)
            with cuda_timing.convolutions_in_tf32(True):  # the peer's default, at another precision than ours
                seconds = cuda_timing.interleave(sides.forwards("peer", "ours"), options.rounds, timer)
            table.ratio(f"{title}: forward, time of the peer with TF32 convolutions / ours", EAGER, seconds)
            del sides


def layers(
    table: Table, options: Any, cases: Mapping[str, Case], timer: cuda_timing.Timer, device: str = "cuda"
) -> None:
    """The spectral convolution alone, in the cases of the CPU."""
    for key in options.cases:
        title = f"layer {cases[key].title}"
        with case(table, title):
            sides = LayerSides(*cases[key].field(), device=device)
            errors(table, title, sides.errors("ours", "peer"))
            compare(table, f"{title}: forward only", sides.forwards("peer", "ours"), options, timer)
            compare(table, f"{title}: step", sides.steps("peer", "ours"), options, timer)
            del sides


def errors(table: Table, title: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """A row: the largest relative error of ours; grossly wrong answers are not timed."""
    what = f"{title}: relative L2 error against float64, the largest of y and all gradients"
    table.number(what, "", max(found["ours"].values()), required=ERROR, **found)
    must_be_right(dict(found["ours"]), f"opflow's {title}")


def chosen_backend(cases: Mapping[str, Case]) -> dict[str, str]:
    """{case: which backend serves it on this device and why}"""
    reasons = {}
    for case in cases.values():
        x = torch.zeros(1, case.channels, *case.shape, device="cuda")
        kept = (*case.n_modes[:-1], case.n_modes[-1] // 2 + 1)
        weight = torch.zeros(*kept, 2, case.channels, case.channels, device="cuda")
        reasons[case.title] = explain_backend(x, weight, case.n_modes)
    return reasons


def notes(options: argparse.Namespace) -> dict[str, Any]:
    """How it was measured, for the notes of a report."""
    return {
        "rounds": options.rounds,
        "peer": peer.name(),
        "protocol": "A B A B in one process; CUDA events around every call, 256 MB written before it; a round takes the median "
        "over 20 ms of calls, a ratio is the median of the rounds' ratios",
        "precision": "float32 on both sides: convolutions of the peer without TF32, except where a row says so",
        "graphs": "torch.cuda.graph of the forward pass, or of the forward pass and the gradients",
    }


def run(options: argparse.Namespace, cases: Mapping[str, Case]) -> None:
    """Measure and write ``spectral_conv_<device>.json``."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda, but torch sees no CUDA device here; leave the option out to measure on the CPU."
        )
    table, timer = Table(), cuda_timing.EventTimer()
    copy = cuda_timing.copy_bandwidth(timer)
    with cuda_timing.convolutions_in_tf32(False):
        blocks(table, options, timer)
        table.number("copy inside the device's memory, read and written", "", copy, "TB/s", sign=">=")
        layers(table, options, cases, timer)
    write_report(
        "spectral_conv",
        table.rows,
        device="cuda",
        notes={**notes(options), "backends": chosen_backend(cases), "details": table.details},
        folder=options.out,
    )
