"""Attention without softmax: the Galerkin and the Fourier type, and the transformer layer around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opflow.layers.point_set import checked_weights
from opflow.typing import Points, check_placement


class HeadNorm(nn.Module):
    """x_h -> (x_h - mean) / std * gamma_h + beta_h along the channels of each head, every head with an affine map of its own.

    >>> HeadNorm(heads=2, channels=3)(torch.randn(4, 7, 2, 3)).shape
    torch.Size([4, 7, 2, 3])
    """

    def __init__(self, heads: int, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, channels))
        self.bias = nn.Parameter(torch.zeros(heads, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., head, channel) -> the same"""
        heads, channels = self.weight.shape
        if heads == 1:
            return F.layer_norm(x, (channels,), self.weight[0], self.bias[0], self.eps)
        return torch.addcmul(self.bias, F.layer_norm(x, (channels,), eps=self.eps), self.weight)

    def extra_repr(self) -> str:
        """Heads and channels for `print(model)`."""
        return f"heads={self.weight.shape[0]}, channels={self.weight.shape[1]}, eps={self.eps}"


class _LinearAttention(nn.Module):
    """What both types share: z_h = Q_h (K_h^T diag(w) V_h), heads side by side, then the output map z W_o + b_o.

    Without softmax the product is associative, so both types are computed at linear cost in the number of points.
    """

    normalised: tuple[str, ...]

    def __init__(
        self,
        channels: int,
        heads: int,
        dim: int,
        *,
        measure: float | None,
        dropout: float,
        eps: float,
        gain: float,
        diagonal: float,
    ) -> None:
        super().__init__()
        if heads < 1 or channels < 1 or channels % heads or dim < 0:
            raise ValueError(
                f"channels is {channels}, heads {heads} and dim {dim}; the heads must divide the channels, "
                "and dim is the number of coordinates, 0 for none."
            )
        if measure is not None and not measure > 0:
            raise ValueError(f"measure is {measure}; give the positive measure of the domain, or None not to check it.")
        self.channels, self.heads, self.dim, self.measure = channels, heads, dim, measure
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.norms = nn.ModuleDict({name: HeadNorm(heads, channels // heads, eps=eps) for name in self.normalised})
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.output = nn.Linear(channels + heads * dim, channels)
        self.reset_parameters(gain, diagonal)

    def reset_parameters(self, gain: float, diagonal: float) -> None:
        """Query, key and value: Xavier-uniform times `gain`, plus `diagonal` times the identity; biases zero."""
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight, gain=gain)
            with torch.no_grad():
                linear.weight += diagonal * torch.eye(self.channels)
            nn.init.zeros_(linear.bias)

    def forward(self, y: Tensor, coords: Points | None = None, weights: Tensor | None = None) -> Tensor:
        """Points (batch, points, channels) -> the same.

        Args:
            y: values at the points.
            coords: (points, dim) or (batch, points, dim); to be given if and only if `dim` is not 0.
            weights: quadrature weights (points,) or (batch, points), whose sum is `measure`; None for equal ones.
        """
        self._check(y, coords)
        if weights is not None:
            weights = checked_weights(weights, y.shape[:2], self.measure, y)
        return self._attend(y, coords, weights)

    def _attend(self, y: Tensor, coords: Tensor | None, w: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _heads(self, name: str, y: Tensor, coords: Tensor | None) -> Tensor:
        """Q, K or V of every head, (batch, head, points, dim + channels / heads): normalised, then the coordinates prepended."""
        x = self.get_submodule(name)(y).unflatten(-1, (self.heads, -1))
        if name in self.norms:
            x = self.norms[name](x)
        x = x.transpose(1, 2)
        if coords is None:
            return x
        coords = coords if coords.ndim == 2 else coords[:, None]
        return torch.cat([coords.expand(*x.shape[:3], self.dim), x], dim=-1)

    def _form(self, y: Tensor, coords: Tensor | None, w: Tensor | None) -> Tensor:
        """K^T diag(w) V of every head, (batch, head, i, j): n^-1 sum_m or sum_m w_m of k_i(x_m) v_j(x_m)."""
        k, v = self._heads("key", y, coords), self._heads("value", y, coords)
        if w is None:
            return (k.mT @ v) / y.shape[1]
        return (k * w[:, None, :, None]).mT @ v

    def _output_blocks(self) -> Tensor:
        """W_o^T in the rows of each head, (head, j, channel)."""
        return self.output.weight.mT.unflatten(0, (self.heads, -1))

    def _check(self, y: Tensor, coords: Tensor | None) -> None:
        owner = type(self).__name__
        if y.ndim != 3 or y.shape[-1] != self.channels:
            raise ValueError(
                f"y has shape {tuple(y.shape)} but {owner} expects (batch, points, {self.channels}); "
                "a field becomes points with y.flatten(2).mT."
            )
        check_placement(y, self.query.weight, owner, "y")
        if (coords is None) != (self.dim == 0):
            raise ValueError(
                f"coords {'were' if coords is not None else 'were not'} given but {owner} has dim={self.dim}; "
                "build it with dim= the number of coordinates to give, 0 for none."
            )
        if coords is not None and coords.shape not in ((y.shape[1], self.dim), (*y.shape[:2], self.dim)):
            raise ValueError(
                f"coords has shape {tuple(coords.shape)}; expected {(y.shape[1], self.dim)}, one set for the whole batch, "
                f"or {(*y.shape[:2], self.dim)}."
            )

    def extra_repr(self) -> str:
        """Sizes for `print(model)`."""
        return f"{self.channels}, heads={self.heads}, dim={self.dim}, measure={self.measure}"


class GalerkinAttention(_LinearAttention):
    """z = Q (K~^T diag(w) V~), then z W_o + b_o   (Cao 2021, "Choose a transformer: Fourier or Galerkin").

    Per head Q, K, V = y W_q + b_q, y W_k + b_k, y W_v + b_v with channels / heads columns; K~ and V~ are normalised
    along these columns at each point, then the `dim` coordinates are prepended to Q, K~ and V~. The weights are
    w_j = 1/n, or a quadrature rule over the points divided by the measure of the domain, so that a sum over the points
    approaches the mean over the domain however the points lie. Column j of V~ is a trial function, column i of K~ a
    test function, their product an inner product on the domain. The cost is linear in the number of points.

    Args:
        channels: of the points' values, in and out.
        heads: must divide the channels.
        dim: number of coordinates; 0 for attention that sees none.
        measure: what the quadrature weights sum to, the measure of the domain. None takes weights as they are,
            unchecked and undivided.
        dropout: in training, of the entries of K~^T diag(w) V~.
        eps: of the normalisation.
        gain, diagonal: W_q, W_k and W_v start as gain * Xavier-uniform + diagonal * identity.

    >>> GalerkinAttention(32, heads=4, dim=2)(torch.randn(2, 64, 32), torch.rand(64, 2)).shape
    torch.Size([2, 64, 32])
    """

    normalised = ("key", "value")

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        dim: int = 0,
        *,
        measure: float | None = 1.0,
        dropout: float = 0.0,
        eps: float = 1e-5,
        gain: float = 1e-2,
        diagonal: float = 1e-2,
    ) -> None:
        super().__init__(channels, heads, dim, measure=measure, dropout=dropout, eps=eps, gain=gain, diagonal=diagonal)

    def _attend(self, y: Tensor, coords: Tensor | None, w: Tensor | None) -> Tensor:
        form = self.dropout(self._form(y, coords, w))
        # z W_o = sum_h [x, y W_q + b_q]_h form_h W_o,h is affine in y: its small matrices are multiplied out first, and
        # the points are visited once instead of three times.
        mixed = torch.einsum("bhij,hjc->bhic", form, self._output_blocks())
        from_query = mixed[:, :, self.dim :].flatten(1, 2)  # (batch, head * column, channel)
        bias = self.query.bias @ from_query + self.output.bias
        z = torch.baddbmm(bias[:, None], y, self.query.weight.mT @ from_query)
        return z if coords is None else z + coords @ mixed[:, :, : self.dim].sum(1)


class FourierAttention(_LinearAttention):
    """z = (Q~ K~^T) diag(w) V / sqrt(d_k + dim), then z W_o + b_o   (Cao 2021), with d_k = channels / heads.

    As GalerkinAttention, but Q~ and K~ are normalised and V is not: the rows of Q~ K~^T play a kernel's part. The
    paper multiplies from the left, at quadratic cost; without softmax the product is associative, so here it is
    Q~ (K~^T diag(w) V), the same numbers at linear cost. Dropout acts on the entries of Q~ K~^T and needs the whole
    matrix: with dropout > 0 training costs the square of the number of points.

    Args:
        channels, heads, dim, measure, eps: as in GalerkinAttention.
        dropout: in training, of the entries of Q~ K~^T.
        gain, diagonal: W_q, W_k and W_v start as gain * Xavier-uniform + diagonal * identity.

    >>> FourierAttention(32, heads=4)(torch.randn(2, 64, 32)).shape
    torch.Size([2, 64, 32])
    """

    normalised = ("query", "key")

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        dim: int = 0,
        *,
        measure: float | None = 1.0,
        dropout: float = 0.0,
        eps: float = 1e-5,
        gain: float = 1e-3,
        diagonal: float = 1e-2,
    ) -> None:
        super().__init__(channels, heads, dim, measure=measure, dropout=dropout, eps=eps, gain=gain, diagonal=diagonal)

    def _attend(self, y: Tensor, coords: Tensor | None, w: Tensor | None) -> Tensor:
        q = self._heads("query", y, coords)
        scale = q.shape[-1] ** -0.5
        if self.training and isinstance(self.dropout, nn.Dropout):
            k, v = self._heads("key", y, coords), self._heads("value", y, coords)
            v = v / y.shape[1] if w is None else v * w[:, None, :, None]
            z = self.dropout(scale * (q @ k.mT)) @ v
            return self.output(z.transpose(1, 2).flatten(2))
        mixed = torch.einsum("bhij,hjc->bhic", scale * self._form(y, coords, w), self._output_blocks())
        return torch.baddbmm(self.output.bias, q.transpose(1, 2).flatten(2), mixed.flatten(1, 2))


class TransformerLayer(nn.Module):
    """y <- y + Drop(A(y)), then y <- y + M(y): attention and a perceptron at each point, without norms between them.

    Args:
        attention: A, with its output map.
        feed_forward: M.
        dropout: in training, of A(y).

    >>> from opflow.layers.mlp import MLP
    >>> layer = TransformerLayer(GalerkinAttention(32), MLP((32, 64, 32), activation=nn.ReLU()))
    >>> layer(torch.randn(2, 64, 32)).shape
    torch.Size([2, 64, 32])
    """

    def __init__(self, attention: nn.Module, feed_forward: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, y: Tensor, coords: Points | None = None, weights: Tensor | None = None) -> Tensor:
        """Points (batch, points, channels) -> the same; coords and weights as the attention takes them."""
        y = y + self.dropout(self.attention(y, coords, weights))
        return y + self.feed_forward(y)
