"""Meshes of triangles, and their way from and to scikit-fem and meshio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mesh:
    """A conforming mesh of triangles in the plane, with straight sides or with quadratic ones.

    Attributes:
        points: coordinates (n_points, 2), floating point; the corners of triangles come first.
        cells: (n_cells, 3), the corners of every triangle as indices of the points; or (n_cells, 6), followed by the points
            in the middle of the sides 0-1, 1-2 and 2-0, as in meshio's "triangle6".

    Raises:
        TypeError, ValueError: wrong types or shapes, an index without a point, a point that is not finite or in no cell, a triangle
            without area, a side of more than two triangles, or midpoints numbered before corners.

    >>> square = Mesh(torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    >>> square.area, len(square.edges), square.boundary_nodes.tolist()
    (1.0, 5, [0, 1, 2, 3])
    """

    points: Tensor
    cells: Tensor

    def __post_init__(self) -> None:
        points, cells = self.points, self.cells
        if not points.is_floating_point() or cells.is_floating_point():
            raise TypeError(f"points are {points.dtype} and cells {cells.dtype}; expected floats and whole numbers.")
        if (
            points.ndim != 2
            or points.shape[1] != 2
            or cells.ndim != 2
            or cells.shape[1] not in (3, 6)
            or not len(cells)
        ):
            raise ValueError(
                f"points have shape {tuple(points.shape)} and cells {tuple(cells.shape)}; "
                "expected (n_points, 2) and (n_cells, 3), or (n_cells, 6) with midpoints of sides."
            )
        if not bool(points.isfinite().all()):
            where = int((~points.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"point {where} has the coordinates {points[where].tolist()}; they must be finite.")
        if int(cells.min()) < 0 or int(cells.max()) >= len(points):
            raise ValueError(f"cells name points {int(cells.min())} to {int(cells.max())} of {len(points)}.")
        unused = torch.ones(len(points), dtype=torch.bool, device=points.device)
        unused[cells.flatten()] = False
        if bool(unused.any()):
            raise ValueError(f"point {int(unused.nonzero()[0])} is in no cell; leave out points that no cell uses.")
        if cells.shape[1] == 6 and int(cells[:, 3:].min()) <= int(cells[:, :3].max()):
            raise ValueError("some midpoint has a smaller number than a corner; number the corners of all cells first.")
        longest = (points[self.triangles[:, [1, 2, 0]]] - points[self.triangles]).square().sum(-1).amax(-1)
        flat = self._signed_areas().abs() <= 1e-10 * longest
        if bool(flat.any()):
            raise ValueError(f"cell {int(flat.nonzero()[0])} has no area; remove it, or move its corners.")
        if int(self._sides[1].max()) > 2:
            raise ValueError("a side belongs to more than two triangles, so the mesh is not conforming.")

    @property
    def triangles(self) -> Tensor:
        """The corners of every cell (n_cells, 3)."""
        return self.cells[:, :3]

    @cached_property
    def n_vertices(self) -> int:
        """The number of corners; they are the first of the points."""
        return int(self.triangles.max()) + 1

    @property
    def vertices(self) -> Tensor:
        """The coordinates of the corners (n_vertices, 2)."""
        return self.points[: self.n_vertices]

    @property
    def edges(self) -> Tensor:
        """The sides of triangles, each once (n_edges, 2), smaller number first: the graph of the mesh."""
        return self._sides[0]

    @cached_property
    def areas(self) -> Tensor:
        """The area of every triangle of corners (n_cells,); curved sides are not looked at."""
        return self._signed_areas().abs()

    @property
    def area(self) -> float:
        """The sum of the areas."""
        return float(self.areas.sum())

    @cached_property
    def boundary_edges(self) -> Tensor:
        """The sides of one triangle only (n, 2), counter-clockwise: the domain lies to the left."""
        clockwise = self._signed_areas() < 0
        triangles = torch.where(clockwise[:, None], self.triangles.flip(1), self.triangles)
        sides = torch.stack([triangles, triangles.roll(-1, 1)], -1).reshape(-1, 2)
        return sides[self._sides[1][self._sides[2]][self._reordered(clockwise)] == 1]

    @cached_property
    def boundary_nodes(self) -> Tensor:
        """The points on the boundary (n,), midpoints of curved sides included, in increasing order."""
        nodes = self.boundary_edges.unique()
        if self.cells.shape[1] == 3:
            return nodes
        outside = self._sides[1][self._sides[2]].view(-1, 3) == 1
        return torch.cat([nodes, self.cells[:, 3:][outside]]).unique()

    def contains(self, points: Tensor) -> Tensor:
        """Whether points (n, 2) lie inside the polygon of the corners or on its boundary, (n,)."""
        return self.signed_distance(points) <= 0

    def signed_distance(self, points: Tensor) -> Tensor:
        """The distance (n,) of points (n, 2) to the polygon of the boundary's corners, negative inside."""
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points have shape {tuple(points.shape)}; expected (n, 2).")
        a, b = self.points.to(points.dtype)[self.boundary_edges].unbind(1)  # (sides, 2)
        along, to = b - a, points[:, None] - a  # (n, sides, 2)
        share = ((to * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
        distance = (to - share[..., None] * along).norm(dim=-1).amin(1)
        # The sides that the ray to the right crosses, upwards or downwards, wind around a point inside exactly once.
        up = (a[:, 1] <= points[:, None, 1]) & (b[:, 1] > points[:, None, 1])
        down = (b[:, 1] <= points[:, None, 1]) & (a[:, 1] > points[:, None, 1])
        left = along[:, 0] * to[..., 1] - along[:, 1] * to[..., 0]
        winding = (up & (left > 0)).sum(1) - (down & (left < 0)).sum(1)
        return torch.where(winding != 0, -distance, distance)

    @classmethod
    def from_skfem(cls, mesh: Any, dtype: torch.dtype = torch.float64) -> Mesh:
        """From scikit-fem's MeshTri or MeshTri2, with the same numbers of points and cells.

        Raises:
            TypeError: it is another kind of mesh.
        """
        kind = type(mesh).__name__
        if kind not in ("MeshTri1", "MeshTri2"):
            raise TypeError(f"the mesh is a {kind}; only scikit-fem's MeshTri and MeshTri2 are meshes of triangles.")
        cells = mesh.t if kind == "MeshTri1" else mesh.dofs.element_dofs
        return cls(torch.tensor(mesh.doflocs.T, dtype=dtype), torch.tensor(cells.T, dtype=torch.int64))

    def to_skfem(self) -> Any:
        """As scikit-fem's MeshTri, or MeshTri2 where sides are quadratic; midpoints get the numbers that scikit-fem gives them."""
        skfem = _imported("skfem", "scikit-fem")
        points, cells = self.points.detach().cpu().double().numpy().T, self.cells.cpu().numpy().T
        return (skfem.MeshTri if len(cells) == 3 else skfem.MeshTri2)(points.copy(), cells.copy())

    @classmethod
    def from_meshio(cls, mesh: Any, dtype: torch.dtype = torch.float64) -> Mesh:
        """From the triangles of meshio's Mesh, "triangle" or "triangle6"; points that none of them uses are left out.

        Raises:
            ValueError: there are no triangles, or both kinds; or the mesh is not in the plane z = const.
        """
        kinds = [kind for kind in ("triangle", "triangle6") if kind in mesh.cells_dict]
        if len(kinds) != 1:
            raise ValueError(
                f"the mesh holds {', '.join(mesh.cells_dict) or 'no cells'}; expected triangle or triangle6."
            )
        points, cells = torch.as_tensor(mesh.points, dtype=dtype), torch.as_tensor(mesh.cells_dict[kinds[0]]).long()
        if points.shape[1] == 3 and bool((points[cells.flatten(), 2] != points[cells[0, 0], 2]).any()):
            raise ValueError("the triangles do not lie in a plane z = const; project them first.")
        corners, middle = cells[:, :3].unique(), cells[:, 3:].unique()
        used = torch.cat([corners, middle[~torch.isin(middle, corners)]])
        number = torch.full((len(points),), -1)
        number[used] = torch.arange(len(used))
        return cls(points[used, :2], number[cells])

    def to_meshio(self) -> Any:
        """As meshio's Mesh."""
        meshio = _imported("meshio", "meshio")
        kind = "triangle" if self.cells.shape[1] == 3 else "triangle6"
        return meshio.Mesh(self.points.detach().cpu().numpy(), [(kind, self.cells.cpu().numpy())])

    def _signed_areas(self) -> Tensor:
        a, b, c = self.points[self.triangles].unbind(1)
        return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """The edges, how many triangles have each, and the edge of every triangle's sides 0-1, 1-2, 2-0 (3 n_cells,)."""
        sides = torch.stack([self.triangles, self.triangles.roll(-1, 1)], -1).reshape(-1, 2).sort(1).values
        edges, which, counts = sides.unique(dim=0, return_inverse=True, return_counts=True)
        return edges, counts, which

    def _reordered(self, clockwise: Tensor) -> Tensor:
        """Where the sides of the counter-clockwise triangles (2,1,0) are among 0-1, 1-2, 2-0 of the given ones."""
        places = torch.arange(3 * len(self.cells), device=self.cells.device).view(-1, 3)
        return torch.where(clockwise[:, None], places[:, [1, 0, 2]], places).flatten()


def _imported(name: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{package} is not installed; run: pip install 'opflow[fem]'") from error
