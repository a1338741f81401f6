"""Learned multigrid cycles: the published form, the classical cycle that a V-cycle contains, boundaries, sizes, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.layers import MultigridConv
from opflow.layers.boundary import extend, impose
from opflow.layers.multigrid import Level, Prolongation, Stencil

cycles = pytest.mark.parametrize("cycle", ["backslash", "V"])
boundaries = pytest.mark.parametrize("boundary", ["dirichlet", "neumann", "periodic"])


def double(*arguments, **options) -> MultigridConv:
    torch.manual_seed(0)
    return MultigridConv(*arguments, **options).double()


# The equations


def published(conv: MultigridConv, f: Tensor) -> Tensor:
    """The backslash cycle of the paper with one smoothing a level, two on the coarsest, zeros outside: plain convolutions."""
    levels: list[Level] = list(conv.levels)
    u = F.conv2d(f, levels[0].S[0].weight, padding=1)
    found = []
    for l, level in enumerate(levels):
        for S, A in zip(level.S[l == 0 :], level.A, strict=True):
            u = u + F.conv2d(f - F.conv2d(u, A.weight, padding=1), S.weight, padding=1)
        found.append(u)
        if level.restrict is not None:
            f = F.conv2d(f, level.restrict.weight, stride=2, padding=1)
            u = F.conv2d(u, level.project.weight, stride=2, padding=1)
    for level, v in zip(levels[-2::-1], found[-2::-1], strict=True):
        u = v + F.conv_transpose2d(u, level.prolong.weight, stride=2, padding=1)
    return u


def test_the_backslash_cycle_is_the_published_one() -> None:
    conv, f = double(2, 5, 5), torch.randn(3, 2, 48, 32, dtype=torch.float64)
    torch.testing.assert_close(conv(f), published(conv, f), rtol=1e-12, atol=1e-12)


def test_both_cycles_have_the_same_number_of_parameters() -> None:
    backslash, v = (sum(p.numel() for p in MultigridConv(24, 24, cycle=c).parameters()) for c in ("backslash", "V"))
    assert backslash == v == 165_312


@cycles
@boundaries
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_w_is_linear(cycle: str, boundary: str, dim: int) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        conv = double(2, 3, 3, cycle=cycle, boundary=boundary, dim=dim).to(dtype)
        f, g = torch.randn(2, 1, 2, *(11, 8, 9)[:dim], dtype=dtype)
        together = conv(1.5 * f - 0.25 * g)
        assert (together - 1.5 * conv(f) + 0.25 * conv(g)).norm() < tolerance * together.norm()


def difference_scheme(n: int, n_levels: int) -> MultigridConv:
    """The V-cycle of -Laplacian + 1 with the five-point stencil, damped Jacobi, full weighting and bilinear interpolation."""
    conv = MultigridConv(1, 1, n_levels, cycle="V", boundary="periodic", smoothing=[(2, 2)] * (n_levels - 1) + [(8, 0)])
    five = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    centre = torch.zeros(3, 3, dtype=torch.float64)
    centre[1, 1] = 1.0
    half = torch.tensor([0.5, 1.0, 0.5, 0.0], dtype=torch.float64)
    weighting = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    conv = conv.double()
    with torch.no_grad():
        for l, level in enumerate(conv.levels):
            A = five / (2**l / n) ** 2 + centre
            for stencil in level.A:
                stencil.weight.copy_(A)
            for stencil in level.S:
                stencil.weight.copy_(0.8 / A[1, 1] * centre)
            if level.restrict is not None:
                level.restrict.weight.copy_(torch.outer(weighting, weighting))
                level.prolong.weight.copy_(torch.outer(half, half))
    return conv


def test_the_v_cycle_contains_classical_multigrid() -> None:
    """Iterated on the residual it converges at the textbook's rate, the same on every grid; a backslash cycle could not start."""
    rates = []
    for n in (16, 32, 64):
        conv = difference_scheme(n, int(math.log2(n)) - 1)
        A = conv.levels[0].A[0]
        f = torch.randn(1, 1, n, n, dtype=torch.float64)
        f = f - f.mean()  # smoothing on a coarsest grid of 4 x 4 points does not solve for the mean
        u, norms = torch.zeros_like(f), []
        with torch.no_grad():
            for _ in range(8):
                r = f - A(u)
                norms.append(float(r.norm()))
                u = u + conv(r)
        rates.append((norms[-1] / norms[2]) ** (1 / (len(norms) - 3)))
    assert max(rates) < 0.2 and max(rates) - min(rates) < 0.05, rates


