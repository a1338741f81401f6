"""Five-point systems on rectangles by block elimination, line by line: batched, with many right-hand sides at once."""

from __future__ import annotations

import torch
from torch import Tensor


class LineFactors:
    """The five-point operator of a batch of face weights, inverted for values given on the boundary.

        (A u)_i = sum_j w_ij (u_i - u_j)   over the neighbours j of node i, boundary nodes included.

    The interior block is block tridiagonal: a line's coupling to the next is diagonal, so that elimination needs one inverse a line,
    S_(i+1) = A_(i+1) - c_i S_i^(-1) c_i, all of them of M-matrices. Everything is dense products, on any device; n lines of n nodes
    cost O(n^4) once and O(n^3) a right-hand side: on 70 nodes about what sparse factors take for twenty of them, and less for hundreds.

    Args:
        along_x: weights of faces between (i, j) and (i + 1, j), (batch, n_x - 1, n_y), positive.
        along_y: weights of faces between (i, j) and (i, j + 1), (batch, n_x, n_y - 1), positive.
    """

    def __init__(self, along_x: Tensor, along_y: Tensor) -> None:
        self.along_x, self.along_y = along_x, along_y
        wx, wy = along_x[..., 1:-1], along_y[:, 1:-1]
        diagonal = wx[:, :-1] + wx[:, 1:] + wy[..., :-1] + wy[..., 1:]  # (batch, lines, line)
        inner = wy[..., 1:-1]
        lines = torch.diag_embed(diagonal) - torch.diag_embed(inner, 1) - torch.diag_embed(inner, -1)
        self._coupling = wx[:, 1:-1, :, None].movedim(1, 0)  # (lines - 1, batch, line, 1)
        self._inverses = [_inverse(lines[:, 0])]
        for line, c in zip(lines.unbind(1)[1:], self._coupling, strict=True):
            self._inverses.append(_inverse(line - c * self._inverses[-1] * c.mT))

    def extend(self, boundary: Tensor) -> Tensor:
        """u (batch, k, n_x, n_y) with A u = 0 inside and these values on the boundary; those given inside are not read."""
        u, load = boundary.clone(), boundary.new_zeros(boundary[..., 1:-1, 1:-1].shape)
        x, y = self.along_x[:, None, :, 1:-1], self.along_y[:, None, 1:-1]
        load[..., 0, :] += x[..., 0, :] * u[..., 0, 1:-1]
        load[..., -1, :] += x[..., -1, :] * u[..., -1, 1:-1]
        load[..., 0] += y[..., 0] * u[..., 1:-1, 0]
        load[..., -1] += y[..., -1] * u[..., 1:-1, -1]
        u[..., 1:-1, 1:-1] = self.solve(load)
        return u

    def solve(self, f: Tensor) -> Tensor:
        """u (batch, k, n_x - 2, n_y - 2) with A u = f inside and u = 0 on the boundary."""
        parts = f.permute(2, 0, 3, 1).contiguous()  # (lines, batch, line, k)
        eliminated = [self._inverses[0] @ parts[0]]
        for inverse, c, part in zip(self._inverses[1:], self._coupling, parts[1:], strict=True):
            eliminated.append(inverse @ torch.addcmul(part, c, eliminated[-1]))
        u = parts  # its memory is free by now
        u[-1] = eliminated[-1]
        for i in range(len(eliminated) - 2, -1, -1):
            torch.add(eliminated[i], self._inverses[i] @ (self._coupling[i] * u[i + 1]), out=u[i])
        return u.permute(1, 3, 0, 2)


def flow_inside(along_x: Tensor, along_y: Tensor, u: Tensor) -> Tensor:
    """A u at inner nodes (..., n_x - 2, n_y - 2), of face weights (..., n_x - 1, n_y) and (..., n_x, n_y - 1)."""
    along_x, along_y, of_x, of_y = along_x[..., 1:-1], along_y[..., 1:-1, :], u[..., 1:-1], u[..., 1:-1, :]
    return -((along_x * of_x.diff(dim=-2)).diff(dim=-2) + (along_y * of_y.diff(dim=-1)).diff(dim=-1))


def outflow(along_x: Tensor, along_y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A u at the nodes of the sides (..., n - 2), low x, high x, low y, high y, without corners: what flows out through them."""
    sides = [(along_x[..., 0, :], along_y[..., 0, :], u[..., :2, :].unbind(-2))]
    sides += [(along_x[..., -1, :], along_y[..., -1, :], u[..., -2:, :].flip(-2).unbind(-2))]
    sides += [(along_y[..., 0], along_x[..., 0], u[..., :2].unbind(-1))]
    sides += [(along_y[..., -1], along_x[..., -1], u[..., -2:].flip(-1).unbind(-1))]
    low_x, high_x, low_y, high_y = (
        (normal * (at - next_to))[..., 1:-1] - (tangential * at.diff(dim=-1)).diff(dim=-1)
        for normal, tangential, (at, next_to) in sides
    )
    return low_x, high_x, low_y, high_y


def _inverse(matrices: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrices))
