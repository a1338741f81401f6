"""DeepONet: the formula, how outputs share nets, what it refuses, and its way through a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from opflow import Batch, Grid
from opflow.interop import Predictor
from opflow.layers import BranchTrunk, Normalized, Normalizer
from opflow.models import DeepONet
from opflow.models.recipe import build_model
from opflow.pde import AutogradDerivatives
from opflow.training import save_checkpoint

DOUBLE = {"dtype": torch.float64}
STRATEGIES = ["independent", "split_both", "split_branch", "split_trunk"]
strategies = pytest.mark.parametrize("multi_output", STRATEGIES)
SMALL = {"basis": 5, "branch": (6,), "trunk": (4, 3)}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def points(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def built(*arguments, **options) -> DeepONet:
    torch.manual_seed(0)
    return DeepONet.build(*arguments, **(SMALL | options)).double()


# The formula


@strategies
def test_cartesian_equals_aligned_equals_the_double_loop(multi_output: str) -> None:
    model = built((4, 3), 2, 2, 3, multi_output=multi_output, domain=((0, 1), (0, 1)))
    u, y = randn(3, 2, 4, 3), points(6, 2)
    cartesian = model(u, y)
    assert cartesian.shape == (3, 6, 3)
    loop = torch.stack([torch.stack([model(one[None], place[None])[0, 0] for place in y]) for one in u])
    torch.testing.assert_close(cartesian, loop, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(u, y.expand(3, 6, 2)), cartesian, rtol=1e-12, atol=1e-12)
    own = points(3, 6, 2, seed=5)
    each = torch.cat([model(u[i : i + 1], own[i]) for i in range(3)])
    torch.testing.assert_close(model(u, own), each, rtol=1e-12, atol=1e-12)


def test_the_formula_written_out() -> None:
    """One output, bare coordinates: linear-activation-linear branch, and an activation on the trunk's last layer."""
    model = built(7, activation="tanh", basis=5, branch=(6,), trunk=(4,))
    u, y = randn(3, 1, 7), points(6, 1)
    b1, b2 = model.branch[1].nets[0].linears
    t1, t2 = model.trunk[0].nets[0][0].linears
    branch = b2(torch.tanh(b1(u[:, 0])))
    trunk = torch.tanh(t2(torch.tanh(t1(y))))
    expected = (branch @ trunk.mT + model.combine.bias)[..., None]
    torch.testing.assert_close(model(u, y), expected, rtol=1e-12, atol=1e-12)


