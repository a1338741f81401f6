"""Random elliptic operators: the same domain and medium on every grid, each with the contrast that it claims."""

from __future__ import annotations

import pytest
import torch

from opflow import Grid
from opflow.problems.elliptic_operators import FAMILIES, KINDS, EllipticOperators

families = pytest.mark.parametrize("name", FAMILIES)


@families
@pytest.mark.parametrize("dim", [2, 3])
def test_symmetric_positive_definite_and_repeatable(name: str, dim: int) -> None:
    source = FAMILIES[name]
    grid = source.grid(12, dim)
    A = source.sample([3, 5], grid)
    assert A.shape == (12,) * dim and A.batch == 2 and A.dtype == torch.float64
    x = torch.randn(2, *A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    null = A.null_part(x)
    x = x if null is None else x - null
    assert bool(((x * A.apply(x)).flatten(1).sum(1) > 0).all())
    again, others = source.sample([3, 5], grid), source.sample([3, 5], grid, split="test")
    assert all(torch.equal(a, b) for a, b in zip(A.tensors(), again.tensors(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(A.tensors(), others.tensors(), strict=True))


@pytest.mark.parametrize("kind", ["log-normal", "anisotropic"])
def test_a_sample_is_one_medium_on_every_grid(kind: str) -> None:
    """A face between nodes of the coarse grid is two of the fine one: their harmonic mean is the coarse one's up to h^2."""
    source = EllipticOperators(kind, contrast=(4.0, 4.0), anisotropy=(0.1, 0.1), cutoff=3)
    errors = []
    for n in (33, 65):
        coarse, fine = (source.sample([1], Grid((m, m)), seed=2).weights[0] / (m - 1) ** 2 for m in (n, 2 * n - 1))
        pairs = fine[:, :, 1::2].unflatten(1, (-1, 2))
        errors.append(float((2 / (1 / pairs).sum(2) / coarse - 1).abs().max()))
    assert errors[1] < 0.3 * errors[0] and errors[0] < 0.05


def test_contrast_and_anisotropy() -> None:
    grid = Grid((16, 16), layout="cells")
    A = EllipticOperators("two-phase", contrast=(1e4, 1e4)).sample(4, grid)
    inner = A.weights[0][:, 1:-1]
    torch.testing.assert_close(inner.amax() / inner.amin(), torch.tensor(1e4, dtype=torch.float64))
    A = EllipticOperators("anisotropic", contrast=(1.0, 1.0), anisotropy=(0.01, 0.01)).sample(1, grid)
    ratio = A.weights[0][0, 1, 1] / A.weights[1][0, 1, 1]
    assert min(abs(float(ratio) - 0.01), abs(float(ratio) - 100.0)) < 1e-10


def test_obstacles_are_walls_and_the_top_is_open() -> None:
    A = EllipticOperators("obstacles", obstacles=(5, 5)).sample(3, Grid((32, 32), layout="cells"))
    assert A.mask is not None and 0.5 < float(A.mask.double().mean()) < 0.99
    constant = A.apply(A.mask.double())
    assert float(constant[..., :-1].abs().max()) == 0  # no flow for a constant but through the open side
    assert float(constant[..., -1].max()) == 2 * 32**2


def test_refusal() -> None:
    with pytest.raises(ValueError, match=f"kind is 'rotated'; choose one of {', '.join(KINDS)}"):
        EllipticOperators("rotated")
