"""Upper bounds of a matrix's largest singular value and of an activation's slopes: what Lipschitz layers are built on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Least and greatest slope. GELU's greatest is at sqrt(2), SiLU's at 2.3994; both slopes lie symmetrically about 1/2. Rounded outwards.
_SLOPES: dict[type[nn.Module], tuple[float, float]] = {
    nn.Identity: (1.0, 1.0),
    nn.ReLU: (0.0, 1.0),
    nn.Tanh: (0.0, 1.0),
    nn.Softplus: (0.0, 1.0),
    nn.Hardtanh: (0.0, 1.0),
    nn.Softsign: (0.0, 1.0),
    nn.Sigmoid: (0.0, 0.25),
    nn.LogSigmoid: (0.0, 1.0),
    nn.SiLU: (-0.09983933, 1.09983933),
}


def slopes(activation: nn.Module) -> tuple[float, float]:
    """(a, b) with a <= s' <= b everywhere: GELU (-0.1289, 1.1289), SiLU (-0.0998, 1.0998), ReLU and tanh (0, 1).

    Raises:
        ValueError: the activation's slopes are not known here.
    """
    if type(activation) in _SLOPES:
        return _SLOPES[type(activation)]
    if type(activation) is nn.GELU:
        greatest = 1.12890415 if activation.approximate == "none" else 1.12899307
        return 1 - greatest, greatest
    if type(activation) is nn.LeakyReLU:
        return min(1.0, activation.negative_slope), max(1.0, activation.negative_slope)
    if type(activation) is nn.ELU:  # its negative branch alpha (e^x - 1) has slopes in (0, alpha)
        return min(0.0, activation.alpha), max(1.0, activation.alpha)
    raise ValueError(
        f"the slopes of {type(activation).__name__} are not known; use one of "
        f"{', '.join(sorted({kind.__name__ for kind in _SLOPES} | {'GELU', 'LeakyReLU', 'ELU'}))}."
    )


def gram_bound(matrix: Tensor, iterations: int = 8) -> Tensor:
    """An upper bound of the largest singular value: (..., m, n), real or complex, -> (...)   (Delattre et al. 2023, "Efficient bound of Lipschitz constant").

    G <- G^H G from the matrix, rescaled, K times: its Frobenius norm is at least s^(2^K), so s <= |G|_F^(2^-K) after every iteration.
    The excess is at most the rank to the power 2^-(K+1): 0.5 % for rank 16 and K = 8. Differentiable.

    >>> gram_bound(torch.diag(torch.tensor([3.0, 1.0])))
    tensor(3.)
    """
    if matrix.ndim < 2 or iterations < 1:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)} and iterations is {iterations}; give matrices (..., m, n), at least one iteration."
        )
    G = matrix.mH if matrix.shape[-2] < matrix.shape[-1] else matrix  # the smaller of the two products
    tiny = torch.finfo(matrix.real.dtype).tiny ** 0.5
    logarithm = torch.zeros((), dtype=matrix.real.dtype, device=matrix.device)
    for _ in range(iterations):
        norm = _frobenius(G, tiny)
        logarithm = 2 * (logarithm + norm.log())
        G = G / norm[..., None, None]
        G = G.mH @ G
    return ((logarithm + _frobenius(G, tiny).log()) / 2**iterations).exp()


def _frobenius(G: Tensor, tiny: float) -> Tensor:
    squares = G.real.square() + G.imag.square() if G.is_complex() else G.square()
    return squares.sum((-2, -1)).clamp(min=tiny).sqrt()
