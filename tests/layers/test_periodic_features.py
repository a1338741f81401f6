"""Features in which a function is periodic, and even."""

import json

import pytest
import torch

from opflow.layers import PeriodicFeatures
from opflow.models import PINN

DOMAIN = ((0.0, 2.0), (-1.0, 3.0))


def points() -> torch.Tensor:
    y = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return y * torch.tensor([2.0, 4.0]) - torch.tensor([0.0, 1.0])


@pytest.mark.parametrize("even", [None, (False, True)])
def test_periodic_where_asked_and_scaled_elsewhere(even: tuple[bool, bool] | None) -> None:
    features = PeriodicFeatures(DOMAIN, (0, 3), even=even)
    y = points()
    f = features(y)
    assert f.shape == (20, features.out_features) == (20, 4 if even else 7)
    torch.testing.assert_close(features(y + torch.tensor([0.0, 4.0])), f, rtol=0, atol=1e-12)
    torch.testing.assert_close(f[:, 0], y[:, 0] - 1, rtol=0, atol=1e-12)
    # Of the highest frequency there are three waves in the interval, not more and not less.
    assert float((features(y + torch.tensor([0.0, 4.0 / 3])) - f).abs().max()) > 0.1
    turned = torch.stack([y[:, 0], -2 - y[:, 1]], -1)  # about x = -1
    assert (float((features(turned) - f).abs().max()) < 1e-12) == (even is not None)


def test_pinns_are_even_about_ends_and_middle() -> None:
    model = PINN.build(DOMAIN, hidden=(8,), periodic=(0, 2), even=(False, True)).double()
    y = points()
    for centre in (-1.0, 1.0, 3.0):
        turned = torch.stack([y[:, 0], 2 * centre - y[:, 1]], -1)
        torch.testing.assert_close(model(turned), model(y), rtol=0, atol=1e-12)
    recipe = json.loads(json.dumps(model.recipe))
    assert recipe.pop("model") == "PINN" and recipe["even"] == [False, True]
    again = PINN.build(**recipe).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(y), model(y))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="whole number >= 0 for each of the 2"):
        PeriodicFeatures(DOMAIN, (1,))
    with pytest.raises(ValueError, match="True only where there are harmonics"):
        PeriodicFeatures(DOMAIN, (0, 2), even=(True, True))
    with pytest.raises(ValueError, match="expects 2 along the last axis"):
        PeriodicFeatures(DOMAIN, (0, 2))(torch.zeros(4, 3))
