"""
Burgers' equation by a physics-informed neural operator
=======================================================

One Fourier neural operator maps an initial velocity u0(x) to u(t, x) on a space-time grid, u = u0 + t N(u0). It is trained in
three ways that differ in the loss only   (Li et al. 2021, "Physics-informed neural operator"):

1. draw random initial velocities, and solve a few of them,
2. train on the few solutions alone; on the few and on the residual u_t + u u_x - nu u_xx of velocities that nobody
   solved; on the residual alone, without data,
3. compare all three on unseen velocities, and with what the spectral solver needs for the same,
4. draw a solution, and how the errors fell.

Derivatives are spectral in x, which is periodic, and differences of second order in t: the residual cannot do better than
they do, and their own error, that of the solution that makes the discrete residual vanish, is measured too.

Run ``python examples/burgers_pino.py --help`` for the options.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opflow import Batch, Grid
from opflow.files import claim_folder, write_json
from opflow.layers import HardInitial
from opflow.losses import DataMisfit, PDEResidual, relative_errors, relative_l2
from opflow.models import FNO
from opflow.pde import GridDerivatives
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import Burgers
from opflow.training import evaluate, fit


def main(
    size: int = 64,
    times: int = 33,
    solved: int = 20,
    unsolved: int = 500,
    test_samples: int = 50,
    viscosity: float = 0.02,
    steps: int = 800,
    batch_size: int = 8,
    hidden_channels: int = 20,
    modes: int = 16,
    learning_rate: float = 3e-3,
    residual_weight: float = 1.0,
    seed: int = 0,
    out: Path = Path("runs/burgers_pino"),
    overwrite: bool = False,
) -> float:
    """Train three times and compare; return the mean relative L2 error of the operator that saw no data.

    Args:
        size: points of the circle.
        times: nodes in time, from 0 to 1.
        solved: initial velocities with solutions, the data.
        unsolved: initial velocities without.
        test_samples: unseen velocities.
        viscosity: nu.
        steps: of the optimiser, for each of the three.
        batch_size: velocities a step, of the solved ones and of the others each.
        hidden_channels: width of the network.
        modes: of its spectral convolutions, per axis.
        learning_rate: the highest of the one-cycle schedule.
        residual_weight: of the residual beside the misfit.
        seed: of the weights and of the order of the velocities, which have seeds of their own.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    problem = Burgers(viscosity=viscosity, alpha=3.0, sigma=5.0**3)
    space = Grid(size, layout="periodic")
    grid = Grid((times, size), layout=("nodes", "periodic"), axes=("t", "x"))
    moments = grid.coordinates(0)

    # Data; sample i is one function on every grid.
    drawn = problem.sample(range(solved, solved + unsolved), space)["initial"].float()[:, None]
    few = problem.sample(solved, space)
    data = Batch(
        input=few["initial"].float()[:, None],
        target=problem.solve(few, space, times=moments)["velocity"].float()[:, None],
    )
    unseen = problem.sample(test_samples, space, split="test")
    began = time.process_time()
    truth = problem.solve(unseen, space, times=moments, rtol=1e-10)["velocity"]
    reference = {"method": f"ETDRK4, {size} modes", "seconds": (time.process_time() - began) / test_samples}
    fine = Grid(4 * size, layout="periodic")
    finer = problem.solve(problem.sample(test_samples, fine, split="test"), fine, times=moments)["velocity"][..., ::4]
    reference["error"] = float(relative_errors(truth[:, None], finer[:, None]).mean())
    began = time.process_time()
    rough = problem.solve(unseen, space, times=moments, rtol=1e-3)["velocity"]
    reference["at a tolerance of 1e-3"] = {
        "seconds": (time.process_time() - began) / test_samples,
        "error": float(relative_errors(rough[:, None], truth[:, None]).mean()),
    }
    print(f"reference, per velocity: {reference}")
    made = discrete_solution(problem, grid, truth[0])
    floor = float((made - truth[0]).norm() / truth[0].norm())
    print(f"error of the derivatives on this grid, first velocity: {floor:.1e}")
    test = Batch(input=unseen["initial"].float()[:, None], target=truth.float()[:, None])

    # The loss. At t = 0 the value is given, and there is no residual to make small.
    weight = (grid.points()[..., 0] > 0).float()
    misfit = DataMisfit(relative_l2, on="solved")
    residual = PDEResidual(problem, GridDerivatives(grid), on="unsolved")
    losses = {
        "data only": misfit,
        "data and residual": misfit + residual_weight * residual,
        "residual only": residual,
    }
    rows, histories, predictions = {}, {}, {}
    for name, loss in losses.items():
        torch.manual_seed(seed)
        fno = FNO.build((modes, modes), 1, 1, hidden_channels, padding=(0.25, 0.0), layout=("nodes", "periodic"))
        model = HardInitial(fno, times)
        batches = Pairs(data, drawn, weight, batch_size, steps=max(1, steps // 10), seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, 10 * len(batches), pct_start=0.2)
        history: list[tuple[int, float]] = []
        seconds, began = 0.0, time.process_time()
        for record in fit(model, loss, batches, optimizer, epochs=10, scheduler=scheduler, clip_norm=1.0):
            seconds += time.process_time() - began
            history.append((record.step, evaluate(model, [test], relative_l2)))
            print(f"{name}: {record}, error {history[-1][1]:.2%}", flush=True)
            began = time.process_time()
        with torch.no_grad():
            began = time.process_time()
            predictions[name] = torch.cat([model(part) for part in test.input.split(batch_size)])
            per_velocity = (time.process_time() - began) / test_samples
        errors = relative_errors(predictions[name], test.target)
        rows[name] = {
            "error": float(errors.mean()),
            "largest error": float(errors.max()),
            "seconds": seconds,
            "seconds per velocity": per_velocity,
            "solutions seen": 0 if name == "residual only" else solved,
        }
        histories[name] = tuple(zip(*history, strict=True))
        print(
            f"{name}: relative L2 {rows[name]['error']:.2%} on {test_samples} unseen velocities, {seconds:.0f} s of CPU"
        )

    settings = {
        "size": size, "times": times, "solved": solved, "unsolved": unsolved, "viscosity": viscosity, "steps": steps,
        "batch_size": batch_size, "hidden_channels": hidden_channels, "modes": modes,
    }  # fmt: skip
    write_json(
        out / "results.json",
        {"rows": rows, "reference": reference, "error of the derivatives": floor, "settings": settings},
    )
    drawings = [
        {
            "initial velocity": test.input[i, 0][None].expand(times, -1).mT,
            "velocity": test.target[i, 0].mT,
            "residual only": predictions["residual only"][i, 0].mT,
        }
        for i in range(min(3, test_samples))
    ]
    plane = Grid((size, times), layout=("periodic", "nodes"), axes=("x", "t"))
    figure = plot_fields(drawings, plane, input="initial velocity", reference="velocity", prediction="residual only")
    print(f"picture: {save_figure(figure, out / 'velocities.png')}")
    figure = plot_convergence(histories, xlabel="steps", ylabel="relative L2 on unseen velocities")
    print(f"picture: {save_figure(figure, out / 'convergence.png')}")
    return rows["residual only"]["error"]


class Pairs:
    """Every step some solved velocities and some that nobody solved, in an order drawn anew for every pass through either."""

    def __init__(self, data: Batch, drawn: Tensor, weight: Tensor, batch_size: int, *, steps: int, seed: int) -> None:
        self.data, self.drawn, self.weight, self.batch_size, self.steps = data, drawn, weight, batch_size, steps
        self.generator = torch.Generator().manual_seed(seed)
        self.orders = {"solved": torch.arange(0), "unsolved": torch.arange(0)}

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        for _ in range(self.steps):
            i, j = self._next("solved", len(self.data.input)), self._next("unsolved", len(self.drawn))
            yield {
                "solved": Batch(input=self.data.input[i], target=self.data.target[i]),
                "unsolved": Batch(input=self.drawn[j], weight=self.weight),
            }

    def _next(self, name: str, n: int) -> Tensor:
        while len(self.orders[name]) < self.batch_size:
            self.orders[name] = torch.cat([self.orders[name], torch.randperm(n, generator=self.generator)])
        taken, self.orders[name] = self.orders[name].split([self.batch_size, len(self.orders[name]) - self.batch_size])
        return taken


def discrete_solution(problem: Burgers, grid: Grid, start: Tensor) -> Tensor:
    """The field (time, space) with the initial value of `start` whose discrete residual vanishes at all later times, by Newton."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    derivatives = GridDerivatives(grid)
    times, size = grid.shape
    # The derivatives of unit vectors are the columns of their matrices.
    columns_t = GridDerivatives(Grid(times, grid.extent[0], axes=("t",)))(torch.eye(times, dtype=torch.float64))
    columns_x = GridDerivatives(Grid(size, grid.extent[1], layout="periodic"))(torch.eye(size, dtype=torch.float64))
    d_t, d_x, d_xx = columns_t.d("t").mT, columns_x.d("x").mT, columns_x.d("xx").mT
    in_time = sparse.kron(sparse.csr_matrix(d_t[1:, 1:].numpy()), sparse.eye(size))
    u = start.clone()
    for _ in range(20):
        r = problem.residual(derivatives(u[None], ("velocity",)), {})["momentum"][1:]
        slope = u @ d_x.mT
        blocks = [
            (torch.diag(u[i]) @ d_x + torch.diag(slope[i]) - problem.viscosity * d_xx).numpy() for i in range(1, times)
        ]
        jacobian = in_time + sparse.block_diag(blocks)
        step = spsolve(jacobian.tocsc(), r.reshape(-1).numpy(), permc_spec="NATURAL")
        u[1:] -= torch.from_numpy(step).view_as(u[1:])
        if np.abs(step).max() < 1e-10:
            return u
    raise RuntimeError("Newton's method for the discrete residual did not converge in 20 steps.")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
