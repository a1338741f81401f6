"""The initial value holds whatever the network is, at any number of times, and the residual of a grid finds it so."""

import pytest
import torch
from torch import nn

from opflow import Batch, Grid
from opflow.layers import HardInitial
from opflow.losses import PDEResidual
from opflow.models import FNO
from opflow.pde import GridDerivatives
from opflow.problems import Burgers


@pytest.mark.parametrize("space", [(16,), (8, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_initial_value_is_held_exactly(space: tuple[int, ...], dtype: torch.dtype) -> None:
    network = FNO.build((4,) * (1 + len(space)), 2, 2, 4, n_layers=1, padding=(0.25, *[0.0] * len(space)))
    model = HardInitial(network.to(dtype), 9)
    u0 = torch.randn(3, 2, *space, dtype=dtype)
    u = model(u0)
    assert u.shape == (3, 2, 9, *space) and u.dtype == dtype
    assert torch.equal(u[:, :, 0], u0) and not torch.allclose(u[:, :, -1], u0)
    assert model(u0, times=17).shape[2] == 17
    assert model.conditions == ("initial",)


def test_the_network_is_weighted_by_time() -> None:
    u = HardInitial(nn.Identity(), 5)(torch.full((1, 1, 3), 2.0))
    assert u[0, 0, :, 0].tolist() == [2.0, 2.5, 3.0, 3.5, 4.0]


def test_a_grid_residual_is_zero_on_the_solution_and_not_off_it() -> None:
    """The change of the exact solution, divided by t, as the network: only the differences in time are left of the residual."""
    problem, sizes = Burgers(viscosity=0.05), []
    for n in (17, 33):
        grid = Grid((n, 32), layout=("nodes", "periodic"), axes=("t", "x"))
        points = grid.points()
        exact = problem.exact(points)
        t = points[:, :1, 0]
        change = (exact["velocity"] - exact["initial"]) / torch.where(t > 0, t, 1.0)

        class Known(nn.Module):
            def __init__(self, change: torch.Tensor) -> None:
                super().__init__()
                self.change = change

            def forward(self, held: torch.Tensor) -> torch.Tensor:
                return self.change.expand_as(held)

        loss = PDEResidual(problem, GridDerivatives(grid))
        batch = Batch(input=exact["initial"][0][None, None], weight=(grid.points()[..., 0] > 0).double())
        sizes.append(float(loss(HardInitial(Known(change), n), batch)["momentum"]) ** 0.5)
        wrong = float(loss(HardInitial(Known(change + 0.1), n), batch)["momentum"])
        assert wrong > 100 * sizes[-1] ** 2
    assert 3.4 < sizes[0] / sizes[1] < 5  # of second order in time


@pytest.mark.parametrize("times", [1, 2.0, True])
def test_refuses_times(times: object) -> None:
    with pytest.raises(ValueError, match="give a whole number from 2 on"):
        HardInitial(nn.Identity(), times)  # type: ignore[arg-type]


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r"expects \(batch, channel, \*space\)"):
        HardInitial(nn.Identity(), 3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="many output channels"):
        HardInitial(nn.Conv2d(1, 2, 1), 3)(torch.zeros(2, 1, 4))
