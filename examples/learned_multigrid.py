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
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opflow import Batch
from opflow.files import claim_folder, sha256, write_bytes, write_json, write_tensors
from opflow.losses.conjugate_gradient import EnergyReduction
from opflow.models import MultigridNetwork
from opflow.plotting import plot_convergence, save_figure
from opflow.problems.elliptic_operators import FAMILIES
from opflow.solvers import AlgebraicMultigrid, ConjugateGradient, FaceStencil, Multigrid
from opflow.training import fit


def main(
    dim: int = 2,
    size: int = 0,
    operators: int = 160,
    batch_size: int = 0,
    tuning_epochs: int = 3,
    epochs: int = 30,
    unrolled: int = 3,
    hidden_channels: int = 16,
    learning_rate: float = 3e-3,
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
        operators: training operators of every family; a quarter as many are drawn for validation.
        batch_size: operators a step; 0 for 4 in two dimensions and 2 in three.
        tuning_epochs: passes over the training operators for the five numbers alone.
        epochs: passes for the network.
        unrolled: steps of conjugate gradients that the gradient goes through.
        hidden_channels: width of the network.
        learning_rate: the highest of the one-cycle schedule.
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
    test_sizes = test_sizes or ((2 * size, 4 * size) if dim == 2 else (2 * size,))

    # Data: operators, and errors that a few steps with the classical cycle have left, which are what a better one has to remove.
    stored: dict[int, FaceStencil] = {}

    def batches(split: str, number: int) -> list[Batch]:
        found = []
        for first in range(0, number, batch_size):
            for family in FAMILIES:
                A = operator(family, range(first, first + batch_size), size, dim, seed=seed, split=split)
                b = A.diagonal().sqrt() * torch.randn(batch_size, *A.shape, dtype=torch.float64)
                b = producible(A, b)
                solved = ConjugateGradient(Multigrid(), rtol=1e-10).solve(A, b).x
                known = len(found) // len(FAMILIES) % 3
                if known:
                    solved = solved - ConjugateGradient(Multigrid(), max_steps=2 * known).solve(A, b).x
                index = len(stored)
                stored[index] = A
                found.append(Batch(target=solved[:, None], index=torch.full((batch_size,), index)))
        return found

    begin = time.perf_counter()
    training, validation = batches("train", operators), batches("validation", operators // 4)
    print(
        f"{len(training)} batches of {batch_size} operators with {size} points per axis, {time.perf_counter() - begin:.0f} s"
    )

    # Training: the five numbers first, then everything from there.
    network = MultigridNetwork.build(dim, hidden_channels)
    loss = EnergyReduction(
        lambda batch: stored[int(batch.index[0])],
        lambda model: Multigrid(coefficients=model, coarsest=64, dtype=torch.float64),
        unrolled,
    )

    @torch.no_grad()
    def rates(model: nn.Module) -> dict[str, float]:
        """The mean of the loss on the validation operators of every family."""
        values = [float(loss(model, batch)["energy"]) for batch in validation]
        return {family: statistics.mean(values[i :: len(FAMILIES)]) for i, family in enumerate(FAMILIES)}

    curves: dict[str, tuple[list[float], list[float]]] = {}

    def train(
        name: str, model: nn.Module, rate: float, epochs: int, score: Callable[[dict[str, float]], float]
    ) -> None:
        """Adam, and the parameters that are best on the validation operators, those at the start included."""
        best, lowest = copy.deepcopy(network.state_dict()), score(rates(network))
        optimizer = torch.optim.Adam(model.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(training), pct_start=0.2)
        curve = curves.setdefault(name, ([], []))
        for record in fit(
            model, EnergyLoss(loss, network), training, optimizer, epochs=epochs, scheduler=schedule, clip_norm=1.0,
            validate=lambda _: score(rates(network)),
        ):  # fmt: skip
            print(f"{name}: {record}")
            curve[0].append(record.seconds)
            curve[1].append(float(record.validation or 0))
            if record.validation is not None and record.validation < lowest:
                best, lowest = copy.deepcopy(network.state_dict()), record.validation
        network.load_state_dict(best)

    begin = time.perf_counter()
    classical = rates(network)
    train("five numbers", network.tuned, 0.05, tuning_epochs, lambda found: statistics.mean(found.values()))
    tuned, five = copy.deepcopy(network.tuned), rates(network)
    # No family may get worse than with the five numbers.
    train("network", network, learning_rate, epochs, lambda found: statistics.mean(found.values()) + 10 * max(0.0, *(found[f] - five[f] for f in FAMILIES)))  # fmt: skip
    seconds = time.perf_counter() - begin
    for family, rate in rates(network).items():
        print(f"validation, {family}: log of the error's reduction a step {classical[family]:.3f}, tuned {five[family]:.3f}, network {rate:.3f}")  # fmt: skip

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
        {name: (x, [2.718281828**v for v in y]) for name, (x, y) in curves.items()},
        xlabel="seconds of training",
        ylabel="factor of the error a step, validation",
    )
    print(f"picture: {save_figure(figure, out / 'training.png')}")
    results = {
        "network over five tuned numbers": ratio, "worse": worse, "seconds": seconds, "rows": rows,
        "validation": {"classical": classical, "five numbers": five, "network": rates(network)},
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
            "validation": results["validation"],
        }
        write_json(out / f"{save}.json", record)
    return ratio


class EnergyLoss(nn.Module):
    """The loss of the whole network, whichever of its parts are trained."""

    def __init__(self, loss: EnergyReduction, network: nn.Module) -> None:
        super().__init__()
        self.loss, self.whole = loss, [network]

    def forward(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """The loss, whichever part `model` is."""
        return self.loss(self.whole[0], batch)


def operator(
    family: str, indices: Sequence[int], points: int, dim: int, *, seed: int = 0, split: str = "train"
) -> FaceStencil:
    """Operators of a family with so many unknowns per axis."""
    source = FAMILIES[family]
    return source.sample(indices, source.grid(points, dim), seed=seed, split=split)


def right_side(A: FaceStencil, seed: int) -> torch.Tensor:
    """A constant and a tenth of noise."""
    noise = torch.randn(1, *A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return producible(A, 1 + 0.1 * noise)


def producible(A: FaceStencil, b: torch.Tensor) -> torch.Tensor:
    """b without what no x gives: its mean on closed parts of the domain, and what lies in obstacles."""
    null = A.null_part(b)
    return b if null is None else b - null


def iterations(A: FaceStencil, M: Any, seed: int) -> int:
    """To a relative residual of 1e-6."""
    solution = ConjugateGradient(M, rtol=1e-6, raise_on_failure=True).solve(A, right_side(A, seed))
    return int(solution.iterations)


def history(A: FaceStencil, M: Any) -> tuple[list[int], list[float]]:
    """The relative residual after every step, down to 1e-10."""
    b = right_side(A, 0)
    norms = [1.0]
    ConjugateGradient(M, rtol=1e-10, callback=lambda _, norm: norms.append(float(norm / b.norm()))).solve(A, b)
    return list(range(len(norms))), norms


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
