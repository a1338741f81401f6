"""A training step of a whole FNO beside neuraloperator's, the weights brought over by `from_neuraloperator`.

The outputs are asserted equal to 1e-5 of the largest value and the numbers of parameters equal. At odd sizes the released
peer computes something else; there only its time is of use, and our output is compared with a float64 reference of ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import MODES, Table

EQUAL = 1e-5


@dataclass(frozen=True)
class Case:
    """A model, and the ratios peer time / our time of a step: (default allocator, equal allocator); None: reported."""

    shape: tuple[int, ...]
    channel_mlp: bool = True
    required: tuple[float, float] | tuple[None, None] = (None, None)
    ambitious: tuple[float, float] | tuple[None, None] = (None, None)
    channels: int = 32
    batch: int = 20
    n_modes: tuple[int, ...] = (24, 24)
    extras: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The case in a table."""
        points, modes = ("x".join(map(str, values)) for values in (self.shape, self.n_modes))
        perceptron = "" if self.channel_mlp else ", no channel MLP"
        return f"{len(self.shape)}D {points}, C={self.channels}, B={self.batch}, {modes} modes{perceptron}"

    def field(self) -> tuple[tuple[int, ...], int, int, tuple[int, ...]]:
        """The arguments of `ModelSides`."""
        return self.shape, self.channels, self.batch, self.n_modes


CASES = {
    "2d_64": Case((64, 64), True, (1.7, 1.5), (3, 2.5), extras=("two threads", "transcription", "profile")),
    "2d_85": Case((85, 85), True, (2.5, 2.2), (4, 3.5)),
    "2d_64_no_mlp": Case((64, 64), False),
    "2d_85_no_mlp": Case((85, 85), False),
}


def checked(sides: Any, case: Case) -> dict[str, float]:
    """The differences of the sides.

    Raises:
        AssertionError: outputs or numbers of parameters differ; models that are not equal are not timed.
    """
    counts = sides.parameter_counts()
    if len(set(counts.values())) != 1:
        raise AssertionError(f"FNO {case.title}: the numbers of parameters differ: {counts}.")
    errors = sides.errors()
    is_odd = any(n % 2 for n in case.shape[:-1])
    for name in ("output, ours and float64", *(() if is_odd else ("output, ours and the peer",))):
        if not errors[name] <= EQUAL:
            raise AssertionError(f"FNO {case.title}: {name} differ by {errors[name]:.2g} of the largest value.")
    return errors


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a child: {case: {what: seconds per arm and round, or differences}} in the allocator mode of this process."""
    from benchmarks.model_sides import ModelSides, profile
    from benchmarks.report import allocator

    side_by_side.pin(1)
    measured: dict[str, Any] = {}
    for key in options.cases:
        case = CASES[key]
        sides = ModelSides(*case.field(), channel_mlp=case.channel_mlp)
        result = measured[key] = {"errors": checked(sides, case), "parameters": sides.parameter_counts()["ours"]}
        arms = ["peer", "ours", *(["transcription"] if "transcription" in case.extras else [])]
        result["step"] = side_by_side.interleave(sides.steps(*arms), options.rounds)
        result["forward only"] = side_by_side.interleave(sides.forwards("peer", "ours"), options.rounds)
        if options.measure == "default" and "profile" in case.extras:
            result["profile"] = {side: profile(sides, side) for side in ("peer", "ours")}
        median = side_by_side.spread(side_by_side.ratios(result["step"], "peer", "ours"))["median"]
        print(f"{case.title}: step {median:.2f}x", flush=True)
    # Last, since the worker threads stay once they were started.
    for key in [key for key in options.cases if "two threads" in CASES[key].extras]:
        if side_by_side.pin(2):
            sides = ModelSides(*CASES[key].field(), channel_mlp=CASES[key].channel_mlp)
            measured[key]["two threads"] = side_by_side.interleave(sides.steps("peer", "ours"), options.rounds)
    return {"cases": measured, "allocator": allocator()}


def fill(table: Table, measured: dict[str, Any]) -> None:
    """The rows of the models out of what the children measured: {mode: {case: ...}}."""
    keys = list(next(iter(measured.values())))
    for key in keys:
        case, what = CASES[key], f"FNO {CASES[key].title}: step, peer time / ours"
        for mode, required, ambitious in zip(MODES, case.required, case.ambitious, strict=True):
            seconds = measured[mode.key][key]["step"]
            table.ratio(what, mode.column, seconds, required=required, ambitious=ambitious)
    for key in keys:
        case, errors = CASES[key], measured["default"][key]["errors"]
        is_odd = any(n % 2 for n in case.shape[:-1])
        name = "output, ours and float64" if is_odd else "output, ours and the peer"
        table.number(
            f"FNO {case.title}: {name}, largest difference / largest value",
            "",
            errors[name],
            required=EQUAL,
            differences=errors,
            parameters=measured["default"][key]["parameters"],
        )
    titles = {key: f"FNO {CASES[key].title}" for key in keys}
    side_by_side.further_rows(table, titles, measured, ("forward only", "two threads"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = side_by_side.parser(__doc__.split("\n\n", maxsplit=1)[0], list(CASES)).parse_args(arguments)
    if options.measure:
        options.result.write_text(json.dumps(measure(options)))
        return
    options = side_by_side.completed(options, list(CASES))
    if options.device == "cuda":
        from benchmarks import model_cuda

        return model_cuda.run(options)

    from benchmarks import peer
    from benchmarks.report import write_report

    if peer.neuraloperator() is None:
        print(f"neuraloperator is not installed (pip install -e '.[bench]'); the peer is {peer.TRANSCRIPTION}.")
    children = side_by_side.in_every_mode("benchmarks.train_step", options)
    measured = {mode: child["cases"] for mode, child in children.items()}
    table = Table()
    fill(table, measured)
    profiles = {CASES[key].title: case["profile"] for key, case in measured["default"].items() if "profile" in case}
    write_report(
        "train_step",
        table.rows,
        device="cpu",
        conditions=side_by_side.conditions(children),
        notes={
            "peer": peer.name(),
            **side_by_side.notes(options),
            "share_of_cpu_time_in_percent": profiles,
            "details": table.details,
        },
        folder=options.out,
    )


if __name__ == "__main__":
    main()
