"""-div(a grad u) + c u on a grid as weights on the faces between unknowns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opflow.grid import Grid
from opflow.kernels.backend import choose
from opflow.kernels.stencil.backends import BACKENDS
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.stencil import Stencil
from opflow.solvers.closed_parts import closed_parts, part_means
from opflow.solvers.face_weights import Boundary, as_sides, corner_weights, face_weights
from opflow.solvers.linear_operator import LinearOperator
from opflow.solvers.matrix_stencil import read_matrix


class FaceStencil(LinearOperator):
    """(A u)_i = c_i u_i + sum over axes of w_(i-1/2) (u_i - u_(i-1)) + w_(i+1/2) (u_i - u_(i+1)), with u = 0 outside the domain.

    Outside is beyond the grid and where `mask` is False. So a positive weight on a face that leads outside is a Dirichlet
    condition, a zero weight a closed wall (Neumann), on the sides of the box and on obstacles alike. A is symmetric; it is positive
    definite if every connected part of the domain has such a positive weight or a positive c, and otherwise annihilates what is
    constant on the closed parts (`null_part`). At points outside A u = 0, whatever u is there.

    Args:
        weights: one tensor per axis, (batch or 1, *shape) with one more entry along its own axis: the first and the
            last are the outer faces; on a periodic axis these two are one face and hold the same numbers.
        mask: (batch or 1, *shape), True where the equation holds; None for everywhere.
        reaction: c (batch or 1, *shape), not negative; None for 0.
        corners: in two dimensions the weights (batch or 1, n_0 + 1, n_1 + 1), at the vertices between points, of the couplings of
            (i, j) to (i+1, j+1) and of (i+1, j) to (i, j+1): a nine-point stencil, for rotated anisotropy. They may be negative.
        boundary: what the outer faces stand for, for `FastPoisson`: "dirichlet", "neumann" or "periodic"; or per axis one of these or
            a (lower, upper) pair. Periodic axes couple their ends.
        layout: where the unknowns live, one for all axes or one per axis: "nodes" (the interior ones), "cells" or "periodic".
        free_dofs: for operators that came from a matrix, the place (flat index of `shape`) of each of its rows, see `from_sparse`.

    >>> A = FaceStencil([torch.ones(1, 4)])
    >>> A.apply(torch.ones(1, 3))
    tensor([[1., 0., 1.]])
    """

    symmetric = True

    def __init__(
        self,
        weights: Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        reaction: Tensor | None = None,
        corners: tuple[Tensor, Tensor] | None = None,
        boundary: Boundary = "dirichlet",
        layout: str | Sequence[str] = "nodes",
        free_dofs: Tensor | None = None,
        backend: str | None = None,
    ) -> None:
        self.shape = _shape(weights)
        dim = len(self.shape)
        self.weights, self.mask, self.reaction, self.corners = tuple(weights), mask, reaction, corners
        self.boundary = as_sides(boundary, dim)
        self.layout = (layout,) * dim if isinstance(layout, str) else tuple(layout)
        self.free_dofs, self.backend = free_dofs, backend
        self.periodic = tuple(pair[0] == "periodic" for pair in self.boundary)
        self.dtype, self.device = weights[0].dtype, weights[0].device
        for name, field in (("mask", mask), ("reaction", reaction)):
            if field is not None and tuple(field.shape[1:]) != self.shape:
                raise ValueError(f"the {name} has shape {tuple(field.shape)}; expected (batch or 1, *{self.shape}).")
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"the mask is {mask.dtype}; give torch.bool, True where the equation holds.")
        if corners is not None and (
            dim != 2
            or any(self.periodic)
            or any(tuple(c.shape[1:]) != tuple(n + 1 for n in self.shape) for c in corners)
        ):
            raise ValueError(
                f"the corner weights have shapes {[tuple(c.shape) for c in corners]} on the grid {self.shape}; corners are for planes that "
                "are not periodic, (batch or 1, n_0 + 1, n_1 + 1)."
            )
        given = [*self.tensors(), *([] if mask is None else [mask])]
        batches = {w.shape[0] for w in given} - {1}
        if len(batches) > 1:
            raise ValueError(
                f"the face weights hold batches of {sorted(batches)} operators; expected one number, or 1."
            )
        self.batch = batches.pop() if batches else 1

    @classmethod
    def from_coefficient(
        cls,
        a: Tensor | Sequence[Tensor],
        grid: Grid,
        *,
        boundary: Boundary = "dirichlet",
        mask: Tensor | None = None,
        obstacles: str = "neumann",
        reaction: Tensor | None = None,
    ) -> FaceStencil:
        """-div(a grad u) + c u of second order, with harmonic means of `a` (batch, *grid) on the faces.

        On nodes with Dirichlet boundary the unknowns are the interior nodes, so `shape` is two less on that axis than the
        grid. On cells the outer faces are half a spacing away (Dirichlet) or closed (Neumann).

        Args:
            a: (batch, *grid), or one such field per axis for anisotropy along the axes.
            mask: (batch or 1, *grid), True in the domain, False in obstacles.
            obstacles: "neumann", no flux through their surface, or "dirichlet", u = 0 in them.
            reaction: c (batch or 1, *grid).

        Raises:
            ValueError: shapes, layout or boundary are not among these, or the coefficient is not positive.
        """
        sides = as_sides(boundary, grid.dim)
        weights, inside, c = face_weights(a, grid, sides, mask=mask, obstacles=obstacles, reaction=reaction)
        return cls(weights, mask=inside, reaction=c, boundary=sides, layout=grid.layout)

    @classmethod
    def from_tensor(cls, k: Tensor, grid: Grid) -> FaceStencil:
        """-div(K grad u) on the interior nodes of a plane, u = 0 on its boundary: nine points, second order.

        The mixed derivative is taken at the vertices between nodes: (u_11 - u_00)^2 - (u_10 - u_01)^2 there is 4 h_x h_y u_x u_y.

        Args:
            k: (batch, 3, *grid): K_xx, K_yy, K_xy, positive definite.

        Raises:
            ValueError: K is not of this shape or not positive definite everywhere, or the grid is no plane of nodes.
        """
        sides = as_sides("dirichlet", grid.dim)
        corners = corner_weights(k, grid)
        weights, _, _ = face_weights((k[:, 0], k[:, 1]), grid, sides)
        return cls(weights, corners=corners, boundary=sides, layout=grid.layout)

    @classmethod
    def from_sparse(cls, matrix: Any, grid: Grid, free_dofs: Any = None) -> FaceStencil:
        """The three-, five- or seven-point matrix of another program, recognised.

        Row i stands for the point `free_dofs[i]` (flat index, last axis fastest) of the grid; the others have been eliminated, u = 0
        there or no equation. Without `free_dofs` the rows are all points in order, or all interior ones of a grid of nodes. What a
        row's sum exceeds zero by becomes a Dirichlet face where the point has a face that leads outside, and a reaction where points
        without one have such a sum too.

        Args:
            matrix: SciPy sparse, real and symmetric.

        Raises:
            ValueError: the matrix couples points that are no neighbours, is not symmetric, or is no sum of non-negative faces.
        """
        found = read_matrix(matrix, grid, free_dofs)
        return cls(
            found.weights,
            mask=found.mask,
            reaction=found.reaction,
            boundary=found.sides,
            layout=grid.layout,
            free_dofs=found.free_dofs,
        )

    def diagonal(self) -> Tensor:
        """The diagonal of A, (batch or 1, *shape); 0 outside the domain."""
        return self.stencil.diagonal

    def apply(self, x: Tensor) -> Tensor:
        """A x, (batch, *shape) -> (batch, *shape)"""
        call = StencilCall.of(self.stencil, x.shape[0], x)
        return choose(BACKENDS, call, self.backend).apply(self.stencil, x)

    @property
    def stencil(self) -> Stencil:
        """What couples each point to its neighbours, as kernels take it."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors()):
            return self._assemble()  # with its graph, which must not be kept
        return self._kept_stencil

    @cached_property
    def _kept_stencil(self) -> Stencil:
        with torch.inference_mode(False), torch.no_grad():  # kept for later calls, which may need gradients
            return self._assemble()

    def _assemble(self) -> Stencil:
        upper = [
            torch.where(inside, w, 0.0) for w, (inside, _) in zip(self._upper_faces, self._inside_pairs, strict=True)
        ]
        faces = [lower + up for lower, up in zip(self._lower_faces, self._upper_faces, strict=True)]
        diagonal = sum(faces[1:], start=faces[0])
        if self.reaction is not None:
            diagonal = diagonal + self.reaction
        corners = None
        if self.corners is not None:
            around = [c[:, 1:, 1:] for c in self.corners]  # the vertex above each point on both axes
            (rising, falling), (n, m) = self.corners, self.shape
            meeting = rising[:, 1:, 1:] + rising[:, :n, :m] + falling[:, 1:, :m] + falling[:, :n, 1:]
            diagonal = diagonal + meeting
            corners = tuple(self._within(c) for c in around)
        if self.mask is not None:
            diagonal = torch.where(self.mask, diagonal, 0.0)
        parts = [*upper, diagonal, *(corners or ())]
        if len({part.shape[0] for part in parts}) > 1:
            parts = list(torch.broadcast_tensors(*parts))
        parts = [part.contiguous() for part in parts]
        dim = len(self.shape)
        return Stencil(tuple(parts[:dim]), parts[dim], self.periodic, tuple(parts[dim + 1 :]) or None)  # type: ignore[arg-type]

    @cached_property
    def anchors(self) -> tuple[Tensor | None, ...]:
        """Per axis the sum of the weights of a point's faces that lead outside, (batch or 1, *shape); None where all are zero."""
        found: list[Tensor | None] = []
        for lower, up, (above, below) in zip(self._lower_faces, self._upper_faces, self._inside_pairs, strict=True):
            anchor = torch.where(above, 0.0, up) + torch.where(below, 0.0, lower)
            if self.mask is not None:
                anchor = torch.where(self.mask, anchor, 0.0)
            found.append(anchor if bool(anchor.any()) else None)
        return tuple(found)

    def null_part(self, x: Tensor) -> Tensor | None:
        """The projection of x on the null space: x outside the domain, its mean on every closed part of it; None where A is regular."""
        return None if self._closed_parts is None else part_means(x, self._closed_parts, self._closed_number)

    def null_space(self) -> Tensor | None:
        """The unit constant where the whole domain is one closed part; see `null_part` for several."""
        if self._closed_parts is None or not bool((self._closed_parts.abs() == 1).all()):
            return None
        inside = (self._closed_parts[0] == 1).to(self.dtype)
        return inside / inside.norm()

    def tensors(self) -> tuple[Tensor, ...]:
        """The weights, and the reaction and the corner weights where A has them."""
        return (*self.weights, *(() if self.reaction is None else (self.reaction,)), *(self.corners or ()))

    def with_tensors(self, tensors: Sequence[Tensor]) -> FaceStencil:
        """The same domain and boundary with other numbers, in the order of `tensors()`."""
        return self._with(tensors, self.mask)

    def _with(self, tensors: Sequence[Tensor], mask: Tensor | None) -> FaceStencil:
        rest = list(tensors)
        weights = [rest.pop(0) for _ in self.shape]
        reaction = None if self.reaction is None else rest.pop(0)
        corners = None if self.corners is None else (rest.pop(0), rest.pop(0))
        return FaceStencil(
            weights,
            mask=mask,
            reaction=reaction,
            corners=corners,
            boundary=self.boundary,
            layout=self.layout,
            free_dofs=self.free_dofs,
            backend=self.backend,
        )

    def select(self, i: int) -> FaceStencil:
        """The i-th of a batch of operators, alone."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[i : i + 1]
        numbers = [t if len(t) == 1 else t[i : i + 1] for t in self.tensors()]
        return self._with(numbers, mask)

    @cached_property
    def dofs(self) -> Tensor:
        """The flat index of every unknown inside the domain, in the order of the rows of `to_sparse`."""
        if self.free_dofs is not None:
            return self.free_dofs
        if self.mask is None:
            return torch.arange(int(np.prod(self.shape)), device=self.device)
        if self.mask.shape[0] > 1:
            raise ValueError(f"A is a batch of {self.batch} operators on different domains; take one of them.")
        return self.mask.flatten().nonzero().flatten()

    def scatter(self, v: Tensor) -> Tensor:
        """(batch, unknowns) -> (batch, *shape), zero outside the domain."""
        field = v.new_zeros(v.shape[0], int(np.prod(self.shape)))
        field[:, self.dofs.to(v.device)] = v
        return field.view(-1, *self.shape)

    def gather(self, x: Tensor) -> Tensor:
        """(batch, *shape) -> (batch, unknowns)"""
        return x.flatten(1)[:, self.dofs.to(x.device)]

    def to_sparse(self) -> Any:
        """A over its unknowns, as a SciPy CSR array.

        Raises:
            ValueError: A holds more than one operator.
        """
        import scipy.sparse

        if self.batch > 1:
            raise ValueError(f"A is a batch of {self.batch} operators, and a sparse matrix is one; take one of them.")
        n = int(np.prod(self.shape))
        place = torch.arange(n, dtype=torch.int32 if n < 2**31 else torch.int64).view(self.shape)
        rows, columns, values = (
            [place.flatten()],
            [place.flatten()],
            [self.stencil.diagonal[0].detach().cpu().flatten()],
        )
        pairs = [(w[0].detach().cpu(), place, place.roll(-1, d)) for d, w in enumerate(self.stencil.upper)]
        if self.stencil.corners is not None:
            rising, falling = (w[0].detach().cpu() for w in self.stencil.corners)
            pairs += [(rising, place, place.roll((-1, -1), (0, 1))), (falling, place.roll(-1, 0), place.roll(-1, 1))]
        for weight, here, there in pairs:
            coupled = weight != 0
            i, j, w = here[coupled], there[coupled], -weight[coupled]
            rows += [i, j]
            columns += [j, i]
            values += [w, w]
        arrays = [torch.cat(parts).numpy() for parts in (values, rows, columns)]
        matrix = scipy.sparse.coo_array((arrays[0], (arrays[1], arrays[2])), shape=(n, n)).tocsr()
        dofs = self.dofs.cpu().numpy()
        return matrix if len(dofs) == n and self.free_dofs is None else matrix[dofs][:, dofs]

    @property
    def _lower_faces(self) -> list[Tensor]:
        return [w.narrow(d + 1, 0, n) for d, (w, n) in enumerate(zip(self.weights, self.shape, strict=True))]

    @property
    def _upper_faces(self) -> list[Tensor]:
        return [w.narrow(d + 1, 1, n) for d, (w, n) in enumerate(zip(self.weights, self.shape, strict=True))]

    @cached_property
    def _inside_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Per axis whether a point and the next one (the one before) are both inside."""
        inside = torch.ones(1, *self.shape, dtype=torch.bool, device=self.device) if self.mask is None else self.mask
        pairs = []
        for d, ring in enumerate(self.periodic):
            above = inside & inside.roll(-1, d + 1)
            if not ring:
                above.select(d + 1, -1).fill_(False)
            pairs.append((above, above.roll(1, d + 1)))
        return pairs

    def _within(self, corner: Tensor) -> Tensor:
        """The corner couplings of points whose square lies on the grid."""
        kept = torch.ones(1, *self.shape, dtype=torch.bool, device=self.device)
        kept[:, -1] = kept[:, :, -1] = False
        if self.mask is not None:
            raise ValueError("corner weights beside a mask are not discretised here; leave the mask out.")
        return corner * kept

    @cached_property
    def _closed_parts(self) -> Tensor | None:
        anchored = torch.zeros(1, *self.shape, dtype=torch.bool, device=self.device)
        for extra in (*self.anchors, self.reaction, *self._outer_corners()):
            if extra is not None:
                anchored = anchored | (extra != 0)
        return closed_parts(self.stencil, self.mask, anchored)

    @cached_property
    def _closed_number(self) -> int:
        return 0 if self._closed_parts is None else max(0, int(self._closed_parts.max()))

    def _outer_corners(self) -> tuple[Tensor, ...]:
        """Where corner weights lead outside they hold the point as a Dirichlet face does."""
        if self.corners is None:
            return ()
        edge = torch.zeros(1, *self.shape, dtype=torch.bool, device=self.device)
        edge[:, 0] = edge[:, -1] = edge[:, :, 0] = edge[:, :, -1] = True
        return (edge,)


def _shape(weights: Sequence[Tensor]) -> tuple[int, ...]:
    dim = len(weights)
    shapes = {
        tuple(n - (axis == d) for axis, n in enumerate(w.shape[1:])) for d, w in enumerate(weights) if w.ndim == dim + 1
    }
    if len(shapes) != 1 or any(w.ndim != dim + 1 for w in weights):
        raise ValueError(
            f"the face weights have shapes {[tuple(w.shape) for w in weights]}; expected one tensor per axis, "
            "(batch, *shape) with one more entry along its own axis."
        )
    return shapes.pop()
