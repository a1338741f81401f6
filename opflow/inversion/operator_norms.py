"""Upper bounds of the norms of the linear maps in networks, and of perceptrons as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from opflow.layers.bounds import gram_bound

ITERATIONS = 12  # of Gram: an excess of 0.05 % for rank 64


def convolution_bound(kernel: Tensor, shape: Sequence[int] | None = None) -> float:
    """An upper bound of |v -> kernel * v| in the Euclidean norm, kernel (out, in, *taps)   (Sedghi et al. 2019; Delattre et al. 2023).

    With `shape`, a circular convolution on that grid: the greatest norm of the blocks K(k) = sum_t kernel_t exp(-2 pi i k.t / n), exact
    up to Gram's excess. Without, circular or zero-padded on any grid, with any stride: the symbol K is a trigonometric polynomial of
    degree d = ceil((taps - 1) / 2) an axis, and between N points an axis it exceeds its values there by at most 1 / cos(pi d / N)
    (Ehlich and Zeller 1964).
    """
    if kernel.ndim < 3 or (shape is not None and len(shape) != kernel.ndim - 2):
        raise ValueError(
            f"the kernel has shape {tuple(kernel.shape)} and the grid {shape}; give (out, in, *taps) and one size per axis of taps."
        )
    taps = kernel.shape[2:]
    kernel = kernel.detach().to(torch.float64)
    if shape is None:
        degrees = [math.ceil((t - 1) / 2) for t in taps]
        sizes = [max(8, 16 * d) for d in degrees]
        between = math.prod(1 / math.cos(math.pi * d / n) for d, n in zip(degrees, sizes, strict=True))
    else:
        sizes, between = list(shape), 1.0
        for axis, n in enumerate(sizes, start=2):
            kernel = _wrapped(kernel, axis, n)
    blocks = torch.fft.fftn(kernel, s=sizes, dim=tuple(range(2, kernel.ndim)))
    return between * float(gram_bound(blocks.flatten(2).movedim(-1, 0), ITERATIONS).max())


def _wrapped(kernel: Tensor, axis: int, n: int) -> Tensor:
    """The taps modulo n: those that go round a small grid meet each other."""
    rest = -kernel.shape[axis] % n
    padding = kernel.new_zeros(*kernel.shape[:axis], rest, *kernel.shape[axis + 1 :])
    return torch.cat([kernel, padding], dim=axis).unflatten(axis, (-1, n)).sum(axis)


def fourier_bound(weight: Tensor, n_modes: Sequence[int], skip: Tensor | None = None) -> float:
    """|v -> K v + W v| in L2 on a periodic grid: max(max_k |W + R_k|, |W|), exact up to Gram's excess where the grid resolves the modes.

    On a coarser grid the frequencies at its Nyquist limit act through real parts, which is no larger. In the plane k_last = 0 the
    real part joins R_k and R_(-k): the block there is W + (R_k + conj R_(-k)) / 2, with R = 0 for the partner of an unpaired row.

    Args:
        weight: (*kept, 2, in, out), as `SpectralConv` stores it.
        skip: W (out, in); None for none.
    """
    R = torch.complex(*weight.detach().to(torch.float64).unbind(-3)).mT.contiguous()  # (*kept, out, in)
    dim = len(n_modes)
    plane = R.select(dim - 1, 0)  # k_last = 0, the other axes in increasing order from -(m//2)
    partner = torch.zeros_like(plane)
    paired = tuple(slice(1 - m % 2, None) for m in n_modes[:-1])  # an even axis starts with an unpaired row
    partner[paired] = plane[paired].flip(tuple(range(dim - 1))).conj()
    rest = R.narrow(dim - 1, 1, R.shape[dim - 1] - 1)
    blocks = torch.cat([rest.reshape(-1, *R.shape[-2:]), ((plane + partner) / 2).reshape(-1, *R.shape[-2:])])
    if skip is None:
        return float(gram_bound(blocks, ITERATIONS).max())
    W = skip.detach().to(torch.float64)
    return max(float(gram_bound(blocks + W, ITERATIONS).max()), float(gram_bound(W, ITERATIONS)))


def perceptron_bound(weights: Sequence[Tensor]) -> float:
    """An upper bound for W_l s(... s(W_1 x + b_1) ...) with slopes of s in [0, 1]: ECLipsE-Fast   (Xu and Sivaranjani 2024).

    M_0 = I,  S_i = W_i M_(i-1)^-1 W_i^T,  c_i = 2 / |S_i|,  M_i = c_i I - c_i^2 S_i / 4;   L = |W_l M_(l-1)^-1 W_l^T|^(1/2)

    It is never above the product of the norms, and counts how directions align from layer to layer.

    Args:
        weights: (out, in), first layer first.
    """
    if not weights or any(W.ndim != 2 for W in weights):
        raise ValueError("give the matrices (out, in) of one linear layer or more, the first layer first.")
    inverse = torch.eye(weights[0].shape[1], dtype=torch.float64, device=weights[0].device)
    product = 1.0
    for i, weight in enumerate(weights):
        W = weight.detach().to(torch.float64)
        product *= float(gram_bound(W, ITERATIONS))
        S = W @ inverse @ W.T
        norm = float(gram_bound((S + S.T) / 2, ITERATIONS))
        if i == len(weights) - 1 or norm < 1e-200:
            break
        c = 2 / norm
        M = c * torch.eye(len(S), dtype=torch.float64, device=S.device) - c**2 / 4 * (S + S.T) / 2
        inverse = torch.linalg.inv(M)
    return min(math.sqrt(norm), product)