def test_the_reference_shape_scales_like_an_inverse_operator_of_second_order() -> None:
    """Twice the points: the same stencils at half the spacing give a quarter; along nodes the spacings count, not the points."""
    conv = double(1, 2, 3, boundary="periodic", reference_shape=16)
    plain = double(1, 2, 3, boundary="periodic")
    assert torch.equal(next(conv.parameters()), next(plain.parameters()))
    for n in (16, 32):
        f = torch.randn(1, 1, n, n, dtype=torch.float64)
        torch.testing.assert_close(conv(f), plain(f) * (16 / n) ** 2, rtol=1e-13, atol=1e-13)
    nodes = double(1, 2, 3, boundary="neumann", reference_shape=(17, 9))
    f = torch.randn(1, 1, 33, 17, dtype=torch.float64)
    torch.testing.assert_close(nodes(f), double(1, 2, 3, boundary="neumann")(f) / 4, rtol=1e-13, atol=1e-13)


# Boundaries


@cycles
def test_a_periodic_cycle_commutes_with_shifts(cycle: str) -> None:
    conv, f = double(2, 3, 4, cycle=cycle, boundary="periodic"), torch.randn(2, 2, 32, 48, dtype=torch.float64)
    for shift in (8, 24):
        torch.testing.assert_close(
            conv(f.roll(shift, -1).roll(-shift, -2)), conv(f).roll(shift, -1).roll(-shift, -2), rtol=1e-12, atol=1e-12
        )
    assert (conv(f.roll(1, -1)) - conv(f).roll(1, -1)).norm() > 1e-3 * conv(f).norm()


def mirror_symmetric(conv: MultigridConv) -> MultigridConv:
    with torch.no_grad():
        for module in conv.modules():
            if isinstance(module, Stencil):
                for axis in range(2, module.weight.ndim):
                    module.weight.copy_((module.weight + module.weight.flip(axis)) / 2)
            elif isinstance(module, Prolongation):
                for axis in range(2, module.weight.ndim):  # symmetric about the point above the coarse one
                    first = module.weight.narrow(axis, 0, 3)
                    symmetric = (first + first.flip(axis)) / 2
                    module.weight.copy_(torch.cat([symmetric, torch.zeros_like(symmetric.narrow(axis, 0, 1))], axis))
    return conv


@cycles
def test_a_neumann_cycle_is_the_periodic_one_of_the_even_extension(cycle: str) -> None:
    neumann = mirror_symmetric(double(2, 3, 4, cycle=cycle, boundary="neumann"))
    periodic = double(2, 3, 4, cycle=cycle, boundary="periodic")
    periodic.load_state_dict(neumann.state_dict())
    f = torch.randn(1, 2, 17, 33, dtype=torch.float64)
    even = f
    for axis in (2, 3):
        even = torch.cat([even, even.narrow(axis, 1, even.shape[axis] - 2).flip(axis)], axis)
    torch.testing.assert_close(neumann(f), periodic(even)[..., :17, :33], rtol=1e-12, atol=1e-12)


def test_ghost_values() -> None:
    v = torch.arange(12.0).view(1, 1, 3, 4)
    assert extend(v, ("dirichlet", "periodic"))[0, 0].tolist() == [
        [0, 0, 0, 0, 0, 0], [3, 0, 1, 2, 3, 0], [7, 4, 5, 6, 7, 4], [11, 8, 9, 10, 11, 8], [0, 0, 0, 0, 0, 0],
    ]  # fmt: skip
    assert extend(v, ("neumann", "dirichlet"))[0, 0, :, 1].tolist() == [4, 0, 4, 8, 4]
    # On a torus it is torch's own padding.
    assert torch.equal(extend(v, ("periodic", "periodic")), F.pad(v, (1, 1, 1, 1), mode="circular"))
    assert torch.equal(extend(v, ("neumann", "neumann")), F.pad(v, (1, 1, 1, 1), mode="reflect"))


