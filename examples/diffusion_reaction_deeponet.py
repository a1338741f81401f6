"""
Diffusion and reaction by a physics-informed DeepONet
=====================================================

Learns the operator from the source u(x) to the concentration s(t, x) of s_t = D s_xx + k s^2 + u, s = 0 at the ends of (0, 1)
and at t = 0, without one solution   (Wang, Wang and Perdikaris 2021, "Learning the solution operator of parametric PDEs"):

1. draw random sources at sensors; the loss is the residual of the equation at points that all sources share, where Taylor mode
   finds the derivatives of all of them in one pass of the trunk,
2. s = t x (1 - x) N(u)(t, x) satisfies the initial and boundary conditions whatever the DeepONet N is,
3. train: Adam with new points in every epoch, then limited-memory quasi-Newton,
4. compare with the solver on sources that training never saw; draw concentrations and how the error fell.

Run ``python examples/diffusion_reaction_deeponet.py --help`` for the options.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.layers import HardConstraint
from opflow.losses import PDEResidual, relative_errors
from opflow.models import DeepONet
from opflow.pde import AutogradDerivatives
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import DiffusionReaction
from opflow.training import LimitedMemoryBFGS, fit

TIMES = 21  # where concentrations are compared, 0 to 1


def main(
    sensors: int = 100,
    samples: int = 500,
    test_samples: int = 100,
    points: int = 500,
    basis: int = 50,
    hidden: tuple[int, ...] = (50, 50, 50),
    adam_steps: int = 1000,
    iterations: int = 2000,
    learning_rate: float = 3e-3,
    seed: int = 0,
    out: Path = Path("runs/diffusion_reaction_deeponet"),
    overwrite: bool = False,
) -> float:
    """Train without data; return the mean relative L2 error on unseen sources.

    Args:
        sensors: nodes of (0, 1) where the branch sees the source.
        samples: sources of the training.
        test_samples: unseen sources.
        points: collocation points, the same for all sources.
        basis: products of branch and trunk that are summed.
        hidden: widths of the hidden layers of the trunk; the branch has one of the first width.
        adam_steps: with all sources in each, new points every hundred.
        iterations: of the quasi-Newton method, new points every 500.
        learning_rate: of Adam at the start of its cosine schedule.
        seed: of weights and points; the sources have seeds of their own.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    problem, grid = DiffusionReaction(), Grid(sensors)
    sources = problem.sample(samples, grid)["source"]
    moments = torch.linspace(0, 1, TIMES, dtype=torch.float64)
    unseen, truth, reference = solved(problem, grid, moments, test_samples)
    print(f"reference, per source: {reference}")

    # The model, and the residual as the loss: of the sources, values at the points are all that it needs.
    torch.manual_seed(seed)
    operator = DeepONet.build(
        sensors, 2, basis=basis, branch=hidden[:1], trunk=hidden, activation="tanh", domain=((0.0, 1.0), (0.0, 1.0))
    )
    model = HardConstraint(
        operator,
        lift=lambda y: 0.0 * y[..., :1],
        distance=lambda y: y[..., :1] * y[..., 1:] * (1 - y[..., 1:]),
        conditions=("initial", "dirichlet"),
    ).double()
    loss = PDEResidual(problem, AutogradDerivatives(method="taylor"))
    collocation = SharedPoints(sources, points, seed)
    print(f"model: DeepONet with {sum(p.numel() for p in model.parameters()):,} parameters")
    everywhere = torch.cartesian_prod(moments, grid.coordinates(0))
    errors: list[tuple[float, float]] = []

    @torch.no_grad()
    def predicted() -> Tensor:
        return model(unseen[:, None], everywhere)[..., 0].view(truth.shape)

    # Training.
    seconds, began = 0.0, time.process_time()
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps)
    quasi_newton = LimitedMemoryBFGS(model.parameters(), iterations=50)
    stages = [(adam, schedule, adam_steps // 100, 100), (quasi_newton, None, iterations // 500, 10)]
    for optimizer, scheduler, epochs, steps in stages:
        collocation.steps = steps
        for record in fit(model, loss, collocation, optimizer, epochs=max(1, epochs), scheduler=scheduler):
            collocation.draw()
            seconds += time.process_time() - began
            errors.append((seconds, float(relative_errors(predicted()[:, None], truth[:, None]).mean())))
            print(f"{record}, error {errors[-1][1]:.2e}, {seconds:.0f} s", flush=True)
            began = time.process_time()

    # What came out.
    began = time.process_time()
    u = predicted()
    per_source = (time.process_time() - began) / test_samples
    each = relative_errors(u[:, None], truth[:, None])
    error = float(each.mean())
    row = {
        "error": error,
        "largest error": float(each.max()),
        "seconds": seconds,
        "seconds per source": per_source,
        "solutions seen": 0,
    }
    print(f"relative L2 error {error:.2e} on {test_samples} unseen sources, no solution seen, {seconds:.0f} s of CPU")
    settings = {
        "sensors": sensors, "samples": samples, "points": points, "basis": basis, "hidden": list(hidden),
        "adam_steps": adam_steps, "iterations": iterations,
    }  # fmt: skip
    write_json(
        out / "results.json",
        {"rows": {"physics-informed DeepONet": row}, "reference": reference, "settings": settings},
    )
    plane = Grid((sensors, TIMES), axes=("x", "t"))
    drawings = [
        {"source": unseen[i, :, None].expand(-1, TIMES), "concentration": truth[i].mT, "DeepONet": u[i].mT}
        for i in range(min(3, test_samples))
    ]
    figure = plot_fields(drawings, plane, input="source", reference="concentration", prediction="DeepONet")
    print(f"picture: {save_figure(figure, out / 'concentrations.png')}")
    figure = plot_convergence(
        {"unseen sources": tuple(zip(*errors, strict=True))}, xlabel="seconds of CPU", ylabel="relative L2"
    )
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    return error


class SharedPoints:
    """All sources with one set of points (t, x), t at random and x at the sensors, where the sources are known; `draw` draws it anew."""

    def __init__(self, sources: Tensor, points: int, seed: int) -> None:
        self.sources, self.points, self.steps = sources, points, 1
        self.sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed)
        self.draw()

    def draw(self) -> None:
        """New points."""
        t, x = self.sobol.draw(self.points).double().unbind(1)
        nodes = self.sources.shape[1]
        place = 1 + (x * (nodes - 2)).long().clamp(max=nodes - 3)  # at the ends nothing is left of the equation
        coords = torch.stack([t, place / (nodes - 1)], 1)
        self.batch = Batch(
            input=self.sources[:, None], coords=coords, parameters={"source": self.sources[:, place].contiguous()}
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self.batch


def solved(problem: DiffusionReaction, grid: Grid, moments: Tensor, n: int) -> tuple[Tensor, Tensor, dict]:
    """Unseen sources (n, sensors), concentrations (n, time, sensors) from four times as many nodes, and what is known of them."""
    found, seconds = [], 0.0
    for factor in (1, 2, 4):
        finer = grid.with_shape(factor * (grid.shape[0] - 1) + 1)
        inputs = problem.sample(n, finer, split="test")
        began = time.process_time()
        found.append(problem.solve(inputs, finer, times=moments)["concentration"][..., ::factor])
        seconds = time.process_time() - began

    def difference(a: Tensor, b: Tensor) -> float:
        return float(relative_errors(a[:, None], b[:, None]).mean())

    reference = {
        "method": f"ETDRK4, differences of second order on {finer.shape[0]} nodes",
        "error": difference(found[1], found[2]) / 3,
        "seconds": seconds / n,
        f"error on {grid.shape[0]} nodes": difference(found[0], found[2]),
    }
    return inputs["source"][:, ::4], found[2], reference


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
