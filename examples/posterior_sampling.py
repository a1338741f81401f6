"""
How sure is a reconstruction? Credible intervals, calibrated
============================================================

Impedance tomography with uncertainty: not one conductivity but all that agree with the measurements, and the check that the intervals hold
what they promise.

1. draw conductivities from a Gaussian prior of log a; their measurements are solved on a grid twice as fine, with noise,
2. measure what the coarse solver gets wrong on further draws, and add its mean and its variance to the noise (the approximation error of
   Kaipio and Somersalo 2007): without it the intervals would be too narrow, which is printed too,
3. Gauss-Newton through the solver: the most probable conductivity, and the Laplace approximation of the posterior,
4. sample the posterior by preconditioned Crank-Nicolson through the solver, with proposals about the Laplace approximation; and through a
   perceptron that was trained as a surrogate of the measurements, all test problems at once: how far is it to be trusted?
5. count how often 90 % intervals hold the truth; draw truth, mean, deviation and the curve of coverage over levels.

Run ``python examples/posterior_sampling.py --help`` for the options.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from opflow import Grid
from opflow.files import claim_folder, write_bytes
from opflow.inversion import (
    GaussianPrior,
    coverage,
    coverage_curve,
    gauss_newton,
    gaussian_log_likelihood,
    gaussian_transform,
    preconditioned_crank_nicolson,
    probability_transform,
    split_r_hat,
)
from opflow.layers import MLP
from opflow.plotting import plot_curves, plot_images, save_figure
from opflow.problems import ImpedanceTomography

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def main(
    size: int = 25,
    n_measurements: int = 6,
    sensors: int = 11,
    modes: int = 4,
    scale: float = 0.6,
    decay: float = 1.5,
    noise: float = 0.02,
    problems: int = 120,
    solver_problems: int = 120,
    training: int = 4000,
    components: int = 40,
    hidden: int = 256,
    training_steps: int = 10000,
    chains: int = 4,
    sampling_steps: int = 1500,
    seed: int = 0,
    out: Path = Path("runs/posterior_sampling"),
    overwrite: bool = False,
) -> float:
    """Credible intervals of 120 conductivities; return the coverage of the 90 % intervals that were sampled through the solver.

    Args:
        size: nodes per axis of the solver inside the inversion; measurements are made on 2 size - 1.
        n_measurements: voltages.
        sensors: of the flux, on each side.
        modes: cosines per axis of log a.
        scale: deviation of log a.
        decay: of the cosines' deviations.
        noise: standard deviation, relative to the root mean square of all measurements.
        problems: simulated tests.
        solver_problems: the first of them, which are sampled through the solver.
        training: conductivities that the surrogate learns from, and whose coarse and fine solutions are compared (a tenth of them).
        components: principal components of the measurements that the surrogate predicts.
        hidden: its width.
        training_steps: of Adam.
        chains: a problem.
        sampling_steps: kept from each chain, after as many of burn-in.
        seed: of conductivities, noise, weights and chains.
        out: where results and pictures go.
        overwrite: replace what an earlier run left in `out`.
    """
    claim_folder(out, overwrite=overwrite)
    torch.manual_seed(seed)
    problem = ImpedanceTomography(n_measurements=n_measurements, sensors_per_side=sensors)
    grid, fine = Grid((size, size)), Grid((2 * size - 1, 2 * size - 1))
    prior, fine_prior = (GaussianPrior.cosine(g, modes, scale, decay) for g in (grid, fine))
    solver, fine_solver = problem.forward(grid), problem.forward(fine)
    draw = torch.Generator().manual_seed(seed)

    def coefficients(n: int) -> Tensor:
        return torch.randn(n, prior.n_modes, generator=draw, dtype=torch.float64)

    # What is measured, with noise, and the error of the coarse solver.
    z = coefficients(problems)
    clean = fine_solver(fine_prior.field(z))
    noise_deviation = noise * float(clean.square().mean().sqrt())
    data = clean + noise_deviation * torch.randn(clean.shape, generator=draw, dtype=torch.float64)
    z_train = coefficients(training)
    y_train = solver(prior.field(z_train))
    compared = slice(0, max(training // 10, 8))
    discretisation = fine_solver(fine_prior.field(z_train[compared])) - y_train[compared]
    shift, spread = discretisation.mean(0), discretisation.std(0)
    print(
        f"{problems} problems, {prior.n_modes} unknown numbers, {data[0].numel()} measured; noise {noise_deviation:.3g}, error of the solver on "
        f"{size} x {size} nodes {float(discretisation.square().mean().sqrt()):.3g}"
    )
    deviation = (noise_deviation**2 + spread.square()).sqrt()

    # Gauss-Newton and the Laplace approximation.
    estimates = [gauss_newton(solver, d - shift, prior, deviation=deviation, discrepancy=None) for d in data]
    overconfident = [gauss_newton(solver, d, prior, deviation=noise_deviation, discrepancy=None) for d in data]
    print(f"Gauss-Newton: {sum(e.succeeded for e in estimates)} of {problems} converged; {estimates[0].message}")

    # A surrogate of the leading components of the measurements in units of the noise; the rest hardly varies.
    scaled = (y_train / deviation).flatten(1)
    centre = scaled.mean(0)
    basis = torch.linalg.svd(scaled - centre, full_matrices=False).Vh[:components]
    target = (scaled - centre) @ basis.T
    size_of = target.std()
    surrogate = MLP((prior.n_modes, hidden, hidden, components))
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, training_steps)
    kept = len(z_train) * 9 // 10
    x_float, t_float = z_train.float(), (target / size_of).float()
    for _ in range(training_steps):
        rows = torch.randint(kept, (128,), generator=draw)
        optimizer.zero_grad()
        (surrogate(x_float[rows]) - t_float[rows]).square().mean().backward()
        optimizer.step()
        scheduler.step()
    surrogate = surrogate.double().requires_grad_(False)

    def predicted(z: Tensor) -> Tensor:
        return size_of * surrogate(z)

    missed = predicted(z_train[kept:]) - target[kept:]
    own = (1 + missed.square().mean(0)).sqrt()  # its error joins the noise, one deviation a component
    print(
        f"surrogate: off by {float(missed.square().mean().sqrt()):.2f} deviations of the noise on {len(missed)} unseen conductivities"
    )
    reduced = ((data - shift) / deviation).flatten(1).sub(centre) @ basis.T

    # All problems at once: `chains` chains each, proposals about the Laplace approximation of the solver, with room for heavier tails.
    roots = torch.linalg.cholesky(1.5 * torch.stack([e.covariance for e in estimates])).repeat(chains, 1, 1)
    centres = torch.stack([e.coefficients for e in estimates]).repeat(chains, 1)
    reduced = reduced.repeat(chains, 1)

    def ratio(w: Tensor) -> Tensor:
        """Posterior over reference at z = m + R w: sampling w with prior N(0, I) is then sampling z."""
        z = centres + torch.einsum("njk,nk->nj", roots, w)
        misfit = ((predicted(z) - reduced) / own).square().sum(1)
        return -misfit / 2 + prior.log_density(z) + w.square().sum(1) / 2

    whitened = GaussianPrior(
        torch.zeros(prior.n_modes), torch.eye(prior.n_modes), link="identity"
    )  # its field is w itself
    samples = preconditioned_crank_nicolson(
        ratio, whitened, sampling_steps, chains=chains * problems, burn_in=sampling_steps, thin=5, generator=draw
    )
    w = samples.coefficients  # (chains * problems, kept, k)
    draws = (centres[:, None] + torch.einsum("njk,ntk->ntj", roots, w)).unflatten(0, (chains, problems)).movedim(0, 1)
    agreement = torch.stack([split_r_hat(own_chains).max() for own_chains in draws])
    draws = draws.flatten(1, 2)
    print(
        f"sampling: acceptance {float(samples.acceptance.mean()):.2f} at step {samples.step:.2f}; split R-hat at most "
        f"{float(agreement.max()):.3f}, median {float(agreement.median()):.3f}"
    )

    # Through the solver itself.
    differences, through_solver, worst = [], [], 0.0
    for i in tqdm(range(solver_problems), desc="through the solver", disable=None):
        likelihood = gaussian_log_likelihood(solver, data[i] - shift, deviation=deviation)
        direct = preconditioned_crank_nicolson(
            likelihood, prior, 100, chains=8, burn_in=50, reference=estimates[i], generator=draw
        )
        both = direct.coefficients.flatten(0, 1), draws[i]
        through_solver.append(both[0])
        worst = max(worst, float(direct.r_hat.max()))
        differences.append(float(((both[0].mean(0) - both[1].mean(0)) / both[0].std(0)).square().mean().sqrt()))
    print(
        f"through the solver: split R-hat at most {worst:.3f}; the surrogate's means differ by {max(differences):.2f} posterior deviations "
        f"at most in {len(differences)} problems"
    )

    # Calibration of the field at nodes that are apart from each other.
    some = (slice(None), *[slice(None, None, max(1, size // 8))] * 2)
    truth = prior.field(z)[some].flatten(1)
    sampled, by_surrogate = (
        torch.stack([prior.field(d[::step])[some].flatten(1) for d in chains_of])
        for chains_of, step in ((through_solver, 1), (draws, 4))
    )

    def laplace(estimates: list) -> Tensor:
        mean = torch.stack([prior.latent(e.coefficients) for e in estimates])[some].flatten(1)
        spread = torch.stack([prior.latent_deviation(e.covariance) for e in estimates])[some].flatten(1)
        return gaussian_transform(mean, spread, truth.log())

    transforms = {
        "sampled": probability_transform(sampled, truth[:solver_problems]),
        "sampled through the surrogate": probability_transform(by_surrogate, truth),
        "Laplace": laplace(estimates),
        "Laplace, solver's error ignored": laplace(overconfident),
    }
    found = {name: coverage(transform, 0.9) for name, transform in transforms.items()}
    for name, c in found.items():
        print(f"{name}: {c}")
    means = {
        "sampled mean": sampled.mean(1),
        "most probable": torch.stack([e.field for e in estimates])[some].flatten(1),
        "prior mean": prior.field(torch.zeros(problems, prior.n_modes))[some].flatten(1),
    }
    errors = {
        name: float(((m - truth[: len(m)]).norm(dim=1) / truth[: len(m)].norm(dim=1)).mean())
        for name, m in means.items()
    }
    print("relative L2 error: " + ", ".join(f"{name} {e:.2%}" for name, e in errors.items()))

    curves = {name: [(LEVELS, [c.share for c in coverage_curve(t, LEVELS)])] for name, t in transforms.items()}
    figure = plot_curves(
        {"as promised": [((0, 1), (0, 1))], **curves},
        xlabel="level of the interval",
        ylabel="share that holds the truth",
    )
    print(f"picture: {save_figure(figure, out / 'coverage.png')}")
    shown = range(min(4, solver_problems))
    fields = [prior.field(through_solver[i]) for i in shown]
    figure = plot_images(
        {
            "truth": {f"problem {i}": prior.field(z[i]) for i in shown},
            "mean": {f"problem {i}.": fields[i].mean(0) for i in shown},
            "deviation": {f"problem {i}..": fields[i].std(0) for i in shown},
        },
        grid,
    )
    print(f"picture: {save_figure(figure, out / 'posteriors.png')}")
    results = {
        "coverage": {name: [c.share, c.error, c.binomial_error] for name, c in found.items()}, "errors": errors, "n": problems,
        "r_hat": worst, "r_hat_surrogate": float(agreement.max()), "surrogate_minus_solver": differences,
    }  # fmt: skip
    write_bytes(out / "results.json", json.dumps(results, indent=1).encode())
    return found["sampled"].share


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
