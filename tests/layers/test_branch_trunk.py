"""BranchTrunk and what stands before it: the sum itself, features of coordinates, and the modes of a POD."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from opflow import Grid
from opflow.layers import BoxCoordinates, BranchTrunk, FourierFeatures, Normalizer, PODTrunk

DOUBLE = {"dtype": torch.float64}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def layer(out_channels: int | None = None) -> BranchTrunk:
    made = BranchTrunk(out_channels).double()
    made.bias.data = randn(*made.bias.shape, seed=9)
    return made


# The sum


def test_cartesian_equals_aligned_equals_the_double_loop() -> None:
    combine, branch, trunk = layer(), randn(3, 8), randn(5, 8, seed=1)
    y = combine(branch, trunk)
    loop = torch.stack([torch.stack([(b * t).sum() for t in trunk]) for b in branch]) + combine.bias
    torch.testing.assert_close(y, loop, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(combine(branch, trunk.expand(3, 5, 8)), y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(combine(branch, trunk[None]), y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("of_branch", "of_trunk"), [(3, 3), (3, 1), (1, 3), (1, 1)])
def test_outputs_apart_or_shared_equal_the_triple_loop(of_branch: int, of_trunk: int) -> None:
    combine, branch, trunk = layer(3), randn(2, of_branch, 4), randn(5, of_trunk, 4, seed=1)
    y = combine(branch, trunk)
    assert y.shape == (2, 5, 3)
    for b in range(2):
        for p in range(5):
            for o in range(3):
                value = branch[b, o % of_branch] @ trunk[p, o % of_trunk] + combine.bias[o]
                assert abs(float((y[b, p, o] - value).detach())) < 1e-13
    aligned = torch.stack([trunk, 2 * trunk])
    expected = torch.stack([combine(branch[:1], trunk)[0], combine(branch[1:], 2 * trunk)[0]])
    torch.testing.assert_close(combine(branch, aligned), expected, rtol=1e-13, atol=1e-13)


def test_it_is_bilinear_without_the_bias() -> None:
    combine = BranchTrunk(bias=False)
    b, c, t = randn(3, 8), randn(3, 8, seed=1), randn(5, 8, seed=2)
    torch.testing.assert_close(combine(2 * b - c, t), 2 * combine(b, t) - combine(c, t), rtol=1e-12, atol=1e-12)
    assert not list(combine.parameters())


def test_shared_outputs_are_computed_by_one_product() -> None:
    """An axis of size 1 must not turn the GEMM into a batch of small ones: one matrix product is in the graph."""
    for shapes in (((16, 1, 8), (40, 3, 8)), ((16, 3, 8), (40, 1, 8))):
        branch, trunk = randn(*shapes[0]), randn(*shapes[1])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layer(3)(branch, trunk)
        sizes = [event for event in profile.events() if event.name in ("aten::mm", "aten::bmm")]
        assert len(sizes) == 1


def test_gradients_of_both_sides_and_of_the_bias() -> None:
    combine, branch, trunk = layer(2), randn(3, 2, 4).requires_grad_(), randn(5, 1, 4, seed=1).requires_grad_()

    def function(branch, trunk, bias):
        return torch.func.functional_call(combine, {"bias": bias}, (branch, trunk))

    bias = combine.bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (branch, trunk, bias))
    assert torch.autograd.gradgradcheck(function, (branch, trunk, bias))


@pytest.mark.parametrize(
    ("out_channels", "branch", "trunk"),
    [
        (None, (3, 8), (5, 7)),
        (None, (3, 8), (8,)),
        (None, (8,), (5, 8)),
        (None, (3, 8), (2, 5, 8)),
        (None, (3, 1, 8), (5, 1, 8)),
        (2, (3, 8), (5, 8)),
        (2, (3, 3, 8), (5, 1, 8)),
        (2, (3, 2, 8), (5, 3, 8)),
        (2, (3, 2, 8), (2, 5, 2, 8)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_a_sentence(out_channels, branch, trunk) -> None:
    with pytest.raises(ValueError, match=r"branch has shape .* but BranchTrunk expects .*basis\)"):
        BranchTrunk(out_channels)(torch.zeros(branch), torch.zeros(trunk))


def test_wrong_dtypes_name_the_side() -> None:
    with pytest.raises(TypeError, match=r"trunk is torch\.float64 but BranchTrunk works in torch\.float32"):
        BranchTrunk()(torch.zeros(3, 8), torch.zeros(5, 8, **DOUBLE))
    with pytest.raises(TypeError, match=r"trunk is torch\.float64 but BranchTrunk works in torch\.float32"):
        BranchTrunk(bias=False)(torch.zeros(3, 8), torch.zeros(5, 8, **DOUBLE))
    with pytest.raises(ValueError, match="out_channels is 0"):
        BranchTrunk(0)


# Features of coordinates


def test_fourier_features_are_the_stated_waves() -> None:
    features = FourierFeatures(2, 6, scale=1.5).double()
    y = randn(4, 5, 2)
    angle = 2 * math.pi * (y[..., None, :] * features.frequencies).sum(-1)
    expected = torch.cat([angle.cos(), angle.sin()], dim=-1)
    torch.testing.assert_close(features(y), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(features(y).square().sum(-1), torch.full((4, 5), 3.0, **DOUBLE))


def test_fourier_features_have_the_stated_scale() -> None:
    torch.manual_seed(0)
    frequencies = FourierFeatures(2, 4000, scale=3.0).frequencies
    assert float(frequencies.std()) == pytest.approx(3.0, rel=0.05) and abs(float(frequencies.mean())) < 0.2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 4, 1.0), "in_features is 0"),
        ((1, 5, 1.0), "out_features 5; give a positive and an even number"),
        ((1, 4, 0.0), "scale is 0.0"),
        ((1, 4, math.nan), "scale is nan"),
    ],
)
def test_wrong_features_are_refused_in_a_sentence(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        FourierFeatures(*arguments[:2], scale=arguments[2])


def test_the_box_goes_to_the_cube() -> None:
    box = BoxCoordinates(((1.0, 3.0), (-2.0, 0.0)))
    corners = torch.tensor([[1.0, -2.0], [3.0, 0.0], [2.0, -1.0]], **DOUBLE)
    assert box(corners).tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    for domain in (((1.0, 1.0),), ((0.0, math.inf),), ((0.0, 1.0, 2.0),), ((math.nan, 1.0),)):
        with pytest.raises(ValueError, match=r"domain is .*give a pair \(low, high\)"):
            BoxCoordinates(domain)


# The modes of a POD


def fields(n: int, grid: Grid, out: int = 1, *, seed: int = 0) -> torch.Tensor:
    """Random smooth functions (n, points, out) with a mean."""
    x = grid.points().reshape(-1, grid.dim).sum(-1)
    waves = torch.stack([torch.sin((k + 1) * x + k) / (k + 1) ** 2 for k in range(8)])
    return torch.einsum("nok,kp->npo", randn(n, out, 8, seed=seed), waves) + torch.exp(x)[:, None]


GRIDS = [
    Grid(31, (0.0, 2.0)),
    Grid(24, layout="periodic"),
    Grid((9, 7), layout=("nodes", "cells"), extent=[(0, 1), (-1, 2)]),
    Grid((4, 5, 3), layout=("cells", "nodes", "periodic")),
]
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
strategies = pytest.mark.parametrize("multi_output", ["independent", "split_both", "split_branch", "split_trunk"])


@grids
@strategies
def test_modes_are_orthonormal_in_the_quadrature_of_the_grid(grid: Grid, multi_output: str) -> None:
    trunk = PODTrunk(grid, 3, 2, multi_output=multi_output).double()
    trunk.fit(fields(12, grid, 2))
    modes = trunk(grid.points().reshape(-1, grid.dim))  # (points, outputs, basis)
    weights = grid.quadrature_weights().flatten()
    gram = torch.einsum("p,poj,pok->ojk", weights, modes, modes)
    if multi_output == "split_trunk":  # a mode is one function with all outputs
        gram = gram.sum(0, keepdim=True)
    torch.testing.assert_close(gram, torch.eye(3, **DOUBLE).expand_as(gram), rtol=0, atol=1e-12)


@grids
@strategies
def test_the_error_of_the_projection_is_the_tail_of_the_singular_values(grid: Grid, multi_output: str) -> None:
    """sum_i |u_i - P u_i|^2 = sum_(k > basis) sigma_k^2, over all outputs; with the branch's shapes, through BranchTrunk."""
    basis, targets = 4, fields(15, grid, 2)
    trunk = PODTrunk(grid, basis, 2, multi_output=multi_output).double()
    singular_values = trunk.fit(targets)
    coords, weights = grid.points().reshape(-1, grid.dim), grid.quadrature_weights().flatten()
    modes, mean = trunk(coords), trunk.mean_at(coords)
    each = torch.einsum("p,npo,pok->nok", weights, targets - mean, modes.expand(-1, 2, -1))
    branch = each.sum(1, keepdim=True) if multi_output == "split_trunk" else each
    projected = BranchTrunk(2, bias=False)(branch, modes) + mean
    error = torch.einsum("p,npo->", weights, (targets - projected).square())
    torch.testing.assert_close(error, singular_values[:, basis:].square().sum(), rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(mean, targets.mean(0), rtol=1e-12, atol=1e-12)
    # In the span of the mean and the modes, the projection is the identity.
    torch.testing.assert_close(BranchTrunk(2, bias=False)(3 * branch, modes), 3 * (projected - mean))


@pytest.mark.parametrize("layout", ["nodes", "cells", "periodic"])
def test_between_the_points_modes_are_interpolated_to_second_order(layout: str) -> None:
    y = torch.linspace(0.02, 0.98, 57, **DOUBLE)[:, None]
    errors = []
    for n in (20, 40, 80):
        grid = Grid(n, layout=layout)
        x = 2 * math.pi * grid.coordinates(0)
        trunk = PODTrunk(grid, 2).double()
        trunk.fit(torch.stack([torch.sin(x), torch.cos(x), torch.sin(x) + torch.cos(x)])[..., None])
        expected = (torch.sin(2 * math.pi * y) + torch.cos(2 * math.pi * y)) * 2 / 3
        errors.append(float((trunk.mean_at(y) - expected).abs().max()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(order - 2) < 0.3 for order in orders), errors


def test_linear_functions_are_interpolated_exactly_in_two_dimensions() -> None:
    grid = Grid((6, 5), layout=("nodes", "cells"), extent=[(0, 1), (0, 2)])
    x, y = grid.points().reshape(-1, 2).unbind(-1)
    trunk = PODTrunk(grid, 1).double()
    trunk.fit((torch.tensor([1.0, 3.0], **DOUBLE)[:, None] * (2 * x - y + 1))[..., None])
    at = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0), **DOUBLE) * torch.tensor([1.0, 2.0])
    torch.testing.assert_close(trunk.mean_at(at)[..., 0], 2 * (2 * at[..., 0] - at[..., 1] + 1), rtol=1e-12, atol=1e-12)


