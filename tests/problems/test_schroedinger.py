"""The nonlinear Schroedinger equation against a published file, closed forms, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from opflow import Grid
from opflow.problems import Schroedinger


def solved(h: Tensor, grid: Grid, times, rtol: float = 1e-9) -> Tensor:
    """Complex (n, *grid) -> complex (n, time, *grid)"""
    parts = {"initial_real": h.real.contiguous(), "initial_imaginary": h.imag.contiguous()}
    fields = Schroedinger().solve(parts, grid, times=times, rtol=rtol)
    return torch.complex(fields["real"], fields["imaginary"])


def norms(h: Tensor) -> Tensor:
    return h.abs().square().mean(-1)


def test_the_published_trajectory(reference_data) -> None:
    """2 sech(x) on 256 points, which breathes with the period pi / 2; 201 times."""
    file = loadmat(reference_data("pinns/NLS.mat"))
    expected, grid = torch.from_numpy(file["uu"].T.copy()), Grid(256, (-5.0, 5.0), "periodic")
    np.testing.assert_allclose(file["x"].ravel(), grid.coordinates(0), atol=1e-12)
    found = solved(expected[:1], grid, file["tt"].ravel(), rtol=1e-7)[0]
    assert (found - expected).norm() < 1e-7 * expected.norm()
    assert (norms(found) / norms(found[:1]) - 1).abs().max() < 1e-8


def test_a_second_order_soliton_breathes() -> None:
    """2 sech(x) on the line   (Satsuma and Yajima 1974, eq. 30): |h| returns after pi / 2, here after half of it, where it peaks at 4."""
    grid, t = Grid(768, (-18.0, 18.0), "periodic"), torch.pi / 4
    x = grid.coordinates(0)
    found = solved((2 / torch.cosh(x) + 0j)[None], grid, [0.0, t])[0, -1]
    rotation = torch.exp(torch.tensor(4j * t, dtype=torch.complex128))
    top = (
        4
        * (torch.cosh(3 * x) + 3 * rotation * torch.cosh(x))
        * torch.exp(torch.tensor(0.5j * t, dtype=torch.complex128))
    )
    expected = top / (torch.cosh(4 * x) + 4 * torch.cosh(2 * x) + 3 * np.cos(4 * t))
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("k", [0, 3])
def test_plane_waves_rotate(k: int) -> None:
    """A exp(i (k x + (A^2 - k^2 / 2) t))."""
    grid, times = Grid(16, (0.0, 2 * torch.pi), "periodic"), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    amplitude = torch.tensor([0.5, 1.5], dtype=torch.float64)[:, None]
    wave = torch.exp(1j * k * grid.coordinates(0))
    found = solved(amplitude * wave, grid, times, rtol=1e-11)
    expected = (amplitude * torch.exp(1j * (amplitude.square() - k * k / 2) * times))[..., None] * wave
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_what_the_equation_keeps() -> None:
    """The norm and the momentum; and a turn of phase, a reflection and a reversal of time go through the solution."""
    grid = Grid(128, (-5.0, 5.0), "periodic")
    parts = Schroedinger(cutoff=6, sigma=15.0).sample(2, grid)
    h0 = torch.complex(parts["initial_real"], parts["initial_imaginary"])
    h = solved(h0, grid, [0.0, 0.2, 0.4])
    assert (norms(h) / norms(h[:, :1]) - 1).abs().max() < 1e-9
    close = {"rtol": 0, "atol": 1e-7}
    turn = torch.exp(torch.tensor(0.7j, dtype=torch.complex128))
    torch.testing.assert_close(solved(turn * h0, grid, [0.0, 0.2, 0.4]), turn * h, **close)
    mirrored = h.flip(-1).roll(1, -1)
    torch.testing.assert_close(solved(mirrored[:, 0], grid, [0.0, 0.2, 0.4]), mirrored, **close)
    torch.testing.assert_close(
        solved(h[:, -1].conj().resolve_conj(), grid, [0.0, 0.4])[:, -1], h0.conj().resolve_conj(), **close
    )


def test_both_parts_are_independent_fields_of_one_law() -> None:
    samples = Schroedinger().sample(300, Grid(32, layout="periodic"))
    p, q = samples["initial_real"], samples["initial_imaginary"]
    deviation = Schroedinger().initial_law().standard_deviation(1)
    assert float(p.square().mean().sqrt()) == pytest.approx(deviation, rel=0.1)
    assert float(q.square().mean().sqrt()) == pytest.approx(deviation, rel=0.1)
    assert abs(float((p * q).mean())) < 0.15 * deviation**2
    # The imaginary part has a stream of its own, so that a cutoff changes it as it changes the real part: by the waves beyond.
    coarse = Schroedinger(cutoff=16).sample(300, Grid(32, layout="periodic"))
    for name, values in samples.items():
        assert (values - coarse[name]).norm() < 0.05 * values.norm()
