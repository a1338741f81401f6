"""
A reconstruction with a certified stability bound
=================================================

Learns the inverse of impedance tomography, currents through the boundary to the conductivity inside, so that noise of size e provably
moves the reconstruction by at most L e, whatever the conductivity and whatever the noise:

1. sample conductivities of sixteen numbers and their measurements; test data are solved on a grid twice as fine,
2. project measurements on their leading principal components (a map of norm one), and take as output the coefficients of log a in a basis
   that is orthonormal in L2, so that Euclidean norms of the network are norms of functions,
3. train networks of sandwich layers whose Lipschitz constant is L by construction, for several L: accuracy against stability,
4. set the certified bound beside the largest factor that sampling finds, and beside what noise does to the test data,
5. compare with the constant answer, with ridge regression, whose factor is exact, and with a free perceptron, whose certificate is a
   product over its layers; draw the trade-off and the reconstructions.

Run ``python examples/certified_inverse.py --help`` for the options.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from opflow import Grid
from opflow.files import claim_folder, write_bytes
from opflow.inversion import GaussianPrior, lipschitz_bound, sampled_lower_bound
from opflow.layers import MLP, LipschitzMLP
from opflow.pde import add_noise
from opflow.plotting import plot_convergence, plot_fields, save_figure
from opflow.problems import ImpedanceTomography

SHOWN_NOISE = 0.05


def main(
    size: int = 33,
    n_measurements: int = 8,
    sensors: int = 15,
    samples: int = 1500,
    test_samples: int = 100,
    components: int = 32,
    modes: int = 16,
    factors: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0),
    noise: float = 0.01,
    hidden: int = 64,
    steps: int = 1000,
    seed: int = 0,
    out: Path = Path("runs/certified_inverse"),
    overwrite: bool = False,
) -> float:
    """Train inverses of given stability; return certified over sampled constant of the network that validation chooses.

    Args:
        size: nodes per axis of the training data; test data are solved on 2 size - 1.
        n_measurements: voltages.
        sensors: of the flux, on each side.
        samples: conductivities for training; a tenth as many choose among the networks.
        test_samples: unseen ones.
        components: principal components of the measurements that the networks read.
        modes: of log a that they write.
        factors: Lipschitz constants of the networks, as multiples of that of ridge regression.
        noise: standard deviation, relative to the root mean square of a sample's measurements; in training too.
        hidden: width of the two hidden layers.
        steps: of Adam, for each network.
        seed: of weights, batches and noise.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem = ImpedanceTomography(medium="tensor", n_measurements=n_measurements, sensors_per_side=sensors)
    grid, fine = Grid((size, size)), Grid((2 * size - 1, 2 * size - 1))

    def observed(split: str, n: int, grid: Grid) -> tuple[Tensor, Tensor]:
        a = problem.sample(n, grid, split=split)
        return a["conductivity"], problem.observe(a)["measurements"]

    a, y = observed("train", samples, grid)
    a_valid, y_valid = observed("validation", samples // 10, grid)
    a_test, y_test = observed("test", test_samples, fine)
    a_test = fine.subsample(a_test, 2)

    # |y|^2 is the mean over voltages of the integral of the flux squared over the boundary; |log a|^2 the integral over the square.
    input_weight = 4 / (n_measurements * 4 * (sensors + 1))
    prior = GaussianPrior.from_samples(a, modes, weight=grid.quadrature_weights())
    lengths = (prior.modes.square() * grid.quadrature_weights()).flatten(1).sum(1).sqrt()

    def read(y: Tensor) -> Tensor:
        """Measurements -> their leading components, in units of the norm above: the projection has norm one."""
        return (y.flatten(1) - centre) @ basis.T * input_weight**0.5

    def written(a: Tensor) -> Tensor:
        return prior.coefficients(a) * lengths

    def error(c: Tensor, a: Tensor) -> float:
        """Mean relative L2 error of the conductivity itself."""
        found = prior.field(c / lengths)
        squares = [((t * grid.quadrature_weights()).flatten(1)).sum(1) for t in ((found - a).square(), a.square())]
        return float((squares[0] / squares[1]).sqrt().mean())

    centre = y.flatten(1).mean(0)
    basis = torch.linalg.svd(y.flatten(1) - centre, full_matrices=False).Vh[:components]
    c, c_valid = written(a), written(a_valid)
    disturb = torch.Generator().manual_seed(seed + 1)
    x_valid, x_clean = read(add_noise(y_valid, noise, disturb)), read(y_test)
    x_noisy = read(add_noise(y_test, noise, disturb))
    length = input_weight**0.5 * float(y_test.flatten(1).norm(dim=1).mean())

    # Ridge regression: linear, so that its factor is the norm of its matrix; its penalty is chosen on validation.
    x = read(add_noise(y, noise, disturb))
    mean = c.mean(0)
    fits = {
        p: torch.linalg.solve(x.T @ x + p * torch.eye(components).double(), x.T @ (c - mean))
        for p in 10.0 ** torch.arange(-7, 1)
    }
    ridge = min(fits.values(), key=lambda W: float((x_valid @ W + mean - c_valid).square().mean()))
    unit = float(torch.linalg.matrix_norm(ridge, 2))

    def trained(model: nn.Module) -> nn.Module:
        """Adam on the mean square error, with fresh noise for every batch."""
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
        order = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(y), (128,), generator=order)
            batch = read(add_noise(y[rows], noise, order)).float()
            optimizer.zero_grad()
            (model(batch) - (c[rows] - mean).float()).square().sum(1).mean().backward()
            optimizer.step()
            scheduler.step()
        return model.double().eval()

    # Networks of a given stability, and one that is free.
    sizes = (components, hidden, hidden, modes)
    networks = {f"L = {f:g}": trained(LipschitzMLP(sizes, lipschitz=f * unit)) for f in factors}
    networks["free"] = trained(MLP(sizes))
    print(
        f"{samples} conductivities, {y[0].numel()} numbers measured, {components} components read, {modes} coefficients written"
    )
    print(
        f"the fluxes of a conductivity are {length:.3g} long in their norm; noise {noise:g} of it is {noise * length:.3g}"
    )
    rows = {
        "constant": _row(error(mean.expand(len(a_test), -1), a_test), 0.0, 0.0, 0.0),
        "ridge regression": _row(
            error(x_noisy @ ridge + mean, a_test), unit, unit, _moved(lambda x: x @ ridge, x_clean, x_noisy)
        ),
    }
    valid = {}
    for name, network in networks.items():
        found = network(x_noisy).detach() + mean
        valid[name] = float((network(x_valid).detach() + mean - c_valid).square().sum(1).mean())
        bound = lipschitz_bound(network).bound
        lower = sampled_lower_bound(network, torch.cat([x_clean, x_noisy]), power_steps=20, ascent_steps=20)
        rows[name] = _row(error(found, a_test), bound, lower, _moved(network, x_clean, x_noisy))
    print(f"{'':18} {'error':>7} {'certified L':>12} {'sampled':>9} {'ratio':>6} {'noise moved':>12}")
    for name, row in rows.items():
        print(
            f"{name:18} {row['error']:7.2%} {row['certified']:12.3g} {row['sampled']:9.3g} {row['ratio']:6.2f} {row['moved']:12.3g}"
        )

    chosen = min((name for name in networks if name != "free"), key=lambda name: valid[name])
    row = rows[chosen]
    print(
        f"chosen on validation: {chosen}. Noise of size {noise * length:.3g} moves log a by at most {row['certified'] * noise * length:.3g} "
        f"in L2, certified; by {row['moved'] * noise * length:.3g} at most on {test_samples} test samples."
    )

    curves = {
        "certified L": [(rows[n]["certified"], rows[n]["error"]) for n in networks if n != "free"],
        "sampled lower bound": [(rows[n]["sampled"], rows[n]["error"]) for n in networks if n != "free"],
        "ridge regression": [(unit, rows["ridge regression"]["error"])],
        "free perceptron, certified": [(rows["free"]["certified"], rows["free"]["error"])],
        "free perceptron, sampled": [(rows["free"]["sampled"], rows["free"]["error"])],
    }
    figure = plot_convergence(
        {name: tuple(zip(*pairs, strict=True)) for name, pairs in curves.items()},
        xlabel="Lipschitz constant, L2 of log a over L2 of the flux", ylabel="relative L2 error of a", log_x=True,
    )  # fmt: skip
    print(f"picture: {save_figure(figure, out / 'trade_off.png')}")
    network, loud = networks[chosen], read(add_noise(y_test[:3], SHOWN_NOISE, disturb))
    pictures = [
        {
            f"noise {noise:g}": prior.field((network(x_noisy[i]).detach() + mean) / lengths),
            "conductivity": a_test[i],
            f"noise {SHOWN_NOISE:g}": prior.field((network(loud[i]).detach() + mean) / lengths),
        }
        for i in range(3)
    ]
    figure = plot_fields(
        pictures, grid, input=f"noise {noise:g}", reference="conductivity", prediction=f"noise {SHOWN_NOISE:g}"
    )
    print(f"picture: {save_figure(figure, out / 'reconstructions.png')}")
    write_bytes(
        out / "results.json",
        json.dumps({"rows": rows, "chosen": chosen, "noise": noise, "length": length}, indent=1).encode(),
    )
    return row["ratio"]


def _row(error: float, certified: float, sampled: float, moved: float) -> dict[str, float]:
    """One line of the table; `moved` is |R(y + e) - R(y)| / |e|, the largest on the test data."""
    return {
        "error": error,
        "certified": certified,
        "sampled": sampled,
        "ratio": certified / sampled if sampled else 1.0,
        "moved": moved,
    }


def _moved(model, clean: Tensor, noisy: Tensor) -> float:
    """The largest factor by which the actual noise of the test data was passed on."""
    with torch.no_grad():
        return float(((model(noisy) - model(clean)).norm(dim=1) / (noisy - clean).norm(dim=1)).max())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