def test_modes_do_not_depend_on_signs_that_lapack_chose() -> None:
    grid, trunks = Grid(16), []
    for sign in (1.0, -1.0):
        trunks.append(PODTrunk(grid, 3).double())
        targets = fields(10, grid)
        trunks[-1].fit(targets.mean(0) + sign * (targets - targets.mean(0)))
    torch.testing.assert_close(trunks[0].modes, trunks[1].modes, rtol=1e-9, atol=1e-9)


def test_a_trunk_that_was_not_fitted_says_so_and_a_state_dict_brings_its_modes() -> None:
    grid, y = Grid(16), torch.rand(5, 1)
    trunk, other = PODTrunk(grid, 2), PODTrunk(grid, 2)
    with pytest.raises(RuntimeError, match=r"has no modes yet; call fit\(targets\) first, or load a checkpoint"):
        trunk(y)
    trunk.fit(fields(9, grid))
    other.load_state_dict(trunk.state_dict())
    assert torch.equal(other(y), trunk(y)) and trunk(y).dtype == torch.float32


def test_wrong_targets_and_sizes_are_refused_in_a_sentence() -> None:
    grid = Grid(16)
    with pytest.raises(ValueError, match=r"targets has shape \(9, 16\) but PODTrunk expects \(samples, 16, 1\)"):
        PODTrunk(grid, 2).fit(torch.zeros(9, 16))
    with pytest.raises(ValueError, match="5 modes were asked for but 3 samples on 16 values span only 3"):
        PODTrunk(grid, 5).fit(torch.zeros(3, 16, 1))
    with pytest.raises(ValueError, match="NaN"):
        PODTrunk(grid, 2).fit(torch.full((3, 16, 1), math.nan))
    with pytest.raises(ValueError, match="no more modes than points"):
        PODTrunk(grid, 17)
    with pytest.raises(ValueError, match="multi_output is 'split'; give one of independent"):
        PODTrunk(grid, 2, multi_output="split")
    trunk = PODTrunk(grid, 2)
    trunk.fit(fields(9, grid))
    with pytest.raises(ValueError, match="expects 1 numbers along the last axis"):
        trunk(torch.zeros(5, 2))


# Normalisation of values at points


def test_values_at_points_are_normalised_along_their_last_axis() -> None:
    mean, std = [1.0, -2.0], [3.0, 0.5]
    at_points, on_grid = Normalizer(mean, std, points=True).double(), Normalizer(mean, std).double()
    x = randn(4, 7, 2)
    torch.testing.assert_close(at_points(x), on_grid(x.mT).mT, rtol=0, atol=0)
    torch.testing.assert_close(at_points.inverse(at_points(x)), x, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match=r"expects values at points, \(batch, points, 2\), the channel last"):
        at_points(x.mT)
    with pytest.raises(ValueError, match="expects values at points"):
        at_points(x[0])
    with pytest.raises(TypeError, match=r"torch\.float32"):
        at_points(x.float())
    assert "points=True" in repr(at_points) and "points" not in repr(on_grid)
