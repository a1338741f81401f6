"""The nonlinear Schroedinger equation: the example at small sizes, its lift, and the row's bound at full size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_examples import example, is_drawn

from opflow import Batch
from opflow.pde import AutogradDerivatives


def test_a_short_training(tmp_path: Path) -> None:
    main = example("schroedinger_pinn").main
    tiny = {
        "hidden": (10, 10), "harmonics": 2, "waves": 3, "kink_modes": 32, "points": 100, "adam_steps": 100, "iterations": 100,
        "resample_every": 50, "modes": 512, "rtol": 1e-4, "seed": 1,
    }  # fmt: skip
    out = tmp_path / "run"
    error = main(**tiny, out=out)
    results = json.loads((out / "results.json").read_text())
    row = results["rows"]["Schroedinger"]
    assert row["error"] == error and 0 < error < 0.28, "the lift alone has 0.32"
    assert row["error_of_h"] > 0 and row["seconds"] > 0
    assert results["reference"]["error"] < 1e-3 and results["settings"]["harmonics"] == 2
    assert is_drawn(out / "fields.png") and is_drawn(out / "convergence.png")
    with pytest.raises(FileExistsError, match="already holds files"):
        main(**tiny, out=out)


def test_the_lift_begins_with_the_packet_and_moves_the_kink() -> None:
    module = example("schroedinger_pinn")
    x = torch.linspace(-4.9, 4.9, 99, dtype=torch.float64)
    points = torch.stack([torch.zeros_like(x), x], -1)
    exact = torch.stack([2 / torch.cosh(x), torch.zeros_like(x)], -1)
    errors = [float((module.Lift(n)(points) - exact).abs().max()) for n in (16, 64, 256)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 2e-5
    assert torch.allclose(module.Lift(0)(points), exact, atol=1e-14)
    # After a while the slope at the end of the period is zero: the kink has gone.
    end = torch.tensor([[0.3, 5.0]], dtype=torch.float64)
    u = AutogradDerivatives(("t", "x"))(module.Lift(64), Batch(coords=end))
    assert float(u.d("x").detach().abs().max()) < 1e-4 < 4 * math.tanh(5) / math.cosh(5) / 2


def test_features_are_even_periodic_and_free_waves() -> None:
    module = example("schroedinger_pinn")
    features = module.Features(2, 3)
    y = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert features(y).shape == (20, features.out_features) == (20, 9)
    for other in (y * torch.tensor([1.0, -1.0]), y + torch.tensor([0.0, 10.0])):
        assert torch.allclose(features(other), features(y), atol=1e-13)
    # cos(k x) exp(i w t) solves i u_t + u_xx / 2 + 2 m u = 0, with m the mean of |h|^2.
    mean = (2 / torch.cosh(torch.linspace(-5, 5, 4001, dtype=torch.float64)[:-1])).square().mean()
    u = AutogradDerivatives(("t", "x"))(features, Batch(coords=y))
    cosine, sine = slice(3, 6), slice(6, 9)
    imaginary = u.d("t")[:, cosine] + (0.5 * u.d("xx") + 2 * mean * u.value)[:, sine]
    real = -u.d("t")[:, sine] + (0.5 * u.d("xx") + 2 * mean * u.value)[:, cosine]
    assert max(float(part.detach().abs().max()) for part in (real, imaginary)) < 1e-4


def test_a_reference_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 512"):
        example("schroedinger_pinn").reference_solution(torch.zeros(1), 700)


@pytest.mark.slow
def test_the_full_setting_reaches_what_is_required(tmp_path: Path) -> None:
    assert example("schroedinger_pinn").main(out=tmp_path / "run") < 5e-4
