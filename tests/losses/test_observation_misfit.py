"""Data that are derivatives of the unknowns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opflow import Batch, Grid
from opflow.losses import DataMisfit, ObservationMisfit, mean_squared_error, warn_if_ill_posed
from opflow.models import PINN
from opflow.pde import AutogradDerivatives, GridDerivatives
from opflow.training.jacobian import jacobian

COORDINATES, UNKNOWNS = ("t", "x", "y"), ("stream_function", "pressure")


def points(n: int = 30) -> Tensor:
    return torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stream(y: Tensor) -> Tensor:
    """psi = t sin(x) y, p = x y"""
    t, x, y = y.unbind(-1)
    return torch.stack([t * torch.sin(x) * y, x * y], -1)


def velocity(u):
    psi = u["stream_function"]
    return {"u": psi.d("y"), "v": -psi.d("x")}


@pytest.mark.parametrize("method", ["reverse", "taylor"])
def test_velocities_of_a_stream_function(method: str) -> None:
    y = points()
    exact = torch.stack([y[:, 0] * y[:, 1].sin(), -y[:, 0] * y[:, 1].cos() * y[:, 2]], -1)
    misfit = ObservationMisfit(velocity, AutogradDerivatives(COORDINATES, UNKNOWNS, method), on="data")
    assert misfit.names == ("misfit",)
    step = {"data": Batch(coords=y, target=exact)}
    assert float(misfit(stream, step)["misfit"].detach()) < 1e-28
    step["data"].target = exact + torch.tensor([0.0, 2.0])
    assert float(misfit(stream, step)["misfit"].detach()) == pytest.approx(2.0)
    torch.testing.assert_close(misfit.residuals(stream, step).square().sum(), misfit(stream, step)["misfit"])


def test_values_are_the_plain_misfit() -> None:
    torch.manual_seed(0)
    model = PINN.build(((0, 1),) * 3, 1, (6, 6)).double()
    batch = Batch(coords=points(), target=points()[:, :1], weight=points()[:, 0])
    plain, observed = DataMisfit(mean_squared_error), ObservationMisfit(lambda u: u.value, AutogradDerivatives())
    torch.testing.assert_close(observed(model, batch), plain(model, batch))
    torch.testing.assert_close(observed.residuals(model, batch), plain.residuals(model, batch))


def test_jacobians_and_counts_of_observations() -> None:
    torch.manual_seed(0)
    model = PINN.build(((0, 1),) * 3, 2, (6, 6)).double()
    misfit = ObservationMisfit(velocity, AutogradDerivatives(COORDINATES, UNKNOWNS, "taylor"))
    batch = Batch(coords=points(8), target=points(8)[:, :2])
    parameters = list(model.parameters())
    r, J = jacobian(misfit, model, batch, parameters)
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True)
        for one in misfit.residuals(model, batch)
    ]
    by_hand = torch.stack(
        [
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(parameters, row, strict=True)
                ]
            )
            for row in rows
        ]
    )
    torch.testing.assert_close(J, by_hand)
    assert r.shape == (16,)
    assert warn_if_ill_posed(model, misfit, batch) == []


def test_what_is_refused() -> None:
    derivatives = AutogradDerivatives(COORDINATES, UNKNOWNS)
    with pytest.raises(TypeError, match=r"derivatives is GridDerivatives; sensors are points"):
        ObservationMisfit(velocity, GridDerivatives(Grid(8)))
    misfit = ObservationMisfit(velocity, derivatives)
    with pytest.raises(ValueError, match=r"no target; give Batch\(coords"):
        misfit(stream, Batch(coords=points()))
    with pytest.raises(ValueError, match=r"observes \(30, 2\).* but the target has \(30, 1\)"):
        misfit(stream, Batch(coords=points(), target=points()[:, :1]))
    assert isinstance(misfit, nn.Module)
