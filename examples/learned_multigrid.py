"""
Learned multigrid
=================

A small network reads an elliptic operator once and emits the numbers of its multigrid cycle: relaxation, interpolation and coarse
couplings. The cycle stays linear, symmetric and positive definite, so plain conjugate gradients take it as a preconditioner.

1. draw small random operators: obstacles, jumps, log-normal media, anisotropy, Darcy flow,
2. train five numbers for all of them, then, from there, the network, through a few unrolled steps of conjugate gradients,
3. count iterations on unseen operators of larger sizes, beside the five numbers, classical red-black cycles and PyAMG,
4. draw the relative residuals of one of them.

Run ``python examples/learned_multigrid.py --help`` for the options.
"""

from __future__ import annotations

import copy
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opflow import Batch
from opflow.files import claim_folder, sha256, write_bytes, write_json, write_tensors
from opflow.losses.conjugate_gradient import EnergyReduction
from opflow.models import MultigridNetwork
from opflow.plotting import plot_convergence, save_figure
from opflow.problems.elliptic_operators import FAMILIES
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid
from opflow.training import fit

RTOL = 1e-6


def main(
    dim: int = 2,
    size: int = 0,
    operators: int = 64,
    batch_size: int = 0,
    tuning_epochs: int = 1,
    epochs: int = 8,
    unrolled: int = 3,
    hidden_channels: int = 16,
    learning_rate: float = 3e-3,
    validation_size: int = 0,
    validation_operators: int = 4,
    test_sizes: tuple[int, ...] = (),
    test_operators: int = 4,
    seed: int = 0,
    save: str = "",
    out: Path = Path("runs/learned_multigrid"),
    overwrite: bool = False,
) -> float:
    """Train a cycle on small operators; return its mean iterations on larger unseen ones over those of five tuned numbers.

    Args:
        dim: 2 or 3.
        size: points per axis in training; 0 for 64 in two dimensions and 32 in three.
        operators: training operators of every family.
        batch_size: operators a step; 0 for 4 in two dimensions and 2 in three.
        tuning_epochs: passes over the training operators for the five numbers alone.
        epochs: passes for the network.
        unrolled: steps of conjugate gradients that the gradient goes through.
        hidden_channels: width of the network.
        learning_rate: the highest of the one-cycle schedule.
        validation_size: points per axis of the operators by which parameters are chosen; 0 for 256 in two dimensions and 48 in three.
        validation_operators: how many of every family.
        test_sizes: points per axis of the comparison; none for twice and four times the size (in three dimensions twice).
        test_operators: unseen operators of every family and size.
        seed: of the operators, the weights and the errors.
        save: a name under which the weights are written to `out`, as opflow ships them.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    size = size or (64 if dim == 2 else 32)
    batch_size = batch_size or (4 if dim == 2 else 2)
    validation_size = validation_size or (256 if dim == 2 else 48)
    test_sizes = test_sizes or ((2 * size, 4 * size) if dim == 2 else (2 * size,))

    # Data: operators with a known solution each, and larger ones to choose the parameters by.
    begin = time.perf_counter()
    stored: list[FaceStencil] = []
    training: list[Batch] = []
    for first in range(0, operators, batch_size):
        for family in FAMILIES:
            # Every other medium is three times as smooth: what a grid three times as fine would see of it.
            smooth = first // batch_size % 2 == 1
            A = operator(family, range(first, first + batch_size), size, dim, seed=seed, tau=4.0 if smooth else 12.5)
            b = producible(A, A.diagonal().sqrt() * torch.randn(batch_size, *A.shape, dtype=torch.float64))
            x = ConjugateGradient(Multigrid(), rtol=1e-10).solve(A, b).x
            training.append(Batch(target=x[:, None], index=torch.full((batch_size,), len(stored))))
            stored.append(A)
    held_out = [
        operator(family, range(validation_operators), validation_size, dim, seed=seed, split="validation")
        for family in FAMILIES
    ]
    print(
        f"{len(training)} batches of {batch_size} operators, {size} points per axis: {time.perf_counter() - begin:.0f} s"
    )

    def needed(M: Any) -> Tensor:
        """Iterations to 1e-6 on every operator for validation, with fractions."""
        return torch.cat([fractional_iterations(A, M) for A in held_out])

    # Training: the five numbers first, then everything from there. The errors are those that 0, 4 or 10 steps leave.
    network = MultigridNetwork.build(dim, hidden_channels)
    loss = LogIterations(
        EnergyReduction(
            lambda batch: stored[int(batch.index[0])],
            lambda model: Multigrid(coefficients=model, coarsest=4**dim, dtype=torch.float64),
            unrolled,
            after=lambda batch: (0, 4, 10)[int(batch.index[0]) // len(FAMILIES) % 3],
        ),
        network,
    )
    curves: dict[str, tuple[list[float], list[float]]] = {}

    def train(
        name: str, part: nn.Module, rate: float, epochs: int, bounds: Sequence[tuple[float, Tensor]] = ()
    ) -> None:
        """Adam; keeps the parameters that save most iterations, with a penalty on the operator that most exceeds each bound."""
        start = needed(Multigrid(coefficients=network))

        def score(_: nn.Module) -> float:
            found = needed(Multigrid(coefficients=network))
            beyond = [penalty * (found / bound).log().max().clamp(min=0) for penalty, bound in bounds]
            return float((found / start).log().mean() + sum(beyond))

        with torch.no_grad():
            best, lowest = copy.deepcopy(network.state_dict()), score(part)
        optimizer = torch.optim.Adam(part.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(training), pct_start=0.2)
        curve = curves.setdefault(name, ([], []))
        for record in fit(
            part, loss, training, optimizer, epochs=epochs, scheduler=schedule, clip_norm=1.0, validate=score
        ):
            print(f"{name}: {record}", flush=True)
            curve[0].append(record.seconds)
            curve[1].append(record.loss)
            if record.validation is not None and record.validation < lowest:
                best, lowest = copy.deepcopy(network.state_dict()), record.validation
        network.load_state_dict(best)

    begin = time.perf_counter()
    classical = needed(Multigrid())
    train("five numbers", network.tuned, 0.03, tuning_epochs)
    tuned = copy.deepcopy(network.tuned)
    five = needed(Multigrid(coefficients=tuned))
    # No operator may need more iterations than with the five numbers, nor than with none if that can be had.
    train("network", network, learning_rate, epochs, bounds=[(100.0, five), (3.0, classical)])
    seconds = time.perf_counter() - begin
    kinds = {"classical": None, "five numbers": tuned, "network": network}
    validation = {
        name: dict(
            zip(FAMILIES, needed(Multigrid(coefficients=c)).view(len(FAMILIES), -1).mean(1).tolist(), strict=True)
        )
        for name, c in kinds.items()
    }
    for family in FAMILIES:
        print(f"validation, {family}: " + ", ".join(f"{name} {validation[name][family]:.1f}" for name in kinds))

    # Unseen operators, larger than any in training.
    solvers: dict[str, Any] = {
        "red-black V": Multigrid(),
        "red-black W": Multigrid("W"),
        "five tuned numbers": Multigrid(coefficients=tuned),
        "network": Multigrid(coefficients=network),
    }
    try:
        import pyamg  # noqa: F401

        solvers["Ruge-Stueben"] = AlgebraicMultigrid("ruge-stueben")
    except ImportError:
        print("Ruge-Stueben is left out, as PyAMG is not there; pip install opflow[amg].")
    rows = []
    for points in test_sizes:
        for family in FAMILIES:
            counts: dict[str, list[int]] = {name: [] for name in solvers}
            for i in range(test_operators):
                A = operator(family, [i], points, dim, seed=seed, split="test")
                for name, M in solvers.items():
                    counts[name].append(iterations(A, M, i))
            rows.append({"size": points, "family": family, "iterations": counts})
            medians = ", ".join(f"{name} {statistics.median(n):g} (worst {max(n)})" for name, n in counts.items())
            print(f"{points}^{dim} {family}: iterations to 1e-6: {medians}")
    of = {name: [n for row in rows for n in row["iterations"][name]] for name in solvers}
    ratio = sum(of["network"]) / sum(of["five tuned numbers"])
    worse = sum(a > b for a, b in zip(of["network"], of["five tuned numbers"], strict=True))
    print(f"network over five tuned numbers: {ratio:.2f}; worse on {worse} of {len(of['network'])} operators")

    # The picture: one medium of high contrast.
    A = operator("two-phase", [0], test_sizes[-1], dim, seed=seed, split="test")
    figure = plot_convergence(
        {name: history(A, M) for name, M in solvers.items()}, xlabel="iterations", ylabel="relative residual"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    figure = plot_convergence(
        {name: (x, [math.exp(value) for value in y]) for name, (x, y) in curves.items()},
        xlabel="seconds of training",
        ylabel="iterations a digit of the error",
    )
    print(f"picture: {save_figure(figure, out / 'training.png')}")
    results = {
        "network over five tuned numbers": ratio, "worse": worse, "seconds": seconds, "rows": rows, "validation": validation,
    }  # fmt: skip
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    if save:
        write_tensors(out / f"{save}.safetensors", network.state_dict())
        record = {
            "recipe": network.recipe,
            "sha256": sha256(out / f"{save}.safetensors"),
            "tuned": tuned.numbers.tolist(),
            "command": "python " + shlex.join(["examples/learned_multigrid.py", *sys.argv[1:]]),
            "seconds": round(seconds),
            "validation": validation,
        }
        write_json(out / f"{save}.json", record)
    return ratio


class LogIterations(nn.Module):
    """The logarithm of the iterations a decimal digit of the error costs, whichever part of the network is trained."""

    def __init__(self, reduction: EnergyReduction, network: nn.Module) -> None:
        super().__init__()
        self.reduction, self.whole = reduction, [network]

    def forward(self, part: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The mean over the batch."""
        rates = self.reduction.rates(self.whole[0], batch).clamp(max=-0.02)
        return {"iterations": (math.log(10) / -rates).log().mean()}


