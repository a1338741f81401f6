"""A training step of MgNO beside the straightforward torch form of the same network with the same weights.

The outputs are asserted equal to 1e-5 of the largest value and the numbers of parameters equal.
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
PLAIN = "the same network in convolution modules of torch"


@dataclass(frozen=True)
class Case:
    """The published model on a square grid, and the least ratio plain time / our time of a step; None: reported."""

    size: int
    batch: int = 8
    required: float | None = None

    @property
    def title(self) -> str:
        """The case in a table."""
        return f"MgNO {self.size}x{self.size}, C=24, 6 levels, B={self.batch}"


CASES = {"64": Case(64, required=1.0), "128": Case(128), "64_single": Case(64, batch=1)}


class MgNOSides:
    """The published model and its plain form; a step is the forward pass and all gradients."""

    def __init__(self, case: Case, device: str = "cpu") -> None:
        import torch

        from benchmarks.mgno_plain import plain_of
        from opflow.models import MgNO

        torch.manual_seed(0)
        ours = MgNO.build(impose=False).to(device)
        self.models = {"plain": plain_of(ours), "ours": ours}
        self.x, self.g = (torch.randn(case.batch, 1, case.size, case.size).to(device) for _ in range(2))

    def step(self, side: str) -> object:
        """The output and the gradients of all parameters."""
        import torch

        model = self.models[side]
        y = model(self.x)
        return y.detach(), *torch.autograd.grad(y, list(model.parameters()), self.g)

    def forward(self, side: str) -> Any:
        """The output alone."""
        import torch

        with torch.no_grad():
            return self.models[side](self.x)

    def arms(self, method: str) -> dict[str, Any]:
        """What is timed, by side."""
        return {side: lambda side=side: getattr(self, method)(side) for side in self.models}


def checked(sides: MgNOSides, case: Case) -> float:
    """The largest difference of the outputs over the largest value.

    Raises:
        AssertionError: outputs or numbers of parameters differ; models that are not equal are not timed.
    """
    counts = {side: sum(p.numel() for p in model.parameters()) for side, model in sides.models.items()}
    plain, ours = sides.forward("plain"), sides.forward("ours")
    difference = float((plain - ours).abs().max() / plain.abs().max())
    if len(set(counts.values())) != 1 or not difference <= EQUAL:
        raise AssertionError(f"{case.title}: parameters {counts}, outputs differ by {difference:.2g}.")
    return difference


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a child: {case: {what: seconds per arm and round}} in the allocator mode of this process."""
    from benchmarks.report import allocator

    side_by_side.pin(1)
    measured: dict[str, Any] = {}
    for key in options.cases:
        sides = MgNOSides(CASES[key])
        measured[key] = {
            "difference": checked(sides, CASES[key]),
            "step": side_by_side.interleave(sides.arms("step"), options.rounds),
            "forward only": side_by_side.interleave(sides.arms("forward"), options.rounds),
        }
        median = side_by_side.spread(side_by_side.ratios(measured[key]["step"], "plain", "ours"))["median"]
        print(f"{CASES[key].title}: step {median:.2f}x", flush=True)
    return {"cases": measured, "allocator": allocator()}


def fill(table: Table, measured: dict[str, Any]) -> None:
    """The rows out of what the children measured: {mode: {case: ...}}."""
    for what in ("step", "forward only"):
        for key in next(iter(measured.values())):
            case = CASES[key]
            for mode in MODES:
                table.ratio(
                    f"{case.title}: {what}, plain torch time / ours",
                    mode.column,
                    measured[mode.key][key][what],
                    over="plain",
                    required=case.required if what == "step" else None,
                )
    for key, result in measured["default"].items():
        table.number(
            f"{CASES[key].title}: output, largest difference / largest value", "", result["difference"], required=EQUAL
        )


def run_on_cuda(options: argparse.Namespace) -> None:
    """Measure and write ``mgno_step_<device>.json``."""
    import torch

    from benchmarks import cuda_timing
    from benchmarks.layer_cuda import case as guarded
    from benchmarks.layer_cuda import compare, notes
    from benchmarks.report import write_report

    if not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda, but torch sees no CUDA device here; leave the option out to measure on the CPU."
        )
    table, timer = Table(), cuda_timing.EventTimer()
    with cuda_timing.convolutions_in_tf32(False):
        for key in options.cases:
            title = CASES[key].title
            with guarded(table, title):
                sides = MgNOSides(CASES[key], "cuda")
                table.number(
                    f"{title}: output, largest difference / largest value",
                    "",
                    checked(sides, CASES[key]),
                    required=EQUAL,
                )
                for what, method in (("step", "step"), ("forward only", "forward")):
                    arms = sides.arms(method)
                    compare(table, f"{title}: {what}", {"peer": arms["plain"], "ours": arms["ours"]}, options, timer)
    write_report(
        "mgno_step",
        table.rows,
        device="cuda",
        notes={**notes(options), "peer": PLAIN, "details": table.details},
        folder=options.out,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = side_by_side.parser(__doc__.split("\n\n", maxsplit=1)[0], list(CASES)).parse_args(arguments)
    if options.measure:
        options.result.write_text(json.dumps(measure(options)))
        return
    options = side_by_side.completed(options, list(CASES))
    if options.device == "cuda":
        return run_on_cuda(options)

    from benchmarks.report import write_report

    children = side_by_side.in_every_mode("benchmarks.mgno_step", options)
    table = Table()
    fill(table, {mode: child["cases"] for mode, child in children.items()})
    write_report(
        "mgno_step",
        table.rows,
        device="cpu",
        conditions=side_by_side.conditions(children),
        notes={**side_by_side.notes(options), "details": table.details},
        folder=options.out,
    )


if __name__ == "__main__":
    main()