def test_points_are_a_set() -> None:
    """Permuting the points permutes the values; a point's value does not depend on the others."""
    model, u, y = built(7, 2), randn(3, 1, 7), points(9, 2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(u, y[order]), model(u, y)[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(u, y[2:4]), model(u, y)[:, 2:4], rtol=1e-12, atol=1e-12)
    assert model(u, y[:0]).shape == (3, 0, 1)


@strategies
def test_without_hidden_layers_in_the_branch_it_is_affine_in_u(multi_output: str) -> None:
    model, u, v, y = (
        built(7, 1, 2, 2, branch=(), multi_output=multi_output),
        randn(3, 2, 7),
        randn(3, 2, 7, seed=1),
        points(6, 1),
    )
    zero = model(0 * u, y)
    combined = model(2 * u - 3 * v, y) - zero
    torch.testing.assert_close(combined, 2 * (model(u, y) - zero) - 3 * (model(v, y) - zero), rtol=1e-11, atol=1e-11)


def test_gradients_by_inputs_coordinates_and_parameters() -> None:
    model = built(4, 2, 1, 2, multi_output="split_trunk", trunk_features=4, domain=((0, 1), (0, 2)), activation="tanh")
    names = [name for name, _ in model.named_parameters()]

    def function(u, y, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (u, y))

    leaves = (randn(2, 1, 4), points(3, 2), *(p.detach() for p in model.parameters()))
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_its_output_has_derivatives_by_the_coordinates() -> None:
    """As a physics-informed loss asks for them: aligned points, one letter a differentiation."""
    model, u = built(5, 2, activation="tanh", domain=((0, 1), (0, 1))), randn(2, 1, 5)
    h, inner = 1e-4, 0.05 + 0.9 * points(2, 4, 2)
    step = torch.tensor([0.0, h], **DOUBLE)
    found = AutogradDerivatives(("t", "x"), ("state",))(model, Batch(input=u, coords=inner))["state"]
    with torch.no_grad():
        left, centre, right = (model(u, inner.detach() + k * step)[..., 0] for k in (-1, 0, 1))
    torch.testing.assert_close(found.d("x").detach(), (right - left) / (2 * h), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.d("xx").detach(), (right - 2 * centre + left) / h**2, rtol=1e-4, atol=1e-5)


def test_coordinates_of_the_domain_are_scaled() -> None:
    """With the same parameters, a domain and its coordinates may be stretched together."""
    near, far = built(5, domain=((0, 1),)), built(5, domain=((-2, 6),))
    far.load_state_dict(near.state_dict())
    u, y = randn(2, 1, 5), points(6, 1)
    torch.testing.assert_close(far(u, 8 * y - 2), near(u, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
def test_vmap_over_samples_equals_the_batch(activation: str) -> None:
    model, u, y = built(5, 1, activation=activation, domain=((0, 1),)), randn(4, 1, 5), points(4, 3, 1)
    one = torch.vmap(lambda u, y: model(u[None], y)[0])
    torch.testing.assert_close(one(u, y), model(u, y), rtol=1e-12, atol=1e-12)


# Several outputs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize("out", [1, 3])
@strategies
def test_number_of_parameters(multi_output: str, out: int) -> None:
    """Nets per strategy as the paper counts them; with one output all are the same model."""
    model = built((4, 3), 2, 2, out, multi_output=multi_output)
    apart = {"independent": (1, 1), "split_both": (out, out), "split_branch": (out, 1), "split_trunk": (1, out)}
    branch = linear(24, 6) + linear(6, 5 * apart[multi_output][0])
    trunk = linear(2, 4) + linear(4, 3) + linear(3, 5 * apart[multi_output][1])
    nets = out if multi_output == "independent" else 1
    assert sum(p.numel() for p in model.parameters()) == nets * (branch + trunk) + out
    b, t = model.branch(randn(2, 2, 4, 3)), model.trunk(points(7, 2))
    assert b.shape == (2, 1 if multi_output == "split_trunk" else out, 5)
    assert t.shape == (7, 1 if multi_output == "split_branch" else out, 5)


def test_independent_outputs_are_independent() -> None:
    """Each output has a gradient by its own nets only; with nets split among the outputs, all share hidden layers."""
    for multi_output, shared in (("independent", False), ("split_both", True)):
        model = built(5, 1, 1, 2, multi_output=multi_output)
        y = model(randn(3, 1, 5), points(4, 1))
        first = torch.autograd.grad(y[..., 0].sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
        second = torch.autograd.grad(y[..., 1].sum(), list(model.parameters()), allow_unused=True)
        both = [
            a is not None and b is not None and bool(((a != 0) & (b != 0)).any())
            for a, b in zip(first, second, strict=True)
        ]
        assert any(both) == shared


def test_sharing_shows_in_the_rank() -> None:
    """With shared coefficients or functions, the outputs of all samples at all points span at most `basis` functions."""
    u, y = randn(40, 1, 5), points(60, 1)
    for multi_output, rank in (("split_branch", "o"), ("split_trunk", "b")):
        model = built(5, 1, 1, 3, multi_output=multi_output, trunk_features=16)
        values = (model(u, y) - model.combine.bias).detach()
        rows = values.permute(0, 2, 1).flatten(0, 1) if rank == "o" else values.flatten(1)
        assert int(torch.linalg.matrix_rank(rows, rtol=1e-10)) <= 5
        other = values.flatten(1) if rank == "o" else values.permute(0, 2, 1).flatten(0, 1)
        assert int(torch.linalg.matrix_rank(other, rtol=1e-10)) > 5


# POD


def pod(multi_output: str = "independent") -> tuple[DeepONet, torch.Tensor, Grid]:
    grid = Grid((6, 5), extent=[(0, 1), (0, 2)])
    model = built(7, 2, 1, 2, trunk="pod", grid=grid, multi_output=multi_output)
    targets = randn(20, 30, 2, seed=8)
    model.trunk.fit(targets)
    return model, targets, grid


@strategies
def test_pod_is_its_mean_and_a_sum_of_modes(multi_output: str) -> None:
    model, targets, grid = pod(multi_output)
    u, y = randn(3, 1, 7), grid.points().reshape(-1, 2)
    modes, branch = model.trunk.modes.expand(-1, 2, -1), model.branch(u).expand(-1, 2, -1)
    expected = torch.einsum("bok,pok->bpo", branch, modes) + targets.mean(0)
    torch.testing.assert_close(model(u, y), expected, rtol=1e-12, atol=1e-12)
    assert model.combine.bias is None
    with pytest.raises(ValueError, match=r"coordinate 1 is 2\.5 but \[0, 2\] is expected"):
        model(u, torch.tensor([[0.5, 2.5]], **DOUBLE))


@strategies
def test_pod_through_recipe_and_state(multi_output: str, tmp_path: Path) -> None:
    model, _, grid = pod(multi_output)
    save_checkpoint(tmp_path, model)
    u, y = randn(3, 1, 7), grid.points().reshape(-1, 2)
    prediction = Predictor.load(tmp_path)(u.numpy(), y.numpy())
    np.testing.assert_array_equal(prediction, model(u, y).detach().numpy())


def test_pod_arguments_that_contradict_are_refused_in_a_sentence() -> None:
    grid = Grid(8)
    for options in ({"trunk": "pod"}, {"grid": grid}, {"trunk": "pod", "grid": grid, "domain": ((0, 1),)},
                    {"trunk": "pod", "grid": grid, "trunk_features": 4}):  # fmt: skip
        with pytest.raises(ValueError, match="'pod' takes a grid and neither of the others"):
            built(5, **options)
    with pytest.raises(ValueError, match="give hidden widths, for example"):
        built(5, trunk="svd")
    with pytest.raises(ValueError, match="for each of the 2 coordinates"):
        built(5, 2, trunk="pod", grid=grid)


# Recipes and checkpoints


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multi_output": "split_branch", "activation": "relu"},
        {"trunk_features": 6, "fourier_scale": 2.0, "domain": ((0, 1), (-1, 1))},
        {"branch": (), "basis": 2, "trunk": ()},
    ],
)
def test_a_recipe_is_plain_and_rebuilds_the_model(options) -> None:
    model = built((4, 3), 2, 2, 2, **options)
    recipe = json.loads(json.dumps(model.recipe))
    assert recipe == model.recipe
    torch.manual_seed(1)
    other = build_model(recipe).double()
    assert other.recipe == model.recipe
    other.load_state_dict(model.state_dict())
    u, y = randn(3, 2, 4, 3), points(6, 2)
    assert torch.equal(other(u, y), model(u, y))


def normalised(inner: nn.Module) -> Normalized:
    return Normalized(
        inner,
        Normalizer([1.0, 0.0], [2.0, 3.0]),
        Normalizer([5.0, -1.0], [10.0, 0.1], points=True),
        Normalizer([0.5], [0.25], points=True),
    ).double()


def test_normalised_it_works_in_physical_units() -> None:
    inner = built(6, 1, 2, 2)
    model, u, y = normalised(inner), randn(3, 2, 6), points(4, 1)
    scaled = (u - torch.tensor([[1.0], [0.0]])) / torch.tensor([[2.0], [3.0]])
    expected = inner(scaled, (y - 0.5) / 0.25) * torch.tensor([10.0, 0.1], **DOUBLE) + torch.tensor(
        [5.0, -1.0], **DOUBLE
    )
    torch.testing.assert_close(model(u, y), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(u, y.expand(3, 4, 1)), model(u, y), rtol=1e-12, atol=1e-12)


def test_predictor_rebuilds_it_from_a_checkpoint(tmp_path: Path) -> None:
    """NumPy in, NumPy out, at points of the batch or of each sample, also in pieces and for no sample at all."""
    model = normalised(built(6, 1, 2, 2, trunk_features=4))
    assert model.recipe["points"] == ["output", "coords"]
    save_checkpoint(tmp_path, model)
    predictor = Predictor.load(tmp_path, batch_size=2)
    u, shared, own = randn(5, 2, 6), points(4, 1), points(5, 4, 1, seed=6)
    for y in (shared, own):
        expected = model(u, y).detach().numpy()
        np.testing.assert_allclose(predictor(u.numpy(), y.numpy()), expected, rtol=1e-12, atol=1e-12)
        assert predictor(u[:0].numpy(), y[:0].numpy() if y.ndim == 3 else y.numpy()).shape[::2] == (0, 2)
    with pytest.raises(ValueError, match="sensors that it was built for"):
        predictor(u[..., :5].numpy(), shared.numpy())


def test_recipes_from_before_points_still_build() -> None:
    model = Normalized(built(6), Normalizer([1.0], [2.0]))
    old = {key: value for key, value in model.recipe.items() if key != "points"}
    rebuilt = build_model(old)
    assert rebuilt.recipe == model.recipe and not rebuilt.input.points


# What it refuses


def test_other_sensors_are_refused_in_a_sentence() -> None:
    model = built((4, 3), 2)
    for shape in ((2, 1, 4, 4), (2, 1, 3, 4), (2, 1, 8, 6)):
        with pytest.raises(ValueError, match=r"sensors that it was built for, \(batch, 1, 4, 3\).*interpolate u there"):
            model(torch.zeros(shape, **DOUBLE), points(5, 2))
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 12\) with 3 axes, but DeepONet expects 4"):
        model(torch.zeros(2, 1, 12, **DOUBLE), points(5, 2))


def test_coordinates_that_do_not_fit_are_refused_in_a_sentence() -> None:
    model, u = built(5, 2, domain=((0, 1), (-1, 2))), randn(3, 1, 5)
    for shape in ((5,), (5, 1), (3, 5, 3), (1, 3, 5, 2)):
        with pytest.raises(ValueError, match=r"coords has shape .* but DeepONet expects \(points, 2\)"):
            model(u, torch.zeros(shape, **DOUBLE))
    with pytest.raises(ValueError, match="coords has 2 sets of points but u has 3 samples"):
        model(u, points(2, 5, 2))
    with pytest.raises(TypeError, match=r"coords is torch\.float32 but DeepONet works in torch\.float64"):
        model(u, points(5, 2).float())
    with pytest.raises(ValueError, match="coords is on meta"):
        model(u, points(5, 2).to("meta"))


@pytest.mark.parametrize("bad", [[1.01, 0.0], [0.5, -1.5], [math.nan, 0.0], [0.5, math.inf]])
def test_coordinates_outside_the_domain_are_refused_in_a_sentence(bad) -> None:
    model, u = built(5, 2, domain=((0, 1), (-1, 2))), randn(3, 1, 5)
    y = points(5, 2)
    y[3] = torch.tensor(bad)
    for coords in (y, torch.stack([points(5, 2), y, points(5, 2)])):
        with pytest.raises(ValueError, match=r"1 of \d+ points lie outside the domain .*ask inside, or build"):
            model(u, coords)
    y[3] = torch.tensor([1.0, 2.0]) + 1e-16
    assert model(u, y).isfinite().all(), "the boundary belongs to the domain"
    edge = copy.deepcopy(model).float()
    assert edge(u.float(), torch.linspace(-1, 2, 7)[:, None] * torch.tensor([0.0, 1.0])).isfinite().all()


def test_values_are_not_looked_at_under_transforms() -> None:
    """There the domain is not checked: a coordinate outside is extrapolated and not an error of torch."""
    model, u, y = built(5, domain=((0, 1),)), randn(3, 1, 5), points(4, 1) + 2
    outside = torch.vmap(lambda one: model(one[None], y)[0])(u)
    model.domain = None
    torch.testing.assert_close(outside, model(u, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((0,), {}, "sensors is 0; give positive whole numbers"),
        (((),), {}, r"sensors is \(\); give positive"),
        (((4, -1),), {}, r"sensors is \(4, -1\)"),
        ((5, 0), {}, "coord_dim is 0"),
        ((5, 1, 0), {}, "in_channels is 0"),
        ((5, 1, 1, 0), {}, "out_channels is 0"),
        ((5,), {"basis": 0}, "basis is 0"),
        ((5,), {"branch": (4, 0)}, r"branch is \(4, 0\)"),
        ((5,), {"trunk": (2.5,)}, "trunk is 2.5"),
        ((5,), {"multi_output": "split"}, "multi_output is 'split'; give one of independent, split_both"),
        ((5,), {"activation": "sin"}, "activation is 'sin'; give one of gelu"),
        ((5,), {"trunk_features": 5}, "out_features 5; give a positive and an even number"),
        ((5,), {"domain": ((1, 0),)}, "give a pair"),
        ((5, 2), {"domain": ((0, 1),)}, "for each of the 2 coordinates"),
    ],
)
def test_wrong_values_are_refused_in_a_sentence(arguments, options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        built(*arguments, **options)


def test_parts_of_your_own() -> None:
    """Any branch and trunk with the stated shapes: a linear functional times monomials."""

    class Monomials(nn.Module):
        def forward(self, y):
            return torch.cat([y**k for k in range(3)], dim=-1)[..., None, :]

    branch = nn.Sequential(nn.Flatten(1), nn.Linear(6, 3), nn.Unflatten(-1, (1, 3)))
    model = DeepONet(branch, Monomials(), BranchTrunk(1), sensors=(6,)).double()
    u, y = randn(2, 1, 6), points(4, 1)
    b = branch(u)[:, 0]
    expected = b[:, :1] + b[:, 1:2] * y.mT + b[:, 2:] * y.mT**2
    torch.testing.assert_close(model(u, y)[..., 0], expected, rtol=1e-12, atol=1e-12)
    assert model.recipe is None
