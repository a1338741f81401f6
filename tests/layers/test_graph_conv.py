"""Chebyshev convolutions: the definition, their reach, their derivatives."""

from __future__ import annotations

import pytest
import torch

from opflow.layers import ChebyshevConv, scaled_laplacian

PATH = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [1, 3]])


def test_the_laplacian_is_the_normalised_one_moved_to_the_middle() -> None:
    A = torch.zeros(6, 6, dtype=torch.float64)
    A[PATH[:, 0], PATH[:, 1]] = A[PATH[:, 1], PATH[:, 0]] = 1
    root = A.sum(1).rsqrt()
    expected = -root[:, None] * A * root
    found = scaled_laplacian(PATH, 6, dtype=torch.float64).to_dense()
    assert torch.allclose(found, expected)
    assert torch.linalg.eigvalsh(found).abs().max() <= 1 + 1e-14


@pytest.mark.parametrize("order", [1, 2, 5])
def test_it_is_the_sum_of_chebyshev_polynomials(order: int) -> None:
    torch.manual_seed(0)
    graph = scaled_laplacian(PATH, 6, dtype=torch.float64)
    layer = ChebyshevConv(3, 2, order).double()
    x = torch.randn(4, 6, 3).double()
    values, vectors = torch.linalg.eigh(graph.to_dense())
    angles = torch.arccos(values.clamp(-1, 1))
    expected = layer.bias + sum(
        (vectors * torch.cos(k * angles)) @ vectors.T @ x @ layer.weight[k] for k in range(order)
    )
    assert torch.allclose(layer(x, graph), expected, rtol=0, atol=1e-12)
    assert torch.allclose(layer(x[2], graph), expected[2], rtol=0, atol=1e-12)


def test_it_sees_order_minus_one_edges_far() -> None:
    path = torch.stack([torch.arange(9), torch.arange(1, 10)], 1)
    layer, x = ChebyshevConv(1, 1, 4), torch.zeros(10, 1)
    graph, changed = scaled_laplacian(path, 10), torch.zeros(10, 1)
    changed[0] = 1.0
    seen = (layer(changed, graph) - layer(x, graph)).abs().flatten() > 0
    assert seen[3] and not seen[4:].any()


def test_a_node_keeps_its_output_when_nodes_are_renumbered() -> None:
    torch.manual_seed(0)
    layer, x, order = ChebyshevConv(2, 3, 4).double(), torch.randn(6, 2).double(), torch.randperm(6)
    place = order.argsort()
    renumbered = layer(x[order], scaled_laplacian(place[PATH], 6, dtype=torch.float64))
    assert torch.allclose(renumbered, layer(x, scaled_laplacian(PATH, 6, dtype=torch.float64))[order], atol=1e-13)


def test_derivatives_of_first_and_second_order() -> None:
    torch.manual_seed(0)
    graph = scaled_laplacian(PATH, 6, dtype=torch.float64)
    layer = ChebyshevConv(2, 2, 3).double()
    for shape in ((6, 2), (2, 6, 2)):
        x = torch.randn(shape).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: layer(x, graph), (x,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: torch.tanh(layer(x, graph)), (x,))
    several = torch.randn(3, 6, 2).double()
    assert torch.allclose(torch.vmap(lambda x: layer(x, graph))(several), layer(several, graph))


def test_bad_graphs_and_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="edges name nodes 0 to 5, but there are 5"):
        scaled_laplacian(PATH, 5)
    with pytest.raises(ValueError, match="comes twice"):
        scaled_laplacian(torch.tensor([[0, 1], [1, 0]]), 2)
    with pytest.raises(ValueError, match="joins a node with itself"):
        scaled_laplacian(torch.tensor([[1, 1]]), 2)
    with pytest.raises(ValueError, match="pairs of numbers"):
        scaled_laplacian(PATH.double(), 6)
    with pytest.raises(ValueError, match="order 0"):
        ChebyshevConv(1, 1, 0)
    graph, layer = scaled_laplacian(PATH, 6), ChebyshevConv(2, 1, 2)
    with pytest.raises(ValueError, match="6 nodes of the graph and 2 channels"):
        layer(torch.zeros(5, 2), graph)
    with pytest.raises(TypeError, match=r"x is torch.float64"):
        layer(torch.zeros(6, 2).double(), graph)
