"""Transforms and symbols on periodic grids, odd and even, real and complex, in one to three dimensions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from opflow import Grid
from opflow.pde import FourierSpace

SHAPES = [(8,), (9,), (6, 8), (7, 6), (5, 9), (4, 6, 5)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
both = pytest.mark.parametrize("real", [True, False], ids=["real", "complex"])


def space_on(shape: tuple[int, ...], real: bool) -> FourierSpace:
    extent = [(-1.0, 1.0), (0.5, 3.5), (2.0, 7.0)][: len(shape)]
    return FourierSpace(Grid(shape, extent, "periodic"), real=real)


def random_field(space: FourierSpace, n: int = 2, seed: int = 0) -> Tensor:
    dtype = torch.float64 if space.real else torch.complex128
    return torch.randn(n, *space.grid.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def frequencies(space: FourierSpace) -> list[Tensor]:
    """The whole number k_j of every mode, (*modes) each."""
    lines = [
        torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
        if space.real and axis == space.grid.dim - 1
        else torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
        for axis, n in enumerate(space.grid.shape)
    ]
    return list(torch.meshgrid(*lines, indexing="ij"))


@shapes
@both
def test_a_field_is_the_sum_of_its_series(shape: tuple[int, ...], real: bool) -> None:
    space = space_on(shape, real)
    field = random_field(space)
    c = space.coefficients(field)
    assert c.shape == (2, *space.modes) and c.dtype == torch.complex128
    found = space.field(c)
    assert found.dtype == field.dtype
    torch.testing.assert_close(found, field, rtol=0, atol=1e-14)
    numbers = [k.flatten() for k in frequencies(space)]
    starts = torch.tensor([a for a, _ in space.grid.extent])
    phases = (space.grid.points() - starts) / torch.tensor(space.grid.lengths) * 2 * torch.pi
    waves = torch.polar(torch.tensor(1.0).double(), sum(k * phases[..., j, None] for j, k in enumerate(numbers)))
    terms = c.flatten(1)[:, *[None] * len(shape)] * waves
    series = (terms * space.multiplicity.flatten()).real.sum(-1) if real else terms.sum(-1)
    torch.testing.assert_close(series, field, rtol=0, atol=1e-13)


@shapes
@both
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_no_fields_have_no_coefficients(shape: tuple[int, ...], real: bool, precision: torch.dtype) -> None:
    space = space_on(shape, real)
    whole = torch.promote_types(precision, torch.complex64)
    nothing = torch.zeros(0, 2, *shape, dtype=precision if real else whole)
    c = space.coefficients(nothing)
    assert c.shape == (0, 2, *space.modes) and c.dtype == whole
    assert space.field(c).shape == nothing.shape and space.field(c).dtype == nothing.dtype


@both
def test_coefficients_do_not_depend_on_the_grid(real: bool) -> None:
    def wave(grid: Grid) -> Tensor:
        s = 2 * torch.pi * grid.coordinates(0)
        values = 0.3 + torch.cos(2 * s) - 2 * torch.sin(3 * s)
        return values if real else values * torch.exp(1j * s)

    spaces = [space_on_line(n, real) for n in (10, 11, 32)]
    small = [space.coefficients(wave(space.grid)) for space in spaces]
    keep = 5
    for c in small[1:]:
        torch.testing.assert_close(c[:keep], small[0][:keep], rtol=0, atol=1e-15)


def space_on_line(n: int, real: bool) -> FourierSpace:
    return FourierSpace(Grid(n, layout="periodic"), real=real)


@shapes
@both
def test_symbols_differentiate(shape: tuple[int, ...], real: bool) -> None:
    """Every wave exp(i k x) below the Nyquist limit, by its known derivative; symbols broadcast to the modes."""
    space = space_on(shape, real)
    numbers = frequencies(space)
    assert space.laplacian.shape == space.modes and space.laplacian.dtype == torch.float64
    expected = torch.zeros(space.modes, dtype=torch.float64)
    for symbol, k, n, length in zip(space.gradient, numbers, shape, space.grid.lengths, strict=True):
        wave_number = 2 * math.pi * k / length
        paired = 2 * k.abs() < n
        torch.testing.assert_close(
            symbol.expand(space.modes), torch.where(paired, 1j * wave_number, 0j), rtol=1e-15, atol=0
        )
        expected -= wave_number**2
    torch.testing.assert_close(space.laplacian, expected, rtol=1e-15, atol=0)


@shapes
def test_derivatives_of_real_fields_are_real(shape: tuple[int, ...]) -> None:
    """The unpaired frequency has no first derivative on the grid, so that both transforms agree."""
    real, whole = space_on(shape, True), space_on(shape, False)
    field = random_field(real)
    for ours, theirs in zip((*real.gradient, real.laplacian), (*whole.gradient, whole.laplacian), strict=True):
        complex_derivative = whole.field(theirs * whole.coefficients(field + 0j))
        assert complex_derivative.imag.abs().max() < 1e-13
        torch.testing.assert_close(
            real.field(ours * real.coefficients(field)), complex_derivative.real, rtol=0, atol=1e-12
        )


@shapes
@both
def test_products_of_dealiased_fields_have_no_alias(shape: tuple[int, ...], real: bool) -> None:
    """On the kept modes the product has the coefficients that it has on a grid of three times the size."""
    space = space_on(shape, real)
    fine = FourierSpace(space.grid.with_shape([3 * n for n in shape]), real=real)
    kept = space.dealiased
    numbers = frequencies(space)
    assert torch.equal(
        kept, torch.stack([3 * k.abs() < n for k, n in zip(numbers, shape, strict=True)]).all(0).double()
    )
    index = tuple(k.long() % (3 * n) for k, n in zip(numbers, shape, strict=True))

    def lifted(c: Tensor) -> Tensor:
        lifted_c = torch.zeros(2, *fine.modes, dtype=torch.complex128)
        lifted_c[:, *index] = c
        return fine.field(lifted_c)

    a, b = (kept * space.coefficients(random_field(space, seed=seed)) for seed in (1, 2))
    product = space.coefficients(space.field(a) * space.field(b))
    exact = fine.coefficients(lifted(a) * lifted(b))[:, *index]
    torch.testing.assert_close(kept * product, kept * exact, rtol=0, atol=1e-14)
    if shape == (8,):
        assert (product - exact).abs().max() > 1e-3, "modes beyond are aliased, so the rule is needed"


@shapes
@both
def test_parseval(shape: tuple[int, ...], real: bool) -> None:
    space = space_on(shape, real)
    field = random_field(space)
    energy = (space.coefficients(field).abs().square() * space.multiplicity).flatten(1).sum(1)
    torch.testing.assert_close(energy, field.abs().square().flatten(1).mean(1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("layout", list(itertools.product(("nodes", "cells", "periodic"), repeat=2))[:-1])
def test_axes_that_are_not_periodic_are_refused_in_a_sentence(layout: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"axis [xy] of the grid is made of (nodes|cells), .*use Grid\(\(4, 5\)"):
        FourierSpace(Grid((4, 5), layout=layout))
