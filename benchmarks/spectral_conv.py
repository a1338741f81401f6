"""The spectral convolution beside neuraloperator's: time, memory and error, on one core in two states of the allocator.

On a CPU it measures in child processes, one per state of the allocator, and writes `spectral_conv_cpu.json` and the picture
`docs/images/spectral_conv.png`. With ``--device cuda`` it measures eagerly and by CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import MODES, Table

ERROR = 5e-7
MEMORY, MEMORY_AMBITIOUS = 0.45, 0.35
PICTURE = side_by_side.ROOT / "docs" / "images" / "spectral_conv.png"


@dataclass(frozen=True)
class Case:
    """A field, the kept modes, and the ratios peer time / our time of a step: (default allocator, equal allocator)."""

    shape: tuple[int, ...]
    channels: int
    n_modes: tuple[int, ...]
    required: tuple[float, float]
    ambitious: tuple[float, float]
    batch: int = 20
    is_long: bool = False
    extras: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The case in a table."""
        points, modes = ("x".join(map(str, values)) for values in (self.shape, self.n_modes))
        return f"{len(self.shape)}D {points}, C={self.channels}, B={self.batch}, {modes} modes"

    def field(self) -> tuple[tuple[int, ...], int, int, tuple[int, ...]]:
        """The arguments of `LayerSides`."""
        return self.shape, self.channels, self.batch, self.n_modes


CASES = {
    "2d_64": Case((64, 64), 32, (24, 24), (2.5, 2), (4, 3), extras=("channels last", "two threads", "transcription")),
    "2d_85": Case((85, 85), 32, (24, 24), (5, 4.5), (9, 8), extras=("channels last",)),
    "2d_128": Case(
        (128, 128),
        32,
        (24, 24),
        (4, 2.4),
        (8, 5),
        extras=("channels last", "two threads", "transcription", "memory"),
    ),
    "2d_241": Case((241, 241), 32, (24, 24), (9, 9), (20, 15), is_long=True),
    "1d_8192": Case((8192,), 64, (32,), (3, 2.2), (5, 4), extras=("two threads", "transcription", "memory")),
    "3d_64": Case((64, 64, 40), 20, (16, 16, 16), (4.5, 3.3), (8, 6), batch=4, extras=("transcription",)),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a child: {case: {what: seconds per arm and round, or errors}} in the allocator mode of this process."""
    from benchmarks.layer_sides import LayerSides, must_be_right
    from benchmarks.report import allocator

    side_by_side.pin(1)
    measured: dict[str, Any] = {}
    for key in options.cases:
        case = CASES[key]
        rounds = max(min(3, options.rounds), options.rounds // 3) if case.is_long else options.rounds
        sides = LayerSides(*case.field())
        errors = sides.errors("ours", "peer", "transcription")
        must_be_right(errors["ours"], f"opflow's layer, {case.title}")
        is_odd = any(n % 2 for n in case.shape[:-1])  # there the released peer is wrong, so only its time is of use
        if not is_odd:
            must_be_right(errors["peer"], f"the peer's layer, {case.title}")
        arms = ["peer", "ours", *(["transcription"] if "transcription" in case.extras else [])]
        result = measured[key] = {"errors": errors, "step": _timed(sides.steps(*arms), rounds)}
        result["forward only"] = _timed(sides.forwards("peer", "ours"), rounds)
        del sides
        if "channels last" in case.extras:
            sides = LayerSides(*case.field(), last=True)
            must_be_right(sides.errors("ours")["ours"], f"opflow's layer with channels last, {case.title}")
            result["channels last"] = _timed(sides.steps("peer", "ours"), rounds)
            del sides
        print(f"{case.title}: step {_median(result['step']):.2f}x", flush=True)
    # Last, since the worker threads stay once they were started.
    for key in [key for key in options.cases if "two threads" in CASES[key].extras]:
        if side_by_side.pin(2):
            sides = LayerSides(*CASES[key].field())
            measured[key]["two threads"] = _timed(sides.steps("peer", "ours"), options.rounds)
    return {"cases": measured, "allocator": allocator()}


def _timed(arms: Any, rounds: int) -> dict[str, list[float]]:
    return side_by_side.interleave(arms, rounds)


def _median(seconds: dict[str, list[float]]) -> float:
    return side_by_side.spread(side_by_side.ratios(seconds, "peer", "ours"))["median"]


def memory(case: str) -> dict[str, float]:
    """{side: peak memory of a step above its inputs, in units of x}; every buffer is handed back when it is freed."""
    return {
        side: side_by_side.child("benchmarks.peak_memory", [case, side], {"MALLOC_MMAP_THRESHOLD_": "65536"})
        for side in ("peer", "ours")
    }


def fill(table: Table, measured: dict[str, Any]) -> None:
    """The rows of the layer out of what the children measured: {mode: {case: ...}}."""
    keys = list(next(iter(measured.values())))
    for key in keys:
        case = CASES[key]
        for mode, required, ambitious in zip(MODES, case.required, case.ambitious, strict=True):
            table.ratio(
                f"layer {case.title}: step, peer time / ours",
                mode.column,
                measured[mode.key][key]["step"],
                required=required,
                ambitious=ambitious,
            )
    for key in keys:
        errors = measured["default"][key]["errors"]
        table.number(
            f"layer {CASES[key].title}: relative L2 error against float64, the largest of y and both gradients",
            "",
            max(errors["ours"].values()),
            required=ERROR,
            **errors,
        )
    titles = {key: f"layer {CASES[key].title}" for key in keys}
    side_by_side.further_rows(table, titles, measured, ("forward only", "channels last", "two threads"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = side_by_side.parser(__doc__.split("\n\n", maxsplit=1)[0], list(CASES)).parse_args(arguments)
    if options.measure:
        options.result.write_text(json.dumps(measure(options)))
        return
    options = side_by_side.completed(options, list(CASES))
    if options.device == "cuda":
        from benchmarks import layer_cuda

        return layer_cuda.run(options, CASES)

    from benchmarks import peer, picture
    from benchmarks.report import write_report

    if peer.neuraloperator() is None:
        print(f"neuraloperator is not installed (pip install -e '.[bench]'); the peer is {peer.TRANSCRIPTION}.")
    children = side_by_side.in_every_mode("benchmarks.spectral_conv", options)
    table = Table()
    fill(table, {mode: child["cases"] for mode, child in children.items()})
    for key in [key for key in options.cases if "memory" in CASES[key].extras or options.quick]:
        peaks = memory(key)
        table.number(
            f"layer {CASES[key].title}: peak memory of a step above its inputs, ours / peer",
            "",
            peaks["ours"] / peaks["peer"],
            "x",
            required=MEMORY if "memory" in CASES[key].extras else None,
            ambitious=MEMORY_AMBITIOUS if "memory" in CASES[key].extras else None,
            in_units_of_x=peaks,
        )
    path = write_report(
        "spectral_conv",
        table.rows,
        device="cpu",
        conditions=side_by_side.conditions(children),
        notes={"peer": peer.name(), **side_by_side.notes(options), "details": table.details},
        folder=options.out,
    )
    is_whole = options.out == side_by_side.ROOT / "benchmarks" / "results"
    picture.draw(json.loads(path.read_text()), PICTURE if is_whole else path.with_suffix(".png"))


if __name__ == "__main__":
    main()
