"""The multigrid neural operator: the published model, its boundary values, its recipe."""

from __future__ import annotations

import pytest
import torch

from opflow.models import MgNO
from opflow.models.recipe import build_model


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_published_models_have_the_published_sizes() -> None:
    assert size(MgNO.build()) == 572_661
    assert size(MgNO.build(n_layers=5)) == 738_573


def test_the_default_output_vanishes_on_the_boundary_and_the_published_one_does_not() -> None:
    x = torch.randn(2, 1, 33, 40)
    for model, vanishes in ((MgNO.build(), True), (MgNO.build(impose=False), False)):
        u = model(x)
        ends = (u[..., 0, :], u[..., -1, :], u[..., :, 0], u[..., :, -1])
        assert all(bool((end == 0).all()) is vanishes for end in ends)


@pytest.mark.parametrize("cycle", ["backslash", "V"])
def test_a_neumann_output_has_no_normal_derivative(cycle: str) -> None:
    u = MgNO.build(n_levels=4, boundary="neumann", cycle=cycle).double()(torch.randn(2, 1, 21, 16).double())
    for axis in (2, 3):
        for v in (u, u.flip(axis)):
            slope = -3 * v.select(axis, 0) + 4 * v.select(axis, 1) - v.select(axis, 2)
            assert slope.abs().max() < 1e-12 * u.abs().max()


@pytest.mark.parametrize("cycle", ["backslash", "V"])
def test_a_periodic_model_commutes_with_shifts(cycle: str) -> None:
    model = MgNO.build(n_levels=4, boundary="periodic", cycle=cycle, norm="group").double()
    x = torch.randn(1, 1, 32, 24).double()
    torch.testing.assert_close(model(x.roll(8, -1)), model(x).roll(8, -1), rtol=1e-10, atol=1e-10)


def test_a_recipe_builds_the_same_model() -> None:
    model = MgNO.build(
        2, 3, 5, 2, n_levels=3, cycle="V", boundary=("dirichlet", "periodic"), impose=False, dim=2,
        smoothing=[(1, 1), (2, 1), (3, 0)], reference_shape=(9, 8), norm="group", activation="tanh",
    )  # fmt: skip
    twin = build_model(model.recipe)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 13, 16)
    assert torch.equal(twin(x), model(x)) and twin.recipe == model.recipe


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"boundary": "free"}, "boundary is 'free'"),
        ({"n_layers": 0}, "n_layers is 0; give a positive whole number"),
        ({"norm": "batch"}, "norm is 'batch'; give 'group' or None"),
        ({"activation": "sine"}, "activation is 'sine'; give one of"),
        ({"cycle": "F"}, "cycle is 'F'"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MgNO.build(**options)


def test_too_coarse_a_grid_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="too coarse for 6 levels"):
        MgNO.build()(torch.zeros(1, 1, 64, 32))
