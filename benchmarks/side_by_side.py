"""Several implementations side by side in one process: allocator modes, interleaved timing, medians of ratios, rows.

A benchmark runs itself again once per allocator mode, because the allocator reads its environment before a program starts.
This module imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import Row

ROOT = Path(__file__).parents[1]
SCRATCH = ROOT / "runs" / "benchmarks"


@dataclass(frozen=True)
class Mode:
    """A state of the memory allocator: its environment, and the column of the table that it fills."""

    key: str
    column: str
    environment: Mapping[str, str]


# The allocator of glibc returns large blocks to the system and faults them in again, page by page, at the next operation.
# In the second mode it keeps them, so neither side pays that.
MODES = (
    Mode("default", "default allocator", {}),
    Mode("equal", "equal allocator", {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}),
)


def parser(description: str, cases: Sequence[str]) -> argparse.ArgumentParser:
    """The command line that the side-by-side benchmarks share."""
    shared = argparse.ArgumentParser(description=description)
    shared.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    shared.add_argument(
        "--rounds", type=int, default=9, help="rounds of A B (a third of it, 3 at least, for long cases)"
    )
    shared.add_argument("--cases", nargs="+", choices=cases, default=list(cases), metavar="CASE", help=", ".join(cases))
    shared.add_argument("--quick", action="store_true", help="two rounds of the first case: does everything work?")
    shared.add_argument("--out", type=Path, default=None, help="folder; a part of the cases goes to runs/benchmarks")
    shared.add_argument("--measure", choices=[mode.key for mode in MODES], help=argparse.SUPPRESS)
    shared.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return shared


def completed(options: argparse.Namespace, cases: Sequence[str]) -> argparse.Namespace:
    """The options with what --quick means; results of a part of the cases stay out of benchmarks/results."""
    if options.quick:
        options.rounds, options.cases = 2, options.cases[:1]
    if options.rounds < 1:
        raise SystemExit(f"--rounds is {options.rounds}; at least one round must run.")
    if options.out is None:
        is_whole = not options.quick and set(options.cases) == set(cases)
        options.out = ROOT / "benchmarks" / "results" if is_whole else SCRATCH
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Our environment with another allocator mode, and without the tunables that would blur it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "THP_MEM_"))}
    kept.pop("GLIBC_TUNABLES", None)
    # The profiler announces itself on every use otherwise.
    return kept | {"WANDB_MODE": "disabled", "KINETO_LOG_LEVEL": "5"} | dict(changes)


def child(module: str, arguments: Sequence[str], changes: Mapping[str, str]) -> Any:
    """Run ``python -m module`` in another allocator mode and return the JSON that it leaves in its ``--result`` file."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", module, *arguments, "--result", str(result)]
        subprocess.run(command, check=True, cwd=ROOT, env=environment(changes))
        return json.loads(result.read_text())


def in_every_mode(module: str, options: argparse.Namespace) -> dict[str, Any]:
    """{mode: what the benchmark measured in it}"""
    arguments = ["--rounds", str(options.rounds), "--cases", *options.cases, *(["--quick"] if options.quick else [])]
    measured = {}
    for mode in MODES:
        print(f"--- {mode.column}", flush=True)
        measured[mode.key] = child(module, [*arguments, "--measure", mode.key], mode.environment)
    return measured


# --- inside a child -------------------------------------------------------------------------------------------------

_ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(threads: int) -> bool:
    """Use so many threads on so many cores; False where this process may not use that many."""
    import torch

    if threads > max(1, len(_ALLOWED)):
        return False
    if _ALLOWED:
        os.sched_setaffinity(0, _ALLOWED[:threads])
    torch.set_num_threads(threads)
    return True


