"""Pooling by least squares: the minimiser it is said to be, of a set, with masks."""

from __future__ import annotations

import math

import pytest
import torch

from opflow.layers import LatentLeastSquares


def layer(**sizes: int) -> LatentLeastSquares:
    torch.manual_seed(0)
    return LatentLeastSquares(6, 2, **{"latent": 5, "rank": 3, "hidden": 8} | sizes).double()


def measured(batch: int = 4, L: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, L, 6, generator=generator, dtype=torch.float64),
        torch.rand(L, 2, generator=generator, dtype=torch.float64),
    )


def test_it_is_the_minimiser() -> None:
    pool, (f, g) = layer(), measured()
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[:, 0] = True
    z = pool(f, g, mask)
    for i in range(4):
        kept = mask[i]
        G = pool.sight(g[kept]).unflatten(-1, (3, 5)) * 3 / math.sqrt(3)
        rows = torch.cat([G.flatten(0, 1) / math.sqrt(kept.sum()), (pool.damping / 2).exp() * torch.eye(5).double()])
        right = torch.cat([pool.project(f[i, kept]).flatten() / math.sqrt(kept.sum()), torch.zeros(5).double()])
        torch.testing.assert_close(z[i], torch.linalg.lstsq(rows, right).solution, rtol=1e-10, atol=1e-12)


def test_it_is_a_function_of_the_set() -> None:
    pool, (f, g) = layer(), measured()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(pool(f[:, order], g[order]), pool(f, g))
    torch.testing.assert_close(pool(torch.cat([f, f], 1), torch.cat([g, g])), pool(f, g))
    torch.testing.assert_close(pool(f, g.expand(4, -1, -1)), pool(f, g))
    torch.testing.assert_close(pool(f, g[None]), pool(f, g))
    mask = torch.tensor([True, False, True, True, False, False, True]).expand(4, -1)
    broken = f.masked_fill(~mask[..., None], torch.nan)
    torch.testing.assert_close(pool(broken, g, mask), pool(f[:, mask[0]], g[mask[0]]))
    torch.testing.assert_close(pool(broken, g.expand(4, -1, -1), mask), pool(f[:, mask[0]], g[mask[0]]))


def test_an_exact_latent_description_is_found_from_any_measurements_that_see_it() -> None:
    """Where P f_l = G_l z holds and lambda is small, every subset of enough measurements gives the same z."""
    pool, (_, g) = layer(), measured()
    with torch.no_grad():
        pool.damping.fill_(-25.0)
        pool.project.weight.copy_(torch.eye(3, 6))
        pool.project.bias.zero_()
        z = torch.randn(4, 5, dtype=torch.float64)
        G = pool.sight(g).unflatten(-1, (3, 5)) * 3 / math.sqrt(3)
        f = torch.cat([torch.einsum("lrd,bd->blr", G, z), torch.zeros(4, 7, 3)], dim=-1)
        few = torch.tensor([False, True, True, False, True, False, True]).expand(4, -1)
        torch.testing.assert_close(pool(f, g), z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pool(f, g, few), z, rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    pool, (f, g) = layer(), measured(2, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda f, g: pool(f, g, mask), (f.requires_grad_(), g.requires_grad_()))
    pool(f, g).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in pool.parameters())


def test_what_does_not_fit_is_refused() -> None:
    pool, (f, g) = layer(), measured()
    with pytest.raises(ValueError, match=r"\(4, 7, 5\) but LatentLeastSquares expects \(batch, L, 6\)"):
        pool(f[..., :5], g)
    with pytest.raises(ValueError, match="descriptors have shape"):
        pool(f, g[:6])
    with pytest.raises(ValueError, match="sample 0 keeps none"):
        pool(f, g, torch.zeros(4, 7, dtype=torch.bool))
    with pytest.raises(TypeError, match="convert"):
        pool(f.float(), g)
    with pytest.raises(ValueError, match="rank"):
        layer(rank=0)
