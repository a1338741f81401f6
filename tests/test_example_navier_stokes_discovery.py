"""Coefficients and pressure of a flow from scattered velocities: the example keeps its promises."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

from opflow import Batch, Grid
from opflow.pde import AutogradDerivatives

pytest.importorskip("matplotlib")

SHORT = {
    "hidden": (16, 16), "points": 250, "observations": 300, "adam_steps": 100, "iterations": 600, "resample_every": 300,
}  # fmt: skip


def test_short_training(tmp_path: Path) -> None:
    module, out = example("navier_stokes_discovery"), tmp_path / "run"
    # At twice the viscosity the flow is smooth earlier.
    error = module.main(viscosity=0.02, **SHORT, out=out)
    assert 0 < error < 0.3
    results = json.loads((out / "results.json").read_text())
    row = results["rows"]["Navier-Stokes discovery, clean"]
    assert row["error"] == error == max(row["error_convection"], row["error_viscosity"]) and row["seconds"] > 0
    assert row["error_viscosity"] < 0.05 and row["error_pressure"] < 0.3
    assert 0 < row["standard_errors"]["viscosity"] < 0.002 and 0 < row["standard_errors"]["convection"] < 0.1
    assert results["reference"]["error"] < 1e-8 and results["residual_weight"] == 0.01
    assert is_drawn(out / "pressure.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        module.main(**SHORT, out=out)


def test_a_taylor_green_vortex_has_its_pressure_and_no_residual_whatever_the_convection() -> None:
    """psi = e^(-2 nu k^2 t) sin(kx) sin(ky): its pressure is known, and takes any c up, so that c could not be found."""
    module, k, nu = example("navier_stokes_discovery"), 2 * math.pi, 0.02
    grid = Grid((32, 32), layout="periodic")
    x, y = grid.points().unbind(-1)
    velocity = torch.stack([k * torch.sin(k * x) * torch.cos(k * y), -k * torch.cos(k * x) * torch.sin(k * y)])
    expected = k**2 / 4 * (torch.cos(2 * k * x) + torch.cos(2 * k * y))
    torch.testing.assert_close(module.pressure(velocity[None], grid)[0], expected, rtol=0, atol=1e-11)

    for c in (1.0, 3.0):

        def flow(points: torch.Tensor, c: float = c) -> torch.Tensor:
            t, x, y = points.unbind(-1)
            decay = torch.exp(-2 * nu * k**2 * t)
            psi = decay * torch.sin(k * x) * torch.sin(k * y)
            p = c * decay**2 * (k**2 / 4) * (torch.cos(2 * k * x) + torch.cos(2 * k * y))
            return torch.stack([psi, p], -1)

        momentum = module.Momentum()
        momentum.convection, momentum.viscosity = c, nu
        points = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        w = AutogradDerivatives(momentum.coordinates, momentum.unknowns, "taylor")(flow, Batch(coords=points))
        for residual in momentum.residual(w, {}).values():
            assert residual.abs().max() < 1e-9
        momentum.convection = c + 1
        assert momentum.residual(w, {})["momentum_x"].abs().max() > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_setting(tmp_path: Path) -> None:
    assert example("navier_stokes_discovery").main(out=tmp_path) < 2e-3
    row = json.loads((tmp_path / "results.json").read_text())["rows"]["Navier-Stokes discovery, clean"]
    assert row["error_pressure"] < 1e-2
