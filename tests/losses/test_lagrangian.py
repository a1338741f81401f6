"""The residual along characteristics: zero for known solutions, equal to the Eulerian one, warning of shocks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from opflow import Batch
from opflow.losses import LagrangianResidual, PDEResidual, Unknown
from opflow.models import LagrangianPINN
from opflow.pde import AutogradDerivatives
from opflow.training import SelfScaledBroyden


def labels(n: int = 40, end: float = 0.8, seed: int = 0) -> Batch:
    y = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Batch(coords=y * torch.tensor([end, 2 * math.pi], dtype=torch.float64))


def burgers(y: Tensor) -> Tensor:
    """x = xi + t sin xi, w = sin xi"""
    t, s = y[..., 0], y[..., 1]
    return torch.stack([s + t * torch.sin(s), torch.sin(s)], -1)


def diffusing(y: Tensor) -> Tensor:
    """w = exp(-nu t) sin(x - c t) with x = xi + c t, for c = 3 and nu = 0.1"""
    t, s = y[..., 0], y[..., 1]
    return torch.stack([s + 3 * t, torch.exp(-0.1 * t) * torch.sin(s)], -1)


@pytest.mark.parametrize("method", ["taylor", "reverse"])
def test_known_solutions_have_no_residual(method: str) -> None:
    for loss, model in (
        (LagrangianResidual(lambda w: w, method=method), burgers),
        (LagrangianResidual(3.0, 0.1, method=method), diffusing),
        (LagrangianResidual(3.0, torch.tensor(0.1, dtype=torch.float64), method=method), diffusing),
    ):
        terms = loss(model, labels())
        assert set(terms) == {"position", "value"} and max(float(term.detach()) for term in terms.values()) < 1e-25
    assert LagrangianResidual(2.0, 0.1)(diffusing, labels())["position"].item() == pytest.approx(1.0)
    assert LagrangianResidual(3.0, 0.2)(diffusing, labels())["value"].item() > 1e-4


def test_it_is_the_eulerian_residual_in_other_coordinates() -> None:
    """For w(t, x) = f(t, x) and paths x = xi + t sin xi: w_t along the path - nu w_xx = f_t + x_t f_x - nu f_xx."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-0.3 * t) * torch.sin(x + 0.5 * torch.cos(x))

    def model(y: Tensor) -> Tensor:
        t, s = y[..., 0], y[..., 1]
        x = s + t * torch.sin(s)
        return torch.stack([x, field(t, x)], -1)

    batch = labels()
    found = LagrangianResidual(lambda w: w, 0.05).equations(model, batch)
    x = model(batch.coords)[:, 0].detach()
    points = Batch(coords=torch.stack([batch.coords[:, 0].detach(), x], -1))
    u = AutogradDerivatives(("t", "x"))(lambda y: field(y[..., 0], y[..., 1]), points)
    speed = torch.sin(batch.coords[:, 1])
    expected = u.d("t") + speed * u.d("x") - 0.05 * u.d("xx")
    assert torch.allclose(found["value"], expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(found["position"], speed - u.value, rtol=1e-10, atol=1e-12)


def test_residuals_chunks_and_methods_agree() -> None:
    torch.manual_seed(0)
    model = LagrangianPINN.build(((0.0, 0.8), (0.0, 2 * math.pi)), torch.sin, (6,), (6,)).double()
    whole, chunked = LagrangianResidual(lambda w: w, 0.01), LagrangianResidual(lambda w: w, 0.01, chunk=7)
    terms = whole(model, labels())
    assert whole.residuals(model, labels()).square().sum().item() == pytest.approx(sum(terms.values()).item())
    for other in (chunked, LagrangianResidual(lambda w: w, 0.01, method="reverse")):
        again = other(model, labels())
        assert all(torch.allclose(terms[name], again[name], rtol=1e-10) for name in terms)
    assert isinstance(whole, PDEResidual) and whole.derivatives_asked == {"t", "s", "ss"}
    assert LagrangianResidual(1.0).derivatives_asked == {"t"}


def test_crossing_is_said_with_time_and_label() -> None:
    loss = LagrangianResidual(lambda w: w)
    assert loss.crossing(burgers, labels()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.point_sizes(burgers, labels())
    y = torch.tensor([[0.5, math.pi], [1.3, 3.0], [1.2, math.pi], [1.9, 0.1]], dtype=torch.float64)
    found = loss.crossing(burgers, Batch(coords=y))
    assert found is not None and found == pytest.approx((1.2, math.pi, -0.2))
    with pytest.warns(RuntimeWarning, match=r"cross at t = 1\.2, label 3\.142"):
        loss.point_sizes(burgers, Batch(coords=y))


def test_unknown_viscosity_and_speed_are_found_from_the_solution() -> None:
    for name, truth in (("viscosity", 0.1), ("speed", 3.0)):
        unknown = Unknown(0.5, positive=True)
        loss = LagrangianResidual(3.0, 0.1, {name: unknown})
        optimizer = SelfScaledBroyden(loss.parameters(), iterations=30)

        def closure(loss: LagrangianResidual = loss, optimizer: SelfScaledBroyden = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = sum(loss(diffusing, labels()).values())
            value.backward()
            return value

        optimizer.step(closure)
        assert unknown.value == pytest.approx(truth, rel=1e-6)


def test_a_learned_speed_is_a_parameter_of_the_loss() -> None:
    loss = LagrangianResidual(lambda w: w)
    assert not list(loss.parameters())

    class Speed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, w: Tensor) -> Tensor:
            return self.slope * w

    learned = LagrangianResidual(Speed())
    assert len(list(learned.parameters())) == 1
    (gradient,) = torch.autograd.grad(learned(burgers, labels())["position"], list(learned.parameters()))
    assert gradient < 0  # the slope is 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"viscosity is -0\.1"):
        LagrangianResidual(1.0, -0.1)
    with pytest.raises(ValueError, match="'speed' is a number"):
        LagrangianResidual(lambda w: w, unknowns={"speed": Unknown(1.0)})
    with pytest.raises(ValueError, match="no coefficient"):
        LagrangianResidual(1.0, unknowns={"density": Unknown(1.0)})
