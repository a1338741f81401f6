"""Meshes of triangles: what they know of themselves, where they come from, what they refuse."""

from __future__ import annotations

import sys

import pytest
import torch

from opflow import Mesh

skfem = pytest.importorskip("skfem")
SQUARE = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
HALVES = torch.tensor([[0, 1, 2], [0, 2, 3]])

HOSTS = {
    "straight": lambda: skfem.MeshTri.init_lshaped().refined(2),
    "curved": lambda: skfem.MeshTri2.init_circle(2),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_mesh_goes_to_its_hosts_and_back(kind: str) -> None:
    pytest.importorskip("meshio")
    host = HOSTS[kind]()
    mesh = Mesh.from_skfem(host)
    back = mesh.to_skfem()
    assert type(back) is type(host)
    assert (back.doflocs == host.doflocs).all() and (back.t == host.t).all()
    again = Mesh.from_meshio(mesh.to_meshio())
    assert torch.equal(again.points, mesh.points) and torch.equal(again.cells, mesh.cells)


@pytest.mark.parametrize("kind", HOSTS)
def test_edges_and_boundary_are_those_of_scikit_fem(kind: str) -> None:
    host = HOSTS[kind]()
    mesh = Mesh.from_skfem(host)
    assert {tuple(e) for e in mesh.edges.tolist()} == {tuple(sorted(e)) for e in host.facets.T.tolist()}
    element = skfem.ElementTriP1() if kind == "straight" else skfem.ElementTriP2()
    expected = sorted(skfem.Basis(host, element).get_dofs().flatten().tolist())
    assert mesh.boundary_nodes.tolist() == expected
    # Green: the boundary runs counter-clockwise, so half the sum of cross products is the area.
    a, b = mesh.points[mesh.boundary_edges].unbind(1)
    assert float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2) == pytest.approx(mesh.area, rel=1e-13)


def test_orientation_of_the_cells_does_not_matter() -> None:
    turned = Mesh(SQUARE, torch.tensor([[0, 2, 1], [0, 2, 3]]))
    a, b = turned.points[turned.boundary_edges].unbind(1)
    assert float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2) == 1.0 == turned.area
    assert len(turned.boundary_edges) == 4


def test_signed_distance_of_the_l_shape() -> None:
    mesh = Mesh.from_skfem(HOSTS["straight"]())
    points = 3 * torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1.5
    inside = (points.abs().amax(1) < 1) & ~((points[:, 0] > 0) & (points[:, 1] > 0))
    assert torch.equal(mesh.contains(points), inside) and 100 < int(inside.sum()) < 400
    known = torch.tensor([[-0.5, -0.5], [0.3, 0.4], [-0.1, -0.1], [2.0, -0.5], [0.5, -0.2]], dtype=torch.float64)
    expected = torch.tensor([-0.5, 0.3, -(0.02**0.5), 1.0, -0.2], dtype=torch.float64)
    assert torch.allclose(mesh.signed_distance(known), expected, rtol=0, atol=1e-15)


def test_meshio_leaves_out_what_no_triangle_uses() -> None:
    meshio = pytest.importorskip("meshio")
    points = [[9.0, 9, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    mesh = Mesh.from_meshio(meshio.Mesh(points, [("line", [[0, 1]]), ("triangle", [[1, 2, 3]])]))
    assert mesh.points.tolist() == [[0, 0], [1, 0], [0, 1]] and mesh.cells.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="holds line; expected triangle"):
        Mesh.from_meshio(meshio.Mesh(points, [("line", [[0, 1]])]))
    points[3][2] = 1
    with pytest.raises(ValueError, match="plane z = const"):
        Mesh.from_meshio(meshio.Mesh(points, [("triangle", [[1, 2, 3]])]))


@pytest.mark.parametrize(
    ("points", "cells", "error", "said"),
    [
        (SQUARE.int(), HALVES, TypeError, "points are torch.int32"),
        (SQUARE, HALVES.double(), TypeError, "cells torch.float64"),
        (SQUARE[:, :1], HALVES, ValueError, r"points have shape \(4, 1\)"),
        (SQUARE, HALVES[:, :2], ValueError, r"cells \(2, 2\)"),
        (torch.where(SQUARE == 1, torch.nan, SQUARE), HALVES, ValueError, "point 1 has the coordinates"),
        (SQUARE, HALVES + 1, ValueError, "cells name points 1 to 4 of 4"),
        (SQUARE, HALVES[:1], ValueError, "point 3 is in no cell"),
        (SQUARE * torch.tensor([1.0, 0.0]), HALVES, ValueError, "cell 0 has no area"),
        (SQUARE, torch.tensor([[0, 1, 2], [0, 2, 3], [0, 2, 1]]), ValueError, "more than two triangles"),
    ],
)
def test_bad_meshes_are_refused(points: torch.Tensor, cells: torch.Tensor, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Mesh(points, cells)


def test_other_cells_are_refused_and_a_missing_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="MeshQuad1"):
        Mesh.from_skfem(skfem.MeshQuad())
    monkeypatch.setitem(sys.modules, "skfem", None)
    with pytest.raises(ImportError, match=r"pip install 'opflow\[fem\]'"):
        Mesh(SQUARE, HALVES).to_skfem()