def test_imposed_conditions_hold_exactly_at_corners_too() -> None:
    v = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    u = impose(v, ("dirichlet", "neumann"))
    assert not u[:, :, [0, -1]].any() and torch.equal(u[:, :, 1:-1, 1:-1], v[:, :, 1:-1, 1:-1])
    w = impose(v, ("neumann", "neumann"))
    for axis in (2, 3):
        for end in (w, w.flip(axis)):
            slope = -3 * end.select(axis, 0) + 4 * end.select(axis, 1) - end.select(axis, 2)
            assert slope.abs().max() < 1e-13
    assert torch.equal(impose(w, ("periodic", "periodic")), w)
    torch.testing.assert_close(impose(w, ("neumann", "neumann")), w, rtol=1e-13, atol=1e-13)


# Sizes


@cycles
@boundaries
def test_every_size_comes_back(cycle: str, boundary: str) -> None:
    conv = MultigridConv(1, 2, 6, cycle=cycle, boundary=boundary)
    for n in (64, 85, 101, 211, 256):
        assert conv(torch.randn(1, 1, n, 33)).shape == (1, 2, n, 33)
    assert conv.shapes((211, 64))[-1] == (7, 2)


@pytest.mark.parametrize("n", [8, 9])
def test_a_prolonged_value_lies_above_its_coarse_one(n: int) -> None:
    """With the weights of linear interpolation a linear function stays linear on even and odd grids alike."""
    prolong = Prolongation(1, ("neumann",)).double()
    with torch.no_grad():
        prolong.weight.copy_(torch.tensor([0.5, 1.0, 0.5, 0.0]))
    line = torch.arange(n, dtype=torch.float64)
    found = prolong(line[None, None, ::2], (n,))[0, 0]
    inside = slice(0, n if n % 2 else n - 1)  # beyond the last coarse point lies its mirror image
    assert torch.equal(found[inside], line[inside])


# Bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"boundary": "robin"}, "boundary is 'robin'; give one of dirichlet, neumann, periodic"),
        ({"boundary": ("periodic",)}, "boundary is .*for all 2 axes, or one per axis"),
        ({"cycle": "W"}, "cycle is 'W'; choose one of backslash, V"),
        ({"n_levels": 0}, "n_levels is 0; give a positive whole number"),
        ({"dim": 4}, "dim is 4; a MultigridConv works on grids of 1, 2 or 3 axes"),
        ({"smoothing": [(1, 0)]}, "one pair .before, after. for each of the 4 levels"),
        ({"smoothing": [(1, 0)] * 3 + [(0, 1)]}, "at least one step before"),
        ({"reference_shape": (64, 64, 64)}, "reference_shape is .*for each of the 2 axes"),
        ({"reference_shape": 1}, "at least 2"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MultigridConv(1, 2, **{"n_levels": 4} | options)


def test_more_levels_than_the_grid_allows_are_refused_in_a_sentence() -> None:
    conv = MultigridConv(1, 2, 5)
    assert conv(torch.zeros(1, 1, 17, 20)).shape == (1, 2, 17, 20)
    with pytest.raises(
        ValueError, match=r"the grid \(16, 20\) is too coarse for 5 levels.*at least 17 points an axis, or fewer levels"
    ):
        conv(torch.zeros(1, 1, 16, 20))


def test_modules_inside_can_be_watched() -> None:
    conv, seen = MultigridConv(1, 2, 3), []
    for module in conv.modules():
        if isinstance(module, Stencil | Prolongation):
            module.register_forward_hook(lambda m, _, out: seen.append(m))
    conv(torch.zeros(1, 1, 8, 8))
    assert {id(m) for m in seen} == {id(m) for m in conv.modules() if isinstance(m, Stencil | Prolongation)}
    assert isinstance(conv.levels, nn.ModuleList)
