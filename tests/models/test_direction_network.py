"""Networks for search directions: the published ones by size, the multilevel one by its symmetries and its hierarchy."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.kernels.stencil.reference import Reference
from opflow.models import DirectionNetwork
from opflow.models.recipe import build_model
from opflow.models.stencil_levels import stencil_levels
from opflow.solvers.face_stencil import FaceStencil
from opflow.solvers.linear_operator import DenseOperator, LinearOperator

SHAPES = [(12, 12), (13, 7), (1, 9), (8, 8, 8), (5, 9, 6)]


def operator(shape: tuple[int, ...], sides: object = "dirichlet", batch: int = 1, scale: float = 1.0) -> FaceStencil:
    """A varying coefficient with an obstacle and a reaction."""
    generator = torch.Generator().manual_seed(0)
    a = scale * (0.5 + torch.rand(batch, *shape, generator=generator, dtype=torch.float64))
    mask = torch.ones(batch, *shape, dtype=torch.bool)
    mask[(slice(None), *[slice(n // 3, n // 2) for n in shape])] = False
    return FaceStencil.from_coefficient(
        a,
        Grid(shape, layout="cells"),
        boundary=sides,
        mask=mask,
        reaction=scale * torch.ones(1, *shape, dtype=torch.float64),
    )


def network(dim: int, variant: str = "multilevel", **options: int) -> DirectionNetwork:
    torch.manual_seed(0)
    return DirectionNetwork.build(dim, variant, **options).double()


def residuals(A: FaceStencil, n: int = 2) -> Tensor:
    r = torch.randn(n, *A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r = r if A.mask is None else r * A.mask
    return r / r.flatten(1).norm(dim=1).view(-1, *[1] * len(A.shape))


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_published_networks_have_the_published_sizes() -> None:
    assert size(DirectionNetwork.build(3, "64")) == 97_457
    assert size(DirectionNetwork.build(3, "128")) == 152_881


def test_the_published_network_is_its_equations() -> None:
    """Two chains a and b of convolutions on each grid, written out as in the published code."""
    model = network(2, "128", hidden_channels=3)
    body, s = model.body, torch.relu
    r = residuals(operator((8, 6)))
    f = body.first(r[:, None])
    a = s(body.down[0](f))
    b = s(body.down[1](a))
    for i in range(2, 6, 2):
        a = s(body.down[i](b)) + a
        b = s(body.down[i + 1](a))
    coarse = torch.nn.functional.avg_pool2d(b, 2)
    q = s(body.coarse[0](coarse))
    for i in range(1, 9, 2):
        coarse = s(body.coarse[i](q)) + coarse
        q = s(body.coarse[i + 1](coarse))
    coarse = s(body.coarse[9](q)) + coarse
    u = torch.nn.functional.interpolate(coarse, scale_factor=2) + b
    for i in range(0, 6, 2):
        u = s(body.up[i + 1](s(body.up[i](u)))) + u
    torch.testing.assert_close(model(r), body.last(u)[:, 0])


@pytest.mark.parametrize("variant", ["64", "128", "multilevel"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_and_either_form_of_a_residual(variant: str, shape: tuple[int, ...]) -> None:
    A = operator(shape)
    model, r = network(len(shape), variant, hidden_channels=4).setup(A), residuals(A)
    d = model(r)
    assert d.shape == r.shape and bool(d.any())
    torch.testing.assert_close(model(r[:, None]), d[:, None])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sides", ["dirichlet", "neumann", "periodic"])
def test_the_multilevel_network_is_odd_homogeneous_and_stays_in_the_domain(shape: tuple[int, ...], sides: str) -> None:
    A = operator(shape, "neumann") if sides != "periodic" else periodic(shape)
    if sides == "dirichlet":
        A = operator(shape)
    model, r = network(len(shape)).setup(A), residuals(A)
    d = model(r)
    assert torch.equal(model(-r), -d)
    torch.testing.assert_close(model(3 * r), 3 * d, rtol=1e-12, atol=1e-14)
    assert not model(torch.zeros_like(r)).any()
    assert A.mask is not None and not (d * ~A.mask).any()


def periodic(shape: tuple[int, ...]) -> FaceStencil:
    mask = torch.ones(1, *shape, dtype=torch.bool)
    mask[(0, *[n // 2 for n in shape])] = False
    ones = torch.ones(1, *shape, dtype=torch.float64)
    return FaceStencil.from_coefficient(
        ones, Grid(shape, layout="periodic"), boundary="periodic", mask=mask, reaction=0.1 * ones
    )


def test_it_is_not_linear() -> None:
    A = operator((12, 12))
    model, r = network(2).setup(A), residuals(A)
    gap = model(r[:1] + r[1:]) - model(r[:1]) - model(r[1:])
    assert gap.norm() > 1e-4 * model(r).norm()


@pytest.mark.parametrize("scale", [1e-30, 7.0, 1e60])
def test_multiplying_the_operator_changes_nothing_but_rounding(scale: float) -> None:
    model = network(2).float()  # the network's own precision could not even hold the largest of these operators
    A = operator((9, 12))
    r = residuals(A)
    d = model.setup(A)(r)
    scaled = model.setup(operator((9, 12), scale=scale))(r)
    torch.testing.assert_close(scaled, d, rtol=1e-4, atol=1e-5 * d.abs().max().item())


def test_a_batch_of_operators_is_each_of_them() -> None:
    A = operator((9, 12), batch=3)
    model, r = network(2), residuals(A, 3)
    together = model.setup(A)(r)
    for i in range(3):
        one = FaceStencil(
            [w[i : i + 1] for w in A.weights], mask=A.mask[i : i + 1], reaction=A.reaction, layout="cells"
        )
        torch.testing.assert_close(model.setup(one)(r[i : i + 1]), together[i : i + 1], rtol=1e-10, atol=1e-12)


def test_a_periodic_operator_commutes_with_shifts_by_whole_blocks() -> None:
    ones = torch.ones(1, 16, 8, dtype=torch.float64)
    A = FaceStencil.from_coefficient(ones, Grid((16, 8), layout="periodic"), boundary="periodic", reaction=ones)
    model, r = network(2).setup(A), residuals(A)
    torch.testing.assert_close(model(r.roll(8, 1)), model(r).roll(8, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(32, 32), (17, 32), (12, 12, 12)], ids=str)
def test_with_its_network_silent_it_is_multigrid(shape: tuple[int, ...]) -> None:
    """Damped Jacobi and corrections from blocks, one exact step along each result: a rate that does not depend on the size."""
    model = network(len(shape))
    for smoother in (model.body.down, model.body.up):
        torch.nn.init.zeros_(smoother.last.weight)
    for refined in (1, 2):
        finer = tuple(refined * n for n in shape)
        A = FaceStencil.from_coefficient(torch.ones(1, *finer, dtype=torch.float64), Grid(finer, layout="cells"))
        model.setup(A)
        r = A.apply(torch.ones(1, *finer, dtype=torch.float64))
        start = r.norm()
        for _ in range(15):
            d = model(r)
            Ad = A.apply(d)
            r = r - (d * r).sum() / (d * Ad).sum() * Ad
        assert r.norm() < 0.02 * start


@pytest.mark.parametrize("dim", [2, 3])
def test_coarse_grids_are_aggregates_down_to_a_point(dim: int) -> None:
    """On a box of even sizes: half of P^T A P, and the whole of P^T c."""
    shape = (8, 4, 6)[:dim]
    grid = Grid(shape, [(0.0, float(n)) for n in shape], layout="cells")
    a = torch.ones(1, *shape, dtype=torch.float64)
    A = FaceStencil.from_coefficient(a, grid, boundary="dirichlet")
    levels = stencil_levels(A, torch.float64)
    fine, coarse = levels[0], levels[1]
    assert coarse.stencil.shape == tuple(n // 2 for n in shape) and levels[-1].stencil.shape == (1,) * dim
    unit = A.diagonal().max()

    def prolonged(e: Tensor) -> Tensor:
        for axis in range(1, dim + 1):
            e = e.repeat_interleave(2, dim=axis)
        return e

    def restricted(r: Tensor) -> Tensor:
        for axis in range(1, dim + 1):
            r = r.unflatten(axis, (-1, 2)).sum(axis + 1)
        return r

    e = torch.randn(1, *coarse.stencil.shape, dtype=torch.float64)
    galerkin = restricted(A.apply(prolonged(e))) / unit
    torch.testing.assert_close(Reference().apply(coarse.stencil, e), galerkin / 2)
    reacting = FaceStencil(A.weights, reaction=a, layout="cells")
    unit = reacting.diagonal().max()
    found = stencil_levels(reacting, torch.float64)[1].couplings.reaction
    torch.testing.assert_close(found, restricted(a) / unit)
    assert fine.couplings.reaction is None


def test_weak_axes_are_left_alone_until_they_are_strong() -> None:
    grid = Grid((16, 16), layout="cells")
    a = torch.ones(1, 16, 16, dtype=torch.float64)
    levels = stencil_levels(FaceStencil.from_coefficient((0.01 * a, a), grid), torch.float32)
    shapes = [level.stencil.shape for level in levels]
    assert shapes[:4] == [(16, 16), (16, 8), (16, 4), (16, 2)] and shapes[-1] == (1, 1)
    assert all(m * n < math.prod(before) for before, (m, n) in pairwise(shapes))


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 3)], ids=str)
def test_gradients(shape: tuple[int, ...]) -> None:
    A = operator(shape)
    model = network(len(shape), hidden_channels=2).setup(A)
    names, values = zip(*model.named_parameters(), strict=True)

    def called(r: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), r)

    r = residuals(A, 1).requires_grad_()
    inputs = (r, *[v.detach().requires_grad_() for v in values])
    # Along random directions: column by column takes a minute.
    assert torch.autograd.gradcheck(called, inputs, eps=1e-7, fast_mode=True)


@pytest.mark.parametrize("variant", ["64", "multilevel"])
def test_every_parameter_changes_the_output(variant: str) -> None:
    A = operator((8, 8))
    model, r = network(2, variant, hidden_channels=3).setup(A), 10 * residuals(A)
    model(r).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("variant", ["64", "multilevel"])
def test_the_output_has_the_residuals_dtype_and_the_network_keeps_its_own(variant: str) -> None:
    A = operator((8, 9))
    model, r = network(2, variant).float().setup(A), residuals(A)
    d = model(r)
    assert d.dtype == torch.float64 and model(r.float()).dtype == torch.float32
    torch.testing.assert_close(
        copy.deepcopy(model).double().setup(A)(r), d, rtol=1e-4, atol=1e-4 * d.abs().max().item()
    )


def test_state_and_recipe_travel_without_the_operator() -> None:
    A = operator((8, 9))
    model = network(2, hidden_channels=5).setup(A)
    assert not any("level" in name for name in model.state_dict())
    twin = build_model(model.recipe).double()
    twin.load_state_dict(model.state_dict())
    r = residuals(A)
    assert twin.recipe == model.recipe and torch.equal(twin.setup(A)(r), model(r))


def test_new_parameters_and_new_operators_are_seen_at_once() -> None:
    """What is kept of an operator between calls must not outlive the parameters it was made with."""
    A, B = operator((8, 9)), operator((10, 9))
    model, other = network(2).setup(A), network(2, hidden_channels=8)
    with torch.no_grad():
        model(residuals(A))
        for p in other.parameters():
            p.mul_(1.5)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(residuals(A)), other.setup(A)(residuals(A)))
        torch.testing.assert_close(model.setup(B)(residuals(B)), other.setup(B)(residuals(B)))
        model.float()  # moves what it keeps, too
        assert model(residuals(B).float()).dtype == torch.float32


class Bare(LinearOperator):
    shape = (4, 4)


def nine_points() -> FaceStencil:
    k = torch.tensor([2.0, 2.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    return FaceStencil.from_tensor(k, Grid((6, 6)))


@pytest.mark.parametrize(
    ("use", "error", "sentence"),
    [
        (lambda: network(2)(torch.ones(1, 8, 8)), RuntimeError, "before setup"),
        (lambda: network(2).setup(DenseOperator(torch.eye(4))), ValueError, r"unknowns of shape \(4,\)"),
        (lambda: network(2).setup(Bare()), TypeError, "A is a Bare"),
        (lambda: network(2).setup(nine_points()), ValueError, "couples points across corners"),
        (lambda: network(2).setup(operator((8, 8)))(torch.ones(1, 8, 9)), ValueError, r"has shape \(1, 1, 8, 9\)"),
        (lambda: network(2).setup(operator((8, 8), batch=3))(torch.ones(2, 8, 8)), ValueError, "one for each operator"),
        (lambda: network(2).setup(operator((8, 8, 8))), ValueError, "has 2 axes"),
        (lambda: network(2, "64").setup(FaceStencil([torch.ones(1, 4)])), ValueError, "has 2 axes"),
        (lambda: network(2, "64")(torch.ones(1, 2, 8, 8)), ValueError, "network has 2 axes"),
        (lambda: network(2, "64")(torch.ones(4, 100)), ValueError, "network has 2 axes"),
        (lambda: network(2, "64")(torch.ones(1, 8, 8, dtype=torch.int64)), TypeError, "r is torch.int64"),
        (lambda: DirectionNetwork.build(1), ValueError, "dim is 1"),
        (lambda: DirectionNetwork.build(2, "256"), ValueError, "variant is '256'"),
        (lambda: DirectionNetwork.build(2, "64", 0), ValueError, "hidden_channels is 0"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused_in_a_sentence(use, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        use()
