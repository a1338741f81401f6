"""A PINN residual and its parameter gradient: chunked, in Taylor mode, beside nested reverse mode on all points at once.

A tanh perceptron of 4 layers of 64 at 10,000 points in float64. Values are asserted equal to 1e-12 of the largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import side_by_side
from benchmarks.side_by_side import MODES, Table

EQUAL = 1e-12
POINTS, WIDTH, LAYERS, CHUNK = 10_000, 64, 4, 1000


@dataclass(frozen=True)
class Case:
    """An equation, and for each way to differentiate it the least ratio plain time / its time; None: reported."""

    title: str
    required: dict[str, float | None]


CASES = {
    "burgers": Case(
        "Burgers, order 2", {"reverse, chunked": 1.25, "Taylor, chunked": None, "as chosen, chunked": None}
    ),
    "kdv": Case(
        "Korteweg-de Vries, order 3", {"reverse, chunked": None, "Taylor, chunked": None, "as chosen, chunked": 1.5}
    ),
}


class Residuals:
    """The same loss by every way, on the same network and points; a step is the value and all gradients."""

    def __init__(self, key: str) -> None:
        import torch
        from torch import nn

        from opflow import Batch
        from opflow.layers import MLP
        from opflow.losses import PDEResidual
        from opflow.pde import AutogradDerivatives
        from opflow.problems import Burgers, KortewegDeVries

        torch.manual_seed(0)
        self.model = MLP((2, *[WIDTH] * LAYERS, 1), activation=nn.Tanh()).double()
        self.coords = torch.rand(POINTS, 2, dtype=torch.float64)
        problem = {"burgers": Burgers, "kdv": KortewegDeVries}[key]()
        self.batch = Batch
        self.losses = {
            "plain": PDEResidual(problem, AutogradDerivatives(method="reverse")),
            "reverse, chunked": PDEResidual(problem, AutogradDerivatives(method="reverse"), chunk=CHUNK),
            "Taylor, chunked": PDEResidual(problem, AutogradDerivatives(method="taylor"), chunk=CHUNK),
            "as chosen, chunked": PDEResidual(problem, AutogradDerivatives(), chunk=CHUNK),
        }

    def step(self, way: str) -> Any:
        """The value and the gradients of all parameters."""
        import torch

        (value,) = self.losses[way](self.model, self.batch(coords=self.coords.detach())).values()
        return value.detach(), torch.autograd.grad(value, list(self.model.parameters()))

    def difference(self) -> float:
        """The largest difference of values and gradients from plain ones, over the largest of each.

        Raises:
            AssertionError: they are not equal; what is not equal is not timed.
        """
        import torch

        value, gradients = self.step("plain")
        worst = 0.0
        for way in self.losses:
            other, found = self.step(way)
            worst = max(worst, float((other - value).abs() / value.abs()))
            for a, b in zip(found, gradients, strict=True):
                worst = max(worst, float((a - b).abs().max() / torch.cat([g.flatten() for g in gradients]).abs().max()))
        if not worst <= EQUAL:
            raise AssertionError(f"the residuals and gradients differ by {worst:.2g}.")
        return worst


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a child: {case: {what: seconds per arm and round}} in the allocator mode of this process."""
    from benchmarks.report import allocator

    side_by_side.pin(1)
    measured: dict[str, Any] = {}
    for key in options.cases:
        residuals = Residuals(key)
        arms = {way: lambda way=way, r=residuals: r.step(way) for way in residuals.losses}
        measured[key] = {
            "difference": residuals.difference(),
            "step": side_by_side.interleave(arms, options.rounds, seconds=0.5),
        }
    return {"cases": measured, "allocator": allocator()}


def fill(table: Table, measured: dict[str, Any]) -> None:
    """The rows out of what the children measured: {mode: {case: ...}}."""
    for key in next(iter(measured.values())):
        case = CASES[key]
        for way, required in case.required.items():
            for mode in MODES:
                table.ratio(
                    f"{case.title}: {way}, nested reverse time on all points / its time",
                    mode.column, measured[mode.key][key]["step"], over="plain", under=way, required=required,
                )  # fmt: skip
        table.number(
            f"{case.title}: values and gradients, largest difference / largest value", "",
            measured["default"][key]["difference"], required=EQUAL,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    options = side_by_side.parser(__doc__.split("\n\n", maxsplit=1)[0], list(CASES)).parse_args(arguments)
    if options.measure:
        options.result.write_text(json.dumps(measure(options)))
        return
    options = side_by_side.completed(options, list(CASES))
    if options.device == "cuda":
        raise SystemExit("this benchmark compares ways to differentiate on a CPU; leave --device out.")

    from benchmarks.report import write_report

    children = side_by_side.in_every_mode("benchmarks.pinn_cost", options)
    table = Table()
    fill(table, {mode: child["cases"] for mode, child in children.items()})
    write_report(
        "pinn_cost",
        table.rows,
        device="cpu",
        conditions=side_by_side.conditions(children),
        notes={
            **side_by_side.notes(options),
            "case": f"a tanh perceptron of {LAYERS} layers of {WIDTH} at {POINTS} points, float64, chunks of {CHUNK}",
            "details": table.details,
        },
        folder=options.out,
    )


if __name__ == "__main__":
    main()
