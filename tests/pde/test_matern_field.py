"""Matern fields on a mesh: their covariance, and that whitening, precision and covariance belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from opflow.pde import FiniteElementSpace, MaternField

skfem = pytest.importorskip("skfem")
special = pytest.importorskip("scipy.special")


def test_operations_belong_together() -> None:
    space = FiniteElementSpace(skfem.MeshTri.init_lshaped().refined(2))
    prior = MaternField(space, 0.7, 1.5, mean=0.4)
    f = prior.sample(np.random.default_rng(0))
    assert torch.allclose(prior.coloured(prior.whitened(f)), f, rtol=0, atol=1e-12)
    assert torch.allclose(prior.covariance(prior.precision(f)), f - 0.4, rtol=0, atol=1e-12)
    g = torch.randn(space.n_nodes, 2, dtype=torch.float64)
    assert torch.allclose(prior.covariance(g)[:, 1], prior.covariance(g[:, 1]))
    f = f.requires_grad_()
    slope = torch.autograd.grad(prior.whitened(f).square().sum() / 2, f)[0]
    assert torch.allclose(slope, prior.precision(f.detach()), rtol=0, atol=1e-10)
    assert torch.equal(prior.sample(np.random.default_rng(3)), prior.sample(np.random.default_rng(3)))


def test_the_covariance_is_that_of_matern_away_from_the_boundary() -> None:
    axis = np.linspace(0, 1, 81)
    space = FiniteElementSpace(skfem.MeshTri.init_tensor(axis, axis))
    length, deviation = 0.2, 1.3
    prior = MaternField(space, length, deviation)
    distance = (space.nodes - 0.5).norm(dim=1)
    middle = int(distance.argmin())
    unit = torch.zeros(space.n_nodes, dtype=torch.float64)
    unit[middle] = 1.0
    covariance = prior.covariance(unit)
    scaled = math.sqrt(8) / length * distance.numpy().clip(1e-12)
    expected = deviation**2 * torch.from_numpy(scaled * special.k1(scaled))  # nu = 1
    near = distance < 0.25
    assert (covariance - expected)[near].abs().max() < 0.03 * deviation**2


def test_bad_fields_are_refused() -> None:
    mesh = skfem.MeshTri.init_lshaped()
    with pytest.raises(ValueError, match="degree 2"):
        MaternField(FiniteElementSpace(mesh, 2), 1.0)
    with pytest.raises(ValueError, match="components 2"):
        MaternField(FiniteElementSpace(mesh, components=2), 1.0)
    with pytest.raises(ValueError, match="length is 0"):
        MaternField(FiniteElementSpace(mesh), 0.0)