def operator(
    family: str,
    indices: Sequence[int],
    points: int,
    dim: int,
    *,
    seed: int = 0,
    split: str = "train",
    tau: float = 12.5,
) -> FaceStencil:
    """Operators of a family with so many unknowns per axis."""
    source = replace(FAMILIES[family], tau=tau)
    return source.sample(indices, source.grid(points, dim), seed=seed, split=split)


def right_side(A: FaceStencil, seed: int) -> Tensor:
    """A constant and a tenth of noise."""
    noise = torch.randn(A.batch, *A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return producible(A, 1 + 0.1 * noise)


def producible(A: FaceStencil, b: Tensor) -> Tensor:
    """b without what no x gives: its mean on closed parts of the domain, and what lies in obstacles."""
    null = A.null_part(b)
    return b if null is None else b - null


def iterations(A: FaceStencil, M: Any, seed: int) -> int:
    """To a relative residual of 1e-6."""
    return int(ConjugateGradient(M, rtol=RTOL, raise_on_failure=True).solve(A, right_side(A, seed)).iterations)


def fractional_iterations(A: FaceStencil, M: Any) -> Tensor:
    """The same for a batch of operators (batch,), between the last two residuals by their logarithms."""
    b = right_side(A, 0)
    tolerance = RTOL * b.flatten(1).norm(dim=1)
    norms = [tolerance / RTOL]
    ConjugateGradient(M, rtol=RTOL, callback=lambda _, norm: norms.append(norm.clone())).solve(A, b)
    residuals = torch.stack(norms)
    last = (residuals > tolerance).long().sum(0).clamp(max=len(norms) - 1)
    ends = [residuals.gather(0, (last - back)[None])[0] for back in (1, 0)]
    return last - 1 + (ends[0] / tolerance).log() / (ends[0] / ends[1]).log()


def history(A: FaceStencil, M: Any) -> tuple[list[int], list[float]]:
    """The relative residual after every step, down to 1e-10."""
    b = right_side(A, 0)
    norms = [1.0]
    ConjugateGradient(M, rtol=1e-10, callback=lambda _, norm: norms.append(float(norm / b.norm()))).solve(A, b)
    return list(range(len(norms))), norms


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