def interleave(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    seconds: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every arm in every round, measured A B C, A B C, ... after two calls each to warm up.

    A round calls an arm until about `seconds` have passed, one time at least; freeing what it returned counts as its time.
    """
    repeats = {}
    for name, call in arms.items():
        call()
        start = clock()
        call()
        repeats[name] = min(100, max(1, math.ceil(seconds / max(clock() - start, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in arms}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in arms.items():
                start = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - start) / repeats[name])
    finally:
        gc.enable()
    return times


# --- numbers and rows -----------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and range."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": rounded(quartiles[1]),
        "quartiles": [rounded(quartiles[0]), rounded(quartiles[2])],
        "range": [rounded(min(values)), rounded(max(values))],
    }


def ratios(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """Time of one arm / time of another, round by round."""
    return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]


def rounded(value: float) -> float:
    """Five digits: more says nothing about a time, and results are read by people."""
    return float(f"{value:.5g}")


class Table:
    """Collects rows and, beside each, how the number came about."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.details: list[dict[str, Any]] = []

    def ratio(
        self,
        what: str,
        column: str,
        seconds: Mapping[str, Sequence[float]],
        *,
        over: str = "peer",
        under: str = "ours",
        required: float | None = None,
        ambitious: float | None = None,
    ) -> None:
        """A row: the median over the rounds of the time of `over` / the time of `under`."""
        per_round = ratios(seconds, over, under)
        detail = spread(per_round) | {
            "ratio_of_fastest": rounded(min(seconds[over]) / min(seconds[under])),
            "seconds": {name: [rounded(t) for t in times] for name, times in seconds.items()},
        }
        self._add(what, column, statistics.median(per_round), "x", required, ambitious, ">=", detail)

    def number(
        self,
        what: str,
        column: str,
        value: float,
        unit: str = "",
        *,
        required: float | None = None,
        ambitious: float | None = None,
        sign: str = "<=",
        **detail: Any,
    ) -> None:
        """A row with one number, asked to be at most (or, by `sign`, at least) what is required."""
        self._add(what, column, value, unit, required, ambitious, sign, detail)

    def _add(
        self,
        what: str,
        column: str,
        value: float,
        unit: str,
        required: float | None,
        ambitious: float | None,
        sign: str,
        detail: dict[str, Any],
    ) -> None:
        from benchmarks.report import Row

        def reaches(limit: float | None) -> bool:
            return limit is None or (value >= limit if sign == ">=" else value <= limit)

        asked = "reported" if required is None else f"{sign} {required:g}{'x' if unit == 'x' else f' {unit}'.rstrip()}"
        self.rows.append(Row(what, rounded(value), unit, asked, reaches(required), column))
        goal = {} if ambitious is None else {"ambitious": ambitious, "ambitious_reached": reaches(ambitious)}
        self.details.append({"what": what, "column": column, **goal, **detail})


TRANSCRIPTION_WITHIN = 0.05  # of the time of the peer itself


def further_rows(table: Table, titles: Mapping[str, str], measured: Mapping[str, Any], whats: Sequence[str]) -> None:
    """The rows that are only reported, and how far the transcription of the peer is from the peer in time.

    Args:
        titles: the cases, as rows name them.
        measured: {mode: {case: {what: seconds per arm and round}}}.
    """
    for what in whats:
        for key, title in titles.items():
            for mode in MODES:
                if what in measured[mode.key][key]:
                    table.ratio(f"{title}: {what}, peer time / ours", mode.column, measured[mode.key][key][what])
    for key, title in titles.items():
        for mode in MODES:
            seconds = measured[mode.key][key]["step"]
            if "transcription" not in seconds:
                continue
            of_peer = spread(ratios(seconds, "transcription", "peer"))
            table.number(
                f"{title}: |transcription of the peer / peer - 1|, time of a step",
                mode.column,
                100 * abs(of_peer["median"] - 1),
                "%",
                required=100 * TRANSCRIPTION_WITHIN,
                transcription_over_peer=of_peer,
            )


def conditions(children: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the machine's description says of processes that measured on one core in several allocator modes."""
    columns = {mode.key: mode.column for mode in MODES}
    return {
        "threads": "1, pinned to one core (2 where a row says so)",
        "allocator": ", ".join(f"{columns[key]}: {child['allocator']}" for key, child in children.items()),
    }


def notes(options: argparse.Namespace) -> dict[str, Any]:
    """How it was measured, for the notes of a report."""
    return {
        "rounds": options.rounds,
        "protocol": "A B A B in one process after two calls of each; a ratio is the median of the rounds' ratios; a round "
        "repeats a call for 0.1 s",
        "equal_allocator": "freed memory is kept and used again, so neither side pays page faults",
    }
