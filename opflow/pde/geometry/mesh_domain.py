"""The region that a mesh covers."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from opflow.mesh import Mesh
from opflow.pde.geometry.pieces import choose
from opflow.pde.geometry.polygon import SegmentBound


class MeshDomain(SegmentBound):
    """The union of a mesh's triangles, holes included: collocation points inside them, facets and normals on its boundary.

    Sides of quadratic triangles count as straight between their corners. From other libraries: `Mesh.from_skfem`, and
    `Mesh.from_meshio` for what meshio reads.

    >>> square = Mesh(torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    >>> MeshDomain(square).sample(64).shape, MeshDomain(square).boundary_measure
    (torch.Size([64, 2]), 4.0)
    """

    def __init__(self, mesh: Mesh) -> None:
        if not isinstance(mesh, Mesh):
            raise TypeError(
                f"mesh is {type(mesh).__name__}; give a Mesh, for example Mesh.from_skfem(mesh) or Mesh.from_meshio(mesh)."
            )
        points = mesh.points.detach().cpu().double()
        super().__init__(points[mesh.boundary_edges.cpu()])
        self.mesh = mesh

    def __repr__(self) -> str:
        return f"MeshDomain({len(self.mesh.cells)} triangles)"

    @property
    def interior_dim(self) -> int:
        """One that chooses the triangle, one within it."""
        return 2

    def propose_interior(self, u: Tensor) -> Tensor:
        """Triangles by their areas, then the square root map of the unit square onto a triangle."""
        cell, rest = choose(u[:, 0], self._areas)
        a, b, c = self._corners[cell].unbind(1)
        root = rest.sqrt()[:, None]
        return a + root * (b - a) + root * u[:, 1:] * (c - b)

    @cached_property
    def interior_nodes(self) -> Tensor:
        """The mesh's points (n, 2) that do not lie on its boundary, float64: collocation at nodes."""
        inside = torch.ones(len(self.mesh.points), dtype=torch.bool)
        inside[self.mesh.boundary_nodes.cpu()] = False
        return self.mesh.points.detach().cpu().double()[inside]

    def boundary_facets(self) -> tuple[Tensor, Tensor, Tensor]:
        """The midpoints of the boundary's facets (n, 2), their outward unit normals (n, 2) and their lengths (n,): a midpoint rule."""
        start, end = self.segments.unbind(1)
        lengths = (end - start).norm(dim=1)
        along = (end - start) / lengths[:, None]
        return (start + end) / 2, torch.stack([along[:, 1], -along[:, 0]], dim=1), lengths

    @cached_property
    def _corners(self) -> Tensor:
        return self.mesh.points.detach().cpu().double()[self.mesh.triangles.cpu()]

    @cached_property
    def _areas(self) -> Tensor:
        return self.mesh.areas.detach().cpu().double()
