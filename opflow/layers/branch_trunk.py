"""The contraction of coefficients with functions that ends a DeepONet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opflow.typing import check_placement

# How several outputs share: whether the branch, and the trunk, have something apart for each. "independent" has nets apart
# besides. The names are those of Lu et al. 2022, "A comprehensive and fair comparison of two neural operators".
MULTI_OUTPUT = {
    "independent": (True, True),
    "split_both": (True, True),
    "split_branch": (True, False),
    "split_trunk": (False, True),
}


def as_multi_output(name: str) -> tuple[bool, bool]:
    """Whether the branch, and whether the trunk, has coefficients or functions apart for every output."""
    if name not in MULTI_OUTPUT:
        raise ValueError(f"multi_output is {name!r}; give one of {', '.join(MULTI_OUTPUT)}.")
    return MULTI_OUTPUT[name]


class BranchTrunk(nn.Module):
    """G(a)(y) = sum_k b_k(a) t_k(y) + b_0   (Lu et al. 2021, "DeepONet", eq. 2): the scalar core of DeepONet.

    branch (batch, basis), trunk (points, basis) -> (batch, points)

    The points are the same for all samples, so that the trunk is evaluated once and the sum is one matrix product. A
    trunk (batch, points, basis), aligned with the branch, gives every sample points of its own.

    With `out_channels`, both sides carry an axis of outputs, of size `out_channels` or, where the outputs share them, 1:

    branch (batch, out or 1, basis), trunk ([batch,] points, out or 1, basis) -> (batch, points, out)

    Args:
        out_channels: None for a scalar output without an axis.
        bias: add b_0, one number per output, which starts at zero.

    >>> BranchTrunk()(torch.ones(2, 8), torch.ones(5, 8)).shape
    torch.Size([2, 5])
    >>> BranchTrunk(3)(torch.ones(2, 3, 8), torch.ones(5, 1, 8)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, out_channels: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        if out_channels is not None and out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; give a positive number, or None for a scalar output.")
        self.out_channels = out_channels
        self.bias = nn.Parameter(torch.zeros(out_channels or 1)) if bias else None

    def forward(self, branch: Tensor, trunk: Tensor) -> Tensor:
        """Coefficients and functions -> values, see above."""
        self._check(branch, trunk)
        if self.out_channels is None:
            y = torch.einsum("bk,bpk->bp" if trunk.ndim == 3 else "bk,pk->bp", branch, trunk)
        else:
            # An output axis of size 1 is shared: einsum leaves it out of the batched axes, so that one product remains.
            y = torch.einsum("bok,bpok->bpo" if trunk.ndim == 4 else "bok,pok->bpo", branch, trunk)
            y = y.expand(*y.shape[:-1], self.out_channels)
        return y if self.bias is None else y + self.bias

    def _check(self, branch: Tensor, trunk: Tensor) -> None:
        outputs, axes = ("", 2) if self.out_channels is None else (f"{self.out_channels} or 1, ", 3)
        fits = branch.ndim == axes and trunk.ndim in (axes, axes + 1) and branch.shape[-1] == trunk.shape[-1]
        if fits and self.out_channels is not None:
            fits = all(part.shape[-2] in (1, self.out_channels) for part in (branch, trunk))
        if fits and trunk.ndim == axes + 1:
            fits = trunk.shape[0] in (1, branch.shape[0])
        if not fits:
            raise ValueError(
                f"branch has shape {tuple(branch.shape)} and trunk {tuple(trunk.shape)}, but BranchTrunk expects "
                f"(batch, {outputs}basis) and (points, {outputs}basis) or (batch, points, {outputs}basis), "
                "with one batch and one basis."
            )
        like = branch if self.bias is None else self.bias
        check_placement(branch, like, "BranchTrunk", "branch")
        check_placement(trunk, like, "BranchTrunk", "trunk")

    def extra_repr(self) -> str:
        """Outputs for `print(model)`."""
        return f"out_channels={self.out_channels}, bias={self.bias is not None}"
