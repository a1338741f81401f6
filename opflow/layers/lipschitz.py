"""Layers whose Lipschitz constant is at most one whatever their parameters: a bound by construction, not by training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opflow.functional import spectral_conv
from opflow.kernels.channel_mlp.reference import channel_linear
from opflow.kernels.spectral_conv.call import weight_grid
from opflow.layers.bounds import gram_bound, slopes
from opflow.layers.spectral_conv import as_modes
from opflow.typing import Field, check_field, check_placement, check_sizes


class SandwichLayer(nn.Module):
    """h -> sqrt(2) A^T P s(sqrt(2) P^-1 B h + b), P = exp(diag(d)): 1-Lipschitz   (Wang and Manchester 2023, eq. 10, 16).

    A^T = (I + Z)^-1 (I - Z),  B^T = -2 Y (I + Z)^-1,  Z = X - X^T + Y^T Y  with X (q, q) and Y (p, q) free: A A^T + B B^T = I. Compositions
    reach every network that the semidefinite bound of Fazlyab et al. (2019) certifies, not only those whose layers are bounded one by one.

    Starts with X = 0 and B of equal singular values, so that its linear part 2 A^T B is an isometry of the smaller side.

    Args:
        activation: slopes in [0, 1]; ReLU by default.

    >>> SandwichLayer(3, 8)(torch.zeros(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(self, in_features: int, out_features: int, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.activation = _unit_slopes(activation, "SandwichLayer")
        self.X = nn.Parameter(torch.zeros(out_features, out_features))
        self.Y = nn.Parameter(math.tan(math.pi / 8) * _orthogonal(in_features, out_features))
        self.log_scale = nn.Parameter(torch.zeros(out_features))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-0.1, 0.1))

    def forward(self, h: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        _check_last(h, self.in_features, self.Y, "SandwichLayer")
        A, B = _cayley(self.X, self.Y)
        scale = self.log_scale.exp()
        inner = math.sqrt(2) * (h @ B.T) / scale + self.bias
        return math.sqrt(2) * ((scale * self.activation(inner)) @ A)

    def extra_repr(self) -> str:
        """Widths for `print(model)`."""
        return f"{self.in_features}, {self.out_features}"


class CayleyLinear(nn.Module):
    """h -> B h + b with |B| <= 1, B of `SandwichLayer`: the last, linear layer of such a network. Starts as an isometry of the smaller side.

    >>> CayleyLinear(3, 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.X = nn.Parameter(torch.zeros(out_features, out_features))
        self.Y = nn.Parameter(_orthogonal(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, h: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        _check_last(h, self.in_features, self.Y, "CayleyLinear")
        return h @ self.weight().T + self.bias

    def weight(self) -> Tensor:
        """B (out, in)."""
        return _cayley(self.X, self.Y)[1]

    def extra_repr(self) -> str:
        """Widths for `print(model)`."""
        return f"{self.in_features}, {self.out_features}"


class AOLLinear(nn.Module):
    """h -> W h + b, W = P diag(sum_j |P^T P|_ij)^(-1/2), so that |W| <= 1   (Prach and Lampert 2022, "Almost-orthogonal Lipschitz layers").

    The rescaling runs over the smaller side of P, which starts orthogonal: W = P there, an isometry.

    >>> AOLLinear(3, 8)(torch.zeros(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.P = nn.Parameter(_orthogonal(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, h: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        _check_last(h, self.in_features, self.P, "AOLLinear")
        return h @ self.weight().T + self.bias

    def weight(self) -> Tensor:
        """W (out, in)."""
        if self.out_features < self.in_features:
            return self.P / _row_sums(self.P @ self.P.T).sqrt()[:, None]
        return self.P / _row_sums(self.P.T @ self.P).sqrt()

    def extra_repr(self) -> str:
        """Widths for `print(model)`."""
        return f"{self.in_features}, {self.out_features}"


class SLLBlock(nn.Module):
    """h -> h - 2 W T^-1 s(W^T h + b), T = diag(sum_j |W^T W|_ij q_j / q_i): 1-Lipschitz   (Araujo et al. 2023, theorem 3).

    A residual layer that does not shrink what it passes on, so that many may follow each other. Starts orthogonal, which makes T = I
    where hidden_features <= features.

    Args:
        hidden_features: columns of W; `features` by default.
        activation: slopes in [0, 1]; ReLU by default.

    >>> SLLBlock(4)(torch.zeros(5, 4)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self, features: int, hidden_features: int | None = None, *, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        hidden = features if hidden_features is None else hidden_features
        check_sizes(features=features, hidden_features=hidden)
        self.features, self.hidden_features = features, hidden
        self.activation = _unit_slopes(activation, "SLLBlock")
        self.W = nn.Parameter(_orthogonal(features, hidden))
        self.log_q = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-0.1, 0.1))

    def forward(self, h: Tensor) -> Tensor:
        """(..., features) -> the same"""
        _check_last(h, self.features, self.W, "SLLBlock")
        ratio = (self.log_q[None, :] - self.log_q[:, None]).exp()  # q_j / q_i
        T = _row_sums(self.W.T @ self.W, ratio)
        return h - 2 * (self.activation(h @ self.W + self.bias) / T) @ self.W.T

    def extra_repr(self) -> str:
        """Widths for `print(model)`."""
        return f"{self.features}, {self.hidden_features}"


class LipschitzFourierLayer(nn.Module):
    """v -> s(K v + W v + b) / c, the Fourier layer scaled to be 1-Lipschitz in L2 on every periodic grid.

    On the frequency k it acts as W + R_k (see `SpectralConv`), on those beyond `n_modes` as W. So with S_k = W + R_k

        S_k' = S_k / max(1, |S_k|),   W' = W / max(1, |W|),   R_k' = S_k' - W'

    have |K' + W'| = max(max_k |S_k'|, |W'|) <= 1; the norms are those of `gram_bound`, and c >= 1 is the greatest slope of s.

    Args:
        n_modes: as of `SpectralConv`.
        activation: a module with known slopes; ReLU by default.
        iterations: of Gram. Eight exceed the norm by less than 1 % for up to 64 channels; the layer is then that much contractive.

    >>> LipschitzFourierLayer(4, 4, (5, 5))(torch.zeros(2, 4, 16, 16)).shape
    torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: int | Sequence[int],
        *,
        activation: nn.Module | None = None,
        iterations: int = 8,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, iterations=iterations)
        self.in_channels, self.out_channels, self.n_modes = in_channels, out_channels, as_modes(n_modes)
        self.iterations = iterations
        self.activation = activation or nn.ReLU()
        self.slope = max(1.0, *map(abs, slopes(self.activation)))
        shape = (*weight_grid(self.n_modes), 2, in_channels, out_channels)
        self.weight = nn.Parameter(0.1 / math.sqrt(2 * in_channels) * torch.randn(shape))
        self.skip = nn.Parameter(_orthogonal(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, v: Field) -> Field:
        """(batch, in, *grid) -> (batch, out, *grid)"""
        check_field(v, self.in_channels, len(self.n_modes), self.skip, "LipschitzFourierLayer")
        weight, skip = self.normalised()
        linear = channel_linear(v.flatten(2), skip, self.bias).unflatten(2, v.shape[2:])
        return self.activation(spectral_conv(v, weight, self.n_modes) + linear) / self.slope

    def normalised(self) -> tuple[Tensor, Tensor]:
        """R' (*kept, 2, in, out) and W' (out, in)."""
        real, imaginary = self.weight.unbind(-3)
        S = torch.complex(self.skip.T + real, imaginary)
        S = S / gram_bound(S, self.iterations).clamp(min=1.0)[..., None, None]
        W = self.skip / gram_bound(self.skip, self.iterations).clamp(min=1.0)
        return torch.stack([S.real - W.T, S.imag], dim=-3), W

    def extra_repr(self) -> str:
        """Channels and modes for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, n_modes={self.n_modes}"


class LipschitzMLP(nn.Module):
    """A perceptron with |f(x) - f(y)| <= `lipschitz` |x - y|: sandwich layers and a Cayley layer between two factors sqrt(lipschitz).

    Args:
        sizes: the widths, input first: (in, hidden, ..., out).
        lipschitz: the bound, in units of the output over those of the input.
        activation: slopes in [0, 1]; ReLU by default.

    >>> LipschitzMLP((3, 16, 16, 2), lipschitz=5.0)(torch.zeros(7, 3)).shape
    torch.Size([7, 2])
    """

    def __init__(self, sizes: Sequence[int], *, lipschitz: float = 1.0, activation: nn.Module | None = None) -> None:
        super().__init__()
        if len(sizes) < 2 or not 0 < lipschitz < math.inf:
            raise ValueError(
                f"sizes is {tuple(sizes)} and lipschitz {lipschitz}; give at least an input and an output width, and a positive bound."
            )
        self.lipschitz, self.in_features = float(lipschitz), sizes[0]
        self.hidden = nn.ModuleList(
            SandwichLayer(a, b, activation=activation) for a, b in itertools.pairwise(sizes[:-1])
        )
        self.last = CayleyLinear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        _check_last(x, self.in_features, self.last.Y, "LipschitzMLP", "x")
        x = math.sqrt(self.lipschitz) * x
        for layer in self.hidden:
            x = layer(x)
        return math.sqrt(self.lipschitz) * self.last(x)

    def extra_repr(self) -> str:
        """The bound for `print(model)`."""
        return f"lipschitz={self.lipschitz:g}"


def _cayley(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """A (q, q) and B (q, p) with A A^T + B B^T = I from X (q, q) and Y (p, q)."""
    identity = torch.eye(X.shape[0], dtype=X.dtype, device=X.device)
    Z = X - X.T + Y.T @ Y
    # (I + Z)^T = I + Z^T solves for both: A = (I - Z)^T (I + Z)^-T and B = -2 (I + Z)^-T Y^T.
    right = torch.cat([(identity - Z).T, -2 * Y.T], dim=1)
    solved = torch.linalg.solve((identity + Z).T, right)
    return solved[:, : X.shape[0]], solved[:, X.shape[0] :]


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))


def _row_sums(gram: Tensor, ratio: Tensor | float = 1.0) -> Tensor:
    """sum_j |G_ij| ratio_ij, away from zero, where a zero column of the weight would divide by it."""
    return (gram.abs() * ratio).sum(1).clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)


def _unit_slopes(activation: nn.Module | None, owner: str) -> nn.Module:
    activation = activation or nn.ReLU()
    least, greatest = slopes(activation)
    if least < 0 or greatest > 1:
        raise ValueError(
            f"{type(activation).__name__} has slopes in [{least:.4f}, {greatest:.4f}], but the bound of {owner} holds for slopes in "
            "[0, 1]; use ReLU, Tanh, Softplus or another monotone activation."
        )
    return activation


def _check_last(h: Tensor, features: int, like: Tensor, owner: str, name: str = "h") -> None:
    if h.ndim < 1 or h.shape[-1] != features:
        raise ValueError(
            f"{name} has shape {tuple(h.shape)} but {owner} expects {features} numbers along the last axis: (..., features)."
        )
    check_placement(h, like, owner, name)
